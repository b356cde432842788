"""The chain on containers of Proxmox VE, from the diagnosis to the record: the mission's first story, and what goes wrong in it."""

from __future__ import annotations

import re
import typing as t

import pytest
import yaml

from tests.conftest import sample
from tests.lab.playbooks import COLLECTION, Controller, Run
from tests.lab.proxmox.client import Proxmox
from tests.lab.proxmox.fixtures import homelab

QUICK: dict[str, t.Any] = {"lxc_memory_sample": 0.2, "lxc_memory_pause": 0, "lxc_memory_looks": 3, "lxc_memory_needed": 2, "lxc_memory_level": 60}
"""Short looks: in the lab a hundred seconds pass in one, so what levels off is told soon."""


def heal(controller: Controller, *arguments: str, **variables: t.Any) -> Run:
    return controller.play("homelab.healer.heal_lxc_memory", *arguments, **{**QUICK, **variables})


def writes(pve: Proxmox) -> list[str]:
    """What was written, in order, without the numbers of containers."""
    return [f"{seen['method']} {seen['path'].split('/lxc/')[-1].partition('/')[2]}" for seen in pve.writes()]


def memory(pve: Proxmox, vmid: int = 200) -> int:
    return int(pve.guest(vmid)["kernel"]["memory"])


def test_a_database_that_runs_out_of_memory_gets_more_and_is_verified(pve: Proxmox, pve_controller: Controller) -> None:
    run = heal(pve_controller, "--check", "--diff", vmid=200, memory=4096)
    assert (run.returncode, run.record["outcome"], pve.writes()) == (0, "planned", []), run.output
    for line in ("-memory: 2GiB", "+memory: 4GiB", "Verify: its use levels off", "Verify: nothing waits for memory", "Way back: exact"):
        assert line in run.output
    assert "+pre-memory-adjustment-20" in run.output
    foretold = run.record["plan_id"]
    run = heal(pve_controller, lxc_id=200, memory=4096)
    assert run.returncode == 0, run.output
    assert "WARNING" not in run.output
    assert (run.record["outcome"], run.record["plan_id"]) == ("healed", foretold)
    known = {"node": "pve1", "tags": ["database"], "pool": "", "hostname": "postgres"}
    target = run.record["target"]
    assert {**target, "backup": target["backup"]["running"]} == {"kind": "lxc", "id": 200, "name": "200 (postgres)", **known, "backup": False}
    assert run.record["undo"] == [{"module": "homelab.healer.lxc_resources", "args": {"vmid": [200], "memory": 2048, "allow_below_usage": True}}]
    snapshot = writes(pve)[2].split("/")[-1]
    assert writes(pve) == ["POST snapshot", "PUT config", f"DELETE snapshot/{snapshot}"]
    assert snapshot.startswith("pre-memory-adjustment-")
    assert (memory(pve), pve.guest(200)["snapshots"]) == (4096, {})
    pve.clear()
    run = heal(pve_controller, vmid=200, memory=4096)
    assert (run.returncode, run.record["outcome"], pve.writes()) == (0, "healthy", [])


def test_the_worst_is_found_and_a_size_recommended(pve: Proxmox, pve_controller: Controller) -> None:
    pve.set_guest(200, workload={"memory": 2100})
    pve.advance(3600)
    run = heal(pve_controller)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert run.record["target"]["id"] == 200
    assert 2100 < memory(pve) < 4096


def test_a_leak_is_put_back(pve: Proxmox, pve_controller: Controller) -> None:
    pve.set_guest(200, workload={"memory": 2040, "growth": 40})
    run = heal(pve_controller, vmid=200, memory=4096)
    assert (run.returncode, run.record["outcome"]) == (2, "rolled_back"), run.output
    assert re.search(r"(its use levels off|it has headroom): bad", run.record["why"])
    assert (memory(pve), pve.guest(200)["snapshots"], pve.guest(200)["lock"]) == (2048, {}, None)


def test_the_size_stays_where_putting_it_back_would_kill_and_that_is_not_allowed(pve: Proxmox, pve_controller: Controller, whole: bool) -> None:
    pve.set_guest(200, workload={"memory": 2040, "growth": 40})
    run = heal(pve_controller, vmid=200, memory=4096, lxc_memory_put_back_below_usage=False)
    assert (run.returncode, run.record["outcome"], memory(pve)) == (2, "needs_human", 4096), run.output
    assert "Putting it back failed too: will not limit memory of 200 (postgres) to 2GiB" in run.record["why"]
    (left,) = pve.guest(200)["snapshots"]
    assert left.startswith("pre-memory-adjustment-")
    if not whole:
        return
    pve.reset()
    pve.set_guest(200, workload={"memory": 2040, "growth": 40})
    run = heal(pve_controller, vmid=200, memory=4096, lxc_memory_put_back_below_usage=False, remediate_allow_data_loss=True)
    assert (run.record["outcome"], memory(pve), pve.guest(200)["status"]) == ("rolled_back", 2048, "running"), run.output
    assert "what it wrote since is lost" in run.record["why"]


def test_a_container_that_cannot_be_snapshotted_goes_on_and_says_so(pve: Proxmox, pve_controller: Controller) -> None:
    pve.set_guest(202, workload={"memory": 5000})
    pve.advance(20)
    before = memory(pve, 202)
    run = heal(pve_controller, vmid=202, memory="+5g", lxc_memory_options={"allow_overcommit": True})
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert "it cannot be snapshotted, so there is none: mp0 is the host's /srv/media" in run.output.replace("\n        ", " ")
    assert writes(pve) == ["PUT config"]
    assert memory(pve, 202) == before + 5120


def test_no_size_and_nothing_to_recommend(pve: Proxmox, pve_controller: Controller) -> None:
    pve.set_guest(200, memory=4096, workload={"memory": 3800})
    pve.set_node("pve1", memory=4000)
    pve.advance(20)
    run = heal(pve_controller, vmid=200)
    assert (run.returncode, run.record["outcome"], pve.writes()) == (2, "needs_human", []), run.output
    assert "no size can be recommended" in run.record["why"] or "no size can be recommended" in run.output


def test_without_room_on_the_node_nothing_is_touched(pve: Proxmox, pve_controller: Controller) -> None:
    run = heal(pve_controller, vmid=200, memory="14GiB")
    assert (run.returncode, run.record["outcome"], pve.writes()) == (2, "needs_human", []), run.output
    assert "will not give containers on pve1 12GiB more" in run.record["why"]


CPU: dict[str, t.Any] = {"lxc_cpu_settle": 0.4, "lxc_cpu_pause": 0, "lxc_cpu_looks": 2, "lxc_cpu_needed": 2}


def test_cpu_is_given_or_taken(pve: Proxmox, pve_controller: Controller) -> None:
    pve.set_guest(201, workload={"cpu": 1.4})
    pve.advance(30)
    name = "homelab.healer.heal_lxc_cpu"
    run = pve_controller.play(name, **CPU)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert (run.record["target"]["id"], str(pve.guest(201)["config"]["cores"])) == (201, "2")
    pve.set_guest(201, workload={"cpu": 8})
    pve.advance(30)
    run = pve_controller.play(name, vmid=201, **CPU)
    assert (run.record["outcome"], str(pve.guest(201)["config"]["cores"])) == ("rolled_back", "2"), run.output
    run = pve_controller.play(name, vmid=201, cpu_limit=0.5, **CPU)
    assert (run.record["outcome"], pve.guest(201)["kernel"]["cpulimit"]) == ("healed", 0.5), run.output


def test_the_single_commands(pve: Proxmox, pve_controller: Controller) -> None:
    run = pve_controller.play("homelab.healer.lxc_resources", vmid=201, cpu=2, swap=512, memory="+10%", remediate_pause=0)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert run.record["undo"] == [{"module": "homelab.healer.lxc_resources", "args": {"vmid": [201], "cores": 1, "memory": 1024, "swap": 256}}]
    run = pve_controller.play("homelab.healer.snapshot", vmid=201, snapshot="before", description="Before the upgrade", remediate_pause=0)
    assert (run.returncode, run.record["outcome"], list(pve.guest(201)["snapshots"])) == (0, "healed", ["before"]), run.output
    run = pve_controller.play("homelab.healer.rollback", vmid=201, snapshot="before", remediate_pause=0)
    assert (run.returncode, run.record["outcome"]) == (2, "needs_human")
    assert "everything written since" in run.record["why"]
    started = pve.guest(201)["started"]
    run = pve_controller.play("homelab.healer.rollback", vmid=201, snapshot="before", allow_data_loss=True, remediate_pause=0)
    assert (run.returncode, run.record["outcome"], pve.guest(201)["status"]) == (0, "healed", "running"), run.output
    assert "losing everything since then" in " ".join(run.output.split())
    assert pve.guest(201)["started"] != started
    started = pve.guest(201)["started"]
    run = pve_controller.play("homelab.healer.restart_lxc", lxc_id=201, remediate_pause=0)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert pve.guest(201)["started"] != started


CHECKED: dict[str, dict[str, t.Any]] = {
    "heal_lxc_memory": {**QUICK, "vmid": 200, "memory": 4096},
    "heal_lxc_cpu": {**CPU, "vmid": 201, "cpulimit": 0.05},
    "lxc_resources": {"vmid": 201, "memory": 900, "cores": 2},
    "restart_lxc": {"vmid": 201},
    "snapshot": {"vmid": 201},
    "rollback": {"vmid": 201, "snapshot": "before", "allow_data_loss": True},
}
"""Every playbook that changes a container, and variables with which it would."""


def test_every_playbook_is_checked() -> None:
    ours = {path.stem for path in (COLLECTION / "playbooks").glob("*.yml") if "  hosts: proxmox\n" in path.read_text()}
    assert ours - {"doctor", "restart_postgres"} == set(CHECKED)  # the latter needs a real container, as in test_pg_service


@pytest.mark.parametrize(("playbook", "variables"), CHECKED.items())
def test_check_mode_writes_nothing_even_where_nobody_may_write(pve: Proxmox, pve_controller: Controller, playbook: str, variables: dict[str, t.Any]) -> None:
    pve.set_guest(201, snapshots={"before": {"snaptime": 1_790_000_000, "config": {"memory": 512}}}, workload={"cpu": 0.5})
    pve.advance(30)
    pve.read_only()
    run = pve_controller.play(f"homelab.healer.{playbook}", "--check", "--diff", **variables)
    assert (run.returncode, run.record["outcome"]) == (0, "planned"), run.output
    assert (pve.refused(), pve.writes()) == ([], [])


def test_a_number_on_several_clusters_is_refused_and_zeros_count(pve: Proxmox, pve_controller: Controller) -> None:
    inventory = yaml.safe_load((pve_controller.folder / "inventory.yml").read_text())
    hosts = inventory["proxmox"]["hosts"]
    hosts["other"] = hosts["pve"]
    (pve_controller.folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
    run = pve_controller.play("homelab.healer.restart_lxc", vmid=201)
    assert run.returncode == 2
    assert "container 201 is meant: each cluster has numbers of its own. Name one of them with --limit." in " ".join(run.output.split())
    assert pve.writes() == []
    run = pve_controller.play("homelab.healer.lxc_resources", "--limit", "other", vmid=201, swap=0, remediate_pause=0)
    assert (run.returncode, pve.guest(201)["kernel"]["swap"]) == (0, 0), run.output


REMEDIES: dict[str, dict[str, t.Any]] = {
    "restart_lxc": {},
    "snapshot": {},
    "lxc_resources": {"cores": 1},
    "heal_lxc_cpu": {"cpulimit": "0.5"},
    "rollback": {"snapshot": "before", "lxc_rollback_allow_data_loss": True},
}


@pytest.mark.parametrize("playbook", sample(REMEDIES, *list(REMEDIES)[:3]))
def test_each_remedy_says_what_it_knows_of_its_container(pve: Proxmox, pve_controller: Controller, playbook: str) -> None:
    """A pool that the token may not see is left out, which is not to be in none; what it cannot know of backups is not said to be so."""
    state = homelab()
    state["guests"]["200"]["snapshots"] = {"before": {}}
    pve.reset({**state, "pools": {"db": [200]}})
    pve.backup([200], seconds=100_000)
    pve.set_guest(200, lock=None)  # which a plan would wait for
    run = pve_controller.play(f"homelab.healer.{playbook}", "--check", vmid=200, **REMEDIES[playbook])
    target = run.record["target"]
    assert (target["id"], target["node"], target["tags"], target["hostname"]) == (200, "pve1", ["database"], "postgres"), run.output
    assert "pool" not in target
    assert (target["backup"]["running"], target["backup"]["last"]) == (True, None)
    assert "shown only to who has Datastore.AllocateSpace" in target["backup"]["unseen"]
