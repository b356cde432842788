"""What the gate's decision costs with a long past, inside its module, beside a playbook that only pings, in one run."""

from __future__ import annotations

import contextlib
import statistics
import time
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.homelab.healer.plugins.module_utils import _audit
from ansible_collections.homelab.healer.plugins.module_utils._ledger import connect
from ansible_collections.homelab.healer.plugins.module_utils._run import ask
from ansible_collections.homelab.healer.plugins.modules import remediation_gate
from tests.lab.ledger import Database, Facts, File, Store, chain, fill_with, target, written_policy
from tests.lab.playbooks import Controller
from tests.lab.postgres import prepared

MANY, FEW = 100_000, 5_000
OF_A_PING = 0.1
"""How much of what a playbook takes that only pings the gate's decision may take."""
QUESTIONS = 15


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, asked_for: bool, tmp_path: Path) -> t.Iterator[Store]:
    if request.param == "postgresql" and not asked_for:
        pytest.skip("it takes half a minute: make bench, or --all")
    made: Store = File(tmp_path / "ledger.db") if request.param == "sqlite" else Database(prepared(request.getfixturevalue("debian_postgres")))
    with contextlib.closing(made):
        fill_with(made, MANY if asked_for else FEW)
        yield made


def decisions(store: Store, rules: str) -> dict[str, list[float]]:
    """Seconds that each of the gate's two questions takes, from the request to the answer, by what is asked."""
    took: dict[str, list[float]] = {"the first question": [], "the second": []}

    def timed(name: str, **options: t.Any) -> Facts:
        arguments = dict(remediation_gate.ARGUMENTS)
        params = ArgumentSpecValidator(arguments.pop("argument_spec"), **arguments).validate({"ledger": store.options, **options}).validated_parameters
        request = ask(remediation_gate.Request, params)
        with connect(params, False) as ledger:
            began = time.monotonic()
            answer = remediation_gate.act(ledger, request)
            took[name].append(time.monotonic() - began)
        return answer

    for number in range(QUESTIONS):
        vmid = 300 + number
        whose: Facts = {"remediation": f"new{number}", "remedy": "lxc_memory", "host": "pve", "target": target(vmid), "policy": rules}
        first = timed("the first question", **whose)
        second = timed("the second", **whose, fence=first["fence"], chain=chain(vmid))
        assert (first["word"], second["word"]) == ("allowed", "allowed"), first
    return took


def test_a_decision_takes_less_than_a_tenth_of_a_ping(store: Store, tmp_path: Path) -> None:
    """All that is looked at is looked at: limits that allow it, and all windows as they are by default."""
    rules = str(written_policy(tmp_path, limits={"window": "1h", "cooldown": "1m", **dict.fromkeys(LIMITS, 10_000)}, breaker={"failures": 1000}))
    (tmp_path / "controller").mkdir()
    controller = Controller(tmp_path / "controller")
    pings, took = [], decisions(store, rules)
    for _ in range(3):
        began = time.monotonic()
        assert controller.play([{"ansible.builtin.ping": {}}]).returncode == 0
        pings.append(time.monotonic() - began)
    ping = statistics.median(pings)
    for name, seconds in took.items():
        print(f"{name}: {statistics.median(seconds) * 1000:.1f} ms, at the most {max(seconds) * 1000:.1f} ms; a playbook that only pings: {ping:.2f} s")
        assert statistics.median(seconds) < OF_A_PING * ping
    with store.open() as ledger:
        began = time.monotonic()
        report = _audit.verify(ledger, None)
        print(f"verified {report.entries} entries in {time.monotonic() - began:.1f} s")
    assert report.findings == []


LIMITS = ("max_per_window", "max_per_target", "max_per_node", "max_in_flight", "max_in_flight_per_node")
