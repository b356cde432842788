# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.homelab.healer.plugins.filter.verification import judge, verdict


def look(conditions: list[dict[str, t.Any]], answer: t.Any, before: t.Any) -> list[t.Any]:
    return [judgement["good"] for judgement in judge([{"judge": conditions}], [answer], [before])]


GOAL: dict[str, t.Any] = {"name": "rate", "kind": "goal", "value": "containers.0.rate", "at_most": 1}
GUARD: dict[str, t.Any] = {"name": "runs", "kind": "guard", "value": "containers.0.status", "equals": "running"}


def answer(rate: t.Any = 0.5, status: t.Any = "running") -> dict[str, t.Any]:
    return {"containers": [{"rate": rate, "status": status}]}


def test_a_goal_is_good_bad_or_unknown() -> None:
    assert look([GOAL], answer(0.5), answer(2)) == [True]
    assert look([GOAL], answer(1.5), answer(2)) == [False]
    assert look([GOAL], {"failed": True, "error": {"code": "unreachable"}}, answer(2)) == [None]


def test_a_guard_that_was_bad_before_is_not_held() -> None:
    assert look([GUARD], answer(status="exited"), answer(status="running")) == [False]
    assert look([GUARD], answer(status="exited"), answer(status="exited")) == [True]
    assert look([GUARD], answer(), {}) == [True]


def test_a_target_that_is_gone_breaks_its_guards_and_one_out_of_sight_does_not() -> None:
    assert look([GUARD], {"error": {"code": "not_found"}}, answer()) == [False]
    assert look([GUARD], {"error": {"code": "unreachable"}}, answer()) == [None]


def test_a_failure_is_a_bad_answer_where_the_probe_says_so() -> None:
    failed = {"failed": True, "msg": "cannot connect", "error": {"code": "unreachable"}}
    (judgement,) = judge([{"judge": [GOAL], "failure": "bad"}], [failed], [failed])
    assert (judgement["good"], judgement["told"]) == (False, "rate: bad, cannot connect")
    (judgement,) = judge([{"judge": [GOAL], "failure": "bad"}], [answer()], [failed])
    assert judgement["good"] is True
    assert look([GOAL], failed, failed) == [None]


def test_unchanged_compares_with_before() -> None:
    condition = {"name": "same", "kind": "guard", "value": "containers.0.rate", "unchanged": True}
    assert look([condition], answer(2), answer(2)) == [True]
    assert look([condition], answer(3), answer(2)) == [False]


@pytest.mark.parametrize("broken", [{"kind": "wish"}, {"at_most": None}])
def test_a_probe_without_a_condition_is_an_error(broken: dict[str, t.Any]) -> None:
    condition = {key: value for key, value in {**GOAL, **broken}.items() if value is not None}
    with pytest.raises(AnsibleFilterError):
        look([condition], answer(), answer())


G, B, U = ([{"kind": "goal", "good": good, "told": "x"}] for good in (True, False, None))
X = [{"kind": "guard", "good": False, "told": "it is gone"}, {"kind": "goal", "good": True, "told": "x"}]


@pytest.mark.parametrize(
    ("looks", "word"),
    [
        ([G], "open"),
        ([G, G], "good"),
        ([B], "open"),
        ([B, G], "open"),
        ([B, G, G], "good"),
        ([B, B], "bad"),
        ([U], "open"),
        ([U, U], "inconclusive"),
        ([B, U], "inconclusive"),
        ([G, B, U], "inconclusive"),
        ([G, X], "bad"),
    ],
)
def test_two_good_looks_of_three_decide(looks: list[t.Any], word: str) -> None:
    assert verdict(looks, 2, 3)["word"] == word
