#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_vacuum
version_added: 0.1.0
short_description: Vacuum PostgreSQL tables that need it, and tell what that really did
description:
  - Vacuums those of the tables that have too many dead rows or are too old, or rewrites those that are bloated, and leaves the others alone, so a
    second run has nothing to do.
  - Tells for each table what was removed and freed. Where nothing could be removed it fails and names who keeps the dead rows alive, a session, a
    prepared transaction, a replication slot or a standby, since vacuuming again would change nothing.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.change
  - homelab.healer.postgresql
attributes:
  check_mode:
    details: The server is only asked. Missing rights, missing space, and who is in the way are told in check mode too, with the exact SQL.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: partial
    details:
      - By measured need. With O(min_dead_tuples=0) and O(min_dead_ratio=0) each run vacuums.
      - Where a bloat that is only estimated stays although the table was rewritten, the module fails instead of doing it each time.
options:
  login_db:
    description: The database that the tables are in, exactly as it is named.
    type: str
    required: true
    aliases: [database, db]
  tables:
    description:
      - The tables and materialised views, each as V(table) or V(schema.table), exactly as they are named; upper and lower case are told apart and nothing
        is folded. A part that has a dot or a double quote is put into double quotes, with each quote in it doubled.
      - A name without a schema must be the only one, outside of the server's own schemas.
      - Of a partitioned table all partitions are meant. With O(analyze) it gets statistics of its own, which autovacuum never makes.
    type: list
    elements: str
    aliases: [table]
  schemas:
    description: All tables and materialised views of these schemas.
    type: list
    elements: str
  full:
    description:
      - Whether bloated tables are rewritten, so that their space is given back. Nobody can read a table while that goes on.
      - It is analyzed as well, whatever O(analyze) is, since the server would go on counting the dead rows that are gone.
      - The old table stays until the new one is whole. So its size must be free in its tablespace, that of its indexes in theirs, that of the largest
        index once more for sorting where temporary files are, and as much as all of it for the log where C(wal_level) is above C(minimal), and some more.
        That is proved where the module runs on the server's host and may read the server's data, or else said by O(assume_free_space).
      - It never queues for the table's lock, since all others would queue behind it; it asks again until O(lock_timeout) is over.
      - Tables are rewritten one after the other, whatever O(parallel) is.
      - From PostgreSQL 19 on, C(REPACK (CONCURRENTLY)) is used for tables with a primary key or replica identity, which can be read and written meanwhile.
    type: bool
    default: false
  freeze:
    description: Whether all rows are frozen, as before a long time without vacuums.
    type: bool
    default: false
  analyze:
    description:
      - Whether the planner's statistics are made anew as well. A table that needs no vacuum is only analyzed, if it never was or a tenth of its rows
        has changed.
    type: bool
    default: false
  truncate:
    description: Whether empty pages at a table's end are given back. That needs a short exclusive lock, which cancels queries on a standby.
    type: bool
    default: true
  index_workers:
    description:
      - How many more processes the server may use for one table's indexes, within C(max_parallel_maintenance_workers).
      - Without it the server decides, V(0) forbids it. Not with O(full).
    type: int
  buffer_usage_limit:
    description: How much of the server's shared buffers the vacuum may use, such as V(2MB). Needs PostgreSQL 16. Not with O(full).
    type: str
  min_dead_tuples:
    description: A table needs a vacuum if it, or its TOAST table, has at least so many dead rows and O(min_dead_ratio).
    type: int
    default: 1000
  min_dead_ratio:
    description: The share of dead rows in all, from 0 to 1, that a table needs a vacuum for, together with O(min_dead_tuples).
    type: float
    default: 0.1
  min_xid_age:
    description: A table needs a vacuum as well if it is so many transactions old, the older of it and its TOAST table.
    type: int
    default: 150000000
  min_mxid_age:
    description: The same in multixacts.
    type: int
    default: 150000000
  min_bloat:
    description:
      - With O(full), a table needs to be rewritten if so much of its file is bloat, and O(min_bloat_ratio).
      - Measured by pgstattuple where that is and may be used and O(max_duration) is enough for it, or else estimated, see
        M(homelab.healer.pg_bloat_info) for how well.
    type: str
    default: 10MiB
  min_bloat_ratio:
    description: The share of bloat in a table's file, from 0 to 1, that it needs to be rewritten for, together with O(min_bloat).
    type: float
    default: 0.3
  lock_timeout:
    description: How long to wait for a table's lock, such as V(5s), a day at the most. Who holds it is told.
    type: str
    default: 5s
  max_duration:
    description:
      - How long all of it may take, 14 days at the most. Then no further table is begun, those that are being worked on are cancelled, and how far they
        had come is told.
      - What a plain vacuum has removed stays removed; a rewrite begins anew.
    type: str
    default: 1h
  cost_delay:
    description:
      - For how many milliseconds to pause each time that some work is done, so that others have the disk. V(0) is full speed, V(2) is what autovacuum does.
    type: float
    default: 0
  fail_on_blocked_horizon:
    description: Whether it is a failure if dead rows cannot be removed since somebody may still see them. If not, it is a note.
    type: bool
    default: true
  assume_free_space:
    description: How much is free on the server's disk for O(full), such as V(20GiB), where that cannot be proved.
    type: str
  parallel:
    description: How many tables are vacuumed at the same time, on connections of their own.
    default: 2
    aliases: [jobs]
notes:
  - Before PostgreSQL 17 the role must be the owner of the tables or the database, or be granted that role. From 17 on C(MAINTAIN) on a table or
    C(pg_maintain) will do.
  - To tell what those who keep dead rows alive are doing, and since when, it needs C(pg_read_all_stats), and to prove free space
    C(pg_read_all_settings); C(pg_monitor) has both.
  - A table that autovacuum or somebody else is vacuuming already is left alone, with a note.
  - It cannot be undone, RV(reversibility) is V(none); no data changes by it.
  - A rewrite is known by the table's new file, a vacuum by the server's count of vacuums. What the server skips is a failure, in whatever language it says so.
  - If the module is killed, PostgreSQL 14 and newer end its statements within 10 seconds, older ones when O(max_duration) is over.
  - It speaks to the server itself. A pooler such as PgBouncer, which takes away what a session sets, is refused.
seealso:
  - module: homelab.healer.pg_bloat_info
  - module: homelab.healer.pg_activity_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Vacuum a table if it needs it
  homelab.healer.pg_vacuum:
    login_host: postgres.lan
    login_user: healer
    login_password: "{{ vault_healer_password }}"
    ca_cert: /etc/ssl/homelab-ca.pem
    login_db: prod
    tables: public.events

- name: Vacuum what needs it in a schema, four tables at a time, for half an hour at the most, and let others have the disk
  homelab.healer.pg_vacuum:
    login_db: prod
    schemas: [public]
    analyze: true
    jobs: 4
    max_duration: 30m
    cost_delay: 2

- name: Give back the space of a bloated table, at night
  homelab.healer.pg_vacuum:
    login_db: prod
    tables: [public.events]
    full: true
    assume_free_space: 20GiB
"""

RETURN = r"""
before:
  description:
    - For each table that needs it, by its oid, what tells one vacuum from the next. The server's count of vacuums by hand, or with O(full) the number of
      the table's file, or the count of analyses where only that is done.
  returned: always
  type: dict
  sample: {"16402": {"vacuum_count": 3}}
after:
  description: The same as it will be; V(new) for the number of a file that comes.
  returned: always
  type: dict
  sample: {"16402": {"vacuum_count": 4}}
steps:
  description: The statements that were run, or in check mode would be.
  returned: always
  type: list
  elements: str
  sample: ['VACUUM (ANALYZE) "public"."events"']
undo:
  description: Always empty, since a vacuum cannot be undone and changes no data.
  returned: always
  type: list
  elements: dict
reversibility:
  description: V(none) where a table was vacuumed.
  returned: always
  type: str
  sample: none
error:
  description: What went wrong.
  returned: failure
  type: dict
  contains:
    code:
      description: >-
        One of V(invalid), V(missing_library), V(unreachable), V(denied), V(not_found), V(conflict), V(refused), V(task_failed), V(timed_out) and
        V(not_converged). The last one also where dead rows could not be removed.
      type: str
    what:
      description: What could not be done.
      type: str
    why:
      description: Why, in the server's own words where there are any.
      type: str
    fix:
      description: What to do next.
      type: str
    retryable:
      description: Whether the same may succeed later.
      type: bool
results:
  description: What became of each table, partitions by themselves. Empty when the failure came before anything was planned.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its oid.
      type: int
    name:
      description: Its schema and name, as O(tables) takes it.
      type: str
    changed:
      description: Whether it was vacuumed, rewritten or analyzed, if only in part. What cannot be known counts as changed.
      type: bool
    unknown:
      description: Whether the connection was lost and nobody could look again.
      type: bool
    why:
      description: Why it needs that. Empty where it does not.
      type: list
      elements: str
    skipped:
      description: Who is vacuuming it already, or V(none).
      type: str
    dead_tuples:
      description: Its dead rows, by the server's statistics, before.
      type: int
    dead_ratio:
      description: The share of these in all, from 0 to 1.
      type: float
    toast_dead_tuples:
      description: The dead rows of its TOAST table.
      type: int
    xid_age:
      description: How many transactions old it is, the older of it and its TOAST table.
      type: int
    mxid_age:
      description: The same in multixacts.
      type: int
    size:
      description: Bytes that it takes, with indexes and TOAST, or V(none) while somebody has it locked.
      type: int
    bloat:
      description: Bytes of its file that its rows do not need, with O(full); V(none) where that is not known.
      type: int
    bloat_ratio:
      description: The share of these in its file, from 0 to 1.
      type: float
    last_vacuum:
      description: When it was vacuumed last, by hand or by itself, before.
      type: str
    removed:
      description: How many dead rows there are fewer, TOAST included, by the server's statistics. V(none) where nothing was done, as in check mode.
      type: int
    freed:
      description: How many bytes it has become smaller, with indexes and TOAST; negative if it grew meanwhile. V(none) where that is not known.
      type: int
    left:
      description: Its dead rows afterwards, TOAST included.
      type: int
    before:
      description: The part of RV(before) for this table.
      type: dict
    after:
      description: The part of RV(after) for this table.
      type: dict
    steps:
      description: The statement.
      type: list
      elements: str
    undo:
      description: Empty.
      type: list
      elements: dict
    reversibility:
      description: As RV(reversibility), for this table.
      type: str
    verified:
      description: By what it is known; V(statistics) for a count, V(catalog) for a new file. Empty in check mode.
      type: dict
      sample: {"vacuum_count": "statistics"}
    notes:
      description: What a person should know, such as who holds its dead rows.
      type: list
      elements: str
    error:
      description: What went wrong with this table, as in RV(error), or V(none).
      type: dict
"""

import contextlib
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._change import Change, Step, Values, plan_each
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, HealerError, NotConverged, TaskFailed, TimedOut
from ansible_collections.homelab.healer.plugins.module_utils._postgresql import CREDENTIALS, OPTIONS, Server, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, change_options, run
from ansible_collections.homelab.healer.plugins.module_utils._tables import (
    Name,
    Table,
    figures,
    find,
    has_pgstattuple,
    marks,
    measured,
    parse_names,
    parse_schemas,
)
from ansible_collections.homelab.healer.plugins.module_utils._vacuum import (
    Site,
    Wishes,
    bloated,
    check_site,
    check_space,
    check_wishes,
    foretold,
    guard,
    holding,
    how_far,
    in_the_way,
    look_around,
    outdated,
    settings,
    statement,
    still_held,
    still_needed,
    unmeasured,
    who_has,
    why,
)

SHORT = 1.0
"""Seconds for which a rewrite may wait for a lock besides its table's, such as an index', while it has that one."""
AGAIN = 0.25
"""Seconds between two tries to get a table's lock without queueing for it."""
COUNTED_LATE = 3.0
"""Seconds within which a server before PostgreSQL 15 counts a vacuum."""


@dataclass(frozen=True)
class Request(Wishes):
    """Which tables of which database, when they need a vacuum, and how it is done."""

    login_db: str
    tables: tuple[Name | int, ...] | None = field(metadata={"parse": parse_names})
    schemas: tuple[str, ...] | None = field(metadata={"parse": parse_schemas})


@dataclass(frozen=True)
class Target:
    """A table and what is around it; two are equal when the tables are."""

    table: Table
    site: Site = field(compare=False)

    @property
    def key(self) -> int:
        return self.table.key

    @property
    def name(self) -> str:
        return self.table.name


@dataclass(frozen=True)
class Maintain(Step):
    """Run one statement on one table. ``identity`` is the field of the table that tells that it was done."""

    table: Table
    site: Site
    sql: str
    identity: str
    request: Request

    def __str__(self) -> str:
        return self.sql

    def apply(self, client: Server) -> None:
        what = f"cannot run {self.sql}"
        with client.alone if self.identity == "filenode" else contextlib.nullcontext():
            if self.sql.startswith("VACUUM (FULL, SKIP_LOCKED"):
                self._rewrite(client, what)
            else:
                self._check_name(client, what)
                self._run(client, what, self.request.lock_timeout)
        self._need_done(client, what)

    def _check_name(self, client: Server, what: str, ran: bool = False) -> None:
        """The statement goes by the table's name; whatever ``ran`` without it may have been another's."""
        (named,) = client.rows(f"cannot look at {self.table.name} again", "SELECT to_regclass(%s)::oid::bigint AS key", (self.table.sql,))
        if named["key"] != self.table.key:
            instead = "; the one that has its name by now may have been taken in its place" if ran and named["key"] is not None else ""
            raise Conflict(what, why=f"it was removed, renamed or replaced since it was looked at{instead}", fix="Run this again.")

    def _run(self, client: Server, what: str, lock_timeout: float) -> None:
        left = self.request.max_duration - client.seconds()
        if left <= 0:
            late = TimedOut(what, why=f"max_duration, {self.request.max_duration:g} s, was over before it was begun", fix="Run it again for what is left.")
            late.retryable = True
            raise late
        try:
            client.maintain(what, self.sql, settings(self.request, self.table, lock_timeout), left, lambda pid: how_far(client, pid))
        except HealerError as error:
            plain = self.identity == "vacuum_count"  # the others are done wholly or not at all
            error.begun = error.begun and plain  # ANALYZE and its TOAST table come later, by themselves: then the count tells
            error.partly = plain and (error.partly or error.uncertain or isinstance(error, TaskFailed))
            if error.begun:
                with contextlib.suppress(HealerError):
                    self._wait_counted(client, self.identity)
            if isinstance(error, Conflict):
                raise self._locked(client, what, error) from error
            raise

    def _locked(self, client: Server, what: str, error: Conflict) -> Conflict:
        conflict = Conflict(what, why=f"{error.why}; {who_has(client, self.table, self.identity == 'filenode')}", fix=error.fix)
        conflict.begun = error.begun
        return conflict

    def _rewrite(self, client: Server, what: str) -> None:
        until = time.monotonic() + self.request.lock_timeout
        while True:
            self._check_name(client, what)
            with contextlib.suppress(Conflict):  # it had the table's lock, but not an index'
                self._run(client, what, SHORT)
            if self._done(client):
                return
            self._check_name(client, what, ran=True)
            if time.monotonic() >= until:
                reason = f"nobody let go of the table within {self.request.lock_timeout:g} s"
                fix = "Wait until nobody uses it, or give a longer lock_timeout: it does not queue, so it holds nobody up."
                raise self._locked(client, what, Conflict(what, why=reason, fix=fix))
            time.sleep(AGAIN)

    def happened(self, now: Target) -> bool:
        """By its own field: a crash, a reset of the statistics or an ANALYZE of somebody else's change the others."""
        return self._shows(getattr(now.table, self.identity))

    def _shows(self, mark: int) -> bool:
        then = getattr(self.table, self.identity)
        return bool(mark != then if self.identity == "filenode" else mark > then)

    def _done(self, client: Server) -> bool:
        mark = marks(client, self.table)[self.identity]
        if self.identity != "filenode" and mark < getattr(self.table, self.identity):
            reason = "the server's statistics were reset meanwhile"
            lost = NotConverged(f"ran {self.sql}, but cannot tell whether it was done", why=reason, fix="Run this again.")
            lost.partly = True
            raise lost
        return self._shows(mark)

    def _need_done(self, client: Server, what: str) -> None:
        """What the server skips it calls a success, with a warning in any language."""
        self._wait_counted(client, self.identity)
        if self.table.kind != "p" and not self._done(client):
            self._check_name(client, what, ran=True)
            reason = "the server skipped it, as its statistics and files show"
            fix = "Look into the server's log; the role may have lost the right, or somebody had the table locked."
            raise NotConverged(f"ran {self.sql}, but nothing was done", why=reason, fix=fix)
        if self.identity == "filenode":
            self._wait_counted(client, "analyze_count")  # that sets its dead rows

    def _wait_counted(self, client: Server, count: str) -> None:
        """Wait for what a server before PostgreSQL 15 counts later."""
        until = time.monotonic() + (COUNTED_LATE if client.version < 150000 and count != "filenode" and self.table.kind != "p" else 0)
        while time.monotonic() < until and not marks(client, self.table)[count] > getattr(self.table, count):
            time.sleep(AGAIN)

    def tell(self, client: Server, now: Target) -> Values:
        freed = None if self.table.size is None or now.table.size is None else self.table.size - now.table.size
        return dict(removed=max(0, self.table.all_dead - now.table.all_dead), left=now.table.all_dead, freed=freed)

    def prove(self, client: Server, now: Target) -> dict[str, str]:
        left = still_needed(self.request, self.table, now.table) if self.identity != "analyze_count" else ()
        held, advice = still_held(client, now.table, self.site) if left else ("", "")
        bloated_still = self.identity == "filenode" and bloated(self.request, now.table)
        if left and (held or bloated_still) and self.request.fail_on_blocked_horizon:
            reason = f"still {'; '.join(left)}. {held or 'The estimate is wrong for this table'}"
            fix = advice or "Add the extension pgstattuple to this database, so that it can be measured."
            raise NotConverged(f"ran {self.sql}, but it did not help", why=reason, fix=fix)
        return {self.identity: "catalog" if self.identity == "filenode" else "statistics"}


def observe(client: Server, request: Request) -> list[Target]:
    """The tables that the request means, as they are."""
    check_wishes(request, client.version)
    client.limit = request.max_duration
    tables = find(client, request.tables, request.schemas)
    if request.full:
        tables = _measured(client, tables)
    site = look_around(client, tables, request.full)
    return [Target(table, site) for table in tables]


def _measured(client: Server, tables: t.Sequence[Table]) -> list[Table]:
    """The tables with their bloat, which is only estimated where there is no time to read them."""
    if client.left() > 0 and has_pgstattuple(client):
        with contextlib.suppress(TimedOut):
            return measured(client, tables, exact=True)
    return measured(client, tables, exact=False)


def plan(request: Request, now: t.Sequence[Target]) -> dict[t.Any, Change]:
    """A change for each table that needs it, and proof of the space for those that are rewritten."""
    if now:
        check_site(now[0].site)
    parents = {target.table.root for target in now if why(request, target.table)}
    changes = plan_each(now, lambda target: plan_one(request, target, target.key in parents))
    rewritten = [target.table for target in now if "filenode" in changes[target.key].before]
    if rewritten:
        check_space(request, rewritten, now[0].site)
    return changes


def plan_one(request: Request, target: Target, parent: bool) -> Change:
    """What one table needs. ``parent``: a partition of it is vacuumed."""
    table, site, reasons = target.table, target.site, why(request, target.table)
    facts = dict(figures(table), why=[*reasons], skipped=site.busy.get(table.key), removed=None, left=None, freed=None)
    if not reasons and not outdated(request, table) and not (parent and request.analyze and table.kind == "p"):
        return Change(facts=facts, notes=unmeasured(request, table))
    if site.busy.get(table.key):
        return Change(facts=facts, notes=(f"left alone: {site.busy[table.key]} is at it already",))
    guard(request, table, site)
    sql = statement(request, table, site.version)
    identity = "analyze_count" if sql.startswith("ANALYZE") else "filenode" if bloated(request, table) else "vacuum_count"
    locks = [f"may have to wait: {lock}" for lock in in_the_way(site.locks, table, identity == "filenode")]
    holders = [f"may keep dead rows: {holder}" for holder in holding(table, site)[:3]] if reasons else []
    return Change(
        {identity: getattr(table, identity)},
        {identity: "new" if identity == "filenode" else getattr(table, identity) + 1},
        steps=(Maintain(table, site, sql, identity, request),),
        reversibility="none",
        notes=(*locks, *holders, *(unmeasured(request, table) if identity != "filenode" else ())),
        facts=facts,
        action=True,
        shown=(figures(table), foretold(request, table) if reasons else figures(table)),
    )


MODULE = Module(Request, connect, observe, plan, target="tables", selectors=("schemas",))
ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        login_db=dict(type="str", required=True, aliases=["database", "db"]),
        tables=dict(type="list", elements="str", aliases=["table"]),
        schemas=dict(type="list", elements="str"),
        full=dict(type="bool", default=False),
        freeze=dict(type="bool", default=False),
        analyze=dict(type="bool", default=False),
        truncate=dict(type="bool", default=True),
        index_workers=dict(type="int"),
        buffer_usage_limit=dict(type="str"),
        min_dead_tuples=dict(type="int", default=1000),
        min_dead_ratio=dict(type="float", default=0.1),
        min_xid_age=dict(type="int", default=150000000),
        min_mxid_age=dict(type="int", default=150000000),
        min_bloat=dict(type="str", default="10MiB"),
        min_bloat_ratio=dict(type="float", default=0.3),
        lock_timeout=dict(type="str", default="5s"),
        max_duration=dict(type="str", default="1h"),
        cost_delay=dict(type="float", default=0.0),
        fail_on_blocked_horizon=dict(type="bool", default=True),
        assume_free_space=dict(type="str"),
        **change_options(parallel=2, aliases=["jobs"]),
    ),
    mutually_exclusive=[*CREDENTIALS["mutually_exclusive"], ("tables", "schemas")],
    required_together=CREDENTIALS["required_together"],
    required_one_of=[("tables", "schemas")],
)


def main() -> None:
    run(MODULE, ARGUMENTS)


if __name__ == "__main__":
    main()
