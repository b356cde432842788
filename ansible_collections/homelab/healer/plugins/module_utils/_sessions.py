# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sessions of a PostgreSQL server: what they do, whom they block, what they hold back, and which of them a request means.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.homelab.healer.plugins.module_utils._postgresql import APPLICATION, Server

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
    AND a.application_name IS DISTINCT FROM %(own)s AND a.pid NOT IN (SELECT p.pid FROM pg_stat_progress_vacuum p)
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
"""A VACUUM's own snapshot holds back nobody, so sessions that vacuum are left out; parallel workers have their leader's. A slot holds back all databases."""


def horizon(server: Server, database: str | None) -> list[Holder]:
    """What holds back VACUUM in one database, or in any, the oldest first. Our own sessions are left out."""
    rows = server.rows("cannot see what holds back VACUUM", HORIZON, dict(database=database, own=APPLICATION))
    return [Holder(**row) for row in rows]
