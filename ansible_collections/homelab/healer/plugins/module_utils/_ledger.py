# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ledger: a write-ahead journal of every remediation, hash-chained, in SQLite or in PostgreSQL.

What happens is an event. An event is appended and never changed; each carries the hash of the one before it. The rows that the gate asks (remediations and
switches) follow from the events alone, so that whoever edits either is found out.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import time
import typing as t
from dataclasses import asdict, dataclass, fields, replace

from ansible_collections.homelab.healer.plugins.module_utils import _postgresql
from ansible_collections.homelab.healer.plugins.module_utils._errors import (
    Conflict,
    Denied,
    HealerError,
    Invalid,
    NotFound,
    Refused,
    TaskFailed,
)

OPEN = ("planned", "asked", "approved", "applying", "verifying", "undoing")
"""States of a remediation that is under way. In the first three nothing has been written to its target."""
UNTOUCHED = OPEN[:3]
ENDS = ("healthy", "healed", "rolled_back", "needs_human", "denied", "shadow")
DEFAULT_PATH = "~/.local/state/homelab.healer/ledger.db"
BUSY_SECONDS = 60
"""How long a writer waits for its turn. Each holds the ledger for milliseconds."""
BACKWARDS = 5.0
"""Seconds by which the clock may be behind the last event before nothing new is begun."""
SCHEMA = "healer"
"""Where a database of PostgreSQL has its tables."""
GENESIS = "0" * 64
"""What stands before the first event."""
OURS = 0x4845414C
"""What a file of SQLite is marked by as a ledger, so that no other application's is taken for one."""

OPTIONS: dict[str, t.Any] = dict(
    ledger=dict(
        type="dict",
        default={},
        options=dict(_postgresql.OPTIONS, login_db=dict(type="str", aliases=["database"]), path=dict(type="path")),
        mutually_exclusive=[("path", "login_db")],
    ),
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE journal (seq BIGINT PRIMARY KEY, at DOUBLE PRECISION NOT NULL, remediation TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
           prev TEXT NOT NULL, hash TEXT NOT NULL)""",
        "CREATE INDEX journal_remediation ON journal (remediation, seq)",
        "CREATE INDEX journal_at ON journal (at)",
        """CREATE TABLE remediations (id TEXT PRIMARY KEY, remedy TEXT NOT NULL, host TEXT NOT NULL, target TEXT NOT NULL, name TEXT NOT NULL,
           node TEXT NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL, rule TEXT NOT NULL, plan_id TEXT NOT NULL, opened DOUBLE PRECISION NOT NULL,
           decided DOUBLE PRECISION, asked DOUBLE PRECISION, answered DOUBLE PRECISION, applied DOUBLE PRECISION, changed DOUBLE PRECISION,
           closed DOUBLE PRECISION, fence BIGINT NOT NULL, until DOUBLE PRECISION NOT NULL, nonce TEXT NOT NULL, expires DOUBLE PRECISION,
           approver TEXT NOT NULL, recurred DOUBLE PRECISION, recovered DOUBLE PRECISION)""",
        "CREATE INDEX remediations_target ON remediations (target, remedy, applied)",
        "CREATE INDEX remediations_begun ON remediations (target, applied)",
        "CREATE INDEX remediations_ended ON remediations (target, closed)",
        "CREATE INDEX remediations_open ON remediations (target, state)",
        "CREATE INDEX remediations_state ON remediations (state)",
        "CREATE INDEX remediations_applied ON remediations (applied)",
        "CREATE INDEX remediations_opened ON remediations (opened)",
        "CREATE INDEX remediations_nonce ON remediations (nonce)",
        "CREATE TABLE switches (name TEXT PRIMARY KEY, at DOUBLE PRECISION NOT NULL, value TEXT NOT NULL)",
        "CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ),
)
"""What makes each version of the schema out of the one before. SQLite and PostgreSQL both read it. Never change one that was released; add another."""

Body = t.Mapping[str, t.Any]
Rows = t.List[t.Tuple[t.Any, ...]]


@dataclass(frozen=True)
class Remediation:
    """What the ledger knows of a remediation at a glance. Times are seconds since 1970 by the ledger's clock, ``None`` for what has not happened.

    ``target`` is the identity that leases, cooldowns and freezes go by; ``fence`` the number of the event that gave the present run its lease, which
    ends at ``until``; ``nonce`` the hash of the secret that an answer must carry, which nobody can answer after ``expires``.
    """

    id: str
    remedy: str
    host: str
    target: str
    name: str
    node: str
    state: str
    why: str = ""
    rule: str = ""
    plan_id: str = ""
    opened: float = 0.0
    decided: float | None = None
    asked: float | None = None
    answered: float | None = None
    applied: float | None = None
    changed: float | None = None
    closed: float | None = None
    fence: int = 0
    until: float = 0.0
    nonce: str = ""
    expires: float | None = None
    approver: str = ""
    recurred: float | None = None
    recovered: float | None = None

    @property
    def open(self) -> bool:
        return self.state in OPEN


COLUMNS = tuple(column.name for column in fields(Remediation))


@dataclass(frozen=True)
class Event:
    """One entry of the journal. ``at`` is when, ``remediation`` whose (empty for a switch), ``prev`` the hash of the entry before."""

    seq: int
    at: float
    remediation: str
    kind: str
    body: str
    prev: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps([self.seq, repr(self.at), self.remediation, self.kind, self.body, self.prev]).encode()).hexdigest()

    @property
    def facts(self) -> dict[str, t.Any]:
        return dict(json.loads(self.body))


STATES = {
    "opened": "planned",
    "asked": "asked",
    "approved": "approved",
    "applying": "applying",
    "verifying": "verifying",
    "undoing": "undoing",
    "refused": "denied",
    "failed": "needs_human",
}
"""The state that an event puts its remediation into; one that closes it names its own."""
TIMES = {
    "decided": "decided",
    "asked": "asked",
    "approved": "answered",
    "applying": "applied",
    "verifying": "changed",
    "closed": "closed",
    "refused": "closed",
    "failed": "closed",
    "recurred": "recurred",
    "taken": "recovered",
}
"""The time that an event notes."""
TOLD = ("why", "rule", "plan_id", "until", "nonce", "expires", "approver")
"""What an event may tell of its remediation."""


def project(row: Remediation | None, event: Event) -> Remediation:
    """What a remediation is after an event. ``row`` is what it was, ``None`` before its first event, which says whose it is."""
    facts = event.facts
    if row is None:
        whose = {name: _column(facts[name]) for name in ("remedy", "host", "target", "name", "node")}
        row = Remediation(id=event.remediation, state="planned", opened=event.at, **whose)
    told: dict[str, t.Any] = {name: _column(facts[name]) for name in TOLD if name in facts}
    if event.kind in ("opened", "taken"):
        told["fence"] = event.seq
    if event.kind in TIMES:
        told[TIMES[event.kind]] = event.at
    state = facts["outcome"] if event.kind == "closed" else STATES.get(event.kind, row.state)
    return replace(row, state=state, **told)


def canonical(value: t.Any) -> str:
    """The one way in which a value is written down and hashed."""
    return _storable(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def _column(value: t.Any) -> t.Any:
    return _storable(value) if isinstance(value, str) else value


def _storable(text: str) -> str:
    """The text as every database takes it: what a server printed may hold a NUL, or bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


class Ledger:
    """A ledger that is open. All that it answers within one ``turn`` is of one moment, and whoever writes has it alone for that time.

    In check mode it takes nothing: what would be appended is told as if it had been.
    """

    def __init__(self, database: _Sqlite | _Postgres, check: bool) -> None:
        self._database = database
        self.dry = check
        self._tail: tuple[int, str, float] | None = None
        self._sure = False

    @contextlib.contextmanager
    def turn(self, writing: bool = True) -> t.Iterator[Ledger]:
        """Read and write as one; all is written at the end, or nothing. Who only reads keeps nobody waiting."""
        self._tail, self._sure = None, False
        with self._database.turn(writing=writing and not self.dry):
            yield self

    def now(self) -> float:
        """The ledger's clock, seconds since 1970 UTC: its host's, or its database server's, which several controllers share."""
        return round(self._database.now(), 6)

    def behind(self) -> float:
        """By how many seconds the clock is behind the latest entry, as after it was set back; 0 where it is not.

        All entries count, not the last alone: what is written while the clock is behind would hide it. Those from before somebody accepted it do not.
        """
        accepted = self.rows("SELECT max(seq) FROM journal WHERE kind = 'switch' AND at = (SELECT at FROM switches WHERE name = 'clock')")[0][0]
        latest = self.rows("SELECT at FROM journal WHERE seq + 0 >= ? ORDER BY at DESC LIMIT 1", accepted or 0)
        return max(0.0, latest[0][0] - self.now()) if latest else 0.0

    def rows(self, question: str, *values: t.Any) -> Rows:
        return self._database.rows(question, values)

    def find(self, condition: str, *values: t.Any) -> list[Remediation]:
        """The remediations for which a condition in SQL holds, which may go on with an order and a limit."""
        return [Remediation(*row) for row in self.rows(f"SELECT {', '.join(COLUMNS)} FROM remediations WHERE {condition}", *values)]

    def get(self, remediation: str) -> Remediation:
        found = self.find("id = ?", remediation)
        if not found:
            raise NotFound(
                f"cannot find remediation {remediation}", why="the ledger has none of that id", fix="homelab.healer.report lists them; give the whole id."
            )
        return found[0]

    def held(self, remediation: str, fence: int, what: str) -> Remediation:
        """The remediation, if the run that asks still has its lease."""
        row, now = self.get(remediation), self.now()
        steps = self.latest(remediation, "decided").get("lines", [])
        flying = f"; what it had begun may still be under way: {'; '.join(steps)}" if row.applied and steps else ""
        if row.fence != fence or not row.open:
            why = f"another run took it over{flying}" if row.fence != fence else f"it has ended: {row.state}{flying}"
            raise Conflict(what, why=why, fix="Nothing more is done here; homelab.healer.report tells how it ended.")
        if not now < row.until:
            raise Conflict(what, why=f"its lease ended {now - row.until:.0f} s ago{flying}", fix="homelab.healer.recover brings it to an end.")
        return row

    def events(self, remediation: str) -> list[Event]:
        """All events of a remediation, the oldest first."""
        question = "SELECT seq, at, remediation, kind, body, prev FROM journal WHERE remediation = ? ORDER BY seq"
        return [Event(*row) for row in self.rows(question, remediation)]

    def latest(self, remediation: str, kind: str) -> dict[str, t.Any]:
        """What the last event of a kind says; nothing where there is none."""
        found = self.rows("SELECT body FROM journal WHERE remediation = ? AND kind = ? ORDER BY seq DESC LIMIT 1", remediation, kind)
        return dict(json.loads(found[0][0])) if found else {}

    def append(self, kind: str, remediation: str = "", at: float | None = None, **body: t.Any) -> Event:
        """Write down what happens, before it happens."""
        if not (self._sure or self.dry):
            self._check_tail()
        seq, before, _at = self._head()
        event = Event(seq + 1, self.now() if at is None else at, remediation, kind, canonical(body), before)
        self._tail = (event.seq, event.hash, event.at)
        if self.dry:
            return event
        self._database.run("INSERT INTO journal (seq, at, remediation, kind, body, prev, hash) VALUES (?, ?, ?, ?, ?, ?, ?)", (*_entry(event), event.hash))
        if kind == "switch":
            self._switch(event)
        elif remediation:
            known = self.find("id = ?", remediation)
            self._store("remediations", "id", asdict(project(known[0] if known else None, event)))
        self._store("notes", "name", {"name": "head", "value": self.head})
        return event

    def forget(self, through: int) -> None:
        """Remove the entries up to this one, and the remediations that they are about. An entry of the kind ``pruned`` says that they were."""
        if not self.dry:
            self._database.run("DELETE FROM remediations WHERE id IN (SELECT remediation FROM journal WHERE seq <= ?)", (through,))
            self._database.run("DELETE FROM journal WHERE seq <= ?", (through,))

    def _check_tail(self) -> None:
        """Go on only after what was written last: a new entry would hide that the last ones were cut."""
        noted, found = self.note("head"), self.head
        if found != (noted or f"0:{GENESIS}"):
            why = f"it ends with {found.partition(':')[0]}, and the last that was written is {noted.partition(':')[0] or 'none'}, or another one of that number"
            fix = "homelab.healer.ledger_verify tells what is wrong. Put a backup in its place, or keep it aside and begin with a new one."
            raise Refused(f"will not write {self._database.name}", why=why, fix=fix)
        self._sure = True

    def _switch(self, event: Event) -> None:
        facts = event.facts
        if facts["value"] is None:
            self._database.run("DELETE FROM switches WHERE name = ?", (facts["name"],))
        else:
            self._store("switches", "name", {"name": facts["name"], "at": event.at, "value": canonical(facts["value"])})

    def _store(self, table: str, key: str, row: t.Mapping[str, t.Any]) -> None:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        kept = ", ".join(f"{name} = excluded.{name}" for name in row if name != key)
        self._database.run(f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {kept}", tuple(row.values()))

    @property
    def head(self) -> str:
        """The last event's number and hash, as ``number:hash``. Who has kept one can prove later that nothing before it was changed."""
        seq, last, _at = self._head()
        return f"{seq}:{last}"

    def _head(self) -> tuple[int, str, float]:
        if self._tail is None:
            found = self.rows("SELECT seq, hash, at FROM journal ORDER BY seq DESC LIMIT 1")
            seq, last, at = found[0] if found else (0, GENESIS, 0.0)
            if not (isinstance(seq, int) and isinstance(at, float)):  # a file of SQLite holds whatever is put there
                fix = "homelab.healer.ledger_verify tells what is wrong. Put a backup in its place."
                raise Refused(f"will not use {self._database.name}", why="its last entry has no number, or no time", fix=fix)
            self._tail = (seq, str(last), at)
        return self._tail

    def switch(self, name: str) -> dict[str, t.Any] | None:
        """What a switch is set to, ``None`` where it is not: ``pause``, ``freeze <target>``, ``cleared <target>``, ``storm`` or ``clock``."""
        found = self.rows("SELECT value FROM switches WHERE name = ?", name)
        return dict(json.loads(found[0][0])) if found else None

    def switches(self) -> dict[str, dict[str, t.Any]]:
        """All switches that are set, by their names, with ``since``."""
        return {name: {**json.loads(value), "since": at} for name, at, value in self.rows("SELECT name, at, value FROM switches ORDER BY name")}

    def turn_switch(self, name: str, value: t.Mapping[str, t.Any] | None) -> None:
        self.append("switch", name=name, value=value)

    def note(self, name: str) -> str:
        """Something to remember that proves nothing, such as how far a chat has been read; empty where there is nothing."""
        found = self.rows("SELECT value FROM notes WHERE name = ?", name)
        return str(found[0][0]) if found else ""

    def keep_note(self, name: str, value: str) -> None:
        if not self.dry:
            self._store("notes", "name", {"name": name, "value": value})


def _entry(event: Event) -> tuple[t.Any, ...]:
    return (event.seq, event.at, event.remediation, event.kind, event.body, event.prev)


@contextlib.contextmanager
def connect(params: t.Mapping[str, t.Any], check: bool, make: bool = True) -> t.Iterator[Ledger]:
    """Open the ledger that the options name, and make or migrate it where that is needed. In check mode nothing is made: a missing one is empty."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(contextlib.closing(_database(params["ledger"], check, make)))
        version, known = database.version(), len(MIGRATIONS)
        if version > known:
            why = f"its schema has version {version}, and this release knows {known}"
            raise Refused(f"cannot use {database.name}", why=why, fix="Update homelab.healer wherever this ledger is used.")
        if version == 0 and (check or not make):
            database = stack.enter_context(contextlib.closing(_Sqlite(None, check=False)))
            check = True
            migrate(database)
        elif version < known and check:
            raise Refused(f"cannot read {database.name}", why="it is of an older release", fix="Run it once without --check, which brings it up to date.")
        elif version < known:
            migrate(database)
        yield Ledger(database, check)


@contextlib.contextmanager
def look(params: t.Mapping[str, t.Any], check: bool) -> t.Iterator[Ledger]:
    """Open the ledger only to read it: where there is none it is empty, and stays so."""
    with connect(params, check, make=False) as ledger:
        yield ledger


def _database(options: t.Mapping[str, t.Any], check: bool, make: bool) -> _Sqlite | _Postgres:
    return _Postgres(options) if options.get("login_db") else _Sqlite(options.get("path") or DEFAULT_PATH, check, make)


def migrate(database: _Sqlite | _Postgres) -> None:
    """Bring the schema to the version that this release knows."""
    with database.turn(writing=True):
        database.prepare()
        version = database.version()  # somebody else may have been faster
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements:
                database.run(statement, ())
            database.set_version(number)


class _Sqlite:
    """A ledger in one file, mode 0600, in a folder of its own. Survives ``kill -9`` and a full disk: SQLite takes back what was not finished."""

    def __init__(self, path: str | None, check: bool, make: bool = True) -> None:
        """``path`` is ``None`` for an empty one in memory. With ``check`` it is only read; without ``make`` none is made."""
        self.path = os.path.realpath(os.path.expanduser(path or ""))
        self.name = f"the ledger {self.path}"
        with self._translated("cannot open"):
            if path is None or not self._is_there(check or not make):
                self._connection = sqlite3.connect(":memory:", isolation_level=None)
                return
            uri = f"file:{self.path.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode={'ro' if check else 'rw'}"
            self._connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._connection.text_factory = _text
                self._connection.execute("PRAGMA synchronous = EXTRA")
                self._check_ours()
                if not check:
                    os.chmod(self.path, 0o600)
            except (sqlite3.Error, OSError, HealerError):
                self._connection.close()
                raise

    def _is_there(self, reading: bool) -> bool:
        """Whether there is a file, which is made where it may be."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            if reading:
                return False
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            return True
        if not stat.S_ISREG(found.st_mode):
            raise Invalid(f"cannot open {self.name}", why="it is not a file", fix="Give the path of a ledger, or of a file that does not exist yet.")
        return True

    def _check_ours(self) -> None:
        """Leave alone what is another application's."""
        ((tables,),) = self.rows("SELECT count(*) FROM sqlite_master", ())
        ((mark,),) = self.rows("PRAGMA application_id", ())  # after the tables: somebody may be making them just now
        if tables and mark != OURS:
            fix = "Give the path of a ledger, or of a file that does not exist yet."
            raise Invalid(f"cannot open {self.name}", why="it is another application's database", fix=fix)

    def now(self) -> float:
        return time.time()

    def version(self) -> int:
        return int(self.rows("PRAGMA user_version", ())[0][0])

    def prepare(self) -> None:
        """Mark the file as a ledger; it has a place for its version already."""
        self.run(f"PRAGMA application_id = {OURS:d}", ())

    def set_version(self, number: int) -> None:
        self.run(f"PRAGMA user_version = {number:d}", ())

    @contextlib.contextmanager
    def turn(self, writing: bool) -> t.Iterator[None]:
        doing = "cannot write" if writing else "cannot read"
        with self._translated(doing):
            self._connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
        try:
            yield
            with self._translated(doing):
                self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # it may have been taken back already, as by a full disk
                self._connection.execute("ROLLBACK")
            raise

    def rows(self, question: str, values: t.Sequence[t.Any]) -> Rows:
        with self._translated("cannot read"):
            return self._connection.execute(question, tuple(values)).fetchall()

    def run(self, statement: str, values: t.Sequence[t.Any]) -> None:
        with self._translated("cannot write"):
            self._connection.execute(statement, tuple(values))

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _translated(self, what: str) -> t.Iterator[None]:
        try:
            yield
        except UnicodeError as error:
            raise Invalid(f"{what} {self.name}", why=str(error), fix="Correct the option that is no text.") from error
        except PermissionError as error:
            why, fix = f"{error.strerror}: {error.filename}", "Run it as the ledger's owner, or give its path by healer_ledger."
            raise Denied(f"{what} {self.name}", why=why, fix=fix) from error
        except OSError as error:
            why, fix = (
                f"{error.strerror}: {error.filename or self.path}",
                "Make room, or give another path by healer_ledger. Nothing is changed without a ledger.",
            )
            raise TaskFailed(f"{what} {self.name}", why=why, fix=fix) from error
        except sqlite3.DatabaseError as error:
            raise _sqlite_failure(f"{what} {self.name}", str(error)) from error


SQLITE: tuple[tuple[str, type[HealerError], str], ...] = (
    ("readonly", Denied, "Run it as the ledger's owner; after a crash the next run without --check puts the file in order."),
    ("unable to open", Denied, "Check the rights of its folder."),
    ("locked", Conflict, "Look who holds the file open for writing, then run this again."),
    ("full", TaskFailed, "Make room on its disk. Nothing is changed without a ledger."),
    ("I/O error", TaskFailed, "Look into the disk that it is on. Nothing is changed without a ledger."),
    ("malformed", TaskFailed, "Put a backup of it in its place, and look into the disk that it is on."),
    ("not a database", Invalid, "Give the path of a ledger, or of a file that does not exist yet."),
)
"""What SQLite's words mean: a phrase, the failure, and what to do."""


def _text(raw: bytes) -> str:
    """What was put there, also where it is no text: whoever put it there is to be found out, and nothing else fails for it."""
    return raw.decode("utf-8", "surrogateescape")


def _sqlite_failure(what: str, said: str) -> HealerError:
    for phrase, failure, fix in SQLITE:
        if phrase in said:
            return failure(what, why=said, fix=fix)
    return TaskFailed(what, why=said, fix="Look whether the file is a ledger of this collection.")


class _Postgres:
    """A ledger that several controllers share, in a database of its own. The server's clock is everybody's."""

    def __init__(self, options: t.Mapping[str, t.Any]) -> None:
        self.name = f"the ledger in database {options['login_db']}"
        settings = dict(search_path=SCHEMA, lock_timeout=f"{BUSY_SECONDS}s", statement_timeout=f"{2 * BUSY_SECONDS}s")
        self._connection = _postgresql.session(options, **settings)
        with contextlib.ExitStack() as opened:
            opened.callback(self._connection.close)
            # What is told as written is on a disk, whatever the database's own setting.
            self.rows("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'", ())
            opened.pop_all()

    def now(self) -> float:
        return float(self.rows("SELECT EXTRACT(EPOCH FROM clock_timestamp())", ())[0][0])

    def version(self) -> int:
        there = self.rows("SELECT to_regclass('schema_version')", ())[0][0]
        return int(self.rows("SELECT coalesce(max(version), 0) FROM schema_version", ())[0][0]) if there else 0

    def set_version(self, number: int) -> None:
        self.run("INSERT INTO schema_version (version) VALUES (?)", (number,))

    @contextlib.contextmanager
    def turn(self, writing: bool) -> t.Iterator[None]:
        self.run(f"BEGIN ISOLATION LEVEL {'READ COMMITTED READ WRITE' if writing else 'REPEATABLE READ READ ONLY'}", ())
        try:
            if writing:
                self.run("SELECT pg_advisory_xact_lock(hashtext('homelab.healer.ledger'))", ())
            yield
            self.run("COMMIT", ())
        except BaseException:
            with contextlib.suppress(HealerError):  # the server takes it back by itself where the connection is lost
                self.run("ROLLBACK", ())
            raise

    def prepare(self) -> None:
        """Make what the versions are noted in."""
        self.run(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}", ())
        self.run(f"CREATE TABLE IF NOT EXISTS {SCHEMA}.schema_version (version BIGINT PRIMARY KEY)", ())

    def rows(self, question: str, values: t.Sequence[t.Any]) -> Rows:
        with _postgresql.translated(f"cannot read {self.name}"), self._connection.cursor() as cursor:
            cursor.execute(question.replace("?", "%s"), tuple(values))
            return list(cursor.fetchall())

    def run(self, statement: str, values: t.Sequence[t.Any]) -> None:
        with _postgresql.translated(f"cannot write {self.name}", writing=True), self._connection.cursor() as cursor:
            cursor.execute(statement.replace("?", "%s"), tuple(values) or None)

    def close(self) -> None:
        self._connection.close()


__all__ = ["OPTIONS", "Event", "Ledger", "Remediation", "connect", "project"]
