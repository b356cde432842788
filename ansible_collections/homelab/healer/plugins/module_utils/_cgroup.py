# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A container's control group, read from the kernel's own files.

It can be read only where the module runs on the engine's host. The proof that it is the right group is the container's id in the path.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import os
import time
import typing as t
from dataclasses import dataclass, field

UNLIMITED = 1 << 60
"""From here on a number of bytes or processes means that there is no limit."""


@dataclass(frozen=True)
class Reading:
    """What a container uses, and what limits it, at one moment.

    ``taken`` is a clock's seconds, ``cpu`` seconds of CPU time, ``periods`` and ``throttled`` the scheduler's accounting periods, ``memory_used``
    bytes without the page cache (tmpfs counts), ``memory_cache`` the page cache's bytes. ``limits`` holds those that were seen: ``None`` is no limit,
    ``cpus`` is a pair of quota and period in microseconds. ``cpus_allowed`` are the CPUs
    of the group above it, as ``0-3``, which it has without a set of its own. What this source cannot tell is ``None`` or empty.
    """

    witness: str
    taken: float
    cpu: float
    periods: int
    throttled: int
    memory_used: int | None
    memory_cache: int | None
    pids: int | None
    limit_hits: int | None = None
    oom_kills: int | None = None
    limits: t.Mapping[str, t.Any] = field(default_factory=dict)
    cpus_allowed: str = ""


def bounded(number: int) -> int | None:
    """A limit as the kernel or the engine gives it; ``None`` where the number means that there is none."""
    return number if 0 < number < UNLIMITED else None


def read_cgroup(pid: int, container_id: str, root: str = "/") -> Reading | None:
    """Read the group of the container whose first process is ``pid``; ``None`` where that is not this machine's to see."""
    try:
        groups = _groups(pid, container_id, root)
        if "memory" in groups and "cpu" in groups:
            return _read_v1(groups)
        return _read_v2(groups[""]) if "" in groups else None
    except (OSError, KeyError, ValueError):
        return None


def _groups(pid: int, container_id: str, root: str) -> dict[str, str]:
    """The container's folder for each controller; the unified hierarchy's is named by the empty string."""
    mounts: dict[str, tuple[str, str]] = {}
    with open(os.path.join(root, "proc/self/mountinfo"), encoding="utf-8") as lines:
        for line in lines:
            place, kind = line.split(" - ", 1)
            inside, at = place.split()[3:5]
            if kind.startswith("cgroup2 "):
                mounts[""] = (inside, at)
            elif kind.startswith("cgroup "):
                mounts.update(dict.fromkeys(kind.split()[-1].split(","), (inside, at)))
    groups = {}
    with open(os.path.join(root, f"proc/{pid}/cgroup"), encoding="utf-8") as lines:
        for line in lines:
            controllers, path = line.rstrip("\n").split(":", 2)[1:]
            parts = path.split("/")
            own = [index for index, part in enumerate(parts) if container_id in part]
            for controller in controllers.split(","):
                if own and controller in mounts:
                    inside, at = mounts[controller]
                    groups[controller] = os.path.join(root, at.lstrip("/"), os.path.relpath("/".join(parts[: own[0] + 1]), inside))
    return groups


def _text(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return file.read().strip()


def _optional(folder: str, name: str) -> str | None:
    """The same where the controller is in use for the group, and ``None`` where it is not."""
    return _text(folder, name) if os.path.exists(os.path.join(folder, name)) else None


def _table(folder: str, name: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in _text(folder, name).splitlines())}


def _number(text: str) -> int | None:
    return None if text == "max" else bounded(int(text))


def _read_v1(groups: t.Mapping[str, str]) -> Reading:
    memory, cpu = groups["memory"], groups["cpu"]
    stat, times = _table(memory, "memory.stat"), _table(cpu, "cpu.stat")
    cache = stat["total_active_file"] + stat["total_inactive_file"]
    limits: dict[str, t.Any] = {
        "cpus": (int(_text(cpu, "cpu.cfs_quota_us")), int(_text(cpu, "cpu.cfs_period_us"))),
        "cpu_shares": int(_text(cpu, "cpu.shares")),
        "memory": _number(_text(memory, "memory.limit_in_bytes")),
        "memory_reservation": _number(_text(memory, "memory.soft_limit_in_bytes")),
        "pids_limit": _number(_text(groups["pids"], "pids.max")),
        "cpuset_cpus": _text(groups["cpuset"], "cpuset.cpus"),
    }
    swap = _optional(memory, "memory.memsw.limit_in_bytes")
    if swap is not None:
        limits["memory_swap"] = _number(swap)
    return Reading(
        witness="cgroup",
        taken=time.monotonic(),
        cpu=int(_text(groups["cpuacct"], "cpuacct.usage")) / 1e9,
        periods=times["nr_periods"],
        throttled=times["nr_throttled"],
        memory_used=max(0, int(_text(memory, "memory.usage_in_bytes")) - cache),
        memory_cache=cache,
        pids=int(_text(groups["pids"], "pids.current")),
        limit_hits=int(_text(memory, "memory.failcnt")),
        oom_kills=_table(memory, "memory.oom_control").get("oom_kill"),
        limits=limits,
        cpus_allowed=_optional(os.path.dirname(groups["cpuset"]), "cpuset.cpus") or "",
    )


def _read_v2(folder: str) -> Reading:
    stat, times, events = _table(folder, "memory.stat"), _table(folder, "cpu.stat"), _table(folder, "memory.events")
    cache = stat["active_file"] + stat["inactive_file"]
    quota, period = _text(folder, "cpu.max").split()
    memory = _number(_text(folder, "memory.max"))
    limits: dict[str, t.Any] = {
        "cpus": (-1 if quota == "max" else int(quota), int(period)),
        "memory": memory,
        "memory_reservation": _number(_text(folder, "memory.low")),
        "pids_limit": _number(_text(folder, "pids.max")),
    }
    cpuset, swap = _optional(folder, "cpuset.cpus"), _optional(folder, "memory.swap.max")
    if cpuset is not None:
        limits["cpuset_cpus"] = cpuset
    if swap is not None:
        limits["memory_swap"] = None if memory is None or swap == "max" else bounded(memory + int(swap))
    return Reading(
        witness="cgroup",
        taken=time.monotonic(),
        cpu=times["usage_usec"] / 1e6,
        periods=times.get("nr_periods", 0),
        throttled=times.get("nr_throttled", 0),
        memory_used=max(0, int(_text(folder, "memory.current")) - cache),
        memory_cache=cache,
        pids=int(_text(folder, "pids.current")),
        limit_hits=events["max"],
        oom_kills=events["oom_kill"],
        limits=limits,
        cpus_allowed=_optional(os.path.dirname(folder), "cpuset.cpus.effective") or "",
    )
