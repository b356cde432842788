# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's contract, against a fake server that can fail in every way a real one does."""

from __future__ import annotations

import contextlib
import time
import typing as t
from dataclasses import dataclass, field

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._change import Change, Step, plan_each
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, NotFound, Refused, TaskFailed, Unreachable, together
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, perform
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Quantity


class Server:
    """Lamps that are set to a brightness. ``script`` says what goes wrong when one is set; ``deaf`` makes reading fail."""

    def __init__(self, **lamps: int) -> None:
        self.lamps = dict(lamps)
        self.writes: list[str] = []
        self.script: dict[str, str] = {}
        self.deaf = False

    def read(self, name: str) -> int:
        if self.deaf:
            raise Unreachable("cannot read", why="the server is gone", fix="Start it.")
        if name not in self.lamps:
            raise NotFound(f"no lamp {name}", why="it is not there", fix="Look.")
        return self.lamps[name]

    def write(self, name: str, value: int) -> None:
        self.writes.append(name)
        fault = self.script.get(name)
        if fault in (None, "lost reply"):
            self.lamps[name] = value
        if fault == "half":
            self.lamps[name] = value - 1
        if fault in ("lost reply", "lost request"):
            raise Unreachable(f"cannot set {name}", why="the connection broke", fix="Look.", uncertain=True)
        if fault == "gone":
            self.deaf = True
            raise Unreachable(f"cannot set {name}", why="the connection broke", fix="Look.", uncertain=True)
        if fault in ("refused", "half"):
            raise TaskFailed(f"cannot set {name}", why="no", fix="Ask.")


@dataclass(frozen=True)
class Lamp:
    key: str
    limits: t.Mapping[str, int]

    @property
    def name(self) -> str:
        return f"lamp {self.key}"


@dataclass(frozen=True)
class Request:
    lamps: tuple[str, ...] | None
    room: str | None
    brightness: t.Any = field(metadata={"parse": Quantity(int, 1, 100, ("off",)).read})


@dataclass(frozen=True)
class Set(Step):
    key: str
    value: int

    def __str__(self) -> str:
        return f"set {self.key} to {self.value}"

    def apply(self, client: Server) -> None:
        client.write(self.key, self.value)

    def prove(self, client: Server, now: Lamp) -> dict[str, str]:
        return {"brightness": "eye"}


def observe(client: Server, request: Request) -> list[Lamp]:
    return [Lamp(name, {"brightness": client.read(name)}) for name in (request.lamps or sorted(client.lamps))]


def plan(request: Request, now: t.Sequence[Lamp]) -> dict[str, Change]:
    def one(lamp: Lamp) -> Change:
        wanted, present = request.brightness, lamp.limits["brightness"]
        wanted = wanted[lamp.key] if isinstance(wanted, dict) else wanted
        if present == 99:
            raise Refused(f"will not touch {lamp.name}", why="it is too hot", fix="Wait.")
        if wanted == present:
            return Change()
        return Change({"brightness": present}, {"brightness": wanted}, (Set(lamp.key, wanted),), undo={"brightness": present})

    return plan_each(now, one)


MODULE = Module(Request, lambda params: contextlib.nullcontext(params["server"]), observe, plan, "lamps", ("room",), {"brightness": Quantity(int, 1, 100, ())})


def call(server: Server, check: bool = False, **options: t.Any) -> tuple[dict[str, t.Any], t.Any]:
    return perform(MODULE, dict(dict(server=server, lamps=None, room=None, brightness="50", parallel=2, deadline=None), **options), check)


def test_check_writes_nothing_and_says_what_a_run_then_does() -> None:
    server = Server(a=10, b=50)
    foretold, error = call(server, check=True)
    assert not error
    assert server.writes == []
    done, error = call(server)
    assert not error
    for key in ("changed", "before", "after", "steps", "diff", "undo", "reversibility"):
        assert done[key] == foretold[key]
    assert done["results"][0]["verified"] == {"brightness": "eye"}
    assert foretold["results"][0]["verified"] == {}
    again, error = call(server)
    assert (again["changed"], again["steps"], error) == (False, [], None)


def test_undo_names_the_key_and_puts_back() -> None:
    server = Server(a=10, b=20)
    done, _error = call(server)
    assert done["undo"] == [{"lamps": ["b"], "brightness": 20}, {"lamps": ["a"], "brightness": 10}]
    for options in done["undo"]:
        call(server, **{**options, "brightness": str(options["brightness"])})
    assert server.lamps == {"a": 10, "b": 20}


def test_one_refusal_keeps_all_targets_untouched() -> None:
    server = Server(a=10, b=99, c=99)
    answer, error = call(server)
    assert server.writes == []
    assert (answer["changed"], answer["results"], error.code) == (False, [], "refused")
    assert "lamp b" in str(error)
    assert "lamp c" in str(error)


def test_a_failed_target_hides_none_of_the_others() -> None:
    server = Server(a=10, b=10, c=10)
    server.script["b"] = "refused"
    answer, error = call(server)
    assert server.lamps == {"a": 50, "b": 10, "c": 50}
    assert [result["changed"] for result in answer["results"]] == [True, False, True]
    assert answer["undo"] == [{"lamps": ["c"], "brightness": 10}, {"lamps": ["a"], "brightness": 10}]
    assert str(error).endswith("Changed: lamp a, lamp c. Not changed: lamp b.")
    assert answer["results"][1]["error"]["why"] == "no"


def test_a_half_done_target_counts_as_changed() -> None:
    server = Server(a=10)
    server.script["a"] = "half"
    answer, error = call(server)
    assert (error.code, answer["changed"], answer["undo"]) == ("task_failed", True, [{"lamps": ["a"], "brightness": 10}])


def test_a_lost_reply_is_looked_into() -> None:
    server = Server(a=10, b=10)
    server.script.update(a="lost reply", b="lost request")
    answer, error = call(server)
    held, lost = answer["results"]
    assert (held["changed"], held["unknown"], held["error"], held["verified"]) == (True, False, None, {"brightness": "eye"})
    assert "reply" in held["notes"][0]
    assert (lost["changed"], lost["unknown"], lost["error"]["code"]) == (False, False, "unreachable")
    assert error.code == "unreachable"


def test_what_cannot_be_known_counts_as_changed() -> None:
    server = Server(a=10, b=10)
    server.script["a"] = "gone"
    answer, error = call(server, parallel=1)
    assert [(result["changed"], result["unknown"]) for result in answer["results"]] == [(True, True), (True, False)]
    assert {"lamps": ["a"], "brightness": 10} in answer["undo"]
    assert "Perhaps changed: lamp a." in str(error)
    assert "could not look" in answer["results"][1]["error"]["what"]


def test_a_value_that_does_not_stay_is_not_converged() -> None:
    class Stuck(Server):
        def write(self, name: str, value: int) -> None:
            self.writes.append(name)

    answer, error = call(Stuck(a=10))
    assert (error.code, answer["changed"]) == ("not_converged", False)
    assert "brightness is 10, not 50" in str(error)


def test_no_write_begins_after_the_deadline() -> None:
    server = Server(a=10)
    answer, error = call(server, deadline=time.time() - 1)
    assert (server.writes, answer["changed"], error.code) == ([], False, "refused")


def test_a_relative_value_is_made_absolute_once() -> None:
    server = Server(a=10, b=20)
    answer, error = call(server, brightness="+50%")
    assert not error
    assert server.lamps == {"a": 15, "b": 30}
    assert answer["after"] == {"a": {"brightness": 15}, "b": {"brightness": 30}}


def test_bad_options_are_told_before_anything_is_asked() -> None:
    server = Server(a=10)
    server.deaf = True
    _answer, error = call(server, brightness="bright")
    assert error.code == "invalid"
    _answer, error = call(server, brightness="0")
    assert "ignores" in str(error)
    _answer, error = call(Server(a=10), brightness="-50")
    assert (error.code, "out of bounds" in str(error)) == ("invalid", True)


def test_a_change_without_steps_must_not_differ() -> None:
    with pytest.raises(ValueError, match="if and only if"):
        Change({"a": 1}, {"a": 2})
    with pytest.raises(ValueError, match="if and only if"):
        Change({"a": 1}, {"a": 1}, (Set("a", 1),))


def test_several_failures_may_be_retried_when_all_may() -> None:
    conflict, lost = (kind("x", why="y.", fix="Z.") for kind in (Conflict, TaskFailed))
    assert together({"a": conflict}) is conflict
    assert not together({"a": conflict, "b": lost}).retryable
    assert str(conflict) == "x: y. Z."
