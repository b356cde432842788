# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is run by ``pct``, how long, and what its words mean; with a small program in its place where the command itself matters."""

from __future__ import annotations

import os
import stat
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils import _pct
from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.module_utils._pct import KEPT, PHRASES, Node, connect, execute, refusal

SAID = (
    ("not_found", "Configuration file 'nodes/pve1/lxc/200.conf' does not exist"),
    ("conflict", "container '200' not running!"),
    ("denied", "please run as root"),
    ("invalid", "400 Parameter verification failed.\nvmid: invalid format - value does not look like a valid VM ID\n"),
    ("unreachable", "ipcc_send_rec[1] failed: Connection refused\nUnable to load access control list: Connection refused"),
    ("conflict", "lxc-attach: 200: ../src/lxc/attach.c: get_attach_context: 405 Connection refused - Failed to get init pid"),
    ("not_found", 'lxc-attach: 200: ../src/lxc/attach.c: lxc_attach_run_command: 1841 No such file or directory - Failed to exec "psql"'),
    ("task_failed", "lxc-attach: 200: ../src/lxc/attach.c: attach_child_main: 1104 Permission denied - something new"),
    ("refused", "Failed to restart x.service: Unit x.service is masked."),
    ("not_found", "Failed to restart x.service: Unit x.service not found."),
    ("refused", "Failed to reload x.service: Job type reload is not applicable for unit x.service."),
    (
        "refused",
        "Failed to restart x.service: Operation refused, unit x.service may be requested by dependency only",
    ),
    ("refused", "Failed to start x.service: Unit x.service has a bad unit file setting."),
    ("unreachable", "Failed to connect to bus: No such file or directory"),
    ("refused", "System has not been booted with systemd as init system (PID 1). Can't operate."),
    ("denied", "Failed to restart x.service: Access denied"),
)
"""A saying for each row of the table, in its order."""


@pytest.mark.parametrize(("place", "code", "said"), [(place, *row) for place, row in enumerate(SAID)])
def test_each_phrase_is_translated(place: int, code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pct, "PHRASES", PHRASES[: place + 1])  # so that it is this row, or one before it
    error = refusal("cannot restart x", 200, said)
    assert error is not None
    assert error.code == code
    assert error.fix
    monkeypatch.setattr(_pct, "PHRASES", PHRASES[:place])
    assert refusal("cannot restart x", 200, said) is None


def test_no_row_is_without_a_test_and_no_word_is_guessed() -> None:
    assert len(SAID) == len(PHRASES)
    assert refusal("cannot restart x", 200, "the moon stands in the way") is None


def test_the_right_node_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pct, "NODES", str(tmp_path))
    said = SAID[0][1]
    assert "nor does it know of a node that has" in str(refusal("x", 200, said))
    for path in ("pve2/lxc/200.conf", "pve3/qemu-server/201.conf"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    error = refusal("x", 200, said)
    assert "it is on pve2, and this ran on pve1" in str(error)
    assert error is not None
    assert error.fix == "Run it on pve2."
    assert "201 is a virtual machine" in str(refusal("x", 201, said.replace("200", "201")))


def test_a_command_has_a_clean_environment_and_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    done = execute(["/usr/bin/env"], 10)
    assert done is not None
    assert dict(line.split("=", 1) for line in done.out.splitlines()) == _pct.ENVIRONMENT
    done = execute(["/bin/cat"], 10)
    assert done is not None
    assert (done.code, done.out) == (0, "")


def test_a_command_is_killed_with_what_it_started_when_its_time_is_up(tmp_path: Path) -> None:
    began = time.monotonic()
    assert execute(["/bin/sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"], 0.5) is None
    assert time.monotonic() - began < 5
    child = int((tmp_path / "pid").read_text())
    for _round in range(50):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("its child still runs")


def test_what_a_command_leaves_running_keeps_nobody_waiting(tmp_path: Path) -> None:
    began = time.monotonic()
    done = execute(["/bin/sh", "-c", f"echo started; sleep 30 & echo $! > {tmp_path}/pid"], 20)
    assert time.monotonic() - began < 10
    assert done is not None
    assert (done.code, done.out) == (0, "started\n")
    os.kill(int((tmp_path / "pid").read_text()), 9)  # it was left alone, as a service would be


def test_output_without_end_is_bounded() -> None:
    done = execute(["/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo no >&2; exit 3"], 20)
    assert done is not None
    assert (done.code, len(done.out), done.err) == (3, KEPT, "no\n")
    assert execute(["/usr/bin/yes"], 0.5) is None


@pytest.fixture
def pct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[str], Node]:
    """A node whose ``pct`` is a small script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(script: str) -> Node:
        program = tmp_path / "pct"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        with connect({"exec_timeout": 1}) as node:
            return node

    return make


def test_arguments_arrive_as_they_are(pct: t.Callable[[str], Node]) -> None:
    node = pct('printf "<%s>" "$@"')
    assert node.run(200, ["psql", "-c", "a 'b' \"c\" $(d) ; e\n*"], "x").out == "<exec><200><--><psql><-c><a 'b' \"c\" $(d) ; e\n*>"


def test_what_the_command_itself_says_is_its_callers_matter(pct: t.Callable[[str], Node]) -> None:
    assert pct("echo \"container '200' not running!\" >&2; exit 3").run(200, ["x"], "x").code == 3
    assert pct("echo 'Connection timed out' >&2; exit 255").run(200, ["ssh"], "x").code == 255
    with pytest.raises(HealerError, match="Start it first"):
        pct("echo \"container '200' not running!\" >&2; exit 255").run(200, ["x"], "x")
    with pytest.raises(HealerError, match=r"x in container 200: systemctl gave no answer within 1 s"):
        pct("sleep 30").run(200, ["systemctl"], "x")


def test_no_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_pct, "PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HealerError, match="this is no node of Proxmox VE"), connect({"exec_timeout": 30}):
        pass


OPENRC = """
shift 3
case "$*" in
    "systemctl "*) echo 'lxc-attach: 200: ../src/lxc/attach.c: 1841 No such file or directory - Failed to exec "systemctl"' >&2; exit 127 ;;
    "rc-service --nocolor nginx status") echo " * status: started"; exit 0 ;;
    "rc-service --nocolor nope status") echo " * rc-service: service \\`nope' does not exist" >&2; exit 1 ;;
    "grep  /run/openrc/daemons/nginx/001 /run/openrc/options/nginx/pidfile /run/openrc/options/nginx/child_pid")
        printf '/run/openrc/daemons/nginx/001:%s\\n' exec=/usr/sbin/nginx pidfile=/run/nginx.pid; exit 2 ;;
    "cat -- /run/nginx.pid") echo 2541 ;;
    "cat /proc/2541/stat") echo "2541 (nginx) S 1 2 3 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 834512 1" ;;
    "stat -c %z /run/openrc/started/nginx") echo 2026-11-25 10:57:42.234994046 +0000 ;;
    *) echo "not meant: $*" >&2; exit 9 ;;
esac
"""


def test_openrc_as_laid_out(pct: t.Callable[[str], Node]) -> None:
    node = pct(OPENRC)
    service = node.service(200, "nginx.service")
    assert (service.asked.init, service.asked.id, service.up, service.asked.main_pid) == ("openrc", "nginx", True, 2541)
    assert (service.asked.invocation, service.asked.proof, service.asked.changed) == ("2541@834512", "process", "2026-11-25 10:57:42.234994046 +0000")
    for name, why in (("nope.service", "does not exist"), ("a@b.service", "is no name of a service of OpenRC")):
        with pytest.raises(HealerError, match=why):
            node.service(200, name)


def test_neither(pct: t.Callable[[str], Node]) -> None:
    node = pct("echo 'lxc-attach: 200: No such file or directory - Failed to exec' >&2; exit 127")
    with pytest.raises(HealerError, match="it has neither systemd nor OpenRC"):
        node.service(200, "x.service")
