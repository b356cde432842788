"""What a guest uses, as a function of simulated time: nothing is stored per second, so that weeks pass at no cost."""

from __future__ import annotations

import bisect
import dataclasses
import typing as t

MIB = 1024 * 1024
OVERRUN_PERIOD = 60.0  # seconds from one out-of-memory kill to the next while the workload stays too large
IDLE_MEMORY = 2.0  # MiB that is left in use when the main workload is dead


@dataclasses.dataclass(frozen=True)
class Workload:
    """What runs in a guest. ``memory`` MiB wanted, ``growth`` MiB per minute (a leak), ``cpu`` CPUs wanted, ``disk`` MiB used.

    ``main`` MiB is what the main process cannot do without (``memory`` if None): when a lowered limit is smaller, it is killed and stays dead
    until the next start. ``start`` and ``shutdown`` are seconds; ``netin`` and the like are bytes per second.
    """

    memory: float = 32.0
    growth: float = 0.0
    cpu: float = 0.01
    main: float | None = None
    disk: float = 500.0
    shutdown: float = 0.5
    start: float = 0.5
    ignores_term: bool = False
    fails_to_start: bool = False
    netin: float = 0.0
    netout: float = 0.0
    diskread: float = 0.0
    diskwrite: float = 0.0


def workload(facts: t.Mapping[str, t.Any]) -> Workload:
    return Workload(**facts)


@dataclasses.dataclass(frozen=True)
class Usage:
    """A moment of a guest: sizes in bytes, ``cpu`` in CPUs, pressures in per cent (avg10)."""

    memory: int = 0
    swap: int = 0
    cpu: float = 0.0
    wanted: float = 0.0
    cpu_pressure: float = 0.0
    memory_pressure: float = 0.0


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A time in which nothing about a guest was changed: its usage follows from this.

    ``memory`` and ``swap`` are the kernel's limits in MiB, ``cpus`` its limit in CPUs; the workload had grown by ``grown`` MiB at ``grows_from``.
    """

    since: float
    running: bool
    grows_from: float
    grown: float
    workload: Workload
    dead: bool
    memory: float
    swap: float
    cpus: float
    shown_cpus: float
    shown_memory: int
    shown_disk: int

    def wanted(self, moment: float) -> float:
        """MiB"""
        if self.dead:
            return IDLE_MEMORY
        return max(0.0, self.workload.memory + self.grown + self.workload.growth * (moment - self.grows_from) / 60)

    def usage(self, moment: float) -> Usage:
        if not self.running:
            return Usage()
        wanted = self.wanted(moment)
        excess = max(0.0, wanted - self.memory)
        asked = 0.0 if self.dead else self.workload.cpu
        return Usage(
            memory=int(min(wanted, self.memory) * MIB),
            swap=int(min(excess, self.swap) * MIB),
            cpu=min(asked, self.cpus),
            wanted=wanted,
            cpu_pressure=round(min(99.0, 100 * max(0.0, asked - self.cpus) / asked), 2) if asked else 0.0,
            memory_pressure=round(min(99.0, 3 + 100 * excess / self.memory), 2) if excess else 0.0,
        )

    def kills(self, begin: float, end: float) -> float:
        """How often the kernel killed something between two moments because memory and swap together were too small."""
        if not self.running or self.dead or end <= begin:
            return 0.0
        limit = self.memory + self.swap
        if self.wanted(end) <= limit:
            return 0.0
        over_since = begin
        if self.wanted(begin) <= limit and self.workload.growth > 0:
            over_since = self.grows_from + (limit - self.workload.memory - self.grown) * 60 / self.workload.growth
        return (end - max(begin, over_since)) / OVERRUN_PERIOD


class History:
    """A guest's stretches, oldest first."""

    def __init__(self) -> None:
        self._stretches: list[Stretch] = []
        self._starts: list[float] = []

    def add(self, stretch: Stretch) -> None:
        if self._stretches and dataclasses.replace(self._stretches[-1], since=stretch.since) == stretch:
            return
        if self._starts and self._starts[-1] >= stretch.since:
            self._stretches.pop()
            self._starts.pop()
        self._stretches.append(stretch)
        self._starts.append(stretch.since)

    def last(self) -> Stretch | None:
        return self._stretches[-1] if self._stretches else None

    def between(self, begin: float, end: float) -> list[tuple[float, float, Stretch]]:
        """The stretches that overlap a time, with the overlap's begin and end."""
        first = max(0, bisect.bisect_right(self._starts, begin) - 1)
        found = []
        for index in range(first, len(self._stretches)):
            since = self._starts[index]
            until = self._starts[index + 1] if index + 1 < len(self._starts) else end
            if since >= end:
                break
            lower, upper = max(since, begin), min(until, end)
            if upper > lower:
                found.append((lower, upper, self._stretches[index]))
        return found


class Frame(t.NamedTuple):
    """A series of the round-robin archive."""

    step: int
    points: int


_FRAMES_8 = {"hour": Frame(60, 70), "day": Frame(1800, 70), "week": Frame(10800, 70), "month": Frame(43200, 70), "year": Frame(604800, 70)}
_FRAMES_9 = {
    "hour": Frame(60, 60),
    "day": Frame(60, 1440),
    "week": Frame(1800, 336),
    "month": Frame(1800, 1440),
    "year": Frame(21600, 1440),
    "decade": Frame(604800, 520),
}


def frames(release: str) -> dict[str, Frame]:
    return _FRAMES_9 if release >= "9" else _FRAMES_8


def series(history: History, frame: Frame, now: float, *, peak: bool, pressure: bool) -> list[dict[str, t.Any]]:
    """A guest's points, oldest first; a point of a time without data has its time only."""
    last = int(now // frame.step) * frame.step
    steady: dict[Stretch, dict[str, t.Any]] = {}  # the points of a stretch without growth are all the same
    points = []
    for end in range(last - (frame.points - 1) * frame.step, last + 1, frame.step):
        parts = history.between(end - frame.step, end)
        whole = len(parts) == 1 and parts[0][:2] == (end - frame.step, end) and not parts[0][2].workload.growth
        point = steady.get(parts[0][2]) if whole else None
        if point is None:
            point = _point(parts, end, frame.step, peak, pressure)
        if whole:
            steady[parts[0][2]] = point
        points.append(point | {"time": end})
    return points


def _point(parts: list[tuple[float, float, Stretch]], end: int, step: int, peak: bool, pressure: bool) -> dict[str, t.Any]:
    covered = sum(upper - lower for lower, upper, _ in parts)
    point: dict[str, t.Any] = {"time": end}
    if covered < step / 2:  # the archive wants half of a point's time to be known
        return point
    last = parts[-1][2]
    point |= {"maxcpu": last.shown_cpus, "maxmem": last.shown_memory, "maxdisk": last.shown_disk, "disk": 0}
    running = [(lower, upper, stretch) for lower, upper, stretch in parts if stretch.running]
    known = sum(upper - lower for lower, upper, _ in running)
    if known < step / 2:
        return point
    samples = [(upper - lower, (stretch.usage(lower), stretch.usage(upper)), stretch) for lower, upper, stretch in running]

    def fold(read: t.Callable[[Usage, Stretch], float]) -> float:
        values = [(weight, [read(usage, stretch) for usage in ends]) for weight, ends, stretch in samples]
        if peak:
            return max(max(pair) for _, pair in values)
        return sum(weight * sum(pair) / 2 for weight, pair in values) / known

    point |= {
        "cpu": fold(lambda usage, stretch: usage.cpu / (stretch.shown_cpus or 1)),
        "mem": fold(lambda usage, stretch: usage.memory),
        "disk": int(last.workload.disk * MIB),
        "netin": fold(lambda usage, stretch: stretch.workload.netin),
        "netout": fold(lambda usage, stretch: stretch.workload.netout),
        "diskread": fold(lambda usage, stretch: stretch.workload.diskread),
        "diskwrite": fold(lambda usage, stretch: stretch.workload.diskwrite),
    }
    if pressure:
        point |= {
            "memhost": point["mem"],
            "pressurecpusome": fold(lambda usage, stretch: usage.cpu_pressure),
            "pressurecpufull": 0.0,
            "pressureiosome": 0.0,
            "pressureiofull": 0.0,
            "pressurememorysome": fold(lambda usage, stretch: usage.memory_pressure),
            "pressurememoryfull": fold(lambda usage, stretch: usage.memory_pressure / 2),
        }
    return point
