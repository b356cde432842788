"""The gate in the whole chain: what may happen now, what may not, and what people are told of it."""

from __future__ import annotations

import http.server
import json
import sqlite3
import threading
import typing as t

import pytest

from tests.lab.playbooks import Controller, Run
from tests.lab.proxmox.client import Proxmox

TARGET = "pve/lxc/201"


def snapshot(controller: Controller, *arguments: str, name: str = "", **variables: t.Any) -> Run:
    """The quickest remediation there is."""
    return controller.play("homelab.healer.snapshot", *arguments, **{"vmid": 201, "remediate_pause": 0, **({"snapshot": name} if name else {}), **variables})


def states(controller: Controller) -> list[str]:
    with sqlite3.connect(controller.ledger) as ledger:
        return [state for (state,) in ledger.execute("SELECT state FROM remediations ORDER BY opened")]


def denied(run: Run, pve: Proxmox, words: str) -> None:
    assert (run.returncode, run.record["outcome"], pve.writes()) == (2, "denied", []), run.output
    assert words in run.record["why"]


def test_all_new_work_can_be_stopped_and_let_go_on(pve: Proxmox, pve_controller: Controller) -> None:
    paused = pve_controller.play("homelab.healer.pause", why="film night")
    assert paused.returncode == 0, paused.output
    denied(snapshot(pve_controller), pve, "all new work is paused by ")
    (pve_controller.folder / "pause").touch()
    assert "there is the file" in pve_controller.play("homelab.healer.resume").output
    denied(snapshot(pve_controller), pve, "paused by the file")
    (pve_controller.folder / "pause").unlink()
    assert pve_controller.play("homelab.healer.resume", "--check").returncode == 0
    run = snapshot(pve_controller)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert states(pve_controller) == ["denied", "denied", "healed"]


def test_check_mode_foretells_the_gate_and_leaves_no_trace(pve: Proxmox, pve_controller: Controller) -> None:
    run = snapshot(pve_controller, "--check", "--diff")
    assert (run.returncode, run.record["outcome"], run.record["gate"]["word"]) == (0, "planned", "allowed"), run.output
    assert "Gate: allowed, by rule the lab" in run.output
    assert not pve_controller.ledger.exists()
    pve_controller.policy(freeze=[{"name": "moving house", "begin": "2020-01-01", "end": "2099-01-01"}])
    run = snapshot(pve_controller, "--check")
    assert (run.returncode, run.record["outcome"], run.record["gate"]["word"]) == (0, "planned", "refused"), run.output
    assert "moving house" in run.record["gate"]["why"]
    assert (pve.writes(), pve_controller.ledger.exists()) == ([], False)
    denied(snapshot(pve_controller), pve, "moving house")


def test_shadow_mode_writes_down_what_it_would_do_and_does_nothing(pve: Proxmox, pve_controller: Controller) -> None:
    pve_controller.policy(mode="shadow")
    run = snapshot(pve_controller)
    assert (run.returncode, run.record["outcome"], run.record["shadow"]) == (0, "planned", True), run.output
    pve_controller.policy()
    run = snapshot(pve_controller, remediate_shadow=True)
    assert (run.record["outcome"], run.record["shadow"], pve.writes()) == ("planned", True, []), run.output
    assert states(pve_controller) == ["shadow", "shadow"]
    run = snapshot(pve_controller)
    assert run.record["outcome"] == "healed", run.output


def test_budgets_and_cooldowns_hold_over_runs(pve: Proxmox, pve_controller: Controller) -> None:
    pve_controller.policy(limits={"cooldown": "1h"})
    assert snapshot(pve_controller, name="one").record["outcome"] == "healed"
    pve.clear()
    denied(snapshot(pve_controller, name="two"), pve, "its cooldown is 1 h")
    pve_controller.policy(limits={"cooldown": "0", "max_per_target": 1})
    denied(snapshot(pve_controller, name="two"), pve, "1 remediations for one target within 1 h, and 1 are allowed")


def test_what_needed_a_human_is_left_alone_until_she_says_so(pve: Proxmox, pve_controller: Controller) -> None:
    pve.fault("GET", "^/nodes/pve2/lxc/201/status/current$", "error", times=-1, after=3, status=500, reason="it is broken")
    run = snapshot(pve_controller, name="one")
    assert (run.returncode, run.record["outcome"]) == (2, "needs_human"), run.output
    left = run.record["id"]
    pve.clear_faults()
    pve.clear()
    frozen = snapshot(pve_controller, name="two")
    denied(frozen, pve, f"it is left alone since remediation {left} needed a human")
    assert frozen.record["why"].endswith(f": homelab.healer.resume -e target={TARGET} ends that")
    wrong = pve_controller.play("homelab.healer.resume", target="pve/lxc/2")
    assert f"the ledger knows {TARGET}" in wrong.output
    assert pve_controller.play("homelab.healer.resume", target=TARGET).returncode == 0
    assert snapshot(pve_controller, name="two").record["outcome"] == "healed"


def test_a_storm_stops_everything_and_names_what_they_have_in_common(pve: Proxmox, pve_controller: Controller) -> None:
    pve_controller.policy(storm={"targets": 3, "window": "1h", "depends_on": {"pve/lxc/*": ["nas"]}})
    for vmid in (200, 201):
        assert snapshot(pve_controller, vmid=vmid).record["outcome"] == "healed"
    pve.clear()
    denied(snapshot(pve_controller, vmid=203), pve, "what they have in common: nas")


@pytest.mark.long
def test_a_backup_is_waited_for_and_its_age_is_shown(pve: Proxmox, pve_controller: Controller) -> None:
    pve.backup([200], seconds=1500)  # fifteen seconds here
    run = snapshot(pve_controller, vmid=200, remediate_backup_pause=2)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert "200 (postgres) waits: a backup of it is running" in run.output
    assert "No backup of it can be seen (" in " ".join(run.output.split())  # as this token may not
    pve_controller.policy(limits={"cooldown": "0", "wait_for_backup": "1s"})
    pve.backup([200], seconds=3000)
    run = snapshot(pve_controller, vmid=200, remediate_backup_pause=2)
    assert run.record["outcome"] == "denied", run.output
    assert "a backup of it has been running" in run.record["why"]


def test_without_a_ledger_or_a_policy_nothing_is_changed(pve: Proxmox, pve_controller: Controller) -> None:
    pve_controller.ledger.mkdir()
    denied(snapshot(pve_controller), pve, "cannot open the ledger")
    pve_controller.ledger.rmdir()
    pve_controller.policy(rules=[{"name": "x", "match": {}, "decision": "yes"}])
    denied(snapshot(pve_controller), pve, "rules[0].decision")
    (pve_controller.folder / "policy.yml").unlink()
    denied(snapshot(pve_controller), pve, "there is no such file")


@pytest.mark.parametrize(
    "given", ["healer_policy=/tmp/other.yml", '{"__remediate_gate": {"word": "allowed"}}', '{"remediate_target": {"id": 1}}', "healer_ledger_host=elsewhere"]
)
def test_extra_variables_decide_nothing(pve: Proxmox, pve_controller: Controller, given: str) -> None:
    run = snapshot(pve_controller, "-e", given)
    assert (run.returncode, pve.writes(), pve_controller.ledger.exists()) == (2, [], False), run.output
    assert "denied: will not take" in run.output


class Listener(http.server.BaseHTTPRequestHandler):
    """Takes messages as an address of the kind json."""

    heard: t.ClassVar[list[dict[str, t.Any]]] = []

    def do_POST(self) -> None:
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: t.Any) -> None:
        """Say nothing."""


@pytest.fixture
def listener() -> t.Iterator[str]:
    Listener.heard.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"json://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_people_are_told_once_for_each_reason(pve: Proxmox, pve_controller: Controller, listener: str) -> None:
    pve_controller.inventory(healer_notify=["json://127.0.0.1:9/", listener])
    run = snapshot(pve_controller)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    (message,) = Listener.heard
    assert message["title"] == "HEALED: 201 (web)"
    assert run.record["head"] in message["message"]
    assert "Not everybody could be told: cannot send to address 0 (json)" in run.output
    pve_controller.policy(limits={"cooldown": "1h"})
    for _ in range(2):
        assert snapshot(pve_controller, name="another").record["outcome"] == "denied"
    assert [message["title"] for message in Listener.heard] == ["HEALED: 201 (web)", "DENIED: 201 (web)"]
    snapshot(pve_controller, "--check")
    assert len(Listener.heard) == 2
