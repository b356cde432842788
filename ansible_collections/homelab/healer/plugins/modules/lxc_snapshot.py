#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_snapshot
version_added: 0.1.0
short_description: Make, remove and go back to snapshots of Proxmox LXC containers
description:
  - Makes snapshots, removes them, or takes containers back to one, and waits for the task that does it. What a failed task said is what the error says.
  - Every snapshot that it makes carries a mark in its description. Only marked ones are ever removed by age, number or expiry.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.change
  - homelab.healer.proxmox
  - homelab.healer.proxmox.wait
attributes:
  check_mode:
    details: The cluster is only read. Missing privileges, locks, full storages and volumes without snapshots are told in check mode too.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: partial
    details: With O(name) it is. With O(prefix) each run makes a new snapshot, and O(state=rolled_back) goes back each time.
options:
  vmid:
    description: The containers, by their numbers.
    type: list
    elements: int
    required: true
    aliases: [lxc_id]
  state:
    description:
      - V(present) makes a snapshot, V(absent) removes, and V(rolled_back) takes the container back to O(name).
      - V(absent) without O(name) removes those of this collection's own that have expired, or that O(keep) or O(max_age) no longer want.
      - V(rolled_back) kills what runs in the container, puts back its files and its whole configuration, and loses everything written since.
    type: str
    choices: [present, absent, rolled_back]
    default: present
  name:
    description:
      - The snapshot's name, a letter and then letters, digits, V(-) and V(_), 2 to 40 characters. Upper and lower case count.
      - Mutually exclusive with O(prefix).
    type: str
    aliases: [snapname, snapshot]
  prefix:
    description:
      - What the names of a series begin with; a stamp of 16 characters follows, such as V(20260131T235959Z), in UTC. At most 24 characters.
      - With O(state=absent) the series that is tidied up.
    type: str
  description:
    description: What the snapshot is for. A mark of this collection follows it.
    type: str
  keep:
    description: How many of this collection's own snapshots of O(prefix) to keep, the new one included. At least 1.
    type: int
  max_age:
    description: Remove this collection's own snapshots of O(prefix) that are older than that, such as V(12h), V(7d) or a number of seconds; never the newest.
    type: str
  expires:
    description: After which time nobody needs the new snapshot any more, written as O(max_age) is. It is removed when somebody tidies up, not by itself.
    type: str
  on_unsupported:
    description:
      - What to do where a container cannot be snapshotted, as with any mount of the host's folders, or a volume on a storage without snapshots.
      - V(continue) goes on without one, and says so; also where a storage is fuller than O(max_storage_used).
    type: str
    choices: [fail, continue]
    default: fail
  max_storage_used:
    description: Make no snapshot where a storage of the container is fuller than that, in per cent. Storages that the token may not see are not judged.
    type: float
    default: 90.0
  allow_data_loss:
    description: Whether O(state=rolled_back) may lose what was written since the snapshot. Without it the loss is told and nothing is done.
    type: bool
    default: false
  max_data_loss:
    description: Refuse to go back to a snapshot older than that, written as O(max_age) is.
    type: str
  start:
    description: Whether the container runs after O(state=rolled_back). Without it, it runs if it ran before.
    type: bool
  timeout:
    description: How many seconds each task, and a start after it, may take.
    type: float
    default: 300
  parallel:
    description: How many containers are worked on at the same time.
    default: 2
notes:
  - The token needs C(VM.Audit) and C(VM.Snapshot) on C(/vms/<vmid>), for V(rolled_back) C(VM.Snapshot) or C(VM.Snapshot.Rollback), and
    C(Datastore.Audit) on C(/storage/<storage>) to judge storages.
  - A snapshot of a running container is what a power cut would leave. A database recovers from that if its data and its log are in the same container
    and its volumes are on one storage; with several volumes they are not of the same moment.
  - "The RV(undo) of a new snapshot removes it, V(exact). What was removed or gone back from is lost, V(none)."
  - A snapshot undoes neither a vacuum nor an ended session, and going back to one is no way to undo a change of memory.
seealso:
  - module: homelab.healer.lxc_resources
  - module: homelab.healer.lxc_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Make a snapshot before an upgrade, and keep the last three of them
  homelab.healer.lxc_snapshot:
    vmid: 200
    prefix: pre-upgrade-
    description: Before the upgrade
    expires: 7d
    keep: 3

- name: Make one with a name, wherever that can be done
  homelab.healer.lxc_snapshot:
    vmid: [200, 202]
    name: before-migration
    on_unsupported: continue

- name: Go back to it, losing at most two hours
  homelab.healer.lxc_snapshot:
    vmid: 200
    name: before-migration
    state: rolled_back
    allow_data_loss: true
    max_data_loss: 2h

- name: Remove it
  homelab.healer.lxc_snapshot:
    vmid: 200
    name: before-migration
    state: absent

- name: Remove all of this collection's own that have expired
  homelab.healer.lxc_snapshot:
    vmid: [200, 201]
    state: absent
"""

RETURN = r"""
before:
  description: >-
    For each container that changes, by its number, the snapshots that come or go, V(absent) or V(present), or with O(state=rolled_back) the last task
    that went back.
  returned: always
  type: dict
  sample: {"200": {"pre-upgrade-20260131T235959Z": "absent"}}
after:
  description: The same as it is then.
  returned: always
  type: dict
  sample: {"200": {"pre-upgrade-20260131T235959Z": "present"}}
steps:
  description: What was done, or in check mode would be, a line each.
  returned: always
  type: list
  elements: str
  sample: ["snapshot 200 (postgres) as pre-upgrade-20260131T235959Z"]
undo:
  description:
    - Sets of options for this module that put back what was there before, in the order in which to use them; without the connection options.
    - Returned in check mode too, so that it can be written down before the change. After a failure it covers what was changed until then.
  returned: always
  type: list
  elements: dict
  sample: [{"vmid": [200], "name": "pre-upgrade-20260131T235959Z", "state": "absent"}]
reversibility:
  description: How well the undo puts back what was there, for the worst of the changes, V(exact) or V(none).
  returned: always
  type: str
  sample: exact
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
      description: By what each is known; V(list) is the node's list of snapshots, V(task) its task. Empty in check mode.
      type: dict
      sample: {"pre-upgrade-20260131T235959Z": "list"}
    node:
      description: The node that has it.
      type: str
    snapshot:
      description: The snapshot that the task is about, also where it was there already. Empty where none was made or wanted.
      type: str
    data_loss:
      description: With O(state=rolled_back) how many seconds of work are lost, V(none) otherwise.
      type: int
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
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Invalid, NotConverged, Refused
from ansible_collections.homelab.healer.plugins.module_utils._guests import need, unlock
from ansible_collections.homelab.healer.plugins.module_utils._proxmox import CREDENTIALS, OPTIONS, TARGETS, WAIT, Cluster, Task, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, change_options, run
from ansible_collections.homelab.healer.plugins.module_utils._sizes import moment, parse_span
from ansible_collections.homelab.healer.plugins.module_utils._snapshots import (
    History,
    Snapshot,
    Stamped,
    complete,
    config_changes,
    expired,
    full,
    guard_rollback,
    marked,
    obstacles,
    outdated,
    read_name,
    read_prefix,
)


@dataclass(frozen=True)
class Request:
    """What shall become of which snapshots; times are seconds."""

    vmid: tuple[int, ...]
    state: str
    name: str | None = field(metadata={"parse": read_name})
    prefix: Stamped | None = field(metadata={"parse": read_prefix})
    description: str | None
    keep: int | None
    max_age: float | None = field(metadata={"parse": parse_span})
    expires: float | None = field(metadata={"parse": parse_span})
    on_unsupported: str
    max_storage_used: float
    allow_data_loss: bool
    max_data_loss: float | None = field(metadata={"parse": parse_span})
    start: bool | None
    timeout: float


@dataclass(frozen=True)
class Take(Step):
    """Make a snapshot."""

    history: History
    name: str
    description: str
    timeout: float

    def __str__(self) -> str:
        return f"snapshot {self.history.name} as {self.name}"

    def apply(self, client: Cluster) -> tuple[str, ...]:
        task = Task("vzsnapshot", "post", "snapshot", dict(snapname=self.name, description=self.description))
        return client.carry_out(self.history.guest, task, f"cannot {self}", self.timeout).warnings

    def prove(self, client: Cluster, now: History) -> dict[str, str]:
        return {self.name: "list"}


@dataclass(frozen=True)
class Remove(Step):
    """Remove a snapshot."""

    history: History
    name: str
    timeout: float

    def __str__(self) -> str:
        return f"remove snapshot {self.name} of {self.history.name}"

    def apply(self, client: Cluster) -> tuple[str, ...]:
        task = Task("vzdelsnapshot", "delete", f"snapshot/{self.name}")
        return client.carry_out(self.history.guest, task, f"cannot {self}", self.timeout).warnings

    def prove(self, client: Cluster, now: History) -> dict[str, str]:
        return {self.name: "list"}


@dataclass(frozen=True)
class RollBack(Step):
    """Take a container back to a snapshot, and let it run again if it shall."""

    history: History
    snapshot: Snapshot
    start: bool
    timeout: float

    def __str__(self) -> str:
        return f"take {self.history.name} back to {self.snapshot.name} of {moment(self.snapshot.taken)}{' and start it' if self.start else ''}"

    def apply(self, client: Cluster) -> tuple[str, ...]:
        task = Task("vzrollback", "post", f"snapshot/{self.snapshot.name}/rollback", dict(start=1) if self.start else {})
        ended = client.carry_out(self.history.guest, task, f"cannot {self}", self.timeout)
        if self.start:  # the task's success says nothing of the start, which is a task of its own
            client.wait_for_status(self.history.guest, "running", f"took {self.history.name} back, but it does not start", self.timeout, ended.started)
        return ended.warnings

    def prove(self, client: Cluster, now: History) -> dict[str, str]:
        if now.rolled_back == self.history.rolled_back:
            raise NotConverged(f"cannot {self}", why="the node has no task that did it", fix="Look at the container's tasks, then run this again.")
        ended = client.wait(now.rolled_back, f"cannot {self}", self.timeout)  # one whose reply was lost has been followed by nobody yet
        if self.start and not now.guest.running:
            client.wait_for_status(now.guest, "running", f"took {self.history.name} back, but it does not start", self.timeout, ended.started)
        return {"last_rollback": "task"}


def observe(client: Cluster, request: Request) -> list[History]:
    """The containers that the request means, with their snapshots."""
    rolling = request.state == "rolled_back"
    return client.histories(request.vmid, making=request.state == "present", back_to=request.name if rolling else None)


def plan(request: Request, now: t.Sequence[History]) -> dict[t.Any, Change]:
    """A change for each container."""
    if request.keep is not None and request.keep < 1:
        raise Invalid("cannot keep fewer than one snapshot", why=f"keep is {request.keep}", fix="Give at least 1.")
    if (request.keep or request.max_age) and not request.prefix:
        raise Invalid("cannot tidy up", why="keep and max_age are for the series of a prefix", fix="Give the prefix, or leave them out.")
    return plan_each(now, lambda history: PLANS[request.state](request, history))


def _make(request: Request, now: History) -> Change:
    name = request.name or (request.prefix.name if request.prefix else "")
    reasons = obstacles(now)
    crowded = full(now, request.max_storage_used)
    if crowded and request.on_unsupported == "continue":
        reasons = [*reasons, *crowded]
    facts = dict(node=now.guest.node.name, snapshot=name, data_loss=None)
    if now.find(name):
        complete(now, name, f"cannot snapshot {now.name} as {name}")
        reasons = []
    elif reasons and request.on_unsupported == "continue":
        return Change(notes=(f"it cannot be snapshotted, so there is none: {'; '.join(reasons)}",), facts={**facts, "snapshot": ""})
    elif reasons:
        raise Refused(f"cannot snapshot {now.name}", why="; ".join(reasons), fix="Leave it out, back it up instead, or set on_unsupported=continue.")
    taken = [] if now.find(name) else [Take(now, name, marked(request.description, _series(request), _end(request, now)), request.timeout)]
    old = outdated(now, request.prefix.prefix, request.keep, request.max_age, coming=len(taken)) if request.prefix else []
    if taken:
        _guard(now, f"cannot snapshot {now.name}")
        if crowded:
            why = f"{', '.join(crowded)}, and max_storage_used is {request.max_storage_used:g} %"
            raise Refused(f"will not snapshot {now.name}", why=why, fix="Make room there; a full storage stops all its guests.")
    return _change(
        now,
        {**dict.fromkeys((step.name for step in taken), "present"), **dict.fromkeys((snapshot.name for snapshot in old), "absent")},
        steps=(*taken, *(Remove(now, snapshot.name, request.timeout) for snapshot in old)),
        undo=dict(name=name, state="absent") if taken else {},
        facts=facts,
    )


def _series(request: Request) -> str:
    return request.prefix.prefix if request.prefix else ""


def _end(request: Request, now: History) -> float | None:
    return None if request.expires is None else now.seen + request.expires


def _clear(request: Request, now: History) -> Change:
    if request.name:
        gone = [snapshot for snapshot in now.snapshots if snapshot.name == request.name]
    else:
        prefix = request.prefix.prefix if request.prefix else None
        old = outdated(now, prefix, request.keep, request.max_age) if prefix is not None else []
        gone = [snapshot for snapshot in now.snapshots if snapshot in old or snapshot in expired(now, prefix)]
    if gone:
        _guard(now, f"cannot remove snapshots of {now.name}")
    steps = tuple(Remove(now, snapshot.name, request.timeout) for snapshot in gone)
    facts = dict(node=now.guest.node.name, snapshot=request.name or "", data_loss=None)
    return _change(now, dict.fromkeys((snapshot.name for snapshot in gone), "absent"), steps=steps, undo={}, facts=facts)


def _change(now: History, after: dict[str, str], steps: tuple[Step, ...], undo: dict[str, t.Any], facts: dict[str, t.Any]) -> Change:
    before = {name: "absent" if state == "present" else "present" for name, state in after.items()}
    return Change(before, after, steps=steps, undo=undo, reversibility="none" if "absent" in after.values() else "exact", facts=facts)


def _back(request: Request, now: History) -> Change:
    wanted = complete(now, str(request.name), f"cannot take {now.name} back to {request.name}")
    _guard(now, f"cannot take {now.name} back to {wanted.name}", "VM.Snapshot.Rollback")
    if now.ha:
        why = "the cluster's HA manager runs it, and would start it in the middle"
        raise Refused(
            f"will not take {now.name} back to {wanted.name}", why=why, fix=f"Take it from the manager first: ha-manager set ct:{now.key} --state ignored."
        )
    guard_rollback(now, wanted, request.allow_data_loss, request.max_data_loss)
    start = now.guest.running if request.start is None else request.start
    return Change(
        before=dict(last_rollback=now.rolled_back),
        after=dict(last_rollback=f"to {wanted.name}"),
        steps=(RollBack(now, wanted, start, request.timeout),),
        reversibility="none",
        notes=config_changes(now),
        facts=dict(node=now.guest.node.name, snapshot=wanted.name, data_loss=max(0, int(now.seen - wanted.taken))),
        action=True,
    )


def _guard(now: History, what: str, other: str = "") -> None:
    if other not in now.guest.privileges:
        need(now.guest, ["VM.Snapshot"], what)
    if now.guest.lock:
        raise Conflict(what, why=f"CT is locked ({now.guest.lock})", fix=unlock(now.key, now.guest.lock))
    if now.guest.template:
        raise Refused(what, why="it is a template", fix="Name a container.")


PLANS: t.Mapping[str, t.Callable[[Request, History], Change]] = {"present": _make, "absent": _clear, "rolled_back": _back}
MODULE = Module(Request, connect, observe, plan, target="vmid")
ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        **WAIT,
        **TARGETS,
        state=dict(type="str", choices=["present", "absent", "rolled_back"], default="present"),
        name=dict(type="str", aliases=["snapname", "snapshot"]),
        prefix=dict(type="str"),
        description=dict(type="str"),
        keep=dict(type="int"),
        max_age=dict(type="str"),
        expires=dict(type="str"),
        on_unsupported=dict(type="str", choices=["fail", "continue"], default="fail"),
        max_storage_used=dict(type="float", default=90.0),
        allow_data_loss=dict(type="bool", default=False),
        max_data_loss=dict(type="str"),
        start=dict(type="bool"),
        timeout=dict(type="float", default=300),
        **change_options(parallel=2),
    ),
    required_if=[("state", "present", ["name", "prefix"], True), ("state", "rolled_back", ["name"])],
    mutually_exclusive=[("name", "prefix")],
    **CREDENTIALS,
)


def main() -> None:
    run(MODULE, ARGUMENTS)


if __name__ == "__main__":
    main()
