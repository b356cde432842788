#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_terminate
version_added: 0.1.0
short_description: End PostgreSQL sessions, or what they run, and wait until they are gone
description:
  - Ends the sessions that meet all criteria, or cancels what they run, and tells what became of each.
  - It ends exactly those that it listed, and each only if it is still what it was when it was listed. A session that began meanwhile, or has the pid of
    one that ended, is never touched.
  - Backups, replication, maintenance, superusers and processes of the server are left alone unless O(include) says otherwise.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.change
  - homelab.healer.postgresql
attributes:
  check_mode:
    details: The sessions are only listed. What rights are missing is told in check mode too.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: partial
    details: Whoever meets the criteria by then is ended each time. A session named by its id in O(pids) is ended once.
options:
  login_db:
    description: The database to connect to. Any does, also for sessions of others.
    type: str
    default: postgres
  database:
    description: The database that they are connected to, exactly as it is named. It fails if there is no such database.
    type: str
  users:
    description:
      - The users that they logged in as. Who is named is meant, also a superuser or a user for replication.
      - It fails if the server does not have one of them.
    type: list
    elements: str
    aliases: [force_user, user]
  application_names:
    description: What they call themselves (C(application_name)), exactly.
    type: list
    elements: str
  client_addresses:
    description: Where they come from, addresses or networks such as V(10.0.0.0/24); V(local) is the server's socket.
    type: list
    elements: str
  states:
    description: Their state. V(disabled) is that of a session which does not tell it, since C(track_activities) is off for it.
    type: list
    elements: str
    choices: [active, idle, idle in transaction, idle in transaction (aborted), fastpath function call, disabled]
  min_idle:
    description: For how long they must have been idle at least, in a transaction or not, as V(90) (seconds), V(15m) or V(2h).
    type: str
  min_transaction_age:
    description: For how long they must have been in their transaction at least, written as O(min_idle) is.
    type: str
  min_query_age:
    description: For how long they must have been running their statement at least, written as O(min_idle) is.
    type: str
  blocking_only:
    description: Whether only those are meant that make others wait for a lock, directly or through others, and wait for nobody themselves.
    type: bool
    default: false
  pids:
    description:
      - Exactly these, by pid, or better by session id, as RV(homelab.healer.pg_activity_info#module:sessions[].id) and C(%c) in the server's log have it.
        A pid may be another session's by now, an id never is.
      - One that is gone needs nothing. One that is left alone by default is refused.
    type: list
    elements: str
  include:
    description:
      - What is not left alone. A session that is left alone for several reasons needs all of them.
      - V(superusers) are their sessions. V(replication) are standbys, subscribers, backups (walsenders) and users for replication. V(background) are
        all other processes of the server, such as autovacuum's. V(maintenance) is what vacuums, analyses, builds indexes, rewrites or copies tables.
      - V(tools) are those of backup, high availability and monitoring, by their C(application_name), such as C(pg_dump). V(own) are other sessions of
        this collection.
    type: list
    elements: str
    choices: [superusers, replication, background, maintenance, tools, own]
  mode:
    description:
      - V(terminate) ends the session, and with it its transaction. V(cancel) cancels the statement that it runs, and nothing else; to a session that runs
        none it does nothing, though it may hold locks.
      - V(escalate) cancels, and ends the session if its statement still runs after O(timeout). A session that runs none is ended at once.
    type: str
    choices: [terminate, cancel, escalate]
    default: terminate
  max_sessions:
    description: How many may be ended. If more meet the criteria nothing is done at all.
    type: int
    default: 100
  timeout:
    description: How many seconds to wait for each to be gone. With O(mode=escalate) they pass once before the session is ended and once after.
    type: float
    default: 10.0
  parallel:
    description: How many sessions are ended at the same time. All is done over one connection to the server.
    default: 100
notes:
  - At least one criterion must be given, and all that are given must be met.
  - Its role needs C(pg_read_all_stats) to see what other roles' sessions do, and C(pg_signal_backend), or the rights of the sessions' users, to end them.
    A superuser's session needs a superuser, an autovacuum worker a superuser or, from PostgreSQL 18 on, C(pg_signal_autovacuum_worker).
  - If sessions are hidden from the role that could be meant, it fails instead of passing them by.
  - Where all connections are taken, a superuser still gets in. From PostgreSQL 16 on so does a role with C(pg_use_reserved_connections), if the setting
    C(reserved_connections) is above 0.
  - The RV(reversibility) is V(none). Nothing can put back a session, its transaction or its temporary tables, so RV(undo) is empty.
  - A prepared transaction has no session. With O(blocking_only) it is named, and whoever knows what it was must roll it back.
  - A session that stays is never killed harder. C(kill -9) would make the server restart and end all sessions.
  - Behind a pooler such as PgBouncer a session is whichever client's has it at the moment, and the pooler opens a new one. Its own commands do that better.
seealso:
  - module: homelab.healer.pg_activity_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: End what is idle in a transaction for more than 15 minutes in prod
  homelab.healer.pg_terminate:
    login_host: db.example.com
    login_user: healer
    database: prod
    states: [idle in transaction, idle in transaction (aborted)]
    min_idle: 15m

- name: End one session by its id
  homelab.healer.pg_terminate:
    login_unix_socket: /var/run/postgresql
    pids: 6920b1a2.1f40

- name: End who blocks the application, cancelling first what runs
  homelab.healer.pg_terminate:
    login_host: db.example.com
    login_user: healer
    database: prod
    users: [app]
    blocking_only: true
    mode: escalate
    max_sessions: 3
"""

RETURN = r"""
before:
  description: For each session that is ended, by its id, when it began (C(backend_start)), or of a statement that is cancelled when that began.
  returned: always
  type: dict
  sample: {"6920b1a2.1f40": {"backend_start": "2025-11-21T18:39:30.123456+00:00"}}
after:
  description: The same as it is then, V(gone), V(cancelled), or V(ended) with O(mode=escalate).
  returned: always
  type: dict
  sample: {"6920b1a2.1f40": {"backend_start": "gone"}}
steps:
  description: What was done, or in check mode would be, a line each.
  returned: always
  type: list
  elements: str
  sample: ["terminate session 6920b1a2.1f40 (pid 8000, app@prod from 10.0.0.5, idle in transaction for 32 min)"]
undo:
  description: Always empty.
  returned: always
  type: list
  elements: dict
reversibility:
  description: V(none) where anything was ended.
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
        V(not_converged).
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
  description:
    - What became of each session that meets the criteria, those that are left alone included, and of each that is named in O(pids).
    - What a session runs is not told. Empty when the failure came before anything was planned.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The session's id, or what O(pids) names where it is gone.
      type: str
    name:
      description: The id, the pid, and whose it is.
      type: str
    changed:
      description: Whether it was ended. What cannot be known counts as changed.
      type: bool
    unknown:
      description: Whether it was told to end and nobody could see that it has.
      type: bool
    before:
      description: The part of RV(before) for this session.
      type: dict
    after:
      description: The part of RV(after) for this session.
      type: dict
    steps:
      description: What was done, or in check mode would be.
      type: list
      elements: str
    undo:
      description: Always empty.
      type: list
      elements: dict
    reversibility:
      description: As RV(reversibility), for this session.
      type: str
    verified:
      description: By what it is known; V(activity) is the server's list of sessions. Empty in check mode.
      type: dict
      sample: {"backend_start": "activity"}
    result:
      description: V(gone), V(cancelled) or V(still_there).
      type: str
    reappeared:
      description: >-
        How many sessions of the same user, database, application and address have begun since they were listed, as those of a pool that connects
        again. Only where it was ended.
      type: int
    excluded:
      description: The values of O(include) that would lift what keeps it from being ended, empty where nothing does.
      type: list
      elements: str
    pid:
      description: The pid.
      type: int
    user:
      description: The user.
      type: str
    database:
      description: The database.
      type: str
    application_name:
      description: What it calls itself.
      type: str
    client_addr:
      description: Where it comes from; V(null) for the socket.
      type: str
    state:
      description: Its state when it was listed.
      type: str
    wait:
      description: What it was waiting for, if it was.
      type: str
    backend_type:
      description: What kind of process it is.
      type: str
    started:
      description: When it began.
      type: str
    query_started:
      description: When the statement began that it ran; V(null) if it ran none.
      type: str
    transaction_age:
      description: For how many seconds it was in its transaction; V(null) without one.
      type: float
    query_age:
      description: For how many seconds it was running its statement; V(null) without one.
      type: float
    idle_for:
      description: For how many seconds it was idle, in a transaction or not; V(null) if it was not.
      type: float
    notes:
      description: What a person should know, such as why it is left alone.
      type: list
      elements: str
    error:
      description: What went wrong with this session, as in RV(error), or V(none).
      type: dict
"""

import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._change import Change, Step, at_most, plan_each
from ansible_collections.homelab.healer.plugins.module_utils._errors import NotConverged
from ansible_collections.homelab.healer.plugins.module_utils._postgresql import CREDENTIALS, OPTIONS, Server, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, change_options, run
from ansible_collections.homelab.healer.plugins.module_utils._sessions import (
    CRITERIA,
    INCLUDES,
    STATES,
    Row,
    Session,
    Wanted,
    choose,
    end,
    facts_of,
    look,
    need_not_excluded,
    need_the_right,
    need_to_exist,
    need_to_judge,
    need_to_see,
    notes_of,
)
from ansible_collections.homelab.healer.plugins.module_utils._sizes import at_most_a_day


@dataclass(frozen=True)
class Request(Wanted):
    """Which sessions shall be ended, and how."""

    login_db: str
    mode: str
    max_sessions: int
    timeout: float = field(metadata={"parse": at_most_a_day})


@dataclass(frozen=True)
class End(Step):
    """End one session, or with ``cancels`` at least what it runs, and wait until it is so."""

    session: Session
    row: Row
    request: Request
    cancels: bool

    def __str__(self) -> str:
        who = self.row.described(doing=True)
        if not self.cancels:
            return f"terminate {who}"
        return f"cancel the statement of {who}" + (f", and terminate it after {self.request.timeout:g} s" if self.request.mode == "escalate" else "")

    def apply(self, client: Server) -> tuple[str, ...]:
        return end(client, self.session, self.request, self.request.mode, self.request.timeout)

    def _ended(self, now: Session) -> bool:
        return now.gone or (self.cancels and now.row is not None and (not now.row.running or now.row.query_start != self.row.query_start))

    def prove(self, client: Server, now: Session) -> dict[str, str]:
        if not self._ended(now):
            raise NotConverged(f"did {self}, but it is there again", why="the server lists it", fix="Look at it with homelab.healer.pg_activity_info.")
        return {"query_start" if self.cancels else "backend_start": "activity"}

    def tell(self, client: Server, now: Session) -> dict[str, t.Any]:
        result = "gone" if now.gone else "cancelled" if self._ended(now) else "still_there"
        if now.listing is None or self.session.listing is None:
            return dict(result=result)
        return dict(result=result, reappeared=now.listing.began_since(self.row.identity, self.session.listing.at))


def observe(client: Server, request: Request) -> list[Session]:
    """The sessions that the request means, those included that are left alone."""
    request.need_a_criterion()
    need_to_exist(client, request.database, request.users)
    return choose(look(client, blocking=bool(request.blocking_only)), request)


def plan(request: Request, now: t.Sequence[Session]) -> dict[t.Any, Change]:
    """A change for each session that shall end."""
    need_to_see(now)
    return at_most("max_sessions", request.max_sessions, now, plan_each(now, lambda session: plan_one(request, session)))


def plan_one(request: Request, now: Session) -> Change:
    """How one session is ended, if it is."""
    row, listing, facts, notes = now.row, now.listing, facts_of(now), notes_of(now)
    if row is None or listing is None:
        return Change(facts=facts, notes=notes)
    what = f"will not end {now.name}"
    if now.named and now.meets is not False:
        need_not_excluded(now, what)
    if not now.excluded:
        need_to_judge(row, what, now.meets)
    if now.excluded or not now.meets:
        return Change(facts=facts, notes=notes)
    cancels = request.mode != "terminate" and row.running
    if request.mode == "cancel" and not cancels:
        nothing = "it runs no statement, so there is nothing to cancel; only mode=terminate ends it and gives its locks back"
        return Change(facts=facts, notes=(*notes, nothing))
    need_the_right(row, listing, what)
    column, start, ended = ("query_start", row.query_start, "cancelled") if cancels else ("backend_start", row.backend_start, "gone")
    return Change(
        {column: start and start.isoformat()},
        {column: "ended" if cancels and request.mode == "escalate" else ended},
        steps=(End(now, row, request, cancels),),
        reversibility="none",
        notes=notes,
        facts=facts,
        action=True,
        shown=(dict(state=row.told_state, **row.ages), {}),
    )


MODULE = Module(Request, connect, observe, plan, target="pids", selectors=tuple(name for name in CRITERIA if name != "pids"))
LIST = dict(type="list", elements="str")
ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        login_db=dict(type="str", default="postgres"),
        database=dict(type="str"),
        users=dict(LIST, aliases=["force_user", "user"]),
        application_names=LIST,
        client_addresses=LIST,
        states=dict(LIST, choices=list(STATES)),
        min_idle=dict(type="str"),
        min_transaction_age=dict(type="str"),
        min_query_age=dict(type="str"),
        blocking_only=dict(type="bool", default=False),
        pids=LIST,
        include=dict(LIST, choices=list(INCLUDES)),
        mode=dict(type="str", choices=["terminate", "cancel", "escalate"], default="terminate"),
        max_sessions=dict(type="int", default=100),
        timeout=dict(type="float", default=10.0),
        **change_options(parallel=100),
    ),
    **CREDENTIALS,
)


def main() -> None:
    run(MODULE, ARGUMENTS)


if __name__ == "__main__":
    main()
