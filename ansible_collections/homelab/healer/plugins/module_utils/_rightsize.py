# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much memory a Proxmox container should have, by the history of its use.

Nothing is read or changed here. The rules are those of Kubernetes' Vertical Pod Autoscaler (VPA), with two more: use at the limit tells only how
much was needed at least, and a history that is missing, short or zero is never a reason to take memory away.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import math
import typing as t
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

MIB = 1 << 20
DAY = 86400
SLOT = 10800
"""History is counted as seen in slots of three hours: the longest step that Proxmox VE 8 has for a week, so that no resolution makes gaps."""
WINDOW = 8
"""Days that count, each with its peak: VPA's eight intervals of 24 hours. They end now, not at midnight, so that the newest is a whole one."""
HALF_LIFE = 1
"""Days after which a peak weighs half: VPA's 24 hours."""
LOWER, TARGET, UPPER = 0.5, 0.9, 0.95
"""The weighted percentiles of the peaks, VPA's."""
MARGIN = 1.15
"""What is added to each of them, VPA's and KRR's 15 %."""
CLIPPED = 0.95
"""From this share of the limit on, the limit may have cut the use off: own choice, since averages over minutes do not quite reach it."""
OOM_FACTOR, OOM_MIB = 1.2, 100
"""What VPA adds to the peak of what ran out of memory, whichever is more."""
CHANGE = 0.1
"""A smaller difference is not worth a change: VPA's 10 %."""
GROW_DAYS, SHRINK_DAYS = 0.5, 2
"""History needed. VPA waits 12 hours, unless the size is out of bounds; two days see each hour twice before memory is taken away (own choice)."""
POINTS = 100
"""History needed to shrink: KRR's. A single timeframe of Proxmox VE 8 has 70 points, so ask for several, with the consolidation ``MAX``."""
PRESSURE = 0.2
"""Percent of time in which some task waited for memory, from which on nothing is taken away: ProxLB's threshold."""
GROW_STEP, SHRINK_STEP = 2.0, 0.8
"""A step at most doubles, and takes at most 20 %, so that a wrong answer can be seen and put back before it does harm: own choices."""
INSANE = 1 << 60
"""No number from here on is one: beyond what a kernel calls unlimited."""
FLOOR = 128
"""MiB below which nothing is made smaller: KRR's 100 MB, rounded up."""


@dataclass(frozen=True)
class Peak:
    """The most that was used, in MiB, in the 24 hours that end on ``day`` (UTC); if ``clipped``, use reached the limit of its time."""

    day: str
    peak: int
    clipped: bool
    samples: int
    weight: float


@dataclass(frozen=True)
class Recommendation:
    """A size in MiB, and why.

    ``direction`` is ``grow``, ``shrink``, ``keep`` (``memory`` is then the present limit) or ``none`` (nothing can be said, ``memory`` is ``None``).
    ``confidence`` is the share of the window's slots that were seen, less in proportion where they hold fewer than ``POINTS`` points, half of that
    where use was clipped, and 0 for ``none``. Between ``lower`` and ``upper`` the right size may be; an ``upper`` of ``None`` is not known.
    """

    memory: int | None
    direction: str
    confidence: float
    lower: int | None
    upper: int | None
    peaks: tuple[Peak, ...]
    why: str

    def as_dict(self) -> dict[str, t.Any]:
        """The same in plain types."""
        return dict(asdict(self), peaks=[asdict(peak) for peak in self.peaks])


class _Sample(t.NamedTuple):
    """MiB in use at one time, whether the limit cut it off, and whether the container had work then."""

    used: float = 0.0
    clipped: bool = False
    busy: bool = False

    def join(self, other: _Sample) -> _Sample:
        """Of two that claim to be of the same time, the one with the higher use is the finer one, or the maximum instead of the average."""
        return _Sample(max(self.used, other.used), self.clipped or other.clipped, self.busy or other.busy)


class _History:
    """The samples of the window by time, and what they amount to."""

    def __init__(self, samples: t.Mapping[float, _Sample], now: float) -> None:
        self.samples = samples
        self.slots = {int((now - time) // SLOT) for time in samples}
        # A few points, hours apart, are no days of history; nor is a short time that happens to touch two slots.
        self.days = min(max(samples) - min(samples), len(self.slots) * SLOT) / DAY
        by_age: dict[int, list[_Sample]] = {}
        for time, sample in samples.items():
            by_age.setdefault(int((now - time) // DAY), []).append(sample)
        self.weighted = sorted((max(sample.used for sample in day), 0.5 ** (age / HALF_LIFE)) for age, day in by_age.items())
        self.peaks = tuple(_peak(now - age * DAY, by_age[age], 0.5 ** (age / HALF_LIFE)) for age in sorted(by_age))
        self.clipped = any(sample.clipped for sample in samples.values())
        # The latest day's only: an older limit that was run into has had its answer since, and the size would run away.
        self.cut_off = max((sample.used for sample in by_age[min(by_age)] if sample.clipped), default=0.0)

    def with_margin(self, share: float) -> float:
        """The smallest daily peak that this share of them, by weight, does not exceed, and the margin."""
        rest = share * sum(weight for _peak, weight in self.weighted)
        for peak, weight in self.weighted:
            rest -= weight
            if rest <= 0:
                return MARGIN * peak
        return MARGIN * self.weighted[-1][0]

    def bounds(self) -> tuple[int, int | None]:
        """As VPA widens them: a day's history gives the upper one a factor of two. Clipped use tells of no upper one."""
        if not self.days:
            return 0, None
        lower = self.with_margin(LOWER) * (1 + 0.001 / self.days) ** -2
        return math.floor(lower), None if self.clipped else math.ceil(self.with_margin(UPPER) * (1 + 1 / self.days))

    def too_little(self) -> str:
        """What is missing for a judgement that takes memory away."""
        if len(self.samples) < POINTS:
            return f"the history holds {len(self.samples)} points, and {POINTS} are needed"
        if self.days < SHRINK_DAYS:
            return f"the history covers {self.days:.1f} days, and {SHRINK_DAYS} are needed"
        if 2 * sum(slot * SLOT < DAY for slot in self.slots) * SLOT < DAY:
            return "more than half of the last 24 hours is missing in the history"
        return ""


@dataclass(frozen=True)
class _Case:
    """What there is to decide on."""

    history: _History
    limit: int
    used: int
    pressure: float | None
    floor: int
    highest: int | None


def recommend(
    points: t.Sequence[t.Mapping[str, t.Any]],
    *,
    now: float,
    limit: int,
    used: int,
    pressure: float | None = None,
    floor: int = FLOOR,
    highest: int | None = None,
) -> Recommendation:
    """A size for a container that now has ``limit`` MiB and uses ``used``.

    ``points`` are rows of ``rrddata``, of any timeframes, in any order; ``now`` is the node's clock. ``pressure`` is the present memory pressure
    (some, avg10, percent). Nothing is made smaller than ``floor``, or larger than ``highest``.
    """
    known = _read(points, now, limit)
    samples = {time: sample for time, sample in known.items() if sample.used}
    if used > 0:
        samples[now] = _Sample(used, used >= CLIPPED * limit).join(samples.get(now, _Sample()))
    why = _untold(known, now, limit, used)
    if why:
        return Recommendation(None, "none", 0.0, None, None, (), f"{why}, so no size can be told.")
    history = _History(samples, now)
    memory, direction, why = _decide(_Case(history, limit, used, pressure, floor, highest))
    seen = len(history.slots) * SLOT / (WINDOW * DAY) * min(1.0, len(samples) / POINTS) / (2 if history.clipped else 1)
    return Recommendation(memory, direction, 0.0 if memory is None else round(seen, 3), *history.bounds(), history.peaks, why)


def _number(value: t.Any) -> float | None:
    """A number that makes sense here; the API writes some as text, and a gap as nothing or NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < INSANE else None


def _read(points: t.Sequence[t.Mapping[str, t.Any]], now: float, limit: int) -> dict[float, _Sample]:
    """The samples of the window by time, those of zero too. Each is held against its own limit; against the present one only if it names none."""
    known: dict[float, _Sample] = {}
    for row in points:
        time, used, own, cpu = (_number(row.get(key)) for key in ("time", "mem", "maxmem", "cpu"))
        if time is not None and used is not None and 0 <= now - time < WINDOW * DAY:
            sample = _Sample(used / MIB, used >= CLIPPED * (own or limit * MIB), bool(cpu))
            known[time] = known.get(time, _Sample()).join(sample)
    return known


def _untold(known: t.Mapping[float, _Sample], now: float, limit: int, used: int) -> str:
    """Why nothing can be told. An outage of Google's on 2020-12-14 began with a use of zero, reported to a right-sizer that believed it."""
    if limit <= 0:
        return "The present limit is not known"
    if not known:
        return "" if used >= CLIPPED * limit else "The history holds no use of memory, as that of a young container"
    if not any(sample.used for sample in known.values()):
        return "The history is zero throughout: the container was off all the time or its metric is broken"
    if used > 0 and not known[max(known)].used:
        return f"The history ends in zero while {used} MiB are in use: the container has just started or its metric is broken"
    if any(sample.busy and not sample.used for time, sample in known.items() if now - time < DAY):
        return "The last 24 hours of history show work done in zero memory: its metric is broken"
    return ""


def _peak(end: float, day: t.Sequence[_Sample], weight: float) -> Peak:
    date = datetime.fromtimestamp(end, timezone.utc).date().isoformat()
    return Peak(date, math.ceil(max(sample.used for sample in day)), any(sample.clipped for sample in day), len(day), weight)


def _unit(size: float) -> int:
    return 64 if size < 4096 else 128


def _round_up(size: float) -> int:
    return math.ceil(size / _unit(size)) * _unit(size)


def _decide(case: _Case) -> tuple[int | None, str, str]:
    """Size, direction and reason. What is within 10 % is kept even out of bounds: the target has its margin already."""
    peak = case.history.cut_off
    target = case.history.with_margin(TARGET)
    need = f"The daily peaks and their margin call for {math.ceil(target)} MiB"
    beyond = max(peak + OOM_MIB, peak * OOM_FACTOR) if peak else 0.0
    if beyond > target:
        target = beyond
        need = f"Its use of {math.ceil(peak)} MiB ran into the limit of that time, which calls for {math.ceil(target)} MiB or more"
    if target >= case.limit * (1 + CHANGE):
        return _grow(case, target, need)
    if target <= case.limit * (1 - CHANGE):
        return _shrink(case, target, need)
    return case.limit, "keep", f"{need}, within {CHANGE * 100:.0f} % of its {case.limit} MiB."


def _grow(case: _Case, target: float, need: str) -> tuple[int | None, str, str]:
    history, kept = case.history, f"{need}, but it keeps its {case.limit} MiB, since"
    if not history.cut_off and history.days < GROW_DAYS and case.limit >= history.bounds()[0]:
        return None, "none", f"{kept} {history.days * 24:.1f} hours of history are too little to tell."
    # A limit below 64 MiB may be rounded up to it.
    step = max(int(GROW_STEP * case.limit), 64)
    most = step if case.highest is None else min(step, case.highest)
    memory = min(_round_up(target), most // _unit(most) * _unit(most))
    if memory <= case.limit:
        return None, "none", f"{kept} {case.highest} MiB is the most it may have."
    if memory < _round_up(target):
        return memory, "grow", f"{need}; from its {case.limit} MiB {'a step goes to' if most == step else 'it may go to'} {memory} MiB at most."
    return memory, "grow", f"{need}, and it has {case.limit} MiB."


def _shrink(case: _Case, target: float, need: str) -> tuple[int | None, str, str]:
    kept = f"{need}, but its {case.limit} MiB are not made less, since"
    # The target holds the present use already, as the latest day weighs half: this says so whatever the half-life.
    size = max(target, MARGIN * case.used, case.floor, SHRINK_STEP * case.limit)
    memory = _round_up(size)
    if case.history.clipped:
        return case.limit, "keep", f"{kept} use ran into a limit in these days, which tells only how much was needed at least."
    if case.pressure is not None and case.pressure >= PRESSURE:
        return case.limit, "keep", f"{kept} its tasks wait for memory {case.pressure:.2f} % of the time."
    if size > case.limit * (1 - CHANGE) or memory >= case.limit:
        return case.limit, "keep", f"{kept} the floor of {case.floor} MiB and the rounding leave no smaller size."
    missing = case.history.too_little() if case.used > 0 else "it uses nothing now: it is off or its metric is broken"
    if missing:
        return None, "none", f"{kept} {missing}."
    notes = f"; from its {case.limit} MiB a step goes to {memory} MiB at least" if size > max(target, case.floor) else f", and it has {case.limit} MiB"
    if size == case.floor:
        notes += f"; the floor is {case.floor} MiB"
    top = max(case.history.peaks, key=lambda peak: peak.peak)
    if top.peak > memory:
        notes += f"; the older peak of {top.peak} MiB ({top.day}) would not fit, but has lost its weight"
    return memory, "shrink", f"{need}{notes}."
