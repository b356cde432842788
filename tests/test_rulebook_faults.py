"""Many alerts at once, and what is killed between an alert and its outcome. By the real ``ansible-rulebook`` and the real Alertmanager."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils import _audit
from ansible_collections.homelab.healer.plugins.module_utils._ledger import connect
from tests.conftest import NO_MONITORING, NO_RULEBOOK
from tests.lab import monitoring
from tests.lab.matrix import CHANGE
from tests.lab.monitoring import alertmanager, get, tell
from tests.lab.playbooks import Controller
from tests.lab.proxmox.client import Proxmox
from tests.lab.rulebook import TOKEN, Rulebook, missing
from tests.lab.stepped import Breakpoint, Stops, until_nothing_is_left
from tests.test_alert_rules import firing
from tests.test_lxc_chain import QUICK, memory, writes
from tests.test_rulebooks import SHORT, wait

ELSEWHERE = {**SHORT, "vmid": "201"}
WAS = 2048
"""The size of container 200 in MiB, of which it uses all."""


@pytest.fixture(autouse=True)
def _programs() -> None:
    if missing():
        pytest.skip(f"{NO_RULEBOOK}: {missing()}: run tests/lab/prepare as root")


@pytest.fixture
def _alertmanager() -> None:
    if monitoring.missing():
        pytest.skip(f"{NO_MONITORING}: {', '.join(monitoring.missing())}: run tests/lab/prepare as root")


needs_alertmanager = pytest.mark.usefixtures("_alertmanager")


@pytest.fixture
def short(pve: Proxmox, pve_controller: Controller) -> Controller:
    """A controller whose containers 200 and 201 are short of memory."""
    pve.set_guest(200, workload={"memory": 2100})
    pve.set_guest(201, workload={"memory": 1050})
    pve.advance(3600)
    pve_controller.inventory(**QUICK, remediate_pause=0)
    return pve_controller


def states(rulebook: Rulebook) -> list[tuple[str, str]]:
    """What the ledger has: which container, and what became of it; the oldest first."""
    return [(row.target.rpartition("/")[2], row.state) for row in rulebook.remediations()]


def check_ledger(controller: Controller) -> None:
    """It is as it was written, nothing in it is open, and no target is kept from anybody."""
    with connect({"ledger": {"path": str(controller.ledger)}}, check=True) as ledger:
        report = _audit.verify(ledger, None)
        with ledger.turn(writing=False):
            assert [row for row in ledger.find("id <> ''") if row.open] == []
            assert ledger.switches() == {}
    assert (list(report.findings), report.found) == ([], 0)


def check_left(pve: Proxmox, *vmids: int) -> None:
    """Nothing is left behind on these containers, and they run."""
    for vmid in vmids:
        guest = pve.guest(vmid)
        assert (guest["lock"], guest["snapshots"], guest["pending"], guest["status"]) == (None, {}, {}, "running")


def sizes(pve: Proxmox) -> list[int]:
    """The sizes that were written to container 200, in order."""
    return [int(seen["params"]["memory"]) for seen in pve.writes() if seen["method"] == "PUT" and "/lxc/200/" in seen["path"]]


# More than is allowed


def has_ended(rulebook: Rulebook, number: int) -> bool:
    return sum(not row.open for row in rulebook.remediations()) >= number


def test_of_many_at_once_the_budget_is_healed_and_the_rest_is_refused_with_the_reason(pve: Proxmox, pve_controller: Controller, whole: bool) -> None:
    number, budget = (100, 3) if whole else (5, 2)
    vmids = range(300, 300 + number)
    pve.set_node("pve1", memory=number << 12)
    for vmid in vmids:
        config = {"memory": 512, "swap": 128, "hostname": f"ct{vmid}"}
        pve.add_guest(vmid, node="pve1", status="running", config=config, workload={"memory": 520})
    pve.advance(3600)
    plenty = dict.fromkeys(("max_per_target", "max_per_node", "max_in_flight", "max_in_flight_per_node"), 100000)
    pve_controller.policy(limits={**plenty, "max_per_window": budget, "cooldown": "0"})
    pve_controller.inventory(**QUICK, remediate_pause=0)
    with Rulebook(pve_controller) as house:
        assert house.alert(*({**SHORT, "vmid": str(vmid)} for vmid in vmids)) == 200
        house.alert(ELSEWHERE)  # which is well: when it is looked at, all before it were
        for ended in range(1, number + 1):
            wait(partial(has_ended, house, ended), house)
        wait(lambda: "HEALTHY: 201 (web)" in house.told, house)
        found = house.remediations()
        assert house.alerts() == []
    assert Counter(row.target for row in found) == Counter(f"pve/lxc/{vmid}" for vmid in vmids)
    assert Counter(row.state for row in found) == {"healed": budget, "denied": number - budget}
    assert {row.why for row in found if row.state == "denied"} == {f"{budget} remediations overall within 1 h, and {budget} are allowed"}
    healed = {row.target.rpartition("/")[2] for row in found if row.state == "healed"}
    assert {re.findall(r"/lxc/(\d+)/", seen["path"])[0] for seen in pve.writes()} == healed
    assert {str(vmid) for vmid in vmids if memory(pve, vmid) != 512} == healed
    check_left(pve, *vmids)
    check_ledger(pve_controller)


# What is killed in mid-remediation

BEGUN, CHANGED, VERIFIED = "before it is changed", "while it is changed", "while it is verified"
MOMENTS = {
    BEGUN: (Breakpoint(CHANGE, number=2), "applying", "rolled_back"),
    CHANGED: (Breakpoint(CHANGE, number=2), "applying", "rolled_back"),
    VERIFIED: (Breakpoint("^verify.yml: Look$"), "verifying", "healed"),
}
"""When a run is killed that has made its snapshot of container 200: where it stops, in which state it is left, and what recover makes of that."""
KILLED = {("rulebook and playbook", CHANGED), ("playbook", BEGUN)}
"""What is killed, and when. With --all each is at each moment, but that a playbook whose rulebook alone is killed before the change goes on to make it."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "moment" in metafunc.fixturenames:
        pairs = [(what, moment) for what in ("rulebook and playbook", "rulebook", "playbook") for moment in MOMENTS if (what, moment) != ("rulebook", BEGUN)]
        chosen = [pair for pair in pairs if pair in KILLED or metafunc.config.getoption("--all")]
        chosen = [(what, moment) for what, moment in chosen if (what == "playbook") == ("what" not in metafunc.fixturenames)]
        names, values = (("what", "moment"), chosen) if "what" in metafunc.fixturenames else (("moment",), [(moment,) for _what, moment in chosen])
        metafunc.parametrize(names, values)


def come_to(moment: str, stops: Stops, rulebook: Rulebook, pve: Proxmox) -> int:
    """Send the alert, and wait until its run has come so far; returns its process."""
    rulebook.alert(SHORT)
    pid = stops.wait(rulebook.runs)
    assert pid, rulebook.told[-6000:]
    if moment == CHANGED:
        pve.fault("PUT", "^/nodes/pve1/lxc/200/config$", "late", seconds=2)
        stops.go_on()
        wait(lambda: sizes(pve) != [], rulebook)
    assert states(rulebook) == [("200", MOMENTS[moment][1])]
    assert writes(pve) == ["POST snapshot", "PUT config"][: 1 if moment == BEGUN else 2]
    return pid


def healthy(rulebook: Rulebook) -> int:
    """How often a run found that container 200 is well, which is in no ledger."""
    return rulebook.told.count("HEALTHY: 200 (postgres)")


def check_before_it_is_recovered(moment: str, rulebook: Rulebook, pve: Proxmox) -> None:
    """The next alert changes nothing: the container may be well already, and otherwise it is refused with the reason."""
    before, changes, told = states(rulebook), sizes(pve), healthy(rulebook)
    rulebook.alert(SHORT)
    if moment == BEGUN:
        wait(lambda: states(rulebook) == [*before, ("200", "denied")], rulebook)
        *_others, refused = rulebook.remediations()
        assert refused.why == f"remediation {rulebook.remediations()[0].id} of it (lxc_memory) is under way (applying)"
    else:
        wait(lambda: healthy(rulebook) == told + 1, rulebook)
        assert states(rulebook) == before
    assert sizes(pve) == changes


def check_recovered(moment: str, rulebook: Rulebook, pve: Proxmox) -> None:
    """Recover it, and then the next alert is answered: what is well is left alone, and what is as before is healed."""
    before, end = states(rulebook), MOMENTS[moment][2]
    run = rulebook.controller.play("homelab.healer.recover")
    assert run.returncode == 0, run.output
    assert states(rulebook) == [("200", end), *before[1:]], run.output
    assert memory(pve) == (WAS if end == "rolled_back" else sizes(pve)[0])
    check_left(pve, 200)
    check_ledger(rulebook.controller)
    changes, told = sizes(pve), healthy(rulebook)
    rulebook.alert(SHORT)
    if end == "healed":
        wait(lambda: healthy(rulebook) == told + 1, rulebook)
        assert states(rulebook) == [("200", end), *before[1:]]
        assert sizes(pve) == changes
    else:
        wait(lambda: states(rulebook) == [("200", end), *before[1:], ("200", "healed")], rulebook)
        assert sizes(pve) == [*changes, memory(pve)]
    assert memory(pve) > WAS
    check_left(pve, 200)
    check_ledger(rulebook.controller)


def test_a_rulebook_is_killed(pve: Proxmox, short: Controller, what: str, moment: str) -> None:
    """Alone, its playbook goes on until it wants to tell something, as nobody hears it any more."""
    with Stops(MOMENTS[moment][0]) as stops, Rulebook(short, stops=stops) as rulebook:
        playbook = come_to(moment, stops, rulebook, pve)
        rulebook.crash()
        if what == "rulebook and playbook":
            os.kill(playbook, signal.SIGKILL)
        stops.close()
        until_nothing_is_left(short.folder)
    assert states(rulebook) == [("200", MOMENTS[moment][1])]
    with Rulebook(short, throttle="1 second") as rulebook:
        check_before_it_is_recovered(moment, rulebook, pve)
        check_recovered(moment, rulebook, pve)


def test_a_controller_is_killed(pve: Proxmox, short: Controller, moment: str) -> None:
    """The rulebook goes on: another target is answered at once, and the same one as soon as somebody has recovered it."""
    with Stops(MOMENTS[moment][0]) as stops, Rulebook(short, stops=stops, throttle="1 second") as rulebook:
        os.kill(come_to(moment, stops, rulebook, pve), signal.SIGKILL)
        stops.close()
        rulebook.alert(ELSEWHERE)
        wait(lambda: states(rulebook) == [("200", MOMENTS[moment][1]), ("201", "healed")], rulebook)
        check_before_it_is_recovered(moment, rulebook, pve)
        wait(lambda: rulebook.begun() == [], rulebook)
        check_recovered(moment, rulebook, pve)
    check_left(pve, 201)


@needs_alertmanager
def test_alertmanager_is_killed(pve: Proxmox, short: Controller, tmp_path: Path) -> None:
    """What it began comes to its end without it. It has forgotten whom it told, and tells again of a container that is well by then."""
    alerts = [firing("LxcMemoryHigh", instance="pve", vmid="200", node="pve1")]
    with Stops(MOMENTS[VERIFIED][0]) as stops, Rulebook(short, stops=stops, throttle="1 second") as rulebook:
        with alertmanager(tmp_path, rulebook.address, TOKEN, killed=True) as address:
            tell(address, alerts)
            assert stops.wait(rulebook.runs), rulebook.told[-6000:]
        assert states(rulebook) == [("200", "verifying")]
        stops.close()
        wait(lambda: states(rulebook) == [("200", "healed")], rulebook)
        assert healthy(rulebook) == 0
        with alertmanager(tmp_path, rulebook.address, TOKEN) as address:
            tell(address, alerts)
            wait(lambda: healthy(rulebook) == 1, rulebook)
        assert states(rulebook) == [("200", "healed")]
    assert len(sizes(pve)) == 1
    check_left(pve, 200)
    check_ledger(short)


@pytest.mark.long
@needs_alertmanager
def test_what_is_told_while_there_is_no_rulebook_is_told_again_when_there_is_one(pve: Proxmox, short: Controller, tmp_path: Path) -> None:
    """Prometheus said it once here; in a homelab it says so at each of its evaluations."""
    rulebook = Rulebook(short)
    with alertmanager(tmp_path, rulebook.address, TOKEN) as address:
        tell(address, [firing("LxcMemoryHigh", instance="pve", vmid="200", node="pve1")])
        wait(lambda: tried_in_vain(address) > 0, rulebook)
        with rulebook:
            wait(lambda: states(rulebook) == [("200", "healed")], rulebook)
    assert len(sizes(pve)) == 1
    check_left(pve, 200)
    check_ledger(short)


def tried_in_vain(address: str) -> int:
    """How often an Alertmanager could not tell a webhook."""
    return int(re.findall(r'^alertmanager_notification_requests_failed_total\{integration="webhook".*\} (\d+)$', get(f"{address}/metrics"), re.MULTILINE)[0])
