#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_resources
version_added: 0.1.0
short_description: Change the CPU, memory and swap of Proxmox LXC containers while they run
description:
  - Sets cores, CPU limit and weight, memory and swap of containers, without restarting any of them. Only what differs is sent, and only if the
    configuration is still as it was read.
  - Proxmox VE takes any number, also more than a node has. This module makes the sum first, for all containers of the task together, and refuses
    before anything is touched where a node has no room.
  - A container is found on whichever node it is.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.change
  - homelab.healer.proxmox
  - homelab.healer.proxmox.wait
attributes:
  check_mode:
    details: The cluster is only read. Missing privileges, locks and what a node has no room for are told in check mode too.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
    details: With relative values each run is a new change.
options:
  vmid:
    description: The containers, by their numbers.
    type: list
    elements: int
    required: true
    aliases: [lxc_id]
  node:
    description: The node on which they must be. Without it they are found wherever they are.
    type: str
  cores:
    description:
      - How many CPUs it sees, from V(1). V(+1) and the like are relative to the present number.
      - V(default) or V(all) gives it all of its node's.
      - The node gives a running container its cores within about ten seconds, and its API cannot show when.
    type: str
    aliases: [cpu]
  cpulimit:
    description:
      - How many CPUs its processes may use together, such as V(1.5); at least V(0.01).
      - V(+0.5), V(-25%) and the like are relative to the present limit. Quote a value with a plus sign and no unit, as YAML drops the sign.
      - V(default), V(unlimited) or V(0) lifts the limit, by deleting the key. A limit of 0 itself is refused by kernels while the container runs.
    type: str
  cpuunits:
    description:
      - Its weight when containers compete for CPUs, from V(1) to V(10000) on nodes with cgroup v2, V(2) to V(500000) on those with v1.
      - V(default) is the weight of a container without one, 100 on cgroup v2 and 1024 on v1.
    type: str
  memory:
    description:
      - How much memory it may use, in MiB or as V(2GiB); units are binary. At least V(16).
      - V(+25%), V(-512m) and the like are relative to the present limit.
    type: str
  swap:
    description:
      - How much swap it may use beside the memory, written as O(memory) is; V(0) is none.
      - V(default) deletes the key, which means none for a running container, although Proxmox VE gives new ones 512 MiB.
    type: str
  memory_max:
    description: More memory than this is refused, and a relative O(memory) ends here.
    type: str
  node_reserve:
    description: Memory that a node must keep for itself, written as O(memory) is.
    type: str
    default: 1GiB
  allow_overcommit:
    description:
      - Whether the running guests of a node may together have limits above what it has, and a container more cores than its node.
      - Also needed to grow a container whose node's memory the token may not see (C(Sys.Audit)).
      - What the node has available now is a bound all the same.
    type: bool
    default: false
  allow_below_usage:
    description:
      - Whether memory may be lowered to less than 1.25 times what the node says is used.
      - Its figure leaves out shared memory, such as a database's buffers, so more may be in use. On cgroup v1 the kernel refuses what it cannot
        reclaim; on v2 it kills processes until the rest fits.
    type: bool
    default: false
  parallel:
    description: How many containers are changed at the same time, each over a connection of its own.
    default: 4
notes:
  - The token needs C(VM.Audit), and C(VM.Config.CPU) for cores, limit and weight, C(VM.Config.Memory) for memory and swap, on C(/vms/<vmid>), and
    C(Sys.Audit) on C(/nodes/<node>) for the node's memory. Guests that it may not see are missing from the sum, which says so.
  - "What the RV(undo) puts back: all of it V(exact), except memory and a CPU limit that the configuration did not name or named as 0, which come back
    as an V(equivalent) value."
  - An undo is a change like any other, so one that lowers memory below what is in use by then is refused unless O(allow_below_usage) is added.
  - A snapshot is no undo of this change; going back to one throws away everything written since.
  - QEMU virtual machines are counted in the sums and never changed.
  - Programs that size themselves when they start (JVM, Node.js, PostgreSQL) do not use more memory before they are restarted.
seealso:
  - module: homelab.healer.lxc_info
  - module: homelab.healer.lxc_snapshot
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Give a database 4 GiB while it runs
  homelab.healer.lxc_resources:
    vmid: 200
    memory: 4096
  register: resources

- name: Put back what was there before
  homelab.healer.lxc_resources: "{{ item | combine({'allow_below_usage': true}) }}"
  loop: "{{ resources.undo }}"

- name: A quarter more for two containers, up to 8 GiB each
  homelab.healer.lxc_resources:
    vmid: [200, 201]
    memory: +25%
    memory_max: 8GiB

- name: See what it would change, with ansible-playbook --check --diff
  homelab.healer.lxc_resources:
    vmid: 201
    cores: 2
    cpulimit: 1.5
    swap: 256m

- name: Lift a CPU limit
  homelab.healer.lxc_resources:
    vmid: 201
    cpulimit: unlimited
"""

RETURN = r"""
before:
  description: >-
    For each container that changes, by its number, the resources that change as they were; memory and swap in MiB, V(default) for one that was not set.
  returned: always
  type: dict
  sample: {"200": {"memory": 2048}}
after:
  description: The same resources as they are then.
  returned: always
  type: dict
  sample: {"200": {"memory": 4096}}
steps:
  description: What was done, or in check mode would be, a line each.
  returned: always
  type: list
  elements: str
  sample: ["change 200 (postgres): memory 2GiB -> 4GiB"]
undo:
  description:
    - Sets of options for this module that put back what was there before, in the order in which to use them; without the connection options.
    - Returned in check mode too, so that it can be written down before the change. After a failure it covers what was changed until then.
  returned: always
  type: list
  elements: dict
  sample: [{"vmid": [200], "memory": 2048}]
reversibility:
  description: How well the undo puts back what was there, for the worst of the changes, V(exact) or V(equivalent).
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
      description: Why, in the node's own words where it gave a reason.
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
      description: Whether the reply to the change was lost, and the container could not be looked at again.
      type: bool
    before:
      description: The resources that change, as they were.
      type: dict
    after:
      description: The same resources as they are then.
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
      description:
        - By what each changed resource is known to hold. V(accepted) means that the node took it and holds nothing back for a restart; its API has
          no better witness. Empty in check mode.
      type: dict
      sample: {"memory": "accepted"}
    applied:
      description: When each changed resource takes effect, V(live) or V(next_start).
      type: dict
      sample: {"memory": "live"}
    node:
      description: The node that has it.
      type: str
    capacity:
      description: The sum that was made for its node, in MiB; V(null) is what the token may not see.
      type: dict
      contains:
        node:
          description: The node.
          type: str
        memory:
          description: Its memory.
          type: int
        available:
          description: What it could give away before the change.
          type: int
        reserve:
          description: What it keeps for itself.
          type: int
        committed:
          description: The sum of the memory limits of its running guests, QEMU included.
          type: int
        delta:
          description: What this task adds for its running containers.
          type: int
        committed_after:
          description: The sum of both.
          type: int
        whole:
          description: Whether the token sees all guests. If not, some may be missing from the sum.
          type: bool
    notes:
      description: What a person should know, such as that a raw setting in the configuration wins when it starts.
      type: list
      elements: str
    error:
      description: What went wrong with this container, as in RV(error), or V(none).
      type: dict
"""

import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils import _guests
from ansible_collections.homelab.healer.plugins.module_utils._change import Change, Step, Values, plan_each
from ansible_collections.homelab.healer.plugins.module_utils._guests import QUANTITIES, Guest
from ansible_collections.homelab.healer.plugins.module_utils._proxmox import CREDENTIALS, OPTIONS, TARGETS, WAIT, Cluster, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, change_options, run
from ansible_collections.homelab.healer.plugins.module_utils._sizes import parse_mebibytes


@dataclass(frozen=True)
class Request:
    """What which containers shall have; a resource is ``None`` (leave it), ``default``, a number, or relative until it is settled."""

    vmid: tuple[int, ...]
    node: str | None
    cores: t.Any = field(metadata={"parse": QUANTITIES["cores"].read})
    cpulimit: t.Any = field(metadata={"parse": QUANTITIES["cpulimit"].read})
    cpuunits: t.Any = field(metadata={"parse": QUANTITIES["cpuunits"].read})
    memory: t.Any = field(metadata={"parse": QUANTITIES["memory"].read})
    swap: t.Any = field(metadata={"parse": QUANTITIES["swap"].read})
    memory_max: int | None = field(metadata={"parse": parse_mebibytes})
    node_reserve: int = field(metadata={"parse": parse_mebibytes})
    allow_overcommit: bool
    allow_below_usage: bool


@dataclass(frozen=True)
class SetResources(Step):
    """Set resources of a container while it runs."""

    guest: Guest
    before: Values
    after: Values

    def __str__(self) -> str:
        return f"change {self.guest.name}: {', '.join(f'{key} {self.before[key]} -> {value}' for key, value in self.after.items())}"

    def apply(self, client: Cluster) -> tuple[str, ...]:
        return client.configure(self.guest, self.after)

    def prove(self, client: Cluster, now: Guest) -> dict[str, str]:
        return dict.fromkeys(self.after, "accepted")


def observe(client: Cluster, request: Request) -> list[Guest]:
    """The containers that the request means, as they are."""
    return client.guests(request.vmid, request.node)


def plan(request: Request, now: t.Sequence[Guest]) -> dict[t.Any, Change]:
    """A change for each container; refuses when a node has no room for all of them together."""
    return _guests.within_capacity(request, now, plan_each(now, lambda guest: plan_one(request, guest)))


def plan_one(request: Request, now: Guest) -> Change:
    """What one container lacks of the request."""
    before, after = _guests.difference(now, _guests.wish(request, now))
    _guests.guard(now, before, after, request)
    steps = tuple(SetResources(now, {key: before[key] for key in part}, part) for part in _guests.parts(before, after))
    facts = dict(node=now.node.name, applied=dict.fromkeys(after, "live" if now.running else "next_start"))
    return Change(before, after, steps, *_guests.way_back(now, before, after, request.node_reserve), notes=_guests.notes(now, after), facts=facts)


MODULE = Module(Request, connect, observe, plan, target="vmid", quantities=QUANTITIES)
ARGUMENTS = dict(
    argument_spec=dict(OPTIONS, **WAIT, **TARGETS, **_guests.OPTIONS, **change_options(parallel=4)),
    **{**CREDENTIALS, "required_one_of": [*CREDENTIALS["required_one_of"], _guests.RESOURCES]},
)


def main() -> None:
    run(MODULE, ARGUMENTS)


if __name__ == "__main__":
    main()
