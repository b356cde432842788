# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.homelab.healer.plugins.filter.report import lanes, percent, report_metrics, sides, took
from ansible_collections.homelab.healer.plugins.module_utils._figures import (
    DAY,
    ENDINGS,
    MOST_BINS,
    _command,
    _refusal,
    bins,
    bucketed,
    details,
    rank,
    share,
    spread,
)
from ansible_collections.homelab.healer.plugins.module_utils._gate import AT_FIRST
from ansible_collections.homelab.healer.plugins.module_utils._ledger import GENESIS, Event, canonical


@pytest.mark.parametrize(
    ("quantile", "count", "place"),
    [(0.5, 1, 0), (0.5, 2, 0), (0.5, 3, 1), (0.5, 4, 1), (0.9, 1, 0), (0.9, 9, 8), (0.9, 10, 8), (0.9, 11, 9), (0.9, 100, 89), (0.5, 0, 0)],
)
def test_a_rank_is_the_nearest(quantile: float, count: int, place: int) -> None:
    assert rank(quantile, count) == place


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60).map(sorted), st.sampled_from([0.5, 0.9]))
def test_that_share_does_not_exceed_it_and_no_lower_one_has_it(values: list[float], quantile: float) -> None:
    found = values[rank(quantile, len(values))]
    assert sum(value <= found for value in values) >= quantile * len(values) - 1e-6
    assert sum(value < found for value in values) < quantile * len(values) + 1e-6


def test_parts_that_nothing_had_have_no_times() -> None:
    assert spread("changing", []) == {"part": "changing", "count": 0, "median": None, "p90": None}
    assert bucketed("changing", [])["sum"] == 0


@given(st.lists(st.floats(0, 1e6)).map(sorted))
def test_a_histogram_only_rises(values: list[float]) -> None:
    told = bucketed("changing", values)
    counts = [number for _bound, number in told["buckets"]]
    assert counts == sorted(counts)
    assert all(number == sum(value <= bound for value in values) for bound, number in told["buckets"])


@given(st.floats(0, 2e9), st.floats(0, 4000))
def test_days_cover_the_period_whole_and_are_not_too_many(begun: float, length: float) -> None:
    now = begun + length * DAY
    found = bins(begun, now)
    assert 0 < len(found) <= MOST_BINS + 1
    assert found[0][0] <= begun < found[0][1]
    assert found[-1][0] <= now < found[-1][1]
    assert all(start % DAY == 0 for start, _end in found)
    assert all(one[1] == other[0] for one, other in zip(found, found[1:]))


def test_the_share_leaves_out_who_joined_and_what_was_not_done() -> None:
    told = share({"healed_alone": 3, "recurred": 1, "refused": 5, "shadow": 7, "open": 2}, joined=4)
    assert (told["numerator"], told["denominator"]) == (3, 5)
    assert told["ended"] == {**dict.fromkeys(ENDINGS, 0), "healed_alone": 3, "recurred": 1, "refused": 1}
    assert told["left_out"] == {"joined": 4, "shadow": 7, "healthy": 0, "open": 2}


def test_a_share_of_nothing_is_none_and_nearly_all_is_not_all() -> None:
    assert [percent(0, 0), percent(0, 9), percent(9, 9), percent(999, 1000), percent(1, 1000), percent(1, 2)] == ["none", "0 %", "100 %", "99 %", "1 %", "50 %"]


@given(st.text())
def test_nobody_can_write_what_a_check_is_counted_by(text: str) -> None:
    for check, _look in AT_FIRST:
        wanted = _refusal(check).strip("%")
        assert wanted not in canonical({"problem": text + wanted + text, "why": wanted})
        assert wanted in canonical({"checks": [{"check": check, "good": False, "why": text}]})


@pytest.mark.parametrize("name", ["a b", "x; rm -rf ~", "{{ 1 }}", "$(id)", "'", "a\nb", ""])
def test_a_command_to_copy_holds_no_name_that_does_something(name: str) -> None:
    assert _command("resume", target=name) == "ansible-playbook homelab.healer.resume, with its target"


def test_a_command_to_copy_is_whole() -> None:
    assert _command("resume", target="pve/lxc/200") == "ansible-playbook homelab.healer.resume -e target=pve/lxc/200"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_details_of_entries_that_somebody_edited_are_told_as_far_as_they_go(value: object) -> None:
    names = ("checks", "run", "decision", "chain", "lines", "looks", "results", "undo", "error", "problem", "times")
    bodies = [json.dumps(dict.fromkeys(names, value)), json.dumps(value), "no JSON", json.dumps({"chain": {"plan": value, "undo": [value]}})]
    events = [Event(seq, 1.0, "r", kind, body, GENESIS) for body in bodies for seq, kind in enumerate(("opened", "decided", "approved", "closed"))]
    for event in events:
        details([event])
    assert len(details(events)["entries"]) == len(events)
    assert details([])["entries"] == []


def test_a_diff_is_of_lines_that_differ() -> None:
    assert sides({"before": "a: 1\nb: 2\n", "after": "a: 1\nb: 3\n"}) == [("-", "b: 2"), ("+", "b: 3")]


def test_marks_of_the_timeline_stay_within_it() -> None:
    days = [{"start": number * DAY, "end": (number + 1) * DAY, "outcomes": {"healed": number * number}} for number in range(40)]
    (lane,) = lanes(days)
    assert all(0 <= float(mark["x"]) <= 100 and 7 <= mark["size"] <= 14 for mark in lane["marks"])
    assert lane["count"] == sum(number * number for number in range(40))


def test_spans_read_well() -> None:
    assert [took(seconds) for seconds in (None, 0, 3.21, 59.9, 3700)] == ["none", "0.0 s", "3.2 s", "1 min", "1 h 1 min"]


def test_metrics_of_nothing_have_no_empty_families() -> None:
    nothing = dict(ended=[], recurred=[], alone=[], joined=[], alerts=0, seconds=[], open={}, questions=0, interrupted=0, frozen=0, paused=False, storm=False)
    text = report_metrics({"totals": dict(nothing, behind=0.0, last_success=None, last=None), "head": f"0:{GENESIS}"})
    lines = text.splitlines()
    assert all(not line.startswith("# TYPE") or not following.startswith("#") for line, following in zip(lines, lines[1:]))
    assert "last_success" not in text
