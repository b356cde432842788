"""restart_postgres through the chain: Proxmox VE is simulated, its container with systemd and PostgreSQL is real."""

from __future__ import annotations

import time
import typing as t
from pathlib import Path

import pytest

from tests.conftest import NO_CONTAINERS, sample
from tests.lab.containers import Containers, NoContainers
from tests.lab.matrix import CHANGE, Inside, recover
from tests.lab.playbooks import Controller, Run
from tests.lab.stepped import Breakpoint, Stepped, kill_leftovers, until_nothing_is_left

POSTGRES = Inside.UNIT
QUICK: dict[str, t.Any] = {"vmid": 200, "pg_service_stable_for": 1, "pg_service_pause": 1, "pg_service_needed": 2, "pg_service_looks": 40}


@pytest.fixture(scope="module")
def site_of_all(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Inside]:
    try:
        with Inside.made(tmp_path_factory.mktemp("site")) as made:
            yield made
    except NoContainers as error:
        pytest.skip(f"{NO_CONTAINERS}: {' '.join(str(error).split())}")


@pytest.fixture
def site(site_of_all: Inside) -> Inside:
    site_of_all.clear()
    site_of_all.pve.reset()
    return site_of_all


@pytest.fixture
def lab(site: Inside) -> Containers:
    return site.lab


@pytest.fixture
def controller(site: Inside, tmp_path: Path) -> Controller:
    """A controller whose inventory has the node, by another name than the cluster's."""
    made = Controller(tmp_path, proxmox=site.pve.options_for("healer@pve!healer"))
    made.add("nodes", first=site.way.host(made.python))
    made.inventory(healer_nodes={"pve1": "first"})
    return made


def restart(controller: Controller, *arguments: str, **variables: t.Any) -> Run:
    return controller.play("homelab.healer.restart_postgres", *arguments, **{**QUICK, **variables})


def run_of(lab: Containers) -> str:
    return lab.exec(200, ["systemctl", "show", "--value", "--property=InvocationID", "--", POSTGRES]).stdout.strip()


def writes(lab: Containers, since: int) -> list[str]:
    """What was done in the container, without what only looks."""
    return [" ".join(words[3:]) for words in lab.execs()[since:] if words[3] == "systemctl" and words[4] != "show"]


def answers(lab: Containers) -> bool:
    return lab.exec(200, ["runuser", "-u", "postgres", "--", "psql", "-XAtqwc", "SELECT 1"], check=False).stdout == "1\n"


def test_it_is_foretold_restarted_and_answers(lab: Containers, controller: Controller) -> None:
    before, start = run_of(lab), len(lab.execs())
    run = restart(controller, "--check", "--diff", service_name="postgresql@15-main")
    assert (run.returncode, run.record["outcome"], writes(lab, start)) == (0, "planned", []), run.output
    for line in ("Way back: none", "Verify: it answers a query", "Verify: it was restarted", f"Plan: restart {POSTGRES} in 200"):
        assert line in run.output
    foretold = run.record["plan_id"]
    run = restart(controller, service_name="postgresql@15-main")
    assert (run.returncode, run.record["outcome"], run.record["plan_id"]) == (0, "healed", foretold), run.output
    assert "WARNING" not in run.output
    assert run.record["target"]["id"] == 200
    assert writes(lab, start) == [f"systemctl --no-block restart -- {POSTGRES}"]
    assert run_of(lab) != before
    assert answers(lab)
    assert [answer["results"][0]["verified"] for answer in run.answers("homelab.healer.lxc_service") if answer["changed"]][-1] == {
        POSTGRES: "invocation",
        "probe": "answer",
    }


def test_the_missions_own_spellings_and_a_server_that_is_down(lab: Containers, controller: Controller) -> None:
    lab.exec(200, ["systemctl", "kill", "--signal=KILL", POSTGRES])
    time.sleep(1)
    assert not answers(lab)
    run = restart(controller, vmid="", lxc_id=200)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert answers(lab)


@pytest.mark.long
def test_by_a_connection_of_its_own_where_it_was_down(lab: Containers, controller: Controller) -> None:
    """The server's failure to answer before the change is what the remedy is for, not a thing that cannot be seen."""
    hba = lab[200].root / "etc/postgresql/15/main/pg_hba.conf"
    if "healer" not in hba.read_text():
        hba.write_text(f"local all healer trust\n{hba.read_text()}")
        lab.exec(200, ["systemctl", "reload", POSTGRES])
        lab.exec(200, ["runuser", "-u", "postgres", "--", "psql", "-qc", "CREATE ROLE healer LOGIN IN ROLE pg_monitor"])
    socket = {"login_unix_socket": f"/proc/{lab[200].pid}/root/run/postgresql", "login_user": "healer", "login_db": "postgres"}
    controller.add("postgresql", db={"healer_postgresql": socket})
    lab.exec(200, ["systemctl", "kill", "--signal=KILL", POSTGRES])
    time.sleep(1)
    with Stepped(controller, "homelab.healer.restart_postgres", [Breakpoint(CHANGE, at="end")], **QUICK, server="db") as stepped:
        stepped.until_it_stops()
        stepped.kill()
    until_nothing_is_left(controller.folder)
    run = controller.play("homelab.healer.recover")
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert "it answers a query: good, 60 (before: unknown)" in run.record["why"]
    run = restart(controller, server="nobody")
    told = "cannot ask nobody: no host of the inventory has that name and a healer_postgresql"
    assert (run.returncode, told in " ".join(run.output.split())) == (2, True), run.output


def test_what_was_stopped_for_good_is_left_alone(lab: Containers, controller: Controller) -> None:
    lab.exec(200, ["systemctl", "stop", POSTGRES])
    start = len(lab.execs())
    run = restart(controller)
    assert (run.returncode, run.record["outcome"], writes(lab, start)) == (2, "needs_human", []), run.output
    assert "it is inactive (dead)" in run.record["why"]
    lab.exec(200, ["systemctl", "start", POSTGRES])


def test_a_reload_is_enough_where_it_is(lab: Containers, controller: Controller) -> None:
    before, start = run_of(lab), len(lab.execs())
    run = restart(controller, ladder="reload,restart")
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert f"Plan: if that does not help, restart {POSTGRES} in 200" in run.output
    assert writes(lab, start) == [f"systemctl reload -- {POSTGRES}"]
    assert run_of(lab) == before


def test_a_restart_follows_a_reload_that_does_not_help(lab: Containers, controller: Controller) -> None:
    config = lab[200].root / "etc/postgresql/15/main/postgresql.conf"
    kept = config.read_text()
    config.write_text(f"{kept}\nmax_connections = 4\nsuperuser_reserved_connections = 0\nmax_wal_senders = 0\n")
    try:
        lab.exec(200, ["systemctl", "restart", POSTGRES])
        many = "for i in 1 2 3 4; do setsid runuser -u postgres -- psql -c 'select pg_sleep(600)' >/dev/null 2>&1 </dev/null & done; sleep 2"
        lab.exec(200, ["sh", "-c", many])
        assert not answers(lab)
        before, start = run_of(lab), len(lab.execs())
        run = restart(controller, ladder="reload,restart,container", pg_service_reload_timeout=3)
        assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
        assert writes(lab, start) == [f"systemctl reload -- {POSTGRES}", f"systemctl --no-block restart -- {POSTGRES}"]
        assert run_of(lab) != before
        assert "before that, did reload" in run.record["why"]
        assert "too many clients" in run.record["why"]
    finally:
        config.write_text(kept)
        lab.exec(200, ["systemctl", "restart", POSTGRES])


@pytest.mark.long
def test_the_container_is_restarted_last_and_only_where_that_is_allowed(lab: Containers, controller: Controller) -> None:
    lab.exec(200, ["touch", "/run/broken"])
    first = lab[200].pid
    run = restart(controller)
    assert (run.returncode, run.record["outcome"], lab[200].pid) == (2, "needs_human", first), run.output
    assert "The last lines of its journal" in run.record["why"]
    assert not answers(lab)
    controller.forget()
    run = restart(controller, ladder=["restart", "container"])
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert lab[200].pid != first
    assert answers(lab)


@pytest.mark.long
def test_what_is_still_starting_is_not_broken_off_by_the_next_rung(lab: Containers, controller: Controller) -> None:
    lab.exec(200, ["touch", "/run/slow"])
    first = lab[200].pid
    try:
        run = restart(controller, ladder="restart,container", timeout=2)
    finally:
        lab.exec(200, ["rm", "/run/slow"])
    assert (run.returncode, run.record["outcome"], lab[200].pid) == (2, "needs_human", first), run.output
    assert "it is still activating" in run.record["why"]
    assert answers(lab)


def test_a_node_that_is_gone_at_the_change_is_recorded_and_not_climbed_over(site: Inside, lab: Containers, controller: Controller) -> None:
    first = lab[200].pid
    with Stepped(controller, "homelab.healer.restart_postgres", [Breakpoint(CHANGE)], **QUICK, ladder="restart,container") as stepped:
        stepped.until_it_stops()
        site.way.cut()
        stepped.go_on()
        run = Run(stepped.until_it_ends(), stepped.output.read_text(), controller.folder)
    assert (run.returncode, run.record["outcome"], lab[200].pid) == (2, "needs_human", first), run.output
    assert "cannot reach first for homelab.healer.lxc_service" in run.record["why"]
    assert "No route to host" in run.record["why"]


@pytest.mark.long
def test_what_a_module_on_the_node_may_still_do_is_waited_for(site: Inside, lab: Containers, controller: Controller) -> None:
    """Its run is gone, with the whole machine that it was on; whether the module is, only the node can tell."""
    before = run_of(lab)
    with Stepped(controller, "homelab.healer.restart_postgres", [Breakpoint(CHANGE)], **QUICK) as stepped:
        stepped.until_it_stops()
        site.stick()
        stepped.go_on()
        site.until_it_writes()
        stepped.kill()
        kill_leftovers(controller.folder)
    site.clear()
    site.way.cut()
    assert "is left alone: the run that has it may still be at it" in " ".join(recover(controller).split())
    site.way.mend()
    told = controller.play("homelab.healer.recover")
    assert told.record["outcome"] == ("rolled_back" if run_of(lab) == before else "healed"), told.output
    assert answers(lab)


def test_a_node_that_is_not_in_the_inventory_is_named(lab: Containers, controller: Controller) -> None:
    controller.inventory(healer_nodes={"pve1": "192.0.2.1"})
    run = restart(controller, "--timeout", "2")
    assert (run.returncode, run.record["outcome"]) == (2, "needs_human"), run.output
    assert "cannot reach 192.0.2.1, the node that has 200 (postgres)" in run.record["why"]
    run = restart(controller, ladder="reboot")
    assert "one or more of: reload, restart, container. Got no match for: reboot" in " ".join(run.output.split())


def test_what_is_run_in_the_container_comes_from_no_event(lab: Containers, controller: Controller) -> None:
    start = len(lab.execs())
    run = restart(controller, healer_nodes={"pve1": "another"}, pg_service_as=["touch"], pg_service_query="DROP TABLE a", pg_service_database="host=a")
    told = "will not take healer_nodes, pg_service_as, pg_service_database, pg_service_query from extra variables"
    assert (run.returncode, told in " ".join(run.output.split()), lab.execs()[start:]) == (2, True, []), run.output


def test_a_container_that_has_moved_is_refused_on_the_old_node(lab: Containers, controller: Controller) -> None:
    start = len(lab.execs())
    lab.move(200, "pve2")  # as if it moved between the cluster's answer and the look
    try:
        run = restart(controller)
    finally:
        lab.move(200, "pve1")
    assert (run.returncode, run.record["outcome"], lab.execs()[start:]) == (2, "needs_human", []), run.output
    assert "has no container 200" in run.record["why"]


@pytest.mark.parametrize("number", sample([1, 2], 1))
def test_a_run_that_was_killed_as_it_restarted_is_told_by_the_run_of_the_service(lab: Containers, controller: Controller, number: int) -> None:
    """Before its change nothing has happened; after it, the service is another run, and answers."""
    before = run_of(lab)
    stops = [Breakpoint(CHANGE, at="start" if number == 1 else "end")]
    with Stepped(controller, "homelab.healer.restart_postgres", stops, **QUICK) as run:
        run.until_it_stops()
        run.kill()
    until_nothing_is_left(controller.folder)
    assert (run_of(lab) == before) == (number == 1)
    told = controller.play("homelab.healer.recover")
    assert told.returncode == 0, told.output
    assert told.record["outcome"] == ("rolled_back" if number == 1 else "healed")
    assert answers(lab)


def test_the_default_policy_asks_a_human(lab: Containers, controller: Controller) -> None:
    (controller.folder / "policy.yml").write_text("version: 1\napproval: {wait: 1s}\n")
    start = len(lab.execs())
    run = restart(controller)
    assert (run.returncode, run.record["outcome"], writes(lab, start)) == (2, "denied", []), run.output
    assert run.record["gate"]["rule"] == "built-in: container 200"
