#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_power
version_added: 0.1.0
short_description: Start, stop and restart Proxmox LXC containers, and wait until it is so
description:
  - Starts, shuts down or restarts containers and waits until they are as wanted. What a failed task said is what the error says.
  - A restart is a shutdown and a start. If the shutdown fails the container runs on; it is never killed unless O(force) says so.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.change
  - homelab.healer.proxmox
  - homelab.healer.proxmox.wait
attributes:
  check_mode:
    details: The cluster is only read. Missing privileges and locks are told in check mode too.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: partial
    details: O(state=restarted) restarts each time.
options:
  vmid:
    description: The containers, by their numbers.
    type: list
    elements: int
    required: true
    aliases: [lxc_id]
  state:
    description: What they shall be. A container that is stopped is started by V(restarted).
    type: str
    choices: [started, stopped, restarted]
    required: true
  timeout:
    description:
      - How many seconds its processes have to end when it is shut down, and how many a start may take.
      - A shutdown that fails is known after twice that time and five seconds, as Proxmox VE does it.
    type: int
    default: 60
  force:
    description: Whether to kill what has not ended in O(timeout) seconds.
    type: bool
    default: false
  parallel:
    description: How many containers are worked on at the same time.
    default: 1
notes:
  - The token needs C(VM.Audit) and C(VM.PowerMgmt) on C(/vms/<vmid>).
  - A container that the cluster's HA manager runs is shut down only with O(force), since that manager kills what does not end in time.
  - A locked container is refused. Proxmox VE itself would shut it down, fail to start it, and leave it stopped.
  - Changes of its configuration that wait for a restart take effect.
  - "The RV(undo) of a start or stop is the other, V(equivalent): its processes are new. Of a restart nothing can be put back, V(none); its undo starts
    the container, for a restart that failed half-way."
seealso:
  - module: homelab.healer.lxc_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Restart a container, with two minutes for its database to end
  homelab.healer.lxc_power:
    vmid: 200
    state: restarted
    timeout: 120

- name: Start what shall run
  homelab.healer.lxc_power:
    vmid: [201, 203]
    state: started
"""

RETURN = r"""
before:
  description: For each container that changes, by its number, its status and the number of its first process.
  returned: always
  type: dict
  sample: {"200": {"status": "running", "pid": 1234}}
after:
  description: The same as it is then; V(new) for the number of a process that comes.
  returned: always
  type: dict
  sample: {"200": {"status": "running", "pid": "new"}}
steps:
  description: What was done, or in check mode would be, a line each.
  returned: always
  type: list
  elements: str
  sample: ["shut down 200 (postgres)", "start 200 (postgres)"]
undo:
  description:
    - Sets of options for this module that put back what was there before, in the order in which to use them; without the connection options.
    - Returned in check mode too, so that it can be written down before the change. After a failure it covers what was changed until then.
  returned: always
  type: list
  elements: dict
  sample: [{"vmid": [200], "state": "started"}]
reversibility:
  description: How well the undo puts back what was there, for the worst of the changes, V(equivalent) or V(none).
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
      description: Why, in the node's own words and with a task's last log lines where there are any.
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
      description: The number and the host name.
      type: str
    changed:
      description: Whether it changed. What cannot be known counts as changed.
      type: bool
    unknown:
      description: Whether the reply to a request was lost and the container could not be looked at again, or a task may still run.
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
      description: By what it is known; V(status) is the node's status of the container. Empty in check mode.
      type: dict
      sample: {"status": "status"}
    node:
      description: The node that has it.
      type: str
    notes:
      description: What a person should know, such as what a task warned of.
      type: list
      elements: str
    error:
      description: What went wrong with this container, as in RV(error), or V(none).
      type: dict
"""

import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._change import Change, Step, plan_each
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, NotConverged, Refused
from ansible_collections.homelab.healer.plugins.module_utils._guests import Guest, need, unlock
from ansible_collections.homelab.healer.plugins.module_utils._proxmox import CREDENTIALS, OPTIONS, TARGETS, WAIT, Cluster, Task, connect, managed
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, change_options, run

MARGIN = 15
"""Seconds by which the end of a shutdown that fails is known after twice its time-out."""


KINDS = ("vzstart", "vzshutdown", "vzstop", "vzreboot")
"""The tasks that start or stop a container."""
PATIENCE = 900.0
"""Seconds for which a container that was shut down for a restart is worth waiting for a lock, such as that of a backup which began in between."""


@dataclass(frozen=True)
class Request:
    """Which containers shall be what."""

    vmid: tuple[int, ...]
    state: str
    timeout: int
    force: bool


@dataclass(frozen=True)
class Power:
    """A container's power; two are equal when it is the same one in the same run, ``pid`` being its first process (0 when stopped)."""

    key: int
    running: bool
    pid: int
    guest: Guest = field(compare=False)
    ha: bool = field(compare=False)
    task: str = field(compare=False)
    """The task that is just starting or stopping it; such a task has no lock."""

    @property
    def name(self) -> str:
        return self.guest.name


@dataclass(frozen=True)
class Start(Step):
    """Start a container, and wait until it runs."""

    power: Power
    timeout: int
    again: bool

    def __str__(self) -> str:
        return f"start {self.power.name}"

    def apply(self, client: Cluster) -> tuple[str, ...]:
        kind = "hastart" if self.power.ha else "vzstart"  # the cluster's manager starts what it manages, after its task has ended
        patience = PATIENCE if self.again else 0
        ended = client.carry_out(self.power.guest, Task(kind, "post", "status/start"), f"cannot {self}", self.timeout, patience)
        client.wait_for_status(self.power.guest, "running", f"cannot {self}", self.timeout, ended.started)
        return ended.warnings

    def prove(self, client: Cluster, now: Power) -> dict[str, str]:
        return _prove(self, now.running and now.pid != self.power.pid)


@dataclass(frozen=True)
class ShutDown(Step):
    """Shut a container down, and wait until it is stopped."""

    power: Power
    timeout: int
    force: bool
    last: bool

    def __str__(self) -> str:
        return f"shut down {self.power.name}{', by force if need be' if self.force else ''}"

    def apply(self, client: Cluster) -> tuple[str, ...]:
        task = Task("hastop" if self.power.ha else "vzshutdown", "post", "status/shutdown", dict(timeout=self.timeout, forceStop=int(self.force)))
        ended = client.carry_out(self.power.guest, task, f"cannot {self}", 2 * self.timeout + MARGIN)
        client.wait_for_status(self.power.guest, "stopped", f"cannot {self}", self.timeout, ended.started)
        return ended.warnings

    def prove(self, client: Cluster, now: Power) -> dict[str, str]:
        return _prove(self, not now.running) if self.last else {}


def _prove(step: Step, holds: bool) -> dict[str, str]:
    if not holds:
        raise NotConverged(
            f"did {step}, but it did not last", why="its status is another again", fix="Look at its tasks; somebody or something else changed it."
        )
    return {"status": "status"}


def observe(client: Cluster, request: Request) -> list[Power]:
    """The containers that the request means, as they are."""
    guests = client.guests(request.vmid)
    statuses = client.statuses(guests)
    return [_seen(guest, statuses[guest.key], client.under_way(guest, KINDS)) for guest in guests]


def _seen(guest: Guest, status: t.Mapping[str, t.Any], task: str) -> Power:
    return Power(guest.key, status["status"] == "running", int(status.get("pid") or 0), guest, managed(status), task)


def plan(request: Request, now: t.Sequence[Power]) -> dict[t.Any, Change]:
    """A change for each container that is not as wanted, or shall be restarted."""
    return plan_each(now, lambda power: plan_one(request, power))


def plan_one(request: Request, now: Power) -> Change:
    """What one container lacks of the request."""
    steps: list[Step] = []
    if now.running and request.state != "started":
        steps.append(ShutDown(now, request.timeout, request.force, last=request.state == "stopped"))
    if request.state == "restarted" or (request.state == "started" and not now.running):
        steps.append(Start(now, request.timeout, again=now.running))
    if steps:
        _guard(now, request.force)
    up = request.state != "stopped"
    before, after = dict(status="running" if now.running else "stopped", pid=now.pid), dict(status="running" if up else "stopped", pid="new" if up else 0)
    return Change(
        before if steps else {},
        after if steps else {},
        steps=tuple(steps),
        undo=dict(state="started" if now.running else "stopped"),
        reversibility="none" if now.running and up else "equivalent",
        facts=dict(node=now.guest.node.name),
        action=True,
    )


def _guard(now: Power, force: bool) -> None:
    what = f"will not start or stop {now.name}"
    if now.ha and now.running and not force:
        why = "the cluster's HA manager runs it, and kills what does not end in time"
        raise Refused(what, why=why, fix="If that is meant, set force=true; or stop it with ha-manager on a node.")
    need(now.guest, ["VM.PowerMgmt"], what)
    if now.guest.template:
        raise Refused(what, why="it is a template", fix="Name a container.")
    if now.guest.lock:
        raise Conflict(what, why=f"CT is locked ({now.guest.lock})", fix=unlock(now.key, now.guest.lock))
    if now.task:
        raise Conflict(what, why=f"its task {now.task} still runs", fix="Run this again when it has ended.")


MODULE = Module(Request, connect, observe, plan, target="vmid")
ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        **WAIT,
        **TARGETS,
        state=dict(type="str", choices=["started", "stopped", "restarted"], required=True),
        timeout=dict(type="int", default=60),
        force=dict(type="bool", default=False),
        **change_options(parallel=1),
    ),
    **CREDENTIALS,
)


def main() -> None:
    run(MODULE, ARGUMENTS)


if __name__ == "__main__":
    main()
