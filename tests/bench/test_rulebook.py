"""From an alert's arrival at the rulebook to the change applied, beside a playbook that only pings, in one run."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from tests.conftest import NO_RULEBOOK
from tests.lab.playbooks import Controller
from tests.lab.postgres import Postgres, blockers, prepared
from tests.lab.rulebook import Rulebook, missing

PINGS, ROUNDS = 4, 20
"""How many times a playbook that only pings it may take."""


def test_a_change_is_applied_soon_after_the_alert(debian_postgres: Postgres, tmp_path: Path, patient: None) -> None:
    """The session that blocks others is ended. The alert is sent as Alertmanager does; each is about a database of its own."""
    if missing():
        pytest.skip(f"{NO_RULEBOOK}: {missing()}: run tests/lab/prepare as root")
    pg = prepared(debian_postgres)
    pg.role("healer", grants=["pg_monitor", "pg_signal_backend"])
    pg.sql("GRANT app TO healer")
    controller = Controller(tmp_path, postgresql=pg.socket_options())
    controller.inventory(pg_blocker_min_wait=1)
    pings, took = [], []
    with Rulebook(controller) as rulebook:
        for number in range(ROUNDS):
            name = f"db{number}"
            pg.database(name, owner="app")
            with blockers(pg, database=name) as blocked:
                began = time.monotonic()
                assert controller.play([{"ansible.builtin.ping": {}}]).returncode == 0
                pings.append(time.monotonic() - began)
                began = time.monotonic()
                assert rulebook.alert({"alertname": "PostgresBlocked", "instance": "db", "database": name}) == 200
                while pg.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", blocked.root):
                    assert time.monotonic() - began < 120, rulebook.told[-4000:]
                    time.sleep(0.02)
                took.append(time.monotonic() - began)
                while len(rulebook.remediations()) <= number or rulebook.remediations()[-1].open:
                    time.sleep(0.1)
    ping, change = statistics.median(pings), statistics.median(took)
    print(f"\nfrom the alert to the change: {change:.2f} s; a playbook that only pings: {ping:.2f} s; {change / ping:.1f} times, median of {ROUNDS}")
    assert [row.state for row in rulebook.remediations()] == ["healed"] * ROUNDS
    assert change <= PINGS * ping
