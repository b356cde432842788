# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel: the one way from a module's options to its answer.

Observe, plan, apply, look again. This is the only file in the collection that knows check mode, builds a diff, or fails a module.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import json
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.homelab.healer.plugins.module_utils._change import DEFAULT, REVERSIBILITIES, Change, State, Step
from ansible_collections.homelab.healer.plugins.module_utils._errors import (
    Conflict,
    Denied,
    HealerError,
    Invalid,
    NotConverged,
    NotFound,
    Refused,
    TaskFailed,
    TimedOut,
    together,
)
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Quantity, settle

Answer = t.Dict[str, t.Any]
Params = t.Mapping[str, t.Any]
STILL_UNDER_WAY = 2.0
"""Seconds in which a server may still be carrying out a write whose reply was lost."""
PROOFS_AT_ONCE = 16
"""A proof may have to measure for a while; that costs the machine nothing, so many are made at the same time."""
Connect = t.Callable[[Params], t.ContextManager[t.Any]]
Keep = t.Callable[[Params, bool], t.ContextManager[t.Any]]
"""How a ledger is opened, from the options and whether it is check mode."""


def change_options(parallel: int, aliases: t.Sequence[str] = ()) -> dict[str, t.Any]:
    """The options that every changing module has; ``parallel`` is how many targets it changes at once by default."""
    return dict(parallel=dict(type="int", default=parallel, aliases=list(aliases)), deadline=dict(type="float"))


@dataclass(frozen=True)
class Module:
    """What a changing module is made of.

    ``target`` is the option that takes targets by their key; ``selectors`` are the options that choose targets otherwise.
    ``quantities`` are the options that may be relative to the present value.
    """

    request: type[t.Any]
    connect: Connect
    observe: t.Callable[[t.Any, t.Any], t.Sequence[t.Any]]
    plan: t.Callable[[t.Any, t.Sequence[t.Any]], t.Mapping[t.Any, Change]]
    target: str
    selectors: tuple[str, ...] = ()
    quantities: t.Mapping[str, Quantity] = field(default_factory=dict)

    def aimed(self, request: t.Any, keys: t.Sequence[t.Any]) -> t.Any:
        """The same request for exactly these targets, by their keys."""
        return replace(request, **dict.fromkeys(self.selectors), **{self.target: tuple(keys)})


@dataclass
class Outcome:
    """What became of one target."""

    state: State
    change: Change
    done: list[Step] = field(default_factory=list)
    changed: bool = False
    error: HealerError | None = None
    verified: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    told: dict[str, t.Any] = field(default_factory=dict)
    lost: bool = False

    @property
    def unknown(self) -> bool:
        """Whether nobody can say if the last write happened."""
        return self.error is not None and self.error.uncertain

    @property
    def underway(self) -> bool:
        """Whether the server may still be at the last write."""
        return self.error is not None and self.error.underway

    def undo(self, target: str) -> list[Answer]:
        """The options that put back what changed; nothing where nothing did, or nothing can."""
        return [{target: [self.state.key], **self.change.undo}] if self.changed and self.change.undo else []

    def as_dict(self, target: str) -> Answer:
        """The target's part of the answer."""
        return dict(
            {**self.change.facts, **self.told},
            id=self.state.key,
            name=self.state.name,
            changed=self.changed,
            unknown=self.unknown,
            before=self.change.before,
            after=self.change.after,
            steps=[str(step) for step in self.done],
            undo=self.undo(target),
            reversibility=self.change.reversibility if self.changed else "exact",
            verified=self.verified,
            notes=[*self.change.notes, *self.notes],
            error=self.error and self.error.as_dict(),
        )

    def diff(self) -> Answer:
        """What Ansible shows with ``--diff``."""
        sides = {"before": self.change.before, "after": self.change.after}
        told = {side: {**_flat(values), **_flat(shown)} for (side, values), shown in zip(sides.items(), self.change.shown)}
        text = {side: "".join(f"{key}: {_shown(value)}\n" for key, value in values.items()) for side, values in told.items()}
        return dict(text, before_header=self.state.name, after_header=self.state.name)


def run(module: Module, arguments: t.Mapping[str, t.Any]) -> None:
    """Be the module: read the options, change what they ask for, answer. ``arguments`` are ``AnsibleModule``'s."""
    ansible = AnsibleModule(supports_check_mode=True, **arguments)
    answer, error = perform(module, ansible.params, check=ansible.check_mode)
    for result in answer["results"]:
        for note in result["notes"]:
            ansible.warn(f"{result['name']}: {note}")
    _leave(ansible, answer, error)


def run_info(request: type[t.Any], connect: Connect, report: t.Callable[[t.Any, t.Any], Answer], arguments: t.Mapping[str, t.Any]) -> None:
    """Be an information module: ``report(client, request)`` reads and says what it saw. ``arguments`` are ``AnsibleModule``'s."""
    ansible = AnsibleModule(supports_check_mode=True, **arguments)
    answer, error = look(request, connect, report, ansible.params)
    _leave(ansible, answer, error)


def look(request: type[t.Any], connect: Connect, report: t.Callable[[t.Any, t.Any], Answer], params: Params) -> tuple[Answer, HealerError | None]:
    """Read and say what was seen. Returns the answer, and the failure where there was one."""
    try:
        asked = ask(request, params)
        with connect(params) as client:
            return dict(report(client, asked), changed=False), None
    except HealerError as error:
        return dict(changed=False), error


def run_ledger(request: type[t.Any], connect: Keep, act: t.Callable[[t.Any, t.Any], Answer], arguments: t.Mapping[str, t.Any]) -> None:
    """Be a module of the ledger: ``act(ledger, request)`` decides and writes it down. ``arguments`` are ``AnsibleModule``'s."""
    ansible = AnsibleModule(supports_check_mode=True, **arguments)
    answer, error = keep(request, connect, act, ansible.params, check=ansible.check_mode)
    _leave(ansible, answer, error)


def keep(request: type[t.Any], connect: Keep, act: t.Callable[[t.Any, t.Any], Answer], params: Params, check: bool) -> tuple[Answer, HealerError | None]:
    """Ask the ledger, which takes nothing in check mode. Returns the answer, with the ledger's head, and the failure where there was one.

    What ``act`` answers may hold an ``error``, a ``HealerError``: then the task fails, and says the rest as well. It may have a ``head`` of its own.
    """
    try:
        asked = ask(request, params)
        with connect(params, check) as ledger:
            answer = act(ledger, asked)
            failure = answer.pop("error", None)
            if "head" not in answer:
                answer["head"] = ledger.head
            return {"changed": False, **answer}, failure
    except HealerError as error:
        return dict(changed=False), error


def _leave(ansible: AnsibleModule, answer: Answer, error: HealerError | None) -> t.NoReturn:
    plain = json.loads(json.dumps(answer))
    if error:
        ansible.fail_json(msg=str(error), error=error.as_dict(), **plain)
    ansible.exit_json(**plain)
    raise AssertionError("exit_json returned")


def ask(request: type[t.Any], params: Params) -> t.Any:
    """Build a request from the options: its fields are their names, a field's ``parse`` metadata reads what a person wrote."""
    values = {}
    for option in fields(request):
        value = params[option.name]
        try:
            values[option.name] = value if value is None else option.metadata.get("parse", _frozen)(value)
        except (ValueError, OverflowError) as error:
            raise Invalid(f"{option.name} cannot be {value!r}", why=str(error), fix="Correct the option; nothing was touched.") from error
    return request(**values)


def _frozen(value: t.Any) -> t.Any:
    if isinstance(value, list):
        if not all(element not in (None, "") for element in value or [""]):
            raise ValueError("it is empty or has an empty element, and that is never read as all; leave the option out if nothing is meant by it")
        return tuple(value)
    return value


def perform(module: Module, params: Params, check: bool) -> tuple[Answer, HealerError | None]:
    """Observe, plan and, unless ``check``, apply and look again. Returns the answer and, where there was one, the failure."""
    try:
        request = ask(module.request, params)
        with module.connect(params) as client:
            now = module.observe(client, request)
            request = settle(request, now, module.quantities)
            changes = module.plan(request, now)
            outcomes = [Outcome(state, changes[state.key]) for state in now]
            if check:
                for outcome in outcomes:
                    outcome.changed, outcome.done = bool(outcome.change.steps), list(outcome.change.steps)
            else:
                _apply(module, client, request, [outcome for outcome in outcomes if outcome.change.steps], params)
    except HealerError as error:
        return _answer(module, []), error
    errors = {outcome.state.name: outcome.error for outcome in outcomes if outcome.error}
    return _answer(module, outcomes), _failure(outcomes, errors) if errors else None


def _apply(module: Module, client: t.Any, request: t.Any, outcomes: t.Sequence[Outcome], params: Params) -> None:
    if not outcomes:
        return
    with ThreadPoolExecutor(max(1, params["parallel"])) as workers:
        list(workers.map(lambda outcome: _carry_out(client, outcome, params["deadline"]), outcomes))
    _look_again(module, client, request, [outcome for outcome in outcomes if not outcome.underway])


def _carry_out(client: t.Any, outcome: Outcome, deadline: float | None) -> None:
    try:
        for step in outcome.change.steps:
            if deadline is not None and not time.time() < deadline:
                raise Refused(
                    f"did not begin to {step}",
                    why="the deadline has passed",
                    fix="Give it more time, or find out what took so long.",
                )
            outcome.notes.extend(step.apply(client) or ())
            outcome.done.append(step)
    except HealerError as error:
        outcome.error = error
    outcome.changed = bool(outcome.done) or outcome.unknown


def _look_again(module: Module, client: t.Any, request: t.Any, outcomes: t.Sequence[Outcome]) -> None:
    """Observe and plan again: what is written must hold, and what failed must be told by what is there, not by what was sent."""
    if not outcomes:
        return
    if any(outcome.unknown for outcome in outcomes):
        time.sleep(STILL_UNDER_WAY)
    try:
        _judge(module, client, request, outcomes)
    except HealerError:
        for outcome in outcomes:
            try:
                _judge(module, client, request, [outcome])
            except HealerError as error:
                if isinstance(outcome.error, (TaskFailed, TimedOut)):
                    outcome.error.uncertain = outcome.changed = True  # it was begun, and nobody can see how far it got
                outcome.error = outcome.error or type(error)(
                    f"changed {outcome.state.name}, but could not look whether it holds", why=f"{error.what}: {error.why}", fix=error.fix
                )


def _judge(module: Module, client: t.Any, request: t.Any, outcomes: t.Sequence[Outcome]) -> None:
    request = module.aimed(request, [outcome.state.key for outcome in outcomes])
    now = {state.key: state for state in module.observe(client, request)}
    actions = any(outcome.change.action for outcome in outcomes)
    again = {} if actions else module.plan(request, list(now.values()))
    for outcome in outcomes:
        state, left = now[outcome.state.key], again.get(outcome.state.key, Change())
        if actions and outcome.error:
            outcome.changed = _told_by(outcome, state)
            happened = outcome.unknown and _differs(outcome, state) and len(outcome.done) == len(outcome.change.steps) - 1
            if not happened:
                _certain(outcome.error)
                continue
        if left.steps or (outcome.error and not outcome.unknown):
            outcome.changed = _told_by(outcome, state)
            outcome.error = _certain(outcome.error) or NotConverged(
                f"changed {state.name}, but it did not hold",
                why="; ".join(f"{key} is {_shown(left.before[key])}, not {_shown(value)}" for key, value in left.after.items()),
                fix="Look who else changes it, then run this again; the undo puts back what was there before.",
            )
            continue
        if outcome.unknown:
            outcome.lost, outcome.done, outcome.error = True, list(outcome.change.steps), None
    with ThreadPoolExecutor(PROOFS_AT_ONCE) as workers:
        list(workers.map(lambda outcome: _prove(client, outcome, now[outcome.state.key]), outcomes))


def _told_by(outcome: Outcome, now: State) -> bool:
    """Whether a target on which something failed has changed. What a server refused at once was done by somebody else, if it was done at all."""
    if outcome.error and outcome.error.partly:
        return True
    refused = isinstance(outcome.error, (Conflict, Denied, Invalid, NotFound, Refused)) and not outcome.error.begun
    refused = refused and not outcome.unknown and not outcome.done
    return not refused and _differs(outcome, now)


def _differs(outcome: Outcome, now: State) -> bool:
    """Whether a write shows in the state seen after it: any of those that were carried out, or the one that failed, by its own word where it has one."""
    if outcome.done:
        return now != outcome.state
    told = outcome.change.steps[0].happened(now)
    return now != outcome.state if told is None else told


def _prove(client: t.Any, outcome: Outcome, state: State) -> None:
    try:
        for step in outcome.done if not outcome.error else ():
            outcome.told.update(step.tell(client, state))
            outcome.verified.update(step.prove(client, state))
        if outcome.lost and not outcome.error:
            outcome.notes.append("the reply to the change was lost; it was looked at again, and it holds")
    except HealerError as error:
        outcome.error = error


def _certain(error: HealerError | None) -> HealerError | None:
    """The same failure, now that somebody has looked."""
    if error:
        error.uncertain = False
    return error


def _failure(outcomes: t.Sequence[Outcome], errors: t.Mapping[str, HealerError]) -> HealerError:
    """The failure of the task: what went wrong with each target and, where there are several, which of them changed."""
    error = together(errors)
    if len(outcomes) == 1:
        return error
    told = [
        ("Changed", [o for o in outcomes if o.changed and not o.unknown]),
        ("Perhaps changed", [o for o in outcomes if o.unknown]),
        ("Not changed", [o for o in outcomes if not o.changed]),
    ]
    summary = " ".join(f"{word}: {', '.join(o.state.name for o in group)}." for word, group in told if group)
    whole = type(error)(error.what, why=error.why, fix=f"{error.fix} {summary}", uncertain=error.uncertain)
    whole.retryable = error.retryable
    return whole


def _answer(module: Module, outcomes: t.Sequence[Outcome]) -> Answer:
    results = [outcome.as_dict(module.target) for outcome in outcomes]
    told = [result for result in results if result["after"]]
    return dict(
        changed=any(result["changed"] for result in results),
        before={result["id"]: result["before"] for result in told},
        after={result["id"]: result["after"] for result in told},
        steps=[step for result in results for step in result["steps"]],
        undo=[undo for result in reversed(results) for undo in result["undo"]],
        reversibility=max((result["reversibility"] for result in results), key=REVERSIBILITIES.index, default="exact"),
        diff=[outcome.diff() for outcome in outcomes if outcome.change.after],
        results=results,
    )


def _flat(values: t.Mapping[str, t.Any]) -> Answer:
    """The same values, those of a part of the target by its name and theirs."""
    parts = {f"{name} {key}": value for name, part in values.items() if isinstance(part, t.Mapping) for key, value in part.items()}
    return {**{key: value for key, value in values.items() if not isinstance(value, t.Mapping)}, **parts}


def _shown(value: t.Any) -> str:
    return "not set" if value == DEFAULT else str(value)
