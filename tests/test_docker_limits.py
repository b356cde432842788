"""docker_limits on a real engine: its contract, the engine's traps (T5.x) and the defects of its peers (W5 to W9), each by name."""

from __future__ import annotations

import json
import threading
import time
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._containers import LIFTED_MEMORY
from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.modules import docker_limits, docker_usage_info
from tests.lab.engine import BURN, Engine, OwnEngine
from tests.lab.modules import call, read
from tests.lab.playbooks import Controller

MIB = 1 << 20
HOG = "x=$(head -c 40000000 /dev/zero | tr '\\0' x); sleep 100000; :"


class Limits:
    """The module on the lab's engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, *containers: str, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        """Call the module; it must succeed."""
        answer, error = call(docker_limits, check, docker_host=self.engine.docker_host, **({"containers": list(containers)} if containers else {}), **options)
        assert error is None, error
        return answer

    def put_back(self, undo: t.Mapping[str, t.Any]) -> None:
        """Use one set of options of an undo, by way of JSON as a playbook does."""
        _answer, error = call(docker_limits, docker_host=self.engine.docker_host, **json.loads(json.dumps(undo)))
        assert error is None, error

    def refused(self, *containers: str, **options: t.Any) -> str:
        """Call the module; it must refuse, say so in check mode too, and touch nothing. Returns its code and message."""
        began = time.time()
        said = []
        for check in (True, False):
            _answer, error = call(docker_limits, check, docker_host=self.engine.docker_host, containers=list(containers), **options)
            assert error is not None
            said.append(f"{error.code}: {error}")
        assert said[0] == said[1]
        assert self.engine.events(began) == []
        return said[0]


@pytest.fixture
def limits(docker: Engine) -> Limits:
    return Limits(docker)


def test_the_litany(docker: Engine, controller: Controller) -> None:
    """Missing option, check, apply, again, undo, refused: as a task, with the diff that a person reads."""
    container = docker.run("app", Memory=100 * MIB, MemorySwap=100 * MIB)
    task: dict[str, t.Any] = {"homelab.healer.docker_limits": {"container": "app", "cpus": 1.5, "memory_limit": "128MiB"}, "register": "answer"}
    run = controller.play([{"homelab.healer.docker_limits": {"container": "app"}}])
    assert "one of the following is required: cpus, memory, memory_swap" in run.output
    began = time.time()
    run = controller.play([task], "--check", "--diff")
    assert docker.events(began) == []
    for line in ("-cpus: not set", "+cpus: 1.5", "-memory: 100MiB", "+memory: 128MiB", "+memory_swap: 128MiB"):
        assert line in run.output
    (foretold,) = run.answers("homelab.healer.docker_limits")
    run = controller.play([task])
    (done,) = run.answers("homelab.healer.docker_limits")
    assert docker.events(began) == ["update"]
    for key in ("changed", "before", "after", "diff", "steps", "undo", "reversibility"):
        assert foretold[key] == done[key]
    assert done["results"][0]["verified"] == {"cpus": "cgroup", "memory": "cgroup", "memory_swap": "cgroup"}
    assert done["results"][0]["compose"] == "services:\n  app:\n    cpus: 1.5\n    mem_limit: 128m\n    memswap_limit: 128m\n"
    undo = {"homelab.healer.docker_limits": "{{ item }}", "loop": "{{ answer.undo }}"}
    run = controller.play([task, undo])
    assert docker.events(began) == ["update"]
    run = controller.play([{**undo, "loop": done["undo"]}])
    assert run.returncode == 0, run.output
    config = docker.host_config("app")
    assert (config["CpuQuota"], config["Memory"], config["MemorySwap"]) == (-1, 100 * MIB, 100 * MIB)
    assert docker.api.inspect_container(container)["RestartCount"] == 0
    run = controller.play([{"homelab.healer.docker_limits": {"container": "app", "memory": "5m"}}])
    assert "memory cannot be '5m': it must be between 6MiB and" in run.output


def test_t5_1_and_w7_w9_what_the_engine_ignores_is_refused_or_done(docker: Engine, limits: Limits) -> None:
    docker.run("app", Memory=64 * MIB, MemorySwap=128 * MIB, CpuQuota=50000, PidsLimit=50, MemoryReservation=32 * MIB)
    for option in ("cpus", "memory", "memory_swap", "memory_reservation", "cpu_shares", "pids_limit"):
        zero: dict[str, t.Any] = {option: "0"}
        assert "0 is what an engine takes for no answer, and ignores" in limits.refused("app", **zero)
    assert "cpuset_cpus cannot be ''" in limits.refused("app", cpuset_cpus="")
    assert "refused: cannot lift memory_reservation of app" in limits.refused("app", memory_reservation="default")
    lifted = limits("app", cpus="unlimited", memory="unlimited", pids_limit="-1")
    assert lifted["results"][0]["verified"] == {"cpus": "cgroup", "memory": "cgroup", "memory_swap": "cgroup", "pids_limit": "cgroup"}
    assert docker.host_config("app")["Memory"] == LIFTED_MEMORY
    live = read(docker_usage_info, docker_host=docker.docker_host, containers=["app"])["containers"][0]["live"]
    assert [live[limit] for limit in ("cpus", "memory", "memory_swap", "pids_limit")] == ["default"] * 4
    assert not limits("app", cpus="unlimited", memory="unlimited", pids_limit="default")["changed"]
    for options in lifted["undo"]:
        limits.put_back(options)
    config = docker.host_config("app")
    assert [config[name] for name in ("Memory", "MemorySwap", "CpuQuota", "PidsLimit")] == [64 * MIB, 128 * MIB, 50000, 50]


def test_t5_2_swap_follows_memory(docker: Engine, limits: Limits) -> None:
    docker.run("app", Memory=64 * MIB, MemorySwap=96 * MIB)
    after = limits("app", memory="128m")["results"][0]["after"]
    assert after == {"memory": 128 * MIB, "memory_swap": 160 * MIB}
    assert "its memory limit is 128MiB, and memory_swap is the sum" in limits.refused("app", memory_swap="64m")
    docker.run("free")
    assert limits("free", memory="64m")["results"][0]["after"] == {"memory": 64 * MIB, "memory_swap": 128 * MIB}
    docker.run("bare")
    assert "it has no memory limit" in limits.refused("bare", memory_swap="64m")


def test_w8_unlimited_swap_is_told_by_the_kernel_not_by_the_configuration(docker: Engine, limits: Limits) -> None:
    docker.run("app", Memory=64 * MIB, MemorySwap=128 * MIB)
    docker.update("app", MemorySwap=-1)
    assert docker.host_config("app")["MemorySwap"] == -1
    facts = read(docker_usage_info, docker_host=docker.docker_host, containers=["app"])["containers"][0]
    assert (facts["limits"]["memory_swap"], facts["live"]["memory_swap"]) == ("default", 128 * MIB)
    answer = limits("app", memory_swap="unlimited")
    assert answer["results"][0]["before"]["memory_swap"] == 128 * MIB
    assert answer["results"][0]["verified"]["memory_swap"] == "cgroup"
    raised = limits("app", memory="96m")["results"][0]
    assert raised["after"] == {"memory": 96 * MIB, "memory_swap": "default"}


def test_t5_3_a_reservation_above_the_limit_is_refused(docker: Engine, limits: Limits) -> None:
    docker.run("app", Memory=64 * MIB, MemorySwap=64 * MIB)
    assert "invalid: cannot reserve 65MiB for app: its memory limit is 64MiB" in limits.refused("app", memory_reservation="65m")
    answer = limits("app", memory_reservation="32m")
    assert (answer["reversibility"], answer["undo"]) == ("none", [])
    assert limits("app", memory_reservation="16m")["reversibility"] == "exact"


def test_t5_4_no_limit_below_what_is_in_use(docker: Engine, limits: Limits) -> None:
    docker.run("hog", HOG)
    docker.run("files", "dd if=/dev/zero of=/dev/shm/file bs=1000000 count=40; exec sleep 100000")
    docker.run("cache", "dd if=/dev/zero of=/file bs=1000000 count=60; while :; do cat /file >/dev/null; sleep 1; done")
    docker.run("many", "for i in 1 2 3 4 5 6; do sleep 100000 & done; wait")
    time.sleep(2)
    for name in ("hog", "files"):
        said = limits.refused(name, memory="30m")
        assert f"refused: will not limit memory of {name} to 30MiB: it is using" in said
        assert "allow_below_usage=true" in said
    assert "refused: will not limit pids_limit of many to 3: it is using 7" in limits.refused("many", pids_limit="3")
    assert limits("cache", memory="30m")["changed"]
    _answer, error = call(docker_limits, docker_host=docker.docker_host, containers=["hog"], memory="30m", memory_swap="30m", allow_below_usage=True)
    if docker.api.info()["CgroupVersion"] == "1":
        assert error is not None
        assert (error.code, _answer["changed"]) == ("conflict", False)
    raised = limits("hog", memory="500m")
    assert raised["changed"]
    assert limits.refused("hog", memory="20m").startswith("refused")


def test_t5_5_cpus_by_what_the_container_was_made_with(docker: Engine, limits: Limits) -> None:
    cpus = docker.api.info()["NCPU"]
    docker.run("nano", NanoCpus=1_500_000_000)
    docker.run("quota", CpuQuota=33_333, CpuPeriod=50_000)
    docker.run("free")
    assert limits("nano", "quota", "free", cpus="0.3333")["changed"]
    assert docker.host_config("nano")["NanoCpus"] == 333_300_000
    assert docker.host_config("quota")["CpuQuota"] == 16_665
    assert (docker.host_config("free")["CpuQuota"], docker.host_config("free")["NanoCpus"]) == (33_330, 0)
    assert not limits("nano", "quota", "free", cpus="0.3333")["changed"]
    assert f"the host has {cpus} CPUs, and the engine takes no more" in limits.refused("nano", cpus=f"{cpus + 1}")
    assert "of its period of 50000 us that is 750 us" in limits.refused("quota", cpus="0.015")
    answer = limits("nano", cpus="unlimited")
    assert answer["results"][0]["after"] == {"cpus": float(cpus)}
    assert not limits("nano", cpus="unlimited")["changed"]
    assert f"a limit of {cpus}.0 CPUs changes nothing for it on a host with {cpus}" in limits("free", cpus=str(cpus))["results"][0]["notes"][0]


def test_w9_a_container_with_both_kinds_of_limit_is_refused(docker: Engine, limits: Limits) -> None:
    docker.run("app", NanoCpus=1_500_000_000)
    docker.update("app", CpuQuota=-1)
    assert "it has both NanoCpus and a CpuQuota of -1" in limits.refused("app", cpus="1")
    assert limits("app", pids_limit="20")["changed"]


def test_t5_6_states(docker: Engine, limits: Limits) -> None:
    docker.run("paused")
    docker.api.pause("paused")
    assert limits("paused", cpus="0.5")["results"][0]["verified"] == {"cpus": "cgroup"}
    assert docker.api.inspect_container("paused")["State"]["Paused"]
    docker.run("created", start=False)
    docker.run("ended", "exit 0")
    docker.run("looping", "sleep 0.2; exit 1", RestartPolicy={"Name": "always"})
    docker.run("fleeting", AutoRemove=True)
    time.sleep(1)
    for name in ("created", "ended"):
        answer = limits(name, cpus="0.5", memory="64m")
        assert answer["results"][0]["verified"] == dict.fromkeys(("cpus", "memory", "memory_swap"), "accepted")
        assert "take effect when it starts" in answer["results"][0]["notes"][0]
        assert docker.api.inspect_container(name)["State"]["Status"] in ("created", "exited")
        assert not limits(name, cpus="0.5", memory="64m")["changed"]
    assert limits("looping", "fleeting", cpus="0.5")["changed"]
    docker.api.start("created")
    facts = read(docker_usage_info, docker_host=docker.docker_host, containers=["created"])["containers"][0]
    assert (facts["live"]["cpus"], facts["live"]["memory"]) == (0.5, 64 * MIB)


@pytest.mark.long
def test_a_container_that_ends_while_it_is_limited(docker: Engine, limits: Limits) -> None:
    looping = [f"looping{number:02}" for number in range(8)]
    for name in looping:
        docker.run(name, "sleep 0.05; exit 1", RestartPolicy={"Name": "always"})
    for cpus in (0.5, 0.6):
        for name in looping:  # the engine waits longer before each restart, until somebody restarts it
            docker.api.restart(name, timeout=0)
        limits(*looping, cpus=cpus, parallel=2)
        assert {docker.host_config(name)["CpuQuota"] for name in looping} == {round(cpus * 100000)}


def test_t5_7_owners_and_compose(docker: Engine, limits: Limits) -> None:
    docker.run("task", labels={"com.docker.swarm.task.id": "x"})
    assert "Swarm owns it" in limits.refused("task", cpus="1")
    assert "docker service update" in limits.refused("task", cpus="1")
    docker.run("pod", labels={"io.kubernetes.pod.uid": "x"})
    assert "Kubernetes owns it" in limits.refused("pod", cpus="1")
    docker.run("media-app-1", labels={"com.docker.compose.project": "media", "com.docker.compose.service": "app"})
    answer = limits(labels=["com.docker.compose.project=media"], cpus="0.5", cpuset_cpus="0")
    assert answer["results"][0]["persistence"] == "until_recreate"
    assert answer["results"][0]["compose"] == 'services:\n  app:\n    cpus: 0.5\n    cpuset: "0"\n'
    docker.api.restart("media-app-1", timeout=0)
    assert not limits("media-app-1", cpus="0.5", cpuset_cpus="0")["changed"]


def test_t5_9_and_t5_11_other_limits_read_back_in_one_spelling(docker: Engine, limits: Limits) -> None:
    cpus = docker.api.info()["NCPU"]
    docker.run("app")
    answer = limits("app", cpuset_cpus="0", cpu_shares="512", pids_limit="100")
    assert set(answer["results"][0]["verified"].values()) <= {"cgroup", "accepted"}
    assert answer["reversibility"] in ("equivalent", "none")
    assert not limits("app", cpuset_cpus="0,0-0", cpu_shares="512", pids_limit="100")["changed"]
    if docker.api.info()["CgroupVersion"] == "1":
        back = limits("app", cpuset_cpus="default", cpu_shares="default", pids_limit="unlimited")
        assert back["results"][0]["verified"] == {"cpuset_cpus": "cgroup", "cpu_shares": "cgroup", "pids_limit": "cgroup"}
        assert not limits("app", cpuset_cpus=f"0-{cpus - 1}", cpu_shares="1024", pids_limit="-1")["changed"]
    assert f"here it can have 0-{cpus - 1}" in limits.refused("app", cpuset_cpus=f"0,{cpus}")
    assert "cpuset_cpus cannot be 'first'" in limits.refused("app", cpuset_cpus="first")


def test_t5_13_a_container_is_its_id_not_its_name(docker: Engine, limits: Limits) -> None:
    first = docker.run("app")
    undo = limits("app", cpus="0.5")["undo"][0]
    assert undo == {"containers": [first], "cpus": "default"}
    docker.api.remove_container("app", force=True)
    second = docker.run("app", CpuQuota=70_000)
    assert limits.refused(first, cpus="default").startswith("not_found: cannot find container")
    assert docker.host_config("app")["CpuQuota"] == 70_000
    assert "merely how the id of app begins" in limits.refused(second[:6], cpus="1")
    assert limits("app", "/app", second, second[:12], cpus="1", check=True)["results"][0]["id"] == second
    for name in (".", "app/", "../app", "äpp", "a b"):
        assert limits.refused(name, cpus="1").startswith("invalid: cannot find container")


def test_t5_13_removed_and_made_again_between_plan_and_apply(docker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.run("app")
    docker.run("other")
    planned = docker_limits.MODULE.plan

    def plan_then_recreate(request: t.Any, now: t.Any) -> t.Any:
        changes = planned(request, now)
        if docker.host_config("app")["PidsLimit"] is None:
            docker.api.remove_container("app", force=True)
            docker.run("app", PidsLimit=77)
        return changes

    monkeypatch.setattr(docker_limits, "MODULE", replace(docker_limits.MODULE, plan=plan_then_recreate))
    answer, error = call(docker_limits, docker_host=docker.docker_host, containers=["app", "other"], cpus="0.5")
    assert error is not None
    assert (error.code, [result["changed"] for result in answer["results"]]) == ("not_found", [False, True])
    assert docker.host_config("app")["CpuQuota"] == 0
    assert "Changed: other. Not changed: app." in str(error)


def test_w5_check_mode_tells_the_truth_and_w6_nothing_is_recreated(docker: Engine, limits: Limits) -> None:
    container = docker.run("app", Memory=128 * MIB, MemorySwap=256 * MIB)
    started = docker.api.inspect_container(container)["State"]["StartedAt"]
    began = time.time()
    foretold = limits("app", check=True, memory="192m", cpus="0.5", pids_limit="100")
    assert docker.events(began) == []
    done = limits("app", memory="192m", cpus="0.5", pids_limit="100")
    assert (foretold["changed"], foretold["diff"]) == (done["changed"], done["diff"])
    assert docker.events(began) == ["update"]
    now = docker.api.inspect_container("app")
    assert (now["Id"], now["State"]["StartedAt"]) == (container, started)


def test_selectors(docker: Engine, limits: Limits) -> None:
    for number in range(4):
        docker.run(f"app{number}", labels={"tier": "back" if number else "front"}, start=number < 3)
    assert "refused: will not change 3 targets at once: max_containers is 2" in limits.refused("app0", "app1", "app2", cpus="1", max_containers=2)
    answer = limits(labels=["tier=back"], cpus="1", check=True)
    assert sorted(result["name"] for result in answer["results"]) == ["app1", "app2", "app3"]
    _answer, error = call(docker_limits, docker_host=docker.docker_host, labels=["tier=none"], cpus="1")
    assert str(error).startswith("no container has the labels tier=none")
    empty: list[dict[str, t.Any]] = [{"containers": []}, {"labels": []}, {"labels": [""]}, {"containers": [""]}]
    for options in empty:
        _answer, error = call(docker_limits, docker_host=docker.docker_host, cpus="1", **options)
        assert error is not None
        assert error.code == "invalid", options
    assert docker.host_config("app1")["CpuQuota"] == 0


def test_relative_values(docker: Engine, limits: Limits) -> None:
    docker.run("app", Memory=100 * MIB, MemorySwap=150 * MIB, CpuQuota=100_000)
    docker.run("bare")
    answer = limits("app", memory="+50%", cpus="-0.25", check=True)
    assert answer["results"][0]["after"] == {"cpus": 0.75, "memory": 150 * MIB, "memory_swap": 200 * MIB}
    answer = limits("app", memory="+50%", cpus="-0.25")
    assert answer["results"][0]["after"] == {"cpus": 0.75, "memory": 150 * MIB, "memory_swap": 200 * MIB}
    assert "cannot set memory of bare to +50%: it has none to begin from" in limits.refused("bare", memory="+50%")
    assert "the new value is out of bounds" in limits.refused("app", memory="-1g")
    for nonsense in ("--25%", "+-1", "+inf%", "-1", "+" + "9" * 400):
        assert limits.refused("app", cpus=nonsense).startswith("invalid: ")
    assert limits.refused("app", memory="+1" + "0" * 400 + "%").startswith("invalid: ")


def test_a_drifted_limit_is_seen_and_set_again(own_docker: OwnEngine) -> None:
    """Somebody wrote to the control group by hand: the configuration says what is wanted, and the kernel says otherwise."""
    limits = Limits(own_docker)
    container = own_docker.run("app", CpuQuota=50_000)
    if own_docker.api.info()["CgroupVersion"] == "1":
        Path(f"/sys/fs/cgroup/cpu/docker/{container}/cpu.cfs_quota_us").write_text("90000")
    else:
        Path(f"/sys/fs/cgroup/docker/{container}/cpu.max").write_text("90000 100000")
    answer = limits("app", cpus="0.5")
    assert answer["results"][0]["before"] == {"cpus": 0.9}
    assert answer["results"][0]["verified"] == {"cpus": "cgroup"}


def test_usage_of_what_runs_and_what_does_not(docker: Engine) -> None:
    docker.run("burner", BURN, CpuQuota=50_000)
    docker.run("hog", HOG)
    docker.run("created", start=False)
    time.sleep(1)
    answer = read(docker_usage_info, docker_host=docker.docker_host, sample=1.0, containers=["created", "hog", "burner"])
    burner, hog, created = answer["containers"]
    assert (burner["name"], hog["name"], created["name"]) == ("burner", "hog", "created")
    assert 0.4 < burner["cpu_rate"] < 0.6
    assert burner["throttled"] > 0.5
    assert 40e6 < hog["memory_used"] < 100e6
    assert (created["status"], created["cpu_rate"], created["memory_used"], created["witness"]) == ("created", None, None, None)
    assert answer["host"]["cpus"] == docker.api.info()["NCPU"]
    assert [found["name"] for found in read(docker_usage_info, docker_host=docker.docker_host)["containers"]].count("created") == 0
    for sample in (-1.0, float("nan"), float("inf")):
        with pytest.raises(HealerError, match="sample cannot be"):
            read(docker_usage_info, docker_host=docker.docker_host, sample=sample)


def test_what_restarts_or_goes_while_it_is_measured(docker: Engine) -> None:
    docker.run("burner", BURN)
    docker.run("fleeting", BURN)
    docker.run("stays", BURN)

    def disturb() -> None:
        docker.api.restart("burner", timeout=0)
        docker.api.remove_container("fleeting", force=True)

    threading.Timer(0.5, disturb).start()
    answer = read(docker_usage_info, docker_host=docker.docker_host, sample=2.5)
    rates = {facts["name"]: facts["cpu_rate"] for facts in answer["containers"]}
    assert set(rates) == {"burner", "stays"}
    assert rates["burner"] is None or rates["burner"] > 0.2
    assert rates["stays"] > 0.2
    docker.run("fleeting")
    threading.Timer(0.5, docker.api.remove_container, args=("fleeting",), kwargs={"force": True}).start()
    with pytest.raises(HealerError, match="cannot find container fleeting"):
        read(docker_usage_info, docker_host=docker.docker_host, sample=2.0, containers=["stays", "fleeting"])
