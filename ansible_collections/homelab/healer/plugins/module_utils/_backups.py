# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backups of a Proxmox LXC container: on which storages they can be seen, whether one runs, and why that may be wrong. Pure: no I/O.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import re
import shlex
import typing as t

from ansible_collections.homelab.healer.plugins.module_utils._guests import Guest, held
from ansible_collections.homelab.healer.plugins.module_utils._snapshots import volumes

Entry = t.Mapping[str, t.Any]
Rules = t.Mapping[str, t.Mapping[str, int]]
LOCK = "backup"
"""What locks a container while it is its turn in a backup."""
KIND = "vzdump"
"""The type of the tasks that back up guests."""
READS_STORAGES = ("Datastore.Audit", "Datastore.AllocateSpace")
"""The privileges of which one lets a token see that a storage is there."""
LISTS_ALL, LISTS, LISTS_OF = "Datastore.Allocate", "Datastore.AllocateSpace", "VM.Backup"
"""What lets a token see the backups on a storage: the first there, or the second there with the third on the container. To see the storage is not enough."""
BEGUN = re.compile(r"Starting Backup of VM (\d+)\b")
OVER = re.compile(r"Finished Backup of VM (\d+)\b|Backup of VM (\d+) failed\b")
COMMAND = re.compile(r"starting new backup job: (vzdump\b.*)")


# The last one


def places(guest: Guest, known: t.Iterable[Entry], rules: Rules) -> tuple[list[str], list[str]]:
    """The storages on which backups of a container can be seen, and why there may be others.

    ``known`` are the cluster's resources, ``rules`` the token's privileges by path. Backups are looked for where the container's node can reach them.
    """
    here = [entry for entry in known if entry["type"] == "storage" and entry["node"] == guest.node.name]
    keeps = [entry for entry in here if "backup" in str(entry.get("content")).split(",")]
    names = sorted(str(entry["storage"]) for entry in keeps if entry["status"] == "available")
    seen = [name for name in names if _lists(guest, held(rules, f"/storage/{name}"))]
    why = [f"storage {entry['storage']} is not there ({entry['status']})" for entry in keeps if entry["status"] != "available"]
    if len(seen) < len(names):
        closed = ", ".join(name for name in names if name not in seen)
        why.append(f"the backups on {closed} are shown only to who has {LISTS} there and {LISTS_OF} on the container, or {LISTS_ALL} there")
    if storages_hidden(rules) or _missed(guest, here):
        why.append("there may be storages that the token may not see")
    return seen, sorted(why)


def _lists(guest: Guest, on_storage: t.AbstractSet[str]) -> bool:
    return LISTS_ALL in on_storage or (LISTS in on_storage and LISTS_OF in guest.privileges)


def storages_hidden(rules: Rules) -> bool:
    """Whether there may be storages that cannot be seen, by the rules alone."""
    paths = ["/storage", *(path for path in rules if path.startswith("/storage/"))]
    return not all(held(rules, path) & set(READS_STORAGES) for path in paths)


def _missed(guest: Guest, here: t.Iterable[Entry]) -> bool:
    """Whether a container has a volume on a storage that cannot be seen."""
    used = {source for source in volumes(guest.config).values() if source and not source.startswith("/")}
    return bool(used - {entry["storage"] for entry in here})


# One that runs


def in_turn(log: t.Sequence[str], vmid: int, pool: str | None) -> bool | None:
    """Whether a task that backs up several guests is at this one or will come to it, by its log; ``None`` where that cannot be told.

    It takes the guests by their numbers. ``pool`` is the container's, empty for none, ``None`` if it is not known.
    """
    over = {int(found[1] or found[2]) for found in map(OVER.search, log) if found}
    begun = {int(found[1]) for found in map(BEGUN.search, log) if found}
    if vmid in over or (vmid not in begun and any(other > vmid for other in begun)):
        return False
    if vmid in begun:
        return True
    command = next((found[1] for found in map(COMMAND.search, log) if found), "")
    return _included(command, vmid, pool)


def _included(command: str, vmid: int, pool: str | None) -> bool | None:
    """Whether a container of this node is among those that a job's command names; ``None`` where it does not tell."""
    try:
        words = shlex.split(command)[1:]
    except ValueError:
        return None
    count = next((at for at, word in enumerate(words) if word.startswith("--")), len(words))
    named, options = words[:count], dict(zip(words[count::2], words[count + 1 :: 2]))
    if named:
        return str(vmid) in named
    if "--pool" in options:
        return None if pool is None else pool == options["--pool"]
    if options.get("--all") == "1" or "--exclude" in options:
        return str(vmid) not in re.split(r"[,; ]+", options.get("--exclude", ""))
    return None
