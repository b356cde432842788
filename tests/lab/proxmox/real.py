"""A guest that is a real Linux container: the kernel and btrfs do what is asked of them, and what it uses is the kernel's own figure."""

from __future__ import annotations

import collections
import dataclasses
import os
import time
import typing as t

from tests.lab.cgroups import Figures, Limits
from tests.lab.containers import Container
from tests.lab.proxmox.usage import Frame, Usage

KEPT = 100_000
"""Samples of a guest that are kept."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What pvestatd saw in one round: ``moment`` is simulated, ``shown`` what it showed."""

    moment: float
    usage: Usage
    shown: dict[str, t.Any]


class Real:
    """The container, and what pvestatd saw of it."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._samples: collections.deque[Sample] = collections.deque(maxlen=KEPT)
        self._cpu: tuple[float, float] | None = None  # seconds of the real clock, and of CPU time used by then
        self._rate = 0.0

    # power

    @property
    def pid(self) -> int:
        return self._container.pid

    def seconds(self) -> float:
        """For how long it has run, in real time."""
        return self._container.seconds()

    def start(self, limits: Limits) -> int:
        """Start it, unless it runs and is only to be taken over; its pid."""
        if not self._container.running:
            self._container.start(limits)
        else:
            self._container.set_limits(limits)
        self._cpu = None
        return self._container.pid

    def shut_down(self, seconds: int) -> bool:
        """Whether it ended within that time, which is real."""
        return self._container.stop(seconds)

    def kill(self) -> None:
        self._container.kill()

    def destroy(self) -> None:
        self._container.destroy()

    def set_limits(self, limits: Limits) -> None:
        self._container.set_limits(limits)

    # limits: each raises OSError with the kernel's reason where that refuses

    def set_memory(self, memory: int, swap: int) -> None:
        self._container.groups.set_memory(memory, swap)

    def set_quota(self, cpulimit: float) -> None:
        self._container.groups.set_quota(cpulimit)

    def set_cores(self, cores: int) -> None:
        self._container.groups.set_cores(cores)

    def limits(self) -> Limits:
        return self._container.groups.limits()

    # disks

    def on_disk(self, operation: str, name: str) -> None:
        """Do what a snapshot's operation (snapshot, delete, rollback) does to the disk."""
        act = {"snapshot": self._container.snapshot, "delete": self._container.delete_snapshot, "rollback": self._container.rollback}
        act[operation](name)

    # usage

    def figures(self) -> Figures:
        """Nothing of one that does not run, or is just ending."""
        try:
            return self._container.groups.figures()
        except OSError:
            return Figures()

    def usage(self) -> Usage:
        """What it uses now, and of the processor what it used between the last two rounds of pvestatd."""
        seen = self.figures()
        pressure = seen.pressure or {}
        return Usage(seen.memory, seen.swap, self._rate, seen.memory / 2**20, pressure.get("cpu", 0.0), pressure.get("memory", 0.0))

    def moved(self) -> dict[str, int]:
        """Bytes of the disk and of disks' transfers, as ``status/current`` shows them."""
        seen, disk = self.figures(), os.statvfs(self._container.disk)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        return {"disk": used, "maxdisk": disk.f_blocks * disk.f_frsize, "diskread": seen.read, "diskwrite": seen.written, "netin": 0, "netout": 0}

    def measure(self) -> None:
        """Take the processor's use since the last time."""
        now, cpu = time.monotonic(), self.figures().cpu
        if self._cpu and now > self._cpu[0]:
            self._rate = max(0.0, (cpu - self._cpu[1]) / (now - self._cpu[0]))
        self._cpu = (now, cpu)

    def remember(self, moment: float, shown: dict[str, t.Any]) -> None:
        self._samples.append(Sample(moment, self.usage(), shown))

    def series(self, frame: Frame, now: float, interval: float, *, peak: bool, pressure: bool) -> list[dict[str, t.Any]]:
        """The points of the archive, oldest first, from what pvestatd saw each ``interval`` seconds; a point of which less than half is known has its
        time only."""
        last = int(now // frame.step) * frame.step
        points: dict[int, list[Sample]] = collections.defaultdict(list)
        for sample in self._samples:
            points[-int(-sample.moment // frame.step) * frame.step].append(sample)
        ends = range(last - (frame.points - 1) * frame.step, last + 1, frame.step)
        return [{"time": end} | (self._point(points[end], peak, pressure) if len(points[end]) * interval >= frame.step / 2 else {}) for end in ends]

    @staticmethod
    def _point(samples: list[Sample], peak: bool, pressure: bool) -> dict[str, t.Any]:
        shown = samples[-1].shown
        point: dict[str, t.Any] = {"maxcpu": shown["cpus"], "maxmem": shown["maxmem"], "maxdisk": shown["maxdisk"], "disk": shown["disk"]}
        running = [sample for sample in samples if sample.shown["status"] == "running"]
        if len(running) * 2 < len(samples):
            return point

        def fold(read: t.Callable[[Sample], float]) -> float:
            values = [read(sample) for sample in running]
            return max(values) if peak else sum(values) / len(values)

        point |= dict.fromkeys(("netin", "netout", "diskread", "diskwrite"), 0.0)
        point |= {"cpu": fold(lambda sample: sample.usage.cpu / (sample.shown["cpus"] or 1)), "mem": fold(lambda sample: sample.usage.memory)}
        if pressure:
            none = ("pressurecpufull", "pressureiosome", "pressureiofull", "pressurememoryfull")
            point |= dict.fromkeys(none, 0.0) | {"memhost": point["mem"]}
            point["pressurecpusome"] = fold(lambda sample: sample.usage.cpu_pressure)
            point["pressurememorysome"] = fold(lambda sample: sample.usage.memory_pressure)
        return point
