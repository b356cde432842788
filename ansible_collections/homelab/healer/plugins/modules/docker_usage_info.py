#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_usage_info
version_added: 0.1.0
short_description: Show what Docker containers use, and what limits them
description:
  - Measures the CPU rate, throttling, memory, out-of-memory kills and processes of containers, and shows their limits as configured and as the
    kernel keeps them.
  - Changes nothing, and starts nothing in a container.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.docker
options:
  containers:
    description:
      - The containers, each by its name or by at least 12 characters of its id.
      - If neither this nor O(labels) is given, all running containers are shown.
  sample:
    description:
      - Over how many seconds the CPU rate is measured. V(0) leaves it out, and answers at once.
      - Where the module does not run on the engine's host, an engine older than 29 answers for its statistics only about once a second, and the
        time grows accordingly.
    type: float
    default: 1.0
seealso:
  - module: homelab.healer.docker_limits
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Find the container that uses most CPU
  homelab.healer.docker_usage_info:
    sample: 2
  register: usage

- name: Show it
  ansible.builtin.debug:
    msg: "{{ usage.containers[0].name }} uses {{ usage.containers[0].cpu_rate }} of {{ usage.host.cpus }} CPUs"

- name: See whether a Compose project's containers are short of memory
  homelab.healer.docker_usage_info:
    labels:
      - com.docker.compose.project=media
    sample: 0
"""

RETURN = r"""
containers:
  description:
    - The containers, the one with the highest CPU rate first.
    - A figure that has no source here is V(none), as all figures of a container that does not run are.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The full id.
      type: str
    name:
      description: The name, without the slash that the engine puts before it.
      type: str
    hostname:
      description: What it calls itself, which is the host's name where it shares the host's network. V(null) where the engine does not tell.
      type: str
    labels:
      description:
        - Its labels, those included that Compose and the image put on it.
        - The value of one whose name speaks of a secret, such as a token, a password or a proxy's users, is not told.
      type: dict
    image:
      description: The image's name as it was given when the container was made.
      type: str
    project:
      description: The Compose project that it belongs to.
      type: str
    service:
      description: The Compose service that it belongs to.
      type: str
    status:
      description: The engine's word for its state, such as V(running), V(paused) or V(exited).
      type: str
    health:
      description: V(healthy), V(unhealthy), V(starting), or V(none) for a container without a health check.
      type: str
    restart_count:
      description: How often the engine restarted it by its restart policy.
      type: int
    started_at:
      description: When it was started last, in UTC.
      type: str
    oom_killed:
      description: Whether the engine says that it was ended for want of memory.
      type: bool
    cpu_rate:
      description: CPUs used during O(sample), V(1.5) being one and a half.
      type: float
    throttled:
      description: The share of the scheduler's periods during O(sample) in which the CPU limit held it back, from V(0) to V(1).
      type: float
    memory_used:
      description: Bytes of memory without the page cache. Files on a tmpfs count, as they cannot be dropped.
      type: int
    memory_cache:
      description: Bytes of page cache, which the kernel can drop.
      type: int
    limit_hits:
      description: How often its memory ran into the limit, since it was started.
      type: int
    oom_kills:
      description: How many of its processes were killed for want of memory, since it was started. Known only on the engine's host.
      type: int
    pids:
      description: Processes and threads.
      type: int
    limits:
      description: The configured limits, by the options' names of M(homelab.healer.docker_limits); memory in bytes, V(default) for one that is not set.
      type: dict
    live:
      description: Those limits that a witness other than the configuration saw.
      type: dict
    witness:
      description: V(cgroup) when the figures are from the kernel's own files, V(stats) when they are from the engine's statistics.
      type: str
host:
  description: The engine's host.
  returned: success
  type: dict
  contains:
    cpus:
      description: How many CPUs it has.
      type: int
    memory:
      description: Its memory in bytes.
      type: int
    cgroup_version:
      description: V(1) or V(2).
      type: str
    swap_limit:
      description: Whether its kernel can limit swap.
      type: bool
    engine:
      description: The engine's version.
      type: str
"""

import re
import typing as t
from dataclasses import asdict, dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._containers import Container, rates
from ansible_collections.homelab.healer.plugins.module_utils._docker import ONE_SELECTOR, OPTIONS, SELECTORS, Engine, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_info
from ansible_collections.homelab.healer.plugins.module_utils._sizes import at_most_a_day

SECRET = re.compile("token|passw|pwd|secret|key|credential|auth(?!or)|users", re.IGNORECASE)
"""Names of labels whose values are told to nobody: whatever a module answers is printed somewhere."""


@dataclass(frozen=True)
class Request:
    """Which containers to look at, and for how many seconds."""

    containers: tuple[str, ...] | None
    labels: tuple[str, ...] | None
    sample: float = field(metadata={"parse": at_most_a_day})


def report(client: Engine, request: Request) -> dict[str, t.Any]:
    """Measure, and tell the busiest first. What is told of a container is how it is after the measurement."""
    first = client.select(request.containers, request.labels)
    now = client.again(first, request.sample) if request.sample else first
    if request.containers and len(now) < len(first):
        client.select(request.containers, None)  # says which of them is gone
    before = {container.key: container for container in first}
    told = [_told(before[container.key], container) for container in now]
    return dict(containers=sorted(told, key=lambda facts: -1 if facts["cpu_rate"] is None else facts["cpu_rate"], reverse=True), host=asdict(client.host))


def _told(before: Container, now: Container) -> dict[str, t.Any]:
    state = now.details["State"]
    return dict(
        id=now.key,
        name=now.name,
        hostname=now.details["Config"].get("Hostname") or None,
        labels={name: None if SECRET.search(name) else value for name, value in now.labels.items()},
        image=now.details["Config"]["Image"],
        **{name: now.labels.get(f"com.docker.compose.{name}") for name in ("project", "service")},
        status=now.status,
        health=(state.get("Health") or {}).get("Status", "none"),
        restart_count=now.details["RestartCount"],
        started_at=state["StartedAt"],
        oom_killed=state["OOMKilled"],
        **rates(before.reading, now.reading),
        limits=now.limits,
        live=now.live,
        **{figure: getattr(now.reading, figure, None) for figure in ("memory_used", "memory_cache", "limit_hits", "oom_kills", "pids", "witness")},
    )


ARGUMENTS = dict(argument_spec=dict(OPTIONS, **SELECTORS, sample=dict(type="float", default=1.0)), mutually_exclusive=ONE_SELECTOR)


def main() -> None:
    run_info(Request, connect, report, ARGUMENTS)


if __name__ == "__main__":
    main()
