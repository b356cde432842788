# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables of PostgreSQL: how they are named, found and measured.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import math
import re
import typing as t
from dataclasses import dataclass, field, replace
from datetime import datetime

from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Denied, Invalid, NotFound, Refused
from ansible_collections.homelab.healer.plugins.module_utils._postgresql import LONGEST, Server
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Size

PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)', re.DOTALL)
EMPTY = "it is empty, and that is never read as all; leave the option out if nothing is meant by it"
VACUUMABLE = ("r", "m", "p")
"""Tables, materialised views, and partitioned tables, whose partitions are meant."""
KINDS = {
    "v": "a view",
    "f": "a foreign table",
    "i": "an index",
    "I": "an index",
    "S": "a sequence",
    "c": "a type",
    "t": "a TOAST table, which goes with its table",
}
TOLD_KINDS = {"r": "table", "m": "materialized view", "p": "partitioned table"}
PAGE_HEADER, POINTER, ROW_HEADER = 24, 4, 23
"""Bytes that PostgreSQL's storage has for a page's header, for the pointer to a row in it, and for a row's header without the map of its nulls."""
ALIGN = {"c": 1, "s": 2, "i": 4, "d": 8}
SHORT = 127
"""A value of variable length below this many bytes is not aligned."""
SMALL_ROW, LARGE_ROW = 32, 8192
"""Bytes that a row has at least, and at most: no page is without rows in a table that was never vacuumed."""
EXACT_SECONDS = 3600
"""For how long tables may be read to measure them exactly."""
TRIES = 3


@dataclass(frozen=True, order=True)
class Name:
    """A table as a person names it: exactly as it is in the catalog, upper and lower case told apart."""

    relation: str
    schema: str = ""

    def __str__(self) -> str:
        return ".".join(_written(part) for part in (self.schema, self.relation) if part)


def _written(part: str) -> str:
    return quoted(part) if "." in part or '"' in part else part


def quoted(*parts: str) -> str:
    """A name as SQL takes it without folding, whatever its letters."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def parse_name(text: str) -> Name:
    """Read ``events``, ``public.events`` or ``"a.b"."c"``. Nothing is folded to lower case. Raises ``ValueError``."""
    parts, at = [], 0
    while True:
        match = PART.match(text, at)
        if not match:
            raise ValueError(f"{text!r} is no name of a table; it is written as table or schema.table, in double quotes where a part has a dot or a quote")
        parts.append(match[1].replace('""', '"') if match[1] else match[2])
        at = match.end()
        if at == len(text):
            break
        if text[at] != ".":
            raise ValueError(f"{text!r} is no name of a table; a part with a quote is written in double quotes, with each quote in it doubled")
        at += 1
    if len(parts) > 2:
        raise ValueError(f"{text!r} has more than two parts; the database is an option of its own")
    for part in parts:
        _check_part(part)
    return Name(parts[-1], *parts[:-1])


def _check_part(part: str) -> None:
    if not part or "\0" in part or len(part.encode("utf-8", "replace")) > LONGEST:
        raise ValueError(f"{part!r} cannot be a name: it is empty, longer than {LONGEST} bytes, or has a zero byte")


def parse_schemas(texts: t.Sequence[str]) -> tuple[str, ...]:
    """Names of schemas, each as it is. Raises ``ValueError``, also for an empty list, which is never read as all."""
    if not texts:
        raise ValueError(EMPTY)
    for text in texts:
        _check_part(text)
    return tuple(dict.fromkeys(texts))


def parse_names(texts: t.Sequence[str]) -> tuple[Name, ...]:
    """The same for a list. Raises ``ValueError``, also for an empty list, which is never read as all."""
    if not texts:
        raise ValueError(EMPTY)
    return tuple(dict.fromkeys(parse_name(text) for text in texts))


@dataclass(frozen=True)
class Bloat:
    """What of a table's own file (without indexes and TOAST) its rows do not need: dead rows, and space that new ones may use."""

    size: Size
    ratio: float
    source: str
    """``exact`` by pgstattuple, ``estimate`` from the planner's statistics."""


@dataclass(frozen=True)
class Table:
    """A table; two are equal when neither a vacuum nor anything that rewrites came between them. ``key`` is its oid."""

    key: int
    schema: str
    relation: str
    kind: str
    filenode: int
    vacuum_count: int
    analyze_count: int
    owner: str = field(compare=False)
    may: bool = field(compare=False)
    """Whether we may vacuum it."""
    shared: bool = field(compare=False)
    temporary: bool = field(compare=False)
    """Whether it is another session's temporary table."""
    root: int = field(compare=False)
    """The table that was asked for: itself, or the one that it is a partition of."""
    live: int = field(compare=False)
    dead: int = field(compare=False)
    toast_live: int = field(compare=False)
    toast_dead: int = field(compare=False)
    modified: int = field(compare=False)
    rows: float = field(compare=False)
    """As the planner has it; negative where nobody counted."""
    pages: int = field(compare=False)
    xid_age: int = field(compare=False)
    mxid_age: int = field(compare=False)
    last_vacuum: datetime | None = field(compare=False)
    last_analyze: datetime | None = field(compare=False)
    size: Size | None = field(compare=False)
    """With indexes and TOAST; nothing where somebody has it locked."""
    heap: Size | None = field(compare=False)
    fillfactor: int = field(compare=False)
    identity: bool = field(compare=False)
    """Whether a row can be told from the others by an index."""
    place: str = field(compare=False)
    """The folder of its tablespace; empty where that is the server's own."""
    bloat: Bloat | None = field(compare=False, default=None)

    @property
    def name(self) -> str:
        return str(Name(self.relation, self.schema))

    @property
    def sql(self) -> str:
        return quoted(self.schema, self.relation)

    @property
    def dead_ratio(self) -> float:
        """Which part of its row versions is dead, 0 for an empty table."""
        return _share(self.dead, self.live)

    @property
    def toast_dead_ratio(self) -> float:
        return _share(self.toast_dead, self.toast_live)

    @property
    def all_dead(self) -> int:
        """Its dead rows and those of its TOAST table."""
        return self.dead + self.toast_dead

    @property
    def uncounted(self) -> bool:
        """Whether its statistics were lost, as after a crash: nobody knows how many of its rows are dead. What came since may be counted again."""
        least = self.rows if self.rows >= 0 else (self.heap or 0) / LARGE_ROW
        return not self.looked_through and self.live + self.dead < least / 2

    @property
    def looked_through(self) -> bool:
        """Whether it was vacuumed or analyzed since its statistics began. Without that they have only what was written since, and it may have had rows."""
        return bool(self.vacuum_count or self.last_vacuum or self.last_analyze)

    @property
    def most_rows(self) -> float:
        """As many rows as the planner has, or where nobody counted, as the file may have."""
        return self.rows if self.rows >= 0 else (self.heap or 0) / SMALL_ROW


def _share(dead: int, live: int) -> float:
    return dead / (dead + live) if dead else 0.0


MAY = {
    0: "pg_has_role(c.relowner, 'USAGE') OR (NOT c.relisshared AND pg_has_role(d.datdba, 'USAGE'))",
    170000: "has_table_privilege(c.oid, 'MAINTAIN') OR (NOT c.relisshared AND pg_has_role(d.datdba, 'USAGE'))",
}
"""Who may vacuum a table, from which version of the server on."""
FOUND = """
WITH RECURSIVE locked AS (
    SELECT coalesce(i.indrelid, l.relation) AS oid FROM pg_locks l LEFT JOIN pg_index i ON i.indexrelid = l.relation
    WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock'
        AND l.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
), wanted AS (
    SELECT c.oid, c.oid AS root, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {chosen}
    UNION
    SELECT c.oid, w.root, c.relkind FROM wanted w JOIN pg_inherits i ON i.inhparent = w.oid JOIN pg_class c ON c.oid = i.inhrelid
    WHERE w.relkind = 'p' AND %(expand)s
)
SELECT c.oid::bigint AS key, n.nspname AS schema, c.relname AS relation, c.relkind AS kind, w.root::bigint AS root,
    c.relfilenode::bigint AS filenode, coalesce(pg_stat_get_vacuum_count(c.oid), 0) AS vacuum_count,
    coalesce(pg_stat_get_analyze_count(c.oid), 0) AS analyze_count, pg_get_userbyid(c.relowner) AS owner, ({may}) AS may, c.relisshared AS shared,
    c.relpersistence = 't' AND c.relnamespace <> pg_my_temp_schema() AS temporary,
    coalesce(pg_stat_get_live_tuples(c.oid), 0) AS live, coalesce(pg_stat_get_dead_tuples(c.oid), 0) AS dead,
    coalesce(pg_stat_get_live_tuples(x.oid), 0) AS toast_live, coalesce(pg_stat_get_dead_tuples(x.oid), 0) AS toast_dead,
    coalesce(pg_stat_get_mod_since_analyze(c.oid), 0) AS modified, c.reltuples::float8 AS rows, c.relpages AS pages,
    CASE WHEN c.relfrozenxid <> '0' THEN greatest(age(c.relfrozenxid), age(x.relfrozenxid)) ELSE 0 END AS xid_age,
    CASE WHEN c.relminmxid <> '0' THEN greatest(mxid_age(c.relminmxid), mxid_age(x.relminmxid)) ELSE 0 END AS mxid_age,
    greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)) AS last_vacuum,
    greatest(pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid)) AS last_analyze,
    CASE WHEN f.free THEN pg_total_relation_size(c.oid) END AS size, CASE WHEN f.free THEN pg_relation_size(c.oid) END AS heap,
    coalesce((SELECT option_value::int FROM pg_options_to_table(c.reloptions) WHERE option_name = 'fillfactor'), 100) AS fillfactor,
    c.relpersistence = 'p' AND (c.relreplident = 'i' OR EXISTS (SELECT FROM pg_index p WHERE p.indrelid = c.oid AND p.indisprimary)) AS identity,
    pg_tablespace_location(CASE c.reltablespace WHEN 0 THEN d.dattablespace ELSE c.reltablespace END) AS place
FROM wanted w JOIN pg_class c ON c.oid = w.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_database d ON d.datname = current_database() LEFT JOIN pg_class x ON x.oid = c.reltoastrelid
    CROSS JOIN LATERAL (SELECT c.relkind IN ('r', 'm') AND NOT (c.relpersistence = 't' AND c.relnamespace <> pg_my_temp_schema())
        AND c.oid NOT IN (SELECT oid FROM locked) AND c.reltoastrelid NOT IN (SELECT oid FROM locked) AS free) f
ORDER BY c.oid, w.root = c.oid
"""
"""A table may be found by its own name and as another's partition, which is why it may come twice.

Asking for the size of a table waits for those who have it locked, so that is left out for these. No vacuum of anything is among them."""
COLUMNS = """
SELECT a.attrelid::bigint AS key, array_agg(a.attlen::int ORDER BY a.attnum) AS lengths, array_agg(a.attalign::text ORDER BY a.attnum) AS alignments,
    array_agg(CASE WHEN a.attisdropped OR a.attgenerated = 'v' THEN 1 ELSE s.null_frac::float8 END ORDER BY a.attnum) AS nulls,
    array_agg(CASE WHEN a.attisdropped OR a.attgenerated = 'v' THEN 0 ELSE s.avg_width END ORDER BY a.attnum) AS widths
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname AND NOT s.inherited
WHERE a.attnum > 0 AND a.attrelid = ANY(%(oids)s::oid[])
GROUP BY a.attrelid
"""
"""Columns that were dropped, or are computed when they are read, are nulls in each row that is written."""
Column = t.Tuple[int, str, t.Optional[float], t.Optional[int]]
"""The length of a column's type (negative if variable), its alignment, its share of nulls, and its average width in bytes."""
EXACT = """
SELECT o.oid::bigint AS key, x.table_len AS heap, x.dead_tuple_len + x.approx_free_space AS bloat
FROM unnest(%(oids)s::oid[]) AS o (oid), LATERAL {schema}.pgstattuple_approx(o.oid::regclass) x
"""
EVERYWHERE = "n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"
"""Where a name without a schema is looked for."""


def find(server: Server, names: t.Sequence[Name | int] | None, schemas: t.Sequence[str] | None) -> list[Table]:
    """The tables with these names or oids, each partition of them included, or all tables of these schemas; the largest first.

    Without either it is all tables that are not the server's own. One question, however many there are. Raises ``NotFound``, and ``Invalid`` or
    ``Refused`` for what has no rows of its own or belongs to another session.
    """
    oids = [name for name in names or () if isinstance(name, int)]
    asked = [name for name in names or () if isinstance(name, Name)]
    if oids:
        chosen = "c.oid = ANY(%(oids)s::oid[])"
    elif names is not None:
        chosen = f"c.relname = ANY(%(relations)s::text[]) AND (n.nspname = ANY(%(schemas)s::text[]) OR ({EVERYWHERE}))"
    elif schemas is not None:
        chosen = "n.nspname = ANY(%(schemas)s::text[]) AND c.relkind IN ('r', 'm', 'p')"
    else:
        chosen = f"{EVERYWHERE} AND c.relkind IN ('r', 'm', 'p')"
    values = dict(
        oids=oids,
        relations=[name.relation for name in asked],
        schemas=[name.schema for name in asked] if asked else list(schemas or ()),
        expand=bool(asked),
    )
    found = [table for table in _asked_for(server, chosen, values) if schemas is None or not table.temporary]
    if asked:
        roots = {_the_one(server, name, found).key for name in asked}
        found = [table for table in found if table.root in roots and (table.key in roots or table.kind in VACUUMABLE)]
    found = list({table.key: table for table in found}.values())
    gone = sorted(set(oids) - {table.key for table in found})
    if gone:
        why = f"the oid {', '.join(map(str, gone))} is no table of {server.database} any more"
        raise NotFound("cannot find a table again", why=why, fix="It was removed in the meantime; look again.")
    if schemas is not None:
        _check_schemas(server, schemas)
    return sorted(found, key=lambda table: (-(table.size or 0), table.key))


MARKS = """
SELECT c.relfilenode::bigint AS filenode, coalesce(pg_stat_get_vacuum_count(c.oid), 0) AS vacuum_count,
    coalesce(pg_stat_get_analyze_count(c.oid), 0) AS analyze_count
FROM pg_class c WHERE c.oid = %s::oid
"""


def marks(server: Server, table: Table) -> dict[str, int]:
    """What tells one vacuum, rewrite or analysis of a table from the next, as it is now. Raises ``NotFound``."""
    found = server.rows(f"cannot look at {table.name} again", MARKS, (table.key,))
    if not found:
        raise NotFound(f"cannot find {table.name} again", why="it is not there any more", fix="It was removed in the meantime; look again.")
    return found[0]


def _asked_for(server: Server, chosen: str, values: t.Mapping[str, t.Any]) -> list[Table]:
    may = MAY[max(since for since in MAY if since <= server.version)]
    for left in reversed(range(TRIES)):
        try:
            rows = server.rows(f"cannot look at the tables of {server.database}", FOUND.format(chosen=chosen, may=may), values)
        except Conflict:
            if not left:
                raise
        else:
            return [Table(**{**row, **{name: None if row[name] is None else Size(row[name]) for name in ("size", "heap")}}) for row in rows]
    raise AssertionError("the last try returns or raises")


def _the_one(server: Server, name: Name, found: t.Sequence[Table]) -> Table:
    """The one table that a name means: never a guess."""
    what = f"cannot take {name} of {server.database}"
    same = [table for table in found if table.key == table.root and table.relation == name.relation and table.schema == (name.schema or table.schema)]
    if not name.schema:
        same = [table for table in same if not table.temporary]
    if not same:
        raise NotFound(
            what, why=f"there is no such table{_alike(server, name)}", fix="Names are taken exactly, in upper and lower case; psql's \\dt *.* lists them."
        )
    if len(same) > 1:
        raise Invalid(what, why=f"there are several: {', '.join(table.name for table in same)}", fix="Name the one with its schema.")
    (table,) = same
    if table.temporary:
        raise Refused(what, why="it is a temporary table of another session, and only that one can vacuum it", fix="End that session if it drives the age.")
    if table.kind not in VACUUMABLE:
        raise Invalid(what, why=f"it is {KINDS.get(table.kind, 'no table')}, which has no rows of its own", fix="Name a table or a materialised view.")
    return table


def _alike(server: Server, name: Name) -> str:
    rows = server.rows(
        f"cannot look for {name}",
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'm', 'p', 'v', 'f') AND lower(c.relname) = lower(%s::text) LIMIT 3",
        (name.relation,),
    )
    return f", but {', '.join(str(Name(row['relname'], row['nspname'])) for row in rows)}" if rows else ""


def _check_schemas(server: Server, schemas: t.Sequence[str]) -> None:
    rows = server.rows("cannot look for the schemas", "SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s::text[])", (list(schemas),))
    missing = [schema for schema in schemas if schema not in {row["nspname"] for row in rows}]
    if missing:
        why = f"there is no schema {', '.join(repr(schema) for schema in missing)} in {server.database}"
        raise NotFound("cannot take all tables of a schema", why=why, fix="Names are taken exactly, in upper and lower case; psql's \\dn lists them.")


def share(part: float) -> float:
    """The same part of a whole. Raises ``ValueError`` unless it is one."""
    if not 0 <= part <= 1:
        raise ValueError(f"{part} is not between 0 and 1; ten percent are written 0.1")
    return part


def number(count: int) -> int:
    """The same number. Raises ``ValueError`` where nothing can have it."""
    if not 0 <= count < 1 << 63:
        raise ValueError(f"{count} is not between 0 and {(1 << 63) - 1}")
    return count


def has_dead(table: Table, tuples: int, ratio: float) -> bool:
    """Whether so many rows of a table, or of its TOAST table, are dead, and this part of them; also where that was lost, and it has so many rows at all."""
    if table.kind == "p":
        return False
    if tuples == ratio == 0 or (table.uncounted and table.most_rows >= tuples):
        return True
    pairs = ((table.dead, table.dead_ratio), (table.toast_dead, table.toast_dead_ratio))
    return any(dead and dead >= tuples and part >= ratio for dead, part in pairs)


def measured(server: Server, tables: t.Sequence[Table], exact: bool) -> list[Table]:
    """The same tables with their bloat: by pgstattuple if ``exact``, which reads them, or else estimated, by one question for all."""
    oids = [table.key for table in tables if table.heap]
    if exact:
        return _measured_exactly(server, tables, oids)
    rows = server.rows(f"cannot look at the columns of the tables of {server.database}", COLUMNS, dict(oids=oids)) if oids else []
    columns = {row["key"]: tuple(zip(row["lengths"], row["alignments"], row["nulls"], row["widths"])) for row in rows}
    return [replace(table, bloat=estimate(table, server.block_size, columns.get(table.key, ()))) for table in tables]


def _measured_exactly(server: Server, tables: t.Sequence[Table], oids: t.Sequence[int]) -> list[Table]:
    what = "cannot measure bloat exactly"
    extension = _pgstattuple(server)
    if not extension:
        fix = f"A superuser adds it with CREATE EXTENSION pgstattuple in {server.database} (Debian has it in the server's package), or leave out exact."
        raise Invalid(what, why=f"the database {server.database} does not have the extension pgstattuple", fix=fix)
    schema, role = quoted(extension["schema"]), quoted(server.role.name)
    needs = {"execute": f"GRANT pg_stat_scan_tables TO {role}", "usage": f"GRANT USAGE ON SCHEMA {schema} TO {role}"}
    lacking = [grant for right, grant in needs.items() if not extension[right]]
    if lacking:
        raise Denied(what, why=f"the role {server.role.name} may not use pgstattuple", fix=f"{' and '.join(lacking)}, or leave out exact.")
    with server.patient(what, EXACT_SECONDS):
        rows = server.rows(what, EXACT.format(schema=schema.replace("%", "%%")), dict(oids=list(oids))) if oids else []
    seen = {row["key"]: (row["heap"], row["heap"] - row["bloat"]) for row in rows}
    return [replace(table, bloat=_measured(table, *seen[table.key]) if table.key in seen else None) for table in tables]


def _measured(table: Table, heap: int, used: int) -> Bloat:
    """What is neither used nor kept free by the fill factor, as a rewrite would keep it free again."""
    return _bloat(heap - math.ceil(used * 100 / table.fillfactor), heap, "exact")


def _pgstattuple(server: Server) -> dict[str, t.Any]:
    """Where the extension is, and whether this role may use it; empty where it is not."""
    found = server.rows(
        "cannot look for pgstattuple",
        "SELECT n.nspname AS schema, has_function_privilege(p.oid, 'EXECUTE') AS execute, has_schema_privilege(n.oid, 'USAGE') AS usage"
        " FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace JOIN pg_proc p ON p.pronamespace = n.oid"
        " WHERE e.extname = 'pgstattuple' AND p.proname = 'pgstattuple_approx'",
    )
    return found[0] if found else {}


def has_pgstattuple(server: Server) -> bool:
    """Whether bloat can be measured exactly here, by this role."""
    extension = _pgstattuple(server)
    return bool(extension and extension["execute"] and extension["usage"])


def estimate(table: Table, block: int, columns: t.Sequence[Column]) -> Bloat | None:
    """How many bytes of the file its live rows would not fill, or nothing where the width of a column is not known, or the number of the rows.

    The rows are laid out as the server does it: each value aligned, each row to 8 bytes, a pointer for each row, the fill factor kept free. Of values of
    variable length only the average is known. So this is the mean of two layouts: all as long as that, and lengths spread so that any rest is as likely.
    """
    if table.heap is None or any(width is None and length < 0 for length, _align, _nulls, width in columns):
        return None
    if table.heap and not table.looked_through:
        return None
    rows = table.live if table.live or table.dead else max(table.rows, 0)
    usable = block - PAGE_HEADER - block * (100 - table.fillfactor) // 100
    pages = sum(_pages(rows, usable, columns, spread) for spread in (False, True)) / 2
    return _bloat(table.heap - math.ceil(pages) * block, table.heap, "estimate")


def _bloat(over: int, heap: int, source: str) -> Bloat:
    return Bloat(Size(max(0, over)), max(0, over) / heap if heap else 0.0, source)


def _pages(rows: float, usable: int, columns: t.Sequence[Column], spread: bool) -> float:
    """How many pages so many rows fill. Rows of one width leave the same rest in each page, others half a row on average."""
    fit = usable / (_row_width(columns, spread) + POINTER)
    varies = any((spread and length < 0) or 0 < (share or 0) < 1 for length, _align, share, _width in columns)
    return math.ceil(rows / max(1.0, fit - 0.5 if varies else math.floor(fit)))


def _row_width(columns: t.Sequence[Column], spread: bool) -> float:
    """The average width of a row with its header and all padding. Nulls take no room, but a row that has any has a map of them."""
    whole = math.prod(1 - (share or 0) for _length, _align, share, _width in columns)
    at = whole * _aligned(ROW_HEADER, 8) + (1 - whole) * _aligned(ROW_HEADER + math.ceil(len(columns) / 8), 8)
    ends = {0: 1.0}  # how likely it is that a row has come this far beyond a multiple of 8
    for length, align, share, width in columns:
        there = 1 - (share or 0)
        if not there:
            continue
        wide = length if length > 0 or width is None else width
        to = 1 if length < 0 and wide < SHORT else ALIGN[align]
        differs = spread and length < 0
        after = {end: chance * (1 - there) for end, chance in ends.items()} if there < 1 else {}
        for end, chance in ends.items():
            step = -end % to + wide
            at += chance * there * step
            if not differs:
                next_end = (end + int(step)) % 8
                after[next_end] = after.get(next_end, 0.0) + chance * there
        if differs:
            at += there / 2  # the average is cut off to whole bytes
            after = {end: after.get(end, 0.0) + there / 8 for end in range(8)}
        ends = after
    return at + sum(chance * (-end % 8) for end, chance in ends.items())


def _aligned(at: int, to: int) -> int:
    return math.ceil(at / to) * to


def figures(table: Table) -> dict[str, t.Any]:
    """What is told of a table: figures that move by themselves."""
    return dict(
        dead_tuples=table.dead,
        dead_ratio=round(table.dead_ratio, 4),
        toast_dead_tuples=table.toast_dead,
        xid_age=table.xid_age,
        mxid_age=table.mxid_age,
        size=table.size,
        bloat=table.bloat.size if table.bloat else None,
        bloat_ratio=round(table.bloat.ratio, 4) if table.bloat else None,
        last_vacuum=table.last_vacuum.isoformat() if table.last_vacuum else None,
    )


def told(table: Table) -> dict[str, t.Any]:
    """A table, as pg_bloat_info tells it."""
    return dict(
        figures(table),
        id=table.key,
        name=table.name,
        kind=TOLD_KINDS[table.kind],
        owner=table.owner,
        live_tuples=table.live,
        toast_live_tuples=table.toast_live,
        counted=not table.uncounted,
        heap=table.heap,
        source=table.bloat.source if table.bloat else None,
        last_analyze=table.last_analyze.isoformat() if table.last_analyze else None,
        may_vacuum=table.may,
    )


def summed(tables: t.Sequence[Table]) -> dict[str, t.Any]:
    """What is told of several tables together; what is not known of one is left out, and bloat that is known of none is not told as none."""
    dead, live = sum(table.dead for table in tables), sum(table.live for table in tables)
    toast_dead, toast_live = sum(table.toast_dead for table in tables), sum(table.toast_live for table in tables)
    known = [(table.heap, table.bloat.size) for table in tables if table.heap is not None and table.bloat]
    heap, bloat = sum(heap for heap, _bloat in known), sum(bloat for _heap, bloat in known)
    told = heap or not any(table.kind != "p" and table.heap != 0 and not table.bloat for table in tables)
    return dict(
        live_tuples=live,
        dead_tuples=dead,
        dead_ratio=round(_share(dead, live), 4),
        toast_dead_ratio=round(_share(toast_dead, toast_live), 4),
        size=sum(table.size or 0 for table in tables),
        heap=heap,
        bloat=bloat if told else None,
        bloat_ratio=(round(bloat / heap, 4) if heap else 0.0) if told else None,
    )


def fits(table: Table, dead: tuple[int | None, float | None], bloat: tuple[Size | None, float | None]) -> bool:
    """Whether it has the dead rows that are asked for, a number and a share, or the bloat; any table fits if neither is asked for."""
    if dead != (None, None) and has_dead(table, dead[0] or 0, dead[1] or 0):
        return True
    if bloat != (None, None) and table.bloat and table.bloat.size >= (bloat[0] or 0) and table.bloat.ratio >= (bloat[1] or 0):
        return True
    return dead == bloat == (None, None)
