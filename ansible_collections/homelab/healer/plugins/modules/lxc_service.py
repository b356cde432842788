#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_service
version_added: 0.1.0
short_description: Restart, reload or start a service inside Proxmox LXC containers, and prove that it was
description:
  - Restarts a service inside a container, which is less than to restart the container, and waits until a new process has stayed up.
  - Runs on the Proxmox VE node that has the container, as with C(delegate_to), and reaches into it by C(pct exec). The container needs no Python and no SSH.
  - Success is another main process, or another invocation of the unit, that stayed up for O(stable_for) seconds and, where O(probe) is given, answered it.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.change
  - homelab.healer.pct
attributes:
  check_mode:
    details: The container is only looked at. A unit that is missing, masked, inactive or in its start limit is told in check mode too.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: partial
    details: O(state=restarted) and O(state=reloaded) act each time.
options:
  vmid:
    description: The containers, by their numbers.
    type: list
    elements: int
    required: true
    aliases: [lxc_id]
  name:
    description:
      - The service, such as V(nginx) or V(postgresql@15-main), with or without C(.service). An alias is taken for the unit that it means.
      - A unit that runs no process of its own and stands for others, such as Debian's V(postgresql), is taken for those that are part of it.
    type: str
    required: true
    aliases: [service_name]
  state:
    description:
      - What shall become of it. V(started) does nothing where it is active.
      - Of the units that one stands for, V(started) starts those that failed and those that are enabled.
    type: str
    choices: [restarted, reloaded, started]
    required: true
  only_if:
    description:
      - The present states in which it may be touched, in systemd's words. In any other it is refused, with the reason.
      - By default V(active) and V(failed) for V(restarted), V(active) for V(reloaded), and all of them for V(started).
      - V(failed) is also one that died and waits to be started again by systemd. V(activating) is one that is still starting, as a database in recovery.
    type: list
    elements: str
    choices: [active, activating, deactivating, failed, inactive]
  reset_failed:
    description: Whether to let systemd forget first how often the unit was started. Without it, one in its start limit is refused.
    type: bool
    default: false
  timeout:
    description:
      - How many seconds it may take until it is up, and answers O(probe). A database in recovery is activating for minutes, which is no failure before.
    type: int
    default: 300
  stable_for:
    description: For how many seconds it must have stayed up. systemd calls a simple service started before its program has run at all.
    type: float
    default: 5.0
  probe:
    description:
      - A command that is run in the container when the service is up, as a list of a program and its arguments. It must end with 0 within O(timeout).
      - It is not run by a shell. It should only read, and is repeated each second until it ends with 0.
    type: list
    elements: str
  parallel:
    description: How many containers are worked on at the same time.
    default: 1
notes:
  - The units that one named unit stands for are worked on one after the other. Those of them in another state than O(only_if) are left alone, and named.
  - A unit that runs once and is done, without C(RemainAfterExit), is refused, as nothing of it could stay up.
  - Nothing can be put back, V(none). The RV(undo) of a restart starts the service, for one that failed half-way.
  - A container that was moved to another node is refused there, and the node named.
seealso:
  - module: homelab.healer.lxc_service_info
  - module: homelab.healer.lxc_power
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Restart a database's cluster on the node that has container 200
  homelab.healer.lxc_service:
    vmid: 200
    name: postgresql@15-main
    state: restarted
    probe: [runuser, -u, postgres, --, psql, --cluster, 15/main, -XAtqw, -c, SELECT 1]
  delegate_to: pve1

- name: Let a database read its configuration again
  homelab.healer.lxc_service:
    lxc_id: 200
    service_name: postgresql
    state: reloaded
  delegate_to: pve1
"""

RETURN = r"""
before:
  description: For each container that changes, by its number, what a restart renews of each unit.
  returned: always
  type: dict
  sample: {"200": {"postgresql@15-main.service": {"active_state": "active", "main_pid": 412, "invocation_id": "0a3fa1b2c8d94d4c8b1e7a6f5e4d3c2b"}}}
after:
  description: The same as it is then; V(new) for what will be another one.
  returned: always
  type: dict
  sample: {"200": {"postgresql@15-main.service": {"active_state": "active", "main_pid": "new", "invocation_id": "new"}}}
steps:
  description: What was done, or in check mode would be, a line each.
  returned: always
  type: list
  elements: str
  sample: ["restart postgresql@15-main.service in 200"]
undo:
  description:
    - Sets of options for this module that start what a restart left stopped, in the order in which to use them.
    - Returned in check mode too, so that it can be written down before the change. Empty for a reload and for a start.
  returned: always
  type: list
  elements: dict
  sample: [{"vmid": [200], "name": "postgresql@15-main.service", "state": "started"}]
reversibility:
  description: How well the undo puts back what was there. V(none), as processes that have ended do not come back; V(exact) where nothing changes.
  returned: always
  type: str
  sample: none
error:
  description: What went wrong.
  returned: failure
  type: dict
  contains:
    code:
      description: >-
        One of V(invalid), V(missing_library), V(unreachable), V(denied), V(not_found), V(conflict), V(refused), V(task_failed), V(timed_out) and
        V(not_converged).
      type: str
    what:
      description: What could not be done.
      type: str
    why:
      description: Why, in the words of the node or of systemd, with the last lines of the unit's journal where it failed. What may be a secret is left out.
      type: str
    fix:
      description: What to do next.
      type: str
    retryable:
      description: Whether the same may succeed later.
      type: bool
results:
  description: What became of each container. Empty when the failure came before anything was planned.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The number.
      type: int
    name:
      description: The unit and the number.
      type: str
    changed:
      description: Whether it changed. What cannot be known counts as changed.
      type: bool
    unknown:
      description: Whether a command did not end in time, or the service is still starting, so that nobody can say how it ends.
      type: bool
    before:
      description: The part of RV(before) for this container.
      type: dict
    after:
      description: The part of RV(after) for this container.
      type: dict
    steps:
      description: What was done, or in check mode would be.
      type: list
      elements: str
    undo:
      description: The part of RV(undo) for this container.
      type: list
      elements: dict
    reversibility:
      description: As RV(reversibility), for this container.
      type: str
    verified:
      description: >-
        By what it is known, for each unit; V(invocation) is systemd's identity of a run, V(process) the main process, V(stamp) only that OpenRC noted a
        start, V(state) that systemd noted another state, as by a reload. C(probe) is V(answer) where it answered. Empty in check mode.
      type: dict
      sample: {"postgresql@15-main.service": "invocation", "probe": "answer"}
    init:
      description: V(systemd) or V(openrc).
      type: str
    stands_for:
      description: The units that do the work of the one that was named, where these are others.
      type: list
      elements: str
    units:
      description: The units as they are after it, or in check mode as they are.
      type: list
      elements: dict
      contains:
        unit:
          description: The name.
          type: str
        load_state:
          description: V(loaded), or why it is not.
          type: str
        active_state:
          description: Its state.
          type: str
        sub_state:
          description: Its state in the words of its kind.
          type: str
        up:
          description: Whether it does its work.
          type: bool
        type:
          description: How systemd starts it, such as V(notify); empty with OpenRC.
          type: str
        main_pid:
          description: Its main process, by the container's own numbers; 0 where it has none.
          type: int
        invocation_id:
          description: What another run has another of.
          type: str
        n_restarts:
          description: How often systemd has started it again by itself since somebody last did.
          type: int
        result:
          description: V(success), or how it failed.
          type: str
        start_limited:
          description: Whether systemd starts it no more, as it was started too often.
          type: bool
        can_reload:
          description: Whether it can be reloaded.
          type: bool
        enabled:
          description: Whether it is started when the container is; in systemd's words.
          type: str
        changed_at:
          description: When its state changed last, in microseconds of systemd's clock, or a date and time with OpenRC.
          type: str
        since:
          description: Since when it has been active, in systemd's words.
          type: str
        status_text:
          description: What it tells systemd of itself.
          type: str
    notes:
      description: What a person should know, such as how long it took, and what was left alone.
      type: list
      elements: str
    error:
      description: What went wrong with this container, as in RV(error), or V(none).
      type: dict
"""

import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._change import Change, Step, plan_each
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
    Unreachable,
)
from ansible_collections.homelab.healer.plugins.module_utils._pct import OPTIONS, UNRUNNABLE, Node, connect, each
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, change_options, run
from ansible_collections.homelab.healer.plugins.module_utils._services import SANDBOX, Service, Unit, command, numbers, service_facts, unit_name
from ansible_collections.homelab.healer.plugins.module_utils._sizes import at_most_a_day

VERBS = {"restarted": "restart", "reloaded": "reload", "started": "start"}
TOUCHED = {
    "restarted": ("active", "failed"),
    "reloaded": ("active",),
    "started": ("active", "activating", "deactivating", "failed", "inactive"),
}
"""The present states in which a unit is touched, where nobody says which."""
POLL_FIRST = 0.2
POLL_MOST = 1.0
"""Seconds between two looks at a unit, at first and later."""
WORTH_TELLING = 10.0
"""Seconds from which on it is told how long a start took."""


@dataclass(frozen=True)
class Request:
    """Which service shall be what, in which containers."""

    vmid: tuple[int, ...] = field(metadata={"parse": numbers})
    name: str = field(metadata={"parse": unit_name})
    state: str
    only_if: tuple[str, ...] | None
    reset_failed: bool
    timeout: float = field(metadata={"parse": at_most_a_day})
    stable_for: float = field(metadata={"parse": at_most_a_day})
    probe: tuple[str, ...] | None = field(metadata={"parse": command})


@dataclass(frozen=True)
class Forget(Step):
    """Let systemd forget that a unit failed."""

    vmid: int
    unit: Unit

    def __str__(self) -> str:
        return f"reset the start limit of {self.unit.id} in {self.vmid}"

    def apply(self, client: Node) -> None:
        client.reset_failed(self.vmid, self.unit, f"cannot {self}")

    def happened(self, now: Service) -> bool | None:
        unit = now.unit(self.unit.id)
        return unit is not None and unit.active != self.unit.active


@dataclass(frozen=True)
class Act(Step):
    """Restart, reload or start a unit, and wait until it has stayed up and answers."""

    vmid: int
    unit: Unit
    verb: str
    request: Request

    def __str__(self) -> str:
        return f"{self.verb} {self.unit.id} in {self.vmid}"

    def apply(self, client: Node) -> tuple[str, ...]:
        began = time.monotonic()
        client.act(self.vmid, self.unit, self.verb, f"cannot {self}", self.request.timeout)
        try:
            came = self._see(client, began)
        except (Conflict, Denied, Invalid, NotFound, Refused, Unreachable) as error:  # these are said where nothing was begun
            raise TaskFailed(f"did {self}, but could not see how it went", why=f"{error.what}: {error.why}", fix=error.fix) from error
        return (f"it took {came:.0f} s until {self.unit.id} was up",) if came >= WORTH_TELLING else ()

    def _see(self, client: Node, began: float) -> float:
        """After how many seconds it was up. Raises where it did not come up, stay up, or answer."""
        until = began + self.request.timeout
        first = self._up(client, until)
        came = time.monotonic() - began
        self._stays(client, first)
        self._answers(client, until)
        return came

    def _up(self, client: Node, until: float) -> Unit:
        """The unit as it is when its init is done with it. Raises where it is not up, or not yet when time is up."""
        pause = POLL_FIRST
        while True:
            unit = client.unit(self.vmid, self.unit)
            if not unit.pending:
                break
            if time.monotonic() >= until:
                why = f"it is still {unit.told} after {self.request.timeout:.0f} s{_journal(client, self.vmid, unit)}"
                fix = "A long recovery comes to its end by itself: look again with homelab.healer.lxc_service_info, or give it a longer timeout."
                raise TimedOut(f"cannot tell how to {self} ends", why=why, fix=fix, underway=True)
            time.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(2 * pause, POLL_MOST)
        if not unit.up:
            raise self._failed(client, unit, f"it is {unit.told}")
        if self.verb == "restart" and not unit.anew(self.unit):
            raise self._unproved(unit)
        if unit.restarts > (self.unit.restarts if self.verb == "reload" else 0):
            raise self._failed(client, unit, f"it died, and systemd has started it again {unit.restarts} times")
        return unit

    def _stays(self, client: Node, first: Unit) -> None:
        began = time.monotonic()
        until = began + self.request.stable_for
        while time.monotonic() < until:
            time.sleep(min(POLL_MOST, max(0.0, until - time.monotonic())))
            unit = client.unit(self.vmid, self.unit)
            if not unit.up or unit.invocation != first.invocation or unit.main_pid != first.main_pid or unit.restarts != first.restarts:
                raise self._failed(client, unit, f"it was up, and {time.monotonic() - began:.1f} s later it is {unit.told}, process {unit.main_pid}")

    def _answers(self, client: Node, until: float) -> None:
        if self.request.probe is None:
            return
        while True:
            told = client.answers(self.vmid, self.request.probe, until)
            if told is None:
                return
            if time.monotonic() >= until or told.startswith(UNRUNNABLE):
                why = f"it is up, but {self.request.probe[0]} got no answer: {told}{_journal(client, self.vmid, self.unit)}"
                raise NotConverged(f"did {self}, but it does not answer", why=why, fix="Look whether the probe is right, or give it a longer timeout.")
            time.sleep(min(POLL_MOST, max(0.0, until - time.monotonic())))

    def _failed(self, client: Node, unit: Unit, why: str) -> HealerError:
        fix = f"{'Correct what its journal tells' if unit.init == 'systemd' else 'Look into its own log in the container'}, then run this again."
        if unit.status == SANDBOX:
            fix = f"Its sandbox cannot be set up in this container: allow it nesting, as with pct set {self.vmid} --features nesting=1, and restart that."
        elif not unit.anew(self.unit) and self.unit.restart not in ("", "no"):
            fix += " If systemd starts it no more because it was started too often, set reset_failed=true."
        error = TaskFailed(f"cannot {self}", why=f"{why}{_journal(client, self.vmid, unit)}", fix=fix)
        error.begun = True
        return error

    def _unproved(self, unit: Unit) -> HealerError:
        why = "it is the same run as before"
        if unit.proof in ("", "stamp"):
            why = "OpenRC knows of no pidfile and no supervisor, and noted no other start, so nothing tells its process from the one before"
        return NotConverged(f"did {self}, but cannot prove it", why=why, fix="Look at its processes in the container.")

    def happened(self, now: Service) -> bool | None:
        unit = now.unit(self.unit.id)
        return unit is None or (unit != self.unit if self.verb != "reload" else unit.changed != self.unit.changed)

    def prove(self, client: Node, now: Service) -> dict[str, str]:
        unit = now.unit(self.unit.id)
        what = f"did {self}, but it did not last"
        if unit is None or not unit.up:
            raise NotConverged(what, why=f"it is {unit.told if unit else 'gone'}", fix="Look into its journal.")
        answered = {"probe": "answer"} if self.request.probe else {}
        if self.verb == "reload":
            return {unit.id: "state" if unit.changed != self.unit.changed else "accepted", **answered}
        if self.verb == "restart" and not unit.anew(self.unit):
            raise self._unproved(unit)
        return {unit.id: unit.proof or "state", **answered}

    def tell(self, client: Node, now: Service) -> dict[str, t.Any]:
        return service_facts(now)


def _journal(client: Node, vmid: int, unit: Unit) -> str:
    lines = client.journal(vmid, unit)
    return f". The last lines of its journal: {' | '.join(lines)}" if lines else ""


def observe(client: Node, request: Request) -> list[Service]:
    """The service in each container, as it is."""
    return each(request.vmid, lambda vmid: client.service(vmid, request.name))


def plan(request: Request, now: t.Sequence[Service]) -> dict[t.Any, Change]:
    """A change for each container in which the service shall be renewed, or is not up."""
    return plan_each(now, lambda service: plan_one(request, service))


def plan_one(request: Request, now: Service) -> Change:
    """What is to be done with the service of one container."""
    verb = VERBS[request.state]
    if now.asked.oneshot and now.units == (now.asked,) and not now.asked.remains and now.asked.load == "loaded":
        why = "it runs once and is done (Type=oneshot), so there is no process that could stay up"
        raise Refused(f"will not {verb} {now.name}", why=why, fix="Start it by its timer, or as a command of its own.")
    for unit in {unit.id: unit for unit in (now.asked, *now.units)}.values():
        _guard_loaded(f"will not {verb} {unit.id} in {now.key}", unit)
    wanted = [unit for unit in now.units if request.state != "started" or (not unit.up and _meant(now, unit))]
    touched = [unit for unit in wanted if unit.present in (request.only_if or TOUCHED[request.state])]
    left = [unit for unit in wanted if unit not in touched]
    if left and not touched:
        raise _not_in(left[0], f"will not {verb} {left[0].id} in {now.key}")
    steps: list[Step] = []
    for unit in touched:
        steps += _steps(request, now.key, unit, verb)
    after = {unit.id: _then(unit, verb) for unit in touched}
    return Change(
        {unit.id: unit.identity for unit in touched},
        after,
        steps=tuple(steps),
        undo=dict(name=now.asked.id, state="started") if touched and verb == "restart" else {},
        reversibility="none",
        notes=tuple(f"{unit.id} is left alone, as it is {unit.told}" for unit in left),
        facts=service_facts(now),
        action=True,
        shown=({unit.id: unit.figures for unit in touched}, {unit.id: unit.figures if verb == "reload" else unit.figures_anew for unit in touched}),
    )


def _meant(now: Service, unit: Unit) -> bool:
    """Whether who wants a service started wants this unit of it: of those that it stands for, one that somebody stopped for good is not."""
    return unit.id == now.asked.id or unit.active != "inactive" or unit.enabled.startswith("enabled")


def _steps(request: Request, vmid: int, unit: Unit, verb: str) -> list[Step]:
    what = f"will not {verb} {unit.id} in {vmid}"
    if verb == "reload" and not unit.can_reload:
        raise Refused(what, why="it has no way to reload", fix="Restart it.")
    if unit.limited and not request.reset_failed:
        why = f"systemd has given up on it: it is {unit.told}, after {unit.restarts} restarts of at most {unit.burst}"
        raise Refused(what, why=why, fix="Find out from its journal why it dies; then set reset_failed=true.")
    forget = [Forget(vmid, unit)] if request.reset_failed and unit.active == "failed" and unit.init == "systemd" else []
    return [*forget, Act(vmid, unit, verb, request)]


def _then(unit: Unit, verb: str) -> dict[str, t.Any]:
    """What a unit's identity is to be."""
    if verb == "reload":
        return {**unit.identity, "reload": "done"}
    return {"active_state": "active", "main_pid": "new" if unit.main_pid or not unit.oneshot else 0, "invocation_id": "new"}


def _guard_loaded(what: str, unit: Unit) -> None:
    if unit.load == "not-found":
        raise NotFound(what, why="there is no such unit", fix="List what there is: systemctl list-units --all --type=service in the container.")
    if unit.load == "masked" or unit.enabled in ("masked", "masked-runtime"):
        raise Refused(what, why="it is masked: somebody wanted it never to run", fix="If that is over, unmask it in the container: systemctl unmask.")
    if unit.load != "loaded":
        raise Refused(
            what, why=f"systemd could not load it ({unit.load})", fix="Correct its unit file: systemd-analyze verify in the container names the line."
        )


def _not_in(unit: Unit, what: str) -> HealerError:
    """That a unit is in a state in which it is not to be touched."""
    if unit.present == "deactivating":
        return Conflict(what, why=f"it is just stopping: {unit.told}", fix="Run this again when it has stopped, or add deactivating to only_if.")
    if unit.present == "activating":
        return Conflict(what, why=f"it is still starting: {unit.told}", fix="Wait: a database may be in recovery. If it hangs, add activating to only_if.")
    enabled = f", and {unit.enabled}" if unit.enabled else ""
    fix = f"If it shall run, use state=started; only_if names the states in which it is touched, and {unit.present} is none of them."
    return Refused(what, why=f"it is {unit.told}{enabled}", fix=fix)


MODULE = Module(Request, connect, observe, plan, target="vmid")
ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        vmid=dict(type="list", elements="int", required=True, aliases=["lxc_id"]),
        name=dict(type="str", required=True, aliases=["service_name"]),
        state=dict(type="str", choices=["restarted", "reloaded", "started"], required=True),
        only_if=dict(type="list", elements="str", choices=["active", "activating", "deactivating", "failed", "inactive"]),
        reset_failed=dict(type="bool", default=False),
        timeout=dict(type="int", default=300),
        stable_for=dict(type="float", default=5.0),
        probe=dict(type="list", elements="str"),
        **change_options(parallel=1),
    ),
)


def main() -> None:
    run(MODULE, ARGUMENTS)


if __name__ == "__main__":
    main()
