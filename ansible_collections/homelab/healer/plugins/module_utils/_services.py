# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A service in a container: how it is named, what its init says of it, which units do its work, and what tells a new process. Pure: no I/O.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.\\@-]*")
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""The names of OpenRC's services."""
OTHER_KINDS = ("socket", "device", "mount", "automount", "swap", "target", "path", "timer", "slice", "scope")
LONGEST = 255
LOWEST, HIGHEST = 100, 999_999_999
"""The numbers that a container may have."""
JOURNAL_MOST = 100
LINE = 300
"""Characters of a line of a journal that are worth telling."""
NEEDED = ("Id", "LoadState", "ActiveState", "SubState")
OF_UNIT = (
    *NEEDED,
    "Type",
    "MainPID",
    "InvocationID",
    "NRestarts",
    "Restart",
    "Result",
    "StartLimitBurst",
    "UnitFileState",
    "CanReload",
    "ConsistsOf",
    "Job",
    "StateChangeTimestampMonotonic",
    "ExecMainStartTimestampMonotonic",
    "ExecMainStatus",
    "ActiveEnterTimestamp",
    "StatusText",
    "RemainAfterExit",
)
PROPERTIES = ",".join(OF_UNIT)
"""What systemd is asked about a unit."""
OPENRC_WORDS = {
    0: ("active", "started"),
    3: ("inactive", "stopped"),
    4: ("deactivating", "stopping"),
    8: ("activating", "starting"),
    16: ("inactive", "inactive"),
    32: ("failed", "crashed"),
}
"""What the exit status of ``rc-service NAME status`` means, in systemd's words and in OpenRC's own."""
ANEW, DIED = "auto-restart", "auto-restart-queued"
PENDING = ("activating", "deactivating", "reloading", "refreshing", "maintenance")
SANDBOX = 226
"""The exit status of a unit whose sandbox could not be set up."""

SPEAKING = r"[a-z0-9_-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|credential|authorization)[a-z0-9_-]*"
NAMED = re.compile(rf"""(?i)({SPEAKING}"?\s*[=:\s]\s*)("[^"]*"|'[^']*'|(?:Bearer |Basic )?\S+)""")
IN_ADDRESS = re.compile(r"(\w+://)[^\s/@]*:[^\s/@]*@")
BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")


@dataclass(frozen=True)
class Unit:
    """A unit as its init has it; two are equal when it is the same unit in the same run and state.

    ``invocation`` is what another run has another of: systemd's id, or what the process is told by. ``proof`` says which: ``invocation``, ``process``,
    ``stamp`` (only that the init started it anew) or nothing. ``changed`` is when its state changed last, by the container's own clock.
    """

    id: str
    load: str
    active: str
    sub: str
    main_pid: int
    invocation: str
    changed: str
    type: str = field(default="", compare=False)
    restarts: int = field(default=0, compare=False)
    restart: str = field(default="no", compare=False)
    result: str = field(default="success", compare=False)
    burst: int = field(default=0, compare=False)
    enabled: str = field(default="", compare=False)
    remains: bool = field(default=False, compare=False)
    can_reload: bool = field(default=True, compare=False)
    consists_of: tuple[str, ...] = field(default=(), compare=False)
    job: int = field(default=0, compare=False)
    status: int = field(default=0, compare=False)
    since: str = field(default="", compare=False)
    text: str = field(default="", compare=False)
    init: str = field(default="systemd", compare=False)
    proof: str = field(default="invocation", compare=False)

    @property
    def oneshot(self) -> bool:
        return self.type == "oneshot"

    @property
    def pending(self) -> bool:
        """Whether its init is just starting, stopping or reloading it."""
        return bool(self.job) or (self.active in PENDING and not self.fell)

    @property
    def fell(self) -> bool:
        """Whether it died and waits to be started again by systemd itself."""
        return self.sub in (ANEW, DIED)

    @property
    def up(self) -> bool:
        """Whether it does its work: a process is there or, of one that is done when it has run and remains, it ran well."""
        if self.oneshot:
            return self.active == "active"
        return self.active in ("active", "reloading", "refreshing") and self.sub not in ("exited", "failed", "dead")

    @property
    def present(self) -> str:
        """Its state as ``only_if`` has it."""
        return "failed" if self.fell else "active" if self.active in ("reloading", "refreshing") else self.active

    @property
    def limited(self) -> bool:
        """Whether systemd starts it no more, as it was started too often."""
        often = self.restart not in ("", "no") and 0 < self.burst <= self.restarts
        return self.active == "failed" and (self.result == "start-limit-hit" or often)

    @property
    def told(self) -> str:
        """Its state as one reads it."""
        failure = f", result {self.result}" if self.result not in ("", "success") else ""
        status = f", exit status {self.status}" if failure and self.status else ""
        return f"{self.active} ({self.sub}{failure}{status}){f': {self.text}' if self.text else ''}"

    @property
    def identity(self) -> dict[str, t.Any]:
        """What a restart renews."""
        return {"active_state": self.active, "main_pid": self.main_pid, "invocation_id": self.invocation}

    @property
    def figures(self) -> dict[str, t.Any]:
        """What the diff shows besides."""
        return {"sub_state": self.sub, "n_restarts": self.restarts}

    @property
    def figures_anew(self) -> dict[str, t.Any]:
        """The same, as a restart promises them."""
        return {"sub_state": self.sub if self.oneshot else "running", "n_restarts": 0}

    def anew(self, other: Unit) -> bool:
        """Whether ``other``, an earlier look, was another run of it."""
        if self.proof == "stamp":
            return self.changed != other.changed
        return bool(self.invocation) and self.invocation != other.invocation

    def as_dict(self) -> dict[str, t.Any]:
        """The unit as it is returned."""
        return dict(
            unit=self.id,
            load_state=self.load,
            active_state=self.active,
            sub_state=self.sub,
            up=self.up,
            type=self.type,
            main_pid=self.main_pid,
            invocation_id=self.invocation,
            n_restarts=self.restarts,
            result=self.result,
            start_limited=self.limited,
            can_reload=self.can_reload,
            enabled=self.enabled,
            changed_at=self.changed,
            since=self.since,
            status_text=self.text,
        )


@dataclass(frozen=True)
class Service:
    """A service in a container. ``asked`` is the unit that was named, ``units`` are those that do its work, mostly itself alone."""

    key: int
    asked: Unit = field(compare=False)
    units: tuple[Unit, ...]

    @property
    def name(self) -> str:
        return f"{self.asked.id} in {self.key}"

    @property
    def up(self) -> bool:
        return all(unit.up for unit in self.units)

    def unit(self, name: str) -> Unit | None:
        """One of its units by its name."""
        return next((unit for unit in self.units if unit.id == name), None)


def service_facts(service: Service) -> dict[str, t.Any]:
    """What is told of a service: its init, the units it stands for, and those that do its work."""
    others = [unit.id for unit in service.units if unit.id != service.asked.id]
    return dict(init=service.asked.init, stands_for=others, units=[unit.as_dict() for unit in service.units])


def unit_name(text: str) -> str:
    """The full name of a service, of ``postgresql@15-main`` ``postgresql@15-main.service``. Raises ``ValueError`` for what can be none."""
    kind = text.rpartition(".")[2]
    if kind in OTHER_KINDS and "." in text:
        raise ValueError(f"it is a {kind}, and only services can be acted on")
    name = text if text.endswith(".service") else f"{text}.service"
    if not UNIT.fullmatch(name) or len(name) > LONGEST or name.startswith(".service"):
        raise ValueError("the name of a unit has letters, digits and : _ . \\ @ -, begins with a letter, a digit or _, and is no longer than 255")
    if name.endswith("@.service"):
        raise ValueError("it is a template; name one of its instances, as postgresql@15-main")
    return name


def bare(name: str) -> str:
    """The same name as OpenRC has it. Raises ``ValueError`` where OpenRC cannot have it."""
    plain = name[: -len(".service")] if name.endswith(".service") else name
    if not PLAIN.fullmatch(plain):
        raise ValueError(f"{plain} is no name of a service of OpenRC")
    return plain


def numbers(given: t.Sequence[int]) -> tuple[int, ...]:
    """The numbers of containers. Raises ``ValueError`` for what can be none."""
    if not given:
        raise ValueError("it is empty, and that is never read as all")
    if not all(LOWEST <= vmid <= HIGHEST for vmid in given):
        raise ValueError(f"the number of a container is between {LOWEST} and {HIGHEST}")
    return tuple(dict.fromkeys(given))


def lines_told(number: int) -> int:
    """The same number of lines of a journal. Raises ``ValueError`` for more than anybody reads."""
    if not 0 <= number <= JOURNAL_MOST:
        raise ValueError(f"it must be between 0 and {JOURNAL_MOST}")
    return number


def command(given: t.Sequence[str]) -> tuple[str, ...]:
    """A command as a list of arguments. Raises ``ValueError`` for what cannot be run."""
    if not given or not given[0]:
        raise ValueError("it names no program; give a list of a program and its arguments")
    if given[0].startswith("-") or any("\0" in argument for argument in given):
        raise ValueError("it begins with a -, or has a zero byte, and no program can be run so")
    return tuple(given)


def parse_units(text: str, number: int) -> list[Unit]:
    """Read what ``systemctl show`` prints of so many units. Raises ``ValueError`` for anything else."""
    blocks = [block for block in text.split("\n\n") if block.strip()]
    if len(blocks) != number:
        raise ValueError(f"it is about {len(blocks)} units, not {number}")
    return [_unit(block) for block in blocks]


def _unit(block: str) -> Unit:
    facts: dict[str, str] = {}
    for line in block.strip("\n").split("\n"):
        key, equals, value = line.partition("=")
        if not equals or key not in OF_UNIT or key in facts:
            raise ValueError(f"the line {line[:80]!r}")
        facts[key] = value
    missing = [key for key in NEEDED if not facts.get(key)]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    invocation, pid = facts.get("InvocationID", ""), int(facts.get("MainPID") or 0)
    process = f"{pid}@{facts.get('ExecMainStartTimestampMonotonic') or 0}" if pid else ""
    return Unit(
        id=facts["Id"],
        load=facts["LoadState"],
        active=facts["ActiveState"],
        sub=facts["SubState"],
        main_pid=pid,
        invocation=invocation or process,
        changed=facts.get("StateChangeTimestampMonotonic", ""),
        type=facts.get("Type", ""),
        restarts=int(facts.get("NRestarts") or 0),
        restart=facts.get("Restart") or "no",
        result=facts.get("Result", ""),
        burst=int(facts.get("StartLimitBurst") or 0),
        enabled=facts.get("UnitFileState", ""),
        remains=facts.get("RemainAfterExit", "") == "yes",
        can_reload=facts.get("CanReload", "") == "yes",
        consists_of=tuple(facts.get("ConsistsOf", "").split()),
        job=int((facts.get("Job") or "0").split()[0]),
        status=int(facts.get("ExecMainStatus") or 0),
        since=facts.get("ActiveEnterTimestamp", ""),
        text=redacted(facts.get("StatusText", "")),
        proof="invocation" if invocation else "process",
    )


def instances(unit: Unit) -> tuple[str, ...]:
    """The services that a unit stands for: one that runs no process of its own, and is reloaded and restarted for others' sake."""
    others = tuple(sorted(name for name in unit.consists_of if name.endswith(".service")))
    return others if unit.oneshot and not unit.main_pid and unit.load == "loaded" else ()


def openrc_files(text: str) -> tuple[int, str]:
    """The process that a supervisor started, and the file with the number of the main process, as OpenRC has written them down; 0 and empty where not.

    ``text`` has lines of OpenRC's files, each after the file's name and a colon.
    """
    child, pidfile = 0, ""
    for line in text.splitlines():
        name, _colon, value = line.partition(":")
        if name.endswith("/child_pid") and value.isdigit() and len(value) < 10:
            child = int(value)
        value = value if name.endswith("/pidfile") else value[len("pidfile=") :] if value.startswith("pidfile=") else ""
        pidfile = value if value.startswith("/") else pidfile
    return child, pidfile


def started_at(text: str) -> str:
    """When a process began, in ticks of its kernel, from its ``/proc/<pid>/stat``; empty where there is none."""
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[19].isdigit() else ""


def openrc_unit(name: str, code: int, pid: int, born: str, stamp: str) -> Unit:
    """A service of OpenRC, from the exit status of its ``status``, its main process and when that began, and when OpenRC noted that it is started.

    OpenRC watches only what its own programs started, so one whose main process is not there any more is crashed, whatever it says.
    """
    active, sub = OPENRC_WORDS[code]
    if active == "active" and pid and not born:
        active, sub = "failed", "crashed"
    pid = pid if born else 0
    proof, invocation = ("process", f"{pid}@{born}") if pid else ("stamp", f"started {stamp}") if stamp else ("", "")
    return Unit(name, "loaded", active, sub, pid, invocation, stamp, init="openrc", proof=proof, result="success" if active != "failed" else "crashed")


def redacted(line: str) -> str:
    """A line without what may be a secret: values of names that speak of one, and what stands before the @ of an address."""
    line = IN_ADDRESS.sub(r"\1***@", line)
    return BEARER.sub(r"\1 ***", NAMED.sub(r"\1***", line))


def tail(text: str, lines: int) -> list[str]:
    """The last lines of a text that say something, fit to be told: redacted, bounded, without control characters."""
    said = ["".join(char if char.isprintable() else " " for char in line).strip() for line in text.splitlines()[-200:]]
    return [redacted(line[: 4 * LINE])[:LINE] for line in [line for line in said if line][-lines:]]
