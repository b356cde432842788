"""Parameter verification: every bad parameter of a request is named at once, in the words that clients match on."""

from __future__ import annotations

import dataclasses
import re
import typing as t

MISSING = "property is missing and it is not optional"
UNKNOWN = "property is not defined in schema and the schema does not allow additional properties"

_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.\d+|\d+\.|\.\d+|\d+)([eE][+-]?\d+)?")
_BOOLEAN = re.compile(r"[01]")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"({_LABEL}\.)*{_LABEL}")
_NODE = re.compile(_LABEL)
_CONFIG_ID = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]+")
_STORAGE_ID = re.compile(r"[a-zA-Z][a-zA-Z0-9\-_.]*[a-zA-Z0-9]")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_\-+.]*")
_VMID = re.compile(r"[1-9][0-9]{2,8}")
_USER = re.compile(r"[^\s:/]+@[A-Za-z][A-Za-z0-9.\-_]+")
_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9.\-_]+")

Check = t.Callable[[str], "str | None"]


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter: ``check`` is its format, and answers what is wrong or None."""

    kind: str = "string"
    minimum: float | None = None
    maximum: float | None = None
    enum: tuple[str, ...] = ()
    pattern: str | None = None
    check: Check | None = None
    longest: int | None = None
    shortest: int | None = None
    optional: bool = True

    def needed(self) -> Param:
        return dataclasses.replace(self, optional=False)


def split_list(value: str) -> list[str]:
    return [part for part in re.split(r"[,;\s\0]+", value) if part]


def _matching(regex: re.Pattern[str], complaint: str) -> Check:
    def check(value: str) -> str | None:
        return None if regex.fullmatch(value) else complaint.replace("%s", value)

    return check


def _each(check: Check) -> Check:
    def check_list(value: str) -> str | None:
        return next((wrong for part in split_list(value) if (wrong := check(part))), None)

    return check_list


def parse_properties(value: str, default_key: str | None = None) -> dict[str, str]:
    """``a=1,b=2`` as a dict; a part without ``=`` belongs to ``default_key``."""
    found: dict[str, str] = {}
    for part in value.split(","):
        if not part.strip():
            continue
        key, equals, rest = part.partition("=")
        if not equals:
            if default_key is None:
                raise ValueError("value without key, but schema does not define a default key")
            key, rest = default_key, part
        if key in found:
            raise ValueError(f"duplicate key in comma-separated list property: {key}")
        found[key] = rest
    return found


def _property_string(name: str, needed: t.Iterable[str], allowed: t.Iterable[str], default_key: str | None = None) -> Check:
    required, known = tuple(needed), frozenset(allowed)

    def check(value: str) -> str | None:
        try:
            found = parse_properties(value, default_key)
        except ValueError as error:
            return str(error)
        wrong = {key: MISSING for key in required if key not in found} | {key: UNKNOWN for key in found if key not in known}
        return "format error\n" + "\n".join(f"{name}.{key}: {text}" for key, text in sorted(wrong.items())) if wrong else None

    return check


_VOLUME_KEYS = ("volume", "acl", "mountoptions", "quota", "replicate", "ro", "shared", "size", "idmap")
_MOUNT_KEYS = (*_VOLUME_KEYS, "mp", "backup", "keepattrs")
_NET_KEYS = (*("name", "bridge", "firewall", "gw", "gw6", "host-managed", "hwaddr", "ip", "ip6", "link_down", "mtu", "rate", "tag", "trunks", "type"),)
_FEATURE_KEYS = ("force_rw_sys", "fuse", "keyctl", "mknod", "mount", "nesting")

check_config_id = _matching(_CONFIG_ID, "invalid configuration ID '%s'")
check_dns_name = _matching(_DNS_NAME, "value does not look like a valid DNS name")

STRING = Param()
BOOLEAN = Param("boolean")
INTEGER = Param("integer")
COUNT = Param("integer", minimum=0)
NODE = Param(check=_matching(_NODE, "value does not look like a valid node name"), optional=False)
VMID = Param("integer", minimum=100, maximum=999999999, check=_matching(_VMID, "value does not look like a valid VM ID"), optional=False)
SNAPNAME = Param(check=check_config_id, longest=40)
VMIDS = Param(check=_each(_matching(_VMID, "value does not look like a valid VM ID")))
DIGEST = Param(longest=40)
CONFIG_IDS = Param(check=_each(check_config_id))
STORAGE_ID = Param(check=_matching(_STORAGE_ID, "storage ID '%s' contains illegal characters"))
USER_ID = Param(check=_matching(_USER, "value '%s' does not look like a valid user name"), longest=64)
TOKEN_NAME = Param(pattern=_TOKEN.pattern)
TAGS = Param(check=_each(_matching(_TAG, "invalid characters in tag")))
DNS_NAME = Param(check=check_dns_name, longest=255)


def enum(*values: str) -> Param:
    return Param(enum=values)


def integer(minimum: float | None = None, maximum: float | None = None) -> Param:
    return Param("integer", minimum, maximum)


def text(longest: int | None = None, shortest: int | None = None, pattern: str | None = None) -> Param:
    return Param(longest=longest, shortest=shortest, pattern=pattern)


LOCKS = ("backup", "create", "destroyed", "disk", "fstrim", "migrate", "mounted", "rollback", "snapshot", "snapshot-delete")
VOLUME_NAMES = ("rootfs", *(f"mp{number}" for number in range(256)))

_CONFIG = {
    "arch": enum("amd64", "i386", "arm64", "armhf", "riscv32", "riscv64"),
    "cmode": enum("shell", "console", "tty"),
    "console": BOOLEAN,
    "cores": integer(1, 8192),
    "cpulimit": Param("number", 0, 8192),
    "cpuunits": integer(0, 500000),
    "debug": BOOLEAN,
    "description": text(longest=8192),
    "features": Param(check=_property_string("features", (), _FEATURE_KEYS)),
    "hookscript": STRING,
    "hostname": DNS_NAME,
    "lock": enum(*LOCKS),
    "memory": integer(16),
    "nameserver": STRING,
    "onboot": BOOLEAN,
    "ostype": enum("debian", "devuan", "ubuntu", "centos", "fedora", "opensuse", "archlinux", "alpine", "gentoo", "nixos", "unmanaged"),
    "protection": BOOLEAN,
    "rootfs": Param(check=_property_string("rootfs", ("volume",), _VOLUME_KEYS, "volume")),
    "searchdomain": Param(check=_each(check_dns_name)),
    "startup": STRING,
    "swap": integer(0),
    "tags": TAGS,
    "template": BOOLEAN,
    "timezone": STRING,
    "tty": integer(0, 6),
    "unprivileged": BOOLEAN,
}
_CONFIG_9 = {"entrypoint": STRING, "env": STRING}
_NUMBERED = {"mp": 256, "net": 32, "dev": 256, "unused": 256}
_NUMBERED_NAME = re.compile(r"(mp|net|dev|unused)(0|[1-9]\d*)")


def _numbered(name: str) -> Param | None:
    match = _NUMBERED_NAME.fullmatch(name)
    if not match or int(match[2]) >= _NUMBERED[match[1]]:
        return None
    checks: dict[str, Param] = {
        "mp": Param(check=_property_string(name, ("mp", "volume"), _MOUNT_KEYS, "volume")),
        "net": Param(check=_property_string(name, ("name",), _NET_KEYS)),
        "dev": STRING,
        "unused": STRING,
    }
    return checks[match[1]]


def config_params(release: str) -> dict[str, Param]:
    """The keys of a container's configuration that a request may set, without the numbered ones."""
    return _CONFIG | (_CONFIG_9 if release >= "9" else {})


def knows_option(name: str, release: str) -> bool:
    return name in config_params(release) or _numbered(name) is not None


def verify(params: dict[str, str], table: t.Mapping[str, Param], *, numbered: bool = False) -> dict[str, str]:
    """Return a text per bad parameter; numbered keys (mp0, net1) are known where ``numbered`` says so."""
    wrong = {}
    for name, param in table.items():
        if name not in params:
            if not param.optional:
                wrong[name] = MISSING
        elif complaint := _complain(param, params[name]):
            wrong[name] = complaint
    for name in params.keys() - table.keys():
        known = _numbered(name) if numbered else None
        if known is None:
            wrong[name] = UNKNOWN
        elif complaint := _complain(known, params[name]):
            wrong[name] = complaint
    return wrong


def _complain(param: Param, value: str) -> str | None:
    shape = {"integer": _INTEGER, "number": _NUMBER, "boolean": _BOOLEAN}.get(param.kind)
    if shape and not shape.fullmatch(value):
        return f"type check ('{param.kind}') failed - got '{value}'"
    if param.check and (wrong := param.check(value)):
        return f"invalid format - {wrong}\n"
    if param.pattern and not re.fullmatch(param.pattern, value):
        return "value does not match the regex pattern"
    return _complain_of_bounds(param, value)


def _complain_of_bounds(param: Param, value: str) -> str | None:
    if param.longest is not None and len(value) > param.longest:
        return f"value may only be {param.longest} characters long"
    if param.shortest is not None and len(value) < param.shortest:
        return f"value must be at least {param.shortest} characters long"
    if param.maximum is not None and float(value) > param.maximum:
        return f"value must have a maximum value of {param.maximum:g}" if param.maximum < 1e6 else f"value must have a maximum value of {int(param.maximum)}"
    if param.minimum is not None and float(value) < param.minimum:
        return f"value must have a minimum value of {param.minimum:g}"
    if param.enum and value not in param.enum:
        return f"value '{value}' does not have a value in the enumeration '{', '.join(param.enum)}'"
    return None
