"""Scripted trouble, request by request."""

from __future__ import annotations

import dataclasses
import re
import typing as t

KINDS = frozenset({"error", "delay", "lost", "cut", "stuck", "failed", "warnings", "unreachable", "late"})


@dataclasses.dataclass
class Fault:
    """What befalls the requests of a method (``*`` is any) whose path matches: the first ``after`` of them pass, the next ``times`` are hit."""

    method: str
    path: re.Pattern[str]
    kind: str
    times: int = 1
    after: int = 0
    details: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    def hits(self, method: str, path: str) -> bool:
        if self.times == 0 or self.method not in {"*", method} or not self.path.search(path):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True


def fault(facts: dict[str, t.Any]) -> Fault:
    """A fault from its description; a wrong kind or expression raises ValueError."""
    if facts["kind"] not in KINDS:
        raise ValueError(f"no such kind of fault: {facts['kind']}")
    try:
        path = re.compile(facts["path"])
    except re.error as error:
        raise ValueError(f"no expression: {error}") from None
    return Fault(facts["method"].upper(), path, facts["kind"], facts.get("times", 1), facts.get("after", 0), facts.get("details", {}))


class Faults:
    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, facts: dict[str, t.Any]) -> None:
        self._faults.append(fault(facts))

    def clear(self) -> None:
        self._faults.clear()

    def find(self, method: str, path: str) -> Fault | None:
        """The first fault that hits this request; the later ones do not count it then."""
        return next((scripted for scripted in self._faults if scripted.hits(method, path)), None)
