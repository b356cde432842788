"""The chain, from the diagnosis to the record, with real containers on a real engine."""

from __future__ import annotations

import time
import typing as t
from pathlib import Path

import pytest

from tests.conftest import sample
from tests.lab.engine import BURN, Engine, OwnEngine
from tests.lab.playbooks import COLLECTION, Controller
from tests.lab.wire import said, wire

TWO_CPUS = f"({BURN}) & {BURN}"


def test_the_container_that_runs_away_is_limited_and_verified(own_docker: OwnEngine, controller: Controller) -> None:
    own_docker.run("quiet")
    burner = own_docker.run("burner", TWO_CPUS, labels={"com.docker.compose.project": "media"})
    began = time.time()
    run = controller.heal(cpus="0.5")
    assert run.returncode == 0, run.output
    assert "WARNING" not in run.output
    assert run.record["outcome"] == "healed"
    assert run.record["target"] == {"kind": "container", "id": burner, "name": "burner", "hostname": burner[:12]}
    assert run.record["undo"] == [{"module": "homelab.healer.docker_limits", "args": {"containers": [burner], "cpus": "default"}}]
    assert own_docker.events(began) == ["update"]
    assert own_docker.host_config("burner")["CpuQuota"] == 50000
    looks = [{judgement["name"]: judgement["value"] for judgement in look} for look in run.record["looks"]]
    assert all(look["its CPU rate is at most 0.5"] < 0.6 for look in looks)
    again = controller.heal(cpus="0.5")
    assert (again.record["outcome"], again.record["undo"], own_docker.events(began)) == ("healthy", [], ["update"])


def test_check_plays_the_chain_and_writes_nothing(docker: Engine, controller: Controller) -> None:
    docker.run("burner", TWO_CPUS)
    began = time.time()
    run = controller.heal("--check", "--diff", container="burner", cpus="0.5", memory="64m")
    assert run.returncode == 0, run.output
    assert docker.events(began) == []
    for line in ("-cpus: not set", "+cpus: 0.5", "+memory: 64MiB", "Verify: its CPU rate is at most 0.5"):
        assert line in run.output
    assert run.record["outcome"] == "planned"
    foretold = run.record["plan_id"]
    run = controller.heal(container="burner", cpus="0.5", memory="64m", dry_run=True)
    assert (run.record["outcome"], run.record["plan_id"], docker.events(began)) == ("planned", foretold, [])
    run = controller.heal(container="burner", cpu_limit="0.5", memory_limit="64m")
    assert (run.record["outcome"], run.record["plan_id"]) == ("healed", foretold)


def test_what_did_not_help_is_put_back(docker: Engine, controller: Controller) -> None:
    docker.run("burner", TWO_CPUS, healthcheck=docker.dislikes_limits(), Memory=100 << 20, MemorySwap=150 << 20)
    docker.wait_for_health("burner", "healthy")
    run = controller.heal(container="burner", cpus="0.5", memory="64m")
    assert run.returncode == 2
    assert run.record["outcome"] == "rolled_back", run.output
    assert "it is not unhealthy: bad" in run.record["why"]
    config = docker.host_config("burner")
    assert (config["CpuQuota"], config["Memory"], config["MemorySwap"]) == (-1, 100 << 20, 150 << 20)
    docker.wait_for_health("burner", "healthy")
    run = controller.heal(container="burner", cpus="0.5", remediate_fail_on=[])
    assert (run.returncode, run.record["outcome"]) == (0, "rolled_back")


def test_a_container_that_behaves_is_left_alone(own_docker: OwnEngine, controller: Controller) -> None:
    own_docker.run("quiet")
    began = time.time()
    run = controller.heal()
    assert (run.returncode, run.record["outcome"], own_docker.events(began)) == (0, "healthy", [])


def test_a_limit_of_all_cpus_changes_nothing_and_the_plan_says_so(docker: Engine, controller: Controller) -> None:
    docker.run("burner", TWO_CPUS)
    cpus = docker.api.info()["NCPU"]
    began = time.time()
    run = controller.heal("--check", "--diff", container="burner", cpus=f"{cpus}.0")
    assert f"a limit of {cpus}.0 CPUs changes nothing on a host with {cpus}" in run.output.replace("\n        ", " ")
    run = controller.heal(container="burner", cpus=f"{cpus}.0")
    assert (run.returncode, run.record["outcome"], docker.events(began)) == (0, "healthy", [])


def test_no_container_at_all_is_healthy(own_docker: OwnEngine, controller: Controller) -> None:
    assert own_docker.api.containers() == []
    assert controller.heal().record["outcome"] == "healthy"


BAD: list[tuple[dict[str, str], str]] = [
    ({"container": "nope"}, "cannot find container nope: No such container"),
    ({"container": "burner", "cpus": "many"}, "cannot limit to many CPUs, measured over 1 s: those are not both numbers above 0"),
    ({"container": "burner", "cpus": "0.5", "memory": "lots"}, "memory cannot be 'lots': a size is a number"),
    ({"container": "burner", "cpus": "0.001"}, "of its period of 100000 us that is 100 us"),
    ({"container": "burner", "memory": "6m", "cpus": "0.5"}, "will not limit memory of burner to 6MiB"),
]


@pytest.mark.parametrize("bad", sample(BAD, BAD[0], BAD[-1]), ids=[words for _variables, words in BAD])
def test_bad_input_is_told_and_touches_nothing(docker: Engine, controller: Controller, bad: tuple[dict[str, str], str]) -> None:
    variables, words = bad
    docker.run("burner", f"x=$(head -c 20000000 /dev/zero | tr '\\0' x); {TWO_CPUS}")
    time.sleep(1)
    began = time.time()
    run = controller.heal(**variables)
    assert run.returncode == 2
    assert run.record["outcome"] == "needs_human"
    assert words in run.record["why"]
    assert docker.events(began) == []


def test_an_engine_that_is_gone_is_told(own_docker: OwnEngine, controller: Controller) -> None:
    own_docker.kill()
    try:
        run = controller.heal()
    finally:
        own_docker.start()
    assert run.record["outcome"] == "needs_human"
    assert run.record["error"]["code"] == "unreachable"
    assert "Look whether the engine runs" in run.record["why"]


def test_without_a_proof_the_change_is_kept_and_a_human_called(docker: Engine, controller: Controller) -> None:
    docker.run("burner", TWO_CPUS)
    blind = {
        "module": "homelab.healer.docker_usage_info",
        "args": {"containers": ["burner"], "sample": 0},
        "judge": [{"name": "its CPU rate is low", "kind": "goal", "value": "containers.0.cpu_rate", "at_most": 1}],
    }
    limits = {"docker_limits_container": "burner", "docker_limits_cpus": "0.5"}
    run = controller.judged([blind], **limits)
    assert (run.returncode, run.record["outcome"]) == (2, "needs_human"), run.output
    assert "its CPU rate is low: cannot be seen" in run.record["why"]
    assert docker.host_config("burner")["CpuQuota"] == 50000
    docker.update("burner", CpuQuota=-1)
    assert controller.judged([blind], **limits).record["outcome"] == "denied"  # until somebody has looked
    controller.forget()
    run = controller.judged([blind], **limits, remediate_on_inconclusive="put_back")
    assert run.record["outcome"] == "rolled_back"
    assert docker.host_config("burner")["CpuQuota"] == -1


def test_limits_as_a_single_command(docker: Engine, controller: Controller) -> None:
    container = docker.run("app", Memory=64 << 20, MemorySwap=64 << 20)
    began = time.time()
    name = "homelab.healer.docker_limits"
    quick: dict[str, t.Any] = {"docker_limits_sample": 0.2, "remediate_pause": 0}
    run = controller.play(name, "--check", "--diff", container="app", cpus=2.0, memory="+50%", **quick)
    assert (run.record["outcome"], docker.events(began)) == ("planned", [])
    assert "+memory: 96MiB" in run.output
    run = controller.play(name, container="app", cpus=2.0, memory="+50%", **quick)
    assert (run.returncode, run.record["outcome"]) == (0, "healed")
    assert run.record["undo"] == [{"module": name, "args": {"containers": [container], "cpus": "default", "memory": 64 << 20, "memory_swap": 64 << 20}}]
    assert docker.events(began) == ["update"]
    run = controller.play(name, container="app", cpus=2.0, memory="96m", **quick)
    assert (run.record["outcome"], docker.events(began)) == ("healthy", ["update"])
    run = controller.play(name, **quick)
    assert "Name the container, as with -e container=app" in run.output
    run = controller.play(name, container="app", **quick)
    assert run.record["outcome"] == "needs_human"
    assert "one of the following is required" in run.record["why"]


@pytest.mark.parametrize(
    "playbook", sorted(path.stem for path in (COLLECTION / "playbooks").glob("*.yml") if "  hosts: docker\n" in path.read_text() and path.stem != "doctor")
)
def test_every_playbook_in_check_mode_behind_a_wire_that_refuses_writes(own_docker: OwnEngine, tmp_path: Path, playbook: str) -> None:
    own_docker.run("burner", BURN)
    with wire(own_docker.folder, own_docker.docker_host) as line:
        line.answer_writes = said(405, "Method Not Allowed")
        run = Controller(tmp_path, line.docker_host).play(f"homelab.healer.{playbook}", "--check", "--diff", container="burner", cpus="0.2")
        assert (run.returncode, run.record["outcome"], line.writes) == (0, "planned", 0), run.output


@pytest.mark.parametrize("word", sample(["y", True], "y"))
def test_any_word_for_a_dry_run_is_one(docker: Engine, controller: Controller, word: t.Any) -> None:
    docker.run("burner", BURN)
    began = time.time()
    run = controller.heal("-e", f"dry_run={word}", container="burner", cpus="0.2")
    assert (run.record["outcome"], run.record["dry_run"], docker.events(began)) == ("planned", True, [])


def test_what_would_stop_the_chain_half_way_stops_it_before_the_first_write(docker: Engine, controller: Controller) -> None:
    docker.run("burner", BURN)
    began = time.time()
    for variable, value, words in (
        ("dry_run", "ture", "argument 'remediate_dry_run' is of type"),
        ("remediate_looks", "1", "at least 1 and at most remediate_looks"),
        ("remediate_needed", "0", "at least 1 and at most remediate_looks"),
        ("remediate_pause", "soon", "argument 'remediate_pause' is of type"),
        ("docker_runaway_sample", "0", "those are not both numbers above 0"),
        ("cpus", "0", "those are not both numbers above 0"),
    ):
        run = controller.heal(**{"container": "burner", "cpus": "0.2", variable: value})
        assert run.returncode == 2, variable
        assert words in " ".join(run.output.split()), (variable, run.output)
    assert docker.events(began) == []
    text = {"remediate_looks": "2", "remediate_needed": "1", "remediate_pause": "1", "docker_runaway_sample": "1"}  # as -e gives it
    run = controller.heal(**{"container": "burner", "cpus": "0.2", **text})
    assert run.record["outcome"] == "healed", run.output


def test_a_play_in_check_mode_writes_nothing_and_says_so(docker: Engine, controller: Controller) -> None:
    docker.run("burner", BURN)
    began = time.time()
    options = {"docker_runaway_cpus": "0.2", "docker_runaway_container": "burner", "docker_runaway_sample": 1}
    heal = {"ansible.builtin.include_role": {"name": "homelab.healer.docker_runaway"}, "vars": options}
    run = controller.play([{"block": [heal], "check_mode": True}])
    assert (run.record["outcome"], run.record["dry_run"], docker.events(began)) == ("planned", True, [])


def test_a_host_without_an_address_is_not_taken_for_the_controller(docker: Engine, controller: Controller) -> None:
    docker.run("burner", BURN)
    inventory = controller.folder / "inventory.yml"
    inventory.write_text(inventory.read_text().replace(f"healer_docker_host: {docker.docker_host}", "ansible_host: nas.example.org"))
    run = controller.heal(cpus="0.2")
    assert run.record["outcome"] == "needs_human"
    assert "Say by healer_docker_host where the engine of this host listens" in run.record["why"]


def test_a_limit_that_is_there_and_not_kept_needs_a_human(docker: Engine, controller: Controller) -> None:
    """The diagnosis sees a rate that the limit, which is there already, should have prevented."""
    docker.run("burner", BURN, CpuQuota=50_000)
    goal = {"name": "its CPU rate is tiny", "kind": "goal", "value": "containers.0.cpu_rate", "at_most": 0.01}
    probe = {"module": "homelab.healer.docker_usage_info", "args": {"containers": ["burner"]}, "judge": [goal]}
    run = controller.judged([probe], docker_limits_container="burner", docker_limits_cpus="0.5")
    assert (run.returncode, run.record["outcome"]) == (2, "needs_human")


def test_nothing_is_changed_that_cannot_be_seen(docker: Engine, controller: Controller) -> None:
    docker.run("burner", BURN)
    began = time.time()
    probe = {"module": "homelab.healer.docker_usage_info", "args": {"containers": ["gone"]}, "judge": []}
    run = controller.judged([probe], docker_limits_container="burner", docker_limits_cpus="0.5")
    assert (run.record["outcome"], docker.events(began)) == ("needs_human", [])
    assert "cannot see how burner is before the change: cannot find container gone" in run.record["why"]


def test_a_container_that_restarts_again_and_again_is_not_called_healthy(docker: Engine, controller: Controller) -> None:
    docker.run("looping", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 1", RestartPolicy={"Name": "always"})
    time.sleep(1)
    run = controller.heal(container="looping", cpus="0.2", docker_runaway_sample=2)
    assert run.record["outcome"] == "needs_human", run.output
