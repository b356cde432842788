"""lxc_resources against Proxmox VE: its contract, the traps T1.x and the defects of its peers (W10 to W12, W18, W22), each by name."""

from __future__ import annotations

import threading
import typing as t

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.modules import lxc_info, lxc_resources
from tests.lab.modules import Caller, call, read
from tests.lab.playbooks import Controller
from tests.lab.proxmox.client import Proxmox, proxmox

GIB = 1024


@pytest.fixture
def resources(pve: Proxmox) -> Caller:
    return Caller(lxc_resources, pve.options_for("healer@pve!healer"))


def refused(pve: Proxmox, resources: Caller, **options: t.Any) -> str:
    """Call the module; it must refuse, say so in check mode too, and write nothing. Returns its code and message."""
    pve.clear()
    said = [f"{error.code}: {error}" for error in (resources.fails(check=check, wait_lock=0, **options) for check in (True, False))]
    assert said[0] == said[1]
    assert pve.writes() == []
    return said[0]


def test_the_litany(pve: Proxmox, pve_controller: Controller) -> None:
    task = {"homelab.healer.lxc_resources": {"vmid": 200, "memory": 4096, "cpulimit": 1.5}}
    run = pve_controller.play([{"homelab.healer.lxc_resources": {"vmid": 200}}])
    assert "one of the following is required: cores, cpulimit, cpuunits, memory, swap" in run.output
    run = pve_controller.play([task], "--check", "--diff")
    assert "-memory: 2GiB" in run.output
    assert "+cpulimit: 1.5" in run.output
    assert pve.writes() == []
    foretold = run.answers("homelab.healer.lxc_resources")[0]
    run = pve_controller.play(
        [{**task, "register": "first"}, task, {"homelab.healer.lxc_resources": "{{ first.undo[0] | combine({'allow_below_usage': true}) }}"}]
    )
    assert run.returncode == 0, run.output
    applied, again, undone = run.answers("homelab.healer.lxc_resources")
    for key in ("changed", "before", "after", "steps", "undo", "reversibility"):
        assert applied[key] == foretold[key]
    assert (again["changed"], again["steps"]) == (False, [])
    assert undone["after"] == {"200": {"cpulimit": "default", "memory": 2048}}
    assert applied["results"][0]["applied"] == {"cpulimit": "live", "memory": "live"}
    run = pve_controller.play([{"homelab.healer.lxc_resources": {"vmid": 999, "memory": 64}}])
    assert "cannot find container 999: there is none, or this token may not see it." in run.output
    assert "VM.Audit on /vms/999" in run.output


def test_only_what_differs_is_sent_and_other_keys_stay(pve: Proxmox, resources: Caller) -> None:
    before = pve.guest(200)["config"]
    digest = pve.guest(200)["digest"]
    resources(vmid=[200], memory="4096", swap=512, cores="2")
    (write,) = pve.writes()
    assert write["params"] == {"memory": "4096", "digest": digest}
    after = pve.guest(200)["config"]
    assert {**before, "memory": after["memory"]} == after
    assert str(after["memory"]) == "4096"
    pve.clear()
    assert not resources(vmid=[200], memory="4GiB", swap="512m", cores="2")["changed"]
    assert pve.writes() == []


def test_sizes_as_people_write_them(pve: Proxmox, resources: Caller) -> None:
    for written, mib in (("1GiB", 1024), ("1536", 1536), ("+25%", 1920), ("+128m", 2048), ("-1g", 1024), ("512m", 512)):
        resources(vmid=[201], memory=written, allow_below_usage=True)
        assert pve.guest(201)["kernel"]["memory"] == mib
    for option, value, words in (
        ("memory", "lots", "a size is a number with an optional unit"),
        ("memory", "1.5m", "it is not a whole number of MiB"),
        ("memory", "8", "it must be between 16MiB and"),
        ("memory", "-1", "-1 could mean one less or no limit"),
        ("memory", "default", "a size is a number"),
        ("cores", "0", "0 is what an engine takes for no answer"),
        ("cores", "1.5", "invalid literal"),
        ("cpulimit", "0.001", "it must be between 0.01 and 8192"),
        ("cpulimit", "nan", "it must be between"),
        ("swap", "-5000", "is out of bounds"),
        ("cpulimit", "+1", "it has none to begin from"),
        ("memory_max", "x", "a size is a number"),
    ):
        needed = {"memory": "+1m"} if option == "memory_max" else {}
        assert words in refused(pve, resources, vmid=[201], **{option: value}, **needed)


def test_relative_values_end_at_memory_max(pve: Proxmox, resources: Caller) -> None:
    assert resources(vmid=[201], memory="+100%", memory_max="1536")["after"] == {201: {"memory": 1536}}
    assert "memory_max is 2GiB" in refused(pve, resources, vmid=[201], memory="4096", memory_max="2GiB")


@pytest.mark.parametrize("lift", ["0", "unlimited", "default"])
def test_t1_1_a_cpu_limit_is_lifted_by_deleting_it(pve: Proxmox, resources: Caller, lift: str) -> None:
    resources(vmid=[200], cpulimit="1.5")
    assert pve.guest(200)["kernel"]["cpulimit"] == 1.5
    pve.clear()
    answer = resources(vmid=[200], cpulimit=lift)
    assert pve.writes()[0]["params"]["delete"] == "cpulimit"
    assert "cpulimit" not in pve.guest(200)["config"]
    assert answer["after"] == {200: {"cpulimit": "default"}}
    assert not resources(vmid=[200], cpulimit=lift)["changed"]


def test_t1_2_cores_come_later_and_are_bounded_by_the_node(pve: Proxmox, resources: Caller) -> None:
    answer = resources(vmid=[201], cores="3")
    assert answer["results"][0]["verified"] == {"cores": "accepted"}
    assert "the node gives it the cores within about 10 seconds" in answer["results"][0]["notes"][0]
    pve.advance(15)
    assert pve.guest(201)["kernel"]["cores"] == 3
    assert "pve2 has" in refused(pve, resources, vmid=[201], cores="512")
    answer = resources(vmid=[201], cores="512", allow_overcommit=True)
    back = resources(vmid=[201], cores="2")
    assert back["undo"] == [{"vmid": [201], "cores": 512, "allow_overcommit": True}]
    resources.undo(back)
    assert str(pve.guest(201)["config"]["cores"]) == "512"


def test_t1_2_raw_settings_are_told(pve: Proxmox, resources: Caller) -> None:
    config = {"memory": 256, "hostname": "raw", "rootfs": "local-zfs:subvol-210-disk-0,size=4G"}
    pve.add_guest(210, node="pve1", status="running", config=config, raw=[["lxc.cgroup2.memory.max", "1G"]])
    pve.advance(20)
    answer = resources(vmid=[210], memory="300")
    assert "raw settings in its configuration win when it starts: lxc.cgroup2.memory.max: 1G" in answer["results"][0]["notes"]


def test_t1_3_a_weight_that_would_be_stored_as_another_is_refused(pve: Proxmox, resources: Caller) -> None:
    assert "where the highest weight is 10000" in refused(pve, resources, vmid=[200], cpuunits="20000")
    resources(vmid=[200], cpuunits="10000")
    assert not resources(vmid=[200], cpuunits="10000")["changed"]
    resources(vmid=[200], cpuunits="default")
    assert "cpuunits" not in pve.guest(200)["config"]


def test_t1_4_less_than_is_used_is_refused(pve: Proxmox, resources: Caller) -> None:
    said = refused(pve, resources, vmid=[200], memory="1024")
    assert "refused: will not limit memory of 200 (postgres) to 1GiB: it is using" in said
    assert "set allow_below_usage=true" in said
    oom = pve.guest(200)["oom_kills"]
    resources(vmid=[200], memory="1024", allow_below_usage=True)
    assert pve.guest(200)["oom_kills"] > oom  # why it was refused
    stopped = resources(vmid=[203], memory="32")
    assert stopped["results"][0]["applied"] == {"memory": "next_start"}
    assert "takes effect when it starts" in stopped["results"][0]["notes"][0]


def test_t1_5_swap_that_is_not_named_is_none(pve: Proxmox, resources: Caller) -> None:
    resources(vmid=[200], swap="default")
    assert "swap" not in pve.guest(200)["config"]
    assert not resources(vmid=[200], swap="0")["changed"]
    answer = resources(vmid=[200], swap="256m")
    assert answer["before"] == {200: {"swap": "default"}}
    resources.undo(answer)
    assert "swap" not in pve.guest(200)["config"]


def test_t1_6_what_waits_for_a_restart_is_told(pve: Proxmox, resources: Caller) -> None:
    pve.set_guest(200, pending={"tty": 3, "cores": 1})
    (facts,) = read(lxc_info, **resources.options, vmid=[200])["containers"]
    assert facts["limits"]["cores"] == 2
    answer = resources(vmid=[200], memory="3072")
    assert answer["changed"]
    assert pve.guest(200)["pending"].get("tty")


def test_t1_7_a_failed_request_leaves_nothing_half_applied(pve: Proxmox, resources: Caller) -> None:
    with proxmox(cgroup=1) as old:
        caller = Caller(lxc_resources, old.options_for("healer@pve!healer"))
        kernel = old.guest(200)["kernel"]
        _answer, error = call(lxc_resources, **caller.options, vmid=[200], memory="128", cpulimit="1", cpuunits="512", allow_below_usage=True)
        assert error is not None
        assert "unable to hotplug memory" in error.why
        assert error.code == "conflict"
        assert old.guest(200)["kernel"] == kernel
        answer = caller(vmid=[201], memory="900", cpulimit="0.5")
        assert len(answer["steps"]) == 2
        assert old.guest(201)["kernel"]["cpulimit"] == 0.5


def test_t1_8_a_lock_is_waited_for_and_never_taken_away(pve: Proxmox, resources: Caller) -> None:
    pve.set_guest(200, lock="backup")
    said = refused(pve, resources, vmid=[200], memory="4096")
    assert said.startswith("conflict: will not change 200 (postgres): CT is locked (backup). Wait until that is done")
    pve.fault("GET", "/nodes/pve1/lxc/200/config", "delay", seconds=0.01)
    threading.Timer(0.4, pve.set_guest, args=(200,), kwargs={"lock": None}).start()
    assert resources(vmid=[200], memory="4096", wait_lock=20)["changed"]
    pve.set_guest(200, lock="rollback")
    assert "run pct unlock 200 on the node" in refused(pve, resources, vmid=[200], memory="5000")
    assert pve.guest(200)["lock"] == "rollback"
    pve.set_guest(200, lock=None)
    pve.fault("PUT", "/config", "error", status=500, reason="CT is locked (snapshot)", times=2)
    assert resources(vmid=[200], memory="5000", wait_lock=20)["changed"]
    pve.fault("PUT", "/config", "error", status=500, reason="can't lock file '/run/lock/lxc/pve-config-200.lock' - got timeout")
    assert resources(vmid=[200], memory="5100", wait_lock=20)["changed"]


@pytest.mark.parametrize("kind", ["lost", "cut"])
def test_t1_9_a_lost_reply_is_looked_into(pve: Proxmox, resources: Caller, kind: str) -> None:
    pve.fault("PUT", "/nodes/pve1/lxc/200/config", kind)
    answer, error = call(lxc_resources, **resources.options, vmid=[200], memory="4096")
    if kind == "lost":
        assert error is None
        assert "looked at again, and it holds" in answer["results"][0]["notes"][0]
        assert answer["changed"]
    else:
        assert error is not None
        assert (answer["changed"], answer["undo"]) == (False, [])
    assert pve.guest(200)["kernel"]["memory"] == (4096 if kind == "lost" else 2048)


def test_t1_9_a_server_slower_than_the_time_out(pve: Proxmox, resources: Caller) -> None:
    pve.fault("PUT", "/nodes/pve1/lxc/200/config", "late", seconds=5)
    answer = resources(vmid=[200], memory="4096", api_timeout=1)
    assert answer["changed"]
    assert "it holds" in answer["results"][0]["notes"][0]


def test_t1_9_what_cannot_be_seen_counts_as_changed(pve: Proxmox, resources: Caller) -> None:
    pve.fault("PUT", "/nodes/pve1/lxc/200/config", "lost")
    down = "RPCEnvironment init request failed: Unable to load access control list"
    pve.fault("GET", "/cluster/resources|/config$", "error", status=500, reason=down, after=2, times=-1)
    answer, error = call(lxc_resources, **resources.options, vmid=[200], memory="4096")
    assert isinstance(error, HealerError)
    assert (answer["changed"], answer["results"][0]["unknown"]) == (True, True)
    assert answer["undo"] == [{"vmid": [200], "memory": 2048}]


def test_t1_10_numbers_as_text_are_numbers(pve: Proxmox, resources: Caller) -> None:
    pve.set_guest(200, cpulimit="2.0")
    assert not resources(vmid=[200], cpulimit="2")["changed"]


def test_t1_11_templates_machines_and_dead_nodes(pve: Proxmox, resources: Caller) -> None:
    assert "it is a template" in refused(pve, resources, vmid=[299], memory="1024")
    assert "that is a virtual machine" in refused(pve, resources, vmid=[100], memory="1024")
    assert "it is on pve2" in refused(pve, resources, vmid=[201], node="pve1", memory="1100")
    pve.set_node("pve2", online=False)
    assert refused(pve, resources, vmid=[201], memory="1100").startswith("unreachable: ")


def test_t1_11_a_container_that_moves_between_plan_and_write_is_followed(pve: Proxmox, resources: Caller) -> None:
    guests = lxc_resources.MODULE.observe
    moved: list[int] = []

    def observe(client: t.Any, request: t.Any) -> t.Any:
        seen = guests(client, request)
        if not moved:
            moved.append(200)
            pve.move(200, "pve2")
        return seen

    original = lxc_resources.MODULE
    object.__setattr__(original, "observe", observe)
    try:
        answer = resources(vmid=[200], memory="4096")
    finally:
        object.__setattr__(original, "observe", guests)
    assert answer["changed"]
    assert pve.guest(200)["node"] == "pve2"
    assert pve.guest(200)["kernel"]["memory"] == 4096


def test_t1_13_protection_does_not_matter(pve: Proxmox, resources: Caller) -> None:
    pve.set_guest(200, protection=1)
    assert resources(vmid=[200], memory="4096")["changed"]


def test_digest_somebody_else_changed_it(pve: Proxmox, resources: Caller) -> None:
    pve.fault("PUT", "/config", "error", status=500, reason="detected modified configuration - file changed by other user? Try again.")
    error = resources.fails(vmid=[200], memory="4096")
    assert (error.code, error.retryable) == ("conflict", True)


def test_the_node_has_room_for_all_of_them_together(pve: Proxmox, resources: Caller) -> None:
    pve.set_node("pve1", memory=8 * GIB, used=GIB)
    said = refused(pve, resources, vmid=[200, 202], memory="+1500m")
    assert "will not give containers on pve1" in said
    assert "node_reserve" in said
    answer = resources(vmid=[200], memory="+1000m", allow_overcommit=True, check=True)
    (result,) = answer["results"]
    assert result["capacity"]["delta"] == 1000
    assert result["capacity"]["committed_after"] == result["capacity"]["committed"] + 1000


def test_what_was_given_a_moment_ago_counts_in_the_sum(pve: Proxmox, resources: Caller) -> None:
    pve.set_node("pve1", memory=8 * GIB, used=GIB)
    committed = resources(vmid=[200], memory="+100m", check=True)["results"][0]["capacity"]["committed"]
    resources(vmid=[202], memory="+1g", allow_overcommit=True)
    assert resources(vmid=[200], memory="+100m", check=True, allow_overcommit=True)["results"][0]["capacity"]["committed"] == committed + GIB


def test_machines_count_in_the_sum(pve: Proxmox, resources: Caller) -> None:
    before = resources(vmid=[200], memory="2100", check=True)["results"][0]["capacity"]["committed"]
    pve.add_guest(101, node="pve1", kind="qemu", status="running", config={"memory": 3000, "name": "vm"})
    pve.advance(20)
    assert resources(vmid=[200], memory="2100", check=True)["results"][0]["capacity"]["committed"] == before + 3000


def test_several_at_once_and_one_that_fails(pve: Proxmox, resources: Caller) -> None:
    pve.fault("PUT", "/lxc/201/config", "error", status=500, reason="unable to open file '/etc/pve/nodes/pve2/lxc/201.conf.tmp.1' - Permission denied")
    answer, error = call(lxc_resources, **resources.options, vmid=[200, 201, 203], memory="+100m")
    assert error is not None
    assert "Permission denied" in error.why
    assert "Changed: 200 (postgres), 203" in error.fix
    assert "Not changed: 201 (web)" in error.fix
    assert [undo["vmid"] for undo in answer["undo"]] == [[203], [200]]


def test_secrets_never_show(pve: Proxmox, pve_controller: Controller) -> None:
    run = pve_controller.play([{"homelab.healer.lxc_resources": {"vmid": 200, "memory": "4096"}}], "-vvv", "--check")
    assert pve.tokens["healer@pve!healer"] not in run.output


def test_credentials_and_certificates(pve: Proxmox, resources: Caller) -> None:
    wrong = {**resources.options, "api_token_secret": "00000000-0000-0000-0000-000000000000"}
    assert Caller(lxc_resources, wrong).fails(vmid=[200], memory="4096").code == "denied"
    error = Caller(lxc_resources, {**resources.options, "ca_path": None}).fails(vmid=[200], memory="4096")
    assert error.code == "unreachable"
    assert "pve-root-ca.pem" in error.fix
    assert "ca_path" in Caller(lxc_resources, {**resources.options, "ca_path": "/nonexistent"}).fails(vmid=[200], memory="4096").fix
    password = {key: value for key, value in resources.options.items() if not key.startswith("api_token")}
    pve.clear()
    Caller(lxc_resources, {**password, "api_user": "root@pam", "api_password": pve.passwords["root@pam"]})(vmid=[200], memory="4096")
    assert len(pve.logins()) == 1
    assert Caller(lxc_resources, {**password, "api_password": "wrong"}).fails(vmid=[200], memory="4096").code == "denied"
    full = {**resources.options, "api_token_id": "healer@pve!healer"}
    assert not Caller(lxc_resources, full)(vmid=[200], memory="4096")["changed"]
    assert Caller(lxc_resources, {**resources.options, "api_port": 1}).fails(vmid=[200], memory="64").code == "unreachable"


def test_a_deadline_stops_what_has_not_begun(pve: Proxmox, resources: Caller) -> None:
    error = resources.fails(vmid=[200], memory="4096", deadline=1.0)
    assert (error.code, pve.writes()) == ("refused", [])


def test_8_4_is_the_same() -> None:
    with proxmox(release="8.4") as old:
        caller = Caller(lxc_resources, old.options_for("healer@pve!healer"))
        answer = caller(vmid=[200, 201], memory="+10%", cores="1")
        caller.undo(answer, allow_below_usage=True)
        assert str(old.guest(200)["config"]["memory"]) == "2048"


def test_what_another_tool_did_under_its_lock_is_waited_for(pve: Proxmox, resources: Caller) -> None:
    pve.fault("PUT", "/config", "error", status=500, reason="CT is locked (snapshot)")
    pve.set_guest(200, description="changed meanwhile")
    pve.fault("GET", "/nodes/pve1/lxc", "delay", seconds=0.01)
    observe = lxc_resources.MODULE.observe
    looks: list[int] = []

    def then_changed(client: t.Any, request: t.Any) -> t.Any:
        seen = observe(client, request)
        if not looks:
            looks.append(1)
            pve.set_guest(200, description="another tool's word")  # the digest is another then, the resources are not
        return seen

    object.__setattr__(lxc_resources.MODULE, "observe", then_changed)
    try:
        assert resources(vmid=[200], memory="4096", wait_lock=20)["changed"]
    finally:
        object.__setattr__(lxc_resources.MODULE, "observe", observe)
    assert pve.guest(200)["kernel"]["memory"] == 4096


def test_an_answer_that_is_none_of_proxmox(pve: Proxmox, resources: Caller) -> None:
    for path in ("/cluster/resources", "/nodes/pve1/lxc$", "/config$"):
        pve.fault("GET", path, "error", status=200, reason="OK", body="<html>log in</html>", bare=True, times=2)
        error = resources.fails(vmid=[200], memory="4096")
        assert error.code == "unreachable", (path, error)
        pve.clear_faults()
    assert pve.writes() == []


def test_what_was_beyond_bounds_before_can_be_put_back(pve: Proxmox, resources: Caller) -> None:
    pve.add_guest(101, node="pve1", kind="qemu", status="running", config={"memory": 12000, "name": "vm"})
    pve.advance(20)
    pve.set_guest(200, workload={"memory": 300})
    pve.set_guest(202, workload={"memory": 300})
    pve.advance(20)
    answer = resources(vmid=[200], memory="1024")
    assert answer["undo"] == [{"vmid": [200], "memory": 2048, "allow_overcommit": True}]
    resources.undo(answer)
    pve.set_guest(200, cpuunits=20000)
    answer = resources(vmid=[200], cpuunits="500")
    assert (answer["undo"][0]["cpuunits"], answer["reversibility"]) == (10000, "equivalent")
    assert "has 16GiB in all" in refused(pve, resources, vmid=[203], memory="1024GiB")
    resources(vmid=[201], cpulimit="1.33333333")
    assert not resources(vmid=[201], cpulimit="1.33333333")["changed"]


def test_both_bounds_of_the_cpu_count(pve: Proxmox, resources: Caller) -> None:
    pve.set_guest(200, cores=2, cpulimit="0.5", workload={"cpu": 2})
    pve.advance(30)
    (facts,) = read(lxc_info, **resources.options, vmid=[200])["containers"]
    assert (facts["cpus"], facts["cpu_share"]) == (0.5, 1.0)
