# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes, times and relative values, as people write them.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import re
import time
import typing as t
from dataclasses import dataclass, fields, replace

from ansible_collections.homelab.healer.plugins.module_utils._change import DEFAULT
from ansible_collections.homelab.healer.plugins.module_utils._errors import Invalid

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?:(?P<unit>[kmgt]?)(?:i?b)?)", re.IGNORECASE)
RELATIVE = re.compile(r"(?P<sign>[+-])\s*(?P<amount>[0-9].*?)\s*(?P<percent>%?)")


class Size(int):
    """A number of bytes that shows itself in binary units: ``str(Size(536870912))`` is ``512MiB``."""

    def __str__(self) -> str:
        number = int(self)
        for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if number >= unit:
                return f"{number // unit}{name}" if number % unit == 0 else f"{number / unit:.1f}{name} ({number})"
        return f"{number}B"


def parse_size(text: str) -> Size:
    """Read ``512m``, ``2GiB`` or plain bytes; units are binary, as Docker's are. Raises ``ValueError``."""
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError("a size is a number with an optional unit, such as 512m, 2GiB or 536870912 (bytes)")
    number = float(match["number"]) if "." in match["number"] else int(match["number"])
    return Size(number * UNITS[match["unit"].lower()])


class Mebibytes(int):
    """A number of MiB, the unit of Proxmox VE's memory and swap, that shows itself in binary units."""

    def __str__(self) -> str:
        number = int(self)
        return f"{number >> 10}GiB" if number and number % 1024 == 0 else f"{number}MiB"


def parse_mebibytes(text: str) -> Mebibytes:
    """Read ``512m``, ``2GiB`` or plain MiB. Raises ``ValueError``, also where it is no whole number of MiB."""
    if not SIZE.fullmatch(text.strip()):
        raise ValueError("a size is a number with an optional unit, such as 2048 (MiB), 512m or 2GiB")
    size = parse_size(f"{text}m" if text.strip()[-1].isdigit() else text)
    if size % (1 << 20):
        raise ValueError("it is not a whole number of MiB")
    return Mebibytes(size >> 20)


SPANS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_span(text: str) -> float:
    """Read ``90``, ``90s``, ``15m``, ``12h``, ``7d`` or ``2w`` as seconds. Raises ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", text.strip().lower())
    if not match:
        raise ValueError("a time span is a number with an optional unit, such as 90 (seconds), 15m, 12h or 7d")
    return float(match[1]) * SPANS[match[2]]


def moment(seconds: float) -> str:
    """A moment as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def span(seconds: float) -> str:
    """A span of time as people write it: ``2 d 3 h``, ``5 min``, ``40 s``."""
    whole = max(0, int(seconds))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    told = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(told[:2]) or "0 s"


def at_most_a_day(seconds: float) -> float:
    """The same number of seconds. Raises ``ValueError`` where it is negative, not a number, or more than a day."""
    if not 0 <= seconds <= 86400:
        raise ValueError("it must be between 0 and 86400 seconds")
    return seconds


NumberT = t.TypeVar("NumberT", int, float)


@dataclass(frozen=True)
class Relative:
    """A change from the present value: ``+25%``, ``-512m``, ``+0.5``."""

    text: str
    amount: float
    percent: bool

    def of(self, present: NumberT) -> NumberT:
        """The absolute value that this makes of a present one, of the same type."""
        return type(present)(present * (1 + self.amount / 100) if self.percent else present + self.amount)


def parse_relative(text: str, parse_amount: t.Callable[[str], float]) -> Relative | None:
    """Read a value that begins with a sign; ``None`` if it does not. Raises ``ValueError`` where the amount makes no sense."""
    match = RELATIVE.fullmatch(text.strip())
    if not match:
        return None
    amount = float(match["amount"]) if match["percent"] else float(parse_amount(match["amount"]))
    return Relative(text, -amount if match["sign"] == "-" else amount, bool(match["percent"]))


@dataclass(frozen=True)
class Quantity:
    """How the value of an option is written: how its number reads, what it may be, and the words that mean "not set".

    A value that begins with a sign is relative to the present one.
    """

    parse: t.Callable[[str], float]
    lowest: float
    highest: float
    lifts: tuple[str, ...]

    def read(self, text: str) -> float | str | Relative:
        """A number, a ``Relative`` or ``default``. Raises ``ValueError``."""
        text = text.strip()
        if text.lower() in self.lifts:
            return DEFAULT
        if text == "-1":
            raise ValueError("-1 could mean one less or no limit; for no limit say " + " or ".join(self.lifts))
        return parse_relative(text, self.parse) or self.check(self.parse(text))

    def check(self, value: NumberT) -> NumberT:
        """The same value, if it is within the bounds. Raises ``ValueError``."""
        if value == 0 < self.lowest:
            raise ValueError("0 is what an engine takes for no answer, and ignores; for no limit say " + " or ".join(self.lifts))
        if not self.lowest <= value <= self.highest:
            raise ValueError(f"it must be between {type(value)(self.lowest)} and {type(value)(self.highest)}")
        return value


def settle(request: t.Any, now: t.Sequence[t.Any], quantities: t.Mapping[str, Quantity]) -> t.Any:
    """The request with each relative value made absolute: a mapping by target's key, from the ``limits`` of the targets as first seen."""
    relative = {option.name: getattr(request, option.name) for option in fields(request) if isinstance(getattr(request, option.name), Relative)}
    return replace(request, **{name: {state.key: _absolute(name, change, state, quantities[name]) for state in now} for name, change in relative.items()})


def _absolute(name: str, change: Relative, state: t.Any, quantity: Quantity) -> float:
    present: float | str = state.limits[name]
    what = f"cannot set {name} of {state.name} to {change.text}"
    if isinstance(present, str):
        raise Invalid(what, why="it has none to begin from", fix="Give an absolute value.")
    try:
        return quantity.check(change.of(present))
    except (ValueError, OverflowError) as error:
        raise Invalid(what, why=f"it is {present}, and the new value is out of bounds: {error}", fix="Give another value.") from error


def asked(request: t.Any, names: t.Iterable[str], key: str | int) -> dict[str, t.Any]:
    """What a settled request asks of these options for the target with this key; those that it leaves alone are left out."""
    values = {name: getattr(request, name) for name in names}
    own = {name: value[key] if isinstance(value, t.Mapping) else value for name, value in values.items()}
    return {name: value for name, value in own.items() if value is not None}
