#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_limits
version_added: 0.1.0
short_description: Change the resource limits of Docker containers while they run
description:
  - Sets CPU, memory, swap and process limits of containers, without recreating, restarting, starting or stopping any of them. The one request
    that it writes with is the engine's C(POST /containers/{id}/update).
  - Reads back what the kernel keeps, and says for each value by what it was verified.
  - What the engine would accept and ignore is refused with a clear message instead of being reported as a change.
  - The limits last until the container is recreated, also across its restarts and the engine's. RV(results[].compose) has the lines of a Compose
    file that make them last longer.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.change
  - homelab.healer.docker
attributes:
  check_mode:
    details: The engine is only read. What the engine itself would refuse for its value is refused in check mode too, where that can be known.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
    details: With relative values each run is a new change.
options:
  cpus:
    description:
      - How many CPUs its processes may use together, such as V(1.5). The least is 1 ms of each scheduling period, which is V(0.01) unless the
        container was given a period of its own.
      - V("+0.5"), V(-25%) and the like are relative to the present limit. Quote a value with a plus sign and no unit, as YAML drops the sign.
      - V(default) or V(unlimited) lifts the limit. For a container made with C(docker run --cpus) or Compose's C(cpus) the engine cannot lift
        it, and the limit becomes all of the host's CPUs, which has the same effect.
      - A container that never had such a limit is limited by CPU quota, so that it can be lifted again. Use quota on it from then on, as this
        module does; C(docker update --cpus) on a container whose quota was lifted is forgotten at its next restart.
    type: str
    aliases: [cpu_limit, cpu]
  memory:
    description:
      - How much memory it may use, in bytes or as V(512m), V(2GiB); units are binary. At least V(6m).
      - V(+25%), V(-512m) and the like are relative to the present limit.
      - V(default) or V(unlimited) lifts the limit. The engine keeps a number for it then, of exbibytes, since it takes no other value.
      - If O(memory_swap) is not given, the amount of swap beside the memory stays what it was. A container that had no memory limit gets as much
        swap as memory, as the engine does it for a new one.
    type: str
    aliases: [memory_limit]
  memory_swap:
    description:
      - How much memory and swap it may use together; the same as the memory limit means no swap. Written as O(memory) is.
      - V(default) or V(unlimited) lifts the limit.
    type: str
  memory_reservation:
    description:
      - How much memory the kernel tries to leave it when memory gets short on the host. Written as O(memory) is.
      - It can be changed, but the engine cannot take it away again, so the undo of the first one leaves it out.
    type: str
  cpu_shares:
    description:
      - Its weight when containers compete for CPUs, from V(2) to V(262144). A container without one has 1024 on cgroup v1.
      - V(default) puts that back on cgroup v1. On cgroup v2 the engine cannot put back what a container without a weight has, so there it is refused.
    type: str
  cpuset_cpus:
    description:
      - The CPUs that it may run on, as V(0-2,4).
      - V(default) means all of the host's.
    type: str
  pids_limit:
    description:
      - How many processes and threads it may have.
      - V(default), V(unlimited) or V(-1) lifts the limit.
    type: str
  allow_below_usage:
    description:
      - Whether a memory limit may be lowered to less than 1.1 times what is in use, and the limit of processes below their number.
      - In use is memory without the page cache; files on a tmpfs count. On cgroup v1 the kernel refuses what it cannot reclaim; on v2 it kills.
    type: bool
    default: false
  max_containers:
    description: Refuse, before anything is touched, to change more containers than this.
    type: int
    default: 20
  parallel:
    description:
      - How many containers are changed at the same time. With V(1) all requests go over one connection.
    default: 1
notes:
  - Run it on the engine's host, or on the controller with O(docker_host). Only on the engine's host can the CPU limit be read from the kernel;
    elsewhere it is verified by measuring the container's CPU rate for a second, where it is busy enough to tell.
  - Programs that size themselves when they start (JVM, Node.js, PostgreSQL) do not use a higher memory limit before they are restarted.
  - "What the RV(undo) of each limit puts back, by what it was before the change: a limit that was set comes back V(exact), all of them
    (V(none) if it is one that the engine takes for a new container only, such as more CPUs than the host has left); O(pids_limit) that was not
    set comes back V(exact); O(cpus), O(memory), O(memory_swap), O(cpuset_cpus) and (on cgroup v1) O(cpu_shares) that were not set come back as an
    V(equivalent) value, which limits nothing; O(memory_reservation) and (on cgroup v2) O(cpu_shares) that were not set are V(none), and cannot be
    put back before the container is recreated."
  - An undo is a change like any other, so one that lowers memory below what is in use by then is refused.
  - Containers of Swarm, Kubernetes and Nomad are refused, as their owner makes them anew with its own limits; so are Podman and Windows, whose
    updates are not Docker's.
  - The engine's API gives whoever may use it root on its host. A proxy that allows C(GET /version), C(GET /info), C(GET /containers) and
    C(POST /containers/*/update) is enough for this module.
seealso:
  - module: homelab.healer.docker_usage_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Limit a runaway container while it runs
  homelab.healer.docker_limits:
    container: app
    cpus: 1.5

- name: See what a limit would change, with ansible-playbook --check --diff
  homelab.healer.docker_limits:
    container: app
    memory: 512m
    memory_swap: 512m
  register: limits

- name: Put back what was there before
  homelab.healer.docker_limits: "{{ item }}"
  loop: "{{ limits.undo }}"

- name: Give a database a quarter more memory, and as much swap as it had
  homelab.healer.docker_limits:
    containers: [db]
    memory: +25%

- name: Keep all containers of a Compose project to one CPU each, and to 200 processes
  homelab.healer.docker_limits:
    labels:
      - com.docker.compose.project=media
    cpus: 1
    pids_limit: 200
    max_containers: 30
    parallel: 4

- name: Lift the limits again
  homelab.healer.docker_limits:
    containers: [app, db]
    cpus: unlimited
    memory: unlimited

- name: Limit a container on another host, over TLS
  homelab.healer.docker_limits:
    docker_host: tcp://nas.example.org:2376
    ca_path: /etc/docker/ca.pem
    client_cert: /etc/docker/cert.pem
    client_key: /etc/docker/key.pem
    container: web
    cpus: 0.5
"""

RETURN = r"""
before:
  description: For each container that changes, by its id, the limits that change as they were; memory in bytes, V(default) for one that was not set.
  returned: always
  type: dict
  sample: {"4c01db0b339c": {"cpus": "default"}}
after:
  description: The same limits as they are then.
  returned: always
  type: dict
  sample: {"4c01db0b339c": {"cpus": 1.5}}
steps:
  description: What was done, or in check mode would be, a line each.
  returned: always
  type: list
  elements: str
  sample: ["limit app (4c01db0b339c): cpus default -> 1.5"]
undo:
  description:
    - Sets of options for this module that put back what was there before, in the order in which to use them; without the connection options.
    - Returned in check mode too, so that it can be written down before the change. After a failure it covers what was changed until then.
  returned: always
  type: list
  elements: dict
  sample: [{"containers": ["4c01db0b339c"], "cpus": "default"}]
reversibility:
  description: How well the undo puts back what was there, for the worst of the changes, V(exact), V(equivalent) or V(none).
  returned: always
  type: str
  sample: equivalent
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
      description: Why, in the engine's own words where it gave a reason.
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
      description: The full id.
      type: str
    name:
      description: The name.
      type: str
    changed:
      description: Whether it changed. What cannot be known counts as changed.
      type: bool
    unknown:
      description: Whether the reply to the change was lost, and the container could not be looked at again.
      type: bool
    before:
      description: The limits that change, as they were.
      type: dict
    after:
      description: The same limits as they are then.
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
        - By what each changed limit is known to hold.
        - V(cgroup) is the kernel's own file, V(stats) the engine's statistics, V(rate) the measured CPU rate of a container that was held back,
          V(accepted) the engine's word alone. Empty in check mode.
      type: dict
      sample: {"cpus": "cgroup"}
    notes:
      description: What a person should know, such as that a limit changes nothing on this host.
      type: list
      elements: str
    persistence:
      description: How long the limits last; always V(until_recreate).
      type: str
    compose:
      description: The lines of a Compose file that make the limits asked for last.
      type: str
      sample: |
        services:
          app:
            cpus: 1.5
    error:
      description: What went wrong with this container, as in RV(error), or V(none).
      type: dict
"""

import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._change import Change, Step, Values, at_most, plan_each
from ansible_collections.homelab.healer.plugins.module_utils._containers import (
    LIMIT_OPTIONS,
    LIMITS,
    QUANTITIES,
    READERS,
    Container,
    attainable,
    compose_lines,
    difference,
    guard_usage,
    notes,
    way_back,
)
from ansible_collections.homelab.healer.plugins.module_utils._docker import ONE_SELECTOR, OPTIONS, SELECTORS, Engine, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, change_options, run
from ansible_collections.homelab.healer.plugins.module_utils._sizes import asked


@dataclass(frozen=True)
class Request:
    """What limits which containers shall have; a limit is ``None`` (leave it), ``default``, a number, or relative until it is settled."""

    containers: tuple[str, ...] | None
    labels: tuple[str, ...] | None
    cpus: t.Any = field(metadata={"parse": READERS["cpus"]})
    memory: t.Any = field(metadata={"parse": READERS["memory"]})
    memory_swap: t.Any = field(metadata={"parse": READERS["memory_swap"]})
    memory_reservation: t.Any = field(metadata={"parse": READERS["memory_reservation"]})
    cpu_shares: t.Any = field(metadata={"parse": READERS["cpu_shares"]})
    cpuset_cpus: t.Any = field(metadata={"parse": READERS["cpuset_cpus"]})
    pids_limit: t.Any = field(metadata={"parse": READERS["pids_limit"]})
    allow_below_usage: bool
    max_containers: int


@dataclass(frozen=True)
class SetLimits(Step):
    """Set limits of a container while it runs."""

    container: Container
    before: Values
    after: Values

    def __str__(self) -> str:
        told = ", ".join(f"{limit} {self.before[limit]} -> {value}" for limit, value in self.after.items())
        return f"limit {self.container.name} ({self.container.key[:12]}): {told}"

    def apply(self, client: Engine) -> None:
        client.update(self.container, self.after)

    def prove(self, client: Engine, now: Container) -> dict[str, str]:
        return client.verify(now, self.after)


def observe(client: Engine, request: Request) -> list[Container]:
    """The containers that the request means, as they are."""
    return client.select(request.containers, request.labels)


def plan(request: Request, now: t.Sequence[Container]) -> dict[str, Change]:
    """A change for each container; refuses when too many would change."""
    return at_most("max_containers", request.max_containers, now, plan_each(now, lambda container: plan_one(request, container)))


def plan_one(request: Request, now: Container) -> Change:
    """What one container lacks of the request."""
    wanted = attainable(asked(request, LIMITS, now.key), now)
    before, after = difference(wanted, now)
    if not request.allow_below_usage:
        guard_usage(now, before, after)
    undo, reversibility = way_back(before, now)
    return Change(
        before,
        after,
        steps=(SetLimits(now, before, after),) if after else (),
        undo=undo,
        reversibility=reversibility,
        notes=notes(now, wanted, changing=bool(after)),
        facts=dict(persistence="until_recreate", compose=compose_lines(now, wanted)),
    )


MODULE = Module(Request, connect, observe, plan, target="containers", selectors=("labels",), quantities=QUANTITIES)
GUARDS = dict(allow_below_usage=dict(type="bool", default=False), max_containers=dict(type="int", default=20))
ARGUMENTS = dict(
    argument_spec=dict(OPTIONS, **SELECTORS, **LIMIT_OPTIONS, **GUARDS, **change_options(parallel=1)),
    mutually_exclusive=ONE_SELECTOR,
    required_one_of=[*ONE_SELECTOR, LIMITS],
)


def main() -> None:
    run(MODULE, ARGUMENTS)


if __name__ == "__main__":
    main()
