# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a module intends for one target, as data: a state before, a state after, and the steps between.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import abc
import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError, Refused, together

DEFAULT = "default"
"""How the value of a key that is not set is written, in ``before``, ``after`` and ``undo`` and as an option."""

REVERSIBILITIES = ("exact", "equivalent", "restore_only", "none")
"""From the best to the worst: as it was; the same effect by another value; only by a snapshot or backup; not at all."""

Values = t.Mapping[str, t.Any]


class State(t.Protocol):
    """What a module has observed of one target. Two are equal when all that the module may change is."""

    @property
    def key(self) -> str | int:
        """The immutable identity, which an undo names."""

    @property
    def name(self) -> str:
        """What a person calls it."""


class Step(abc.ABC):
    """One write. ``str(step)`` is the line that an operator reads."""

    @abc.abstractmethod
    def apply(self, client: t.Any) -> t.Iterable[str] | None:
        """Write, once. Only the kernel calls this, and never in check mode. Returns what the server warned of, if it did."""

    def prove(self, client: t.Any, now: t.Any) -> t.Mapping[str, str]:
        """Say by what each written key was verified, from the state seen after the write; raise ``NotConverged`` where it does not hold."""
        return {}

    def happened(self, now: t.Any) -> bool | None:
        """Whether this write itself shows in the state seen after it; nothing where any difference at all is proof of it.

        To be defined where others, or a crash, can change the same state.
        """
        return None

    def tell(self, client: t.Any, now: t.Any) -> Values:
        """Facts of what the write did, from the state seen after it; they take the place of the change's own ``facts``."""
        return {}


@dataclass(frozen=True)
class Change:
    """What a module intends: the state before, the state it promises after, and the steps between.

    ``undo`` holds the options that put ``before`` back, ``facts`` what a result tells beyond that, ``notes`` what a person should know.
    ``shown`` are figures before and after that the diff shows besides; they move by themselves, so they are no part of what is intended.
    An ``action`` ends or renews something (a restart, a rollback): ``before`` and ``after`` hold the identity that it renews, and only its steps'
    proofs judge it, since what happens anew after it is not its failure.
    """

    before: Values = field(default_factory=dict)
    after: Values = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    undo: Values = field(default_factory=dict)
    reversibility: str = "exact"
    notes: tuple[str, ...] = ()
    facts: Values = field(default_factory=dict)
    action: bool = False
    shown: tuple[Values, Values] = field(default=({}, {}))

    def __post_init__(self) -> None:
        if bool(self.steps) != (self.before != self.after):
            raise ValueError("a change has steps if and only if its before and after differ")


StateT = t.TypeVar("StateT", bound=State)


def plan_each(states: t.Iterable[StateT], plan_one: t.Callable[[StateT], Change]) -> dict[t.Any, Change]:
    """Plan every target by itself, and refuse with all that was wrong, each target named, when one cannot be planned."""
    changes: dict[t.Any, Change] = {}
    errors: dict[str, HealerError] = {}
    for state in states:
        try:
            changes[state.key] = plan_one(state)
        except HealerError as error:
            errors[state.name] = error
    if errors:
        raise together(errors)
    return changes


def at_most(option: str, limit: int, states: t.Iterable[State], changes: dict[t.Any, Change]) -> dict[t.Any, Change]:
    """The same changes, if no more than ``limit`` targets would change; ``option`` is what the user sets it by."""
    changing = [state.name for state in states if changes[state.key].steps]
    if changing and len(changing) > limit:
        raise Refused(
            f"will not change {len(changing)} targets at once",
            why=f"{option} is {limit}, and these would change: {', '.join(changing)}",
            fix=f"Choose fewer, or raise {option}.",
        )
    return changes
