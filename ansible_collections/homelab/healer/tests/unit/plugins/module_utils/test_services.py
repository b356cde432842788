# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Services as their init tells of them: systemd's words as a Debian 12 printed them, OpenRC's laid out by its own scripts' rules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.module_utils._services import (
    Service,
    Unit,
    bare,
    command,
    instances,
    lines_told,
    numbers,
    openrc_files,
    openrc_unit,
    parse_units,
    redacted,
    started_at,
    tail,
    unit_name,
)
from ansible_collections.homelab.healer.plugins.modules.lxc_service import Act, Forget, Request, plan_one

SHOWN = """\
Type=forking
Restart=no
MainPID=51
Result=success
NRestarts=0
ExecMainStartTimestampMonotonic=18228467127
ExecMainStatus=0
RemainAfterExit=no
Id=postgresql@15-main.service
ConsistsOf=
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled-runtime
StateChangeTimestampMonotonic=18228467200
ActiveEnterTimestamp=Wed 2026-11-25 04:23:48 UTC
CanReload=yes
Job=
StartLimitBurst=5
InvocationID=4cda559eea6e477294f2ae59f734da6e
"""


def test_what_systemd_prints_is_read() -> None:
    (unit,) = parse_units(SHOWN, 1)
    assert (unit.id, unit.active, unit.sub, unit.main_pid, unit.up, unit.pending) == ("postgresql@15-main.service", "active", "running", 51, True, False)
    assert (unit.invocation, unit.proof, unit.burst, unit.can_reload) == ("4cda559eea6e477294f2ae59f734da6e", "invocation", 5, True)
    (old,) = parse_units(SHOWN.replace("InvocationID=4cda559eea6e477294f2ae59f734da6e\n", ""), 1)
    assert (old.invocation, old.proof) == ("51@18228467127", "process")  # systemd before 232
    assert len(parse_units(f"{SHOWN}\n{SHOWN}", 2)) == 2


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 1),
        (SHOWN, 2),
        (f"{SHOWN}\n{SHOWN}", 1),
        (SHOWN.replace("Id=", "id="), 1),
        (SHOWN.replace("ActiveState=active\n", ""), 1),
        (f"{SHOWN}MainPID=52\n", 1),
        (f"warning\n{SHOWN}", 1),
        (SHOWN.replace("MainPID=51", "MainPID=x"), 1),
    ],
)
def test_what_is_not_understood_is_no_answer(text: str, number: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_units(text, number)


def test_names() -> None:
    assert [unit_name(name) for name in ("nginx", "nginx.service", "postgresql@15-main", "a.b", r"x\x2dy")] == [
        "nginx.service",
        "nginx.service",
        "postgresql@15-main.service",
        "a.b.service",
        r"x\x2dy.service",
    ]
    wrong = [
        "",
        "-x",
        "--help",
        "a b",
        "a;b",
        "$(x)",
        "a\nb",
        "../x",
        "a/b",
        "*",
        "a?",
        "x@",
        "ssh.socket",
        "x.timer",
        "é",
        "a\0b",
        "x" * 249,
        ".service",
        "@x",
    ]
    for name in wrong:
        with pytest.raises(ValueError, match=r"."):
            unit_name(name)
    assert bare("nginx.service") == "nginx"
    for name in ("postgresql@15-main.service", r"x\x2dy", "a:b"):
        with pytest.raises(ValueError, match="OpenRC"):
            bare(name)


def test_numbers_commands_and_lines() -> None:
    assert numbers([200, 201, 200]) == (200, 201)
    assert command(["psql", "", "-c", "a b; c"]) == ("psql", "", "-c", "a b; c")
    assert lines_told(0) == 0
    wrong = {numbers: ([], [99], [-200], [10**9]), command: ([], [""], ["-x"], ["a", "b\0"]), lines_told: (-1, 101)}
    for parse, given in ((parse, given) for parse, values in wrong.items() for given in values):
        with pytest.raises(ValueError, match=r"."):
            parse(given)  # type: ignore[operator]


def unit(**over: object) -> Unit:
    return replace(parse_units(SHOWN, 1)[0], **over)  # type: ignore[arg-type]


ONESHOT = dict(id="postgresql.service", type="oneshot", main_pid=0, sub="exited", remains=True, consists_of=("postgresql@15-main.service", "x.socket"))


def test_which_units_one_stands_for() -> None:
    assert instances(unit(**ONESHOT)) == ("postgresql@15-main.service",)
    assert instances(unit(**{**ONESHOT, "type": "notify"})) == ()
    assert instances(unit(**{**ONESHOT, "load": "masked"})) == ()
    assert instances(unit()) == ()


@pytest.mark.parametrize(
    ("over", "up", "pending", "present", "limited"),
    [
        ({}, True, False, "active", False),
        ({"active": "reloading"}, True, True, "active", False),
        ({"job": 7}, True, True, "active", False),
        ({"active": "activating", "sub": "start"}, False, True, "activating", False),
        ({"active": "activating", "sub": "auto-restart"}, False, False, "failed", False),
        ({"sub": "exited", "main_pid": 0}, False, False, "active", False),
        ({"active": "deactivating", "sub": "stop-sigterm"}, False, True, "deactivating", False),
        ({"active": "failed", "sub": "failed", "result": "exit-code"}, False, False, "failed", False),
        ({"active": "failed", "sub": "failed", "result": "start-limit-hit"}, False, False, "failed", True),
        ({"active": "failed", "sub": "failed", "result": "exit-code", "restart": "on-failure", "restarts": 5}, False, False, "failed", True),
        ({"active": "failed", "sub": "failed", "result": "exit-code", "restart": "on-failure", "restarts": 4}, False, False, "failed", False),
        ({"active": "inactive", "sub": "dead"}, False, False, "inactive", False),
        (dict(ONESHOT), True, False, "active", False),
    ],
)
def test_states(over: dict[str, object], up: bool, pending: bool, present: str, limited: bool) -> None:
    seen = unit(**over)
    assert (seen.up, seen.pending, seen.present, seen.limited) == (up, pending, present, limited)


def test_what_tells_another_run() -> None:
    before = unit()
    assert not unit(changed="99", sub="x").anew(before)
    assert unit(invocation="f" * 32).anew(before)
    assert not unit(invocation="").anew(before)
    started, again = (openrc_unit("nginx", 0, 51, born, "100") for born in ("7000", "9000"))
    assert again.anew(started)  # the same number, another process
    assert not openrc_unit("nginx", 0, 51, "7000", "100").anew(started)
    stamped = openrc_unit("nginx", 0, 0, "", "100")
    assert (stamped.proof, openrc_unit("nginx", 0, 0, "", "160").anew(stamped), stamped.anew(stamped)) == ("stamp", True, False)
    nothing = openrc_unit("nginx", 0, 0, "", "")
    assert (nothing.proof, nothing.anew(started)) == ("", False)


def test_openrc() -> None:
    states = {0: "active", 3: "inactive", 4: "deactivating", 8: "activating", 16: "inactive", 32: "failed"}
    assert {code: openrc_unit("x", code, 0, "", "").active for code in states} == states
    lines = ("exec=/usr/sbin/nginx", "argv_0=/usr/sbin/nginx", "argv_1=pidfile=/x", "pidfile=/run/nginx/nginx.pid")
    daemon = "".join(f"/run/openrc/daemons/nginx/001:{line}\n" for line in lines)
    option = "/run/openrc/options/nginx/"
    assert openrc_files(daemon) == (0, "/run/nginx/nginx.pid")
    assert openrc_files(f"{daemon}{option}child_pid:2541\n") == (2541, "/run/nginx/nginx.pid")
    assert openrc_files(f"{option}pidfile:/run/a:b.pid\n") == (0, "/run/a:b.pid")
    assert openrc_files(f"{option}pidfile:-rf\n{option}child_pid:1x\n") == (0, "")
    crashed = openrc_unit("x", 0, 51, "", "")  # of which OpenRC still says that it is started
    assert (crashed.present, crashed.up, crashed.main_pid) == ("failed", False, 0)
    stat = "2541 (a b) c) S 1 2541 2541 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 834512 1 1 1"
    assert (started_at(stat), started_at("")) == ("834512", "")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("password=hunter2 x", "password=*** x"),
        ("DB_PASSWORD: 'a b' x", "DB_PASSWORD: *** x"),
        ('"api_key": "abc", y', '"api_key": ***, y'),
        ("ALTER USER a PASSWORD 'x y'", "ALTER USER a PASSWORD ***"),
        ("postgres://u:p@h/db", "postgres://***@h/db"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: ***"),
        ("sent bearer abcdefgh1234", "sent bearer ***"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_secrets_are_left_out(line: str, told: str) -> None:
    assert redacted(line) == told


def test_what_is_told_is_bounded() -> None:
    assert tail("a\n\n\x1b[1mb\x1b[0m\nc" + "d" * 999, 2) == ["[1mb [0m", "c" + "d" * 299]


def asked(**over: object) -> Request:
    given: dict[str, object] = dict(vmid=(200,), name="x.service", state="restarted", only_if=None, reset_failed=False, timeout=9, stable_for=1.0, probe=None)
    return Request(**{**given, **over})  # type: ignore[arg-type]


FAILED = {"active": "failed", "sub": "failed", "result": "exit-code", "main_pid": 0}
LIMITED = {**FAILED, "result": "start-limit-hit"}
INACTIVE = {"active": "inactive", "sub": "dead", "main_pid": 0}
STARTING = {"active": "activating", "sub": "start"}
STOPPING = {"active": "deactivating", "sub": "stop"}


@pytest.mark.parametrize(
    ("options", "over", "planned"),
    [
        ({}, {}, "restart"),
        ({}, FAILED, "restart"),
        ({}, INACTIVE, "refused: it is inactive (dead), and enabled-runtime"),
        ({"only_if": ("inactive",)}, INACTIVE, "restart"),
        ({"only_if": ("failed",)}, {}, "refused: it is active"),
        ({}, STARTING, "conflict: it is still starting"),
        ({"only_if": ("activating",)}, STARTING, "restart"),
        ({}, STOPPING, "conflict: it is just stopping"),
        ({}, {"load": "not-found"}, "not_found: there is no such unit"),
        ({}, {"load": "masked"}, "refused: it is masked"),
        ({}, {"enabled": "masked-runtime"}, "refused: it is masked"),
        ({}, {"load": "bad-setting"}, "refused: systemd could not load it (bad-setting)"),
        ({}, LIMITED, "refused: systemd has given up on it"),
        ({"reset_failed": True}, LIMITED, "forget, restart"),
        ({"reset_failed": True}, {}, "restart"),
        ({}, {"type": "oneshot"}, "refused: it runs once and is done"),
        ({}, {**ONESHOT, "consists_of": ()}, "restart"),
        ({"state": "reloaded"}, {}, "reload"),
        ({"state": "reloaded"}, {"can_reload": False}, "refused: it has no way to reload"),
        ({"state": "reloaded"}, FAILED, "refused: it is failed"),
        ({"state": "started"}, {}, ""),
        ({"state": "started"}, INACTIVE, "start"),
        ({"state": "started"}, FAILED, "start"),
        ({"state": "started"}, STARTING, "start"),
        ({"state": "started"}, LIMITED, "refused: systemd has given up on it"),
        ({"state": "started", "only_if": ("failed",)}, INACTIVE, "refused: it is inactive"),
    ],
)
def test_plan(options: dict[str, object], over: dict[str, object], planned: str) -> None:
    """What is planned for a unit in each state, or why not."""
    seen = unit(**over)
    service = Service(200, seen, (seen,))
    if ": " in planned:
        with pytest.raises(HealerError) as caught:
            plan_one(asked(**options), service)
        assert f"{caught.value.code}: {caught.value.why}".startswith(planned)
        return
    change = plan_one(asked(**options), service)
    steps = ["forget" if isinstance(step, Forget) else step.verb for step in change.steps if isinstance(step, (Act, Forget))]
    assert ", ".join(steps) == planned
    assert (change.undo != {}) == ("restart" in steps)
    assert change.reversibility == "none"


def test_plan_for_what_a_unit_stands_for() -> None:
    one, two = unit(), unit(id="postgresql@16-test.service", enabled="disabled", **INACTIVE)
    meta = unit(**ONESHOT)
    change = plan_one(asked(), Service(200, meta, (one, two)))
    assert [str(step) for step in change.steps] == ["restart postgresql@15-main.service in 200"]
    assert change.notes == ("postgresql@16-test.service is left alone, as it is inactive (dead)",)
    assert plan_one(asked(state="started"), Service(200, meta, (one, two))).steps == ()  # that one was stopped for good
    dead = replace(one, **FAILED)  # type: ignore[arg-type]
    change = plan_one(asked(state="started"), Service(200, meta, (dead, two)))
    assert [str(step) for step in change.steps] == ["start postgresql@15-main.service in 200"]
    with pytest.raises(HealerError, match=r"will not restart postgresql@16-test\.service in 200: it is inactive"):
        plan_one(asked(), Service(200, meta, (two,)))
