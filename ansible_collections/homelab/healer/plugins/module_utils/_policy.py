# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What may happen: the policy file, read strictly, and what it says of a remedy and a target.

Nothing here has a clock or opens the file. What is not known of a target never makes a decision looser: unknown is critical.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import traceback
import typing as t
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase

from ansible.module_utils.basic import missing_required_lib
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.homelab.healer.plugins.module_utils._change import REVERSIBILITIES
from ansible_collections.homelab.healer.plugins.module_utils._errors import Invalid, MissingLibrary
from ansible_collections.homelab.healer.plugins.module_utils._sizes import parse_size, parse_span

try:
    import yaml

    YAML_ERROR: str | None = None
except ImportError:
    YAML_ERROR = traceback.format_exc()

try:
    import zoneinfo

    ZONES_ERROR: str | None = None
except ImportError:  # Python before 3.9
    ZONES_ERROR = traceback.format_exc()

Facts = t.Mapping[str, t.Any]
Problems = t.List[str]
Found = t.Tuple[t.Optional[bool], t.Tuple[str, ...]]
"""Whether something matches, where that is known, and what would have to be known to say so."""

DECISIONS = ("off", "dry_run", "approve", "auto")
"""From the strictest to the loosest."""
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
CHANNELS = ("telegram", "prompt", "command", "awx")
DEFAULT_CHANNELS = CHANNELS[:3]
"""The ways that count where a policy names none. By AWX a yes was given before it was asked for, so that is taken only where it is named."""
POSTGRESQL_KINDS = ("postgresql", "session", "sessions", "table")
ONE_SERVER = ("postgresql", "session", "sessions")
"""These change the same thing, a server's sessions, so only one of them at a time may."""
TOLD: t.Mapping[str, tuple[str, ...]] = {
    "lxc": ("node", "tags", "pool", "hostname"),
    "container": ("labels", "hostname"),
    **dict.fromkeys(POSTGRESQL_KINDS, ("databases",)),
}
"""What a target of each kind can tell. What it cannot tell it does not have; of other kinds nothing is known."""
IDENTITIES = ("analyze_count", "cpuset_cpus", "filenode", "last_rollback", "main_pid", "pid", "vacuum_count")
"""Keys of a plan whose numbers are no sizes."""
BUILT_IN = "built-in: "
YEAR = 366 * 86400.0


# What is judged


@dataclass(frozen=True)
class Target:
    """What a remediation is about; ``None`` is what nobody knows of it."""

    host: str
    kind: str
    id: str
    name: str
    hostname: str | None = None
    node: str | None = None
    tags: tuple[str, ...] | None = None
    pool: str | None = None
    labels: t.Mapping[str, str | None] | None = None
    databases: tuple[str, ...] | None = None

    @classmethod
    def of(cls, host: str, facts: Facts) -> Target:
        """From ``remediate_target`` of an inventory's host."""

        def text(name: str) -> str | None:
            return None if facts.get(name) is None else str(facts[name])

        def several(name: str) -> tuple[str, ...] | None:
            value = facts.get(name)
            return None if value is None else (value,) if isinstance(value, str) else tuple(str(element) for element in value)

        labels = facts.get("labels")
        return cls(
            host=host,
            kind=text("kind") or "",
            id=text("id") or "",
            name=text("name") or "",
            hostname=text("hostname") or None,
            node=text("node") or None,
            tags=several("tags"),
            pool=text("pool"),
            labels={str(name): None if value is None else _text(value) for name, value in labels.items()} if isinstance(labels, t.Mapping) else None,
            databases=several("databases"),
        )

    @property
    def key(self) -> str:
        """The identity by which there is one remediation at a time, a cooldown and a freeze."""
        return f"{self.host}/postgresql" if self.kind in ONE_SERVER else f"{self.host}/{self.kind}/{self.id}"

    def has(self, fact: str) -> bool:
        """Whether a target of this kind may have such a fact at all."""
        return getattr(self, fact) is not None or fact in TOLD.get(self.kind, (fact,))


@dataclass(frozen=True)
class Plan:
    """What a remediation would change: for each step its ``module`` and ``args``, and of what that answered in check mode ``before``, ``after`` and
    ``reversibility``. A step that does not tell the last is taken for one without a way back.
    """

    steps: t.Sequence[Facts]

    @property
    def reversibility(self) -> str:
        """The worst of its steps'."""
        told = [step.get("reversibility") for step in self.steps]
        return max((word if word in REVERSIBILITIES else "none" for word in told), key=REVERSIBILITIES.index, default="exact")

    @property
    def options(self) -> dict[str, tuple[t.Any, ...]]:
        """Each option that a step is given, with all the values that the steps give it."""
        given = [step.get("args") or {} for step in self.steps]
        return {name: tuple(args[name] for args in given if name in args) for name in dict.fromkeys(name for args in given for name in args)}


@dataclass(frozen=True)
class Approval:
    """How a human is asked; spans in seconds."""

    wait: float
    expires: float
    on_timeout: str
    channels: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """What holds for all rules; spans in seconds, sizes of change in per cent."""

    window: float
    max_per_window: int
    max_per_target: int
    max_per_node: int
    max_in_flight: int
    max_in_flight_per_node: int
    max_growth: int
    max_shrink: int
    cooldown: float
    wait_for_backup: float


@dataclass(frozen=True)
class Breaker:
    """After so many failures of a target within the window (seconds) it is left alone."""

    failures: int
    window: float


@dataclass(frozen=True)
class Storm:
    """So many targets within the window are too many; spans in seconds."""

    targets: int
    window: float
    cool_down: float
    depends_on: t.Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Verdict:
    """What the policy says. Limits as in ``Limits``; ``max_per_window`` and ``max_in_flight`` are the rule's own, for all that it decided, if it has any."""

    decision: str
    rule: str
    why: str
    cooldown: float
    max_per_window: int | None
    max_in_flight: int | None
    max_growth: int
    max_shrink: int
    wait_for_backup: float
    approval: Approval

    def as_dict(self) -> dict[str, t.Any]:
        """It as data, for the ledger."""
        return t.cast(t.Dict[str, t.Any], json.loads(json.dumps(asdict(self))))


@dataclass(frozen=True)
class Freeze:
    """A freeze that is on: its name, the second since 1970 at which nothing is frozen any more, and a sentence."""

    name: str
    until: float
    why: str


# Matching


def _text(value: t.Any) -> str:
    """A value as a person writes it in the file."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _like(value: str, patterns: t.Iterable[str]) -> bool:
    return any(fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns)


WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _given(value: t.Any, patterns: t.Sequence[str], loosens: bool) -> bool | None:
    """Whether an option's value is like one of the patterns; a pattern such as ``true`` means all ways to write it."""
    if isinstance(value, (list, tuple)):
        each = [_given(element, patterns, loosens) for element in value]
        return _all(each) if loosens and each else _any(each)
    if any(pattern.lower() in WORDS for pattern in patterns):
        read = {"1": True, "0": False, **WORDS, "y": True, "t": True, "n": False, "f": False, "1.0": True, "0.0": False}.get(_text(value).strip().lower())
        others = [pattern for pattern in patterns if pattern.lower() not in WORDS]
        if read in [WORDS[pattern.lower()] for pattern in patterns if pattern.lower() in WORDS] or _like(_text(value), others):
            return True
        return False if read is not None or others else None
    return _like(_text(value), patterns)


def _all(each: t.Iterable[bool | None]) -> bool | None:
    found = list(each)
    return False if False in found else None if None in found else True


def _any(each: t.Iterable[bool | None]) -> bool | None:
    found = list(each)
    return True if True in found else None if None in found else False


@dataclass(frozen=True)
class Match:
    """What a rule, a freeze or a protection is about. Everything in it must hold; of several patterns one must."""

    texts: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: t.Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Facts) -> Match:
        """From what was read."""
        told = {name: tuple(patterns) for name, patterns in found.items() if name not in ("labels", "options")}
        maps = {name: {key: tuple(patterns) for key, patterns in found.get(name, {}).items()} for name in ("labels", "options")}
        return cls(told, **maps)

    def names(self, what: str) -> bool:
        """Whether it names a ``remedy`` or ``reversibility``; ``*`` names none."""
        return what in self.texts and all(pattern.strip("*?") for pattern in self.texts[what])

    def target(self, remedy: str, target: Target, loosens: bool) -> Found:
        """Whether the remedy and the target match. To ``loosen``, every database that is touched must."""
        each: dict[str, bool | None] = {}
        for name, patterns in self.texts.items():
            if name == "remedy":
                each[name] = _like(remedy, patterns)
            elif name != "reversibility":
                each[name] = self._fact(target, "databases" if name == "database" else name, patterns, loosens)
        for name, patterns in self.labels.items():
            if not target.has("labels"):
                each[f"label {name}"] = False
            elif target.labels is None:
                each[f"label {name}"] = None
            else:
                value = target.labels.get(name)  # none where its name speaks of a secret, and then nobody knows whether it matches
                each[f"label {name}"] = (None if value is None else _like(value, patterns)) if name in target.labels else False
        return _all(each.values()), tuple(name for name, found in each.items() if found is None)

    @staticmethod
    def _fact(target: Target, name: str, patterns: t.Sequence[str], loosens: bool) -> bool | None:
        value = getattr(target, name)
        if value is None:
            return None if target.has(name) else False
        if isinstance(value, str):
            return _like(value, patterns)
        found = [_like(element, patterns) for element in value]
        return bool(found) and all(found) if loosens and name == "databases" else any(found)

    def plan(self, plan: Plan | None, loosens: bool) -> Found:
        """Whether what is planned matches; unknown before there is a plan, if that is asked for. To ``loosen``, every step that has an option must."""
        asked = tuple(name for name in ("reversibility",) if name in self.texts) + tuple(f"option {name}" for name in self.options)
        if plan is None:
            return (None if asked else True), asked
        each: dict[str, bool | None] = {}
        if "reversibility" in self.texts:
            each["reversibility"] = _like(plan.reversibility, self.texts["reversibility"])
        for name, patterns in self.options.items():
            values = [_given(value, patterns, loosens) for value in plan.options.get(name, ())]
            each[f"option {name}"] = _all(values) if loosens and values else _any(values)
        return _all(each.values()), tuple(name for name, found in each.items() if found is None)


@dataclass(frozen=True)
class Rule:
    """One rule; ``own`` are the limits that it sets itself."""

    name: str
    match: Match
    decision: str
    own: Facts = field(default_factory=dict)

    @property
    def loosens(self) -> bool:
        return self.decision == "auto"


BUILT_IN_RULES: t.Sequence[Facts] = (
    dict(name="container 200", match=dict(kind=["lxc"], id=["200"]), decision="approve"),
    dict(name="production databases", match=dict(database=["prod*", "production*"]), decision="approve"),
    dict(name="full rewrite", match=dict(options=dict(full=["true"])), decision="approve"),
    dict(
        name="small changes with a way back",
        match=dict(remedy=["docker_runaway", "lxc_memory", "lxc_cpu", "lxc_snapshot"], reversibility=["exact", "equivalent"]),
        decision="auto",
    ),
    dict(name="plain vacuum", match=dict(remedy=["pg_bloat", "pg_vacuum"], options=dict(full=["false"])), decision="auto"),
    dict(name="no way back", match=dict(reversibility=["restore_only", "none"]), decision="approve"),
    dict(name="unknown", match={}, decision="approve"),
)


# Freeze windows


@dataclass(frozen=True)
class Window:
    """When nothing may be done: minutes since midnight on some days, seconds since 1970, or both."""

    name: str
    zone: dt.tzinfo
    days: tuple[str, ...]
    between: tuple[int, int] | None
    dates: tuple[float, float] | None
    remedies: tuple[str, ...]
    targets: Match

    def concerns(self, remedy: str, target: Target) -> bool:
        """Whether it holds for them; what is not known counts as if it did."""
        return _like(remedy, self.remedies) and self.targets.target(remedy, target, loosens=False)[0] is not False

    def end(self, now: float) -> float | None:
        """When what is on now ends, if it is on."""
        if self.dates and not self.dates[0] <= now < self.dates[1]:
            return None
        if self.dates and self.between is None and len(self.days) == len(DAYS):
            return self.dates[1]
        start, stop = self.between or (0, 0)
        today = dt.datetime.fromtimestamp(now, self.zone).date()
        ends = []
        for day in (today + dt.timedelta(days=offset) for offset in (-1, 0, 1)):  # since yesterday's may pass midnight, and clocks change
            if DAYS[day.weekday()] in self.days:
                begun = instant(day, start, self.zone, last=False)
                over = instant(day if stop > start else day + dt.timedelta(days=1), stop, self.zone, last=True)
                if begun <= now < over:
                    ends.append(min(over, self.dates[1]) if self.dates else over)
        return max(ends, default=None)


def instant(day: dt.date, minutes: int, zone: dt.tzinfo, last: bool) -> float:
    """The second since 1970 at which a clock shows so many minutes since midnight.

    Where clocks change, a time may come twice, or never; then it is the first or the ``last`` second that either clock, that of before and that of
    after the change, shows it. So a window is never shorter than it says.
    """
    shown = dt.datetime.combine(day, dt.time()) + dt.timedelta(minutes=minutes)
    both = [shown.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1)]
    return max(both) if last else min(both)


def _zone(name: str) -> dt.tzinfo:
    """A time zone by its IANA name. Raises ``ValueError``, or ``MissingLibrary``."""
    if name == "UTC":
        return dt.timezone.utc
    what = f"cannot tell what time it is in {name}"
    if ZONES_ERROR:
        raise MissingLibrary(what, why="Python before 3.9 knows no time zones", fix="Run it with Python 3.9 or newer on that host, or say timezone: UTC.")
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        if not zoneinfo.available_timezones():
            fix = "Install the system's package tzdata, or Python's (pip install tzdata), on that host, or say timezone: UTC."
            raise MissingLibrary(what, why="the host has no time zones", fix=fix) from error
        raise ValueError("it must be a time zone as IANA names them, such as Europe/Berlin or UTC") from error


def _minutes(text: str) -> int:
    shown = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if text != "24:00" and not shown:
        raise ValueError('it must be a time of day, such as "20:00"')
    return int(shown[1]) * 60 + int(shown[2]) if shown else 0


def _moment(text: str, zone: dt.tzinfo, last: bool) -> float:
    """A date or date-time of a zone as seconds since 1970; the ``last`` day is a whole one. Raises ``ValueError``."""
    shown = re.fullmatch(r"(2\d{3})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::00)?)?", text)
    if not shown:
        raise ValueError("it must be a date or a date and time, such as 2026-12-24 or 2026-12-24 18:00, as the time zone's clocks show it")
    day = dt.date(int(shown[1]), int(shown[2]), int(shown[3]))
    if shown[4] is None:
        return instant(day, 24 * 60 if last else 0, zone, last)
    at = dt.time(int(shown[4]), int(shown[5]))
    return instant(day, at.hour * 60 + at.minute, zone, last)


# What the file may say


@dataclass(frozen=True)
class Key:
    """A key of the file. ``parse`` makes the value of what ansible's argument spec let through, or raises ``ValueError``."""

    type: str = "str"
    default: t.Any = None
    required: bool = False
    choices: tuple[t.Any, ...] = ()
    parse: t.Callable[[t.Any], t.Any] | None = None
    section: str = ""
    """The keys of a map, or of each map of a list."""

    @property
    def spec(self) -> dict[str, t.Any]:
        """It as an option of ansible's argument spec."""
        return {"type": self.type, **({"elements": "str"} if self.type == "list" else {}), **({"choices": list(self.choices)} if self.choices else {})}


def _span(value: str, least: float = 0) -> float:
    seconds = parse_span(value)
    if not least <= seconds <= YEAR:
        raise ValueError(f"it must be between {least:g} seconds and 366 days")
    return seconds


def _some_time(value: str) -> float:
    return _span(value, 1)


def _at_least(least: int, most: int = 1_000_000) -> t.Callable[[int], int]:
    def parse(value: int) -> int:
        if not least <= value <= most:
            raise ValueError(f"it must be between {least} and {most}")
        return value

    return parse


def _some(values: list[str]) -> list[str]:
    if not all(values) or not values:
        raise ValueError("it is empty or has an empty element, which is never read as all; leave the key out if nothing is meant by it")
    return values


def _depends_on(found: Facts) -> dict[str, list[str]]:
    """Names by pattern; raises ``ValueError``."""
    return {str(pattern): _patterns(names) for pattern, names in found.items()}


def _patterns(value: t.Any, empty: bool = False) -> list[str]:
    """A pattern or several; raises ``ValueError``."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(element, str) and (element or empty) for element in values):
        raise ValueError("it must be a pattern or a list of patterns, none of them empty; an empty list is never read as all")
    return values


def _pattern_map(found: Facts) -> dict[str, list[str]]:
    if not found:
        raise ValueError("it is empty, which is never read as all; leave the key out if nothing is meant by it")
    return {str(name): _patterns(value) for name, value in found.items()}


def _reversibilities(value: t.Any) -> list[str]:
    patterns = _patterns(value)
    if not all(any(_like(word, [pattern]) for word in REVERSIBILITIES) for pattern in patterns):
        raise ValueError(f"it must be of {', '.join(REVERSIBILITIES)}")
    return patterns


def _pool(value: t.Any) -> list[str]:
    return _patterns(value, empty=True)


PATTERNS = Key(type="raw", parse=_patterns)
TARGET_KEYS: t.Mapping[str, Key] = {
    **dict.fromkeys(("host", "kind", "id", "name", "node", "tags"), PATTERNS),
    "pool": Key(type="raw", parse=_pool),
    "labels": Key(type="dict", parse=_pattern_map),
    "database": PATTERNS,
}
APPROVAL_KEYS: t.Mapping[str, Key] = {
    "wait": Key(default="5m", parse=_span),
    "expires": Key(parse=_some_time),
    "on_timeout": Key(default="deny", choices=("deny", "needs_human")),
    "channels": Key(type="list", default=list(DEFAULT_CHANNELS), choices=CHANNELS, parse=_some),
}
SECTIONS: t.Mapping[str, t.Mapping[str, Key]] = {
    "": {
        "version": Key(type="int", required=True, choices=(1,)),
        "mode": Key(default="live", choices=("live", "shadow")),
        "limits": Key(type="dict", default={}, section="limits"),
        "breaker": Key(type="dict", default={}, section="breaker"),
        "storm": Key(type="dict", default={}, section="storm"),
        "approval": Key(type="dict", default={}, section="approval"),
        "freeze": Key(type="list", default=[], section="freeze[]"),
        "protected": Key(type="list", default=[], section="protected[]"),
        "rules": Key(type="list", default=[], section="rules[]"),
    },
    "limits": {
        "window": Key(default="1h", parse=_some_time),
        "max_per_window": Key(type="int", default="10", parse=_at_least(0)),
        "max_per_target": Key(type="int", default="2", parse=_at_least(0)),
        "max_per_node": Key(type="int", default="4", parse=_at_least(0)),
        "max_in_flight": Key(type="int", default="3", parse=_at_least(0)),
        "max_in_flight_per_node": Key(type="int", default="1", parse=_at_least(0)),
        "max_growth": Key(type="int", default="100", parse=_at_least(0)),
        "max_shrink": Key(type="int", default="50", parse=_at_least(0, 100)),
        "cooldown": Key(default="15m", parse=_span),
        "wait_for_backup": Key(default="1h", parse=_span),
    },
    "breaker": {
        "failures": Key(type="int", default="3", parse=_at_least(1)),
        "window": Key(default="24h", parse=_some_time),
    },
    "storm": {
        "targets": Key(type="int", default="4", parse=_at_least(1)),
        "window": Key(default="5m", parse=_some_time),
        "cool_down": Key(default="5m", parse=_span),
        "depends_on": Key(type="dict", default={}, parse=_depends_on),
    },
    "approval": APPROVAL_KEYS,
    "freeze[]": {
        "name": Key(required=True),
        "timezone": Key(default="UTC"),
        "days": Key(type="list", default=list(DAYS), choices=DAYS, parse=_some),
        "from": Key(),
        "to": Key(),
        "begin": Key(),
        "end": Key(),
        "remedies": Key(type="list", default=["*"], parse=_some),
        "targets": Key(type="dict", default={}, section="freeze[].targets"),
    },
    "freeze[].targets": TARGET_KEYS,
    "protected[]": TARGET_KEYS,
    "rules[]": {
        "name": Key(required=True),
        "match": Key(type="dict", required=True, section="rules[].match"),
        "decision": Key(required=True, choices=DECISIONS),
        "cooldown": Key(parse=_span),
        "max_per_window": Key(type="int", parse=_at_least(0)),
        "max_in_flight": Key(type="int", parse=_at_least(0)),
        "max_growth": Key(type="int", parse=_at_least(0)),
        "max_shrink": Key(type="int", parse=_at_least(0, 100)),
        "wait_for_backup": Key(parse=_span),
        "approval": Key(type="dict", section="rules[].approval"),
    },
    "rules[].match": {
        "remedy": PATTERNS,
        **TARGET_KEYS,
        "options": Key(type="dict", parse=_pattern_map),
        "reversibility": Key(type="raw", parse=_reversibilities),
    },
    "rules[].approval": {name: replace(key, default=None) for name, key in APPROVAL_KEYS.items()},
}
"""Every key there is, by the map that it stands in."""


def _section(found: t.Any, place: str, name: str, problems: Problems) -> dict[str, t.Any]:
    """The values of a map of the file, with the defaults of what it leaves out; what is wrong is added to ``problems``."""
    keys = SECTIONS[name]
    if not isinstance(found, dict):
        problems.append(f"{place or 'the file'}: it must be a map of {', '.join(keys)}")
        return {}
    for other in found:
        if other not in keys:
            problems.append(f"{_at(place, other)}: there is no such key; there are {', '.join(keys)}")
    values = {}
    for option, key in keys.items():
        where = _at(place, option)
        if option in found:
            value = _value(found[option], where, option, key, problems)
        elif key.required:
            problems.append(f"{where}: it is missing" + (f"; write {option}: {key.choices[0]}" if len(key.choices) == 1 else ""))
            continue
        elif key.default is None:
            continue
        else:
            value = _value(key.default, where, option, key, problems)
        values[option] = value
    return values


def _at(place: str, key: t.Any) -> str:
    return f"{place}.{key}" if place else str(key)


SHAPES: t.Mapping[str, tuple[t.Any, str]] = {"dict": (dict, "a map"), "list": (list, "a list")}


def _value(value: t.Any, where: str, option: str, key: Key, problems: Problems) -> t.Any:
    try:
        if value is None:
            raise ValueError("it is empty; write a value, or leave the key out")
        shape, words = SHAPES.get(key.type, (str, "a single value"))
        if key.type != "raw" and not isinstance(value, shape):
            raise ValueError(f"it must be {words}" + (f" of {', '.join(map(str, key.choices))}" if key.choices else ""))
        if key.section and key.type == "list":
            return [_section(element, f"{where}[{index}]", key.section, problems) for index, element in enumerate(value)]
        return _section(value, where, key.section, problems) if key.section else _single(value, option, key)
    except (ValueError, OverflowError) as error:
        problems.append(f"{where}: {error}")
        return None


def _single(value: t.Any, option: str, key: Key) -> t.Any:
    if key.type == "list" and not all(isinstance(element, str) for element in value):
        raise ValueError("it must be a list of single values")
    read = ArgumentSpecValidator({option: key.spec}).validate({option: value})
    if read.error_messages:
        raise ValueError("; ".join(read.error_messages))
    valid = read.validated_parameters[option]
    return key.parse(valid) if key.parse else valid


def _load(text: str, source: str) -> t.Any:
    """The file's maps, lists and texts. Nothing but an empty value is read as more than its text, so that ``off`` is no truth and ``20:00`` no number."""
    what = f"cannot read the policy {source}"
    if YAML_ERROR:
        raise MissingLibrary(what, why=missing_required_lib("PyYAML"), fix="Install it there: pip install PyYAML.")

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, t.Any] = {}  # noqa: RUF012 - as its base class has it

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[t.Hashable, t.Any]:
            names = [key.value for key, _value in node.value]
            for key, _value in node.value:
                if not isinstance(key, yaml.ScalarNode) or names.count(key.value) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} is there twice, or is no text", key.start_mark)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|)$"), ["~", "n", ""])
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:
        fix = "Correct it; nothing was touched. What begins with *, [, { or & needs quotes."
        raise Invalid(what, why=" ".join(str(error).split()), fix=fix) from error


def read(text: str | None, source: str, own_hosts: t.Sequence[str] = (), own_database: str | None = None) -> Policy:
    """The policy of a file's text, or the built-in one for ``None``.

    ``own_hosts`` are the names of the hosts that the healer runs on, ``own_database`` is that of its ledger: neither is ever touched.
    Raises ``Invalid``, with every place that is wrong, and ``MissingLibrary``.
    """
    found = {"version": "1"} if text is None else _load(text, source)
    problems: Problems = []
    if found is None:
        problems.append("version: it is missing, for the file is empty; write version: 1 at least, or remove it to have the built-in policy")
        document: dict[str, t.Any] = {}
    else:
        document = _section(found, "", "", problems)
    windows: list[Window] = []
    if not problems:
        windows = [_window(window, f"freeze[{index}]", problems) for index, window in enumerate(document["freeze"])]
        _check(document, problems)
    if problems:
        raise Invalid(f"cannot use the policy {source}", why="; ".join(problems), fix="Correct it; nothing was touched.")
    storm, approval = document["storm"], document["approval"]
    return Policy(
        source=source,
        document=document,
        mode=document["mode"],
        limits=Limits(**document["limits"]),
        breaker=Breaker(**document["breaker"]),
        storm=Storm(**{**storm, "depends_on": {pattern: tuple(names) for pattern, names in storm["depends_on"].items()}}),
        approval=_approval(approval),
        freezes=tuple(windows),
        protected=tuple(Match.of(found) for found in document["protected"]),
        rules=(*(_rule(rule) for rule in document["rules"]), *(_rule(rule, BUILT_IN) for rule in BUILT_IN_RULES)),
        own_hosts=tuple(own_hosts),
        own_database=own_database,
    )


def _approval(found: Facts) -> Approval:
    # an answer must have time also where no run waits for it
    return Approval(found["wait"], found.get("expires", found["wait"] or 300.0), found["on_timeout"], tuple(found["channels"]))


def _rule(found: Facts, prefix: str = "") -> Rule:
    own = {key: value for key, value in found.items() if key not in ("name", "match", "decision")}
    return Rule(f"{prefix}{found['name']}", Match.of(found["match"]), found["decision"], own)


def _check(document: Facts, problems: Problems) -> None:
    """What cannot be said of a key by itself."""
    for section in ("freeze", "rules"):
        names = [found["name"] for found in document[section]]
        for index, name in enumerate(names):
            if not name or name in names[:index] or name.startswith(BUILT_IN.strip()):
                problems.append(f"{section}[{index}].name: it must be a name that no other has and that does not begin with {BUILT_IN.strip()}")
    for index, found in enumerate(document["protected"]):
        if not found:
            problems.append(f"protected[{index}]: it is empty and would protect everything. {STOP_ALL}")
    approvals = {f"rules[{index}].": rule["approval"] for index, rule in enumerate(document["rules"]) if "approval" in rule}
    for place, found in {"": {}, **approvals}.items():
        asked = _approval({**document["approval"], **found})
        if asked.expires < asked.wait:
            problems.append(f"{place}approval.expires: it must be as long as wait at least, {asked.wait:g} seconds")


STOP_ALL = "To stop everything, write a first rule with match: {} and decision: off"


def _window(found: Facts, place: str, problems: Problems) -> Window:
    """A freeze as it counts; what is wrong is added to ``problems``."""

    def told(key: str, parse: t.Callable[[str], t.Any], otherwise: t.Any) -> t.Any:
        try:
            return parse(found[key]) if key in found else otherwise
        except ValueError as error:
            problems.append(f"{place}.{key}: {error}")
            return otherwise

    for one, other in (("from", "to"), ("to", "from"), ("begin", "end"), ("end", "begin")):
        if one in found and other not in found:
            problems.append(f"{place}.{other}: it is missing, beside {one}")
    zone = told("timezone", _zone, dt.timezone.utc)
    start, stop = told("from", _minutes, None), told("to", _minutes, None)
    begin = told("begin", lambda text: _moment(text, zone, last=False), None)
    end = told("end", lambda text: _moment(text, zone, last=True), None)
    if start is not None and start == stop:
        problems.append(f"{place}.to: it is the same as from; leave both out for whole days")
    if begin is not None and end is not None and begin >= end:
        problems.append(f"{place}.end: it is not after begin")
    if len(set(found["days"])) == len(DAYS) and not {"from", "begin"} & set(found):
        problems.append(f"{place}: it would be on always; give days, from and to, or begin and end. {STOP_ALL}")
    return Window(
        name=found["name"],
        zone=zone,
        days=tuple(found["days"]),
        between=None if start is None or stop is None else (start, stop),
        dates=None if begin is None or end is None else (begin, end),
        remedies=tuple(found["remedies"]),
        targets=Match.of(found["targets"]),
    )


# Judging

LOWER = ("max_per_window", "max_in_flight", "max_growth", "max_shrink")
"""Limits that are stricter the lower they are; none at all is the highest."""
HIGHER = ("cooldown", "wait_for_backup")


def _meet(one: Verdict, other: Verdict, strict: bool) -> Verdict:
    """The stricter or the looser of two verdicts, also in each limit; the first where both decide the same."""
    pick: t.Callable[..., t.Any] = min if strict else max
    chosen = pick(one, other, key=lambda verdict: DECISIONS.index(verdict.decision))
    limits: dict[str, t.Any] = {}
    for name in LOWER:
        limits[name] = pick((getattr(one, name), getattr(other, name)), key=lambda value: float("inf") if value is None else value)
    for name in HIGHER:
        limits[name] = (max if strict else min)(getattr(one, name), getattr(other, name))
    return t.cast(Verdict, replace(chosen, **limits))


@dataclass(frozen=True)
class Policy:
    """A policy that was read; ``document`` is what the file says, with all defaults, spans in seconds."""

    source: str
    document: Facts
    mode: str
    limits: Limits
    breaker: Breaker
    storm: Storm
    approval: Approval
    freezes: tuple[Window, ...]
    protected: tuple[Match, ...]
    rules: tuple[Rule, ...]
    own_hosts: tuple[str, ...] = ()
    own_database: str | None = None

    def as_dict(self) -> dict[str, t.Any]:
        """What the file says, with all defaults and the built-in rules."""
        built_in = [{**rule, "name": f"{BUILT_IN}{rule['name']}"} for rule in BUILT_IN_RULES]
        return t.cast(t.Dict[str, t.Any], json.loads(json.dumps({**self.document, "rules": [*self.document["rules"], *built_in]})))

    @property
    def looks_back(self) -> float:
        """How many seconds of the past a decision may depend on."""
        cooldowns = [float(rule.own["cooldown"]) for rule in self.rules if rule.own.get("cooldown") is not None]
        return max(self.limits.window, self.limits.cooldown, self.breaker.window, self.storm.window + self.storm.cool_down, *cooldowns)

    @property
    def digest(self) -> str:
        """The sha256 of its canonical JSON: the same for two files that say the same."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()

    def judge(self, remedy: str, target: Target, plan: Plan | None) -> Verdict:
        """What the first rule that matches decides.

        What is not known of the target counts as the strictest that it could be. Before there is a plan, what it may become counts as the loosest: the
        verdict only says whether the remediation could be allowed, and ``off`` that it cannot.
        """
        guarded = self._protection(remedy, target)
        if guarded:
            return guarded
        verdict = self._verdict(self.rules[-1], plan)
        for rule in reversed(self.rules[:-1]):
            verdict = self._consider(rule, verdict, remedy, target, plan)
        if verdict.decision == "auto":
            unknown = self._unknown(target)
            reasons = [unknown] if unknown else self.too_big(verdict, plan) if plan else []
            if reasons:
                return replace(verdict, decision="approve", why=f"{verdict.why} But {'; '.join(reasons)}, so a human is asked.")
        return verdict

    def _consider(self, rule: Rule, rest: Verdict, remedy: str, target: Target, plan: Plan | None) -> Verdict:
        """What this rule and those after it decide, of which ``rest`` is known."""
        about, unknown = rule.match.target(remedy, target, rule.loosens)
        planned, unplanned = rule.match.plan(plan, rule.loosens)
        if about is False or planned is False:
            return rest
        own = self._verdict(rule, plan)
        if plan is None and planned is None:
            possible = own if about else _meet(own, rest, strict=True)
            return _meet(possible, rest, strict=False)
        if about and planned:
            return own
        missing = " and ".join(unknown + unplanned)
        if DECISIONS.index(own.decision) <= DECISIONS.index(rest.decision):
            own = replace(own, why=f"{own.why} It may match: {missing} of {target.name or target.key} is not known.")
        else:
            rest = replace(rest, why=f"{rest.why} The rule {rule.name} does not count, as {missing} of {target.name or target.key} is not known.")
        return _meet(own, rest, strict=True)

    def _verdict(self, rule: Rule, plan: Plan | None) -> Verdict:
        """What a rule decides if it matches."""
        limits = {name: rule.own.get(name, getattr(self.limits, name)) for name in ("cooldown", "max_growth", "max_shrink", "wait_for_backup")}
        verdict = Verdict(
            decision=rule.decision,
            rule=rule.name,
            why=f"The rule {rule.name} says {rule.decision}.",
            max_per_window=rule.own.get("max_per_window"),
            max_in_flight=rule.own.get("max_in_flight"),
            approval=_approval({**self.document["approval"], **rule.own.get("approval", {})}),
            **limits,
        )
        lasting = plan and plan.reversibility not in ("exact", "equivalent")
        if lasting and rule.loosens and not (rule.match.names("remedy") or rule.match.names("reversibility")):
            why = f"{verdict.why} But there is no way back, and it names neither remedy nor reversibility, so a human is asked."
            return replace(verdict, decision="approve", why=why)
        return verdict

    def _protection(self, remedy: str, target: Target) -> Verdict | None:
        own = {name.split(".")[0].lower() for name in self.own_hosts}
        if target.hostname and target.hostname.split(".")[0].lower() in own:
            return self._off(f"{BUILT_IN}the healer's own host", f"{target.hostname} is what the healer itself runs on; it is never touched.")
        if self.own_database and self.own_database in (target.databases or ()):
            return self._off(f"{BUILT_IN}the healer's own database", f"{self.own_database} has the healer's ledger; it is never touched.")
        for index, match in enumerate(self.protected):
            found, unknown = match.target(remedy, target, loosens=False)
            if found:
                return self._off(f"protected[{index}]", f"It is protected by protected[{index}].")
            if found is None:
                why = f"It may be protected by protected[{index}]: {' and '.join(unknown)} of {target.name or target.key} is not known."
                return self._off(f"protected[{index}]", why)
        return None

    def _off(self, rule: str, why: str) -> Verdict:
        return replace(self._verdict(Rule(rule, Match(), "off"), None), why=why)

    def _unknown(self, target: Target) -> str:
        """Why the target may be the healer's own, if that cannot be excluded."""
        if target.databases is None and (target.kind in POSTGRESQL_KINDS or (self.own_database and target.has("databases"))):
            return "which databases are touched is not known, and the healer's own may be among them"
        if target.hostname is None and self.own_hosts and target.has("hostname"):
            return "its host name is not known, and it may be what the healer itself runs on"
        return ""

    def too_big(self, verdict: Verdict, plan: Plan) -> list[str]:
        """A sentence without a full stop for each value that changes by more than the verdict's limits."""
        told = []
        for step in plan.steps:
            after = _leaves(step.get("after") or {})
            for key, before in _leaves(step.get("before") or {}).items():
                told.append(_growth(key, before, after.get(key), verdict))
        return [sentence for sentence in told if sentence]

    def freeze(self, remedy: str, target: Target, now: float) -> Freeze | None:
        """The freeze that is on now for this remedy and target, if any, and when that and those that follow upon it end."""
        windows = [window for window in self.freezes if window.concerns(remedy, target)]
        until, first = now, None
        for _day in range(1000):
            ends = [(end, window) for window in windows for end in [window.end(until)] if end is not None]
            if not ends:
                break
            until, window = max(ends, key=lambda pair: pair[0])
            first = first or window
        if not first:
            return None
        shown = dt.datetime.fromtimestamp(until, first.zone).isoformat(sep=" ", timespec="minutes")
        return Freeze(first.name, until, f"The freeze {first.name} is on until {shown}.")

    def common_cause(self, targets: t.Sequence[Target]) -> list[str]:
        """The names on which all of the targets depend, the nearest first; one that is itself among the targets counts as depending on itself."""
        upstream = [self._upstream(target) for target in targets]
        return [name for name in upstream[0] if all(name in names for names in upstream)] if upstream else []

    def _upstream(self, target: Target) -> list[str]:
        known = [f"host/{target.host}", target.key, *(f"{target.kind}/{name}" for name in (target.id, target.name, target.hostname) if name)]
        known += [f"node/{target.node}"] if target.node else []
        own = {name for name in (target.name, target.hostname) if name}
        names = [name for several in self.storm.depends_on.values() for name in several if name in own]
        ahead = [*known, *names]
        while ahead:
            here = ahead.pop(0)
            for pattern, several in self.storm.depends_on.items():
                if _like(here, [pattern]):
                    new = [name for name in several if name not in names]
                    names += new
                    ahead += new
        return list(dict.fromkeys(names))


def _leaves(side: Facts) -> dict[tuple[str, str], t.Any]:
    """The values of one side of a change, by target and option."""
    return {(str(key), str(option)): value for key, found in side.items() if isinstance(found, t.Mapping) for option, value in found.items()}


def _number(value: t.Any) -> tuple[float, bool] | None:
    """A number, and whether it has a unit; nothing for what is not set or no number."""
    if isinstance(value, bool) or value is None:
        return None
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?(e[+-]?\d+)?", text):
        return float(text), False
    try:
        return float(parse_size(text)), True
    except (ValueError, OverflowError):
        return None


def _growth(key: tuple[str, str], before: t.Any, after: t.Any, verdict: Verdict) -> str:
    """How much too far a value changes; nothing where it does not, or where either side is not set, since then nobody can say how much it is."""
    one, other = _number(before), _number(after)
    if key[1] in IDENTITIES or not one or not other:
        return ""
    what = f"{key[1]} of {key[0]} would go from {before} to {after}"
    if one[1] != other[1]:
        return f"{what}, and how much that is cannot be told"
    (old, _old_unit), (new, _new_unit) = one, other
    if new > old * (1 + verdict.max_growth / 100) * (1 + 1e-9):
        grows = f"{100 * (new - old) / old:.0f} % more" if old else "from nothing"
        return f"{what}, {grows}, and max_growth is {verdict.max_growth} %"
    if new < old * (1 - verdict.max_shrink / 100) * (1 - 1e-9):
        return f"{what}, {100 * (old - new) / old:.0f} % less, and max_shrink is {verdict.max_shrink} %"
    return ""
