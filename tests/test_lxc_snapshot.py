"""lxc_snapshot against Proxmox VE: its contract, the traps T2.x and the defects of its peers (W13 to W17), each by name."""

from __future__ import annotations

import re
import threading
import time
import typing as t

import pytest

from ansible_collections.homelab.healer.plugins.modules import lxc_snapshot
from tests.lab.modules import Caller, call
from tests.lab.playbooks import Controller
from tests.lab.proxmox.client import Proxmox

MARK = "[homelab.healer prefix="


@pytest.fixture
def snapshot(pve: Proxmox) -> Caller:
    return Caller(lxc_snapshot, {**pve.options_for("healer@pve!healer"), "wait_lock": 0})


def names(pve: Proxmox, vmid: int) -> list[str]:
    """The container's snapshots, the oldest first."""
    found = pve.guest(vmid)["snapshots"]
    return sorted(found, key=lambda name: found[name]["snaptime"])


def refused(pve: Proxmox, snapshot: Caller, **options: t.Any) -> str:
    """Call the module; it must refuse, say so in check mode too, and write nothing. Returns its code and message."""
    pve.clear()
    said = [f"{error.code}: {error}" for error in (snapshot.fails(check=check, **options) for check in (True, False))]
    assert len({re.sub(r"\(\d+ [^)]*\)", "", text) for text in said}) == 1  # but for the time that passes
    assert pve.writes() == []
    return said[0]


def own(pve: Proxmox, vmid: int, *snapshots: tuple[str, str, int]) -> None:
    """Put snapshots into a container: name, description, age in seconds by the controller's clock."""
    made = {name: {"snaptime": int(time.time()) - age, "description": description, "config": {"memory": 512}} for name, description, age in snapshots}
    pve.set_guest(vmid, snapshots=made)


def test_the_litany(pve: Proxmox, pve_controller: Controller) -> None:
    task = {"homelab.healer.lxc_snapshot": {"vmid": 200, "name": "before", "description": "Before the upgrade", "expires": "7d"}}
    run = pve_controller.play([{"homelab.healer.lxc_snapshot": {"vmid": 200}}])
    assert "name, prefix" in run.output
    run = pve_controller.play([task], "--check", "--diff")
    assert "+before: present" in run.output
    assert (names(pve, 200), pve.writes()) == ([], [])
    (foretold,) = run.answers("homelab.healer.lxc_snapshot")
    run = pve_controller.play([{**task, "register": "first"}, task, {"homelab.healer.lxc_snapshot": "{{ first.undo[0] }}"}], "--diff")
    assert run.returncode == 0, run.output
    applied, again, undone = run.answers("homelab.healer.lxc_snapshot")
    for key in ("changed", "before", "after", "steps", "undo", "reversibility"):
        assert applied[key] == foretold[key]
    assert again["changed"] is False
    assert undone["after"] == {"200": {"before": "absent"}}
    assert names(pve, 200) == []


def test_a_prefix_makes_a_new_one_each_time_and_keeps_the_last(pve: Proxmox, snapshot: Caller) -> None:
    made = []
    for _round in range(3):
        made.append(snapshot(vmid=[200], prefix="daily-", keep=2)["results"][0]["snapshot"])
        time.sleep(1.1)
    assert len(set(made)) == 3
    assert names(pve, 200) == made[1:]
    assert pve.guest(200)["snapshots"][made[2]]["description"].startswith(f"{MARK}daily-")
    assert len(made[0]) == len("daily-") + 16


def test_t2_1_a_failed_task_is_told_in_its_own_words(pve: Proxmox, snapshot: Caller) -> None:
    pve.fault("POST", "/snapshot$", "failed", exitstatus="zfs error: out of space", log=["starting", "zfs error: out of space"])
    answer, error = call(lxc_snapshot, **snapshot.options, vmid=[200], name="pre1")
    assert error is not None
    assert error.code == "task_failed"
    assert "zfs error: out of space (task UPID:pve1:" in error.why
    assert "its log ends: " in error.why
    assert (answer["changed"], names(pve, 200)) == (False, [])


def test_w14_a_failed_task_is_not_waited_for(pve: Proxmox, snapshot: Caller) -> None:
    pve.fault("POST", "/snapshot$", "failed", exitstatus="CT is locked (backup)", log=["CT is locked (backup)"])
    began = time.monotonic()
    assert snapshot.fails(vmid=[200], name="pre1").code == "conflict"
    assert time.monotonic() - began < 5


def test_warnings_are_no_failure_and_are_told(pve: Proxmox, snapshot: Caller) -> None:
    pve.fault("POST", "/snapshot$", "warnings", log=["WARN: something is odd"])
    answer = snapshot(vmid=[200], name="pre1")
    assert "something is odd" in answer["results"][0]["notes"][0]
    assert names(pve, 200) == ["pre1"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("name", "current", "keeps that name for itself"),
        ("name", "vzdump", "keeps that name for itself"),
        ("name", "1abc", "begins with a letter"),
        ("name", "a", "2 to 40 characters"),
        ("name", "a.b", "letters, digits, - and _"),
        ("name", "x" * 41, "2 to 40 characters"),
        ("prefix", "x" * 25, "give at most 24"),
        ("prefix", "ä-", "begins with a letter"),
        ("expires", "soon", "a time span is a number"),
    ],
)
def test_t2_2_names_that_proxmox_does_not_take(pve: Proxmox, snapshot: Caller, option: str, value: str, words: str) -> None:
    other = {} if option in ("name", "prefix") else {"name": "ok"}
    assert words in refused(pve, snapshot, vmid=[200], **{option: value}, **other)


def test_t2_3_what_cannot_be_snapshotted_is_said_or_left_out(pve: Proxmox, snapshot: Caller) -> None:
    assert "mp0 is the host's /srv/media" in refused(pve, snapshot, vmid=[202], name="pre1")
    answer = snapshot(vmid=[202, 200], name="pre1", on_unsupported="continue")
    first, second = answer["results"]
    assert (first["changed"], first["snapshot"], names(pve, 202)) == (False, "", [])
    assert "so there is none" in first["notes"][0]
    assert (second["changed"], names(pve, 200)) == (True, ["pre1"])
    pve.add_guest(211, node="pve1", status="running", config={"memory": 256, "hostname": "dir", "rootfs": "local:211/vm-211-disk-0.raw,size=4G"})
    pve.advance(20)
    assert "storages of type dir have no snapshots" in refused(pve, snapshot, vmid=[211], name="pre1")


def test_t2_4_fuse_can_hang(pve: Proxmox, snapshot: Caller) -> None:
    pve.set_guest(200, features="fuse=1,nesting=1")
    assert "has the feature fuse" in refused(pve, snapshot, vmid=[200], name="pre1")


def test_t2_5_newer_snapshots_are_in_the_way_of_zfs_and_named(pve: Proxmox, snapshot: Caller) -> None:
    for name in ("s1", "s2", "s3"):
        snapshot(vmid=[200], name=name)
        pve.advance(5)
    said = refused(pve, snapshot, vmid=[200], name="s1", state="rolled_back", allow_data_loss=True)
    assert "these are newer: s2, s3" in said
    assert snapshot(vmid=[200], name="s3", state="rolled_back", allow_data_loss=True)["changed"]


def test_t2_6_going_back_starts_it_again_and_tells_what_else_it_does(pve: Proxmox, snapshot: Caller) -> None:
    snapshot(vmid=[200], name="pre1")
    pve.set_guest(200, memory=3000)
    pid = pve.guest(200)["started"]
    pve.advance(60)
    said = refused(pve, snapshot, vmid=[200], name="pre1", state="rolled_back")
    assert "everything written since 20" in said
    assert "would be lost (" in said
    assert "set allow_data_loss=true" in said
    assert "max_data_loss is 10 s" in refused(pve, snapshot, vmid=[200], name="pre1", state="rolled_back", allow_data_loss=True, max_data_loss="10s")
    foretold = snapshot(vmid=[200], name="pre1", state="rolled_back", allow_data_loss=True, check=True)
    assert names(pve, 200) == ["pre1"]
    answer = snapshot(vmid=[200], name="pre1", state="rolled_back", allow_data_loss=True, max_data_loss="3d")
    (result,) = answer["results"]
    assert answer["after"] == foretold["after"] == {200: {"last_rollback": "to pre1"}}
    assert "memory goes back from 3000MiB to 2GiB" in result["notes"]
    assert result["data_loss"] >= 60
    assert (answer["reversibility"], answer["undo"]) == ("none", [])
    guest = pve.guest(200)
    assert guest["status"] == "running"
    assert guest["started"] != pid
    assert str(guest["config"]["memory"]) == "2048"


def test_w15_a_stopped_container_stays_stopped_unless_asked(pve: Proxmox, snapshot: Caller) -> None:
    snapshot(vmid=[203], name="pre1")
    snapshot(vmid=[203], name="pre1", state="rolled_back", allow_data_loss=True)
    assert pve.guest(203)["status"] == "stopped"
    snapshot(vmid=[203], name="pre1", state="rolled_back", allow_data_loss=True, start=True)
    assert pve.guest(203)["status"] == "running"


def test_a_start_that_fails_after_going_back_is_told(pve: Proxmox, snapshot: Caller) -> None:
    snapshot(vmid=[200], name="pre1")
    pve.set_guest(200, workload={"fails_to_start": True})
    error = snapshot.fails(vmid=[200], name="pre1", state="rolled_back", allow_data_loss=True)
    assert error.what == "took 200 (postgres) back, but it does not start"
    assert "startup for container '200' failed" in error.why


def test_w15_a_snapshot_that_is_not_there_is_an_error_that_names_those_that_are(pve: Proxmox, snapshot: Caller) -> None:
    snapshot(vmid=[200], name="pre1")
    said = refused(pve, snapshot, vmid=[200], name="nope", state="rolled_back", allow_data_loss=True)
    assert said.startswith("not_found: ")
    assert "there are: pre1" in said
    assert not snapshot(vmid=[200], name="nope", state="absent")["changed"]


def test_t2_7_replication_is_told(pve: Proxmox, snapshot: Caller) -> None:
    pve.fault("POST", "/snapshot$", "failed", exitstatus="Failed to obtain guest migration lock - replication running?", log=[])
    error = snapshot.fails(vmid=[200], name="pre1")
    assert (error.code, error.fix) == ("conflict", "Wait until the replication is done.")


def test_t2_8_a_lock_that_was_left_behind_is_reported_and_never_taken_away(pve: Proxmox, snapshot: Caller) -> None:
    snapshot(vmid=[200], name="pre1")
    pve.set_guest(200, lock="snapshot-delete")
    said = refused(pve, snapshot, vmid=[200], name="pre1", state="absent")
    assert "CT is locked (snapshot-delete)" in said
    assert "run pct unlock 200 on the node" in said


def test_t2_8_an_incomplete_snapshot_is_no_snapshot(pve: Proxmox, snapshot: Caller) -> None:
    pve.set_guest(200, snapshots={"pre1": {"snaptime": int(time.time()) - 100, "snapstate": "prepare", "config": {"memory": 512}}})
    assert "is incomplete (snapstate = prepare)" in refused(pve, snapshot, vmid=[200], name="pre1")
    assert "is incomplete" in refused(pve, snapshot, vmid=[200], name="pre1", state="rolled_back", allow_data_loss=True)


def test_t2_9_a_full_storage_is_not_filled_further(pve: Proxmox, snapshot: Caller) -> None:
    pve.set_storage("local-zfs", total=100, used=95)
    pve.advance(20)
    assert "local-zfs is 95 % full, and max_storage_used is 90 %" in refused(pve, snapshot, vmid=[200], name="pre1")
    assert snapshot(vmid=[200], name="pre1", max_storage_used=99)["changed"]


def test_w16_only_its_own_are_tidied_up(pve: Proxmox, snapshot: Caller) -> None:
    own(
        pve,
        200,
        ("daily-manual", "by hand", 900),
        ("daily-1", f"{MARK}daily-]", 800),
        ("weekly-1", f"{MARK}weekly-]", 700),
        ("daily-2", f"{MARK}daily-]", 600),
        ("autosnap", "another tool's", 500),
    )
    foretold = snapshot(vmid=[200], prefix="daily-", keep=2, check=True)
    answer = snapshot(vmid=[200], prefix="daily-", keep=2)
    assert [step.split()[:3] for step in answer["steps"]] == [step.split()[:3] for step in foretold["steps"]]
    assert answer["steps"][1] == "remove snapshot daily-1 of 200 (postgres)"
    assert answer["reversibility"] == "none"
    assert {"daily-manual", "weekly-1", "daily-2", "autosnap"} < set(names(pve, 200))
    assert "daily-1" not in names(pve, 200)


def test_what_is_too_old_goes_and_the_newest_stays(pve: Proxmox, snapshot: Caller) -> None:
    own(pve, 200, ("a-1", f"{MARK}a-]", 9000), ("a-2", f"{MARK}a-]", 8000))
    snapshot(vmid=[200], prefix="a-", max_age="1h", state="absent")
    assert names(pve, 200) == ["a-2"]


def test_what_has_expired_is_swept(pve: Proxmox, snapshot: Caller) -> None:
    now = int(time.time())
    own(
        pve,
        200,
        ("over", f"for a change\n{MARK}pre- expires={now - 10}]", 900),
        ("not-yet", f"{MARK}pre- expires={now + 86400}]", 800),
        ("for-ever", f"{MARK}pre-]", 700),
        ("not-ours", f"expires={now - 10}", 600),
    )
    answer = snapshot(vmid=[200, 201], state="absent")
    assert answer["after"] == {200: {"over": "absent"}}
    assert names(pve, 200) == ["not-yet", "for-ever", "not-ours"]
    assert not snapshot(vmid=[200], state="absent")["changed"]


def test_contradictions_are_told(pve: Proxmox, snapshot: Caller) -> None:
    assert "cannot keep fewer than one" in refused(pve, snapshot, vmid=[200], prefix="a-", keep=0)
    assert "keep and max_age are for the series of a prefix" in refused(pve, snapshot, vmid=[200], name="ab", keep=3)
    assert "it is a template" in refused(pve, snapshot, vmid=[299], name="ab")


def test_two_at_once(pve: Proxmox, snapshot: Caller) -> None:
    done: list[t.Any] = []
    threads = [
        threading.Thread(target=lambda n=name: done.append(call(lxc_snapshot, **{**snapshot.options, "wait_lock": 30}, vmid=[200], name=n)))
        for name in ("s1", "s2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(error) for _answer, error in done if error] == []
    assert sorted(names(pve, 200)) == ["s1", "s2"]


@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_a_lost_reply_is_looked_into(pve: Proxmox, snapshot: Caller, kind: str) -> None:
    pve.fault("POST", "/snapshot$", kind)
    answer, error = call(lxc_snapshot, **snapshot.options, vmid=[200], name="pre1")
    if kind == "lost":
        assert error is None
        assert (answer["changed"], names(pve, 200)) == (True, ["pre1"])
    else:
        assert error is not None
        assert (answer["changed"], names(pve, 200)) == (False, [])


@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_a_lost_reply_to_going_back_is_looked_into(pve: Proxmox, snapshot: Caller, kind: str) -> None:
    snapshot(vmid=[200], name="pre1")
    started = pve.guest(200)["started"]
    pve.fault("POST", "/rollback$", kind)
    answer, error = call(lxc_snapshot, **snapshot.options, vmid=[200], name="pre1", state="rolled_back", allow_data_loss=True)
    assert (error is None) == (kind == "lost") == answer["changed"]
    assert (pve.guest(200)["started"] != started) == (kind == "lost")
    assert pve.guest(200)["status"] == "running"


def test_a_task_that_never_ends(pve: Proxmox, snapshot: Caller) -> None:
    pve.fault("POST", "/snapshot$", "stuck")
    answer, error = call(lxc_snapshot, **snapshot.options, vmid=[200], name="pre1", timeout=1)
    pve.release()
    assert error is not None
    assert error.code == "timed_out"
    assert "still runs after 1 s" in error.why
    assert answer["changed"]
    assert answer["undo"] == [{"vmid": [200], "name": "pre1", "state": "absent"}]


def test_a_rollback_that_fails_leaves_a_lock_and_says_what_to_do(pve: Proxmox, snapshot: Caller) -> None:
    snapshot(vmid=[200], name="pre1")
    pve.set_storage("local-zfs", fail={"rollback": "zfs error: cannot rollback: dataset is busy"})
    answer, error = call(lxc_snapshot, **snapshot.options, vmid=[200], name="pre1", state="rolled_back", allow_data_loss=True)
    assert error is not None
    assert answer["changed"]
    assert pve.guest(200)["lock"] == "rollback"
    assert "run pct unlock 200" in refused(pve, snapshot, vmid=[200], name="pre1", state="rolled_back", allow_data_loss=True)
