#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_info
version_added: 0.1.0
short_description: What Proxmox LXC containers may use, use, and should have
description:
  - Tells of each container its configuration, what is in effect and what waits for a restart, its usage, and where the release has it its pressure.
  - Measures, if asked, how fast the memory in use grows, tells its snapshots, and recommends a size from its history.
  - Tells of each node with a container what it has and what its running guests may use together.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.proxmox
options:
  vmid:
    description: The containers, by their numbers. Without it all that the token may see, templates left out.
    type: list
    elements: int
    aliases: [lxc_id]
  gather:
    description:
      - What to tell beyond configuration and usage.
      - V(snapshots) is the list of them, and whether one can be made. V(recommendation) is a size worth setting, from the history of a week.
        V(backup) is whether one runs, and when the last was made.
    type: list
    elements: str
    choices: [snapshots, recommendation, backup]
  sample:
    description: Over how many seconds to measure the growth of the memory in use. With V(0) nothing is measured.
    type: float
    default: 0.0
notes:
  - The token needs C(VM.Audit) on C(/vms/<vmid>), C(Sys.Audit) on C(/nodes/<node>) for the node's memory, and C(Datastore.Audit) on
    C(/storage/<storage>) to say why a container cannot be snapshotted. What it may not see is V(null).
  - The pool of a container that is in one needs C(Pool.Audit) on C(/pool/<pool>). That a container is in none is also known without it, unless the container
    has rules of its own, as on C(/vms/<vmid>).
  - A backup that runs is seen by the task that makes it, which needs C(Sys.Audit) on C(/nodes/<node>), and by the container's lock, which does not. A task
    for several guests does not say which ones. Its log does, which is read, except for the members of a pool, if the container's is not known. A container
    counts from the start of such a task until its own backup is over.
  - Backups that were made are listed only for a token with C(Datastore.AllocateSpace) on C(/storage/<storage>) and C(VM.Backup) on C(/vms/<vmid>), or
    C(Datastore.Allocate) on the former. Any of these lets it write there, so give them only if the age of backups shall be known.
  - Memory in use is Proxmox VE's figure. On cgroup v2 it leaves out the page cache, and with it shared memory, such as a database's buffers.
  - CPU in use is the average over the ten seconds of the node's last measurement.
  - The recommendation follows Kubernetes' Vertical Pod Autoscaler. The 90th percentile of the daily peaks of 8 days, younger ones weighing more
    (a half-life of 24 hours), and 15 % on top; where the limit cut a peak off, the peak and at least 100 MiB or a fifth more. Without enough of a
    history, or with one that is missing, zero or cut off, nothing is recommended that would take memory away, and it says why.
seealso:
  - module: homelab.healer.lxc_resources
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: See how all containers are
  homelab.healer.lxc_info:
  register: containers

- name: What should the database have, and does its memory grow?
  homelab.healer.lxc_info:
    vmid: 200
    gather: [recommendation, snapshots, backup]
    sample: 5
"""

RETURN = r"""
containers:
  description: The containers, by their numbers.
  returned: success
  type: list
  elements: dict
  contains:
    vmid:
      description: The number.
      type: int
    name:
      description: The host name.
      type: str
    node:
      description: The node that has it.
      type: str
    status:
      description: V(running), V(stopped) or V(unknown).
      type: str
    pid:
      description: Its first process on the node; another one after a restart. V(null) when it is stopped.
      type: int
    uptime:
      description: For how many seconds it has been running.
      type: int
    lock:
      description: What locks it, such as V(backup), or empty.
      type: str
    tags:
      description: Its tags.
      type: list
      elements: str
    pool:
      description: The pool that it is in, empty for none, V(null) if that cannot be known.
      type: str
    limits:
      description: What it may use, in effect; memory and swap in MiB, V(default) for what is not set.
      type: dict
      sample: {"cores": 2, "cpulimit": "default", "cpuunits": "default", "memory": 2048, "swap": 512}
    pending:
      description: What waits for its next start, V(null) for what will be gone then.
      type: dict
    raw:
      description: Raw settings of its configuration, which win over the rest when it starts.
      type: list
      elements: str
    cpus:
      description: How many CPUs it may use together, by its cores and its limit.
      type: float
    cpu_used:
      description: How many it used, V(null) where the node has not measured it, as when its statistics hang.
      type: float
    cpu_share:
      description: The part of what it may use, from 0 to 1.
      type: float
    memory_used:
      description: Memory in use, in MiB.
      type: int
    memory_share:
      description: The part of its limit, from 0 to 1.
      type: float
    memory_growth:
      description: By how many MiB a minute the memory in use grew over O(sample), V(null) if not measured.
      type: float
    memory_full_in:
      description: In how many seconds it reaches its limit at that rate, at most a week, which also stands for never; V(null) if not measured.
      type: int
    swap_used:
      description: Swap in use, in MiB.
      type: int
    disk_used:
      description: Its root volume's use, in MiB; 0 when it is stopped.
      type: int
    disk:
      description: Its root volume's size, in MiB.
      type: int
    pressure:
      description: >-
        The part of the last ten seconds, in per cent, in which some or all of its processes waited, as V(memory_some), V(memory_full), V(cpu_some),
        V(cpu_full), V(io_some) and V(io_full). V(null) where the node does not tell it (before Proxmox VE 9, or with cgroup v1).
      type: dict
    snapshots:
      description: Its snapshots, the oldest first, if asked for.
      type: list
      elements: dict
      contains:
        name:
          description: The name.
          type: str
        taken:
          description: When, in seconds since 1970 by the node's clock.
          type: int
        own:
          description: Whether this collection made it.
          type: bool
        incomplete:
          description: What it is in the midst of or failed at, or empty.
          type: str
        description:
          description: What it is for.
          type: str
    no_snapshots:
      description: Why it cannot be snapshotted; empty where it can. If asked for.
      type: list
      elements: str
    backup:
      description: Its backups, if asked for.
      type: dict
      contains:
        running:
          description: >-
            Whether it is being backed up, is locked as by a backup, or will be backed up by a task that runs. V(null) if that cannot be known.
          type: bool
        last:
          description: When the last backup that can be seen was begun, in seconds since 1970. V(null) where none can be seen.
          type: int
        unseen:
          description: Why a backup may run, or there may be a later one, that cannot be seen; empty where neither is.
          type: str
    recommendation:
      description: A size worth setting, if asked for.
      type: dict
      contains:
        memory:
          description: The size in MiB, V(null) where none can be recommended.
          type: int
        direction:
          description: V(grow), V(shrink), V(keep) or V(none).
          type: str
        confidence:
          description: How much history it rests on, from 0 to 1.
          type: float
        lower:
          description: Less than that is too little, in MiB.
          type: int
        upper:
          description: More than that is too much, in MiB.
          type: int
        peaks:
          description: The peak of each day.
          type: list
          elements: dict
        why:
          description: Why, as a sentence.
          type: str
nodes:
  description: The nodes that have these containers. V(null) is what the token may not see.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name.
      type: str
    cpus:
      description: How many CPUs it has.
      type: int
    memory:
      description: Its memory, in MiB.
      type: int
    available:
      description: What it could give away now, in MiB.
      type: int
    committed:
      description: The sum of the memory limits of its running guests, QEMU included, in MiB.
      type: int
    whole:
      description: Whether the token sees all guests. If not, some may be missing from the sum.
      type: bool
    cgroup_version:
      description: V(1) or V(2), or empty where it is not told.
      type: str
"""

import time
import typing as t
from dataclasses import asdict, dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._guests import Guest
from ansible_collections.homelab.healer.plugins.module_utils._proxmox import CREDENTIALS, OPTIONS, Cluster, connect
from ansible_collections.homelab.healer.plugins.module_utils._rightsize import recommend
from ansible_collections.homelab.healer.plugins.module_utils._run import run_info
from ansible_collections.homelab.healer.plugins.module_utils._sizes import at_most_a_day
from ansible_collections.homelab.healer.plugins.module_utils._usage import growth, listed_snapshots, usage


@dataclass(frozen=True)
class Request:
    """Which containers to look at, what to gather, and for how many seconds to measure."""

    vmid: tuple[int, ...] | None
    gather: tuple[str, ...] | None
    sample: float = field(metadata={"parse": at_most_a_day})


def report(client: Cluster, request: Request) -> dict[str, t.Any]:
    """Look, measure, and look again. What is told of a container is how it is after the measurement."""
    wanted = set(request.gather or ())
    known = client.resources()
    guests = client.guests(request.vmid, known=known)
    first, began = client.statuses(guests), time.monotonic()
    time.sleep(request.sample)
    last, seconds = (client.statuses(guests) if request.sample else first), time.monotonic() - began
    listed = {int(entry["vmid"]): entry for entry in (client.resources() if request.sample else known) if entry["type"] == "lxc"}
    told = [{**usage(guest, last[guest.key], listed.get(guest.key, {})), "pool": client.pool(guest, known)} for guest in guests]
    for guest, facts in zip(guests, told):
        facts.update(growth(first[guest.key], last[guest.key], seconds if request.sample else 0))
        if "recommendation" in wanted:
            facts["recommendation"] = _recommended(client, guest, facts)
    if "snapshots" in wanted:
        histories = {history.key: history for history in client.histories([guest.key for guest in guests], making=True)}
        told = [{**facts, **listed_snapshots(histories[facts["vmid"]])} for facts in told]
    if "backup" in wanted:
        backups = client.backups(guests, known)
        told = [{**facts, "backup": backups[facts["vmid"]]} for facts in told]
    nodes = {guest.node.name: asdict(guest.node) for guest in guests}
    return dict(containers=told, nodes=[nodes[name] for name in sorted(nodes)])


def _recommended(client: Cluster, guest: Guest, facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    limit, pressure = int(guest.limits["memory"]), (facts["pressure"] or {}).get("memory_some")
    highest = guest.node.memory
    return recommend(client.series(guest), now=client.now(), limit=limit, used=facts["memory_used"], pressure=pressure, highest=highest).as_dict()


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        vmid=dict(type="list", elements="int", aliases=["lxc_id"]),
        gather=dict(type="list", elements="str", choices=["snapshots", "recommendation", "backup"]),
        sample=dict(type="float", default=0.0),
    ),
    **CREDENTIALS,
)


def main() -> None:
    run_info(Request, connect, report, ARGUMENTS)


if __name__ == "__main__":
    main()
