# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshots of a Proxmox LXC container: their names and marks, which may go, and whether one can be made or gone back to. Pure: no I/O.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import re
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, NotFound, Refused
from ansible_collections.homelab.healer.plugins.module_utils._guests import Guest, resources
from ansible_collections.homelab.healer.plugins.module_utils._sizes import moment, span

NAME = re.compile(r"[a-z][a-z0-9_-]+", re.IGNORECASE)
LONGEST = 40
RESERVED = ("current", "vzdump")
STAMP = "%Y%m%dT%H%M%SZ"
STAMPED = 16
"""Characters of a stamp, in UTC."""
MARK = re.compile(r"\[homelab\.healer prefix=(?P<prefix>[\w-]*)(?: expires=(?P<expires>\d+))?\]")
"""What the description of each snapshot that this collection made ends with: to whom it belongs, and when nobody needs it any more."""
SNAPSHOTS = {
    "zfspool": True,
    "lvmthin": True,
    "rbd": True,
    "btrfs": True,
    "dir": False,
    "nfs": False,
    "cifs": False,
    "cephfs": False,
    "lvm": False,
    "glusterfs": False,
}
"""Which types of storage can snapshot a container's volume."""
NEWEST_ONLY = ("zfspool",)
"""Types of storage that go back to the newest snapshot only; any newer one is in the way."""
VOLUME = re.compile(r"rootfs|mp\d+|dev\d+")


@dataclass(frozen=True)
class Stamped:
    """A prefix, and the name that it makes at one moment."""

    prefix: str
    name: str


def read_name(text: str) -> str:
    """The same name, if Proxmox VE takes it for a snapshot. Raises ``ValueError``."""
    if not NAME.fullmatch(text) or len(text) > LONGEST:
        raise ValueError(f"a snapshot's name begins with a letter, goes on with letters, digits, - and _, and has 2 to {LONGEST} characters")
    if text in RESERVED:
        raise ValueError(f"Proxmox VE keeps that name for itself, as {' and '.join(RESERVED)} are")
    return text


def read_prefix(text: str) -> Stamped:
    """A prefix and its name of this moment. Raises ``ValueError``."""
    if len(text) > LONGEST - STAMPED:
        raise ValueError(f"with a stamp of {STAMPED} characters it would be longer than {LONGEST}; give at most {LONGEST - STAMPED}")
    return Stamped(text, read_name(text + time.strftime(STAMP, time.gmtime())))


@dataclass(frozen=True)
class Snapshot:
    """One snapshot: ``taken`` in seconds by the node's clock, ``incomplete`` what it is in the midst of or failed at, or empty."""

    name: str
    taken: int
    incomplete: str
    description: str = field(compare=False)
    parent: str = field(compare=False)

    @property
    def mark(self) -> re.Match[str] | None:
        """This collection's mark; ``None`` for a snapshot that somebody else made."""
        return MARK.search(self.description)


@dataclass(frozen=True)
class History:
    """A container's snapshots, the oldest first.

    ``rolled_back`` is the last task of this token that went back to one. ``can`` says whether all its volumes can be snapshotted, ``None`` where that
    was not asked; ``storages`` are the cluster's, by name; ``seen`` the moment by which all ages are judged, in seconds;
    ``then`` is the configuration in the snapshot that shall be gone back to, ``ha`` whether the cluster's HA manager runs the container.
    Two are equal when it is the same container with the same snapshots, gone back to the same number of times.
    """

    key: int
    snapshots: tuple[Snapshot, ...]
    rolled_back: str
    guest: Guest = field(compare=False)
    can: bool | None = field(compare=False)
    storages: t.Mapping[str, t.Mapping[str, t.Any]] = field(compare=False)
    seen: float = field(compare=False)
    then: t.Mapping[str, t.Any] = field(compare=False)
    ha: bool = field(compare=False)

    @property
    def name(self) -> str:
        return self.guest.name

    def find(self, name: str) -> Snapshot | None:
        return next((snapshot for snapshot in self.snapshots if snapshot.name == name), None)


def marked(description: str | None, prefix: str, expires: float | None) -> str:
    """A description that ends with this collection's mark; ``expires`` in seconds since 1970."""
    until = f" expires={int(expires)}" if expires is not None else ""
    return "\n".join(part for part in ((description or "").strip(), f"[homelab.healer prefix={prefix}{until}]") if part)


def volumes(config: t.Mapping[str, t.Any]) -> dict[str, str]:
    """The storage of each volume of a configuration, or the host's path of what is mounted into it, which begins with ``/``."""
    found = {key: str(value).split(",", 1)[0] for key, value in config.items() if VOLUME.fullmatch(key)}
    return {key: source if source.startswith("/") else source.partition(":")[0] for key, source in sorted(found.items())}


def obstacles(now: History) -> list[str]:
    """Why this container cannot be snapshotted; nothing where it can."""
    told = []
    if re.search(r"\bfuse=1\b", str(now.guest.config.get("features") or "")):
        told.append("it has the feature fuse, with which freezing it can hang")
    if now.can is False:
        for key, source in volumes(now.guest.config).items():
            kind = now.storages.get(source, {}).get("plugintype")
            if source.startswith("/"):
                told.append(f"{key} is the host's {source}")
            elif kind and not SNAPSHOTS.get(kind, True):
                told.append(f"{key} is on {source}, and storages of type {kind} have no snapshots of containers")
        told = told or ["one of its volumes has no snapshots"]
    return told


def full(now: History, most: float) -> list[str]:
    """Which storages of this container are fuller than ``most`` per cent."""
    told = []
    for source in sorted(set(volumes(now.guest.config).values())):
        facts = now.storages.get(source, {})
        if facts.get("maxdisk") and 100 * facts.get("disk", 0) / facts["maxdisk"] > most:
            told.append(f"{source} is {100 * facts['disk'] / facts['maxdisk']:.0f} % full")
    return told


def outdated(now: History, prefix: str, keep: int | None, max_age: float | None, coming: int = 0) -> list[Snapshot]:
    """This collection's own snapshots of one prefix that are not wanted any more, the oldest first: beyond ``keep``, or older than ``max_age`` seconds.

    The newest is never too old; ``coming`` is how many are made before these go.
    """
    own = [snapshot for snapshot in now.snapshots if snapshot.mark and snapshot.mark["prefix"] == prefix and not snapshot.incomplete]
    beyond = own[: max(0, len(own) + coming - keep)] if keep is not None else []
    old = [snapshot for snapshot in own[: len(own) + min(coming, 1) - 1] if max_age is not None and snapshot.taken < now.seen - max_age]
    return [snapshot for snapshot in own if snapshot in beyond or snapshot in old]


def expired(now: History, prefix: str | None) -> list[Snapshot]:
    """This collection's own snapshots whose time is over, the oldest first; ``prefix`` as well, where one is given."""
    own = [(snapshot, snapshot.mark) for snapshot in now.snapshots if snapshot.mark and not snapshot.incomplete]
    return [snapshot for snapshot, mark in own if mark and mark["expires"] and int(mark["expires"]) < now.seen and prefix in (None, mark["prefix"])]


def complete(now: History, name: str, what: str) -> Snapshot:
    """The snapshot of that name. Raises where there is none, or it is incomplete."""
    found = now.find(name)
    if not found:
        there = ", ".join(snapshot.name for snapshot in now.snapshots) or "none"
        raise NotFound(what, why=f"snapshot '{name}' does not exist; there are: {there}", fix="Name one of these; upper and lower case count.")
    if found.incomplete:
        raise Conflict(
            what,
            why=f"snapshot '{name}' is incomplete (snapstate = {found.incomplete})",
            fix="It is still being made, or failed half-way: wait, or remove it and look at that task's log.",
        )
    return found


def in_the_way(now: History, wanted: Snapshot) -> list[str]:
    """The newer snapshots that keep a storage from going back to this one."""
    kinds = {now.storages.get(source, {}).get("plugintype") for source in volumes(now.guest.config).values()}
    return [snapshot.name for snapshot in now.snapshots if snapshot.taken > wanted.taken] if kinds & set(NEWEST_ONLY) else []


def guard_rollback(now: History, wanted: Snapshot, allow_data_loss: bool, max_data_loss: float | None) -> None:
    """Refuse to go back where a newer snapshot is in the way, or more would be lost than the caller allows."""
    what = f"will not take {now.name} back to {wanted.name}"
    newer = in_the_way(now, wanted)
    if newer:
        raise Refused(what, why=f"its storage goes back to the newest snapshot only, and these are newer: {', '.join(newer)}", fix="Remove them first.")
    lost = f"everything written since {moment(wanted.taken)} would be lost ({span(now.seen - wanted.taken)})"
    if not allow_data_loss:
        raise Refused(what, why=lost, fix="If that is meant, set allow_data_loss=true; max_data_loss bounds how much.")
    if max_data_loss is not None and now.seen - wanted.taken > max_data_loss:
        raise Refused(what, why=f"{lost}, and max_data_loss is {span(max_data_loss)}", fix="Choose a newer snapshot, or raise max_data_loss.")


def config_changes(now: History) -> tuple[str, ...]:
    """What going back also does to a container's configuration, which comes back whole."""
    had, has = resources(now.then), now.guest.limits
    told = [f"{key} goes back from {has[key]} to {value}" for key, value in had.items() if has[key] != value]
    added = sorted(set(volumes(now.guest.config)) - set(volumes(now.then)))
    return (*told, *(f"{key}, which the snapshot does not have, is taken out of the container" for key in added))
