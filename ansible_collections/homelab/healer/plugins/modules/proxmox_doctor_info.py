#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: proxmox_doctor_info
version_added: 0.2.0
short_description: What this collection could heal on a Proxmox VE cluster, and what it could not and why
description:
  - Tells, without changing anything, whether the token has the rights that the collection needs, and how to grant those that it lacks.
  - Tells of each container whether it can be snapshotted, what locks it, what was left behind, how old its last backup is, and at which addresses it
    can be reached. Tells of each storage how full it is, and of each remedy for which containers it could not help.
  - What the token may not see is said to be so; the module fails only where the cluster cannot be reached or does not know the token.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.proxmox
options:
  vmid:
    description:
      - The containers to look at, by their numbers. Without it all that the token may see, templates left out.
      - One that is not there is told as a finding.
    type: list
    elements: int
    aliases: [lxc_id]
notes:
  - The token needs C(VM.Audit VM.Config.CPU VM.Config.Memory VM.PowerMgmt VM.Snapshot VM.Snapshot.Rollback) on C(/vms), C(Sys.Audit) on C(/nodes) and
    C(Datastore.Audit) on C(/storage) for all that the collection can do, and so does its user, if it has privilege separation.
  - Whether it has privilege separation is told only to those who may see its user's tokens, which a token with these rights may not.
  - Proxmox VE tells nobody what he may not see, so a container without C(VM.Audit) is named only if it is asked for or has a rule of its own.
  - A backup is looked for on the storages of the container's node and on shared ones. Proxmox VE shows it only to who has C(Datastore.AllocateSpace) on the
    storage and C(VM.Backup) on the container, or C(Datastore.Allocate) on the storage. All of these let a token write there, so they are not asked for;
    without them it says that it cannot tell.
  - Virtual machines are counted, and not changed by this collection.
seealso:
  - module: homelab.healer.lxc_info
  - module: homelab.healer.docker_usage_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: See what could be healed here
  homelab.healer.proxmox_doctor_info:
  register: doctor

- name: Stop where the token lacks something
  ansible.builtin.assert:
    that: doctor.token.privileges | rejectattr('has') | length == 0
    fail_msg: "{{ doctor.token.privileges | rejectattr('has') | map(attribute='grant') | flatten | join('\n') }}"

- name: Could the database be snapshotted?
  homelab.healer.proxmox_doctor_info:
    vmid: 200
"""

RETURN = r"""
findings:
  description: What a person reads first, the worst first.
  returned: success
  type: list
  elements: dict
  contains:
    severity:
      description: V(problem) if something cannot be healed, V(warning) if something is at risk, V(note) if it is good to know.
      type: str
    what:
      description: What was found.
      type: str
    why:
      description: Why, or what follows from it.
      type: str
    fix:
      description: What to do about it.
      type: str
release:
  description: The release of Proxmox VE, such as V(9.2).
  returned: success
  type: str
version:
  description: Its version, such as V(9.2.11).
  returned: success
  type: str
nodes:
  description: The nodes of the cluster.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name.
      type: str
    status:
      description: V(online), V(offline) or V(unknown).
      type: str
    cpus:
      description: How many CPUs it has, V(null) where the token may not see it.
      type: int
    memory:
      description: Its memory in MiB, V(null) where the token may not see it.
      type: int
    cgroup_version:
      description: V(1), V(2), or empty where it is not known.
      type: str
    lxc:
      description: How many containers of it can be seen.
      type: int
    qemu:
      description: How many virtual machines of it can be seen.
      type: int
    templates:
      description: How many templates of either can be seen.
      type: int
guests:
  description: How many guests can be seen.
  returned: success
  type: dict
  contains:
    lxc:
      description: Containers.
      type: int
    qemu:
      description: Virtual machines.
      type: int
    templates:
      description: Templates of either.
      type: int
    whole:
      description: Whether that is all of them.
      type: bool
token:
  description: Who speaks to the cluster, and what it lets him do.
  returned: success
  type: dict
  contains:
    name:
      description: The full name of the token, or the user where a password is used.
      type: str
    separated:
      description: Whether the token has privilege separation, V(null) where that cannot be known, or it is no token.
      type: bool
    held:
      description: The privileges that are in effect, a list for each path.
      type: dict
    privileges:
      description: The privileges that the collection needs.
      type: list
      elements: dict
      contains:
        privilege:
          description: The privilege.
          type: str
        path:
          description: On which path the documentation grants it.
          type: str
        has:
          description: Whether the token has it for all that can be seen.
          type: bool
        missing_for:
          description: The containers, nodes or storages for which it is missing, as far as they are known.
          type: list
          elements: str
        grant:
          description: The commands that grant it, to be run on a node. Empty where nothing is missing.
          type: list
          elements: str
    too_much:
      description: Privileges that the collection never needs and that do harm in other hands, each with the paths on which the token has it.
      type: dict
storages:
  description: The storages that can be seen, a local one once for each node.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name.
      type: str
    nodes:
      description: The nodes that have it.
      type: list
      elements: str
    shared:
      description: Whether it is the same on all these nodes.
      type: bool
    status:
      description: V(available) or V(unknown).
      type: str
    type:
      description: Its type, such as V(zfspool).
      type: str
    content:
      description: What it may hold, such as V(rootdir) or V(backup).
      type: list
      elements: str
    used:
      description: How full it is, in per cent, V(null) where it is not there.
      type: float
    full:
      description: Whether it is full, from 90 % on.
      type: bool
    snapshots:
      description: Whether it can snapshot containers, V(null) for a type of storage that is not known to this collection.
      type: bool
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
    lock:
      description: What locks it, such as V(backup), or empty.
      type: str
    template:
      description: Whether it is a template.
      type: bool
    tags:
      description: Its tags.
      type: list
      elements: str
    addresses:
      description: The addresses at which others can reach it, empty when it is stopped, V(null) where its node does not tell.
      type: list
      elements: str
    no_snapshots:
      description: Why it cannot be snapshotted; empty where it can.
      type: list
      elements: str
    snapshots:
      description: The names of its snapshots, the oldest first.
      type: list
      elements: str
    expired:
      description: Those that this collection made and nobody needs any more.
      type: list
      elements: str
    incomplete:
      description: Those that are being made or removed, or failed half-way.
      type: list
      elements: str
    backup_age:
      description: How many seconds ago the last backup that can be seen was made, V(null) where there is none.
      type: int
    backup_unseen:
      description: Why there may be a later one that cannot be seen; empty where there is none.
      type: str
remedies:
  description: What each remedy could do here, with its options left as they are.
  returned: success
  type: list
  elements: dict
  contains:
    remedy:
      description: The role of this collection.
      type: str
    can:
      description: Whether it could help V(all), V(some) or V(none) of the containers.
      type: str
    why:
      description: What is in its way.
      type: list
      elements: dict
      contains:
        container:
          description: The container, empty where none can be seen.
          type: str
        why:
          description: The reasons.
          type: list
          elements: str
libraries:
  description: The versions of V(python), V(ansible_core), V(proxmoxer), V(requests) and V(docker) where the module runs, V(null) for what is not there.
  returned: success
  type: dict
"""

import platform
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distributions

from ansible.module_utils.ansible_release import __version__ as ansible_core

from ansible_collections.homelab.healer.plugins.module_utils._doctor import Sight, Speaker, addresses, chosen, examine
from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError, TimedOut, Unreachable
from ansible_collections.homelab.healer.plugins.module_utils._proxmox import CREDENTIALS, OPTIONS, READS_AT_ONCE, Cluster, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_info
from ansible_collections.homelab.healer.plugins.module_utils._snapshots import History

LIBRARIES = ("proxmoxer", "requests", "docker")


@dataclass(frozen=True)
class Request:
    """Which containers to look at."""

    vmid: tuple[int, ...] | None


def report(client: Cluster, request: Request) -> dict[str, t.Any]:
    """Read all that the token may see, and tell what follows."""
    known = client.resources()
    read = [_histories(client, vmids) for vmids in chosen(known, request.vmid).values()]
    histories = sorted((history for found, _errors in read for history in found), key=lambda history: history.key)
    with ThreadPoolExecutor(READS_AT_ONCE) as workers:
        backups = list(workers.map(lambda history: client.last_backup(history.guest, known), histories))
        found = list(workers.map(lambda history: addresses(client.interfaces(history.guest)), histories))
    keys = [history.key for history in histories]
    return examine(
        Sight(
            version=client.get("version", "cannot read the cluster's version"),
            speaker=Speaker(client.user, client.token, client.separated()),
            known=known,
            rules=client.rules(),
            roles={role["roleid"]: set(str(role.get("privs") or "").split(",")) for role in client.get("access/roles", "cannot list the roles")},
            asked=request.vmid,
            histories=histories,
            unread=[error for _found, errors in read for error in errors],
            backups={key: taken for key, (taken, _unseen) in zip(keys, backups)},
            backups_unseen={key: "; ".join(unseen) for key, (_taken, unseen) in zip(keys, backups)},
            addresses=dict(zip(keys, found)),
            libraries=_libraries(),
        )
    )


def _histories(cluster: Cluster, vmids: t.Sequence[int]) -> tuple[list[History], list[HealerError]]:
    """Containers of one node with their snapshots; one that cannot be read does not hide the others."""
    try:
        return cluster.histories(vmids, making=True), []
    except HealerError as error:
        if len(vmids) == 1 or isinstance(error, (Unreachable, TimedOut)):  # a node that does not answer is not asked again and again
            return [], [error]
    alone = [_histories(cluster, [vmid]) for vmid in vmids]
    return [history for found, _errors in alone for history in found], [error for _found, errors in alone for error in errors]


def _libraries() -> dict[str, str | None]:
    there = {name: next((found.version for found in distributions(name=name)), None) for name in LIBRARIES}
    return dict(python=platform.python_version(), ansible_core=ansible_core, **there)


ARGUMENTS = dict(argument_spec=dict(OPTIONS, vmid=dict(type="list", elements="int", aliases=["lxc_id"])), **CREDENTIALS)


def main() -> None:
    run_info(Request, connect, report, ARGUMENTS)


if __name__ == "__main__":
    main()
