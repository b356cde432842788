"""The ledger: what is told as written is there, also after a crash; and whoever edits it is found out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ansible_collections.homelab.healer.plugins.module_utils import _audit, _gate, _ledger
from ansible_collections.homelab.healer.plugins.module_utils._audit import Finding, Report, parse_head, verify
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Denied, HealerError, Invalid, Refused, TaskFailed, Unreachable
from ansible_collections.homelab.healer.plugins.module_utils._ledger import GENESIS, Event, connect
from ansible_collections.homelab.healer.plugins.modules import ledger_prune, ledger_verify, remediation_gate, remediation_info, remediation_pause
from tests.lab.engine import LabError
from tests.lab.ledger import ANYTHING, TABLES, Database, Facts, File, Store, asked, chain, one_remediation, policy, target
from tests.lab.playbooks import ROOT, Controller
from tests.lab.postgres import Postgres, prepared

HOWS = ("healed", "rolled_back", "needs_human", "denied", "shadow", "healed", "open")
DAY = 86400.0
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def write_history(store: Store) -> None:
    """Some remediations of each kind, a switch that is set, one that is not any more, and one that was set anew."""
    for number, how in enumerate(HOWS):
        with store.turn() as ledger:
            one_remediation(ledger, number, how)
    with store.turn() as ledger:
        ledger.turn_switch("pause", {"who": "ann", "why": "film night"})
        ledger.turn_switch("storm", {"targets": ["a"], "cause": ""})
        ledger.turn_switch("storm", None)
        ledger.turn_switch("pause", {"who": "bob", "why": "ünd"})
        ledger.keep_note("telegram", "17")


def report(store: Store, seen: str = "") -> Report:
    with store.open() as ledger:
        return verify(ledger, parse_head(seen) if seen else None)


def findings(store: Store, seen: str = "") -> list[Finding]:
    found = report(store, seen)
    assert found.found >= len(found.findings)
    return list(found.findings)


def head(store: Store) -> str:
    with store.open() as ledger:
        return ledger.head


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> File:
    store = File(tmp_path_factory.mktemp("ledger") / "ledger.db")
    write_history(store)
    return store


@pytest.fixture
def file(written: File, tmp_path: Path) -> t.Iterator[File]:
    """A ledger in a file, with a history."""
    shutil.copy(written.path, tmp_path / "ledger.db")
    with contextlib.closing(File(tmp_path / "ledger.db")) as store:
        yield store


@pytest.fixture(params=["sqlite", "debian", "embedded"])
def store(request: pytest.FixtureRequest) -> t.Iterator[Store]:
    """A ledger of each kind, with a history."""
    if request.param == "sqlite":
        yield request.getfixturevalue("file")
        return
    with contextlib.closing(Database(prepared(request.getfixturevalue(f"{request.param}_postgres")))) as database:
        write_history(database)
        yield database


@pytest.fixture
def database(debian_postgres: Postgres) -> t.Iterator[Database]:
    """An empty ledger in a database."""
    with contextlib.closing(Database(prepared(debian_postgres))) as database:
        yield database


# What was done to it is found and named


def rehash(store: Store, first: int, note: bool = True) -> None:
    """Hash all entries anew from this one on, as somebody would who knows how."""
    ((before,),) = store.sql("SELECT hash FROM journal WHERE seq = ?", first - 1) or [(GENESIS,)]
    number = first - 1
    for seq, at, remediation, kind, body in store.sql("SELECT seq, at, remediation, kind, body FROM journal WHERE seq >= ? ORDER BY seq", first):
        event = Event(seq, at, remediation, kind, body, before)
        store.sql("UPDATE journal SET prev = ?, hash = ? WHERE seq = ?", before, event.hash, seq)
        number, before = seq, event.hash
    if note:
        store.sql("UPDATE notes SET value = ? WHERE name = 'head'", f"{number}:{before}")


def renumber(store: Store, first: int) -> None:
    """Close the gap before this entry."""
    for (seq,) in store.sql("SELECT seq FROM journal WHERE seq >= ? ORDER BY seq", first):
        store.sql("UPDATE journal SET seq = seq - 1 WHERE seq = ?", seq)


def edit(store: Store) -> None:
    store.sql("UPDATE journal SET body = replace(body, 'so it ended', 'so it ever was') WHERE seq = 5")


def edit_and_hash(store: Store) -> None:
    edit(store)
    seq, at, remediation, kind, body, prev = store.sql("SELECT seq, at, remediation, kind, body, prev FROM journal WHERE seq = 5")[0]
    store.sql("UPDATE journal SET hash = ? WHERE seq = 5", Event(seq, at, remediation, kind, body, prev).hash)


def edit_and_hash_all(store: Store) -> None:
    edit(store)
    rehash(store, 5)


def edit_all(store: Store) -> None:
    """The one that nothing but a head finds that was seen before."""
    store.sql("UPDATE journal SET body = replace(body, 'so it ended', 'so it ever was') WHERE seq = 5")
    store.sql("UPDATE remediations SET why = 'so it ever was' WHERE id = 'r00000'")
    rehash(store, 5)


def swap(store: Store) -> None:
    for old, new in ((5, -1), (6, 5), (-1, 6)):
        store.sql("UPDATE journal SET seq = ? WHERE seq = ?", new, old)


def cut(store: Store) -> None:
    store.sql("DELETE FROM journal WHERE seq > (SELECT max(seq) - 2 FROM journal)")


def cut_all(store: Store) -> None:
    cut(store)
    ((seq, last),) = store.sql("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1")
    store.sql("UPDATE notes SET value = ? WHERE name = 'head'", f"{seq}:{last}")
    store.sql("DELETE FROM switches")


def insert(store: Store) -> None:
    ((seq, last),) = store.sql("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1")
    event = Event(seq + 1, 1.5, "r00000", "closed", '{"outcome":"healed","why":"I say so"}', last)
    values = (event.seq, event.at, event.remediation, event.kind, event.body, event.prev, event.hash)
    store.sql("INSERT INTO journal (seq, at, remediation, kind, body, prev, hash) VALUES (?, ?, ?, ?, ?, ?, ?)", *values)


def delete_and_close_the_gap(store: Store) -> None:
    store.sql("DELETE FROM journal WHERE seq = 5")
    renumber(store, 6)
    rehash(store, 5)


def sqls(*statements: str) -> t.Callable[[Store], None]:
    def run(store: Store) -> None:
        for statement in statements:
            store.sql(statement)

    return run


@dataclass(frozen=True)
class Tampering:
    """What is done, and the finding that must be among those that are told: its table, fault, number (negative from the end), and words. ``seen``: only by a head."""

    do: t.Callable[[Store], None]
    table: str
    fault: str
    seq: int
    words: str
    seen: bool = False


TAMPERINGS: dict[str, Tampering] = {
    "an entry is edited": Tampering(edit, "journal", "edited", 5, "entry 5 (closed of remediation r00000) is not what was written"),
    "its time is edited": Tampering(sqls("UPDATE journal SET at = at + 0.000001 WHERE seq = 5"), "journal", "edited", 5, "entry 5 (closed"),
    "its hash is edited": Tampering(sqls(f"UPDATE journal SET hash = '{GENESIS}' WHERE seq = 5"), "journal", "edited", 5, "it, or its hash, was edited"),
    "its hash before is edited": Tampering(sqls(f"UPDATE journal SET prev = '{GENESIS}' WHERE seq = 5"), "journal", "edited", 5, "entry 5"),
    "whose it is is edited": Tampering(sqls("UPDATE journal SET remediation = 'r00001' WHERE seq = 5"), "journal", "edited", 5, "of remediation r00001"),
    "one is edited and hashed": Tampering(edit_and_hash, "journal", "rehashed", 5, "entry 5 is not the one after which 6 was written"),
    "all after it are hashed": Tampering(
        edit_and_hash_all, "remediations", "edited", 0, "why of remediation r00000 is so it ended, and should be so it ever was"
    ),
    "all is hashed, and its row": Tampering(edit_all, "journal", "rehashed", -1, "it, or one before it, was changed and hashed anew", seen=True),
    "one is deleted": Tampering(sqls("DELETE FROM journal WHERE seq = 5"), "journal", "missing", 5, "entry 5 is missing"),
    "the first is deleted": Tampering(sqls("DELETE FROM journal WHERE seq = 1"), "journal", "missing", 1, "entry 1 is missing"),
    "many are deleted": Tampering(sqls("DELETE FROM journal WHERE seq BETWEEN 5 AND 9"), "journal", "missing", 5, "entries 5 to 9 are missing"),
    "one is deleted and the gap closed": Tampering(delete_and_close_the_gap, "remediations", "edited", 0, "of remediation r00000"),
    "all are deleted": Tampering(sqls("DELETE FROM journal"), "journal", "cut", 1, "entries 1 to {last} are missing at the end"),
    "two are exchanged": Tampering(swap, "journal", "moved", 6, "entry 6 (closed of remediation r00000) was written as 5"),
    "the end is cut": Tampering(cut, "journal", "cut", -2, "entries {cut} to {last} are missing at the end"),
    "the end is cut, and it is forgotten": Tampering(cut_all, "journal", "cut", -2, "{last} was the last when the head was seen", seen=True),
    "one is appended": Tampering(
        insert, "journal", "inserted", 0, "the ledger remembers {last} as its last entry; those from {next} to {next} are not its own"
    ),
    "a row is edited": Tampering(
        sqls("UPDATE remediations SET state = 'healed' WHERE id = 'r00002'"),
        "remediations",
        "edited",
        0,
        "state of remediation r00002 is healed, and should be needs",
    ),
    "a time is set": Tampering(
        sqls("UPDATE remediations SET applied = NULL WHERE id = 'r00000'"), "remediations", "edited", 0, "applied of remediation r00000"
    ),
    "a row is deleted": Tampering(sqls("DELETE FROM remediations WHERE id = 'r00001'"), "remediations", "missing", 6, "remediation r00001 is missing"),
    "a row is renamed": Tampering(
        sqls("UPDATE remediations SET id = 'x' WHERE id = 'r00001'"), "remediations", "inserted", 0, "the journal knows no remediation x"
    ),
    "a switch is edited": Tampering(sqls("UPDATE switches SET value = '{}'"), "switches", "edited", 0, "value of switch pause is {}, and should be"),
    "a switch is turned off": Tampering(sqls("DELETE FROM switches"), "switches", "missing", 0, "switch pause is not set"),
    "a switch is turned on": Tampering(sqls("INSERT INTO switches VALUES ('clock', 1.5, '{}')"), "switches", "inserted", 0, "switch clock is set"),
    "the head is forgotten": Tampering(sqls("DELETE FROM notes"), "journal", "inserted", 1, "remembers 0"),
    "the head is edited": Tampering(sqls("UPDATE notes SET value = 'x' WHERE name = 'head'"), "notes", "edited", 0, "cannot be read"),
}


def test_what_was_done_to_it_is_found_and_named(store: Store) -> None:
    """All of them on copies of one history, each put back by what the tables held."""
    held = {table: store.rows(table) for table in TABLES}
    seen = head(store)
    last = int(seen.partition(":")[0])
    assert (findings(store), findings(store, seen)) == ([], [])
    for name, tampering in TAMPERINGS.items():
        tampering.do(store)
        found = findings(store, seen if tampering.seen else "")
        seq = tampering.seq if tampering.seq >= 0 else last + 1 + tampering.seq
        words = tampering.words.replace("{last}", str(last)).replace("{cut}", str(last - 1)).replace("{next}", str(last + 1))
        told = [one for one in found if (one.table, one.fault) == (tampering.table, tampering.fault) and words in one.what]
        assert any(seq in (0, one.seq) for one in told), (name, found)
        assert not tampering.seen or findings(store) == [] or name == "the end is cut, and it is forgotten"
        assert findings(store, seen), name
        for table, rows in held.items():
            store.fill(table, rows)
    assert findings(store, seen) == []
