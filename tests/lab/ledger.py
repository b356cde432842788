"""Ledgers of the lab: a file of SQLite or a database of PostgreSQL, written as the chain writes them, and reached past the collection."""

from __future__ import annotations

import abc
import contextlib
import json
import sqlite3
import typing as t
from dataclasses import astuple
from pathlib import Path

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

from ansible_collections.homelab.healer.plugins.module_utils import _gate
from ansible_collections.homelab.healer.plugins.module_utils._ledger import GENESIS, OPTIONS, Event, Ledger, Remediation, canonical, connect, project
from ansible_collections.homelab.healer.plugins.module_utils._policy import Policy, read
from ansible_collections.homelab.healer.plugins.plugin_utils.ledger import here
from tests.lab.postgres import Postgres

Facts = t.Dict[str, t.Any]
ALLOWED: Facts = {"name": "the lab", "match": {}, "decision": "auto", "max_growth": 100000, "max_shrink": 100}
PLENTY = dict.fromkeys(("max_per_window", "max_per_target", "max_per_node", "max_in_flight", "max_in_flight_per_node"), 100000)
ANYTHING: Facts = {
    "version": 1,
    "limits": {**PLENTY, "cooldown": "0"},
    "breaker": {"failures": 100000},
    "storm": {"targets": 100000},
    "rules": [ALLOWED],
}
"""A policy that allows everything at once and at any time."""
TABLES = {"journal": "seq", "remediations": "id", "switches": "name", "notes": "name"}
"""The tables that prove each other, and what a row is known by."""


def policy(**sections: t.Any) -> Policy:
    """That policy with other sections."""
    return read(json.dumps({**ANYTHING, **sections}), "the lab's policy")


def written_policy(folder: Path, **sections: t.Any) -> Path:
    """The same in a file."""
    path = folder / "policy.yml"
    path.write_text(json.dumps({**ANYTHING, **sections}))
    return path


def target(vmid: int = 201, **more: t.Any) -> Facts:
    """What the chain knows of a container."""
    facts: Facts = {"kind": "lxc", "id": vmid, "name": f"{vmid} (lab)", "node": "pve1", "tags": [], "pool": "", "hostname": "lab", "backup": {"running": False}}
    return {**facts, **more}


def asked(**more: t.Any) -> Facts:
    """How the gate is asked."""
    told: Facts = {"problem": "it is ill", "run": {"user": "ann"}, "lease": 3600.0, "waited": 0.0, "shadow": False, "only_plans": ["any"]}
    return {**told, "pause_file": "/nonexistent/pause", **more}


def chain(vmid: int = 201, memory: int = 1024, was: int = 512, **more: t.Any) -> Facts:
    """A plan as the chain has it, with all that goes with it."""
    step: Facts = {"purpose": "change", "module": "homelab.healer.lxc_resources", "args": {"vmid": [vmid], "memory": memory}, "changed": True}
    step.update(before={str(vmid): {"memory": was}}, after={str(vmid): {"memory": memory}}, reversibility="exact")
    step.update({"steps": [f"give {vmid} {memory} MiB"], "results": [], **more})
    undo = [{"purpose": "change", "module": step["module"], "args": {"vmid": [vmid], "memory": was}}]
    return {"plan": [step], "undo": undo, "point_of_return": [], "probes": [], "baseline": [], "settings": {}}


class Store(abc.ABC):
    """Where a ledger is, the options for it, and a way past it to its tables."""

    options: Facts

    @abc.abstractmethod
    def sql(self, statement: str, *values: t.Any) -> list[tuple[t.Any, ...]]:
        """Do to its tables what nobody should; ``?`` stands for a value."""

    def fill(self, table: str, rows: t.Sequence[tuple[t.Any, ...]]) -> None:
        """Put these rows in the place of a table's own."""
        self.sql(f"DELETE FROM {table}")
        if rows:
            marks = f"({', '.join('?' * len(rows[0]))})"
            self.sql(f"INSERT INTO {table} VALUES {', '.join([marks] * len(rows))}", *(value for row in rows for value in row))

    @contextlib.contextmanager
    def open(self, check: bool = False) -> t.Iterator[Ledger]:
        validated = ArgumentSpecValidator(OPTIONS).validate({"ledger": self.options})
        assert not validated.error_messages, validated.error_messages
        with connect(validated.validated_parameters, check) as ledger:
            yield ledger

    @contextlib.contextmanager
    def turn(self) -> t.Iterator[Ledger]:
        with self.open() as ledger, ledger.turn():
            yield ledger

    def ask(self, module: t.Any, check: bool = False, **options: t.Any) -> Facts:
        """What a module of the ledger answers, asked as its action plugin asks it."""
        return here(module, {"ledger": self.options, **json.loads(json.dumps(options))}, check)

    def rows(self, table: str) -> list[tuple[t.Any, ...]]:
        return self.sql(f"SELECT * FROM {table} ORDER BY 1")

    @abc.abstractmethod
    def insert(self, table: str, rows: t.Sequence[tuple[t.Any, ...]]) -> None:
        """Add many rows at once."""

    @abc.abstractmethod
    def columns(self, table: str) -> list[str]: ...

    @abc.abstractmethod
    def close(self) -> None: ...


class File(Store):
    """A ledger in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.options = {"path": str(path)}
        self._client: sqlite3.Connection | None = None

    def sql(self, statement: str, *values: t.Any) -> list[tuple[t.Any, ...]]:
        if self._client is None:
            self._client = sqlite3.connect(self.path, isolation_level=None, timeout=60)
            self._client.execute("PRAGMA synchronous = OFF")
        return self._client.execute(statement, values).fetchall()

    def insert(self, table: str, rows: t.Sequence[tuple[t.Any, ...]]) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as client, client:
            client.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)

    def columns(self, table: str) -> list[str]:
        return [str(row[1]) for row in self.sql(f"PRAGMA table_info({table})")]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


class Database(Store):
    """A ledger in a database, of a role that owns it."""

    def __init__(self, server: Postgres, name: str = "ledger", user: str = "healer") -> None:
        self.server, self.name = server, name
        server.database(name, user)
        self.options = server.options(user, login_db=name)
        self._client: Connection | None = None

    def sql(self, statement: str, *values: t.Any) -> list[tuple[t.Any, ...]]:
        if self._client is None or self._client.closed:
            self._client = self.server.connect(self.name, options="-c search_path=healer,pg_catalog")
        with self._client.cursor() as cursor:
            cursor.execute(statement.replace("?", "%s"), values or None)
            return cursor.fetchall() if cursor.description else []

    def insert(self, table: str, rows: t.Sequence[tuple[t.Any, ...]]) -> None:
        with contextlib.closing(self.server.connect(self.name, options="-c search_path=healer,pg_catalog")) as client, client.cursor() as cursor:
            execute_values(cursor, f"INSERT INTO {table} VALUES %s", rows, page_size=1000)
            cursor.execute(f"ANALYZE {table}")

    def columns(self, table: str) -> list[str]:
        question = "SELECT attname FROM pg_attribute WHERE attrelid = ?::regclass AND attnum > 0 ORDER BY attnum"
        return [str(name) for (name,) in self.sql(question, table)]

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def one_remediation(ledger: Ledger, number: int, how: str = "healed", rules: Policy | None = None) -> str:
    """A whole remediation, in the turn that the ledger is in: ``healed``, ``rolled_back``, ``needs_human``, ``denied``, ``shadow`` or ``open``."""
    name, vmid = f"r{number:05}", 200 + number % 7
    whose: Facts = {"remediation": name, "remedy": "lxc_memory", "host": "pve"}
    allowed = rules or policy()
    first = _gate.admit(ledger, allowed, **whose, facts=target(vmid), request=asked())
    if how == "denied" or first["word"] != "allowed":
        if first["word"] == "allowed":
            _gate.close(ledger, ledger.get(name), "denied", "the plan is not what was asked for", {})
        return name
    request = asked(shadow=how == "shadow")
    second = _gate.decide(ledger, allowed, **whose, fence=first["fence"], facts=target(vmid), chain=chain(vmid), request=request)
    if second["word"] == "allowed" and how != "open":
        ledger.append("verifying", name, until=ledger.now() + 60)
        if how == "rolled_back":
            ledger.append("undoing", name, until=ledger.now() + 60, reason="it did not help")
        _gate.close(ledger, ledger.held(name, first["fence"], "test"), how, "so it ended", {"looks": [[1, 2.5, "ü"]]})
    return name


def fill_with(store: Store, remediations: int, every: float = 300.0) -> None:
    """Write so many remediations at once, one ``every`` seconds up to now, half of them of the container 300: a chain as valid as one that took years."""
    with store.open() as ledger:
        began = ledger.now() - remediations * every
    entries: list[tuple[t.Any, ...]] = []
    rows: list[tuple[t.Any, ...]] = []
    digest, opened = GENESIS, began
    for number in range(remediations):
        opened = began + number * every
        vmid, name = 300 + (number * 7919 % 200) * (number % 2), f"{number:08}-aaaa"
        whose: Facts = {"remedy": REMEDIES[number % len(REMEDIES)], "host": "pve", "target": f"pve/lxc/{vmid}", "name": f"{vmid} (lab)"}
        whose.update(node=f"pve{vmid % 3}", facts=target(vmid), checks=[], problem="it is ill", run={"user": "ann"})
        step = {"purpose": "change", "module": "homelab.healer.lxc_resources", "args": {"vmid": [vmid], "memory": 1024}, "steps": ["x" * 40]}
        told: list[tuple[str, Facts]] = [
            ("opened", {**whose, "until": opened + 3600}),
            ("decided", {"plan_id": "0" * 64, "rule": "the lab", "chain": {"plan": [step], "probes": [], "undo": []}, "until": opened + 3600}),
            ("applying", {"until": opened + 3600}),
            ("closed", {"outcome": ("healed", "healed", "rolled_back", "healed")[number % 4], "why": "so it ended"}),
        ]
        row: Remediation | None = None
        for place, (kind, body) in enumerate(told):
            event = Event(len(entries) + 1, round(opened + place, 6), name, kind, canonical(body), digest)
            digest, row = event.hash, project(row, event)
            entries.append((event.seq, event.at, event.remediation, event.kind, event.body, event.prev, digest))
        rows.append(astuple(row) if row else ())
    store.insert("journal", entries)
    store.insert("remediations", rows)
    store.insert("notes", [("head", f"{len(entries)}:{digest}")])


REMEDIES = ("lxc_memory", "lxc_cpu", "lxc_restart")
