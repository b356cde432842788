# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told of a Proxmox LXC container's usage, from the answers of its node. Pure: no I/O.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.homelab.healer.plugins.module_utils._change import DEFAULT
from ansible_collections.homelab.healer.plugins.module_utils._guests import Guest
from ansible_collections.homelab.healer.plugins.module_utils._snapshots import History, obstacles

PRESSURE = tuple(f"{what}_{how}" for what in ("cpu", "io", "memory") for how in ("some", "full"))
NEVER = 7 * 86400
"""Seconds that stand for never, so that a number can be compared with."""


def usage(guest: Guest, status: t.Mapping[str, t.Any], listed: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """A container as ``status/current`` and the cluster's resources have it: sizes in MiB, CPUs as numbers, shares from 0 to 1."""
    running, whole = status["status"] == "running", float(status["cpus"])
    bounds = [float(guest.limits[key]) for key in ("cores", "cpulimit") if guest.limits[key] != DEFAULT]
    cpus = min(bounds, default=float(guest.node.cpus or whole))  # Proxmox VE's own figure knows only one of the two bounds
    measured = running and listed.get("status") == "running" and listed.get("cpu") is not None
    used = max(0.0, float(listed["cpu"]) * float(listed.get("maxcpu") or whole)) if measured else None if running else 0.0
    pressure = {name: status.get(f"pressure{name.replace('_', '')}") for name in PRESSURE}
    return dict(
        vmid=guest.key,
        name=guest.hostname,
        node=guest.node.name,
        status=status["status"],
        pid=int(status["pid"]) if running and status.get("pid") else None,
        uptime=int(status["uptime"]),
        lock=guest.lock,
        tags=[tag for tag in str(guest.config.get("tags") or "").split(";") if tag],
        limits=guest.limits,
        pending=guest.pending,
        raw=list(guest.raw),
        cpus=cpus,
        cpu_used=None if used is None else round(used, 3),
        cpu_share=None if used is None else round(used / cpus, 3) if cpus else 0.0,
        memory_used=int(status["mem"]) >> 20,
        memory_share=round(int(status["mem"]) / int(status["maxmem"]), 3) if status["maxmem"] else 0.0,
        swap_used=int(status.get("swap") or 0) >> 20,
        disk_used=int(status.get("disk") or 0) >> 20,
        disk=int(status.get("maxdisk") or 0) >> 20,
        pressure={name: float(value) for name, value in pressure.items() if value is not None} or None,
    )


def growth(first: t.Mapping[str, t.Any], last: t.Mapping[str, t.Any], seconds: float) -> dict[str, t.Any]:
    """How fast the memory in use grows, and when it is full; nothing where it was restarted in between."""
    if not seconds or first.get("pid") != last.get("pid") or last["status"] != "running":
        return dict(memory_growth=None, memory_full_in=None)
    rate = (int(last["mem"]) - int(first["mem"])) / seconds  # bytes a second
    left = max(0, int(last["maxmem"]) - int(last["mem"]))
    return dict(memory_growth=round(rate * 60 / (1 << 20), 2), memory_full_in=min(NEVER, int(left / rate)) if rate > 0 else NEVER)


def listed_snapshots(history: History) -> dict[str, t.Any]:
    """A container's snapshots, the oldest first, and why there can be none."""
    told = [
        dict(name=one.name, taken=one.taken, own=bool(one.mark), incomplete=one.incomplete, description=one.description.strip()) for one in history.snapshots
    ]
    return dict(snapshots=told, no_snapshots=obstacles(history))
