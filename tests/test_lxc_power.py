"""lxc_power and lxc_info against Proxmox VE."""

from __future__ import annotations

import time

import pytest

from ansible_collections.homelab.healer.plugins.modules import lxc_info, lxc_power
from tests.lab.modules import Caller, call, read
from tests.lab.proxmox.client import Proxmox, proxmox

DAY = 86400


@pytest.fixture
def power(pve: Proxmox) -> Caller:
    return Caller(lxc_power, {**pve.options_for("healer@pve!healer"), "wait_lock": 0, "timeout": 5})


def test_start_stop_restart(pve: Proxmox, power: Caller) -> None:
    foretold = power(vmid=[203], state="started", check=True)
    assert (foretold["changed"], pve.writes()) == (True, [])
    answer = power(vmid=[203], state="started")
    assert (answer["steps"], pve.guest(203)["status"]) == (foretold["steps"], "running")
    assert not power(vmid=[203], state="started")["changed"]
    power.undo(answer)
    assert pve.guest(203)["status"] == "stopped"
    assert not power(vmid=[203], state="stopped")["changed"]
    started = pve.guest(201)["started"]
    answer = power(vmid=[201], state="restarted")
    assert answer["steps"] == ["shut down 201 (web)", "start 201 (web)"]
    assert (pve.guest(201)["status"], answer["reversibility"]) == ("running", "none")
    assert pve.guest(201)["started"] > started


def test_what_does_not_end_is_not_killed_unless_forced(pve: Proxmox, power: Caller) -> None:
    pve.set_guest(201, workload={"ignores_term": True})
    answer, error = call(lxc_power, **power.options, vmid=[201], state="restarted")
    assert error is not None
    assert "container did not stop" in error.why
    assert (answer["changed"], pve.guest(201)["status"]) == (False, "running")
    assert power(vmid=[201], state="restarted", force=True)["changed"]
    assert pve.guest(201)["status"] == "running"


def test_a_locked_container_is_not_shut_down(pve: Proxmox, power: Caller) -> None:
    pve.set_guest(201, lock="backup")
    for check in (True, False):
        assert "CT is locked (backup)" in str(power.fails(vmid=[201], state="restarted", check=check))
    assert pve.guest(201)["status"] == "running"
    assert "it is a template" in str(power.fails(vmid=[299], state="started"))


def test_a_start_that_fails_says_why_and_how_to_bring_it_back(pve: Proxmox, power: Caller) -> None:
    pve.set_guest(201, workload={"fails_to_start": True})
    answer, error = call(lxc_power, **power.options, vmid=[201], state="restarted")
    assert error is not None
    assert "startup for container '201' failed" in error.why
    assert (answer["changed"], answer["undo"]) == (True, [{"vmid": [201], "state": "started"}])
    pve.set_guest(201, workload={"fails_to_start": False})
    power.undo(answer)
    assert pve.guest(201)["status"] == "running"


@pytest.mark.parametrize("request_", ["status/shutdown", "status/start"])
@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_a_lost_reply_is_looked_into(pve: Proxmox, power: Caller, request_: str, kind: str) -> None:
    started = pve.guest(201)["started"]
    pve.fault("POST", f"/{request_}$", kind)
    answer, error = call(lxc_power, **power.options, vmid=[201], state="restarted")
    assert (error is None) == (kind == "lost")
    if error:
        power.undo(answer)
    assert pve.guest(201)["status"] == "running"
    assert (pve.guest(201)["started"] == started) == (kind == "cut" and request_ == "status/shutdown")


def test_what_the_clusters_manager_runs_is_waited_for(pve: Proxmox, power: Caller) -> None:
    pve.set_guest(201, ha={"managed": 1})
    assert "kills what does not end in time" in str(power.fails(vmid=[201], state="restarted"))
    started = pve.guest(201)["started"]
    power(vmid=[201], state="restarted", force=True)
    assert pve.guest(201)["status"] == "running"
    assert pve.guest(201)["started"] > started


def info(pve: Proxmox, vmid: int, **options: object) -> dict[str, object]:
    (facts,) = read(lxc_info, **pve.options_for("healer@pve!healer"), vmid=[vmid], **options)["containers"]
    return dict(facts)


def test_info_tells_what_is_used_and_how_it_grows(pve: Proxmox) -> None:
    everything = read(lxc_info, **pve.options_for("healer@pve!healer"))
    assert [facts["vmid"] for facts in everything["containers"]] == [200, 201, 202, 203]
    pve.set_node("pve2", online=False)
    told = read(lxc_info, **pve.options_for("healer@pve!healer"))["containers"]
    assert [facts["node"] for facts in told] == ["pve1"] * len(told)
    assert 200 in [facts["vmid"] for facts in told]
    pve.set_node("pve2", online=True)
    assert [node["memory"] for node in everything["nodes"]] == [16384, 16384]
    pve.set_guest(200, memory=8192, workload={"memory": 1000, "growth": 0})
    pve.advance(20)
    facts = info(pve, 200, sample=0.5)
    assert (facts["memory_growth"], facts["memory_full_in"]) == (0, 7 * DAY)
    pve.set_guest(200, workload={"growth": 10})
    facts = info(pve, 200, sample=1)
    assert 300 < float(str(facts["memory_growth"])) < 3000  # 10 MiB a simulated minute, a hundred times as fast
    assert 0 < int(str(facts["memory_full_in"])) < 2000
    assert isinstance(facts["pressure"], dict)
    assert pve.writes() == []


def test_info_without_pressure() -> None:
    for release, cgroup in (("8.4", 2), ("9.2", 1)):
        with proxmox(release=release, cgroup=cgroup) as old:
            assert info(old, 200)["pressure"] is None


def test_a_size_worth_setting(pve: Proxmox) -> None:
    now = time.time()

    def recommended(mib: float, days: float = 7, limit: int = 4096, **over: object) -> dict[str, object]:
        points = [{"time": int(now - age * 60), "mem": mib * 2**20, "maxmem": limit * 2**20, **over} for age in range(0, int(days * 1440), 30)]
        pve.set_guest(201, memory=limit, workload={"memory": mib, "growth": 0})
        for timeframe in ("hour", "day", "week"):
            pve.history(201, timeframe, points)
        found = info(pve, 201, gather=["recommendation"])["recommendation"]
        assert isinstance(found, dict)
        return found

    assert recommended(1000)["direction"] == "shrink"
    assert recommended(4090)["direction"] == "grow"
    assert recommended(3300)["direction"] == "keep"
    for found in (recommended(1000, days=0.2), recommended(1000, mem=0), recommended(1000, mem=None)):
        assert found["direction"] in ("none", "keep")
        assert found["why"]
    pve.fault("GET", "/rrddata", "error", status=500, reason="RRD error: opening '/var/lib/rrdcached/db/pve2-vm/201': No such file", times=-1)
    assert info(pve, 201, gather=["recommendation"])["recommendation"]
