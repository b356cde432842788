"""lxc_service and lxc_service_info inside real containers, with systemd and Debian's PostgreSQL in them."""

from __future__ import annotations

import copy
import random
import time
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.homelab.healer.plugins.module_utils import _pct
from ansible_collections.homelab.healer.plugins.module_utils._services import PROPERTIES, unit_name
from ansible_collections.homelab.healer.plugins.modules import lxc_service, lxc_service_info
from tests.conftest import NO_CONTAINERS
from tests.lab.containers import Containers, NoContainers, containers
from tests.lab.modules import Caller, call, read
from tests.lab.playbooks import Controller
from tests.test_documentation import documented_answers, matches, own

POSTGRES, META = "postgresql@15-main.service", "postgresql.service"
QUERY = ["runuser", "-u", "postgres", "--", "psql", "--cluster", "15/main", "-XAtqw", "-c", "SELECT 1"]
UNITS = {
    "well": "[Service]\nExecStart=/bin/sleep infinity\nExecReload=/bin/true\n[Install]\nAlias=other.service\nWantedBy=multi-user.target\n",
    "instance@": "[Service]\nExecStart=/bin/sleep infinity\n",
    "dies": "[Service]\nExecStart=/bin/sh -c 'echo password=hunter2; echo it is broken; sleep 2; exit 3'\n",
    "missing-program": "[Service]\nExecStart=/nonexistent\n",
    "ends-well": "[Service]\nExecStart=/bin/sh -c 'sleep 1; exit 0'\n",
    "loops": "[Unit]\nStartLimitIntervalSec=1000\nStartLimitBurst=3\n[Service]\nExecStart=/bin/sh -c 'exit 3'\nRestart=on-failure\nRestartSec=0.1\n",
    "flaps": "[Service]\nExecStart=/bin/sh -c 'sleep 1.5; exit 3'\nRestart=always\nRestartSec=0\n",
    "slow": "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c '"
    "systemd-notify --status=recovering; sleep 12; systemd-notify --ready; sleep 1000'\n",
    "once": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    "bad-reload": "[Service]\nExecStart=/bin/sleep infinity\nExecReload=/bin/false\n",
    "bad-file": "[Service]\nType=simple\n",
    "by-others-only": "[Unit]\nRefuseManualStart=yes\n[Service]\nExecStart=/bin/sleep infinity\n",
}


@pytest.fixture(scope="module")
def lab() -> t.Iterator[Containers]:
    try:
        with containers() as started, pytest.MonkeyPatch.context() as patched:
            patched.setenv("PATH", str(started.pct), prepend=":")
            started.create(200, image="postgres")
            started.start(200)
            folder = started[200].root / "etc/systemd/system"
            for name, text in UNITS.items():
                (folder / f"{name}.service").write_text(text)
            (folder / "masked.service").symlink_to("/dev/null")
            started.exec(200, ["systemctl", "daemon-reload"])
            started.exec(200, ["systemctl", "enable", "--quiet", "--now", "well"])
            yield started
    except NoContainers as error:
        pytest.skip(f"{NO_CONTAINERS}: {' '.join(str(error).split())}")


@pytest.fixture
def service(lab: Containers) -> Caller:
    return Caller(lxc_service, {"vmid": [200], "stable_for": 1, "exec_timeout": 10, "timeout": 20})


def property_of(lab: Containers, unit: str, name: str) -> str:
    return lab.exec(200, ["systemctl", "show", "--value", f"--property={name}", "--", unit]).stdout.strip()


def entered(lab: Containers, since: int) -> list[list[str]]:
    """What was run in containers since then, without what only looks."""
    return [words[3:] for words in lab.execs()[since:] if words[3:5] != ["systemctl", "show"] and words[3] != "journalctl"]


def test_a_restart_is_another_process_and_a_query_that_is_answered(lab: Containers, service: Caller) -> None:
    before, start = property_of(lab, POSTGRES, "MainPID"), len(lab.execs())
    foretold = service(name="postgresql@15-main", state="restarted", probe=QUERY, check=True)
    assert entered(lab, start) == []
    assert foretold["before"][200][POSTGRES]["main_pid"] == int(before)
    answer = service(name="postgresql@15-main", state="restarted", probe=QUERY)
    assert answer["steps"] == foretold["steps"] == [f"restart {POSTGRES} in 200"]
    assert {key: answer["diff"][0][key] for key in ("before", "after")} == {key: foretold["diff"][0][key] for key in ("before", "after")}
    (result,) = answer["results"]
    assert result["verified"] == {POSTGRES: "invocation", "probe": "answer"}
    assert result["units"][0]["main_pid"] == int(property_of(lab, POSTGRES, "MainPID")) != int(before)
    assert answer["reversibility"] == "none"
    assert entered(lab, start) == [["systemctl", "--no-block", "restart", "--", POSTGRES], QUERY]
    for line in ("active_state", "sub_state", "main_pid", "invocation_id", "n_restarts"):
        assert f"{POSTGRES} {line}: " in answer["diff"][0]["before"]
    service.undo(answer)
    assert result["units"][0]["main_pid"] == int(property_of(lab, POSTGRES, "MainPID"))  # it is up, so there is nothing to start


def test_debians_oneshot_stands_for_its_instances(lab: Containers, service: Caller) -> None:
    before, meta = (property_of(lab, unit, "InvocationID") for unit in (POSTGRES, META))
    answer = service(name="postgresql", state="restarted")
    assert answer["steps"] == [f"restart {POSTGRES} in 200"]
    assert (answer["results"][0]["name"], answer["results"][0]["stands_for"]) == (f"{META} in 200", [POSTGRES])
    assert property_of(lab, POSTGRES, "InvocationID") != before
    assert property_of(lab, META, "InvocationID") == meta


def test_an_instance_whose_start_fails_is_told_though_systemd_ignores_it(lab: Containers, service: Caller) -> None:
    config = lab[200].root / "etc/postgresql/15/main/postgresql.conf"
    kept = config.read_text()
    config.write_text(f"{kept}\nnonsense = 1\n")
    try:
        answer, error = call(lxc_service, **service.options, name="postgresql", state="restarted")
        assert error is not None
        assert error.code == "task_failed"
        assert "nonsense" in error.why
        assert answer["changed"]
        assert answer["undo"] == [{"vmid": [200], "name": META, "state": "started"}]
    finally:
        config.write_text(kept)
    service.undo(answer)
    assert read(lxc_service_info, vmid=[200], name="postgresql", probe=QUERY)["services"][0]["probe"] == {"good": True, "told": ""}


def test_reload(lab: Containers, service: Caller) -> None:
    before = property_of(lab, POSTGRES, "InvocationID")
    answer = service(name="postgresql@15-main", state="reloaded")
    assert answer["results"][0]["verified"] == {POSTGRES: "state"}
    assert property_of(lab, POSTGRES, "InvocationID") == before
    assert "received SIGHUP" in lab.exec(200, ["cat", "/var/log/postgresql/postgresql-15-main.log"]).stdout
    service(name="bad-reload", state="started")
    error = service.fails(name="bad-reload", state="reloaded")
    assert error.code == "task_failed"


def test_an_alias_and_an_instance_of_a_template(lab: Containers, service: Caller) -> None:
    service(name="well", state="started")
    answer = service(name="other", state="restarted")
    assert answer["steps"] == ["restart well.service in 200"]
    service(name="instance@a", state="started")
    assert not service(name="instance@a", state="started")["changed"]
    before = property_of(lab, "instance@a.service", "MainPID")
    service(name="instance@a", state="restarted")
    assert property_of(lab, "instance@a.service", "MainPID") != before
    assert "it has no way to reload" in service.fails(name="instance@a", state="reloaded").why
    assert property_of(lab, "instance@b.service", "ActiveState") == "inactive"


def test_what_dies_two_seconds_after_its_start_has_failed(lab: Containers, service: Caller) -> None:
    answer, error = call(lxc_service, **{**service.options, "stable_for": 4}, name="dies", state="started")
    assert error is not None
    assert error.code == "task_failed"
    assert "it was up, and 2." in error.why
    assert "it is failed (failed, result exit-code, exit status 3)" in error.why
    assert "it is broken" in error.why
    assert "Main process exited" in error.why
    assert "password=***" in error.why
    assert "hunter2" not in str(answer) + str(error)
    assert answer["changed"]
    assert not answer["results"][0]["unknown"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing-program", "Failed to locate executable /nonexistent"),
        ("ends-well", "it is inactive (dead)"),
        ("loops", "code=exited, status=3"),
    ],
)
def test_what_systemd_calls_started_and_is_not(service: Caller, name: str, why: str) -> None:
    assert why in service.fails(name=name, state="started", stable_for=3).why


def test_what_systemd_starts_again_and_again_is_not_up(service: Caller) -> None:
    assert "later it is" in service.fails(name="flaps", state="started", stable_for=5).why


def test_the_start_limit_is_reset_only_by_option(lab: Containers, service: Caller) -> None:
    call(lxc_service, **service.options, name="loops", state="started", reset_failed=True)
    until = time.monotonic() + 20
    while property_of(lab, "loops.service", "ActiveState") != "failed" and time.monotonic() < until:
        time.sleep(0.2)
    start = len(lab.execs())
    for check in (True, False):
        error = service.fails(name="loops", state="restarted", check=check)
        assert (error.code, "systemd has given up on it" in error.why) == ("refused", True)
    assert entered(lab, start) == []
    service.fails(name="loops", state="restarted", reset_failed=True)
    assert entered(lab, start)[:2] == [["systemctl", "reset-failed", "--", "loops.service"], ["systemctl", "--no-block", "restart", "--", "loops.service"]]


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        ("masked", "restarted", "refused: it is masked"),
        ("masked", "started", "refused: it is masked"),
        ("nope", "started", "not_found: there is no such unit"),
        ("instance@x", "restarted", "refused: it is inactive (dead)"),
        ("once", "started", "refused: it runs once and is done"),
        ("bad-file", "started", "refused: systemd could not load it (bad-setting)"),
        ("by-others-only", "started", "refused: may be requested by dependency only"),
    ],
)
def test_what_is_not_to_be_touched_is_not(lab: Containers, service: Caller, name: str, state: str, expected: str) -> None:
    answer, error = call(lxc_service, **service.options, name=name, state=state)
    assert error is not None
    code, _colon, why = expected.partition(": ")
    assert (error.code, why in error.why, answer["changed"]) == (code, True, False), error
    assert property_of(lab, f"{name}.service", "ActiveState") == "inactive"


@pytest.mark.long
def test_a_long_start_is_waited_for_and_told(lab: Containers, service: Caller) -> None:
    answer, error = call(lxc_service, **{**service.options, "timeout": 2}, name="slow", state="started")
    assert error is not None
    assert (error.code, answer["changed"], answer["results"][0]["unknown"]) == ("timed_out", True, True)
    assert "it is still activating (start): recovering after 2 s" in error.why
    assert "it is still starting" in service.fails(name="slow", state="restarted").why
    before = property_of(lab, "slow.service", "MainPID")
    answer = service(name="slow", state="started", timeout=30)
    assert property_of(lab, "slow.service", "MainPID") == before
    assert property_of(lab, "slow.service", "ActiveState") == "active"
    answer = service(name="slow", state="restarted", timeout=30)
    assert answer["results"][0]["notes"][0].startswith("it took 1")


def test_a_probe_that_gets_no_answer_is_a_failure(service: Caller) -> None:
    began = time.monotonic()
    error = service.fails(name="well", state="restarted", probe=["sh", "-c", "echo token=abc no >&2; exit 7"], timeout=3)
    assert error.code == "not_converged"
    assert "sh got no answer: it ended with 7: token=*** no" in error.why
    assert time.monotonic() - began >= 3
    began = time.monotonic()
    assert "it cannot be run" in service.fails(name="well", state="restarted", probe=["nosuchprogram"], timeout=60).why
    assert time.monotonic() - began < 20
    told = read(lxc_service_info, vmid=[200], name="well", probe=["sleep", "60"], exec_timeout=1)["services"][0]["probe"]
    assert (told["good"], "gave no answer within 1 s" in told["told"]) == (False, True)


def test_info(lab: Containers) -> None:
    (told,) = read(lxc_service_info, vmid=[200], name="postgresql", lines=5)["services"]
    assert (told["name"], told["up"], told["init"], told["stands_for"], told["probe"]) == (META, True, "systemd", [POSTGRES], None)
    (unit,) = told["units"]
    assert unit["main_pid"] == int(property_of(lab, POSTGRES, "MainPID"))
    assert any("Started" in line for line in unit["journal"])


@pytest.fixture
def node(lab: Containers, tmp_path: Path) -> Controller:
    """A controller whose inventory has the node."""
    controller = Controller(tmp_path)
    path = tmp_path / "inventory.yml"
    inventory = yaml.safe_load(path.read_text())
    inventory["nodes"] = {"hosts": {"pve1": {"ansible_connection": "local", "ansible_python_interpreter": controller.python}}}
    path.write_text(yaml.safe_dump(inventory))
    return controller


@pytest.mark.parametrize("module", [lxc_service, lxc_service_info], ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_example_runs_and_returns_what_is_documented(module: t.Any, node: Controller) -> None:
    documented_answers(module, copy.deepcopy(yaml.safe_load(module.EXAMPLES)), node)


def test_a_failure_returns_what_is_documented(node: Controller) -> None:
    task = {"homelab.healer.lxc_service": {"vmid": 200, "name": "dies", "state": "started"}, "delegate_to": "pve1"}
    (answer,) = node.play([task]).answers("homelab.healer.lxc_service")
    assert answer["msg"].startswith("cannot start dies.service in 200: it was up, and 2.")
    assert {"changed", "before", "undo", "steps", "error"} <= set(answer)
    matches(yaml.safe_load(lxc_service.RETURN), own(answer))


def test_a_frozen_container_keeps_nobody_waiting(lab: Containers, service: Caller) -> None:
    lab.freeze(200)
    try:
        began = time.monotonic()
        error = service.fails(name="well", state="restarted", exec_timeout=2)
        assert time.monotonic() - began < 10
        assert (error.code, "frozen" in error.why) == ("timed_out", True)
    finally:
        lab.thaw(200)
    # Frozen as it is being restarted: nobody knows what comes of it.
    answer: dict[str, t.Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        act = _pct.Node.act

        def freezes(node: _pct.Node, *given: t.Any) -> None:
            lab.freeze(200)
            act(node, *given)

        patched.setattr(_pct.Node, "act", freezes)
        try:
            answer, failure = call(lxc_service, **{**service.options, "exec_timeout": 2}, name="well", state="restarted")
        finally:
            lab.thaw(200)
    assert failure is not None
    assert (failure.code, answer["changed"], answer["results"][0]["unknown"]) == ("timed_out", True, True)
    until = time.monotonic() + 20
    while property_of(lab, "well.service", "ActiveState") != "active" and time.monotonic() < until:
        time.sleep(0.2)


def test_several_containers_and_one_that_is_not_here(lab: Containers, service: Caller, tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pct, "NODES", str(tmp_path))
    (tmp_path / "pve2/lxc").mkdir(parents=True)
    (tmp_path / "pve2/lxc/200.conf").touch()
    start = len(lab.execs())
    lab.move(200, "pve2")
    try:
        error = service.fails(name="well", state="restarted")
    finally:
        lab.move(200, "pve1")
    assert (error.code, error.why, error.fix) == ("not_found", "it is on pve2, and this ran on pve1", "Run it on pve2.")
    assert "has no container 300" in service.fails(vmid=[300, 200], name="well", state="restarted").why
    assert entered(lab, start) == []  # not even in the one that is here


def test_a_container_that_is_stopped(lab: Containers, service: Caller) -> None:
    lab.create(201)
    error = service.fails(vmid=[201], name="well", state="restarted")
    assert (error.code, error.retryable, "container '201' not running!" in error.why) == ("conflict", True, True)


NAMES = ["a", "nginx", "postgresql@15-main", ".service", ".socket", "--no-block", "-H", "root@host", "$(touch /canary)", "`touch /canary`"]
PARTS = [*NAMES, *" -_/;|&'\"\\*?@:.~#!=,%\n\t\0\x1b", "..", "--", "[a]", "{a,b}", "%i", "é", "\u202e", "\x1b[2J"]
NUMBERS = [200, 200, 200, 200, 0, -1, 99, 201, 10**9, 10**20, "200", "200;touch /canary", "$(200)", "-200", "0x200", "", None, "200 201", 3.5, True]


def nonsense(random_: random.Random) -> tuple[str, t.Any]:
    """A name that nobody meant, and a number."""
    name = "".join(random_.choice(PARTS) for _part in range(random_.randint(0, 4)))
    return name, random_.choice(NUMBERS)


WRAPPER = "#!/bin/sh\nprintf '%s\\036' \"$@\" >> /arrived\nprintf '\\n' >> /arrived\nexec /usr/bin/systemctl \"$@\"\n"


def test_no_command_is_run_that_was_not_meant(lab: Containers) -> None:
    """Ten thousand random names and numbers: what arrives in the container is exactly what was meant, by the log of what enters it and by its own."""
    spy = lab[200].root / "usr/local/bin/systemctl"
    spy.write_text(WRAPPER)
    spy.chmod(0o755)
    random_, start, meant = random.Random(20261125), len(lab.execs()), []
    try:
        for _round in range(10_000):
            name, number = nonsense(random_)
            try:
                _answer, error = call(lxc_service, check=True, vmid=[number], name=name, state="restarted", exec_timeout=30)
            except AssertionError:  # the options themselves are refused
                continue
            if lab_has(number) and named(name):
                meant.append(["exec", "200", "--", "systemctl", "show", f"--property={PROPERTIES}", "--", unit_name(name)])
            else:
                assert error is not None
                assert error.code in ("invalid", "not_found", "conflict")
    finally:
        spy.unlink()
    assert len(meant) >= 50
    assert [words for words in lab.execs()[start:] if words[1] == "200"] == meant
    arrived = (lab[200].root / "arrived").read_text().split("\x1e\n")[:-1]
    assert [line.split("\x1e") for line in arrived] == [words[4:] for words in meant]
    assert not (lab[200].root / "canary").exists()


def lab_has(number: t.Any) -> bool:
    return str(number) == "200"


def named(name: str) -> bool:
    """Whether the name of a unit is well formed."""
    try:
        unit_name(name)
    except ValueError:
        return False
    return True


# OpenRC

OPENRC = {
    "plain": "command=/bin/sleep\ncommand_args=infinity\ncommand_background=yes\npidfile=/run/plain.pid\n"
    "extra_started_commands=reload\nreload() { return 0; }\n",
    "watched": "supervisor=supervise-daemon\ncommand=/bin/sleep\ncommand_args=infinity\n",
    "dies": "command=/bin/sh\ncommand_args=\"-c 'sleep 2; exit 3'\"\ncommand_background=yes\npidfile=/run/dies.pid\n",
    "idle": "command=/bin/sleep\ncommand_args=infinity\ncommand_background=yes\npidfile=/run/idle.pid\n",
    "never": "start() { eerror 'no such disk'; return 1; }\n",
}


@pytest.fixture(scope="module")
def openrc(lab: Containers) -> Caller:
    """Container 300, in which OpenRC is init; the server in it is Debian's, by the script that it has for the inits before systemd."""
    root = lab.create(300, image="openrc").root
    for name, text in OPENRC.items():
        (root / "etc/init.d" / name).write_text(f"#!/sbin/openrc-run\n{text}")
        (root / "etc/init.d" / name).chmod(0o755)
    lab.start(300)
    for name in ("plain", "watched"):
        lab.exec(300, ["rc-service", name, "start"])
    return Caller(lxc_service, {"vmid": [300], "stable_for": 1, "exec_timeout": 10, "timeout": 20})


def began(lab: Containers) -> str:
    """When the server in it began."""
    return lab.exec(300, ["runuser", "-u", "postgres", "--", "psql", "-XAtqwc", "SELECT pg_postmaster_start_time()"]).stdout.strip()


@pytest.mark.parametrize("name", ["plain", "watched"])
def test_openrc_restarts_and_another_process_proves_it(lab: Containers, openrc: Caller, name: str) -> None:
    start = len(lab.execs())
    foretold = openrc(name=name, state="restarted", check=True)
    assert not [words for words in lab.execs()[start:] if "restart" in words]
    answer = openrc(name=name, state="restarted")
    assert answer["steps"] == foretold["steps"] == [f"restart {name} in 300"]
    (result,) = answer["results"]
    assert (result["init"], result["verified"]) == ("openrc", {name: "process"})
    pid = result["units"][0]["main_pid"]
    assert pid != foretold["before"][300][name]["main_pid"]
    assert lab.exec(300, ["cat", f"/proc/{pid}/comm"]).stdout == "sleep\n"


def test_openrc_restarts_what_it_knows_no_process_of_and_that_is_no_proof(lab: Containers, openrc: Caller) -> None:
    """Debian's script for the inits before systemd: OpenRC passes its restart on, and notes nothing."""
    before = began(lab)
    error = openrc.fails(name="postgresql", state="restarted", probe=QUERY)
    assert (error.code, "noted no other start" in error.why) == ("not_converged", True)
    assert began(lab) != before


def test_openrc_starts_reloads_and_leaves_alone(lab: Containers, openrc: Caller) -> None:
    assert "it is inactive (stopped)" in openrc.fails(name="idle", state="restarted").why
    assert openrc(name="idle", state="started")["changed"]
    assert not openrc(name="idle", state="started")["changed"]
    seen = read(lxc_service_info, vmid=[300], name="plain")["services"][0]
    assert openrc(name="plain", state="reloaded")["changed"]
    assert read(lxc_service_info, vmid=[300], name="plain")["services"][0]["units"] == seen["units"]
    assert openrc.fails(name="nobody", state="restarted").code == "not_found"


def test_with_openrc_too_what_dies_two_seconds_after_its_start_has_failed(openrc: Caller) -> None:
    answer, error = call(lxc_service, **{**openrc.options, "stable_for": 4}, name="dies", state="started")
    assert error is not None
    assert (error.code, answer["changed"]) == ("task_failed", True)
    assert "s later it is failed (crashed" in error.why
    assert "no such disk" in openrc.fails(name="never", state="started").why
