"""A container's configuration file: current values, pending ones and snapshots; its text and the digest of that."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t

from tests.lab.proxmox.schema import parse_properties, split_list

NUMBERS = frozenset({"cores", "memory", "swap", "cpuunits", "tty", "snaptime", "onboot", "protection", "console", "debug", "template", "unprivileged"})
VOLUME = re.compile(r"rootfs|mp\d+")
UNUSED = re.compile(r"unused\d+")
# What a snapshot does not copy; unusedN neither.
NOT_COPIED = frozenset({"description", "lock", "digest", "snapstate", "snaptime", "vmstate"})
_UNSAFE = re.compile(rb"[^\x20-\x39\x3b-\x7e]")

Values = dict[str, str]


@dataclasses.dataclass
class Config:
    """Values as the file has them: all are text. ``deleted`` are the keys that the next start removes."""

    current: Values = dataclasses.field(default_factory=dict)
    pending: Values = dataclasses.field(default_factory=dict)
    deleted: list[str] = dataclasses.field(default_factory=list)
    raw: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    snapshots: dict[str, Values] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        text = _section(self.current) + "".join(f"{key}: {value}\n" for key, value in self.raw)
        pending = dict(self.pending) | ({"delete": ",".join(sorted(self.deleted))} if self.deleted else {})
        if pending:
            text += "\n[pve:pending]\n" + _section(pending)
        return text + "".join(f"\n[{name}]\n{_section(self.snapshots[name])}" for name in sorted(self.snapshots))

    def digest(self) -> str:
        """SHA-1 of the file's text: any change changes it, and the same text has the same one."""
        return hashlib.sha1(self.text().encode(), usedforsecurity=False).hexdigest()

    @property
    def lock(self) -> str | None:
        return self.current.get("lock")

    def merged(self) -> Values:
        """The values that the next start will have."""
        return {key: value for key, value in self.current.items() if key not in self.deleted} | self.pending

    def tidy(self) -> None:
        """Drop pending changes that change nothing."""
        self.pending = {key: value for key, value in self.pending.items() if self.current.get(key) != value}
        self.deleted = sorted({key for key in self.deleted if key in self.current})

    def memory(self) -> int:
        """MiB"""
        return int(self.current.get("memory", "512"))

    def swap(self) -> int:
        """MiB; a configuration without the key means none, whatever the documented default is."""
        return int(self.current.get("swap", "0"))

    def volumes(self) -> dict[str, Volume]:
        return volumes(self.current)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A mount point's volume. ``storage`` is None for a bind or device mount."""

    key: str
    name: str
    storage: str | None
    size: int
    options: dict[str, str]


def volumes(values: Values) -> dict[str, Volume]:
    return {key: read_volume(key, values[key]) for key in sorted(values) if VOLUME.fullmatch(key)}


def read_volume(key: str, value: str) -> Volume:
    options = parse_properties(value, "volume")
    name = options.pop("volume")
    storage = None if name.startswith("/") else name.partition(":")[0]
    return Volume(key, name, storage, parse_size(options.get("size", "0")), options)


def parse_size(text: str) -> int:
    """``8G`` in bytes; a plain number is bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if not match:
        return 0
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def print_size(size: int) -> str:
    for power, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def shown(values: Values) -> dict[str, t.Any]:
    """Values with the types that the API gives them: ``cpulimit`` is text, a description ends with a line feed."""
    return {key: show(key, value) for key, value in values.items()}


def show(key: str, value: str) -> t.Any:
    if key in NUMBERS:
        return int(value)
    return value + "\n" if key == "description" else value


def clean_description(value: str) -> str:
    """A description as the file keeps it: trailing line feeds are lost."""
    return value.rstrip("\n")


def clean_tags(value: str) -> str:
    return ";".join(sorted({tag.lower() for tag in split_list(value)}))


def copied(values: Values) -> Values:
    """What a snapshot takes over from the configuration, and a rollback from the snapshot."""
    return {key: value for key, value in values.items() if key not in NOT_COPIED and not UNUSED.fullmatch(key)}


def _section(values: Values) -> str:
    lines = [f"#{_encode(line)}\n" for line in values.get("description", "").split("\n")] if values.get("description") else []
    return "".join(lines) + "".join(f"{key}: {values[key]}\n" for key in sorted(values) if key != "description")


def _encode(line: str) -> str:
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], line.encode()).decode()
