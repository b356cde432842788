# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import math
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.homelab.healer.plugins.module_utils._rightsize import FLOOR, MIB, Recommendation, recommend

NOW = 1_790_000_000.0
HOUR = 3600
DAY = 86400
STEP = 1800

Row = t.Dict[str, t.Any]
Use = t.Callable[[float], t.Optional[float]]
"""MiB by age in days; ``None`` where the history has a gap."""


def series(use: Use, *, limit: t.Callable[[float], float] = lambda age: 1024, days: float = 8, step: int = STEP) -> list[Row]:
    """Rows as ``rrddata`` gives them; ``use`` and ``limit`` say MiB by age in days."""
    rows: list[Row] = []
    for index in range(int(days * DAY / step)):
        age = (index * step + 60) / DAY
        used = use(age)
        rows.append({"time": NOW - age * DAY, **({} if used is None else {"mem": used * MIB, "maxmem": limit(age) * MIB, "cpu": 0.02})})
    return rows[::-1]


def flat(mib: float) -> t.Callable[[float], float]:
    return lambda age: mib


def daily(age: float) -> float:
    return 300 + 100 * math.sin(2 * math.pi * age)


ODD: list[t.Any] = [None, "nan", "NaN", float("nan"), float("inf"), -5, "", "x", [], 10**400, 1e300]


class Case(t.NamedTuple):
    """What is asked, and what part of the answer is expected."""

    points: list[Row]
    used: int
    direction: str
    memory: int | None
    why: str
    limit: int = 1024
    more: dict[str, t.Any] = {}  # noqa: RUF012 - never written to


CASES = {
    "steady, and far too large: one step": Case(series(flat(300)), 300, "shrink", 832, "call for 345 MiB; from its 1024 MiB a step goes to 832 MiB at least"),
    "steady, somewhat too large: the target": Case(series(flat(760)), 760, "shrink", 896, "call for 874 MiB, and it has 1024 MiB."),
    "steady, and right": Case(series(flat(850)), 850, "keep", 1024, "within 10 %"),
    "steady, and near the limit, but not at it": Case(series(flat(960)), 960, "keep", 1024, "within 10 %"),
    "a daily cycle: its peak counts, not its mean": Case(series(daily), 250, "shrink", 512, "call for 460 MiB", 600),
    "a spike a week ago decays, and is told": Case(series(lambda age: 900 if 6 < age < 6.2 else 300), 300, "shrink", 832, "older peak of 900 MiB"),
    "a spike two days ago still counts": Case(series(lambda age: 700 if 2.1 < age < 2.2 else 300), 300, "shrink", 832, "call for 805 MiB"),
    "a spike three days ago does not": Case(series(lambda age: 700 if 3.1 < age < 3.2 else 300), 300, "shrink", 832, "call for 345 MiB"),
    "a spike yesterday counts": Case(series(lambda age: 900 if 1.1 < age < 1.2 else 300), 300, "keep", 1024, "within 10 %"),
    "a leak: the latest peak counts": Case(series(lambda age: 900 - 80 * age), 899, "keep", 1024, "within 10 %"),
    "a leak that reached the limit": Case(series(lambda age: 1020 - 80 * age), 1018, "grow", 1280, "ran into the limit"),
    "clipped since days": Case(series(lambda age: 1020 if age < 3 else 500), 1020, "grow", 1280, "ran into the limit"),
    "clipped, small: 100 MiB more is more than a fifth, and a step doubles at most": Case(
        series(flat(62), limit=flat(64)), 62, "grow", 128, "calls for 162 MiB or more; from its 64 MiB a step goes to 128 MiB at most", 64
    ),
    "clipped today, and low now": Case(series(lambda age: 1020 if 0.5 < age < 0.6 else 300), 300, "grow", 1280, "ran into the limit"),
    "clipped days ago: not smaller": Case(series(lambda age: 1020 if 5 < age < 5.1 else 300), 300, "keep", 1024, "only how much was needed at least"),
    "clipped, and tiny: to the first size there is": Case(series(flat(20), limit=flat(20)), 20, "grow", 64, "a step goes to 64 MiB", 20),
    "below 4 GiB: in 64 MiB": Case(series(flat(2600), limit=flat(3400)), 2600, "shrink", 3008, "call for 2990 MiB", 3400),
    "clipped, and large: in 128 MiB": Case(series(flat(8000), limit=flat(8192)), 8000, "grow", 9600, "or more, and it has 8192 MiB", 8192),
    "clipped, and capped": Case(series(flat(1020)), 1020, "grow", 1152, "it may go to 1152 MiB at most", 1024, {"highest": 1200}),
    "clipped, and capped at what it has": Case(series(flat(1020)), 1020, "none", None, "1024 MiB is the most it may have", 1024, {"highest": 1024}),
    "clipped now, and no history": Case([], 1000, "grow", 1216, "ran into the limit"),
    "clipped now, after a quiet history": Case(series(flat(300)), 1000, "grow", 1216, "ran into the limit"),
    "clipped while switched off now": Case(series(lambda age: None if age < 0.2 else 1010), 0, "grow", 1216, "ran into the limit"),
    "no history": Case([], 300, "none", None, "no use of memory, as that of a young container"),
    "only times": Case(series(lambda age: None), 300, "none", None, "no use of memory"),
    "zero throughout": Case(series(flat(0)), 300, "none", None, "zero throughout"),
    "zero throughout, and off": Case(series(flat(0)), 0, "none", None, "zero throughout"),
    "zero of late, but in use": Case(series(lambda age: 0 if age < 0.1 else 300), 300, "none", None, "ends in zero while 300 MiB are in use"),
    "zero while it works": Case(series(lambda age: 0 if 0.4 < age < 0.5 else 300), 300, "none", None, "work done in zero memory"),
    "off now": Case(series(lambda age: None if age < 0.1 else 300), 0, "none", None, "uses nothing now"),
    "young: a day": Case(series(flat(300), days=1, step=60), 300, "none", None, "covers 1.0 days, and 2 are needed"),
    "young: an hour": Case(series(flat(300), days=1 / 24, step=60), 300, "none", None, "61 points, and 100 are needed"),
    "two days are enough": Case(series(flat(300), days=2.2), 300, "shrink", 832, "call for 345 MiB"),
    "a week at three hours alone": Case(series(flat(300), step=3 * HOUR), 300, "none", None, "65 points, and 100 are needed"),
    "a week at three hours and a day at half an hour": Case(
        series(flat(300), step=3 * HOUR) + series(flat(300), days=1.5), 300, "shrink", 832, "call for 345 MiB"
    ),
    "a gap of less than half a day": Case(series(lambda age: None if 0.1 < age < 0.5 else 300), 300, "shrink", 832, "call for 345 MiB"),
    "off for longer, as zeros": Case(
        [row if row["time"] > NOW - 0.1 * DAY or row["time"] < NOW - 0.8 * DAY else {**row, "mem": 0, "cpu": 0} for row in series(flat(300))],
        300,
        "none",
        None,
        "more than half of the last 24 hours is missing",
    ),
    "zeros while it worked, but long ago": Case(series(lambda age: 0 if 4 < age < 4.1 else 300), 300, "shrink", 832, "call for 345 MiB"),
    "a gap of more": Case(series(lambda age: None if 0.1 < age < 0.8 else 300), 300, "none", None, "more than half of the last 24 hours is missing"),
    "a restart: what it used before counts": Case(series(lambda age: 100 if age < 0.5 else 700), 100, "shrink", 832, "call for 805 MiB"),
    "a limit that was raised: what ran into the old one says at least": Case(
        series(lambda age: 505 if age > 0.5 else 600, limit=lambda age: 512 if age > 0.5 else 1024), 600, "keep", 1024, "at least"
    ),
    "a limit that was raised long ago, and use has no more to do with it": Case(
        series(flat(500), limit=lambda age: 512 if age > 8.5 else 1024, days=12), 500, "shrink", 832, "call for 575 MiB"
    ),
    "a limit that was lowered: use under the old one was not cut off": Case(
        series(lambda age: 1500 if age > 1.2 else 900, limit=lambda age: 2048 if age > 1.2 else 1024), 900, "grow", 1728, "call for 1725 MiB"
    ),
    "a limit that was lowered an hour ago: out of bounds already": Case(
        series(flat(1500), limit=flat(2048), days=0.1, step=60), 300, "grow", 1728, "call for 1725 MiB"
    ),
    "pressure": Case(series(flat(300)), 300, "keep", 1024, "wait for memory 3.50 % of the time", 1024, {"pressure": 3.5}),
    "a little pressure": Case(series(flat(300)), 300, "shrink", 832, "", 1024, {"pressure": 0.1}),
    "pressure that is not known": Case(series(flat(300)), 300, "shrink", 832, "", 1024, {"pressure": float("nan")}),
    "the floor": Case(series(flat(20), limit=flat(128)), 20, "keep", 128, "floor of 128 MiB", 128),
    "a floor of one's own": Case(series(flat(300)), 300, "shrink", 896, "the floor is 880 MiB", 1024, {"floor": 880}),
    "a floor that leaves less than 10 %": Case(series(flat(300)), 300, "keep", 1024, "floor of 930 MiB", 1024, {"floor": 930}),
    "the rounding leaves no step": Case(series(flat(100), limit=flat(256)), 100, "keep", 256, "the rounding leave no smaller size", 256, {"floor": 16}),
    "present use above the history": Case(series(flat(300)), 720, "shrink", 832, "call for 828 MiB"),
    "the limit is not known": Case(series(flat(300)), 300, "none", None, "limit is not known", 0),
    "the future, and what is older than the window": Case(
        [{"time": NOW + 60, "mem": 1020 * MIB, "maxmem": 1024 * MIB}, {"time": NOW - 8 * DAY, "mem": 1020 * MIB, "maxmem": 1024 * MIB}, *series(flat(300))],
        300,
        "shrink",
        832,
        "call for 345 MiB",
    ),
    "text, null, NaN, infinite and negative": Case(
        [{key: str(value) for key, value in row.items()} for row in series(flat(300))]
        + [{"time": NOW - index, "mem": odd} for index, odd in enumerate(ODD)]
        + [{"time": odd, "mem": 1020 * MIB} for odd in ODD]
        + [{}, {"mem": 1020 * MIB}],
        300,
        "shrink",
        832,
        "call for 345 MiB",
    ),
    "the limit of a row that names none is the present one": Case(
        [{"time": row["time"], "mem": row["mem"]} for row in series(flat(1000))], 300, "grow", 1216, "ran into the limit"
    ),
    "maximum and average of the same times: the maximum": Case(series(flat(700)) + series(flat(200)), 300, "shrink", 832, "call for 805 MiB"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_series(case: Case) -> None:
    answer = recommend(case.points, now=NOW, limit=case.limit, used=case.used, **case.more)
    assert (answer.direction, answer.memory) == (case.direction, case.memory), answer.why
    assert case.why in answer.why
    assert answer.why.endswith(".")
    assert answer.confidence == 0 or answer.memory is not None


def test_a_short_history_makes_larger_only_what_is_out_of_bounds() -> None:
    rows = series(flat(1050), limit=flat(2048), days=0.1, step=60)
    hours = recommend(rows, now=NOW, limit=1090, used=700)
    assert (hours.direction, hours.memory) == ("grow", 1216), hours.why
    minutes = recommend(rows[-1:], now=NOW, limit=1090, used=700)
    assert (minutes.direction, minutes.memory) == ("none", None)
    assert "0.0 hours of history are too little to tell" in minutes.why
    assert (minutes.lower or 0) < 1090 < (hours.lower or 0)


def test_the_peaks_are_shown_newest_first_by_the_day_they_end_on() -> None:
    answer = recommend(series(lambda age: 1000 if 1 < age < 2 else 300.5, days=3), now=NOW, limit=1024, used=10)
    assert [(peak.day, peak.peak, peak.clipped, peak.weight) for peak in answer.peaks] == [
        ("2026-09-21", 301, False, 1),
        ("2026-09-20", 1000, True, 0.5),
        ("2026-09-19", 301, False, 0.25),
    ]
    assert sum(peak.samples for peak in answer.peaks) == 3 * 48 + 1, "the present use is one of them"


def test_bounds_widen_with_a_short_history_and_confidence_falls() -> None:
    whole = recommend(series(flat(850)), now=NOW, limit=1024, used=850)
    young = recommend(series(flat(850), days=0.5, step=60), now=NOW, limit=1024, used=850)
    assert (whole.lower, whole.upper) == (977, 1100)
    assert young.lower is not None
    assert young.upper is not None
    assert 970 < young.lower < 977
    assert 2930 < young.upper < 2940, "half a day: three times as much"
    assert whole.confidence == 1
    assert young.confidence == 0.078
    assert recommend(series(lambda age: 1000 if 5 < age < 5.1 else 850), now=NOW, limit=1024, used=850).confidence == 0.5


def test_few_points_of_the_whole_window_are_half_a_confidence() -> None:
    assert recommend(series(flat(850), step=3 * HOUR)[::2], now=NOW, limit=1024, used=0).confidence == 0.16
    assert recommend(series(flat(850), step=3 * HOUR), now=NOW, limit=1024, used=850).confidence == 0.65


def test_a_bound_is_of_its_own_percentile() -> None:
    """The spike weighs 6 % of all: less than a tenth, for the target, and more than a twentieth, for the upper bound."""
    answer = recommend(series(lambda age: 700 if 3.1 < age < 3.2 else 300), now=NOW, limit=1024, used=300)
    assert (answer.lower, answer.upper) == (344, 906)


def test_clipped_use_has_no_upper_bound() -> None:
    assert recommend(series(flat(1020)), now=NOW, limit=1024, used=1020).upper is None


def test_an_answered_limit_does_not_make_the_size_run_away() -> None:
    """Setting what is recommended, again and again, with the old samples still in the latest day, ends."""
    limit, points = 512, series(flat(510), limit=flat(512))
    for _step in range(5):
        answer = recommend(points, now=NOW, limit=limit, used=510)
        limit = answer.memory or limit
    assert limit == 640
    assert answer.direction == "keep"


def test_the_answer_is_plain_data() -> None:
    answer = recommend(series(flat(300)), now=NOW, limit=1024, used=300).as_dict()
    assert json.loads(json.dumps(answer)) == answer
    assert set(answer["peaks"][0]) == {"day", "peak", "clipped", "samples", "weight"}
    json.dumps(recommend([], now=NOW, limit=1024, used=0).as_dict(), allow_nan=False)


limits = st.integers(16, 1 << 17)
# Of the limit, in 64ths: exact in binary, so that what is compared is the rule and not the last bit.
shares = st.lists(st.integers(0, 60), min_size=1, max_size=40)
with_clipped = st.lists(st.integers(0, 64), min_size=1, max_size=40)
times = st.floats(NOW - 9 * DAY, NOW + DAY) | st.sampled_from(ODD)
values = st.one_of(st.sampled_from(ODD), st.integers(0, 1 << 40), st.floats(), st.floats(0, 1e12).map(str))
rows_of_all_kinds = st.fixed_dictionaries({"time": times, "mem": values}, optional={"maxmem": values, "cpu": values})


def spread(of_limit: t.Sequence[int], limit: int, scale: int = 1) -> list[Row]:
    """Rows over the window, the newest first; enough of them to shrink."""
    count = math.ceil(128 / len(of_limit))
    return [
        {"time": NOW - (index * count + part) * 8 * DAY / (count * len(of_limit)), "mem": share * limit * scale * MIB / 64, "maxmem": limit * scale * MIB}
        for index, share in enumerate(of_limit)
        for part in range(count)
    ]


@given(shares | with_clipped, limits, st.floats(0, 1.2), st.integers(0, 4096), st.none() | st.floats(0, 1))
def test_it_never_takes_what_is_needed(of_limit: list[int], limit: int, share: float, floor: int, pressure: float | None) -> None:
    used = int(limit * share)
    answer = recommend(spread(of_limit, limit), now=NOW, limit=limit, used=used, floor=floor, pressure=pressure)
    check(answer, limit, used, floor)


@given(st.lists(rows_of_all_kinds, max_size=20), limits)
def test_no_data_is_an_error(points: list[Row], limit: int) -> None:
    check(recommend(points, now=NOW, limit=limit, used=limit // 2), limit, limit // 2, FLOOR)


def check(answer: Recommendation, limit: int, used: int, floor: int) -> None:
    assert 0 <= answer.confidence <= 1
    assert (answer.memory is None) == (answer.direction == "none")
    assert answer.lower is None or answer.upper is None or answer.lower <= answer.upper
    memory = answer.memory or 0
    if answer.direction == "keep":
        assert memory == limit
    elif answer.direction == "grow":
        assert limit < memory <= max(2 * limit, 64)
        assert memory % (64 if memory < 4096 else 128) == 0
    elif answer.direction == "shrink":
        assert max(floor, 0.8 * limit - 1e-6) <= memory < limit
        assert 100 * memory >= 115 * used > 0
        assert memory % (64 if memory < 4096 else 128) == 0


@given(shares | with_clipped, limits, st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_matters(of_limit: list[int], limit: int, random: t.Any) -> None:
    points = spread(of_limit, limit)
    other = points + random.choices(points, k=len(points))
    random.shuffle(other)
    assert recommend(other, now=NOW, limit=limit, used=limit // 2) == recommend(points, now=NOW, limit=limit, used=limit // 2)


@given(shares, st.integers(64, 1 << 14), st.sampled_from([2, 4, 16]))
def test_it_scales(of_limit: list[int], limit: int, scale: int) -> None:
    """But for what is added in MiB to clipped use, and the floor."""
    limit -= limit % 4
    one = recommend(spread(of_limit, limit), now=NOW, limit=limit, used=limit // 4, floor=1)
    more = recommend(spread(of_limit, limit, scale), now=NOW, limit=limit * scale, used=limit // 4 * scale, floor=1)
    assert one.confidence == more.confidence or "rounding" in one.why
    assert (one.memory is None) == (more.memory is None) or "rounding" in one.why
    if one.memory and more.memory:
        assert abs(more.memory - scale * one.memory) <= (scale + 1) * 128


@given(with_clipped, limits, st.integers(0, 23), st.floats(0.01, 1), st.floats(0.95, 1.1))
def test_a_clipped_latest_day_never_shrinks(of_limit: list[int], limit: int, hour: int, share: float, cut: float) -> None:
    clipped = {"time": NOW - hour * HOUR - 7, "mem": limit * cut * 1.0001 * MIB, "maxmem": limit * MIB}
    answer = recommend([*spread(of_limit, limit), clipped], now=NOW, limit=limit, used=int(limit * share))
    assert answer.direction != "shrink"
