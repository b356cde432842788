#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_bloat_info
version_added: 0.1.0
short_description: Show which PostgreSQL tables are bloated, have dead rows, or grow old
description:
  - Shows for each table its dead rows, its age in transactions, its size, and how much of its file its rows do not need.
  - Estimates for all tables of a database with one question for the tables and one for their columns, however many there are, or measures exactly.
  - Waits for nobody's lock, and changes nothing.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.postgresql
options:
  login_db:
    description: The database to look into, exactly as it is named.
    type: str
    required: true
    aliases: [database, db]
  tables:
    description:
      - The tables and materialised views, named as in M(homelab.healer.pg_vacuum).
      - If neither this nor O(schemas) is given, all that are not the server's own are shown.
    type: list
    elements: str
    aliases: [table]
  schemas:
    description: All tables and materialised views of these schemas.
    type: list
    elements: str
  exact:
    description:
      - Whether bloat is measured by C(pgstattuple_approx) instead of estimated. That reads every page that has changed since it was vacuumed.
      - Needs the extension C(pgstattuple) in the database, and the role C(pg_stat_scan_tables).
    type: bool
    default: false
  min_size:
    description: Only tables whose own file has this size. In small ones bloat does not matter, and an estimate says little.
    type: str
    default: "0"
  min_dead_tuples:
    description:
      - Only tables with so many dead rows, in their own file or in their TOAST table, or with the bloat that is asked for.
      - A table whose statistics were lost is among them if it has so many rows, since nobody knows how many are dead.
    type: int
  min_dead_ratio:
    description: The same for the share of dead rows in all, from 0 to 1. Given with O(min_dead_tuples), both must be reached, by itself or its TOAST table.
    type: float
  min_bloat:
    description: Only tables with so much bloat, such as V(100MiB), or with the dead rows that are asked for.
    type: str
  min_bloat_ratio:
    description: The same for the share of bloat in the file, from 0 to 1. Given with O(min_bloat), both must be reached.
    type: float
  limit:
    description: How many tables are shown at the most, the most bloated ones. V(0) shows all.
    type: int
    default: 0
notes:
  - The role needs C(CONNECT) on the database. For the estimate it needs to see the planner's statistics, by C(SELECT) on the tables or C(pg_read_all_data).
  - The estimate computes from the average width of each column how many pages the live rows fill. On tables of 25 shapes, from plain numbers to TOASTed
    documents, with none to 80 percent dead rows, it was off by at most 10 percentage points from what C(VACUUM FULL) gave back, and mostly by one. It
    does not hold for a table of a few pages, or one that was not analyzed since it got its shape or many of its rows.
  - A table that was neither vacuumed nor analyzed since its statistics began, as after a crash of the server, has no estimate.
  - C(pgstattuple), and O(exact) by it, counts a little otherwise. The pointers and the padding of dead rows are no bloat to it, nor is what old rows have
    in columns that were dropped, but the ends of pages that no row fits into are. So for rows below 50 bytes it shows up to 20 percentage points less than
    the estimate, and for rows of 1 KB and more up to 12 more. What the fill factor keeps free is bloat by neither.
  - It is about the table's own file. Indexes and TOAST count in RV(tables[].size) only.
seealso:
  - module: homelab.healer.pg_vacuum
  - module: homelab.healer.pg_activity_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Find the ten most bloated tables
  homelab.healer.pg_bloat_info:
    login_db: prod
    min_size: 1MiB
    limit: 10
  register: bloat

- name: Measure one of them
  homelab.healer.pg_bloat_info:
    login_db: prod
    tables: "{{ bloat.tables[0].name }}"
    exact: true

- name: Find what a vacuum would help
  homelab.healer.pg_bloat_info:
    login_db: prod
    min_dead_tuples: 10000
    min_dead_ratio: 0.2
"""

RETURN = r"""
tables:
  description: The tables, partitions by themselves. Those with most bloat first, then those with most dead rows.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Its oid.
      type: int
    name:
      description: Its schema and name, as O(tables) takes it.
      type: str
    kind:
      description: V(table), V(materialized view) or V(partitioned table).
      type: str
    owner:
      description: The role that owns it.
      type: str
    live_tuples:
      description: Its live rows, by the server's statistics.
      type: int
    dead_tuples:
      description: Its dead rows, by the server's statistics.
      type: int
    dead_ratio:
      description: The share of dead rows in all, from 0 to 1.
      type: float
    toast_live_tuples:
      description: The live rows of its TOAST table.
      type: int
    toast_dead_tuples:
      description: The dead rows of its TOAST table.
      type: int
    counted:
      description: Whether the server's statistics know its rows. They are lost in a crash.
      type: bool
    xid_age:
      description: How many transactions old it is, the older of it and its TOAST table.
      type: int
    mxid_age:
      description: The same in multixacts.
      type: int
    size:
      description: Bytes that it takes, with indexes and TOAST, or V(none) while somebody has it locked.
      type: int
    heap:
      description: Bytes of its own file, or V(none) while somebody has it locked.
      type: int
    bloat:
      description: Bytes of its file that its rows do not need, dead rows and free space; V(none) where that is not known.
      type: int
    bloat_ratio:
      description: The share of these in its file, from 0 to 1.
      type: float
    source:
      description: V(exact) or V(estimate), or V(none) where nothing is known.
      type: str
    last_vacuum:
      description: When it was vacuumed last, by hand or by itself; V(none) if never.
      type: str
    last_analyze:
      description: When it was analyzed last, by hand or by itself; V(none) if never.
      type: str
    may_vacuum:
      description: Whether this role may vacuum it.
      type: bool
found:
  description: How many tables fit, whether they are shown or not.
  returned: success
  type: int
ids:
  description: The oids of all tables that fit, whether they are shown or not, in ascending order.
  returned: success
  type: list
  elements: int
total:
  description: The same for all that fit together, as for a partitioned table. What is not known of one of them is left out.
  returned: success
  type: dict
  contains:
    live_tuples:
      description: Live rows.
      type: int
    dead_tuples:
      description: Dead rows.
      type: int
    dead_ratio:
      description: The share of dead rows in all, from 0 to 1.
      type: float
    toast_dead_ratio:
      description: The same of their TOAST tables.
      type: float
    size:
      description: Bytes with indexes and TOAST.
      type: int
    heap:
      description: Bytes of the files of those whose bloat is known.
      type: int
    bloat:
      description: Bytes of these that are bloat; V(none) where it is known of none of them though they have rows or may have some.
      type: int
    bloat_ratio:
      description: The share of these, from 0 to 1; V(none) where RV(total.bloat) is.
      type: float
exact:
  description: Whether bloat can be measured exactly in this database by this role.
  returned: success
  type: bool
"""

import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._postgresql import CREDENTIALS, OPTIONS, Server, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_info
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Size, parse_size
from ansible_collections.homelab.healer.plugins.module_utils._tables import (
    Name,
    find,
    fits,
    has_pgstattuple,
    measured,
    number,
    parse_names,
    parse_schemas,
    share,
    summed,
    told,
)


@dataclass(frozen=True)
class Request:
    """Which tables of which database to look at, how exactly, and which of them to show."""

    login_db: str
    tables: tuple[Name, ...] | None = field(metadata={"parse": parse_names})
    schemas: tuple[str, ...] | None = field(metadata={"parse": parse_schemas})
    exact: bool
    min_size: Size = field(metadata={"parse": parse_size})
    min_dead_tuples: int | None = field(metadata={"parse": number})
    min_dead_ratio: float | None = field(metadata={"parse": share})
    min_bloat: Size | None = field(metadata={"parse": parse_size})
    min_bloat_ratio: float | None = field(metadata={"parse": share})
    limit: int


def report(client: Server, request: Request) -> dict[str, t.Any]:
    """Look at the tables, and tell of those that fit."""
    found = [table for table in find(client, request.tables, request.schemas) if not request.min_size or (table.heap or 0) >= request.min_size]
    dead, bloat = (request.min_dead_tuples, request.min_dead_ratio), (request.min_bloat, request.min_bloat_ratio)
    fit = [table for table in measured(client, found, request.exact) if fits(table, dead, bloat)]
    fit.sort(key=lambda table: (-(table.bloat.size if table.bloat else 0), -table.all_dead, table.name))
    shown = fit[: request.limit if request.limit > 0 else len(fit)]
    ids = sorted(table.key for table in fit)
    return dict(tables=[told(table) for table in shown], found=len(fit), ids=ids, total=summed(fit), exact=has_pgstattuple(client))


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        login_db=dict(type="str", required=True, aliases=["database", "db"]),
        tables=dict(type="list", elements="str", aliases=["table"]),
        schemas=dict(type="list", elements="str"),
        exact=dict(type="bool", default=False),
        min_size=dict(type="str", default="0"),
        min_dead_tuples=dict(type="int"),
        min_dead_ratio=dict(type="float"),
        min_bloat=dict(type="str"),
        min_bloat_ratio=dict(type="float"),
        limit=dict(type="int", default=0),
    ),
    mutually_exclusive=[*CREDENTIALS["mutually_exclusive"], ("tables", "schemas")],
    required_together=CREDENTIALS["required_together"],
)


def main() -> None:
    run_info(Request, connect, report, ARGUMENTS)


if __name__ == "__main__":
    main()
