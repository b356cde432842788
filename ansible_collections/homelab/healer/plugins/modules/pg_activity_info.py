#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_activity_info
version_added: 0.1.0
short_description: What PostgreSQL's sessions do, whom they block, and what they hold back
description:
  - Tells of each session what it does and since when, and how many connections are left.
  - Names who blocks others without waiting themselves, and what keeps VACUUM from removing dead rows, down to prepared transactions, replication slots
    and standbys.
  - Tells how far maintenance has come and how near the databases are to a wraparound.
  - It asks the same few questions for ten sessions and for ten thousand.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.postgresql
options:
  login_db:
    description: The database to connect to. Any does, but relations have names only in this one.
    type: str
    default: postgres
  database:
    description:
      - Only sessions of this database, and only what holds back its VACUUM. Without it those of all.
      - It fails if there is no such database.
    type: str
  pids:
    description: Only these sessions, or other processes of the server, each by its pid or its id. One that is not there is not told of.
    type: list
    elements: str
  queries:
    description:
      - Whether to tell the statements too, the first 1000 characters of each.
      - They may hold secrets, such as the password of C(ALTER ROLE ... PASSWORD) or a customer's data. Use C(no_log) with it.
    type: bool
    default: false
notes:
  - Its role needs C(pg_read_all_stats), or C(pg_monitor), to see what other roles' sessions do. Without it they are counted in RV(hidden), and all that
    is told of them is who and where they are.
  - Where all connections are taken, a superuser still gets in. From PostgreSQL 16 on so does a role with C(pg_use_reserved_connections), if the setting
    C(reserved_connections) is above 0.
seealso:
  - module: homelab.healer.pg_terminate
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Who blocks whom, and what holds back VACUUM?
  homelab.healer.pg_activity_info:
    login_host: db.example.com
    login_user: healer
    database: prod
  register: activity

- name: End who blocks others for more than a minute
  homelab.healer.pg_terminate:
    login_host: db.example.com
    login_user: healer
    pids: "{{ blocking | map(attribute='id') }}"
  when: blocking | length > 0
  vars:
    blocking: "{{ activity.blockers | selectattr('kind', '==', 'session') | rejectattr('hidden') | selectattr('waiting', '>', 60) }}"
"""

RETURN = r"""
server:
  description: Which server that is.
  returned: success
  type: dict
  contains:
    version:
      description: Its version, such as V(15.18).
      type: str
    standby:
      description: Whether it is a standby.
      type: bool
role:
  description: Who asked, and what that role may do here.
  returned: success
  type: dict
  contains:
    name:
      description: The role.
      type: str
    superuser:
      description: Whether it is a superuser.
      type: bool
    sees_all:
      description: Whether it sees what other roles' sessions do.
      type: bool
    may_signal:
      description: Whether it may end other roles' sessions, those of superusers excepted.
      type: bool
sessions:
  description:
    - The sessions of clients, standbys and, where they are at work in a database, of the server itself, the oldest first; not this module's own.
    - With O(pids) any process that is named.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: PostgreSQL's own id of it, C(%c) in the server's log, by which M(homelab.healer.pg_terminate) takes it; V(null) where it is hidden.
      type: str
    pid:
      description: Its pid.
      type: int
    user:
      description: Its user.
      type: str
    database:
      description: Its database.
      type: str
    application_name:
      description: What it calls itself.
      type: str
    client_addr:
      description: Where it comes from; V(null) for the socket.
      type: str
    state:
      description: Its state; V(disabled) where C(track_activities) is off for it.
      type: str
    wait:
      description: "What it waits for, such as V(Lock: transactionid); V(null) if for nothing."
      type: str
    backend_type:
      description: What kind of process it is.
      type: str
    started:
      description: When it began.
      type: str
    query_started:
      description: When the statement began that it runs; V(null) if it runs none.
      type: str
    transaction_age:
      description: For how many seconds it has been in its transaction; V(null) without one.
      type: float
    query_age:
      description: For how many seconds it has been running its statement; V(null) without one.
      type: float
    idle_for:
      description: For how many seconds it has been idle, in a transaction or not; V(null) if it is not.
      type: float
    xmin_age:
      description: How many transactions old the oldest is that it may still need to see.
      type: int
    blocked_by:
      description: The pids that it waits for; V(0) is a prepared transaction.
      type: list
      elements: int
    maintenance:
      description: Which maintenance it is at, if it is.
      type: str
    query:
      description: Its statement, or the last one if it is idle. Only with O(queries).
      type: str
found:
  description: How many sessions these are.
  returned: success
  type: int
waiting:
  description: Who waits for a lock, in O(database) or in all.
  returned: success
  type: dict
  contains:
    sessions:
      description: How many sessions.
      type: int
    longest:
      description:
        - For how many seconds the longest of them has been waiting; V(0) if none is.
        - Before PostgreSQL 14, for how long it has been running its statement, and no longer than the transaction of whom it waits for.
      type: float
hidden:
  description: How many of RV(sessions) are hidden from this role but for who they are.
  returned: success
  type: int
connections:
  description: How many connections clients may have, and have, this module's own included.
  returned: success
  type: dict
  contains:
    max:
      description: How many there may be.
      type: int
    reserved:
      description: How many of these are for superusers and for roles that may use reserved ones.
      type: int
    used:
      description: How many there are.
      type: int
    available:
      description: How many are left for anybody.
      type: int
    share:
      description: The part used of those that are for anybody, from 0; above 1 when reserved ones are in use.
      type: float
    by_state:
      description: How many there are by state.
      type: dict
    by_database:
      description: How many there are by database.
      type: dict
    by_user:
      description: How many there are by user.
      type: dict
blockers:
  description: Who makes others wait for a lock without waiting themselves, in all databases, the one first that makes others wait for the longest.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: V(session) or V(prepared_transaction).
      type: str
    id:
      description: The session's id, or the name of the prepared transaction; V(null) where RV(blockers[].hidden).
      type: str
    pid:
      description: The session's pid; V(null) for a prepared transaction.
      type: int
    hidden:
      description: Whether no more than its pid and who it is can be known, as it is hidden from this role, or came only while this looked.
      type: bool
    user:
      description: Its user.
      type: str
    database:
      description: Its database.
      type: str
    state:
      description: Its state.
      type: str
    blocks:
      description: The pids that wait for it, directly or through others.
      type: list
      elements: int
    waiting:
      description: As RV(waiting.longest) for these, and no longer than this one has been in its transaction. Who waits longer began to wait for another.
      type: float
horizon:
  description: What keeps VACUUM from removing rows that died since, the oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: V(session), V(prepared_transaction), V(slot) or V(standby).
      type: str
    name:
      description: The session's id, or the name.
      type: str
    pid:
      description: The pid, where there is one.
      type: int
    database:
      description: The database, where it has one.
      type: str
    user:
      description: The user, where it has one.
      type: str
    application_name:
      description: What it calls itself.
      type: str
    state:
      description: What it does; of a slot V(active) or V(inactive).
      type: str
    age:
      description: How many transactions old that is.
      type: int
    seconds:
      description: For how long it has been so, where that is known.
      type: float
    catalogs:
      description: Whether it holds back the system catalogs only.
      type: bool
progress:
  description: Which maintenance runs, in all databases.
  returned: success
  type: list
  elements: dict
  contains:
    pid:
      description: Whose.
      type: int
    command:
      description: Which, such as V(VACUUM).
      type: str
    database:
      description: In which database.
      type: str
    relation:
      description: On which relation, by its oid.
      type: int
    name:
      description: Its name, if it is in O(login_db).
      type: str
    phase:
      description: What it does now.
      type: str
    done:
      description: How much of that is done, in blocks.
      type: int
    total:
      description: How much there is.
      type: int
    share:
      description: The part that is done, from 0 to 1; V(null) where it is not known.
      type: float
prepared:
  description: The prepared transactions, the oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    gid:
      description: The name.
      type: str
    owner:
      description: Whose it is.
      type: str
    database:
      description: In which database; only there it can be ended.
      type: str
    age:
      description: For how many seconds it has been waiting.
      type: float
databases:
  description: All databases, those included that nobody can connect to.
  returned: success
  type: list
  elements: dict
  contains:
    database:
      description: The database.
      type: str
    connect:
      description: Whether it takes connections, and this role may connect to it.
      type: bool
    template:
      description: Whether it is a template.
      type: bool
wraparound:
  description: How old the oldest transaction is that each database still has, the oldest first. At two thousand million the server stops.
  returned: success
  type: list
  elements: dict
  contains:
    database:
      description: The database.
      type: str
    xid_age:
      description: In transactions.
      type: int
    mxid_age:
      description: In multixacts.
      type: int
"""

import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._postgresql import CREDENTIALS, OPTIONS, Server, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_info
from ansible_collections.homelab.healer.plugins.module_utils._sessions import activity, session_names, stated


@dataclass(frozen=True)
class Request:
    """Which sessions to tell of, and whether with what they run."""

    login_db: str
    database: str | None = field(metadata={"parse": stated})
    pids: tuple[str, ...] | None = field(metadata={"parse": session_names})
    queries: bool


def report(client: Server, request: Request) -> dict[str, t.Any]:
    """Look once."""
    return activity(client, request.database, request.pids, request.queries)


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        login_db=dict(type="str", default="postgres"),
        database=dict(type="str"),
        pids=dict(type="list", elements="str"),
        queries=dict(type="bool", default=False),
    ),
    **CREDENTIALS,
)


def main() -> None:
    run_info(Request, connect, report, ARGUMENTS)


if __name__ == "__main__":
    main()
