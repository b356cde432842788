# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the ledger's remediations come to: how they ended, what share needed nobody, how long each part took, and what waits for a human.

All of it is measured: counted and timed from the ledger's rows and entries, by the database wherever there may be many, and never read out of what somebody
wrote. A remediation belongs to the period in which it began.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import json
import math
import re
import typing as t
from bisect import bisect_right
from datetime import datetime

from ansible_collections.homelab.healer.plugins.module_utils._gate import AT_FIRST, RECURS_WITHIN, UNDER_WAY
from ansible_collections.homelab.healer.plugins.module_utils._ledger import BACKWARDS, ENDS, OPEN, Event, Ledger, Remediation
from ansible_collections.homelab.healer.plugins.module_utils._sizes import moment

Figures = t.Dict[str, t.Any]

OUTCOMES = ("healed", "recurred", "rolled_back", "needs_human", "denied", "shadow", "healthy", "open")
"""What has become of a remediation. Each is one of them: a success whose trouble came back within a day is ``recurred`` and no longer ``healed``."""
OUTCOME = f"CASE WHEN state = 'healed' AND recurred IS NOT NULL THEN 'recurred' WHEN {UNDER_WAY} THEN 'open' ELSE state END"

ASKED = "(asked IS NOT NULL OR answered IS NOT NULL)"
"""A human was asked, whatever she said."""
ENDINGS = ("healed_alone", "healed_approved", "recurred", "rolled_back", "needs_human", "not_approved", "refused")
"""How one ended on which something was wrong. The first is the share's numerator, all of them are its denominator."""
LEFT_OUT = ("joined", "shadow", "healthy", "open")
"""What the share leaves out: refused since another of the target was under way (which counts), done nothing by order, found nothing wrong, not ended."""
ENDING = f"""CASE WHEN {UNDER_WAY} THEN 'open' WHEN state = 'healed' AND recurred IS NOT NULL THEN 'recurred'
    WHEN state = 'healed' AND {ASKED} THEN 'healed_approved' WHEN state = 'healed' THEN 'healed_alone'
    WHEN state = 'denied' AND {ASKED} THEN 'not_approved' WHEN state = 'denied' THEN 'refused' ELSE state END"""
JOINED = "one at a time"
"""The check that refuses what somebody else is at already."""

UNDOING = "(SELECT min(at) FROM journal WHERE remediation = remediations.id AND kind = 'undoing')"
PARTS: dict[str, tuple[str, str]] = {
    "repair": ("closed - opened", "state = 'healed'"),
    "planning": ("applied - opened - coalesce(answered - asked, 0)", "applied IS NOT NULL AND closed IS NOT NULL"),
    "waiting": ("coalesce(answered, closed) - asked", "asked IS NOT NULL AND closed IS NOT NULL"),
    "changing": (f"coalesce(changed, {UNDOING}, closed) - applied", "applied IS NOT NULL AND closed IS NOT NULL"),
    "verifying": (
        f"CASE WHEN state = 'healed' THEN closed ELSE coalesce({UNDOING}, closed) END - changed",
        "changed IS NOT NULL AND closed IS NOT NULL",
    ),
    "putting_back": (f"closed - {UNDOING}", f"applied IS NOT NULL AND state IN ('rolled_back', 'needs_human') AND {UNDOING} IS NOT NULL"),
}
"""The parts of a repair: how many seconds each took, and which remediations have it. ``repair`` is the whole of a success, from the gate's first question."""
BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
"""Upper bounds, in seconds, that the metrics count each part by."""

DAY = 86400.0
MOST_BINS = 62
MOST_TARGETS = 100
MOST_WAITING = 100
MOST_ALERTS = 50
MOST_DIAGNOSES = 1000
"""How many of the newest records are read for how long a diagnosis took, which only they tell."""


def figures(ledger: Ledger, since: float | None, paused_by: str) -> Figures:
    """What the remediations come to that began within the last ``since`` seconds, or ever. ``paused_by`` is the file that stops all, or empty."""
    now = ledger.now()
    begun = _first(ledger) if since is None else now - since
    remedies = _by_remedy(ledger, begun, now)
    counted: dict[str, int] = {}
    for remedy in remedies:
        for ending, number in remedy["endings"].items():
            counted[ending] = counted.get(ending, 0) + number
    refusals = refused(ledger, begun)
    outcomes = _outcomes(counted)
    targets = _by_target(ledger, begun)
    return dict(
        since=begun,
        until=now,
        outcomes={outcome: outcomes.get(outcome, 0) for outcome in OUTCOMES},
        share=share(counted, refusals.get(JOINED, 0)),
        recurred=dict(
            count=outcomes.get("recurred", 0),
            of=outcomes.get("recurred", 0) + outcomes.get("healed", 0),
            pending=sum(remedy.pop("pending") for remedy in remedies),
        ),
        refused=refusals,
        seconds=[*before_the_gate(ledger, begun), *(spread(part, took) for part, took in _took(ledger, begun).items())],
        days=days(ledger, begun, now),
        remedies=[dict(remedy, outcomes=_outcomes(remedy.pop("endings"))) for remedy in remedies],
        targets=targets[:MOST_TARGETS],
        targets_found=len(targets),
        waiting=waiting(ledger, begun, now, paused_by),
        alerts=unanswered(ledger, begun),
    )


def _first(ledger: Ledger) -> float:
    found = ledger.rows("SELECT min(opened) FROM remediations")[0][0]
    return ledger.now() if found is None else float(found)


def _by_remedy(ledger: Ledger, begun: float, now: float) -> list[Figures]:
    """Of each remedy how its remediations ended, those of which there are most first. ``pending`` are successes that may still come back."""
    pending = "coalesce(sum(CASE WHEN state = 'healed' AND recurred IS NULL AND closed > ? THEN 1 ELSE 0 END), 0)"
    found: dict[str, Figures] = {}
    question = f"SELECT remedy, {ENDING}, count(*), max(opened), {pending} FROM remediations WHERE opened >= ? GROUP BY 1, 2 ORDER BY 1, 2"
    for remedy, ending, number, last, younger in ledger.rows(question, now - RECURS_WITHIN, begun):
        known = found.setdefault(remedy, dict(key=remedy, name=remedy, last=0.0, count=0, pending=0, endings={}))
        known["endings"][ending] = number
        known.update(last=max(last, known["last"]), count=known["count"] + number, pending=known["pending"] + younger)
    return sorted(found.values(), key=lambda remedy: -int(remedy["count"]))


def _outcomes(endings: t.Mapping[str, int]) -> dict[str, int]:
    """The outcomes of which these are the endings."""
    found: dict[str, int] = {}
    for ending, number in endings.items():
        outcome = {"healed_alone": "healed", "healed_approved": "healed", "not_approved": "denied", "refused": "denied"}.get(ending, ending)
        found[outcome] = found.get(outcome, 0) + number
    return found


def share(endings: t.Mapping[str, int], joined: int) -> Figures:
    """The share that was healed without a human: ``numerator`` of ``denominator``, with what is in each and what is in neither.

    ``joined`` of those that were refused are not counted.
    """
    counted = {**endings, "refused": endings.get("refused", 0) - joined, "joined": joined}
    ended = {ending: counted.get(ending, 0) for ending in ENDINGS}
    left_out = {why: counted.get(why, 0) for why in LEFT_OUT}
    return dict(numerator=ended["healed_alone"], denominator=sum(ended.values()), ended=ended, left_out=left_out)


def refused(ledger: Ledger, begun: float) -> dict[str, int]:
    """How many were refused before there was a plan, by the check that refused them."""
    cases = " ".join("WHEN body LIKE ? THEN ?" for _check in AT_FIRST)
    told = [value for check, _look in AT_FIRST for value in (_refusal(check), check)]
    question = f"""SELECT CASE {cases} ELSE 'other' END, count(*) FROM remediations JOIN journal ON remediation = id AND kind = 'refused'
        WHERE opened >= ? AND state = 'denied' AND fence = 0 GROUP BY 1"""
    return {str(check): int(number) for check, number in sorted(ledger.rows(question, *told, begun))}


def _refusal(check: str) -> str:
    """What stands in an entry that a check refused; within what somebody wrote, each of its quotes would have a backslash before it."""
    return f'%{{"check":"{check}","good":false,%'


def _took(ledger: Ledger, begun: float) -> dict[str, list[float]]:
    """The seconds of each part, sorted. One question for all of them, as reading the rows is what takes long."""
    each = ", ".join(f"CASE WHEN {has_it} THEN {seconds} END" for seconds, has_it in PARTS.values())
    found = ledger.rows(f"SELECT {each} FROM remediations WHERE opened >= ? AND closed IS NOT NULL", begun)
    return {part: sorted(max(0.0, took[place]) for took in found if took[place] is not None) for place, part in enumerate(PARTS)}


def spread(part: str, took: t.Sequence[float]) -> Figures:
    """How long a part took, from the sorted seconds: of ``count`` half took no longer than ``median``, and nine of ten no longer than ``p90``."""
    median, ninth = (round(took[rank(quantile, len(took))], 3) if took else None for quantile in (0.5, 0.9))
    return dict(part=part, count=len(took), median=median, p90=ninth)


def rank(quantile: float, count: int) -> int:
    """The place, from 0, of the least value that at least this share of ``count`` sorted ones does not exceed."""
    return max(0, math.ceil(round(quantile * count, 6)) - 1)


def before_the_gate(ledger: Ledger, begun: float) -> list[Figures]:
    """How long it took from an alert's begin to the run, and how long the diagnosis, as ``spread`` says it.

    By the clocks of Prometheus' and the controller's machines; of the newest of the period, since only their records tell.
    """
    question = f"""SELECT body FROM journal WHERE kind IN ('closed', 'failed') AND remediation IN
        (SELECT id FROM remediations WHERE opened >= ? AND fence > 0 AND closed IS NOT NULL ORDER BY opened DESC LIMIT {MOST_DIAGNOSES})"""
    times = [_facts(body).get("times") for (body,) in ledger.rows(question, begun)]
    spans = {"noticing": ("alerted", "started"), "diagnosing": ("started", "diagnosed")}
    told = {part: [_between(of_one, *span) for of_one in times] for part, span in spans.items()}
    return [spread(part, sorted(seconds for seconds in took if seconds is not None)) for part, took in told.items()]


def _between(times: t.Any, first: str, then: str) -> float | None:
    try:
        return round((datetime.fromisoformat(times[then]) - datetime.fromisoformat(times[first])).total_seconds(), 3)
    except (KeyError, TypeError, ValueError):
        return None


def unanswered(ledger: Ledger, begun: float) -> Figures:
    """The alerts of the period that no remedy answered: how many entries, and the newest of them."""
    which = "FROM journal WHERE kind = 'alert' AND at >= ?"
    newest = ledger.rows(f"SELECT at, body {which} ORDER BY seq DESC LIMIT {MOST_ALERTS}", begun)
    return dict(found=ledger.rows(f"SELECT count(*) {which}", begun)[0][0], newest=[dict(_alert(_facts(body)), at=at) for at, body in newest])


def _alert(facts: Figures) -> Figures:
    labels = {str(name): str(value) for name, value in _dict(facts.get("labels")).items()}
    return dict(labels=labels, why=str(facts.get("why") or ""), count=int(facts.get("count") or 1))


def _facts(body: str) -> dict[str, t.Any]:
    """What an entry says; nothing where somebody made it unreadable, which is the ledger's verification to tell."""
    try:
        facts = json.loads(body)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def bins(begun: float, now: float) -> list[tuple[float, float]]:
    """Whole days, UTC, from the first moment to the last; weeks or more of them together where there would be too many to draw."""
    first, last = math.floor(begun / DAY), math.floor(now / DAY)
    together = next(days for days in (1, 7, 28, 364, last - first + 1) if (last - first + 1) / days <= MOST_BINS)
    return [(day * DAY, (day + together) * DAY) for day in range(first, last + 1, together)]


def days(ledger: Ledger, begun: float, now: float) -> list[Figures]:
    """The outcomes of each day, or of several together, from the first to the last."""
    told = []
    for start, end in bins(begun, now):
        question = f"SELECT {OUTCOME}, count(*) FROM remediations WHERE opened >= ? AND opened < ? GROUP BY 1"
        told.append(dict(start=start, end=end, outcomes=dict(ledger.rows(question, max(start, begun), end))))
    return told


def _by_target(ledger: Ledger, begun: float) -> list[Figures]:
    """The outcomes of each target, those of which there are most first; without a target, as after a failed diagnosis, those of each host."""
    found: dict[tuple[str, str], Figures] = {}
    which = "target, CASE WHEN target = '' THEN host ELSE '' END"
    question = f"SELECT {which}, {OUTCOME}, max(name), max(opened), count(*) FROM remediations WHERE opened >= ? GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    for target, host, outcome, name, last, number in ledger.rows(question, begun):
        known = found.setdefault((target, host), dict(key=target or host, name=name, last=0.0, count=0, outcomes={}))
        known["outcomes"][outcome] = number
        known.update(count=known["count"] + number, **(dict(last=last, name=name) if last > known["last"] else {}))
    return sorted(found.values(), key=lambda target: -int(target["count"]))


def waiting(ledger: Ledger, begun: float, now: float, paused_by: str) -> list[Figures]:
    """What needs a human now, each with ``kind``, ``what``, ``why``, ``since`` (``None`` where nobody knows) and ``fix``, what to do about it."""
    switches = ledger.switches()
    told = [_need("clock", "The clock is behind", f"by {ledger.behind():.0f} s, so nothing new is begun", None, CLOCK)] if ledger.behind() > BACKWARDS else []
    if paused_by:
        told.append(_need("pause", "All new work is paused", f"by the file {paused_by}", None, "Remove it to go on."))
    told += [
        _need("pause", "All new work is paused", _by_whom(value), value["since"], _command("resume")) for name, value in switches.items() if name == "pause"
    ]
    told += [
        _need("storm", "Many targets are in trouble at once", _storm(value), value["since"], "Look at what they have in common.")
        for name, value in switches.items()
        if name == "storm"
    ]
    told += [_frozen(ledger, name[7:], value) for name, value in switches.items() if name.startswith("freeze ")]
    answerable = "state = 'asked' AND (expires IS NULL OR expires >= ?)"
    for row in ledger.find(f"{answerable} ORDER BY asked DESC, id LIMIT ?", now, MOST_WAITING):
        until = f", until {moment(row.expires)}" if row.expires else ""
        fix = f"{_command('approve', remediation=row.id)} (or homelab.healer.deny)"
        told.append({**_need("question", f"{row.name} waits for an answer", f"{row.remedy}: {row.why}{until}", row.asked, fix), **_of(row)})
    for row in ledger.find(f"{UNDER_WAY} AND until < ? AND NOT ({answerable}) ORDER BY opened DESC, id LIMIT ?", now, now, MOST_WAITING):
        told.append({**_need("interrupted", f"{row.name} was left in the middle", f"{row.remedy}, {row.state}", row.until, RECOVER), **_of(row)})
    return told + _unsettled(ledger, begun, switches)


def _command(playbook: str, **variables: str) -> str:
    """A command to copy. A name that a shell or Ansible would read as more than a name does not get into it."""
    safe = all(re.fullmatch(r"[A-Za-z0-9_./:@+-]+", value) for value in variables.values())
    given = "".join(f" -e {name}={value}" for name, value in variables.items()) if safe else f", with its {' and '.join(variables)}"
    return f"ansible-playbook homelab.healer.{playbook}{given}"


CLOCK = f"Set it right, or accept it: {_command('resume', accept_clock='true')}"
RECOVER = _command("recover")


def _need(kind: str, what: str, why: str, since: float | None, fix: str) -> Figures:
    return dict(kind=kind, what=what, why=why, since=since, fix=fix, remediation="", target="")


def _of(row: Remediation) -> Figures:
    return dict(remediation=row.id, target=row.target)


def _by_whom(switch: t.Mapping[str, t.Any]) -> str:
    return f"by {switch.get('who') or 'somebody'}" + (f": {switch['why']}" if switch.get("why") else "")


def _storm(switch: t.Mapping[str, t.Any]) -> str:
    cause = switch.get("cause") or ()
    return ", ".join(map(str, switch.get("targets", ()))) + (f"; what they have in common: {', '.join(map(str, cause))}" if cause else "")


def _frozen(ledger: Ledger, target: str, switch: t.Mapping[str, t.Any]) -> Figures:
    rows = ledger.find("id = ?", str(switch.get("remediation") or ""))
    fix = f"Look at it, then: {_command('resume', target=target)}"
    why = str(switch.get("why") or "") if rows else _by_whom(switch)
    need = _need("frozen", f"{rows[0].name if rows else target} is left alone", why, switch["since"], fix)
    return dict(need, target=target, remediation=rows[0].id if rows else "")


def _unsettled(ledger: Ledger, begun: float, switches: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[Figures]:
    """Where the last word of a remedy on a target is that a human is needed, and nothing is frozen for it."""
    last = "(host, target, remedy, opened) IN (SELECT host, target, remedy, max(opened) FROM remediations WHERE opened >= ? GROUP BY host, target, remedy)"
    which = "((state = 'needs_human' AND applied IS NULL) OR (state = 'denied' AND fence = 0))"
    told = []
    for row in ledger.find(f"{which} AND {last} ORDER BY opened DESC, id LIMIT ?", begun, MOST_WAITING):
        cleared = switches.get(f"cleared {row.target}", {}).get("at", 0)
        stopped = row.state == "denied"
        if (row.closed or 0) > cleared and (_refused_by(ledger, row) == "breaker" if stopped else not _went_on(ledger, row)):
            fix = f"Look at it, then: {_command('resume', target=row.target)}" if row.target else "Look at it."
            need = _need("stopped" if stopped else "failed", f"{row.name} was not healed", f"{row.remedy}: {row.why}", row.closed, fix)
            told.append({**need, **_of(row)})
    return told


def _went_on(ledger: Ledger, row: Remediation) -> bool:
    """Whether a diagnosis that failed before it had a target was made again, and found one."""
    later = "SELECT 1 FROM remediations WHERE opened > ? AND host = ? AND remedy = ? AND target <> '' LIMIT 1"
    return not row.target and bool(ledger.rows(later, row.opened, row.host, row.remedy))


def _refused_by(ledger: Ledger, row: Remediation) -> str:
    checks = ledger.latest(row.id, "refused").get("checks") or [{}]
    return str(checks[-1].get("check", ""))


def totals(ledger: Ledger, paused_by: str) -> Figures:
    """What metrics are made of: all that the ledger knows, of all time, and what is so now."""
    now, switches = ledger.now(), ledger.switches()
    question = f"SELECT remedy, state, count(*) FROM remediations WHERE state IN ({', '.join(repr(end) for end in ENDS)}) GROUP BY 1, 2 ORDER BY 1, 2"
    states: dict[str, int] = dict(ledger.rows(f"SELECT state, count(*) FROM remediations WHERE {UNDER_WAY} GROUP BY 1"))
    waits = "state = 'asked' AND (expires IS NULL OR expires >= ?)"
    joined = ledger.rows(
        """SELECT remedy, count(*) FROM remediations JOIN journal ON remediation = id AND kind = 'refused'
        WHERE state = 'denied' AND fence = 0 AND body LIKE ? GROUP BY 1 ORDER BY 1""",
        _refusal(JOINED),
    )
    return dict(
        ended=[list(row) for row in ledger.rows(question)],
        recurred=[list(row) for row in ledger.rows("SELECT remedy, count(recurred) FROM remediations WHERE state = 'healed' GROUP BY 1 ORDER BY 1")],
        alone=[list(row) for row in ledger.rows(f"SELECT remedy, count(*) FROM remediations WHERE state = 'healed' AND NOT {ASKED} GROUP BY 1 ORDER BY 1")],
        joined=[list(row) for row in joined],
        alerts=ledger.rows("SELECT count(*) FROM journal WHERE kind = 'alert'")[0][0],
        seconds=[bucketed(part, took) for part, took in _took(ledger, 0.0).items()],
        open={state: states.get(state, 0) for state in OPEN},
        questions=ledger.rows(f"SELECT count(*) FROM remediations WHERE {waits}", now)[0][0],
        interrupted=ledger.rows(f"SELECT count(*) FROM remediations WHERE {UNDER_WAY} AND until < ? AND NOT ({waits})", now, now)[0][0],
        frozen=sum(name.startswith("freeze ") for name in switches),
        paused="pause" in switches or bool(paused_by),
        storm="storm" in switches,
        behind=ledger.behind(),
        last_success=ledger.rows("SELECT max(closed) FROM remediations WHERE state = 'healed'")[0][0],
        last=ledger.rows("SELECT max(opened) FROM remediations")[0][0],
    )


def bucketed(part: str, took: t.Sequence[float]) -> Figures:
    """A part's sorted seconds as a histogram: how many were at most as long as each bound."""
    return dict(part=part, count=len(took), sum=round(sum(took), 3), buckets=[[bound, bisect_right(took, bound)] for bound in BUCKETS])


def details(events: t.Sequence[Event]) -> Figures:
    """What a person wants to know of a remediation, out of its entries: nothing of it is a label, or what a server answered beyond the judged."""
    facts = [(event, _facts(event.body)) for event in events]
    first = facts[0][1] if facts else {}
    last = _last(facts, "closed", "failed", "refused")
    chain = _dict(_last(facts, "decided").get("chain"))
    plan = [_dict(step) for step in _list(chain.get("plan"))]
    approved = _last(facts, "approved")
    return dict(
        problem=str(first.get("problem") or ""),
        run={name: str(_dict(first.get("run")).get(name) or "") for name in ("user", "machine", "job")},
        decisions=[_decision(event, told) for event, told in facts if event.kind in ("opened", "refused", "decided")],
        lines=[str(line) for line in _list(_last(facts, "decided").get("lines"))],
        diff=[_sides(side) for step in plan for side in _list(step.get("diff"))],
        reversibility=[str(step.get("reversibility", "")) for step in plan if step.get("purpose") == "change"],
        undo=[_way_back(step) for step in _list(last.get("undo", chain.get("undo")))],
        approval={name: str(approved[name]) for name in ("approver", "channel", "why") if approved.get(name)},
        looks=[[_judged(judged) for judged in _list(look)] for look in _list(last.get("looks"))],
        results=[_result(step) for step in _list(last.get("results"))],
        error={name: str(_dict(last.get("error")).get(name) or "") for name in ("code", "what", "why", "fix")} if last.get("error") else {},
        entries=[dict(seq=event.seq, at=event.at, kind=event.kind, hash=event.hash) for event in events],
    )


def _last(facts: t.Sequence[tuple[Event, Figures]], *kinds: str) -> Figures:
    return next((told for event, told in reversed(facts) if event.kind in kinds), {})


def _dict(value: t.Any) -> Figures:
    return value if isinstance(value, dict) else {}


def _list(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else []


def _decision(event: Event, facts: Figures) -> Figures:
    told = {**facts, "word": {"opened": "allowed", "refused": "refused"}[event.kind]} if event.kind != "decided" else _dict(facts.get("decision"))
    checks = [{name: _dict(check).get(name) for name in ("check", "good", "why")} for check in _list(told.get("checks"))]
    why = "" if event.kind == "opened" else str(told.get("why") or "")  # there it is the problem
    return dict(
        at=event.at,
        planned=event.kind == "decided",
        word=str(told.get("word") or ""),
        rule=str(told.get("rule") or ""),
        why=why,
        policy=str(told.get("policy") or ""),
        checks=checks,
    )


def _sides(diff: t.Any) -> dict[str, str]:
    return {name: str(_dict(diff).get(name) or "") for name in ("before_header", "before", "after")}


def _way_back(step: t.Any) -> dict[str, str]:
    return dict(module=str(_dict(step).get("module") or ""), args=json.dumps(_dict(step).get("args"), sort_keys=True, ensure_ascii=False))


def _judged(judged: t.Any) -> Figures:
    told = _dict(judged)
    return dict(kind=str(told.get("kind") or ""), good=told.get("good"), told=str(told.get("told") or ""))


def _result(step: t.Any) -> Figures:
    told = [_dict(result) for result in _list(_dict(step).get("results"))]
    return dict(module=str(_dict(step).get("module") or ""), steps=[str(line) for result in told for line in _list(result.get("steps"))])


__all__ = ["bins", "details", "figures", "rank", "share", "totals"]
