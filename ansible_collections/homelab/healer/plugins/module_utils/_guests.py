# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Proxmox LXC container's resources: how they are written, what a node has room for, and what may become of each. Pure: no I/O.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.homelab.healer.plugins.module_utils._change import DEFAULT, Change, Values
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Denied, Invalid, Refused, together
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Mebibytes, Quantity, asked, parse_mebibytes

RESOURCES = ("cores", "cpulimit", "cpuunits", "memory", "swap")
PRIVILEGES = {"cores": "VM.Config.CPU", "cpulimit": "VM.Config.CPU", "cpuunits": "VM.Config.CPU", "memory": "VM.Config.Memory", "swap": "VM.Config.Memory"}
"""What Proxmox VE asks for before it sets each."""
QUANTITIES = {
    "cores": Quantity(int, 1, 8192, lifts=(DEFAULT, "all")),
    "cpulimit": Quantity(float, 0.01, 8192.0, lifts=(DEFAULT, "unlimited", "0", "0.0")),
    "cpuunits": Quantity(int, 1, 500_000, lifts=(DEFAULT,)),
    "memory": Quantity(parse_mebibytes, Mebibytes(16), Mebibytes(1 << 30), lifts=()),
    "swap": Quantity(parse_mebibytes, Mebibytes(0), Mebibytes(1 << 30), lifts=(DEFAULT,)),
}
"""How each is written, and the API's bounds for it. A ``cpulimit`` of less than 0.01 is a quota that kernels refuse; memory has no highest value there."""
OPTIONS: dict[str, t.Any] = dict(
    node=dict(type="str"),
    **{key: dict(type="str", aliases=["cpu"] if key == "cores" else []) for key in RESOURCES},
    memory_max=dict(type="str"),
    node_reserve=dict(type="str", default="1GiB"),
    allow_overcommit=dict(type="bool", default=False),
    allow_below_usage=dict(type="bool", default=False),
)
"""The options that set them, and those that guard them."""
UNSET_MEMORY = Mebibytes(512)
"""What a container has whose configuration names no memory."""
SHARES_OF_VERSION_2 = 10_000
"""The highest weight of cgroup v2. Proxmox VE stores this in place of a higher one, without a word."""
LEAST_SHARES_OF_VERSION_1 = 2
"""The lowest weight of cgroup v1, likewise."""
HEADROOM = 1.25
"""A lower memory limit must leave this much of what the node says is used: its figure leaves out shared memory, which cannot be reclaimed."""
RAW = re.compile(r"lxc\.cgroup2?\.(?P<what>cpuset|cpu|memory)\b")
"""Raw settings that win over the resources when the container starts; one of ``cpuset`` also stops the node from distributing its cores."""


@dataclass(frozen=True)
class Node:
    """A node as it is: ``cpus`` and ``memory`` in MiB, ``None`` where the token may not see them.

    ``available`` is what it could give away now, ``committed`` the sum of the memory limits of the running guests that can be seen (QEMU included),
    ``whole`` whether that is all of them.
    """

    name: str
    cpus: int | None = None
    memory: int | None = None
    available: int | None = None
    committed: int = 0
    whole: bool = True
    cgroup_version: str = ""


@dataclass(frozen=True)
class Guest:
    """A container as its node has it. ``limits`` are those in effect, ``pending`` those that wait for a restart; memory and swap in MiB.

    Two are equal when it is the same container with the same resources.
    """

    key: int
    limits: t.Mapping[str, t.Any]
    pending: t.Mapping[str, t.Any]
    hostname: str = field(compare=False)
    node: Node = field(compare=False)
    status: str = field(compare=False)
    lock: str = field(compare=False)
    template: bool = field(compare=False)
    used: int | None = field(compare=False)
    digest: str = field(compare=False)
    raw: tuple[str, ...] = field(compare=False)
    privileges: frozenset[str] = field(compare=False)
    config: t.Mapping[str, t.Any] = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.key} ({self.hostname})"

    @property
    def running(self) -> bool:
        return self.status == "running"


def resources(config: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The resources that a configuration names, in this collection's words; numbers may be text there."""
    limit = float(config.get("cpulimit") or 0)
    return {
        "cores": int(config["cores"]) if config.get("cores") else DEFAULT,
        "cpulimit": limit if limit > 0 else DEFAULT,
        "cpuunits": int(config["cpuunits"]) if config.get("cpuunits") is not None else DEFAULT,
        "memory": Mebibytes(config.get("memory") or UNSET_MEMORY),
        "swap": Mebibytes(config["swap"]) if config.get("swap") is not None else DEFAULT,
    }


def body(values: Values) -> dict[str, t.Any]:
    """The parameters that set these values; ``default`` deletes the key, which is also the one way to lift a CPU limit while the container runs."""
    sent = {key: f"{value:.6f}".rstrip("0").rstrip(".") if key == "cpulimit" else int(value) for key, value in values.items() if value != DEFAULT}
    deleted = ",".join(key for key, value in values.items() if value == DEFAULT)
    return {**sent, **({"delete": deleted} if deleted else {})}


def difference(now: Guest, wanted: Values) -> tuple[Values, Values]:
    """What must change for a container to be as wanted: those values as they are, and as they shall be."""
    after = {key: value for key, value in wanted.items() if not _same(key, now.limits[key], value) or not _same(key, now.pending.get(key, value), value)}
    return {key: now.limits[key] if now.limits[key] != value else now.pending[key] for key, value in after.items()}, after


def _same(key: str, one: t.Any, other: t.Any) -> bool:
    """Whether two values mean the same; a container whose configuration names no swap has none."""
    return bool(one == other) or (key == "swap" and {one, other} == {0, DEFAULT})


def wish(request: t.Any, now: Guest) -> dict[str, t.Any]:
    """What a request asks for this container, within ``memory_max``. Raises ``Invalid`` for what the node would change or ignore silently."""
    wanted = asked(request, RESOURCES, now.key)
    highest = request.memory_max
    if highest and wanted.get("memory", 0) > highest:
        if not isinstance(request.memory, t.Mapping):
            raise Invalid(f"cannot give {now.name} {wanted['memory']}", why=f"memory_max is {highest}", fix="Ask for less, or raise memory_max.")
        wanted["memory"] = max(highest, now.limits["memory"])
    if wanted.get("cpulimit", DEFAULT) != DEFAULT:
        wanted["cpulimit"] = round(wanted["cpulimit"], 6)  # as it is stored
    weight = wanted.get("cpuunits", DEFAULT)
    version = now.node.cgroup_version
    what = f"cannot set cpuunits of {now.name} to {weight}"
    if weight != DEFAULT and version == "2" and weight > SHARES_OF_VERSION_2:
        why = f"{now.node.name} has cgroup v2, where the highest weight is {SHARES_OF_VERSION_2}, and Proxmox VE would store that instead"
        raise Invalid(what, why=why, fix=f"Ask for at most {SHARES_OF_VERSION_2}; 100 is what a container without a weight has.")
    if weight != DEFAULT and version == "1" and weight < LEAST_SHARES_OF_VERSION_1:
        why = f"{now.node.name} has cgroup v1, where the lowest weight is {LEAST_SHARES_OF_VERSION_1}, and Proxmox VE would store that instead"
        raise Invalid(what, why=why, fix=f"Ask for at least {LEAST_SHARES_OF_VERSION_1}; 1024 is what a container without a weight has.")
    return wanted


def guard(now: Guest, before: Values, after: Values, request: t.Any) -> None:
    """Refuse what Proxmox VE would refuse, ignore, or carry out to the container's harm."""
    what = f"will not change {now.name}"
    if not after:
        return
    if now.template:
        raise Refused(what, why="it is a template, and its copies would inherit the change", fix="Name a container.")
    if now.lock:
        raise Conflict(what, why=f"CT is locked ({now.lock})", fix=unlock(now.key, now.lock))
    need(now, {PRIVILEGES[key] for key in after}, f"cannot change {', '.join(after)} of {now.name}")
    _guard_usage(now, before, after, request.allow_below_usage)
    if now.node.memory and after.get("memory", 0) > max(now.node.memory, before.get("memory", 0)) and not request.allow_overcommit:
        why = f"{now.node.name} has {Mebibytes(now.node.memory)} in all"
        raise Refused(f"will not give {now.name} {after['memory']}", why=why, fix="Ask for less, or set allow_overcommit=true.")
    cores = after.get("cores", DEFAULT)
    if cores != DEFAULT and now.node.cpus and cores > now.node.cpus and not request.allow_overcommit:
        raise Refused(
            f"will not give {now.name} {cores} cores",
            why=f"{now.node.name} has {now.node.cpus}, and Proxmox VE would take the number and give it no more than these",
            fix=f"Ask for at most {now.node.cpus}, or set allow_overcommit=true.",
        )


def unlock(vmid: int, lock: str) -> str:
    """What to do about a lock of a container's configuration. No request of the API takes one away."""
    if lock in ("rollback", "snapshot-delete", "snapshot", "create", "destroyed"):
        return (
            f"Wait for the task that holds it (wait_lock). If none runs any more, it failed half-way: look at its log, then run pct unlock {vmid} on the node."
        )
    return "Wait until that is done; wait_lock waits longer for it."


def need(now: Guest, privileges: t.Iterable[str], what: str) -> None:
    """Raise ``Denied`` if the token lacks one of these privileges on the container, naming it and how to grant it."""
    missing = sorted(set(privileges) - now.privileges)
    if missing:
        raise Denied(what, why=f"the permission check would fail (/vms/{now.key}, {', '.join(missing)})", fix=grant(f"/vms/{now.key}", missing))


def held(rules: t.Mapping[str, t.Mapping[str, int]], path: str) -> set[str]:
    """The privileges on a path: its own, or those that reach it from the nearest path above. ``rules`` are all, each with whether it reaches below."""
    here = path
    while here not in rules and here != "/":
        here = here.rpartition("/")[0] or "/"
    return {name for name, reaches in rules.get(here, {}).items() if reaches or here == path}


def pool_of(vmid: int, entry: t.Mapping[str, t.Any], rules: t.Mapping[str, t.Mapping[str, int]]) -> str | None:
    """The pool that a guest is in by its entry in the cluster's resources, empty for none, ``None`` if it cannot be known.

    A pool is told only to who has ``Pool.Audit`` on it. Yet each guest in one has a path of its own among the token's privileges.
    """
    if entry.get("pool"):
        return str(entry["pool"])
    paths = ["/pool", *(path for path in rules if path.startswith("/pool/"))]
    none = f"/vms/{vmid}" not in rules or all("Pool.Audit" in held(rules, path) for path in paths)
    return "" if none else None


def grant(path: str, privileges: t.Sequence[str]) -> str:
    """What to do about missing privileges on a path."""
    return (
        f"Give the token's role {', '.join(privileges)} on {path} or above it, as in pveum acl modify {path} --tokens 'user@realm!id' --roles ROLE; "
        "a token with privilege separation needs its user to have them too."
    )


def _guard_usage(now: Guest, before: Values, after: Values, allowed: bool) -> None:
    memory, used = after.get("memory"), now.used
    if allowed or memory is None or used is None or not now.running or not memory < before["memory"] or memory >= used * HEADROOM:
        return
    raise Refused(
        f"will not limit memory of {now.name} to {memory}",
        why=f"it is using {Mebibytes(used)}, without what it shares, and the kernel kills processes where it cannot make room",
        fix=f"Choose at least {Mebibytes(int(used * HEADROOM) + 1)}, free memory in the container first, or set allow_below_usage=true.",
    )


def parts(before: Values, after: Values) -> list[Values]:
    """What is written at once: the values of each request.

    Less memory may fail, and the CPU settings of the same request would stay live then, so it goes first and alone. Swap that is deleted has a request
    of its own: a node that deletes it stores the memory of the same request and does not give it to the container while that runs.
    """
    memory = {key: value for key, value in after.items() if key in ("memory", "swap")}
    less = any(value == DEFAULT or (before[key] != DEFAULT and value < before[key]) for key, value in memory.items())
    rest = {key: value for key, value in after.items() if key not in memory}
    first = [{key: memory[key]} for key in ("memory", "swap") if key in memory] if memory.get("swap") == DEFAULT else [memory]
    return [part for part in ((*first, rest) if less else ({**rest, **memory},)) if part]


def way_back(now: Guest, before: Values, after: Values, reserve: int) -> tuple[Values, str]:
    """The options that put ``before`` back, and how well they do.

    What was beyond the node's bounds before may be so again; that more memory is available than is put back is made sure of all the same.
    """
    node, undo = now.node, dict(before)
    unnamed = "memory" in before and not now.config.get("memory")
    zero = before.get("cpulimit") == DEFAULT and now.config.get("cpulimit") is not None
    heavy = node.cgroup_version == "2" and before.get("cpuunits", DEFAULT) != DEFAULT and before["cpuunits"] > SHARES_OF_VERSION_2
    if heavy:
        undo["cpuunits"] = SHARES_OF_VERSION_2
    cores = before.get("cores", DEFAULT) != DEFAULT and node.cpus is not None and before["cores"] > node.cpus
    memory = "memory" in before and before["memory"] > after["memory"] and (node.memory is None or node.committed > node.memory - reserve)
    return {**undo, **({"allow_overcommit": True} if cores or memory else {})}, "equivalent" if unnamed or zero or heavy else "exact"


def notes(now: Guest, after: Values) -> tuple[str, ...]:
    """What a person should know of this change."""
    told = []
    if after and not now.running:
        told.append(f"it is {now.status}: the change takes effect when it starts")
    if "cores" in after and now.running:
        told.append("the node gives it the cores within about 10 seconds; its API cannot show that")
    if after.get("swap", 0) not in (0, DEFAULT):
        told.append("a limit of swap gives it nothing where the node has no swap")
    raw = [line for line in now.raw if RAW.match(line)]
    if after and raw:
        told.append(f"raw settings in its configuration win when it starts: {'; '.join(raw)}")
    others = sorted(key for key in now.pending if key not in RESOURCES)
    if others:
        told.append(f"other changes wait for its next start: {', '.join(others)}")
    return tuple(told)


def within_capacity(request: t.Any, now: t.Sequence[Guest], changes: dict[t.Any, Change]) -> dict[t.Any, Change]:
    """The same changes, each with the sum that was made for its node. Raises ``Refused`` where a node has no room for what they add together."""
    sums = {guest.node.name: capacity(guest.node, _delta(guest.node.name, now, changes), request.node_reserve) for guest in now}
    refused = {name: error for name, error in ((name, _short(found, request.allow_overcommit)) for name, found in sums.items()) if error}
    if refused:
        raise together(refused)
    return {guest.key: replace(changes[guest.key], facts={**changes[guest.key].facts, "capacity": sums[guest.node.name]}) for guest in now}


def _delta(node: str, now: t.Sequence[Guest], changes: t.Mapping[t.Any, Change]) -> int:
    pairs = [changes[guest.key] for guest in now if guest.node.name == node and guest.running and "memory" in changes[guest.key].after]
    return sum(int(change.after["memory"]) - int(change.before["memory"]) for change in pairs)


def capacity(node: Node, delta: int, reserve: int) -> dict[str, t.Any]:
    """The sum for one node, in MiB: what its guests may use together after a change of ``delta``, and what it has."""
    return dict(
        node=node.name,
        memory=node.memory,
        available=node.available,
        reserve=int(reserve),
        committed=node.committed,
        delta=delta,
        committed_after=node.committed + delta,
        whole=node.whole,
    )


def _short(found: t.Mapping[str, t.Any], overcommit: bool) -> Refused | None:
    """Why a node cannot give what is asked, or ``None``."""
    what, delta = f"will not give containers on {found['node']} {Mebibytes(found['delta'])} more", found["delta"]
    if delta <= 0:
        return None
    if found["memory"] is None:
        if overcommit:
            return None
        fix = grant(f"/nodes/{found['node']}", ["Sys.Audit"])
        return Refused(what, why="this token cannot see how much memory the node has", fix=f"{fix} Or set allow_overcommit=true.")
    room = found["available"] - found["reserve"]
    if delta > room:
        why = f"it has {Mebibytes(found['available'])} available, of which {Mebibytes(found['reserve'])} are kept for itself (node_reserve)"
        return Refused(what, why=why, fix="Ask for less, make room on the node, or lower node_reserve.")
    total = found["memory"] - found["reserve"]
    if found["committed_after"] > total and not overcommit:
        seen = "" if found["whole"] else ", without the guests that this token cannot see"
        why = (
            f"its running guests may use {Mebibytes(found['committed'])} together{seen}, and with these {Mebibytes(found['committed_after'])}; "
            f"it has {Mebibytes(found['memory'])}, less {Mebibytes(found['reserve'])} for itself (node_reserve)"
        )
        return Refused(what, why=why, fix="Ask for less, lower another guest's memory, or set allow_overcommit=true.")
    return None
