"""A container's control groups: what the kernel allows it, and what it counts. The files of both versions, in one set of words."""

from __future__ import annotations

import contextlib
import os
import typing as t
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
PERIOD = 100_000
"""Microseconds in which a quota of CPU time is counted."""
WHERE = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """``memory`` and ``swap`` in MiB, ``cores`` and ``cpulimit`` in CPUs; 0 cores are all of the machine's, a ``cpulimit`` of 0 is none."""

    memory: int = 512
    swap: int = 0
    cores: int = 0
    cpulimit: float = 0.0


@dataclass(frozen=True)
class Figures:
    """What the kernel counts: ``memory`` (as Proxmox VE shows it, without the page cache), ``cache`` and ``swap`` in bytes, ``cpu`` in seconds.

    ``limit_hits`` is how often the memory's limit was reached, ``major_faults`` how often a page had to be read from the disk, ``kills`` how often the
    kernel killed a process for want of memory. ``pressure`` is the share of the last ten seconds, in per cent, in which some process waited, by
    resource; None where the kernel does not tell. ``read`` and ``written`` are bytes of disks.
    """

    memory: int = 0
    cache: int = 0
    swap: int = 0
    cpu: float = 0.0
    limit_hits: int = 0
    major_faults: int = 0
    kills: int = 0
    read: int = 0
    written: int = 0
    pressure: t.Mapping[str, float] | None = None


def version(root: Path = WHERE) -> int:
    """Which version of control groups limits memory on this machine."""
    return 2 if (root / "cgroup.controllers").exists() else 1


def home(controller: str, root: Path = WHERE) -> Path:
    """Where LXC makes the groups of a controller: below the group of the machine's first process."""
    folder = controller if version(root) == 1 else ""
    for line in Path("/proc/1/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if folder in names.split(","):
            return root / folder / path.removesuffix("/init.scope").strip("/")
    return root / folder


class Groups:
    """The groups of one container, by its name; below ``root``, which tests lay out on disk."""

    def __init__(self, name: str, root: Path = WHERE) -> None:
        self._name, self._root = name, root
        self.version = version(root)

    def file(self, controller: str, name: str) -> Path:
        """A file of the container's; the controller matters in version 1 only."""
        return home(controller, self._root) / f"lxc.payload.{self._name}" / name

    def _read(self, controller: str, name: str) -> str:
        return self.file(controller, name).read_text()

    def write(self, controller: str, name: str, value: object) -> None:
        """Raises OSError with the kernel's reason where it refuses."""
        # In one system call, and without a new file where the group is gone.
        number = os.open(self.file(controller, name), os.O_WRONLY)
        try:
            os.write(number, f"{value}".encode())
        finally:
            os.close(number)

    def table(self, controller: str, name: str) -> dict[str, int]:
        """A file of lines with a key and a number."""
        pairs = (line.split() for line in self._read(controller, name).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    # limits

    def set_memory(self, memory: int, swap: int) -> None:
        """MiB. Version 1 counts memory and swap together, and no limit may pass that one on the way; so what grows is set first."""
        if self.version == 2:
            self.write("memory", "memory.swap.max", swap * MIB)
            self.write("memory", "memory.max", memory * MIB)
            return
        files = [("memory.memsw.limit_in_bytes", (memory + swap) * MIB), ("memory.limit_in_bytes", memory * MIB)]
        if (memory + swap) * MIB < int(self._read("memory", files[0][0])):
            files.reverse()
        before = [(name, self._read("memory", name)) for name, _ in files]
        try:
            for name, value in files:
                self.write("memory", name, value)
        except OSError:
            for name, old in reversed(before):
                self.write("memory", name, old.strip())
            raise

    def set_quota(self, cpulimit: float) -> None:
        """CPUs; 0 is no limit."""
        quota = int(PERIOD * cpulimit)
        if self.version == 2:
            self.write("cpu", "cpu.max", f"{quota or 'max'} {PERIOD}")
        else:
            self.write("cpu", "cpu.cfs_quota_us", quota or -1)

    def set_cores(self, cores: int) -> None:
        """How many CPUs it may run on; 0 are all."""
        self.write("cpuset", "cpuset.cpus", cpus(cores))

    def limits(self) -> Limits:
        """What the kernel holds it to now."""
        cores = _count(self._read("cpuset", "cpuset.cpus").strip())
        if self.version == 2:
            quota = self._read("cpu", "cpu.max").split()[0]
            memory, swap = (_whole(self._read("memory", name)) for name in ("memory.max", "memory.swap.max"))
            return Limits(memory // MIB, swap // MIB, cores, 0.0 if quota == "max" else int(quota) / PERIOD)
        memory, both = (int(self._read("memory", name)) for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"))
        return Limits(memory // MIB, (both - memory) // MIB, cores, max(0, int(self._read("cpu", "cpu.cfs_quota_us"))) / PERIOD)

    # figures

    def figures(self) -> Figures:
        return self._figures_2() if self.version == 2 else self._figures_1()

    def _figures_1(self) -> Figures:
        stat = self.table("memory", "memory.stat")
        used, both = (int(self._read("memory", f"memory.{name}usage_in_bytes")) for name in ("", "memsw."))
        moved = self._moved(self._read("blkio", "blkio.throttle.io_service_bytes_recursive"))
        return Figures(
            memory=max(0, used - stat["total_cache"]),
            cache=stat["total_cache"],
            swap=max(0, both - used),
            cpu=int(self._read("cpuacct", "cpuacct.usage")) / 1e9,
            # Without swap both limits are the same, and the one of memory and swap together is asked first.
            limit_hits=sum(int(self._read("memory", f"memory.{name}failcnt")) for name in ("", "memsw.")),
            major_faults=stat["total_pgmajfault"],
            kills=sum(self._kills(path) for path in self.file("memory", "").rglob("memory.oom_control")),  # a group's own only
            read=moved["Read"],
            written=moved["Write"],
        )

    def _figures_2(self) -> Figures:
        stat, events = self.table("memory", "memory.stat"), self.table("memory", "memory.events")
        fields = [word.split("=") for line in self._read("io", "io.stat").splitlines() for word in line.split()[1:]]
        return Figures(
            memory=max(0, int(self._read("memory", "memory.current")) - stat["file"]),
            cache=stat["file"],
            swap=int(self._read("memory", "memory.swap.current")),
            cpu=self.table("cpu", "cpu.stat")["usage_usec"] / 1e6,
            limit_hits=events["max"],
            major_faults=stat["pgmajfault"],
            kills=events["oom_kill"],
            read=sum(int(value) for name, value in fields if name == "rbytes"),
            written=sum(int(value) for name, value in fields if name == "wbytes"),
            pressure={what: self._some(what) for what in ("cpu", "io", "memory")} if self.file("memory", "memory.pressure").exists() else None,
        )

    @staticmethod
    def _kills(path: Path) -> int:
        with contextlib.suppress(OSError):  # a service's group that has just gone
            return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("oom_kill ")), 0)
        return 0

    def _some(self, what: str) -> float:
        line = self._read(what, f"{what}.pressure").splitlines()[0]  # some avg10=0.00 avg60=...
        return float(line.split()[1].partition("=")[2])

    @staticmethod
    def _moved(text: str) -> dict[str, int]:
        """Bytes by direction, over all disks: lines of a device, a direction and a number."""
        moved = {"Read": 0, "Write": 0}
        for words in (line.split() for line in text.splitlines()):
            if len(words) == 3 and words[1] in moved:
                moved[words[1]] += int(words[2])
        return moved


def cpus(cores: int) -> str:
    """The list of that many of the machine's CPUs; 0 are all."""
    mine = sorted(os.sched_getaffinity(0))
    return ",".join(str(number) for number in (mine[:cores] if cores else mine))


def _count(listed: str) -> int:
    """How many CPUs a list such as 0-1,3 has."""
    ranges = [part.split("-") for part in listed.split(",") if part]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)


def _whole(text: str) -> int:
    return 0 if text.strip() == "max" else int(text)
