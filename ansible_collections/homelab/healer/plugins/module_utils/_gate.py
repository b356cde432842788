# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""May it happen now? The two questions that every remediation asks before it writes, answered from the policy and the ledger.

What could never be right is a guard of a module's plan; when to ask at all is a rulebook's or a timer's matter. Each answer names the rule that gave it.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import typing as t
from dataclasses import dataclass

from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Refused
from ansible_collections.homelab.healer.plugins.module_utils._ledger import (
    BACKWARDS,
    ENDS,
    OPEN,
    UNTOUCHED,
    Event,
    Ledger,
    Remediation,
    canonical,
    project,
)
from ansible_collections.homelab.healer.plugins.module_utils._policy import Plan, Policy, Target, Verdict
from ansible_collections.homelab.healer.plugins.module_utils._sizes import moment, span

Answer = t.Dict[str, t.Any]
Facts = t.Mapping[str, t.Any]
RECURS_WITHIN = 24 * 3600.0
"""Seconds after a success in which the same trouble of the same target counts as come back."""
MARGIN = 5.0
"""Seconds before its lease ends from which on a run begins no write."""
APPLIED_WITHIN = 600.0
"""Seconds after the end of a question in which what was approved may still be begun."""
ANY_PLAN = ["any"]
"""What a run is told that may do whichever plan it comes to."""
UNANSWERED = "nobody answered in time"
UNDER_WAY = f"state IN ({', '.join(repr(state) for state in OPEN)})"
FAILED = "state IN ('rolled_back', 'needs_human') AND applied IS NOT NULL"


@dataclass(frozen=True)
class Question:
    """What the gate looks at: who asks for what, by which policy, and when."""

    ledger: Ledger
    policy: Policy
    remedy: str
    target: Target
    verdict: Verdict
    facts: Facts
    now: float
    pause_file: str
    waited: float
    own: str
    """The id of the remediation that asks."""

    def count(self, condition: str, *values: t.Any) -> int:
        return int(self.ledger.rows(f"SELECT count(*) FROM remediations WHERE id <> ? AND {condition}", self.own, *values)[0][0])

    def used(self, more: str = "", *values: t.Any) -> int:
        """How much of a budget is used: what was changed within its window, and what may still be changed by those under way."""
        begun = self.count(f"applied > ?{more}", self.now - self.policy.limits.window, *values)
        return begun + self.count(f"applied IS NULL AND {UNDER_WAY}{more}", *values)


def _clock(asked: Question) -> str:
    behind = asked.ledger.behind()
    return f"the ledger's clock is {behind:.0f} s behind its last entry: set it right, or accept it with homelab.healer.resume" if behind > BACKWARDS else ""


def _pause(asked: Question) -> str:
    paused = asked.ledger.switch("pause")
    if paused is not None:
        return f"all new work is paused by {paused.get('who') or 'somebody'}{_because(paused)}: homelab.healer.resume ends that"
    return f"all new work is paused by the file {asked.pause_file}: remove it to go on" if os.path.lexists(asked.pause_file) else ""


def _because(switch: Facts) -> str:
    return f" ({switch['why']})" if switch.get("why") else ""


def _off(asked: Question) -> str:
    return asked.verdict.why if asked.verdict.decision == "off" else ""


def _frozen(asked: Question) -> str:
    frozen = asked.ledger.switch(f"freeze {asked.target.key}")
    if frozen is None:
        return ""
    return f"it is left alone since remediation {frozen.get('remediation')} needed a human{_because(frozen)}: {_resume(asked)} ends that"


def _resume(asked: Question) -> str:
    return f"homelab.healer.resume -e {shlex.quote(f'target={asked.target.key}')}"


def _window(asked: Question) -> str:
    freeze = asked.policy.freeze(asked.remedy, asked.target, asked.now)
    return f"{freeze.why}, until {moment(freeze.until)}" if freeze else ""


def _running(asked: Question) -> str:
    for other in asked.ledger.find(f"target = ? AND id <> ? AND {UNDER_WAY}", asked.target.key, asked.own):
        if other.until < asked.now and other.state not in UNTOUCHED:
            return f"remediation {other.id} of it ({other.remedy}) was interrupted: homelab.healer.recover brings it to an end"
        return f"remediation {other.id} of it ({other.remedy}) is under way ({other.state})"
    return ""


def _storm(asked: Question) -> str:
    storm, policy = asked.ledger.switch("storm"), asked.policy.storm
    since = asked.now - policy.window - (policy.cool_down if storm else 0)
    seen = dict(asked.ledger.rows("SELECT target, name FROM remediations WHERE opened > ? AND target <> ''", since))
    seen[asked.target.key] = asked.target.name
    if len(seen) < policy.targets:
        if storm:
            asked.ledger.turn_switch("storm", None)
        return ""
    causes = asked.policy.common_cause(_targets(asked, since))
    cause = f"; what they have in common: {', '.join(causes)}" if causes else ""
    if not storm:
        asked.ledger.turn_switch("storm", {"targets": sorted(seen.values()), "cause": causes})
    return f"{len(seen)} targets are in trouble within {policy.window:.0f} s ({', '.join(sorted(seen.values()))}){cause}: look there first"


def _targets(asked: Question, since: float) -> list[Target]:
    question = "SELECT body FROM journal WHERE kind IN ('opened', 'refused') AND remediation IN (SELECT id FROM remediations WHERE opened > ? AND target <> '')"
    told = {target.key: target for target in (Target.of(*_whose(json.loads(body))) for (body,) in asked.ledger.rows(question, since))}
    return list({**told, asked.target.key: asked.target}.values())


def _whose(facts: Facts) -> tuple[str, Facts]:
    return str(facts["host"]), facts["facts"]


def _breaker(asked: Question) -> str:
    breaker, cleared = asked.policy.breaker, asked.ledger.switch(f"cleared {asked.target.key}")
    since = max(asked.now - breaker.window, float(cleared["at"]) if cleared else 0)
    failures = asked.count(f"target = ? AND closed > ? AND {FAILED}", asked.target.key, since)
    if failures < breaker.failures:
        return ""
    return f"{failures} remediations of it failed within {span(breaker.window)}, so a human shall look: {_resume(asked)} ends that"


def _cooldown(asked: Question) -> str:
    which = "target = ? AND remedy = ? AND id <> ? AND applied IS NOT NULL ORDER BY applied DESC LIMIT 1"
    ((last,),) = asked.ledger.rows(f"SELECT applied FROM remediations WHERE {which}", asked.target.key, asked.remedy, asked.own) or [(None,)]
    left = asked.verdict.cooldown - (asked.now - min(last, asked.now)) if last else 0
    return f"{asked.remedy} changed it {span(asked.now - last)} ago, and its cooldown is {span(asked.verdict.cooldown)}" if left > 0 else ""


def _budget(asked: Question) -> str:
    limits, verdict, node = asked.policy.limits, asked.verdict, node_of(asked.target)
    budgets = [
        ("overall", limits.max_per_window, "", ()),
        ("for one target", limits.max_per_target, " AND target = ?", (asked.target.key,)),
        (f"on {node}", limits.max_per_node, " AND node = ?", (node,)),
        (f"by rule {verdict.rule}", verdict.max_per_window, " AND rule = ?", (verdict.rule,)),
    ]
    for what, most, condition, values in budgets:
        used = asked.used(condition, *values) if most is not None else 0
        if most is not None and used >= most:
            return f"{used} remediations {what} within {span(limits.window)}, and {most} are allowed"
    return ""


def _flight(asked: Question) -> str:
    limits, verdict, node = asked.policy.limits, asked.verdict, node_of(asked.target)
    flights = [
        ("", limits.max_in_flight, "", ()),
        (f" on {node}", limits.max_in_flight_per_node, " AND node = ?", (node,)),
        (f" by rule {verdict.rule}", verdict.max_in_flight, " AND rule = ?", (verdict.rule,)),
    ]
    for what, most, condition, values in flights:
        flying = asked.count(f"{UNDER_WAY}{condition}", *values) if most is not None else 0
        if most is not None and flying >= most:
            return f"{flying} remediations are under way{what}, and {most} are allowed at once"
    return ""


def _backup(asked: Question) -> str:
    backup = asked.facts.get("backup") or {}
    if not backup.get("running") or not asked.verdict.wait_for_backup:
        return ""
    if asked.waited >= asked.verdict.wait_for_backup:
        return f"a backup of it has been running for the {span(asked.waited)} that it was waited for"
    return WAIT


WAIT = "a backup of it is running"
AT_FIRST: tuple[tuple[str, t.Callable[[Question], str]], ...] = (
    ("clock", _clock),
    ("pause", _pause),
    ("rule", _off),
    ("frozen", _frozen),
    ("freeze window", _window),
    ("one at a time", _running),
    ("storm", _storm),
    ("breaker", _breaker),
    ("cooldown", _cooldown),
    ("budget", _budget),
    ("in flight", _flight),
    ("backup", _backup),
)
"""What is looked at before the plan, in this order; each says why not, or nothing."""
WITH_PLAN = tuple(
    check for check in AT_FIRST if check[0] in ("clock", "pause", "rule", "frozen", "freeze window", "breaker", "cooldown", "budget", "in flight")
)
"""What may have changed while it was planned or approved, or could not be judged before: the plan may be another rule's, with limits of its own."""


def node_of(target: Target) -> str:
    """What budgets of a node go by: the node where one is known, or else the inventory's host."""
    return target.node or target.host


def admit(ledger: Ledger, policy: Policy, *, remediation: str, remedy: str, host: str, facts: Facts, request: Facts) -> Answer:
    """The first question, before the plan: may anybody touch this target now? If so, the run gets the target's lease.

    ``facts`` are those of the target, ``request`` holds ``problem``, ``run`` (who asks), ``lease`` (seconds), ``waited`` (seconds waited for a backup)
    and ``pause_file``. Answers with ``word`` (V(allowed), V(refused), V(joined) or V(wait)), ``why``, ``rule``, ``checks``, ``fence`` and ``until``.
    """
    now, target = ledger.now(), Target.of(host, facts)
    _check_new(ledger, remediation)
    sweep(ledger, now)
    verdict = policy.judge(remedy, target, None)
    checks, why = _look(AT_FIRST, Question(ledger, policy, remedy, target, verdict, facts, now, request["pause_file"], request["waited"], remediation))
    answer: Answer = dict(
        remediation=remediation,
        rule=verdict.rule,
        why=why,
        checks=checks,
        fence=0,
        until=0.0,
        deadline=0.0,
        decision=verdict.decision,
        plan_id="",
        steps=[],
        last_backup=_last_backup(facts, now),
    )
    if why == WAIT:
        return dict(answer, word="wait")
    mark_recurrence(ledger, remediation, remedy, target.key, now)
    entry = dict(
        remedy=remedy,
        host=host,
        target=target.key,
        name=target.name,
        node=node_of(target),
        facts={key: value for key, value in facts.items() if key != "labels"},  # labels may hold secrets
        problem=request["problem"],
        run=request["run"],
        checks=checks,
        rule=verdict.rule,
        policy=policy.digest,
        at=now,
    )
    if why:
        joined, again = checks[-1]["check"] == "one at a time", _refused_before(ledger, remedy, target.key, checks[-1]["check"], now)
        ledger.append("refused", remediation, why=why, **entry)
        return dict(answer, word="joined" if joined else "refused", told_before=joined or again)
    until = now + request["lease"]
    opened = ledger.append("opened", remediation, until=until, why=request["problem"], **entry)
    return dict(answer, word="allowed", fence=opened.seq, until=until, why="")


def _check_new(ledger: Ledger, remediation: str) -> None:
    """One that is known does not count for itself, so who came with its id again would have the whole of each budget, and take its target from under it."""
    if ledger.find("id = ?", remediation):
        why, fix = "the ledger has one of that id already", "Take a new id for each run."
        raise Conflict(f"cannot begin remediation {remediation}", why=why, fix=fix)


def _refused_before(ledger: Ledger, remedy: str, target: str, check: str, now: float) -> bool:
    """Whether the last of this remedy for this target was refused for the same reason within a day, so that people know already."""
    last = ledger.find("target = ? AND closed > ? AND remedy = ? ORDER BY closed DESC LIMIT 1", target, now - RECURS_WITHIN, remedy)
    return bool(last) and any(seen["check"] == check and not seen["good"] for seen in ledger.latest(last[0].id, "refused").get("checks", []))


def decide(ledger: Ledger, policy: Policy, *, remediation: str, remedy: str, host: str, fence: int, facts: Facts, chain: Facts, request: Facts) -> Answer:
    """The second question, with the plan: may exactly this happen, and does a human have to say so? Asked again after she did.

    ``chain`` is what the rest of the chain needs, also one that goes on after a crash: ``plan`` (a list of what each step's module answered in check mode,
    with ``purpose``, ``module`` and ``args``), ``undo``, ``point_of_return``, ``probes``, ``baseline`` and ``settings``. Answers with ``word``
    (V(allowed), V(ask), V(shadow) or V(refused)) and, where it is allowed, the ``steps`` to carry out, which are those written down here, with their
    ``deadline``. ``request`` also holds ``shadow`` and ``only_plans``. What is asked about is a plan that was meant, and what is done later, by whomever,
    is the plan that was asked about; so whoever goes on after a late yes need not know which were meant.
    """
    now, target = ledger.now(), Target.of(host, facts)
    if ledger.dry:  # the first question was not written down either
        row = Remediation(remediation, remedy, host, target.key, target.name, node_of(target), "planned")
    else:
        row = ledger.held(remediation, fence, f"cannot change {target.name}")
    if target.key != row.target:
        raise Refused(f"will not change {target.name}", why=f"the gate was asked about {row.name}", fix="Run it again.")
    if row.state not in ("planned", "approved"):
        raise Refused(f"will not decide about {target.name}", why=f"that was decided already: {row.state}", fix="Let it come to its end, or run it again.")
    planned = [step for step in chain["plan"] if step["purpose"] == "change"]
    plan, identity = Plan(planned), plan_id(chain["plan"])
    verdict = policy.judge(row.remedy, target, plan)
    checks, why = _look(WITH_PLAN, Question(ledger, policy, row.remedy, target, verdict, facts, now, request["pause_file"], 0, remediation))
    approved = row.state == "approved"
    late = approved and row.expires is not None and now > row.expires + APPLIED_WITHIN
    why = (
        why
        or (f"it was approved, but only until {moment(row.expires or 0)}" if late else "")
        or _elsewhere(target, planned)
        or _not_meant(identity, request["only_plans"])
        or (_not_as_approved(ledger, row, chain, identity) if approved else "")
    )
    word = _word(policy, verdict, request, refused=bool(why), approved=approved)
    if approved and word == "allowed":
        ledger.append("applying", remediation, until=now + request["lease"])
    else:
        lines = [line for step in chain["plan"] for line in step["steps"]]
        decision = dict(word=word, checks=checks, rule=verdict.rule, why=verdict.why, policy=policy.digest)
        decision["approval"] = verdict.as_dict()["approval"]
        ledger.append(
            "decided", remediation, plan_id=identity, rule=verdict.rule, decision=decision, lines=lines, until=now + request["lease"], chain=_kept(chain)
        )
        if word == "allowed":
            ledger.append("applying", remediation, until=now + request["lease"])
        elif word in ("refused", "shadow"):
            told = why or f"in shadow mode nothing is done; it would be {'done' if verdict.decision == 'auto' else 'asked for'}: {verdict.why}"
            ledger.append("closed", remediation, outcome="denied" if word == "refused" else "shadow", why=told)
            why = told
    return dict(
        word=word,
        why=why or verdict.why,
        rule=verdict.rule,
        checks=checks,
        decision=verdict.decision,
        told_before=False,
        plan_id=identity,
        remediation=remediation,
        fence=fence,
        last_backup=_last_backup(facts, now),
        until=now + request["lease"],
        deadline=now + request["lease"] - MARGIN,
        steps=_steps(chain, now + request["lease"] - MARGIN) if word == "allowed" else [],
    )


def _look(checks: t.Sequence[tuple[str, t.Callable[[Question], str]]], asked: Question) -> tuple[list[Answer], str]:
    """Look at one thing after the other, up to the first that is in the way; ``why`` it is, or nothing."""
    seen: list[Answer] = []
    for name, look in checks:
        why = look(asked)
        seen.append(dict(check=name, good=not why, why=why))
        if why:
            return seen, why
    return seen, ""


def _word(policy: Policy, verdict: Verdict, request: Facts, *, refused: bool, approved: bool) -> str:
    if refused:
        return "refused"
    if request["shadow"] or policy.mode == "shadow" or verdict.decision == "dry_run":
        return "shadow"
    return "allowed" if approved or verdict.decision == "auto" else "ask"


def _elsewhere(target: Target, planned: t.Sequence[Facts]) -> str:
    """Why a plan is not about the target that the first question was about."""
    strangers = {str(key) for step in planned for key in step["after"]} - {target.id}
    return f"the plan would change {', '.join(sorted(strangers))} as well" if strangers and target.kind in ("lxc", "container") else ""


def _not_meant(identity: str, only: t.Sequence[str]) -> str:
    """Why a plan is none of those that somebody has looked at, where the run was told them. This only forbids."""
    if list(only) == ANY_PLAN or identity in only:
        return ""
    known = f"this is plan {identity}, and only {', '.join(only) or 'none'} may be done (remediate_only_plans)"
    return f"{known}: what is wrong has changed since it was looked at, so look again"


def _not_as_approved(ledger: Ledger, row: Remediation, chain: Facts, identity: str) -> str:
    """Why this is not what was approved. The options must be the same too, since not all of them show in what is there before and after."""
    forged = strays(ledger, row)
    if forged:
        return f"it is not known to be approved: {forged}"
    asked = ledger.latest(row.id, "decided")["chain"]["plan"]
    return "the plan has changed since it was approved" if identity != row.plan_id or _written(chain["plan"]) != _written(asked) else ""


def _written(plan: t.Sequence[Facts]) -> str:
    return canonical([[step["module"], step["args"], *sorted(_manner(step).items())] for step in plan if step["purpose"] == "change"])


def strays(ledger: Ledger, row: Remediation) -> str:
    """How a remediation's row or its entries in the journal were edited; empty where the one follows from the others, and these stand in the chain."""
    told = None
    for seq, at, whose, kind, body, before, kept in ledger.rows(
        "SELECT seq, at, remediation, kind, body, prev, hash FROM journal WHERE remediation = ? ORDER BY seq", row.id
    ):
        event = Event(seq, at, whose, kind, body, before)
        beside: dict[int, str] = dict(
            ledger.rows("SELECT seq, CASE WHEN seq < ? THEN hash ELSE prev END FROM journal WHERE seq IN (?, ?)", seq, seq - 1, seq + 1)
        )
        if event.hash != kept or beside.get(seq - 1, before) != before or beside.get(seq + 1, kept) != kept:
            return f"entry {seq} of the ledger's journal was edited: homelab.healer.ledger_verify tells more"
        told = project(told, event)
    return "" if told == row else "its row in the ledger was edited: homelab.healer.ledger_verify tells more"


def plan_id(plan: t.Sequence[Facts]) -> str:
    """What an approval is bound to: which module shall write what to which immutable target, and what was there before; nothing that moves by itself."""
    written = [{key: step[key] for key in ("module", "before", "after")} for step in plan if step["purpose"] == "change"]
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


def _steps(chain: Facts, deadline: float) -> list[Answer]:
    """The steps in the order in which they are carried out; none begins after its deadline."""
    return [
        dict(purpose=step["purpose"], module=step["module"], args={**step["args"], "deadline": deadline}, **_manner(step))
        for purpose in ("point_of_return", "change")
        for step in chain["plan"]
        if step["purpose"] == purpose and step["changed"]
    ]


def _kept(chain: Facts) -> Answer:
    """What of the chain is written down: of the baseline only what is judged, as an answer may hold what nobody asked for."""
    paths = [[judged["value"] for judged in probe["judge"]] for probe in chain["probes"]]
    return {**chain, "baseline": [_pruned(answer, wanted) for answer, wanted in zip(chain["baseline"], paths)]}


def _pruned(answer: t.Any, paths: t.Sequence[str]) -> t.Any:
    """The same answer with nothing but what stands at these paths."""
    if not isinstance(answer, (dict, list)) or "" in paths:
        return answer
    ways: dict[str, list[str]] = {}
    for path in paths:
        first, _dot, rest = path.partition(".")
        ways.setdefault(first, []).append(rest)
    if isinstance(answer, dict):
        return {key: _pruned(answer[key], rest) for key, rest in ways.items() if key in answer}
    return [_pruned(value, ways.get(str(place), ["\0"])) for place, value in enumerate(answer)]


def _manner(step: Facts) -> Answer:
    """Where a step is carried out if not where the others are, and whether it is one rung of a ladder."""
    return {key: step[key] for key in ("delegate_to", "rung") if key in step}


def _last_backup(facts: Facts, now: float) -> str:
    """How old the target's last backup is, as far as that can be told; empty where nobody asked."""
    backup = facts.get("backup")
    if not backup:
        return ""
    told = f"last backup {span(now - backup['last'])} ago" if backup.get("last") else "no backup of it can be seen"
    return f"{told} ({backup['unseen']})" if backup.get("unseen") else told


def mark_recurrence(ledger: Ledger, remediation: str, remedy: str, target: str, now: float) -> None:
    """Note on the last success that its trouble came back."""
    healed = ledger.find(
        "target = ? AND remedy = ? AND state = 'healed' AND closed > ? AND recurred IS NULL AND id <> ? ORDER BY closed DESC LIMIT 1",
        target,
        remedy,
        now - RECURS_WITHIN,
        remediation,
    )
    for success in healed:
        ledger.append("recurred", success.id, by=remediation)


def sweep(ledger: Ledger, now: float) -> list[Remediation]:
    """Close what nobody goes on with and nothing was written for: runs that ended before their first write, and questions that nobody answered."""
    stale = ledger.find(f"state IN ({', '.join(repr(state) for state in UNTOUCHED)}) AND until < ? AND (expires IS NULL OR expires < ?)", now, now)
    for row in stale:
        if row.state == "asked":
            close(ledger, row, lapsed(ledger, row), UNANSWERED, {})
        else:
            ledger.append("closed", row.id, outcome="rolled_back", why="its run ended before anything was changed, so it is as before")
    return stale


def lapsed(ledger: Ledger, row: Remediation) -> str:
    """How a question ends that nobody answered, as the policy said when it was asked."""
    return "needs_human" if ledger.latest(row.id, "asked").get("on_timeout") == "needs_human" else "denied"


def close(ledger: Ledger, row: Remediation, outcome: str, why: str, facts: Facts) -> None:
    """End a remediation. One that needs a human after it was begun keeps everybody from its target until that human says otherwise."""
    if outcome not in ENDS:
        raise Conflict(f"cannot end remediation {row.id}", why=f"{outcome} is no end of it", fix="This is a mistake in the chain; report it.")
    ledger.append("closed", row.id, outcome=outcome, why=why, **facts)
    if outcome == "needs_human" and row.applied is not None:
        ledger.turn_switch(f"freeze {row.target}", {"remediation": row.id, "why": why})


def fail(ledger: Ledger, remediation: str, *, remedy: str, host: str, facts: Facts, why: str, more: Facts) -> None:
    """Write down one that ended before the gate was asked, such as a diagnosis that failed. It has no lease, and freezes nothing."""
    _check_new(ledger, remediation)
    target = Target.of(host, facts) if facts.get("id") else None
    key, name, node = (target.key, target.name, node_of(target)) if target else ("", host, "")
    told = {fact: value for fact, value in facts.items() if fact != "labels"}
    body = {**more, "remedy": remedy, "host": host, "target": key, "name": name, "node": node, "why": why, "facts": told}
    ledger.append("failed", remediation, **body)


def holder_of(ledger: Ledger, row: Remediation) -> Facts:
    """Who has a remediation, by the event that gave it its lease."""
    given = ledger.rows("SELECT body FROM journal WHERE seq = ?", row.fence)
    return dict(json.loads(given[0][0])["run"]) if given else {}


def elsewhere(ledger: Ledger, row: Remediation) -> list[str]:
    """The hosts beside the controller on which a module of a remediation may still be at work, though the run that began it is gone."""
    if row.state not in ("applying", "undoing"):
        return []
    chain = ledger.latest(row.id, "decided").get("chain", {})
    usual = chain.get("settings", {}).get("delegate_to", "localhost")
    return sorted({step.get("delegate_to", usual) for step in chain.get("plan", [])} - {"localhost"})


def not_to_be_taken(ledger: Ledger, row: Remediation, gone: bool) -> str:
    """Why nobody may go on with a remediation in the place of the run that has it; empty where somebody may."""
    now = ledger.now()
    if not row.open:
        return f"it has ended: {row.state}"
    if row.state == "asked" and row.expires is not None and now < row.expires:
        return f"it waits for an answer until {moment(row.expires)}"
    if gone or row.until < now:
        return ""
    return f"the run that has it may still be at it, until {moment(row.until)}"


__all__ = ["admit", "canonical", "close", "decide", "elsewhere", "lapsed", "plan_id", "strays", "sweep"]
