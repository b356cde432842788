"""What the report costs with a hundred thousand remediations in the ledger, beside a playbook that only pings, in one run."""

from __future__ import annotations

import contextlib
import sqlite3
import statistics
import time
import typing as t
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._ledger import COLUMNS, Event, canonical, connect
from ansible_collections.homelab.healer.plugins.modules import remediation_info
from tests.lab.history import month
from tests.lab.ledger import File
from tests.lab.playbooks import Controller, Run

MANY = 100_000
SECONDS = 5.0
"""What the figures of 30 days may take of a processor, of the module alone."""
RATIO = 10.0
TIMES = ("opened", "decided", "asked", "answered", "applied", "changed", "closed", "until", "expires", "recurred")


def multiply(path: Path, many: int) -> None:
    """Fill a ledger up to so many remediations that all began within the last 30 days: those of a month over and over, a bit earlier and elsewhere."""
    with connect({"ledger": {"path": str(path)}}, check=False) as ledger:
        month(ledger, time.time())
        rows = ledger.find("opened > ? ORDER BY opened", time.time() - 30 * 86400)
        known = [(row, [event for event in ledger.events(row.id) if event.kind != "recurred"]) for row in rows]
        seq, last = ledger.head.split(":")
    entries, found = [], []
    for number in range(many - len(known)):
        row, events = known[number % len(known)]
        earlier, target = number * 37 % 30000, f"{row.target}-{number % 997}" if row.target else ""
        times: dict[str, t.Any] = {name: None if getattr(row, name) is None else getattr(row, name) - earlier for name in TIMES}
        found.append((astuple(replace(row, id=f"{row.id}-{number}", target=target, **times)), times["opened"]))
        first = canonical({**events[0].facts, "target": target})
        told = [first, *(event.body for event in events[1:])]
        entries += [(event.at - earlier, f"{row.id}-{number}", event.kind, body) for event, body in zip(events, told, strict=True)]
    with contextlib.closing(sqlite3.connect(path)) as client:
        for at, whose, kind, body in sorted(entries, key=lambda entry: entry[0]):
            event = Event(int(seq) + 1, at, whose, kind, body, last)
            seq, last = str(event.seq), event.hash
            client.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", (event.seq, at, whose, kind, body, event.prev, last))
        marks = ", ".join("?" * len(COLUMNS))
        client.executemany(f"INSERT INTO remediations ({', '.join(COLUMNS)}) VALUES ({marks})", [row for row, _opened in sorted(found, key=lambda one: one[1])])
        client.execute("UPDATE notes SET value = ? WHERE name = 'head'", (f"{seq}:{last}",))
        client.commit()


def _ping(controller: Controller) -> Run:
    return controller.play([{"ansible.builtin.ping": {}}])


def _report(controller: Controller) -> Run:
    paths = {"report_path": str(controller.folder / "report.html"), "report_metrics_path": str(controller.folder / "healer.prom")}
    return controller.play("homelab.healer.report", **paths)  # type: ignore[arg-type]


@pytest.mark.usefixtures("patient")
def test_a_hundred_thousand_remediations_are_reported_in_time(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    multiply(controller.ledger, MANY)
    ledger = File(controller.ledger)
    began = time.process_time()
    answer = ledger.ask(remediation_info, since="30d", limit=300, gather=["figures", "details"])
    busy = time.process_time() - began
    assert answer["found"] == MANY
    assert sum(answer["figures"]["outcomes"].values()) == answer["found"]
    print(f"figures of 30 days with {MANY} remediations, and 300 of them in detail: {busy:.2f} s of a processor")
    took: dict[str, list[float]] = {"ping": [], "report": []}
    for _round in range(3):
        for kind, seconds in took.items():
            began = time.monotonic()
            run = _ping(controller) if kind == "ping" else _report(controller)
            seconds.append(time.monotonic() - began)
            assert run.returncode == 0, run.output
    ratio = statistics.median(took["report"]) / statistics.median(took["ping"])
    print(f"the report as a page and as metrics: {ratio:.1f} times a playbook that only pings (median of 3, in turn)")
    assert busy < SECONDS
    assert ratio < RATIO
