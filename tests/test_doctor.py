"""The doctor: every finding appears when it should and goes away when what it says is done, and nothing is ever changed."""

from __future__ import annotations

import copy
import json
import shlex
import socket
import typing as t
from pathlib import Path

import pytest
import requests
import yaml

from ansible_collections.homelab.healer.plugins.filter.doctor import holders, report_lines
from ansible_collections.homelab.healer.plugins.module_utils import _doctor
from ansible_collections.homelab.healer.plugins.module_utils._proxmox import connect
from ansible_collections.homelab.healer.plugins.module_utils._run import ask
from ansible_collections.homelab.healer.plugins.modules import lxc_power, lxc_resources, lxc_snapshot, proxmox_doctor_info
from tests.lab import modules
from tests.lab.playbooks import Controller
from tests.lab.proxmox.client import Proxmox, proxmox
from tests.lab.proxmox.fixtures import DAY, LEAST_ON_GUESTS, ROOT_PASSWORD, homelab
from tests.test_documentation import matches, own

HEALER, ROOT = "healer@pve!healer", "root@pam!lab"
OWN = "[homelab.healer prefix=pre-change- expires={}]"
Report = dict[str, t.Any]


def doctor(pve: Proxmox, token: str = HEALER, **options: t.Any) -> Report:
    """What the module says; it must not have written anything, and each of its values must be as documented."""
    pve.clear()
    params = modules._validated(proxmox_doctor_info, {**pve.options_for(token), **options})
    with connect(params) as session:
        report = json.loads(json.dumps(proxmox_doctor_info.report(session, ask(proxmox_doctor_info.Request, params))))
    assert pve.writes() == []
    matches(yaml.safe_load(proxmox_doctor_info.RETURN), report)
    severities = [_doctor.SEVERITIES.index(finding["severity"]) for finding in report["findings"]]
    assert severities == sorted(severities)
    return dict(report)


def found(report: Report, what: str) -> Report | None:
    """The finding that begins with these words."""
    return next((finding for finding in report["findings"] if finding["what"].startswith(what)), None)


def remedy(report: Report, name: str) -> Report:
    return next(dict(remedy) for remedy in report["remedies"] if remedy["remedy"] == name)


def container(report: Report, vmid: int) -> Report:
    return next(dict(facts) for facts in report["containers"] if facts["vmid"] == vmid)


def privilege(report: Report, name: str) -> Report:
    return next(dict(entry) for entry in report["token"]["privileges"] if entry["privilege"] == name)


def run_on_node(pve: Proxmox, commands: t.Iterable[str]) -> None:
    """Carry out pveum's commands as the node would, by the requests that each of them stands for."""
    for command in commands:
        name, *words = shlex.split(command)
        assert name == "pveum"
        plain = [words.pop(0) for _ in range(next((at for at, word in enumerate(words) if word.startswith("--")), len(words)))]
        options = dict(zip((word[2:] for word in words[::2]), words[1::2], strict=True))
        verb = plain[:3] if plain[1] == "token" else plain[:2]
        method, path, params = {
            ("role", "add"): ("POST", "access/roles", {"roleid": plain[-1]}),
            ("role", "modify"): ("PUT", f"access/roles/{plain[-1]}", {}),
            ("acl", "modify"): ("PUT", "access/acl", {"path": plain[-1]}),
            ("user", "add"): ("POST", "access/users", {"userid": plain[-1]}),
            ("user", "token", "add"): ("POST", f"access/users/{plain[-2]}/token/{plain[-1]}", {}),
            ("user", "token", "modify"): ("PUT", f"access/users/{plain[-2]}/token/{plain[-1]}", {}),
        }[tuple(verb)]
        sent = {**params, **{key: value.replace(" ", ",") if key == "privs" else value for key, value in options.items()}}
        made = send(pve, method, path, sent)
        if plain[:3] == ["user", "token", "add"]:
            pve.tokens[made["full-tokenid"]] = made["value"]


def send(pve: Proxmox, method: str, path: str, params: dict[str, str]) -> t.Any:
    """A request in the administrator's name."""
    authorization = {"Authorization": f"PVEAPIToken={ROOT}={pve.tokens[ROOT]}"}
    answer = requests.request(method, f"{pve.url}/{path}", data=params, headers=authorization, verify=pve.options["ca_path"], timeout=30)
    assert answer.ok, f"{method} {path} {params}: {answer.status_code} {answer.reason}"
    return answer.json()["data"]


def commands(finding: Report) -> list[str]:
    """The commands that a finding says to run."""
    assert finding["fix"].startswith("Run on a node: ")
    return str(finding["fix"]).removeprefix("Run on a node: ").split(" && ")


def renew(pve: Proxmox, change: t.Callable[[dict[str, t.Any]], None]) -> None:
    """Begin anew with the homelab, changed."""
    state = copy.deepcopy(homelab())
    change(state)
    pve.reset(state)


def sees_backups(state: dict[str, t.Any]) -> None:
    """Give the token the rights without which Proxmox VE shows it no backup."""
    state["roles"]["HealerGuests"].append("VM.Backup")
    state["roles"]["HealerStorage"].append("Datastore.AllocateSpace")


# What a healthy homelab says


def test_the_homelab_as_the_documented_token_sees_it(pve: Proxmox) -> None:
    report = doctor(pve)
    assert (report["release"], report["guests"]) == ("9.2", {"lxc": 4, "qemu": 1, "templates": 1, "whole": True})
    assert [(node["name"], node["status"], node["cpus"], node["memory"], node["cgroup_version"]) for node in report["nodes"]] == [
        ("pve1", "online", 8, 16384, "2"),
        ("pve2", "online", 8, 16384, "2"),
    ]
    assert (report["token"]["name"], report["token"]["separated"], report["token"]["too_much"]) == (HEALER, None, {})
    assert all(entry["has"] and not entry["grant"] for entry in report["token"]["privileges"])
    assert {storage["name"]: (storage["type"], storage["snapshots"], storage["full"]) for storage in report["storages"]} == {
        "backup": ("dir", False, False),
        "local": ("dir", False, False),
        "local-lvm": ("lvmthin", True, False),
        "local-zfs": ("zfspool", True, False),
    }
    assert next(storage["nodes"] for storage in report["storages"] if storage["name"] == "backup") == ["pve1", "pve2"]
    assert {finding["severity"] for finding in report["findings"]} == {"warning", "note"}
    assert {remedy["remedy"]: remedy["can"] for remedy in report["remedies"]} == {
        "lxc_memory": "some",
        "lxc_cpu": "some",
        "lxc_resources": "all",
        "lxc_restart": "all",
        "lxc_snapshot": "some",
        "lxc_rollback": "none",
    }
    assert all(report["libraries"][name] for name in ("python", "ansible_core", "proxmoxer", "requests", "docker"))


def test_a_template_is_counted_and_looked_at_only_when_asked_for(pve: Proxmox) -> None:
    assert 299 not in [facts["vmid"] for facts in doctor(pve)["containers"]]
    report = doctor(pve, vmid=[299, 200])
    assert [facts["vmid"] for facts in report["containers"]] == [200, 299]
    assert remedy(report, "lxc_restart")["why"] == [{"container": "299 (base)", "why": ["it is a template"]}]
    assert not found(report, "299 (base) has no backup")


def test_virtual_machines_are_counted_and_not_changed(pve: Proxmox) -> None:
    assert found(doctor(pve), "virtual machines are counted and not changed (1)")
    told = found(doctor(pve, vmid=[100, 200]), "cannot heal 100")
    assert told
    assert told["why"] == "that is a virtual machine"
    pve.remove_guest(100)
    assert not found(doctor(pve), "virtual machines")


# Rights

ON_GUESTS = {
    "VM.Config.CPU": {"lxc_cpu", "lxc_resources"},
    "VM.Config.Memory": {"lxc_memory", "lxc_resources"},
    "VM.PowerMgmt": {"lxc_restart"},
    "VM.Snapshot": {"lxc_memory", "lxc_cpu", "lxc_resources", "lxc_snapshot"},
    "VM.Snapshot.Rollback": set(),
}


@pytest.mark.parametrize("name", ON_GUESTS)
@pytest.mark.parametrize("role", ["Healer", "HealerGuests", "Mine"])
def test_a_token_with_one_privilege_fewer_is_told_which_and_how_to_grant_it(pve: Proxmox, name: str, role: str) -> None:
    """``Mine`` is a role that the doctor does not know, so it proposes another one."""

    def lack(state: dict[str, t.Any]) -> None:
        state["roles"][role] = [held for held in LEAST_ON_GUESTS if held != name]
        state["acl"] = [{**line, "role": role} if line["path"] == "/vms" else line for line in state["acl"]]
        state["roles"] = {known: held for known, held in state["roles"].items() if known in (role, "HealerNodes", "HealerStorage")}

    renew(pve, lack)
    pve.set_guest(201, snapshots={"before": {}})
    report = doctor(pve)
    told = found(report, f"{HEALER} lacks {name} for 200 (postgres), 201 (web), 202 (media), 203 (archive)")
    assert told
    assert told["severity"] == ("problem" if ON_GUESTS[name] else "note")
    assert privilege(report, name)["missing_for"] == ["200 (postgres)", "201 (web)", "202 (media)", "203 (archive)"]
    assert [entry["privilege"] for entry in report["token"]["privileges"] if not entry["has"]] == [name]
    hindered = {remedy["remedy"] for remedy in report["remedies"] if any(name in why for entry in remedy["why"] for why in entry["why"])}
    assert hindered == ON_GUESTS[name]
    assert privilege(report, name)["grant"] == commands(told)
    run_on_node(pve, commands(told))
    report = doctor(pve)
    assert not found(report, f"{HEALER} lacks")
    assert all(entry["has"] for entry in report["token"]["privileges"])
    assert report["token"]["too_much"] == {}


def test_a_privilege_that_one_container_lacks_is_granted_there(pve: Proxmox) -> None:
    """A role on a path takes the place of those from above, so a grant on /vms would not reach it."""

    def lack(state: dict[str, t.Any]) -> None:
        state["roles"]["Less"] = ["VM.Audit", "VM.Snapshot"]
        state["acl"] += [{"path": "/vms/200", kind: who, "role": "Less"} for kind, who in (("user", "healer@pve"), ("token", HEALER))]

    renew(pve, lack)
    report = doctor(pve)
    assert privilege(report, "VM.PowerMgmt")["missing_for"] == ["200 (postgres)"]
    told = found(report, f"{HEALER} lacks VM.Config.CPU, VM.Config.Memory, VM.PowerMgmt, VM.Snapshot.Rollback for 200 (postgres)")
    assert told
    assert [word for command in commands(told) for word in shlex.split(command) if word.startswith("/")] == ["/vms/200"]
    run_on_node(pve, commands(told))
    assert not found(doctor(pve), f"{HEALER} lacks")


def test_without_rollback_a_snapshot_right_is_enough_to_go_back(pve: Proxmox) -> None:
    renew(pve, lambda state: state["roles"].update(HealerGuests=["VM.Audit"]))
    pve.set_guest(201, snapshots={"before": {}})
    assert any("of which it needs one" in why for why in remedy(doctor(pve), "lxc_rollback")["why"][1]["why"])
    pve.reset()
    pve.set_guest(201, snapshots={"before": {}})
    assert remedy(doctor(pve), "lxc_rollback")["can"] == "some"


def test_without_audit_on_guests_it_says_that_it_sees_none(pve: Proxmox) -> None:
    renew(pve, lambda state: state["roles"]["HealerGuests"].remove("VM.Audit"))
    report = doctor(pve)
    told = found(report, f"{HEALER} lacks VM.Audit")
    assert told
    assert told["severity"] == "problem"
    assert (report["containers"], report["guests"]["whole"]) == ([], False)
    assert {remedy["can"] for remedy in report["remedies"]} == {"none"}
    assert found(doctor(pve, vmid=[200]), "cannot find container 200")
    run_on_node(pve, commands(told))
    report = doctor(pve)
    assert not found(report, f"{HEALER} lacks")
    assert len(report["containers"]) == 4


def test_a_token_for_one_container_only_is_told_what_it_leaves_out(pve: Proxmox) -> None:
    def one(state: dict[str, t.Any]) -> None:
        state["acl"] = [{**line, "path": "/vms/200"} if line["path"] == "/vms" else line for line in state["acl"]]

    renew(pve, one)
    report = doctor(pve)
    assert found(report, f"{HEALER} may not see all guests")
    assert not found(report, f"{HEALER} lacks")
    assert [facts["vmid"] for facts in report["containers"]] == [200]
    assert not found(report, "virtual machines")
    pve.reset()
    assert not found(doctor(pve), f"{HEALER} may not see")


def test_a_container_with_a_rule_of_its_own_that_hides_it_is_named(pve: Proxmox) -> None:
    def hide(state: dict[str, t.Any]) -> None:
        state["roles"]["Blind"] = ["VM.PowerMgmt"]
        state["acl"] += [{"path": "/vms/201", kind: who, "role": "Blind"} for kind, who in (("user", "healer@pve"), ("token", HEALER))]

    renew(pve, hide)
    told = found(doctor(pve), f"{HEALER} lacks VM.Audit for 201")
    assert told
    run_on_node(pve, commands(told))
    assert not found(doctor(pve), f"{HEALER} lacks VM.Audit")


def test_without_audit_on_nodes_memory_cannot_be_given(pve: Proxmox) -> None:
    renew(pve, lambda state: state["roles"].update(HealerNodes=["Sys.Syslog"]))
    report = doctor(pve)
    told = found(report, f"{HEALER} lacks Sys.Audit for pve1, pve2")
    assert told
    assert told["severity"] == "problem"
    assert [node["memory"] for node in report["nodes"]] == [None, None]
    assert (remedy(report, "lxc_memory")["can"], remedy(report, "lxc_cpu")["can"]) == ("none", "some")
    run_on_node(pve, commands(told))
    assert not found(doctor(pve), f"{HEALER} lacks")


def test_without_audit_on_storages_it_says_what_it_cannot_tell(pve: Proxmox) -> None:
    renew(pve, lambda state: state.update(acl=[line for line in state["acl"] if line["path"] != "/storage"]))
    report = doctor(pve)
    told = found(report, f"{HEALER} lacks Datastore.Audit for local-lvm, local-zfs")
    assert told
    assert told["severity"] == "warning"
    assert (report["storages"], container(report, 200)["backup_age"]) == ([], None)
    assert container(report, 200)["backup_unseen"] == "there may be storages that the token may not see"
    assert found(report, "cannot tell when 200 (postgres), 201 (web), 202 (media), 203 (archive) was backed up last")
    assert container(report, 202)["no_snapshots"] == ["mp0 is the host's /srv/media"]
    run_on_node(pve, commands(told))
    report = doctor(pve)
    assert not found(report, f"{HEALER} lacks")
    assert "the backups on backup are shown only to who has" in container(report, 200)["backup_unseen"]


def test_a_storage_that_may_be_hidden_leaves_the_last_backup_open(pve: Proxmox) -> None:
    def some(state: dict[str, t.Any]) -> None:
        seen = [f"/storage/{name}" for name in ("local", "local-zfs", "local-lvm", "backup")]
        sees_backups(state)
        rules = [line for line in state["acl"] if line["path"] == "/storage"]
        state["acl"] = [line for line in state["acl"] if line["path"] != "/storage"] + [{**line, "path": path} for line in rules for path in seen]

    renew(pve, some)
    report = doctor(pve)
    assert not found(report, f"{HEALER} lacks")
    assert found(report, "cannot tell when 201 (web) was backed up last")
    assert found(report, "cannot tell when 202 (media), 203 (archive) was backed up last")
    assert abs(container(report, 200)["backup_age"] - DAY // 2) < 600
    assert not found(report, "cannot tell when 200")


@pytest.mark.parametrize("name", _doctor.TOO_MUCH)
def test_a_token_that_may_do_more_than_it_needs_is_warned_of(pve: Proxmox, name: str) -> None:
    renew(pve, lambda state: state["roles"]["HealerGuests"].append(name))
    report = doctor(pve)
    told = found(report, f"{HEALER} may do more than it needs")
    assert told
    assert (told["severity"], report["token"]["too_much"]) == ("warning", {name: ["/vms"]})
    pve.reset()
    assert not found(doctor(pve), f"{HEALER} may do more")


def test_the_administrators_token_is_warned_of_and_a_better_one_told(pve: Proxmox) -> None:
    def bare(state: dict[str, t.Any]) -> None:
        state.update(roles={}, users={"root@pam": {"password": ROOT_PASSWORD}}, tokens={ROOT: {"privsep": False}}, acl=[])

    renew(pve, bare)
    report = doctor(pve, ROOT)
    told = found(report, f"{ROOT} is the administrator's")
    assert told
    assert report["token"]["separated"] is False
    run_on_node(pve, commands(told))
    report = doctor(pve)
    assert not [finding for finding in report["findings"] if finding["what"].startswith((HEALER, ROOT))]
    assert all(entry["has"] for entry in report["token"]["privileges"])


def test_a_token_without_separation_is_told_where_it_can_be_known(pve: Proxmox) -> None:
    told = found(doctor(pve, ROOT), f"{ROOT} has no privilege separation")
    assert told

    def separate(state: dict[str, t.Any]) -> None:
        state["tokens"][ROOT]["privsep"] = True
        state["acl"].append({"path": "/", "token": ROOT, "role": "Administrator"})

    renew(pve, separate)
    report = doctor(pve, ROOT)
    assert report["token"]["separated"] is True
    assert not found(report, f"{ROOT} has no privilege separation")


def test_a_password_is_a_user_without_a_token(pve: Proxmox) -> None:
    options = {"api_token_id": None, "api_token_secret": None, "api_password": ROOT_PASSWORD}
    params = modules._validated(proxmox_doctor_info, {key: value for key, value in {**pve.options_for(ROOT), **options}.items() if value})
    pve.clear()
    with connect(params) as session:
        report = proxmox_doctor_info.report(session, proxmox_doctor_info.Request(None))
    assert pve.writes() == []
    assert (report["token"]["name"], report["token"]["separated"]) == ("root@pam", None)
    assert found(report, "root@pam is the administrator's")


# What there is

SICK: dict[str, tuple[int, dict[str, t.Any], dict[str, t.Any], str, str, str]] = {
    "bind mount": (200, {"mp0": "/srv/x,mp=/x"}, {"mp0": None}, "warning", "200 (postgres) cannot be snapshotted", "mp0 is the host's /srv/x"),
    "storage without snapshots": (200, {"mp0": "backup:200/x.raw,mp=/x"}, {"mp0": None}, "warning", "200 (postgres) cannot be snapshotted", "type dir"),
    "fuse": (200, {"features": "fuse=1"}, {"features": None}, "warning", "200 (postgres) cannot be snapshotted", "fuse"),
    "lock": (200, {"lock": "backup"}, {"lock": None}, "warning", "200 (postgres) is locked", "CT is locked (backup)"),
    "expired snapshot": (
        200,
        {"snapshots": {"pre-change-1": {"description": OWN.format(1)}, "mine": {}}},
        {"snapshots": {"pre-change-2": {"description": OWN.format(1 << 40)}, "mine": {}}},
        "warning",
        "200 (postgres) has snapshots that nobody needs any more",
        "their time is over: pre-change-1",
    ),
    "incomplete snapshot": (
        200,
        {"snapshots": {"half": {"snapstate": "prepare"}}},
        {"snapshots": {}},
        "warning",
        "200 (postgres) has incomplete snapshots",
        "their task failed half-way: half",
    ),
}


@pytest.mark.parametrize("case", SICK)
def test_what_is_wrong_with_a_container_is_told_until_it_is_gone(pve: Proxmox, case: str) -> None:
    vmid, sick, well, severity, what, why = SICK[case]
    assert not found(doctor(pve), what)
    pve.set_guest(vmid, **sick)
    told = found(doctor(pve), what)
    assert told
    assert (told["severity"], why in told["why"]) == (severity, True), told
    pve.set_guest(vmid, **well)
    assert not found(doctor(pve), what)


def test_a_snapshot_that_is_being_made_is_not_called_incomplete(pve: Proxmox) -> None:
    pve.set_guest(200, snapshots={"half": {"snapstate": "prepare"}}, lock="snapshot")
    report = doctor(pve)
    assert found(report, "200 (postgres) is locked")
    assert not found(report, "200 (postgres) has incomplete")
    assert container(report, 200)["incomplete"] == ["half"]
    assert {entry["container"] for entry in remedy(report, "lxc_restart")["why"]} == {"200 (postgres)"}


def test_backups_that_the_documented_token_cannot_see_are_not_said_to_be_missing(pve: Proxmox) -> None:
    report = doctor(pve)
    told = found(report, "cannot tell when 200 (postgres), 201 (web), 202 (media), 203 (archive) was backed up last")
    assert told
    assert told["severity"] == "note"
    assert "no backup can be seen; the backups on backup are shown only to who has Datastore.AllocateSpace there and VM.Backup on the container" in told["why"]
    assert not any("has no backup" in finding["what"] for finding in report["findings"])
    assert {seen["path"] for seen in pve.requests() if seen["path"].endswith("/content")} == set()


def test_backups_are_told_by_their_age(pve: Proxmox) -> None:
    renew(pve, sees_backups)
    report = doctor(pve)
    assert abs(container(report, 200)["backup_age"] - DAY // 2) < 600
    assert not found(report, "200 (postgres) has no backup")
    old = found(report, "the last backup of 201 (web) is old")
    assert old
    assert old["why"].startswith("it was made 9 d ")
    assert found(report, "203 (archive) has no backup")
    contents = pve.state()["storages"]["backup"]["contents"]
    fresh = [{**contents[0], "vmid": vmid, "volid": f"backup:backup/vzdump-lxc-{vmid}-new.tar.zst"} for vmid in (201, 203)]
    pve.set_storage("backup", contents=[*contents, *fresh])
    report = doctor(pve)
    assert not found(report, "the last backup of 201")
    assert not found(report, "203 (archive) has no backup")


def test_backups_are_asked_for_container_by_container(pve: Proxmox) -> None:
    renew(pve, sees_backups)
    doctor(pve)
    asked = [seen["params"] for seen in pve.requests() if seen["path"].endswith("/content")]
    assert sorted(int(params["vmid"]) for params in asked) == [200, 201, 202, 203]


def test_backups_that_cannot_be_listed_are_told(pve: Proxmox) -> None:
    renew(pve, sees_backups)
    pve.fault("GET", "/storage/backup/content", "error", times=-1, status=500, reason="storage 'backup' is not online")
    report = doctor(pve)
    told = found(report, "cannot tell when 200 (postgres), ")
    assert told
    assert "storage 'backup' is not online" in told["why"]
    pve.clear_faults()
    assert not found(doctor(pve), "cannot tell when")


def test_a_full_storage_is_told_and_what_it_hinders(pve: Proxmox) -> None:
    pve.set_storage("local-zfs", used=719)
    report = doctor(pve)
    assert not found(report, "storage local-zfs")
    pve.set_storage("local-zfs", used=728)
    report = doctor(pve)
    told = found(report, "storage local-zfs (pve1) is 91 % full")
    assert told
    assert told["severity"] == "problem"
    full = "no snapshot is made while local-zfs is 91 % full"
    assert {"container": "200 (postgres)", "why": [full]} in remedy(report, "lxc_snapshot")["why"]
    assert "200 (postgres)" not in [entry["container"] for entry in remedy(report, "lxc_memory")["why"]]  # its change can be put back without a snapshot
    pve.set_storage("local-zfs", used=200)
    assert not found(doctor(pve), "storage local-zfs")


def test_a_storage_that_is_not_there_is_told(pve: Proxmox) -> None:
    pve.set_storage("backup", active=False)
    assert found(doctor(pve), "storage backup (pve1, pve2) is not there")
    pve.set_storage("backup", active=True)
    assert not found(doctor(pve), "storage backup")


def test_a_node_that_is_down_does_not_hide_the_others(pve: Proxmox) -> None:
    pve.set_node("pve2", online=False)
    report = doctor(pve)
    told = found(report, "node pve2 is not up")
    assert told
    assert told["severity"] == "problem"
    assert [facts["vmid"] for facts in report["containers"]] == [200, 202, 203]
    assert not found(report, "storage")
    assert not found(report, f"{HEALER} lacks")
    pve.set_node("pve2", online=True)
    pve.advance(20)
    assert not found(doctor(pve), "node pve2")


def test_a_node_that_does_not_answer_does_not_hide_the_others(pve: Proxmox) -> None:
    pve.fault("GET", "/nodes/pve2/lxc", "unreachable", times=-1, reason="No route to host")
    report = doctor(pve)
    assert found(report, "cannot list the containers of pve2")
    assert [facts["vmid"] for facts in report["containers"]] == [200, 202, 203]
    pve.clear_faults()
    assert len(doctor(pve)["containers"]) == 4


def test_a_container_that_cannot_be_read_does_not_hide_the_others(pve: Proxmox) -> None:
    pve.fault("GET", "/lxc/200/config", "error", times=-1, status=500, reason="unable to open file")
    report = doctor(pve)
    told = found(report, "cannot read the configuration of container 200")
    assert told
    assert "unable to open file" in told["why"]
    assert [facts["vmid"] for facts in report["containers"]] == [201, 202, 203]
    pve.clear_faults()
    assert not found(doctor(pve), "cannot read")


def test_a_container_that_is_not_there_is_a_finding(pve: Proxmox) -> None:
    report = doctor(pve, vmid=[200, 999])
    told = found(report, "cannot find container 999")
    assert told
    assert (told["why"], [facts["vmid"] for facts in report["containers"]]) == ("there is none", [200])
    assert not found(report, f"{HEALER} lacks")


def test_old_releases_and_old_cgroups_measure_no_pressure() -> None:
    with proxmox(release="8.4", cgroup=1) as old:
        report = doctor(old)
    assert found(report, "the cluster does not tell who waits for memory or CPU")
    assert found(report, "pve1 does not tell who waits for memory or CPU")
    assert (report["release"], report["nodes"][0]["cgroup_version"]) == ("8.4", "1")


def test_no_such_note_where_pressure_is_measured(pve: Proxmox) -> None:
    assert not any("waits for memory" in finding["what"] for finding in doctor(pve)["findings"])
    later = _doctor.Sight({"release": "10.1", "version": "10.1.1"}, _doctor.Speaker("healer@pve"), (), {}, None)
    assert not any("waits for memory" in finding["what"] for finding in _doctor.examine(later)["findings"])


@pytest.mark.parametrize(
    ("library", "version", "told"), [("proxmoxer", "2.1.0", True), ("docker", "6.1", True), ("docker", "7.0.0", False), ("docker", None, False)]
)
def test_old_libraries_are_told(pve: Proxmox, monkeypatch: pytest.MonkeyPatch, library: str, version: str | None, told: bool) -> None:
    monkeypatch.setattr(proxmox_doctor_info, "_libraries", lambda: {"python": "3.11.2", library: version})
    assert bool(found(doctor(pve), f"the library {library} is too old")) is told


def test_what_a_stopped_or_unlimited_container_hinders(pve: Proxmox) -> None:
    report = doctor(pve)
    assert remedy(report, "lxc_memory")["why"] == [{"container": "203 (archive)", "why": ["it is stopped"]}]
    assert any("it has no CPU limit that could be raised" in why for why in remedy(report, "lxc_cpu")["why"][0]["why"])
    pve.set_guest(203, status="running", cores=1)
    report = doctor(pve)
    assert (remedy(report, "lxc_memory")["can"], remedy(report, "lxc_cpu")["can"]) == ("all", "all")


PLACES: dict[str, t.Callable[[dict[str, t.Any]], object]] = {
    "as it is": lambda state: None,
    "without VM.Config.CPU": lambda state: state["roles"]["HealerGuests"].remove("VM.Config.CPU"),
    "without VM.Config.Memory": lambda state: state["roles"]["HealerGuests"].remove("VM.Config.Memory"),
    "without VM.PowerMgmt": lambda state: state["roles"]["HealerGuests"].remove("VM.PowerMgmt"),
    "without VM.Snapshot": lambda state: state["roles"]["HealerGuests"].remove("VM.Snapshot"),
    "without VM.Snapshot.Rollback": lambda state: state["roles"]["HealerGuests"].remove("VM.Snapshot.Rollback"),
    "without Sys.Audit": lambda state: state["roles"].update(HealerNodes=["Sys.Syslog"]),
    "without Datastore.Audit": lambda state: state["roles"].update(HealerStorage=["Datastore.AllocateTemplate"]),
    "one is locked": lambda state: state["guests"]["200"].update(lock="backup"),
    "a full storage": lambda state: state["storages"]["local-zfs"].update(used=760),
    "one was snapshotted": lambda state: state["guests"]["201"].update(snapshots={"mine": {}}),
}
BY_MODULE: dict[str, tuple[t.Any, dict[str, t.Any]]] = {
    "lxc_resources": (lxc_resources, {"cores": "+1", "memory": "+64"}),
    "lxc_restart": (lxc_power, {"state": "restarted"}),
    "lxc_snapshot": (lxc_snapshot, {"name": "try"}),
    "lxc_rollback": (lxc_snapshot, {"name": "mine", "state": "rolled_back", "allow_data_loss": True}),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_it_foretells_is_what_the_modules_do(pve: Proxmox, place: str) -> None:
    """Each module in check mode refuses exactly those containers for which its remedy is said to be of no help."""

    def change(state: dict[str, t.Any]) -> None:
        for guest in ("200", "201", "202", "203"):
            state["guests"][guest]["config"].setdefault("cores", 1)
        PLACES[place](state)

    renew(pve, change)
    report = doctor(pve)
    for name, (module, options) in BY_MODULE.items():
        foretold = {entry["container"] for entry in remedy(report, name)["why"]}
        refused = set()
        for facts in report["containers"]:
            aim = {**pve.options_for(HEALER), "wait_lock": 0, "vmid": [facts["vmid"]]}
            _answer, error = modules.call(module, True, **aim, **options)
            if name == "lxc_resources" and not error:  # its point of return comes before it
                _answer, error = modules.call(lxc_snapshot, True, **aim, name="try", on_unsupported="continue")
            refused |= {f"{facts['vmid']} ({facts['name']})"} if error else set()
        assert foretold == refused, name


# Who holds what


def test_addresses_are_those_that_others_can_reach(pve: Proxmox) -> None:
    pve.set_guest(200, net0="name=eth0,bridge=vmbr0,ip=192.0.2.20/24,type=veth")
    report = doctor(pve)
    assert container(report, 200)["addresses"] == ["192.0.2.20"]
    assert container(report, 203)["addresses"] == []
    assert _doctor.addresses([{"name": "eth0", "inet6": "fe80::1/64"}, {"name": "eth0", "inet6": "2001:db8::1/64"}]) == ["2001:db8::1"]
    pve.fault("GET", "/interfaces", "error", times=-1, status=501, reason="Method 'GET /nodes/pve1/lxc/200/interfaces' not implemented")
    assert container(doctor(pve), 200)["addresses"] is None


CONTAINERS = [
    {"vmid": 200, "name": "postgres", "tags": ["database"], "addresses": ["192.0.2.20"]},
    {"vmid": 201, "name": "apps", "tags": ["docker"], "addresses": ["192.0.2.21", "2001:db8::21"]},
    {"vmid": 202, "name": "media", "tags": [], "addresses": None},
]


def test_an_address_tells_who_holds_what_and_a_name_is_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"apps.example.org": "2001:db8::21", "localhost": "127.0.0.1", "192.0.2.20": "192.0.2.20"}

    def resolve(host: str, *_args: t.Any, **_options: t.Any) -> list[t.Any]:
        if host not in names:
            raise socket.gaierror(f"{host} is not known")
        return [(socket.AF_INET, 0, 0, "", (names[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    services: dict[str, list[tuple[str, ...]]] = {
        "docker": [("nas", "tcp://apps.example.org:2376", ""), ("here", "unix:///var/run/docker.sock", "localhost")],
        "postgresql": [("db", "192.0.2.20")],
    }
    assert holders(CONTAINERS, services) == [
        {"vmid": 201, "name": "apps", "holds": "docker", "host": "nas", "by": "its address 2001:db8::21"},
        {"vmid": 200, "name": "postgres", "holds": "postgresql", "host": "db", "by": "its address 192.0.2.20"},
    ]
    unknown: dict[str, list[tuple[str, ...]]] = {"docker": [], "postgresql": [("db", "nowhere")]}
    assert [(held["vmid"], held["holds"], held["host"], held["by"]) for held in holders(CONTAINERS, unknown)] == [
        (201, "docker", "", "a hint only: its tag docker"),
        (200, "postgresql", "", "a hint only: its name"),
    ]


def test_an_empty_report_says_so() -> None:
    assert report_lines({"findings": [], "proxmox": {}, "docker": {}, "postgresql": {}, "holds": []}) == ["Nothing was found."]


# As a person runs it


@pytest.fixture
def homelab_controller(pve: Proxmox, tmp_path: Path) -> Controller:
    """The cluster, one that cannot be reached, one whose token is wrong, one without a connection, an engine that is not there, and a database."""
    controller = Controller(tmp_path, docker_host="tcp://127.0.0.1:9", proxmox=pve.options_for(HEALER), healer_docker_tls=False)
    inventory = yaml.safe_load((tmp_path / "inventory.yml").read_text())
    inventory["proxmox"]["hosts"].update(
        nowhere={"healer_proxmox": {**pve.options, "api_port": 9}},
        wrong={"healer_proxmox": {**pve.options_for(HEALER), "api_token_secret": "00000000-0000-0000-0000-000000000000"}},
        untold={},
    )
    inventory["postgresql"] = {"hosts": {"db": {"ansible_host": "192.0.2.20"}}}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    pve.set_guest(200, net0="name=eth0,bridge=vmbr0,ip=192.0.2.20/24,type=veth")
    pve.clear()
    return controller


def reports(folder: Path) -> dict[str, Report]:
    return {report["host"]: report for report in json.loads((folder / "stats.json").read_text())["doctor"]}


@pytest.mark.parametrize("arguments", [("--check",), ()], ids=["check", "real"])
def test_the_playbook_tells_of_every_host_and_changes_nothing(pve: Proxmox, homelab_controller: Controller, arguments: tuple[str, ...]) -> None:
    run = homelab_controller.play("homelab.healer.doctor", *arguments, doctor_fail_on=[] if arguments else ["problem"])
    assert run.returncode == (0 if arguments else 2), run.output
    assert pve.writes() == []
    told = reports(run.folder)
    assert set(told) == {"pve", "nowhere", "wrong", "untold", "lab", "db"}
    assert told["pve"]["holds"] == [{"vmid": 200, "name": "postgres", "holds": "postgresql", "host": "db", "by": "its address 192.0.2.20"}]
    assert not any(finding["severity"] == "problem" for finding in told["pve"]["findings"])
    problems = {host: report["findings"][0] for host, report in told.items() if host != "pve"}
    assert {finding["severity"] for finding in problems.values()} == {"problem"}
    assert "Connection refused" in problems["nowhere"]["why"]
    assert "Check api_user" in problems["wrong"]["fix"]
    assert "Say by healer_proxmox how to reach the cluster" in problems["untold"]["why"]
    assert "Say by healer_postgresql how to reach the server" in problems["db"]["why"]
    assert problems["lab"]["what"] == "cannot connect to the Docker Engine at tcp://127.0.0.1:9"
    printed = " ".join(run.output.split())
    for line in ("WARNING: 202 (media) cannot be snapshotted", "200 (postgres) holds postgresql db, by its address 192.0.2.20", "lxc_restart could help all"):
        assert line in printed
    failed = [line.split(":")[0].strip() for line in run.output.splitlines() if "failed=1" in line]
    assert failed == ([] if arguments else ["db", "lab", "nowhere", "untold", "wrong"])


def test_an_engine_that_can_be_reached_is_told_of(controller: Controller) -> None:
    run = controller.play("homelab.healer.doctor")
    assert run.returncode == 0, run.output
    (told,) = reports(run.folder).values()
    assert set(told["docker"]) == {"cpus", "memory", "cgroup_version", "swap_limit", "engine", "containers"}
    words = [finding["what"] for finding in told["findings"]]
    assert ("the engine of lab has cgroup v1" in words) is (told["docker"]["cgroup_version"] == "1")
    assert ("the engine of lab cannot limit swap" in words) is (not told["docker"]["swap_limit"])


def test_every_example_runs_and_returns_what_is_documented(pve: Proxmox, pve_controller: Controller) -> None:
    tasks = yaml.safe_load(proxmox_doctor_info.EXAMPLES)
    run = pve_controller.play(tasks)
    assert run.returncode == 0, run.output
    assert "WARNING" not in run.output
    answers = run.answers("homelab.healer.proxmox_doctor_info")
    assert len(answers) == 2
    for answer in answers:
        matches(yaml.safe_load(proxmox_doctor_info.RETURN), own(answer))
    assert pve.writes() == []
    doc = pve_controller.doc("homelab.healer.proxmox_doctor_info")
    assert doc.returncode == 0, doc.output
    assert "RETURN VALUES" in doc.output
