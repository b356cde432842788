# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When a table needs a vacuum, what statement that is, and what must be so before a table is rewritten.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import os
import struct
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Denied, Invalid, Refused
from ansible_collections.homelab.healer.plugins.module_utils._postgresql import Server
from ansible_collections.homelab.healer.plugins.module_utils._sessions import Holder, horizon, progress
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Size, parse_size, parse_span
from ansible_collections.homelab.healer.plugins.module_utils._tables import Table, figures, quoted

EMERGENCY = 1_600_000_000
"""The age in transactions from which on only the quickest way to a younger one counts; vacuum_failsafe_age by default."""
STARTING = 30
"""Seconds between a server's writing down its start and the start that it tells."""
OLD_READER = 60
"""Seconds after which a transaction that may still see old rows keeps a table from being rewritten, since its dead rows would be copied."""
HARMLESS = 1000
"""Below how many transactions of age nobody is waited for of whom it is not known since when: a standby that keeps up is always a little behind."""
ADVICE = {
    "session": "Wait for it or end it (homelab.healer.pg_terminate)",
    "prepared_transaction": "Have its owner end it, in its database, with COMMIT PREPARED or ROLLBACK PREPARED",
    "slot": "Repair what reads from that slot or look at the queries there or, if nothing needs it any more, drop it with pg_drop_replication_slot",
    "standby": "Wait for the queries on that standby or end them; it tells of them by hot_standby_feedback",
}
"""What to do about each kind of holder."""
MARGIN, MARGIN_RATIO = Size(64 << 20), 0.05
"""What must stay free on a disk besides what a rewrite needs, at least, and as a part of that."""
FREEZE_MIN_AGE, MXID_FREEZE_MIN_AGE = 50_000_000, 5_000_000
"""PostgreSQL's defaults of how old a row, or its lock, must be before a vacuum freezes it."""
STALE = 0.1
"""Which part of a table's rows must have changed before its statistics are worth being made anew; autovacuum's own default."""


BOUNDS: dict[str, tuple[float, float]] = dict(
    index_workers=(0, 1024),
    buffer_usage_limit=(Size(128 << 10), Size(16 << 30)),
    min_dead_tuples=(0, 1 << 63),
    min_dead_ratio=(0, 1),
    min_bloat_ratio=(0, 1),
    min_xid_age=(0, 1 << 63),
    min_mxid_age=(0, 1 << 63),
    lock_timeout=(0, 86400),
    max_duration=(0, 14 * 86400),
    cost_delay=(0, 100),
)
"""What the server takes, or makes sense."""
ANYWAY = "asked for in any case"
NEXT = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"


@dataclass(frozen=True)
class Wishes:
    """When a table needs a vacuum, and how it is done. Sizes are in bytes, times in seconds, the delay in milliseconds."""

    full: bool
    freeze: bool
    analyze: bool
    truncate: bool
    index_workers: int | None
    buffer_usage_limit: Size | None = field(metadata={"parse": parse_size})
    min_dead_tuples: int
    min_dead_ratio: float
    min_xid_age: int
    min_mxid_age: int
    min_bloat: Size = field(metadata={"parse": parse_size})
    min_bloat_ratio: float
    lock_timeout: float = field(metadata={"parse": parse_span})
    max_duration: float = field(metadata={"parse": parse_span})
    cost_delay: float
    fail_on_blocked_horizon: bool
    assume_free_space: Size | None = field(metadata={"parse": parse_size})


@dataclass(frozen=True)
class Disk:
    """A file system: what tells it from others, and how many bytes of it are free."""

    device: int
    free: Size


@dataclass(frozen=True)
class Lock:
    """Somebody's lock on a table, or on a part of it, an index or its TOAST table."""

    table: int
    mode: str
    part: str | None
    holder: str
    seconds: int | None

    def __str__(self) -> str:
        where, since = f" on {self.part}" if self.part else "", f" since {self.seconds} s" if self.seconds is not None else ""
        return f"{self.holder} has {self.mode}{where}{since}"


@dataclass(frozen=True)
class Site:
    """What is around the tables: the same for all of them."""

    version: int
    standby: bool
    counting: bool
    """Whether the server counts rows (track_counts)."""
    hidden: bool
    """Whether our rights hide what other sessions do."""
    role: str
    xid: int
    """The next transaction's number when it was looked at."""
    wal: bool
    """Whether what is rewritten is written to the log as well."""
    holders: tuple[Holder, ...] = ()
    busy: t.Mapping[int, str] = field(default_factory=dict)
    """Who is at which table already."""
    locks: t.Sequence[Lock] = ()
    spread: t.Mapping[int, t.Mapping[str, int]] = field(default_factory=dict)
    """For each table, how many bytes rewriting it needs in which tablespace's folder."""
    disks: t.Mapping[str, Disk] = field(default_factory=dict)
    """By tablespace's folder (empty for the server's own), and ``wal``; empty where this is not the server's host."""


def look_around(server: Server, tables: t.Sequence[Table], full: bool) -> Site:
    """See what is around these tables, and for a rewrite how much space there is."""
    (facts,) = server.rows(
        "cannot look at the server's settings",
        f"SELECT current_setting('track_counts')::bool AS counting, current_setting('wal_level') <> 'minimal' AS wal, {NEXT} AS xid",
    )
    spread = _spread(server, [table.key for table in tables if table.size is not None]) if full else {}
    places = {table.place for table in tables}.union(*spread.values())
    return Site(
        server.version,
        server.standby,
        facts["counting"],
        not server.role.sees_all,
        server.role.name,
        facts["xid"],
        facts["wal"],
        tuple(horizon(server, server.database)),
        _busy(server),
        _locks(server, [table.key for table in tables]),
        spread,
        _disks(server, places) if full else {},
    )


WORKED_ON = """
SELECT l.pid, coalesce(c.oid, l.relation)::bigint AS relation
FROM pg_locks l LEFT JOIN pg_class c ON c.reltoastrelid = l.relation
WHERE l.locktype = 'relation' AND l.granted AND l.mode <> ALL(%s::text[]) AND l.pid = ANY(%s::int[])
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""What processes have a lock on; that can be seen without rights, unlike what they say that they work on. A TOAST table is its table."""


def _busy(server: Server) -> dict[int, str]:
    """Who is at which table of this database."""
    rows = {row["pid"]: row for row in progress(server) if row["database"] == server.database}
    busy = {row["relation"]: _told(row) for row in rows.values() if row["relation"]}
    for lock in server.rows("cannot look what is worked on", WORKED_ON, (list(WEAK), list(rows))) if rows else ():
        busy.setdefault(lock["relation"], _told(rows[lock["pid"]]))
    return busy


def _told(row: t.Mapping[str, t.Any]) -> str:
    share = f", {100 * row['share']:.0f} % done" if row["share"] is not None else ""
    return f"process {row['pid']} ({', '.join(filter(None, [row['command'], row['phase']]))}{share})"


def how_far(server: Server, pid: int) -> str:
    """How far the maintenance that this process does has come, by the server's progress views; empty if it has not begun."""
    return next((_told(row) for row in progress(server) if row["pid"] == pid), "")


SPREAD = """
WITH wanted AS (SELECT c.oid, c.reltoastrelid AS toast FROM pg_class c WHERE c.oid = ANY(%s::oid[])), part AS (
    SELECT oid AS whole, oid AS relation, false AS sorted FROM wanted UNION ALL SELECT oid, toast, false FROM wanted
    UNION ALL SELECT w.oid, i.indexrelid, true FROM wanted w JOIN pg_index i ON i.indrelid IN (w.oid, w.toast)
)
SELECT p.whole::bigint AS key, pg_tablespace_location(CASE c.reltablespace WHEN 0 THEN d.dattablespace ELSE c.reltablespace END) AS place,
    coalesce(sum(f.size), 0)::bigint AS size, coalesce(max(f.size) FILTER (WHERE p.sorted), 0)::bigint AS sorted
FROM part p JOIN pg_class c ON c.oid = p.relation JOIN pg_database d ON d.datname = current_database()
    CROSS JOIN LATERAL (SELECT sum(pg_relation_size(c.oid, fork)) AS size FROM unnest(ARRAY['main', 'fsm', 'vm', 'init']) fork) f
GROUP BY 1, 2
"""
"""What each table has in which tablespace, with indexes and TOAST, and the largest index there."""
SORTING = """
SELECT DISTINCT pg_tablespace_location(coalesce(s.oid, d.dattablespace)) AS place
FROM pg_database d LEFT JOIN pg_tablespace s
    ON s.spcname::text = ANY(regexp_split_to_array(replace(current_setting('temp_tablespaces'), '"', ''), ' *, *'))
WHERE d.datname = current_database()
"""
"""Where an index may be sorted by means of temporary files."""


def _spread(server: Server, oids: t.Sequence[int]) -> dict[int, dict[str, int]]:
    """How much rewriting each table needs in which tablespace: all of it once more, and its largest index for sorting."""
    spread: dict[int, dict[str, int]] = {}
    largest: dict[int, int] = {}
    for row in server.rows("cannot look where the tables are", SPREAD, (list(oids),)) if oids else ():
        spread.setdefault(row["key"], {})[row["place"]] = row["size"]
        largest[row["key"]] = max(row["sorted"], largest.get(row["key"], 0))
    sorting = [row["place"] for row in server.rows("cannot look where temporary files are", SORTING)]
    for key, needs in spread.items():
        for place in sorting:
            needs[place] = needs.get(place, 0) + largest[key]
    return spread


def _disks(server: Server, places: t.Collection[str]) -> dict[str, Disk]:
    """The free space of the tablespaces and the log, if this is the server's host: proved by the identity and the start that stand in its own files.

    The identity alone is a standby's as well, which has its files at the same place of another host.
    """
    rows = server.rows(
        "cannot look where the data is",
        "SELECT s.setting AS folder, c.system_identifier AS identity, extract(epoch FROM pg_postmaster_start_time())::float8 AS started"
        " FROM pg_settings s, pg_control_system() c WHERE s.name = 'data_directory'",
    )
    try:
        for row in rows:
            with open(os.path.join(row["folder"], "global", "pg_control"), "rb") as control:
                same = struct.unpack("=q", control.read(8))[0] == row["identity"]
            with open(os.path.join(row["folder"], "postmaster.pid"), encoding="utf-8", errors="replace") as running:
                if same and abs(int(running.read().split("\n")[2]) - row["started"]) < STARTING:
                    where = {"wal": os.path.join(row["folder"], "pg_wal"), **{place: place or row["folder"] for place in places}}
                    return {place: _disk(folder) for place, folder in where.items()}
    except (OSError, struct.error, ValueError, IndexError):
        pass  # not on this machine, or not for this user to read: nothing is proved
    return {}


def _disk(folder: str) -> Disk:
    seen = os.statvfs(folder)
    return Disk(os.stat(folder).st_dev, Size(seen.f_bavail * seen.f_frsize))


def why(wishes: Wishes, table: Table) -> tuple[str, ...]:
    """Why a table needs a vacuum; nothing where it does not."""
    if table.kind == "p":
        return ()
    reasons = []
    if table.uncounted and table.most_rows >= wishes.min_dead_tuples:
        reasons.append("its statistics were lost, so nobody knows its dead rows")
    for of, dead, ratio in (("", table.dead, table.dead_ratio), (" in its TOAST table", table.toast_dead, table.toast_dead_ratio)):
        if dead and dead >= wishes.min_dead_tuples and ratio >= wishes.min_dead_ratio:
            reasons.append(f"{dead} dead rows{of}, {100 * ratio:.1f} %")
    if aged(wishes, table):
        reasons.append(f"it is {table.xid_age} transactions and {table.mxid_age} multixacts old")
    if bloated(wishes, table):
        told = f"{table.bloat.size} of its file is bloat, {100 * table.bloat.ratio:.1f} % ({table.bloat.source})" if table.bloat else ANYWAY
        reasons.append(told)
    return tuple(reasons) or ((ANYWAY,) if wishes.min_dead_tuples == wishes.min_dead_ratio == 0 else ())


def bloated(wishes: Wishes, table: Table) -> bool:
    """Whether a table is to be rewritten."""
    if table.bloat is None:
        return wishes.full and wishes.min_bloat == wishes.min_bloat_ratio == 0
    return wishes.full and table.bloat.size >= wishes.min_bloat and table.bloat.ratio >= wishes.min_bloat_ratio


def aged(wishes: Wishes, table: Table) -> bool:
    """Whether it is its age for which a table needs a vacuum."""
    return table.xid_age >= wishes.min_xid_age or table.mxid_age >= wishes.min_mxid_age


def outdated(wishes: Wishes, table: Table) -> bool:
    """Whether the planner's statistics of a table are to be made anew."""
    never = table.last_analyze is None and not table.analyze_count
    return wishes.analyze and (never or table.modified > STALE * max(table.live, table.rows, 0) or table.uncounted)


def check_wishes(wishes: Wishes, version: int) -> None:
    """Raise ``Invalid`` for what no server, or not this one, can do together."""
    what = "cannot vacuum like this"
    for option in ("index_workers", "buffer_usage_limit") if wishes.full else ():
        if getattr(wishes, option) is not None:
            raise Invalid(what, why=f"{option} and full=true exclude each other", fix=f"Leave out one of them; {option} is for a vacuum that does not rewrite.")
    if wishes.buffer_usage_limit is not None and version < 160000:
        raise Invalid(what, why=f"buffer_usage_limit needs PostgreSQL 16, and this is {version // 10000}", fix="Leave it out.")
    for option, (least, most) in BOUNDS.items():
        value = getattr(wishes, option)
        if value is not None and not least <= value <= most:
            raise Invalid(what, why=f"{option} is {value}, and must be between {least} and {most}", fix="Correct the option.")


def statement(wishes: Wishes, table: Table, version: int) -> str:
    """The SQL for one table, names quoted. A rewrite never queues for its lock; it is asked for again instead.

    A rewrite alone leaves the server's count of dead rows as it was, so that it would vacuum once more; ANALYZE counts anew.
    """
    rewrite = bloated(wishes, table)
    only = "ONLY " if version >= 180000 and not rewrite and table.kind != "m" else ""
    if not why(wishes, table):
        return f"ANALYZE {only}{table.sql}"
    if rewrite and version >= 190000 and table.identity and table.kind == "r" and not wishes.freeze:
        return f"REPACK (CONCURRENTLY, ANALYZE) {table.sql}"
    workers, buffers = wishes.index_workers, wishes.buffer_usage_limit
    options = [
        "FULL, SKIP_LOCKED" if rewrite else "",
        "FREEZE" if wishes.freeze else "",
        "ANALYZE" if wishes.analyze or rewrite else "",
        "TRUNCATE FALSE" if not (wishes.truncate or rewrite) else "",
        f"PARALLEL {workers}" if workers is not None else "",
        f"BUFFER_USAGE_LIMIT '{buffers >> 10} kB'" if buffers is not None else "",
    ]
    chosen = ", ".join(filter(None, options))
    return f"VACUUM {f'({chosen}) ' if chosen else ''}{only}{table.sql}"


def settings(wishes: Wishes, table: Table, lock_timeout: float) -> dict[str, str | None]:
    """What the session that does it is set to, times in seconds; nothing where the server's own value is to be, whatever the table before had.

    Age is cured only by a vacuum that looks at every page, and leaves no row that is as old as what asked for it, whatever the server's settings.
    """
    ages = {"vacuum_freeze_table_age": 0, "vacuum_multixact_freeze_table_age": 0}
    ages["vacuum_freeze_min_age"] = min(wishes.min_xid_age // 2, FREEZE_MIN_AGE)
    ages["vacuum_multixact_freeze_min_age"] = min(wishes.min_mxid_age // 2, MXID_FREEZE_MIN_AGE)
    younger = {name: str(age) if aged(wishes, table) else None for name, age in ages.items()}
    return {"lock_timeout": f"{max(1, round(lock_timeout * 1000))}ms", "vacuum_cost_delay": f"{wishes.cost_delay}ms", **younger}


def check_site(site: Site) -> None:
    """Raise ``Refused`` where no table's need can be told."""
    what = "will not vacuum"
    if site.standby:
        raise Refused(what, why="the server is a standby, which only repeats what its primary does", fix="Name the primary.")
    if not site.counting:
        raise Refused(what, why="the server does not count rows (track_counts is off), so the need cannot be told", fix="Turn track_counts on.")


def guard(wishes: Wishes, table: Table, site: Site) -> None:
    """Raise what stands against working on this table at all."""
    what = f"will not vacuum {table.name}"
    if not table.may:
        raise Denied(what, why=f"{site.role} may not: it is {table.owner}'s", fix=_grant(table, site))
    if table.xid_age >= EMERGENCY and (wishes.full or wishes.freeze):
        reason = f"it is {table.xid_age} transactions old, and nothing but a plain vacuum is quick enough to keep the server from stopping to write"
        raise Refused(what, why=reason, fix="Leave out full and freeze.")
    rewrite = bloated(wishes, table)
    if rewrite and table.schema in ("pg_catalog", "information_schema"):
        raise Refused(what, why="full=true on the server's own catalog stops every session", fix="Leave out full.")
    old = [holder for holder in holding(table, site) if _long_there(holder)]
    if rewrite and old:
        reason = f"{old[0]} may still see its dead rows, so they would be copied and nothing be won"
        raise Conflict(what, why=reason, fix=f"{ADVICE[old[0].kind]}, then run this again.{_hidden(old[:1], site)}")


def _long_there(holder: Holder) -> bool:
    """Whether it may go on for long; a standby and a slot tell by their age only."""
    return holder.age >= HARMLESS if holder.seconds is None else holder.seconds >= OLD_READER


def holding(table: Table, site: Site) -> list[Holder]:
    """Who may keep dead rows of this table alive."""
    return [holder for holder in site.holders if not holder.catalogs or table.schema == "pg_catalog"]


def still_held(server: Server, table: Table, site: Site) -> tuple[str, str]:
    """Who has kept alive what was dead already when we looked first, as a sentence, and what to do; both empty where that is nobody."""
    (row,) = server.rows("cannot look how many transactions there were", f"SELECT {NEXT} AS xid")
    now = replace(site, holders=tuple(horizon(server, server.database)))
    older = [holder for holder in holding(table, now) if holder.age > row["xid"] - site.xid]
    if not older:
        return "", ""
    advice = "; ".join(dict.fromkeys(ADVICE[holder.kind] for holder in older[:3]))
    return f"They are kept alive by {' and '.join(map(str, older[:3]))}.{_hidden(older[:3], site)}", f"{advice}. Then run this again."


def _hidden(holders: t.Sequence[Holder], site: Site) -> str:
    """How to learn more of those whose doings our rights hide."""
    hides = site.hidden and any(holder.kind == "session" and holder.state is None for holder in holders)
    return f" GRANT pg_read_all_stats TO {quoted(site.role)} lets this role see what it does." if hides else ""


def still_needed(wishes: Wishes, before: Table, now: Table) -> tuple[str, ...]:
    """Why a table needs a vacuum although it just had one; with thresholds of zero, only if nothing was removed."""
    if wishes.full and wishes.min_bloat == wishes.min_bloat_ratio == 0:
        wishes = replace(wishes, full=False)
    left = tuple(reason for reason in why(wishes, now) if reason != ANYWAY)
    anyway = wishes.min_dead_tuples == 0 and not aged(wishes, now) and not bloated(wishes, now)
    return () if anyway and now.all_dead < max(1, before.all_dead) else left


def unmeasured(wishes: Wishes, table: Table) -> tuple[str, ...]:
    """What to say of a table that might be bloated, and nobody knows."""
    known = not wishes.full or table.bloat or not table.size
    if not known and table.uncounted:
        return ("its bloat cannot be estimated, as its statistics were lost: run this again after it was vacuumed",)
    return () if known else (f"its bloat cannot be estimated: ANALYZE it, and GRANT SELECT ON {table.sql} lets its statistics be seen",)


def _grant(table: Table, site: Site) -> str:
    if site.version >= 170000:
        return f"GRANT MAINTAIN ON {table.sql} TO {quoted(site.role)}, or GRANT pg_maintain TO {quoted(site.role)}."
    return f"GRANT {quoted(table.owner)} TO {quoted(site.role)}: before PostgreSQL 17 only the owner of the table or of the database can vacuum it."


def check_space(wishes: Wishes, tables: t.Sequence[Table], site: Site) -> None:
    """Raise ``Refused`` unless there is proof, or word, of space for rewriting these tables one after the other.

    Needed is in each tablespace what most is of one table, its indexes and TOAST, as the old stays until the new is whole, with room to sort the largest
    index, and all of them for the log.
    """
    what = f"will not rewrite {', '.join(table.name for table in tables)}"
    unknown = [table.name for table in tables if table.size is None]
    if unknown:
        raise Conflict(what, why=f"somebody has {', '.join(unknown)} locked, so the size cannot be told", fix="Wait for it, then run this again.")
    each = [site.spread.get(table.key, {table.place: table.size or 0}) for table in tables]
    needs = {place: max(spread.get(place, 0) for spread in each) for place in {place for spread in each for place in spread}}
    if site.wal:
        needs["wal"] = sum(table.size or 0 for table in tables)
    if wishes.assume_free_space is not None:
        if sum(needs.values()) >= wishes.assume_free_space:
            why_not = f"that needs up to {Size(sum(needs.values()))}, and assume_free_space is {wishes.assume_free_space}"
            raise Refused(what, why=why_not, fix="Make room, rewrite fewer, or correct assume_free_space.")
        return
    if not site.disks:
        fix = "Run this on its host as a user who may read its data (and let the role read settings: pg_monitor), or say how much is free by assume_free_space."
        raise Refused(what, why="this is not known to be the server's host, so its free space cannot be told", fix=fix)
    for device in {disk.device for disk in site.disks.values()}:
        here = [place for place in needs if site.disks[place].device == device]
        need, free = Size(sum(needs[place] for place in here)), min((site.disks[place].free for place in here), default=Size(0))
        margin = Size(max(MARGIN, int(need * MARGIN_RATIO)))
        if need and need + margin >= free:
            why_not = f"that needs up to {need}, besides {margin} that stay free, and {free} are free there"
            raise Refused(what, why=why_not, fix="Make room, or rewrite fewer tables at a time.")


LOCKED_BY = """
WITH wanted AS (SELECT c.oid, c.reltoastrelid AS toast FROM pg_class c WHERE c.oid = ANY(%s::oid[])), part AS (
    SELECT oid AS whole, oid AS relation FROM wanted UNION SELECT oid, toast FROM wanted
    UNION SELECT w.oid, i.indexrelid FROM wanted w JOIN pg_index i ON i.indrelid IN (w.oid, w.toast)
)
SELECT o.whole::bigint AS table, l.mode, CASE WHEN o.relation <> o.whole THEN o.relation::regclass::text END AS part,
    floor(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared)))::int AS seconds,
    CASE WHEN l.pid IS NULL THEN coalesce('prepared transaction ' || x.gid, 'a prepared transaction')
        ELSE format('process %%s (%%s, %%s, %%s)', l.pid, coalesce(a.usename::text, a.backend_type, 'hidden'), coalesce(nullif(a.application_name, ''),
            'without a name'), coalesce(a.state, 'no state')) END AS holder
FROM pg_locks l JOIN part o ON o.relation = l.relation LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_locks p ON l.pid IS NULL AND p.pid IS NULL AND p.locktype = 'transactionid' AND p.virtualtransaction = l.virtualtransaction
    LEFT JOIN pg_prepared_xacts x ON x.transaction = p.transactionid
WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND l.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
ORDER BY o.relation <> o.whole, coalesce(a.xact_start, x.prepared) NULLS LAST
"""
WEAK = ("AccessShareLock", "RowShareLock", "RowExclusiveLock")
"""Locks that keep out a rewrite only: those of reading and writing."""


def _locks(server: Server, oids: t.Sequence[int]) -> list[Lock]:
    return [Lock(**row) for row in server.rows("cannot look who has the tables locked", LOCKED_BY, (list(oids),))] if oids else []


def in_the_way(locks: t.Sequence[Lock], table: Table, rewrite: bool) -> list[Lock]:
    """The locks on a table that keep a vacuum out, or any lock at all, which keeps a rewrite out. One for each holder."""
    first: dict[str, Lock] = {}
    for lock in locks:
        if lock.table == table.key and (rewrite or lock.mode not in WEAK):
            first.setdefault(lock.holder, lock)
    return list(first.values())[:3]


def who_has(server: Server, table: Table, rewrite: bool) -> str:
    """Who keeps a vacuum, or a rewrite, out of a table now, as a sentence."""
    return (
        "; ".join(map(str, in_the_way(_locks(server, [table.key]), table, rewrite)))
        or "whoever held it has let go by now, or holds something else that it needs"
    )


def foretold(wishes: Wishes, table: Table) -> dict[str, t.Any]:
    """The same as a vacuum should leave them; the server alone knows the ages that come, and what a rewrite will free."""
    kept = {"bloat": Size(0), "bloat_ratio": 0.0, "size": "smaller"} if bloated(wishes, table) else {}
    younger = {"xid_age": "younger", "mxid_age": "younger"} if aged(wishes, table) else {}
    return {**figures(table), "dead_tuples": 0, "dead_ratio": 0.0, "toast_dead_tuples": 0, **kept, **younger, "last_vacuum": "now"}
