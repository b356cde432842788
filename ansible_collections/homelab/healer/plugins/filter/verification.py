# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a plan is known by, and how a remediation's probes are judged: what a look at the target says, and what several looks say together."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.homelab.healer.plugins.module_utils._gate import plan_id

Judgement = dict[str, t.Any]
TESTS: dict[str, t.Callable[[t.Any, t.Any], bool]] = {
    "at_most": lambda value, wanted: value <= wanted,
    "at_least": lambda value, wanted: value >= wanted,
    "equals": lambda value, wanted: value == wanted,
    "differs_from": lambda value, wanted: value != wanted,
}


def judge(probes: t.Sequence[t.Mapping[str, t.Any]], answers: t.Sequence[t.Any], baseline: t.Sequence[t.Any]) -> list[Judgement]:
    """Judge one look: each probe's conditions against its answer, and against the answer before the change."""
    rows = zip(probes, answers, baseline, strict=True)
    return [_judged(condition, answer, before, probe.get("failure", "")) for probe, answer, before in rows for condition in probe["judge"]]


def verdict(looks: t.Sequence[t.Sequence[Judgement]], needed: int, most: int) -> dict[str, str]:
    """Say what the looks so far prove: ``good``, ``bad``, ``inconclusive``, or ``open`` while there are looks to come that can decide it."""
    broken = [judgement["told"] for judgement in looks[-1] if judgement["kind"] == "guard" and judgement["good"] is False]
    if broken:
        return {"word": "bad", "why": "; ".join(broken)}
    words = [_word(look) for look in looks]
    told = "; ".join(judgement["told"] for judgement in looks[-1] if judgement["kind"] == "goal" or judgement["good"] is None)
    if words.count("good") >= needed:
        return {"word": "good", "why": told}
    if words.count("good") + most - len(looks) >= needed:
        return {"word": "open", "why": told}
    return {"word": "bad" if words.count("bad") > most - needed else "inconclusive", "why": told}


def _word(look: t.Sequence[Judgement]) -> str:
    if any(judgement["good"] is False for judgement in look if judgement["kind"] == "goal"):
        return "bad"
    return "good" if all(judgement["good"] for judgement in look) else "inconclusive"


def _judged(condition: t.Mapping[str, t.Any], answer: t.Any, before: t.Any, failure: str) -> Judgement:
    name, kind = condition["name"], condition["kind"]
    was = _value(before, condition["value"])
    value = _value(answer, condition["value"])
    if condition.get("unchanged"):
        condition = {**condition, "equals": was}
    test = next((test for test in TESTS if test in condition), "")
    if not test or kind not in ("goal", "guard"):
        raise AnsibleFilterError(f"the probe {name!r} needs kind: goal or guard, and one of unchanged, {', '.join(TESTS)}")
    wanted = condition[test]
    if kind == "guard" and (was is None or not TESTS[test](was, wanted)):
        return dict(name=name, kind=kind, good=True, value=value, told=f"{name}: not held, as it was {_shown(was)} before")
    if value is None and failure == "bad" and isinstance(answer, t.Mapping) and answer.get("msg"):
        return dict(name=name, kind=kind, good=False, value=None, told=f"{name}: bad, {answer['msg']}")
    if value is None:
        gone = kind == "guard" and isinstance(answer, t.Mapping) and (answer.get("error") or {}).get("code") == "not_found"
        return dict(name=name, kind=kind, good=False if gone else None, value=None, told=f"{name}: {'it is gone' if gone else 'cannot be seen'}")
    good = TESTS[test](value, wanted)
    before_it = "" if value == was else f" (before: {_shown(was)})"
    return dict(name=name, kind=kind, good=good, value=value, told=f"{name}: {'good' if good else 'bad'}, {_shown(value)}{before_it}")


def _value(answer: t.Any, path: str) -> t.Any:
    """What stands in an answer at a path such as ``containers.0.cpu_rate``; ``None`` where nothing does."""
    for part in path.split("."):
        if isinstance(answer, t.Mapping):
            answer = answer.get(part)
        elif isinstance(answer, t.Sequence) and not isinstance(answer, str) and part.isdigit() and int(part) < len(answer):
            answer = answer[int(part)]
        else:
            return None
    return answer


def _shown(value: t.Any) -> str:
    return "unknown" if value is None else str(value)


class FilterModule:
    """The collection's filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"judge": judge, "plan_id": plan_id, "verdict": verdict}
