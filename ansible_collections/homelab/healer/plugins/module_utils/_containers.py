# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Docker container's limits: this collection's words for them, the engine's, and what may become of each. Pure: no I/O.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.homelab.healer.plugins.module_utils._cgroup import Reading, bounded
from ansible_collections.homelab.healer.plugins.module_utils._change import DEFAULT, REVERSIBILITIES, Values
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, HealerError, Invalid, Refused
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Quantity, Size, parse_size

LIMITS = ("cpus", "memory", "memory_swap", "memory_reservation", "cpu_shares", "cpuset_cpus", "pids_limit")
PERIOD = 100_000
"""The scheduler's period in microseconds, where a container has none of its own."""
LIFTED_MEMORY, LIFTED_SWAP = 1 << 62, (1 << 63) - 4096
"""The engine takes no value for "no limit" in an update; the kernel takes these for one. The gap between the two leaves room for swap on cgroup v2."""
LEAST_QUOTA = 1000
"""Microseconds of CPU time in a period that the engine takes at the least."""
NEAR = 65_536
"""Kernels round a memory limit to whole pages, of at most this many bytes."""
HEADROOM = 1.1
"""A lower memory limit must leave this much of what is used now, so that the next allocation does not kill."""
MOST_CPUS = 8191
"""The highest number of a CPU that Linux knows; a typing error must not fill the memory with a set."""
SHARES = 1024
"""What cgroup v1 gives a container that asks for no share."""
SIZE = Quantity(parse_size, Size(6 << 20), Size(1 << 50), lifts=(DEFAULT, "unlimited", "-1"))
QUANTITIES = {
    "cpus": Quantity(float, 0.001, 4096.0, lifts=(DEFAULT, "unlimited")),
    "memory": SIZE,
    "memory_swap": SIZE,
    "memory_reservation": SIZE,
    "cpu_shares": Quantity(int, 2, 262144, lifts=(DEFAULT,)),
    "pids_limit": Quantity(int, 1, 4194304, lifts=(DEFAULT, "unlimited", "-1")),
}
"""How each limit is written, and the engine's and the kernel's bounds for it."""
READERS: t.Mapping[str, t.Callable[[str], t.Any]] = {
    **{limit: quantity.read for limit, quantity in QUANTITIES.items()},
    "cpuset_cpus": lambda text: text if text == DEFAULT else cpu_list(text) and text,
}
"""How each limit's option is read."""
LIMIT_OPTIONS = {limit: dict(type="str", aliases={"cpus": ["cpu_limit", "cpu"], "memory": ["memory_limit"]}.get(limit, [])) for limit in LIMITS}
"""The options that set them."""
OWNERS = {
    "com.docker.swarm.task.id": ("Swarm", "Set it for the service: docker service update --limit-cpu, --limit-memory."),
    "io.kubernetes.pod.uid": ("Kubernetes", "Set the resources of its pod."),
    "com.hashicorp.nomad.alloc_id": ("Nomad", "Set the resources of its task."),
}
"""Labels of those who make a container anew with limits of their own, and where to set them instead."""


@dataclass(frozen=True)
class Host:
    """The engine's host: ``cpus`` it has, ``memory`` in bytes, control groups' version (``1`` or ``2``), whether swap can be limited."""

    cpus: int
    memory: int
    cgroup_version: str
    swap_limit: bool
    engine: str


@dataclass(frozen=True, eq=False)
class Container:
    """A container as the engine has it. ``limits`` are the configured ones, ``live`` those that a witness other than the configuration saw.

    ``everything`` are the CPUs that it has without a set of its own: in an LXC these need not begin with 0.

    Two are equal when it is the same container with the same limits, as far as both were seen: one that is just restarting has no live ones.
    """

    key: str
    limits: t.Mapping[str, t.Any]
    live: t.Mapping[str, t.Any]
    name: str
    status: str
    host: Host
    everything: str
    nano_cpus: bool
    contradictory: bool
    period: int
    details: t.Mapping[str, t.Any]
    reading: Reading | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Container):
            return NotImplemented
        seen = self.live.keys() & other.live.keys()
        return self.key == other.key and self.limits == other.limits and all(self.live[limit] == other.live[limit] for limit in seen)

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def labels(self) -> t.Mapping[str, str]:
        return self.details["Config"]["Labels"] or {}

    def present(self, limit: str, wanted: t.Any) -> t.Any:
        """What a limit is now: the configured value, unless that is as wanted and the live one is not."""
        configured = self.limits[limit]
        return self.live.get(limit, configured) if configured == wanted else configured

    def witness(self, limit: str) -> str:
        """By what a limit's value is known beyond what was sent."""
        return self.reading.witness if self.reading and limit in self.live else "accepted"


def rate(first: Reading | None, then: Reading | None) -> float | None:
    """CPUs used between two readings: 1.5 is one and a half. ``None`` where they do not belong together, as after a restart."""
    if first is None or then is None or first.witness != then.witness or then.cpu < first.cpu or then.taken <= first.taken:
        return None
    return (then.cpu - first.cpu) / (then.taken - first.taken)


def rates(first: Reading | None, then: Reading | None) -> dict[str, float | None]:
    """The CPU rate between two readings, and the share of the scheduler's periods in which the limit held the container back."""
    used = rate(first, then)
    if first is None or then is None or used is None:
        return dict(cpu_rate=None, throttled=None)
    periods = then.periods - first.periods
    return dict(cpu_rate=round(used, 3), throttled=round((then.throttled - first.throttled) / periods, 3) if periods > 0 else None)


def body(container: Container, limits: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The engine's names and values for these limits; ``default`` lifts one, by the value that does so live."""
    fields: dict[str, t.Callable[[t.Any], tuple[str, t.Any]]] = {
        "cpus": lambda value: (
            ("NanoCpus", round(value * 1e9)) if container.nano_cpus else ("CpuQuota", -1 if value == DEFAULT else round(value * container.period))
        ),
        "memory": lambda value: ("Memory", LIFTED_MEMORY if value == DEFAULT else int(value)),
        "memory_swap": lambda value: ("MemorySwap", LIFTED_SWAP if value == DEFAULT else int(value)),
        "memory_reservation": lambda value: ("MemoryReservation", int(value)),
        "cpu_shares": lambda value: ("CpuShares", SHARES if value == DEFAULT else value),
        "cpuset_cpus": lambda value: ("CpusetCpus", container.everything if value == DEFAULT else value),
        "pids_limit": lambda value: ("PidsLimit", -1 if value == DEFAULT else value),
    }
    sent = dict(fields[limit](value) for limit, value in limits.items())
    if "Memory" in sent and "MemorySwap" not in sent:
        sent["MemorySwap"] = -1  # without accounting for swap the engine stores this, and takes no memory limit above it
    return sent


def cpu_list(text: str) -> frozenset[int]:
    """The CPUs that ``0-2,4`` names. Raises ``ValueError``."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if int(last if dash else first) > MOST_CPUS:
            raise ValueError(f"no machine has a CPU with a number above {MOST_CPUS}")
        cpus.update(range(int(first), int(last if dash else first) + 1))
    if not cpus:
        raise ValueError("it names no CPU")
    return frozenset(cpus)


def cpuset(text: str, everything: str) -> str:
    """A set of CPUs in one spelling (``0,2-3``); ``everything``, the CPUs that a container has without a set of its own, is ``default``."""
    cpus = sorted(cpu_list(text)) if text else []
    if not cpus or frozenset(cpus) == cpu_list(everything):
        return DEFAULT
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def configured(config: t.Mapping[str, t.Any], host: Host, everything: str) -> dict[str, t.Any]:
    """The limits of an inspected container, in this collection's words."""

    def size(name: str) -> t.Any:
        number = bounded(config[name] or 0)
        return DEFAULT if number is None else Size(number)

    cpus = config["NanoCpus"] / 1e9 if config["NanoCpus"] else config["CpuQuota"] / (config["CpuPeriod"] or PERIOD)
    shares = config["CpuShares"]
    return {
        "cpus": cpus if cpus > 0 else DEFAULT,
        "memory": size("Memory"),
        "memory_swap": size("MemorySwap"),
        "memory_reservation": size("MemoryReservation"),
        "cpu_shares": DEFAULT if not shares or (shares == SHARES and host.cgroup_version == "1") else shares,
        "cpuset_cpus": cpuset(config["CpusetCpus"], everything),
        "pids_limit": bounded(config["PidsLimit"] or 0) or DEFAULT,
    }


def seen_live(limits: t.Mapping[str, t.Any], reading: Reading, host: Host, everything: str) -> dict[str, t.Any]:
    """The limits that a reading saw, in this collection's words; as configured where the difference is only the kernel's rounding."""
    live: dict[str, t.Any] = {}
    for limit, seen in reading.limits.items():
        configured = limits[limit]
        if limit == "cpus":
            quota, period = seen
            as_set = configured != DEFAULT and quota == int(round(configured * period, 3))
            live[limit] = configured if as_set else quota / period if quota > 0 else DEFAULT
        elif limit in ("memory", "memory_swap", "memory_reservation"):
            near = configured != DEFAULT and seen is not None and abs(configured - seen) < NEAR
            live[limit] = configured if near else DEFAULT if seen is None else Size(seen)
        elif limit == "cpuset_cpus":
            live[limit] = cpuset(seen, everything)
        elif limit == "cpu_shares":
            live[limit] = DEFAULT if seen == SHARES else seen
        else:
            live[limit] = DEFAULT if seen is None else seen
    if reading.witness == "stats" and live.get("memory", 0) == host.memory and (limits["memory"] == DEFAULT or limits["memory"] >= host.memory):
        del live["memory"]  # the engine shows no limit above the host's memory
    return live


def attainable(asked: t.Mapping[str, t.Any], now: Container) -> dict[str, t.Any]:
    """The limits to set so that the engine does what was asked: in its precision, and with those that it ties to them.

    Refuses what the engine would take and ignore.
    """
    _guard(now)
    wanted = dict(asked)
    if "cpus" in wanted:
        wanted["cpus"] = _cpus(wanted["cpus"], now)
    if "cpuset_cpus" in wanted:
        wanted["cpuset_cpus"] = _cpuset(wanted["cpuset_cpus"], now)
    if wanted.get("cpu_shares") == SHARES and now.host.cgroup_version == "1":
        wanted["cpu_shares"] = DEFAULT
    if {"memory", "memory_swap"} & wanted.keys():
        wanted.update(_memory(wanted, now))
    reservation, memory = wanted.get("memory_reservation", DEFAULT), wanted.get("memory", now.limits["memory"])
    if DEFAULT not in (reservation, memory) and reservation > memory:
        raise Invalid(f"cannot reserve {reservation} for {now.name}", why=f"its memory limit is {memory}", fix="Reserve at most as much as the limit.")
    for limit, value in wanted.items():
        if value == DEFAULT != now.limits[limit] and not _liftable(limit, now):
            raise Refused(
                f"cannot lift {limit} of {now.name}",
                why="the engine has no value that takes it away, and would ignore one that looks like it",
                fix="Set another value, or recreate the container without it.",
            )
    return wanted


def _guard(now: Container) -> None:
    for label, (owner, fix) in OWNERS.items():
        if label in now.labels:
            raise Refused(f"will not limit {now.name}", why=f"{owner} owns it, and makes it anew with its own limits", fix=fix)
    if now.status in ("removing", "dead"):
        raise Conflict(f"cannot limit {now.name}", why=f"it is {now.status}", fix="Look with docker ps --all what became of it.")


def _cpus(value: t.Any, now: Container) -> t.Any:
    what = f"cannot limit {now.name} to {value} CPUs"
    if now.contradictory:
        raise Refused(
            what,
            why="it has both NanoCpus and a CpuQuota of -1 (as docker update --cpus leaves behind after a lifted quota), so a restart would lift the limit",
            fix="Recreate it with the limit that it shall have.",
        )
    if value == DEFAULT:
        return float(now.host.cpus) if now.nano_cpus else DEFAULT
    if now.nano_cpus and value > now.host.cpus:
        raise Invalid(what, why=f"the host has {now.host.cpus} CPUs, and the engine takes no more for a container made with --cpus", fix="Ask for fewer.")
    period = PERIOD if now.nano_cpus else now.period
    quota = round(value * period)
    if quota < LEAST_QUOTA:
        raise Invalid(what, why=f"of its period of {period} us that is {quota} us, and the kernel takes no less than {LEAST_QUOTA}", fix="Ask for more.")
    return round(value * 1e9) / 1e9 if now.nano_cpus else quota / period


def _cpuset(value: str, now: Container) -> str:
    if value == DEFAULT:
        return value
    if now.reading and now.reading.cpus_allowed and not cpu_list(value) <= cpu_list(now.everything):
        raise Invalid(f"cannot pin {now.name} to CPUs {value}", why=f"here it can have {now.everything}", fix="Leave out the others.")
    return cpuset(value, now.everything)


def _memory(wanted: t.Mapping[str, t.Any], now: Container) -> dict[str, t.Any]:
    """Memory, and memory with swap, which the engine checks against each other: without a word on swap, its amount stays."""
    memory = wanted.get("memory", now.limits["memory"])
    if not now.host.swap_limit:
        if "memory_swap" in wanted:
            raise Refused(f"cannot limit the swap of {now.name}", why="its host's kernel does not account for swap", fix="Leave memory_swap out.")
        return {"memory": memory}
    if "memory_swap" in wanted:
        swap = wanted["memory_swap"]
    elif memory == DEFAULT:
        swap = DEFAULT
    elif now.limits["memory"] == DEFAULT:
        swap = Size(2 * memory)  # what the engine gives a container that is made with a limit
    elif now.limits["memory_swap"] == DEFAULT:
        swap = DEFAULT
    else:
        swap = Size(memory + max(0, now.limits["memory_swap"] - now.limits["memory"]))
    if swap != DEFAULT and (memory == DEFAULT or swap < memory):
        raise Invalid(
            f"cannot limit memory and swap of {now.name} to {swap}",
            why="it has no memory limit" if memory == DEFAULT else f"its memory limit is {memory}, and memory_swap is the sum of memory and swap",
            fix="Give memory too, and a memory_swap of at least that.",
        )
    return {"memory": memory, "memory_swap": swap}


def guard_usage(now: Container, before: Values, after: Values) -> None:
    """Refuse a limit lower than before that is below what the container uses now."""
    used_now = (now.reading.memory_used, now.reading.pids) if now.reading else (None, None)
    for limit, number, room in (("memory", used_now[0], HEADROOM), ("pids_limit", used_now[1], 1)):
        used = Size(number or 0) if limit == "memory" else number or 0
        value = after.get(limit, DEFAULT)
        if value != DEFAULT and value < used * room and (before[limit] == DEFAULT or value < before[limit]):
            raise Refused(
                f"will not limit {limit} of {now.name} to {value}",
                why=f"it is using {used}, so processes in it could be killed or fail to start",
                fix="Choose a higher limit, free some in the container first, or set allow_below_usage=true.",
            )


def notes(now: Container, wanted: Values, changing: bool) -> tuple[str, ...]:
    """What a person should know of these limits."""
    cpus, told = wanted.get("cpus", DEFAULT), []
    if cpus != DEFAULT and cpus >= now.host.cpus:
        told.append(f"a limit of {cpus} CPUs changes nothing for it on a host with {now.host.cpus}")
    if changing and now.status not in ("running", "paused"):
        told.append(f"it is {now.status}: the limits are stored, and take effect when it starts")
    return tuple(told)


def difference(wanted: Values, now: Container) -> tuple[Values, Values]:
    """What must change for a container to be as wanted: those limits as they are, and as they shall be."""
    differing = {limit for limit, value in wanted.items() if now.present(limit, value) != value}
    if differing & {"memory", "memory_swap"}:
        differing |= wanted.keys() & {"memory", "memory_swap"}  # the engine checks one against the other
    after = {limit: wanted[limit] for limit in LIMITS if limit in differing}
    return {limit: now.present(limit, value) for limit, value in after.items()}, after


def way_back(before: Values, now: Container) -> tuple[Values, str]:
    """The limits that put ``before`` back while the container runs, and how well they do."""
    kinds = {limit: _reversibility(limit, before, now) for limit in before}
    undo = {limit: value for limit, value in before.items() if kinds[limit] != "none"}
    return undo, max(kinds.values(), key=REVERSIBILITIES.index, default="exact")


def _liftable(limit: str, now: Container) -> bool:
    return limit != "memory_reservation" and (limit != "cpu_shares" or now.host.cgroup_version == "1")


def _reversibility(limit: str, before: Values, now: Container) -> str:
    """How well the value that a limit had can be put back while the container runs."""
    together = {"memory", "memory_swap"} if limit in ("memory", "memory_swap") else {limit}
    if before[limit] == DEFAULT:
        return "exact" if limit == "pids_limit" else "equivalent" if _liftable(limit, now) else "none"
    try:
        if limit in QUANTITIES:
            QUANTITIES[limit].check(before[limit])
        attainable({name: value for name, value in before.items() if name in together}, now)
    except (HealerError, ValueError):
        return "none"  # made by other means, and out of the bounds of an update
    return "exact"


def compose_lines(now: Container, limits: t.Mapping[str, t.Any]) -> str:
    """The lines of a Compose file that make these limits outlast the container."""
    keys = {"memory": "mem_limit", "memory_swap": "memswap_limit", "memory_reservation": "mem_reservation", "cpuset_cpus": "cpuset"}
    lines = ["services:", f"  {now.labels.get('com.docker.compose.service', now.name)}:"]
    for limit, value in limits.items():
        key, shown = keys.get(limit, limit), f'"{value}"' if limit == "cpuset_cpus" else f"{value}"
        if isinstance(value, Size):
            shown = f"{value >> 20}m" if value % (1 << 20) == 0 else f"{int(value)}b"
        lines.append(f"    # no {key}" if value == DEFAULT else f"    {key}: {shown}")
    return "\n".join(lines) + "\n"
