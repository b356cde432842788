"""lxc_power and lxc_info against Proxmox VE."""

from __future__ import annotations

import time
import typing as t

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._backups import in_turn
from ansible_collections.homelab.healer.plugins.modules import lxc_info, lxc_power
from tests.lab.modules import Caller, call, read
from tests.lab.proxmox.client import Proxmox, proxmox
from tests.lab.proxmox.fixtures import LEAST_ON_GUESTS, homelab

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


# Pools and backups

MAKES_BACKUPS = {"HealerGuests": [*LEAST_ON_GUESTS, "VM.Backup"], "HealerStorage": ["Datastore.Audit", "Datastore.AllocateSpace"]}
"""The roles of a token that may see backups, and so may make them."""


def with_roles(
    pve: Proxmox,
    roles: t.Mapping[str, list[str]] | None = None,
    acl: t.Sequence[dict[str, object]] = (),
    pools: t.Mapping[str, list[int]] | None = None,
) -> None:
    """Begin anew with other roles of the token and its user."""
    state = homelab()
    state["roles"].update(roles or {})
    state["acl"] += acl
    pve.reset({**state, "pools": pools or {"db": [200], "web": [201]}})


def backup_of(pve: Proxmox, vmid: int) -> dict[str, t.Any]:
    found = info(pve, vmid, gather=["backup"])["backup"]
    assert isinstance(found, dict)
    return found


def auditor(path: str) -> list[dict[str, object]]:
    return [{"path": path, kind: who, "role": "PVEPoolUser"} for kind, who in (("user", "healer@pve"), ("token", "healer@pve!healer"))]


def test_info_tells_the_pool_and_never_that_there_is_none_where_one_may_be(pve: Proxmox) -> None:
    def pools() -> list[object]:
        return [facts["pool"] for facts in read(lxc_info, **pve.options_for("healer@pve!healer"))["containers"]]

    assert pools() == ["", "", "", ""]
    with_roles(pve)
    assert pools() == [None, None, "", ""], "nobody tells the token a pool, yet what is in one has a path of its own"
    with_roles(pve, acl=auditor("/pool/db"))
    assert pools() == ["db", None, "", ""]
    own: list[dict[str, object]] = [
        {"path": "/vms/202", kind: who, "role": "HealerGuests"} for kind, who in (("user", "healer@pve"), ("token", "healer@pve!healer"))
    ]
    with_roles(pve, acl=own)
    assert pools() == [None, None, None, ""]
    with_roles(pve, acl=[*own, *auditor("/pool")])
    assert pools() == ["db", "web", "", ""]


def test_info_tells_a_backup_while_it_runs_and_when_it_was_made(pve: Proxmox) -> None:
    with_roles(pve, MAKES_BACKUPS)
    before = backup_of(pve, 200)
    now = pve.state()["now"]
    assert (before["running"], before["unseen"], now - before["last"]) == (False, "", pytest.approx(DAY / 2, abs=600))
    assert backup_of(pve, 202) == {"running": False, "last": None, "unseen": ""}
    pve.backup([200], seconds=3000)
    assert backup_of(pve, 200) == {**before, "running": True}
    assert not backup_of(pve, 202)["running"]
    pve.advance(3001)
    after = backup_of(pve, 200)
    assert (after["running"], pve.state()["now"] - after["last"]) == (False, pytest.approx(3000, abs=600))
    assert "backup" not in info(pve, 200)
    assert pve.writes() == []


def test_info_tells_whose_turn_it_is_where_several_are_backed_up(pve: Proxmox) -> None:
    def running() -> list[object]:
        return [backup_of(pve, vmid)["running"] for vmid in (200, 201, 202, 203)]

    pve.backup(node="pve1", seconds=2000, all=1, exclude="100,203")
    assert running() == [True, False, True, False]
    pve.advance(2000)
    assert running() == [False, False, True, False]
    pve.advance(2000)
    assert running() == [False, False, False, False]
    pve.backup([200, 203], seconds=2000)
    assert running() == [True, False, False, True]


def test_info_tells_a_backup_of_a_pool_from_what_it_knows_of_pools(pve: Proxmox) -> None:
    cases: list[tuple[list[dict[str, object]], list[object]]] = [([], [True, None, False]), (auditor("/pool"), [True, True, False])]
    for acl, told in cases:
        with_roles(pve, acl=acl, pools={"db": [200, 202]})
        pve.backup(node="pve1", seconds=2000, pool="db")
        found = [backup_of(pve, vmid) for vmid in (200, 202, 203)]
        assert [facts["running"] for facts in found] == told
        assert ("its log does not tell whether it comes to this one" in found[1]["unseen"]) is (told[1] is None)


def test_a_lock_of_a_backup_counts_though_no_task_is_there(pve: Proxmox) -> None:
    pve.set_guest(200, lock="backup")
    assert backup_of(pve, 200)["running"]


def test_without_rights_nobody_is_told_that_there_is_no_backup(pve: Proxmox) -> None:
    """Nobody's task is hidden from an auditor of the node; what is on a storage is from one who may only see the storage."""
    told = backup_of(pve, 200)
    assert (told["running"], told["last"]) == (False, None)
    assert (
        told["unseen"]
        == "the backups on backup are shown only to who has Datastore.AllocateSpace there and VM.Backup on the container, or Datastore.Allocate there"
    )
    with_roles(pve, {**MAKES_BACKUPS, "HealerNodes": ["Sys.Syslog"]})
    pve.backup([200, 202], seconds=3000)
    assert backup_of(pve, 200)["running"], "its lock tells it"
    told = backup_of(pve, 202)
    assert (told["running"], told["unseen"]) == (None, "without Sys.Audit on pve1 a backup that others started cannot be seen")
    with_roles(pve, {**MAKES_BACKUPS, "HealerStorage": ["Datastore.AllocateTemplate"]})
    assert backup_of(pve, 200) == {"running": False, "last": None, "unseen": "there may be storages that the token may not see"}
    with_roles(pve, {**MAKES_BACKUPS, "HealerStorage": ["Datastore.Audit", "Datastore.Allocate"]})
    assert backup_of(pve, 200)["unseen"] == ""
    pve.set_storage("backup", active=False)
    told = backup_of(pve, 200)
    assert (told["last"], told["unseen"]) == (None, "storage backup is not there (unknown)")
    pve.fault("GET", "/tasks", "error", times=-1, status=500, reason="it is broken")
    told = backup_of(pve, 200)
    assert told["running"] is None
    assert "cannot list the tasks of pve1: HTTP 500: it is broken" in told["unseen"]


BEGIN = "INFO: starting new backup job: vzdump "
TURNS: dict[str, tuple[list[str], str | None, bool | None]] = {
    "it waits for another backup": (["INFO: trying to get global lock - waiting..."], "", None),
    "nothing is told": ([], "", None),
    "it is named": ([BEGIN + "200 202 --mode snapshot"], "", True),
    "it is not named": ([BEGIN + "201 202 --mode snapshot"], "", False),
    "all": ([BEGIN + "--mode snapshot --all 1"], "", True),
    "all but it": ([BEGIN + "--all 1 --exclude '100,200'"], "", False),
    "its pool": ([BEGIN + "--pool db --mailto 'a@example.org'"], "db", True),
    "another pool": ([BEGIN + "--pool db/inner"], "db", False),
    "a pool, and its own is not known": ([BEGIN + "--pool db"], None, None),
    "nobody knows what that is": ([BEGIN + "--notes-template 'x"], "", None),
    "it has begun": ([BEGIN + "--pool db", "INFO: Starting Backup of VM 200 (lxc)"], None, True),
    "it is over": ([BEGIN + "200 202", "INFO: Starting Backup of VM 200 (lxc)", "INFO: Finished Backup of VM 200 (00:00:12)"], "", False),
    "it failed": ([BEGIN + "200 202", "INFO: Starting Backup of VM 200 (lxc)", "ERROR: Backup of VM 200 failed - CT is locked (disk)"], "", False),
    "a lower one is over": ([BEGIN + "100 200", "INFO: Starting Backup of VM 100 (qemu)", "INFO: Finished Backup of VM 100 (00:00:12)"], "", True),
    "it was passed over": ([BEGIN + "--pool db", "INFO: Starting Backup of VM 202 (lxc)"], None, False),
    "a longer number": ([BEGIN + "--pool db", "INFO: Finished Backup of VM 2001 (00:00:12)"], "db", True),
}


@pytest.mark.parametrize("case", TURNS)
def test_the_log_of_a_backup_tells_whose_turn_it_is(case: str) -> None:
    log, pool, wanted = TURNS[case]
    assert in_turn(log, 200, pool) is wanted
