# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sessions of a PostgreSQL server: what they do, whom they block, what they hold back, and which of them a request means.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import threading
import time
import typing as t
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Denied, HealerError, Invalid, NotFound, Refused, TimedOut
from ansible_collections.homelab.healer.plugins.module_utils._postgresql import APPLICATION, Role, Server
from ansible_collections.homelab.healer.plugins.module_utils._sizes import parse_span

SESSION_ID = "to_hex(trunc(extract(epoch FROM a.backend_start))::bigint) || '.' || to_hex(a.pid)"
"""PostgreSQL's own ID of a session, as %c in its log."""


def span(seconds: float | None) -> str:
    """A number of seconds for a person: ``45 s``, ``32 min``, ``2 h``, ``9 d``."""
    for unit, name in ((172800, "d"), (7200, "h"), (120, "min")):
        if seconds is not None and seconds >= unit:
            return f"{seconds / {'d': 86400, 'h': 3600, 'min': 60}[name]:.0f} {name}"
    return "an unknown time" if seconds is None else f"{max(0, seconds):.0f} s"


@dataclass(frozen=True)
class Holder:
    """Something that keeps VACUUM from removing rows which died since it began.

    ``kind`` is ``session``, ``prepared_transaction``, ``slot`` or ``standby``; ``age`` is the horizon's age in transactions, ``seconds`` for how long it
    has been there, where that is known. ``catalogs``: it holds back the system catalogs only.
    """

    kind: str
    name: str
    pid: int | None
    database: str | None
    user: str | None
    application_name: str | None
    state: str | None
    age: int
    seconds: float | None
    catalogs: bool = False

    def __str__(self) -> str:
        who = "@".join(filter(None, [self.user, self.database]))
        doing = " ".join(filter(None, [self.state, f"for {span(self.seconds)}" if self.seconds is not None else None]))
        details = [f"pid {self.pid}" if self.pid else None, who, doing, "catalogs only" if self.catalogs else None]
        return f"{self.kind.replace('_', ' ')} {self.name} ({', '.join(filter(None, details))})"


HORIZON = f"""
SELECT CASE a.backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END AS kind,
    CASE a.backend_type WHEN 'walsender' THEN a.application_name ELSE coalesce({SESSION_ID}, 'with unknown start') END AS name,
    a.pid, a.datname::text AS database, a.usename::text AS "user", a.application_name, coalesce(a.state, a.backend_type) AS state,
    greatest(age(a.backend_xid), age(a.backend_xmin)) AS age, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds, false AS catalogs
FROM pg_stat_activity a
WHERE (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL) AND a.leader_pid IS NULL AND a.pid <> pg_backend_pid()
    AND a.pid NOT IN (SELECT p.pid FROM pg_stat_progress_vacuum p)
    AND (%(database)s::text IS NULL OR a.datname IS NULL OR a.datname = %(database)s)
UNION ALL
SELECT 'prepared_transaction', gid, NULL, database::text, owner::text, NULL, 'prepared', age(transaction),
    extract(epoch FROM clock_timestamp() - prepared)::float8, false
FROM pg_prepared_xacts WHERE %(database)s::text IS NULL OR database = %(database)s
UNION ALL
SELECT 'slot', slot_name::text, active_pid, database::text, NULL, NULL, CASE WHEN active THEN 'active' ELSE 'inactive' END,
    greatest(age(xmin), age(catalog_xmin)), NULL, xmin IS NULL
FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
ORDER BY age DESC, name
"""
"""A VACUUM's own snapshot holds back nobody, so sessions that vacuum are left out; parallel workers have their leader's. A slot holds back all databases.

Of this collection's sessions only the one that asks is left out: another run's may hold back as much as anybody's."""


def horizon(server: Server, database: str | None) -> list[Holder]:
    """What holds back VACUUM in one database, or in any, the oldest first."""
    rows = server.rows("cannot see what holds back VACUUM", HORIZON, dict(database=database))
    return [Holder(**row) for row in rows]


Network = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
DISABLED = "disabled"
"""The state of a session that does not tell it (track_activities is off)."""
STATES = ("active", "idle", "idle in transaction", "idle in transaction (aborted)", "fastpath function call", DISABLED)
OUTSIDE = ("client backend", "walsender")
"""What serves somebody outside of the server."""
RUNNING = ("active", "fastpath function call")
INCLUDES = ("superusers", "replication", "background", "maintenance", "tools", "own")
TOOLS = (
    "barman*",
    "clusterdb",
    "patroni*",
    "pg_amcheck",
    "pg_basebackup",
    "pg_dump",
    "pg_dumpall",
    "pg_receivewal",
    "pg_recvlogical",
    "pg_repack*",
    "pg_restore",
    "pg_rewind",
    "pg_squeeze*",
    "pgbackrest*",
    "postgres_exporter*",
    "reindexdb",
    "repmgr*",
    "vacuumdb",
    "wal-e*",
    "wal-g*",
    "walg*",
)
"""What backups, clusters and maintenance call themselves."""
POOLERS = ("odyssey*", "pgbouncer*", "pgcat*", "pgpool*", "supavisor*", "* - *:[0-9]*")
"""What poolers call themselves; the last is PgBouncer's application_name_add_host."""
MAINTENANCE = (
    r"^(\s|/\*([^*]|\*+[^*/])*\*+/|--[^\n]*\n)*"
    r"(vacuum|analy[sz]e|cluster|repack|reindex|checkpoint|create\s+(unique\s+)?index|refresh\s+materialized)\M"
)
"""How commands of maintenance begin. One that waits for its lock stands in no view of progress yet."""
FRESH = 0.05
"""Seconds for which a look at the sessions serves all who wait."""

VIEWS = """
SELECT c.relname::text AS name, array_agg(a.attname::text) AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relname ~ '^pg_stat_progress_[a-z_]+$' GROUP BY 1 ORDER BY 1
"""
LISTING = """
SELECT a.pid, {session_id} AS id, a.datname::text AS database, a.usename::text AS "user", a.usesysid IS NOT NULL AS logged_in, a.application_name,
    host(a.client_addr) AS client_addr, a.client_port, a.backend_type, a.leader_pid, a.state, a.backend_start, a.xact_start, a.query_start, a.state_change,
    nullif(concat_ws(': ', a.wait_event_type, a.wait_event), '') AS wait,
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS transaction_age,
    extract(epoch FROM clock_timestamp() - a.query_start)::float8 AS query_age,
    extract(epoch FROM clock_timestamp() - a.state_change)::float8 AS state_age,
    age(a.backend_xmin) AS xmin_age,
    coalesce(r.rolsuper, false) AS superuser, coalesce(r.rolreplication, false) AS replication,
    coalesce(pg_has_role(current_user, a.usesysid, 'USAGE'), false) AS ours,
    a.pid = pg_backend_pid() AS self,
    coalesce(p.command, CASE WHEN a.state = 'active' AND a.query ~* %(maintenance)s THEN 'its statement' END) AS maintenance,
    {blocked_by} AS blocked_by, {waiting} AS waiting,
    CASE WHEN %(queries)s AND a.backend_start IS NOT NULL THEN left(a.query, 1000) END AS query
FROM pg_stat_activity a
    LEFT JOIN pg_roles r ON r.oid = a.usesysid
    LEFT JOIN (SELECT pid, min(command) AS command FROM ({progress}) each GROUP BY pid) p ON p.pid = a.pid
    {locks}
ORDER BY a.backend_start, a.pid
"""
RIGHTS = """
SELECT clock_timestamp() AS at, pg_has_role(current_user, 'pg_signal_backend', 'USAGE') AS signals,
    coalesce((SELECT pg_has_role(current_user, oid, 'USAGE') FROM pg_roles WHERE rolname = 'pg_signal_autovacuum_worker'), false) AS signals_autovacuum
"""
LOCKS = "LEFT JOIN (SELECT pid, min({since}) AS since FROM pg_locks WHERE NOT granted GROUP BY pid) w ON w.pid = a.pid"
SAME_LOCK = ("locktype", "database", "relation", "page", "tuple", "transactionid", "classid", "objid", "objsubid")
PREPARED = """
SELECT gid, owner::text AS owner, database::text AS database, extract(epoch FROM clock_timestamp() - prepared)::float8 AS age
FROM pg_prepared_xacts ORDER BY prepared
"""
PREPARED_BLOCKERS = f"""
SELECT x.gid, x.owner::text AS "user", x.database::text AS database, array_agg(DISTINCT w.pid) AS pids
FROM pg_locks w
    JOIN pg_locks h ON h.granted AND h.pid IS NULL AND {" AND ".join(f"h.{column} IS NOT DISTINCT FROM w.{column}" for column in SAME_LOCK)}
    JOIN pg_locks own ON own.granted AND own.pid IS NULL AND own.locktype = 'transactionid' AND own.virtualtransaction = h.virtualtransaction
    JOIN pg_prepared_xacts x ON x.transaction = own.transactionid
WHERE NOT w.granted
GROUP BY 1, 2, 3
"""


@dataclass(frozen=True)
class Row:
    """One line of the server's activity, with what else decides over it. Ages are in seconds."""

    pid: int
    id: str | None
    """``None`` where the details are hidden from this role."""
    database: str | None
    user: str | None
    logged_in: bool
    application_name: str | None
    client_addr: str | None
    client_port: int | None
    backend_type: str | None
    leader_pid: int | None
    state: str | None
    backend_start: datetime | None
    xact_start: datetime | None
    query_start: datetime | None
    state_change: datetime | None
    wait: str | None
    transaction_age: float | None
    query_age: float | None
    state_age: float | None
    xmin_age: int | None
    superuser: bool
    replication: bool
    ours: bool
    """Whether this role has the rights of the session's user."""
    self: bool
    maintenance: str | None
    blocked_by: t.Sequence[int] | None
    waiting: float | None
    query: str | None

    @property
    def hidden(self) -> bool:
        return self.id is None

    @property
    def told_state(self) -> str | None:
        """The state, as PostgreSQL tells it; a client whose state is empty has track_activities off."""
        return DISABLED if self.state is None and self.backend_type == "client backend" else self.state

    @property
    def running(self) -> bool:
        return self.state in RUNNING

    @property
    def identity(self) -> tuple[str | None, ...]:
        """What the sessions of one pool have in common."""
        return self.user, self.database, self.application_name, self.client_addr

    @property
    def ages(self) -> dict[str, float | None]:
        """For how long it has been in its transaction, in its statement, and idle; each where it is."""
        idle = (self.told_state or "").startswith("idle")
        known = dict(transaction_age=self.transaction_age, query_age=self.query_age if self.running else None, idle_for=self.state_age if idle else None)
        return {name: None if age is None else round(max(0.0, age), 1) for name, age in known.items()}

    def described(self, doing: bool) -> str:
        """``session 6920b1a2.1f3a (pid 8000, app@prod from 10.0.0.5, idle in transaction for 32 min)``"""
        who = "@".join(filter(None, [self.user, self.database])) or self.backend_type or "unknown"
        come = f"{who} from {self.client_addr}" if self.client_addr else who
        state = f"{self.told_state or 'state unknown'}{f' for {span(self.state_age)}' if self.state_age is not None else ''}" if doing else None
        return f"session {self.id or 'with unknown start'} ({', '.join(filter(None, [f'pid {self.pid}', come, state]))})"


@dataclass(frozen=True)
class Prepared:
    """A prepared transaction, and the pids that wait for it directly. It has no process that could be ended."""

    gid: str
    user: str
    database: str
    pids: t.Sequence[int]

    @property
    def key(self) -> str:
        return f"prepared transaction {self.gid}"

    @property
    def advice(self) -> str:
        gid = self.gid.replace("'", "''")
        return f"it has no process that could be ended; if it is abandoned, let {self.user} ROLLBACK PREPARED '{gid}' in the database {self.database}"


@dataclass(frozen=True)
class Listing:
    """All sessions at one moment, and what the role that looked may do."""

    rows: tuple[Row, ...]
    role: Role
    at: datetime
    signals: bool
    signals_autovacuum: bool
    prepared: t.Mapping[str, Prepared] = field(default_factory=dict)
    """The prepared transactions that block, by their names."""

    def began_since(self, identity: tuple[str | None, ...], moment: datetime) -> int:
        """How many sessions with this identity began after a moment."""
        if not hasattr(self, "_starts"):
            starts: dict[t.Any, list[datetime]] = defaultdict(list)
            for row in self.rows:
                if row.backend_start and not row.self:
                    starts[row.identity].append(row.backend_start)
            object.__setattr__(self, "_starts", starts)
        found: list[datetime] = self._starts.get(identity, [])  # type: ignore[attr-defined]
        return sum(start > moment for start in found)

    def roots(self) -> dict[int | str, list[int]]:
        """Who blocks others and waits for nobody: the pid, or the key of a prepared transaction, and the pids that wait for it, also through others.

        A parallel worker that waits makes its leader wait.
        """
        leader = {row.pid: row.leader_pid or row.pid for row in self.rows}
        waits: dict[int | str, set[int | str]] = defaultdict(set)
        waiting: set[int | str] = set()
        for row in self.rows:
            others = set(row.blocked_by or ()) - {leader[row.pid]}
            if others:
                waiting.add(leader[row.pid])
                waits[leader[row.pid]].update(others - {0})
        stuck = {row.pid for row in self.rows if 0 in (row.blocked_by or ())}
        for prepared in self.prepared.values():
            for pid in stuck.intersection(prepared.pids):
                waits[leader[pid]].add(prepared.key)
        behind: dict[int | str, set[int]] = defaultdict(set)
        for waiter, blockers in waits.items():
            for blocker in blockers:
                behind[blocker].add(int(waiter))
        return {root: sorted(_reached(root, behind)) for root in behind if root not in waiting}


def _reached(root: int | str, behind: t.Mapping[int | str, set[int]]) -> set[int]:
    found: set[int] = set()
    ahead: list[int | str] = [root]
    while ahead:
        new = behind.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


MISSING = """
SELECT what, name FROM (
    SELECT 'database' AS what, name FROM unnest(%(databases)s::text[]) name WHERE NOT EXISTS (SELECT FROM pg_database d WHERE d.datname = name)
    UNION ALL
    SELECT 'role', name FROM unnest(%(users)s::text[]) name WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = name)
) missing
"""


def need_to_exist(server: Server, database: str | None, users: t.Sequence[str] | None = None) -> None:
    """Raise ``NotFound`` for what is named and not there: that nobody is found there would be read as that all is well."""
    if database is None and not users:
        return
    values = dict(databases=[] if database is None else [database], users=list(users or ()))
    missing = {(row["what"], row["name"]) for row in server.rows("cannot look for the database and the users", MISSING, values)}
    for kind, asked, lists in (("database", values["databases"], "psql -l"), ("role", values["users"], "psql's \\du")):
        names = [name for name in asked if (kind, name) in missing]
        if names:
            why = f"there is no such {kind}"
            raise NotFound(
                f"cannot look at the sessions of {', '.join(names)}", why=why, fix=f"Names are taken exactly, in upper and lower case; {lists} lists them."
            )


def look(server: Server, blocking: bool, queries: bool = False) -> Listing:
    """All sessions, and with ``blocking`` also who waits for whom. The number of questions does not depend on that of the sessions."""
    what = "cannot look at the sessions"
    views = [row["name"] for row in server.rows(what, VIEWS)]
    since = "coalesce(waitstart, clock_timestamp())" if server.version >= 140000 else "NULL::timestamptz"
    question = LISTING.format(
        session_id=SESSION_ID,
        progress=" UNION ALL ".join(f"SELECT pid, '{name[len('pg_stat_progress_') :].replace('_', ' ')}' AS command FROM {name}" for name in views),
        locks=LOCKS.format(since=since) if blocking else "",
        blocked_by="CASE WHEN w.pid IS NOT NULL THEN pg_blocking_pids(a.pid) END" if blocking else "NULL::int[]",
        waiting="CASE WHEN w.pid IS NOT NULL THEN extract(epoch FROM clock_timestamp() - coalesce(w.since, a.query_start))::float8 END"
        if blocking
        else "NULL::float8",
    )
    (rights,) = server.rows(what, RIGHTS)
    rows = [Row(**row) for row in server.rows(what, question, dict(maintenance=MAINTENANCE, queries=queries))]
    if blocking and server.version < 140000:
        rows = _bounded(rows)
    prepared = [Prepared(**row) for row in (server.rows(what, PREPARED_BLOCKERS) if blocking else ())]
    return Listing(tuple(rows), server.role, prepared={found.key: found for found in prepared}, **rights)


def _bounded(rows: t.Sequence[Row]) -> list[Row]:
    """The same, waiting no longer than one of those has been in its transaction whom they wait for: before PostgreSQL 14 only the statement's age is told."""
    ages = {row.pid: row.transaction_age for row in rows}

    def bounded(row: Row) -> Row:
        known = [ages.get(pid) for pid in row.blocked_by or ()]
        most = [age for age in known if age is not None]
        return replace(row, waiting=min(row.waiting, max(most))) if row.waiting is not None and most and len(most) == len(known) else row

    return [bounded(row) for row in rows]


def excluded(row: Row, users: t.Sequence[str] | None, include: t.Sequence[str] | None) -> dict[str, str]:
    """Why a session must not be ended, by what ``include`` lifts it; nothing where it may be. ``users`` that are named are meant."""
    named = row.user in (users or ())
    reasons = {
        "own": "it is one of this collection's own" if row.application_name == APPLICATION else None,
        "superusers": f"{row.user} is a superuser" if row.superuser and not named else None,
        "replication": "it serves a standby, a subscriber or a backup (walsender)" if row.backend_type == "walsender" else None,
        "background": _background(row),
        "maintenance": f"it is at maintenance ({row.maintenance})" if row.maintenance else None,
        "tools": f"it is a tool's, {row.application_name}" if _called(row, TOOLS) else None,
    }
    if row.replication and not named and not row.superuser:
        reasons["replication"] = reasons["replication"] or f"{row.user} is a user for replication"
    lifted = set(include or ())
    return {kind: why for kind, why in reasons.items() if why and kind not in lifted}


def _background(row: Row) -> str | None:
    if row.backend_type == "client backend" or row.hidden:
        return None if row.logged_in else "it has not logged in yet"
    return None if row.backend_type == "walsender" else f"it is a process of the server ({row.backend_type})"


def _called(row: Row, patterns: t.Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase((row.application_name or "").lower(), pattern) for pattern in patterns)


TextT = t.TypeVar("TextT", str, t.Sequence[str])


def stated(value: TextT) -> TextT:
    """The same text or texts. Raises ``ValueError`` where it is empty."""
    if not value:
        raise ValueError("it is empty, and that is never read as all; leave the option out if nothing is meant by it")
    return value


def networks(texts: t.Sequence[str]) -> tuple[Network | str, ...]:
    """Addresses and networks; ``local`` stays as it is. Raises ``ValueError``."""
    return tuple(text if stated(text) == "local" else ipaddress.ip_network(text) for text in stated(texts))


def session_names(texts: t.Sequence[str]) -> tuple[str, ...]:
    """Pids and session ids. Raises ``ValueError``."""
    for text in stated(texts):
        if not re.fullmatch(r"[1-9][0-9]{0,9}|[0-9a-f]{1,16}\.[0-9a-f]{1,8}", text):
            raise ValueError(f"{text!r} is neither a pid, such as 8000, nor a session id, such as 6920b1a2.1f40")
    return tuple(dict.fromkeys(texts))


def naming(row: Row, names: t.AbstractSet[str]) -> list[str]:
    """Which of these pids and ids mean this session; of one that is hidden only the pid can be told."""
    if row.hidden:
        return [name for name in names if name == str(row.pid) or name.endswith(f".{row.pid:x}")]
    return [name for name in (str(row.pid), str(row.id)) if name in names]


@dataclass(frozen=True)
class Wanted:
    """Which sessions are meant: those that meet all criteria which are given."""

    database: str | None = field(metadata={"parse": stated})
    users: tuple[str, ...] | None
    application_names: tuple[str, ...] | None
    client_addresses: tuple[Network | str, ...] | None = field(metadata={"parse": networks})
    states: tuple[str, ...] | None
    min_idle: float | None = field(metadata={"parse": parse_span})
    min_transaction_age: float | None = field(metadata={"parse": parse_span})
    min_query_age: float | None = field(metadata={"parse": parse_span})
    blocking_only: bool | None
    pids: tuple[str, ...] | None = field(metadata={"parse": session_names})
    include: tuple[str, ...] | None

    def need_a_criterion(self) -> None:
        """Refuse to mean everybody."""
        if all(getattr(self, name) is None or getattr(self, name) is False for name in CRITERIA):
            raise Invalid("will not end sessions", why="no criterion is given, and that is never read as all", fix=f"Give one of {', '.join(CRITERIA)}.")

    def meets_openly(self, row: Row, roots: t.Container[int | str], named: bool) -> bool:
        """Whether it meets those criteria that are judged by what everybody sees; ``named``: whether pids mean it."""
        return (
            self.database in (None, row.database)
            and (self.users is None or row.user in self.users)
            and (self.application_names is None or row.application_name in self.application_names)
            and (not self.blocking_only or row.pid in roots)
            and (self.pids is None or named)
        )

    def meets(self, row: Row) -> bool | None:
        """Whether it meets the other criteria too; ``None`` where its state decides, and it does not tell it."""
        if self.client_addresses is not None and not any(_comes_from(row, network) for network in self.client_addresses):
            return False
        if row.told_state == DISABLED and DISABLED not in (self.states or ()) and (self.states or self._ages):
            return None
        if row.told_state == DISABLED and self._ages:
            return None
        if self.states is not None and row.told_state not in self.states:
            return False
        return all((row.ages[name] or 0) >= least and row.ages[name] is not None for name, least in self._ages.items())

    @property
    def _ages(self) -> dict[str, float]:
        asked = dict(idle_for=self.min_idle, transaction_age=self.min_transaction_age, query_age=self.min_query_age)
        return {name: least for name, least in asked.items() if least is not None}

    def unchanged(self, row: Row) -> dict[str, t.Any]:
        """The columns by which it was chosen, beside its start; if one changes, it is no longer what was meant."""
        columns = ["backend_start"]
        columns += ["application_name"] if self.application_names else []
        columns += ["state", "state_change"] if self.states or self.min_idle is not None else []
        columns += ["xact_start"] if self.min_transaction_age is not None or self.blocking_only else []
        columns += ["state", "query_start"] if self.min_query_age is not None else []
        return {column: getattr(row, column) for column in dict.fromkeys(columns)}


CRITERIA = tuple(name for name in Wanted.__dataclass_fields__ if name != "include")


def _comes_from(row: Row, network: Network | str) -> bool:
    if isinstance(network, str):
        return row.client_port == -1
    return row.client_addr is not None and ipaddress.ip_address(row.client_addr) in network


class Watch:
    """Looks at the sessions for all who wait for one to end, so that they do not each ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = self._took = float("-inf")
        self._there: dict[int, dict[str, t.Any]] = {}

    def there(self, server: Server, fresh: bool = False) -> dict[int, dict[str, t.Any]]:
        """The sessions by their pids, as they were a moment ago, or with ``fresh`` as they are since this was asked."""
        asked = time.monotonic()
        with self._lock:
            if self._began < (asked if fresh else asked - max(FRESH, 4 * self._took)):
                began = time.monotonic()
                rows = server.rows("cannot see which sessions have ended", "SELECT pid, backend_start, state, query_start FROM pg_stat_activity")
                self._there, self._began, self._took = {row["pid"]: row for row in rows}, began, time.monotonic() - began
            return self._there

    def ended(self, server: Server, row: Row, statement: bool, fresh: bool = False) -> bool:
        """Whether a session has ended, or with ``statement`` at least what it was running."""
        now = self.there(server, fresh).get(row.pid)
        if now is None or now["backend_start"] != row.backend_start:
            return True
        return statement and (now["state"] not in RUNNING or now["query_start"] != row.query_start)

    def wait(self, server: Server, row: Row, statement: bool, seconds: float) -> bool:
        """Wait until it has ended, as it was told to; returns whether it has."""
        limit = time.monotonic() + seconds
        try:
            while not self.ended(server, row, statement):
                if time.monotonic() >= limit:
                    return self.ended(server, row, statement, fresh=True)
                time.sleep(FRESH)
        except HealerError as error:
            error.uncertain = True
            raise
        return True


@dataclass(frozen=True)
class Session:
    """A session; two are equal when both are there, or both gone. ``row`` is ``None`` when it is gone, or is a prepared transaction."""

    key: str
    gone: bool
    row: Row | None = field(default=None, compare=False)
    listing: Listing | None = field(default=None, compare=False, repr=False)
    watch: Watch | None = field(default=None, compare=False, repr=False)
    excluded: t.Mapping[str, str] = field(default_factory=dict, compare=False)
    meets: bool | None = field(default=True, compare=False)
    named: bool = field(default=False, compare=False)
    prepared: Prepared | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.row.described(doing=False) if self.row else self.key if self.prepared else f"session {self.key}"


def choose(listing: Listing, wanted: Wanted) -> list[Session]:
    """The sessions that are meant: also those that are excluded, those named that do not meet the rest, and those named that are gone."""
    roots = listing.roots() if wanted.blocking_only else {}
    watch, found, asked = Watch(), [], frozenset(wanted.pids or ())
    seen: set[str] = set()
    for row in listing.rows:
        names = naming(row, asked)
        seen.update(names)
        openly = wanted.meets_openly(row, roots, bool(names))
        why = {"self": "it is the one that would end it"} if row.self else excluded(row, wanted.users, wanted.include)
        if row.hidden:
            if openly and not why:
                found.append(Session(next(iter(names), str(row.pid)), False, row, listing))
            continue
        meets = openly and wanted.meets(row)
        if not names and "background" in why and row.database is None:
            continue  # nobody means the server's own processes by a user's name
        if (names or meets or (meets is None and not why)) and (names or not row.self):
            found.append(Session(str(row.id), False, row, listing, watch, why, meets, bool(names)))
    found += [Session(name, True, listing=listing) for name in wanted.pids or () if name not in seen]
    for prepared in listing.prepared.values() if wanted.pids is None else ():
        if prepared.key in roots and wanted.database in (None, prepared.database) and (wanted.users is None or prepared.user in wanted.users):
            found.append(Session(prepared.key, False, listing=listing, prepared=prepared))
    return found


def need_to_see(sessions: t.Sequence[Session]) -> None:
    """Refuse to choose among sessions that this role cannot see."""
    hidden = [session for session in sessions if session.row and session.row.hidden and session.listing]
    if hidden and hidden[0].listing:
        role, several = hidden[0].listing.role.name, len(hidden) > 1
        raise Denied(
            "cannot tell which sessions are meant",
            why=f"{len(hidden)} that could be {'are' if several else 'is'} hidden from the role {role}",
            fix=f"GRANT pg_read_all_stats TO {role}, or choose by database, users and application_names others than those.",
        )


def need_to_judge(row: Row, what: str, meets: bool | None) -> None:
    """Refuse to pass by a session whose state cannot be known."""
    if meets is None:
        raise Refused(
            what,
            why="its user has track_activities off, so that nobody knows what it does, and it could be one that is meant",
            fix="Set track_activities=on for it, or choose by database, users or application_names so that it is not among them.",
        )


def need_the_right(row: Row, listing: Listing, what: str) -> None:
    """Refuse where the server would not let this role signal the session."""
    role = listing.role
    if role.superuser:
        return
    if row.backend_type == "autovacuum worker":
        if not listing.signals_autovacuum:
            why = f"the role {role.name} is no superuser and has no pg_signal_autovacuum_worker, which is there from PostgreSQL 18 on"
            raise Denied(what, why=why, fix=f"GRANT pg_signal_autovacuum_worker TO {role.name}.")
    elif row.superuser or not row.logged_in:
        whose = f"the superuser {row.user}" if row.superuser else "the server itself"
        raise Denied(what, why=f"it belongs to {whose}, and {role.name} is no superuser", fix="Leave it out, or log in as a superuser.")
    elif not (row.ours or listing.signals):
        why = f"the role {role.name} has neither pg_signal_backend nor the rights of {row.user}"
        raise Denied(what, why=why, fix=f"GRANT pg_signal_backend TO {role.name}, or GRANT {row.user} TO {role.name}.")


def need_not_excluded(session: Session, what: str) -> None:
    """Refuse to end what was named, though it is one of those that are never ended by themselves."""
    if session.excluded:
        lifts = [kind for kind in session.excluded if kind in INCLUDES]
        fix = f"If it is meant, set include to {', '.join(lifts)}." if lifts else "Leave it out."
        raise Refused(what, why=" and ".join(session.excluded.values()), fix=fix)


def facts_of(session: Session) -> dict[str, t.Any]:
    """What a result tells of a session. Never what it runs."""
    row = session.row
    if row is None:
        return dict(result="gone") if session.gone else dict(result="still_there", excluded=[])
    told = dict(
        pid=row.pid,
        user=row.user,
        database=row.database,
        application_name=row.application_name,
        client_addr=row.client_addr,
        state=row.told_state,
        wait=row.wait,
        backend_type=row.backend_type,
        started=row.backend_start and row.backend_start.isoformat(),
        query_started=row.query_start.isoformat() if row.running and row.query_start else None,
    )
    return dict(told, **row.ages, excluded=sorted(session.excluded), result="still_there")


def notes_of(session: Session) -> tuple[str, ...]:
    """Why nothing is done to it, or what should be known of what is."""
    if session.prepared:
        return (session.prepared.advice,)
    if session.row is None:
        return ("it is gone already",)
    if session.meets and session.excluded:
        return (f"it is left alone: {' and '.join(session.excluded.values())} (include: {', '.join(session.excluded)})",)
    if not session.meets:
        return ("it does not meet the other criteria, so it is left alone",)
    if _called(session.row, POOLERS):
        return ("it is a pooler's: whichever client has it now is hit, and the pooler opens another; its own commands (PAUSE, KILL, RECONNECT) do that better",)
    return ()


def end(server: Server, session: Session, wanted: Wanted, mode: str, seconds: float) -> tuple[str, ...]:
    """End a session, or with ``cancel`` what it runs, and wait until it is so; ``escalate`` ends the one if the other does not. Returns notes."""
    row, watch = session.row, session.watch
    if row is None or watch is None:
        raise AssertionError("it is gone, and nothing was planned for it")
    unchanged = wanted.unchanged(row)
    if mode != "terminate" and row.running:
        unchanged.update(state=row.state, query_start=row.query_start)
        if not _signal(server, watch, row, "pg_cancel_backend", unchanged, what=f"cannot cancel the statement of {session.name}", statement=True):
            return ("it ended by itself before it was cancelled",)
        if watch.wait(server, row, True, seconds):
            return ()
        if mode == "cancel":
            fix = "Look what it waits for with homelab.healer.pg_activity_info, or use mode=escalate."
            raise TimedOut(f"cancelled the statement of {session.name}", why=f"it still runs after {seconds:g} s", fix=fix, underway=True)
        notes: tuple[str, ...] = (f"its statement still ran {seconds:g} s after it was cancelled, so the session was ended",)
    else:
        notes = ()
    if not _signal(server, watch, row, "pg_terminate_backend", unchanged, what=f"cannot end {session.name}", statement=bool(notes)):
        return ("it ended by itself before it was signalled",)
    if not watch.wait(server, row, False, seconds):
        raise TimedOut(
            f"told {session.name} to end",
            why=f"it is still there after {seconds:g} s; it may wait for the disk, be in an extension's code, or wait for a synchronous standby",
            fix="Look what it waits for with homelab.healer.pg_activity_info, and give it time. Never kill -9 it: that would end every session of the server.",
            underway=True,
        )
    return notes


def _signal(server: Server, watch: Watch, row: Row, function: str, unchanged: t.Mapping[str, t.Any], *, what: str, statement: bool = False) -> bool:
    """Signal it; returns false where there was nothing left to signal."""
    if server.signal(what, function, row.pid, unchanged):
        return True
    if watch.ended(server, row, statement, fresh=True):
        return False
    why = "it has changed since it was looked at, so it is no longer what was meant, or it is a process that takes no signals"
    raise Conflict(what, why=why, fix="Look again, and run this again if it is still in the way.")


def blockers(listing: Listing) -> list[dict[str, t.Any]]:
    """Who blocks others and waits for nobody, the one that makes others wait for the longest first."""
    rows = {row.pid: row for row in listing.rows}
    told: list[dict[str, t.Any]] = []
    for root, blocked in listing.roots().items():
        row, prepared = rows.get(t.cast(int, root)), listing.prepared.get(t.cast(str, root))
        members = {worker.pid for worker in listing.rows if worker.leader_pid in blocked} | set(blocked)
        longest = max((rows[pid].waiting or 0 for pid in members if pid in rows), default=0)
        if row and row.transaction_age is not None:
            longest = max(0, min(longest, row.transaction_age))
        who = dict(user=prepared.user, database=prepared.database) if prepared else dict(user=row and row.user, database=row and row.database)
        told.append(
            dict(
                who,
                kind="prepared_transaction" if prepared else "session",
                hidden=not prepared and (row is None or row.hidden),
                id=prepared.gid if prepared else row and row.id,
                pid=None if prepared else root,
                state="prepared" if prepared else row and row.told_state,
                blocks=blocked,
                waiting=round(longest, 1),
            )
        )
    return sorted(told, key=lambda one: -one["waiting"])


PROGRESS = {
    "vacuum": ("heap_blks_scanned", "heap_blks_total"),
    "analyze": ("sample_blks_scanned", "sample_blks_total"),
    "create_index": ("blocks_done", "blocks_total"),
    "cluster": ("heap_blks_scanned", "heap_blks_total"),
    "repack": ("heap_blks_scanned", "heap_blks_total"),
}
"""By view of progress: what is done of how much."""
ONE_PROGRESS = """
SELECT p.pid, {command} AS command, p.datname::text AS database, p.relid::bigint AS relation, p.phase, {done} AS done, {total} AS total,
    CASE WHEN p.datname = current_database() THEN p.relid::regclass::text END AS name
FROM pg_stat_progress_{view} p
"""


def progress(server: Server) -> list[dict[str, t.Any]]:
    """How far maintenance has come that runs now. ``share`` is of the present phase or pass, from 0 to 1."""
    what = "cannot see how far maintenance has come"
    there = {row["name"][len("pg_stat_progress_") :]: row["columns"] for row in server.rows(what, VIEWS)}
    each = []
    for view, counters in PROGRESS.items():
        if view in there and (view != "cluster" or "repack" not in there):
            done, total = (f"p.{column}" if column in there[view] else "NULL::bigint" for column in counters)
            command = "p.command" if "command" in there[view] else f"'{view.upper()}'"
            each.append(ONE_PROGRESS.format(view=view, command=command, done=done, total=total))
    rows = server.rows(what, f"{' UNION ALL '.join(each)} ORDER BY pid")
    return [dict(row, share=round(min(1.0, row["done"] / row["total"]), 3) if row["total"] else None) for row in rows]


def told(row: Row, queries: bool) -> dict[str, t.Any]:
    """A session, as pg_activity_info tells it."""
    facts = facts_of(Session(str(row.id), False, row))
    for name in ("excluded", "result"):
        del facts[name]
    facts.update(id=row.id, xmin_age=row.xmin_age, blocked_by=sorted(set(row.blocked_by or ())), maintenance=row.maintenance)
    return dict(facts, query=row.query) if queries else facts


LIMITS = """
SELECT current_setting('max_connections')::int AS max,
    current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved
"""


COUNTED = {"by_state": "told_state", "by_database": "database", "by_user": "user"}


def connections(server: Server, listing: Listing) -> dict[str, t.Any]:
    """How many connections clients may have, and have. Those of standbys are counted elsewhere."""
    (limits,) = server.rows("cannot see how many connections there may be", LIMITS)
    clients = [row for row in listing.rows if row.backend_type == "client backend" or (row.hidden and row.logged_in and row.database)]
    open_to_all = limits["max"] - limits["reserved"]
    by = {name: Counter(getattr(row, column) or "unknown" for row in clients) for name, column in COUNTED.items()}
    counts = {name: dict(sorted(counter.items())) for name, counter in by.items()}
    return dict(limits, used=len(clients), available=max(0, open_to_all - len(clients)), share=round(len(clients) / max(1, open_to_all), 3), **counts)


DATABASES = """
SELECT datname::text AS database, datallowconn AND datconnlimit <> -2 AND has_database_privilege(oid, 'CONNECT') AS connect, datistemplate AS template
FROM pg_database ORDER BY 1
"""
"""A limit of -2 marks what a DROP DATABASE left half done."""
WRAPAROUND = """
SELECT datname::text AS database, age(datfrozenxid) AS xid_age, mxid_age(datminmxid) AS mxid_age FROM pg_database ORDER BY 2 DESC, 1
"""


def activity(server: Server, database: str | None, pids: t.Collection[str] | None, queries: bool) -> dict[str, t.Any]:
    """All that pg_activity_info tells. ``database`` and ``pids`` are whose sessions it tells, ``database`` whose horizon; the rest is the whole server's."""
    need_to_exist(server, database)
    listing = look(server, blocking=True, queries=queries)
    rows = [row for row in listing.rows if not row.self and database in (None, row.database)]
    waits = [row.waiting or 0.0 for row in rows if row.blocked_by is not None]
    rows = [row for row in rows if (naming(row, frozenset(pids)) if pids is not None else row.database or row.backend_type in OUTSIDE)]
    return dict(
        server=dict(version=server.version_name, standby=server.standby),
        role=dict(name=server.role.name, superuser=server.role.superuser, sees_all=server.role.sees_all, may_signal=listing.signals),
        sessions=[told(row, queries) for row in rows],
        found=len(rows),
        waiting=dict(sessions=len(waits), longest=round(max(waits, default=0.0), 1)),
        hidden=sum(row.hidden for row in rows),
        connections=connections(server, listing),
        blockers=blockers(listing),
        horizon=[asdict(holder) for holder in horizon(server, database)],
        progress=progress(server),
        prepared=server.rows("cannot see the prepared transactions", PREPARED),
        databases=server.rows("cannot look at the databases", DATABASES),
        wraparound=server.rows("cannot see how old the databases are", WRAPAROUND),
    )
