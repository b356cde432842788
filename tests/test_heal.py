"""One run over the whole inventory: an engine, a cluster and a server, each with something wrong."""

from __future__ import annotations

import json
import re
import time
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.lab.engine import BURN, OwnEngine
from tests.lab.playbooks import Controller, Run
from tests.lab.postgres import Postgres, bloat, prepared
from tests.lab.proxmox.client import Proxmox

HEAL = "homelab.healer.heal"
TWO_CPUS = f"({BURN}) & {BURN}"
QUICK: dict[str, t.Any] = {
    **{"docker_runaway_cpus": 0.05, "docker_runaway_sample": 1},
    **{"lxc_memory_size": 4096, "lxc_memory_sample": 0.2, "lxc_memory_pause": 0, "lxc_memory_looks": 3, "lxc_memory_needed": 2, "lxc_memory_level": 60},
    "remediate_pause": 0,
}
"""What the remedies are told by the inventory; a second of the lab's cluster passes in a hundredth."""
REMEDIES = {"lab": ["docker_runaway"], "pve": ["lxc_memory", "lxc_cpu"], "db": ["pg_connections", "pg_blocker", "pg_bloat"]}


@pytest.fixture
def pg(embedded_postgres: Postgres) -> Postgres:
    server = prepared(embedded_postgres)
    server.role("healer", grants=["pg_monitor", "pg_signal_backend", "pg_maintain"])
    return server


@pytest.fixture
def homelab(own_docker: OwnEngine, pve: Proxmox, pg: Postgres, tmp_path: Path) -> Controller:
    """A controller with all three in its inventory, and what the remedies are to know beside them."""
    lab = Controller(tmp_path, own_docker.docker_host, pve.options_for("healer@pve!healer"), pg.options())
    edit(lab, lambda inventory: inventory["all"].setdefault("vars", {}).update(QUICK))
    return lab


def edit(controller: Controller, change: t.Callable[[dict[str, t.Any]], object]) -> None:
    path = controller.folder / "inventory.yml"
    inventory = yaml.safe_load(path.read_text())
    change(inventory)
    path.write_text(yaml.safe_dump(inventory))


def stats(run: Run) -> dict[str, t.Any]:
    passed_on = (run.folder / "stats.json").read_text()
    assert passed_on, run.output
    return dict(json.loads(passed_on))


def outcomes(run: Run) -> dict[str, str]:
    """What came of each remedy, by the summary, which the results must agree with wherever there is one."""
    passed_on = stats(run)
    summary = {f"{row['host']} {row['remedy']}": row["outcome"] for row in passed_on.get("heal", [])}
    for record in passed_on.get("remediations", []):
        assert summary[f"{record['host']} {record['remedy'].rpartition('.')[2]}"] == record["outcome"], run.output
    lines = [line for event in run.events if event["task"].endswith("Tell what came of each remedy") for line in event["result"]["msg"]]
    assert sorted(lines) == sorted(row["told"] for row in passed_on["heal"]), run.output
    return summary


def told(run: Run) -> str:
    """What was printed, on one line."""
    return " ".join(run.output.split())


def expected(**ill: str) -> dict[str, str]:
    return {f"{host} {remedy}": ill.get(remedy, "healthy") for host, remedies in REMEDIES.items() for remedy in remedies}


def test_all_three_are_foretold_healed_and_then_healthy(own_docker: OwnEngine, pve: Proxmox, pg: Postgres, homelab: Controller) -> None:
    own_docker.run("quiet")
    own_docker.run("burner", TWO_CPUS)
    bloat(pg)
    began = time.time()
    pg.mark()
    planned = homelab.play(HEAL, "--check", "--diff")
    ill = ("docker_runaway", "lxc_memory", "pg_bloat")
    assert planned.returncode == 0, planned.output
    assert outcomes(planned) == expected(**dict.fromkeys(ill, "planned"))
    for line in ("+cpus: 0.05", "+memory: 4GiB", "-dead_tuples: 26667"):
        assert line in planned.output, planned.output
    assert (own_docker.events(began), pve.writes()) == ([], [])
    asked = [line.partition("homelab.healer ")[2] for line in pg.logged().splitlines()]
    assert any(asked)
    assert not [line for line in asked if re.search(r"pg_(terminate|cancel)_backend\(|statement: (VACUUM|ANALYZE)", line)]

    run = homelab.play(HEAL)
    assert run.returncode == 0, run.output
    assert "WARNING" not in run.output
    assert outcomes(run) == expected(**dict.fromkeys(ill, "healed"))
    ids = {record["remedy"]: record["plan_id"] for record in stats(planned)["remediations"]}
    assert ids == {record["remedy"]: record["plan_id"] for record in stats(run)["remediations"]}
    assert own_docker.host_config("burner")["CpuQuota"] == 5000
    assert int(pve.guest(200)["kernel"]["memory"]) == 4096
    assert any(row["told"].startswith("HEALED: pg_bloat: public.events in prod: ") for row in stats(run)["heal"])

    pve.clear()
    again = homelab.play(HEAL)
    assert (again.returncode, outcomes(again), pve.writes(), own_docker.events(began)) == (0, expected(), [], ["update"]), again.output
    for record in stats(again)["remediations"]:
        assert (record["plan"], record["undo"], record["results"]) == ([], [], []), record


@pytest.mark.long
def test_what_fails_hides_nothing_else_and_all_of_it_is_named_at_the_end(own_docker: OwnEngine, pve: Proxmox, pg: Postgres, homelab: Controller) -> None:
    own_docker.run("burner", TWO_CPUS)
    bloat(pg)

    def spoil(inventory: dict[str, t.Any]) -> None:
        inventory["docker"]["hosts"]["gone"] = {"healer_docker_host": "unix:///nowhere/docker.sock"}
        inventory["docker"]["hosts"]["unsaid"] = {}
        away = {"ansible_host": "192.0.2.1", "ansible_connection": "ssh", "ansible_ssh_common_args": "-o ConnectTimeout=1", "remediate_delegate_to": "away"}
        inventory["postgresql"]["hosts"]["away"] = {**inventory["postgresql"]["hosts"]["db"], **away}
        inventory["proxmox"]["hosts"]["pve"].update(lxc_memory_looks=1, lxc_memory_needed=2)
        inventory["postgresql"]["hosts"]["db"]["pg_connections_threshold"] = 0.001

    edit(homelab, spoil)
    run = homelab.play(HEAL)
    assert run.returncode == 2, run.output
    assert outcomes(run) == {
        **expected(docker_runaway="healed", lxc_memory="needs_human", pg_connections="needs_human", pg_bloat="healed"),
        **{"gone docker_runaway": "needs_human", "unsaid docker_runaway": "needs_human"},
        **{f"away {remedy}": "needs_human" for remedy in REMEDIES["db"]},
    }
    why = {(row["host"], row["remedy"]): row["why"] for row in stats(run)["heal"]}
    assert why["away", "pg_blocker"].startswith("cannot reach away, where the modules run: ")
    assert "at least 1 and at most remediate_looks" in why["pve", "lxc_memory"]
    assert "Say by healer_docker_host" in why["unsaid", "docker_runaway"]
    failed = [event["result"]["msg"] for event in run.events if event["task"].endswith("Fail where it was not healed")]
    assert len([line for line in failed if line.count("NEEDS_HUMAN") == 3]) == 1, failed  # the host that is away
    assert own_docker.host_config("burner")["CpuQuota"] == 5000

    allowed = homelab.play(HEAL, remediate_fail_on=["rolled_back"], dry_run=True)
    assert allowed.returncode == 0, allowed.output
    assert outcomes(allowed)["gone docker_runaway"] == "needs_human"


@pytest.mark.long
def test_the_run_s_own_word_to_fail_at_once_ends_one_remedy_only(pve: Proxmox, pg: Postgres, tmp_path: Path) -> None:
    controller = Controller(tmp_path, postgresql=pg.options())
    bloat(pg)
    run = controller.play(
        HEAL, remediate_fail_on=["needs_human"], remediate_pause=0, pg_connections_threshold=0.001, heal_remedies="pg_bloat,pg_connections,pg_blocker"
    )
    assert run.returncode == 2, run.output
    assert outcomes(run) == {"db pg_bloat": "healed", "db pg_connections": "needs_human", "db pg_blocker": "healthy"}
    assert list(outcomes(run)) == ["db pg_bloat", "db pg_connections", "db pg_blocker"]


def test_what_the_inventory_says_of_dry_runs_holds(pg: Postgres, tmp_path: Path) -> None:
    controller = Controller(tmp_path, postgresql=pg.options())
    edit(controller, lambda inventory: inventory["postgresql"]["hosts"]["db"].update(remediate_dry_run=True, heal_remedies=["pg_bloat"]))
    bloat(pg)
    wishes: list[tuple[dict[str, t.Any], str]] = [({}, "planned"), ({"dry_run": False, "remediate_pause": 0}, "healed")]
    for variables, outcome in wishes:
        run = controller.play(HEAL, **variables)
        assert (run.returncode, outcomes(run)) == (0, {"db pg_bloat": outcome}), run.output


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ((), {"heal_remedies": ["pg_bloat", "lxc_memroy"]}, "Got no match for: lxc_memroy"),
        ((), {"heal_remedies": []}, "cannot heal anything: heal_remedies names no remedy"),
        ((), {"heal_remedies": "docker_runaway"}, "no host of this run (localhost, db) is in docker, where docker_runaway could look. Name hosts there"),
        (("--limit", "localhost"), {}, "no host of this run (localhost) is in docker, proxmox, postgresql, where docker_runaway, lxc"),
        ((), {"remediate_fail_on": ["needs_humans"]}, "Got no match for: needs_humans"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_touched(
    pg: Postgres, tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, t.Any], words: str
) -> None:
    controller = Controller(tmp_path, postgresql=pg.options())
    pg.mark()
    run = controller.play(HEAL, *arguments, **variables)
    assert run.returncode != 0, run.output
    assert words in told(run), run.output
    assert "homelab.healer" not in pg.logged()


@pytest.mark.parametrize("inventory", [{}, {"all": {"hosts": {"localhost": {}}}}, {"postgres": {"hosts": {"db": {}}}}])
def test_an_inventory_with_nobody_to_heal_is_told(tmp_path: Path, inventory: dict[str, t.Any]) -> None:
    controller = Controller(tmp_path)
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    run = controller.play(HEAL)
    assert run.returncode != 0, run.output
    assert "is in docker, proxmox, postgresql, where docker_runaway" in told(run), run.output


def test_a_group_without_hosts_is_told_beside_one_that_has_some(pg: Postgres, tmp_path: Path) -> None:
    run = Controller(tmp_path, postgresql=pg.options()).play(HEAL, "--check")
    assert (run.returncode, outcomes(run)) == (0, {f"db {remedy}": "healthy" for remedy in REMEDIES["db"]}), run.output
    assert "No host of this run is in docker, proxmox, so these look nowhere: docker_runaway, lxc_memory, lxc_cpu" in told(run)
