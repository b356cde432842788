"""pg_terminate against real servers. A test's name has the number of the trap that it is about, where it is about one."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import subprocess
import threading
import time
import typing as t
from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extras import LogicalReplicationConnection

from ansible_collections.homelab.healer.plugins.module_utils import _run, _sessions
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Denied, HealerError, Invalid, NotFound, Refused, TimedOut, Unreachable
from ansible_collections.homelab.healer.plugins.module_utils._postgresql import Role, Server, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import Answer
from ansible_collections.homelab.healer.plugins.modules import pg_activity_info, pg_terminate
from tests.lab.modules import Caller, call, read
from tests.lab.postgres import NoPostgres, Pool, Postgres, _become, _environment, _free_port, _give, blockers, postgres

RIGHTS = ["pg_read_all_stats", "pg_signal_backend"]
SIGNALS = ("pg_terminate_backend", "pg_cancel_backend")
SLEEP = "SELECT pg_sleep(1000)"


@pytest.fixture
def terminate(pg: Postgres) -> Caller:
    """The module as a role that has exactly the rights that its documentation names."""
    pg.role("healer", grants=RIGHTS)
    return Caller(pg_terminate, pg.socket_options("healer", timeout=5))


@contextlib.contextmanager
def session(pg: Postgres, *statements: str, database: str = "prod", user: str = "app", application: str = "one", **more: t.Any) -> t.Iterator[t.Any]:
    """A session that has executed these; the last is only sent."""
    client = pg.connect(database, user, application_name=application, **more)
    with contextlib.closing(client), client.cursor() as cursor:
        for statement in statements[:-1]:
            cursor.execute(statement)
        thread = threading.Thread(target=_quietly, args=(cursor, statements[-1])) if statements else None
        if thread:
            thread.start()
            eventually(lambda: pg.sql("SELECT query FROM pg_stat_activity WHERE pid = %s", client.info.backend_pid) == [(statements[-1],)])
        try:
            yield client
        finally:
            pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s", client.info.backend_pid)
            if thread:
                thread.join()


def standby(pg: Postgres) -> t.Any:
    """A connection such as a subscriber has."""
    options: dict[str, t.Any] = dict(host=str(pg.folder), port=pg.port, user="lab", password="lab-password")
    return psycopg2.connect(dbname="prod", application_name="standby", connection_factory=LogicalReplicationConnection, **options)


def _quietly(cursor: t.Any, statement: str) -> None:
    with contextlib.suppress(psycopg2.Error):
        cursor.execute(statement)


def eventually(check: t.Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.01)


def waits_for(pg: Postgres, waiter: int, blocker: int) -> None:
    eventually(lambda: pg.sql("SELECT pg_blocking_pids(%s)", waiter) == [([blocker],)])


def there(pg: Postgres, client: t.Any) -> bool:
    return bool(pg.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid_of(client)))


def pid_of(client: t.Any) -> int:
    return int(client.info.backend_pid)


def id_of(pg: Postgres, pid: int) -> str:
    ((found,),) = pg.sql(f"SELECT {_sessions.SESSION_ID} FROM pg_stat_activity a WHERE a.pid = %s", pid)
    return str(found)


def only(answer: Answer) -> dict[str, t.Any]:
    (result,) = answer["results"]
    return dict(result)


def stale(monkeypatch: pytest.MonkeyPatch, between: t.Callable[[t.Sequence[_sessions.Session]], t.Sequence[_sessions.Session] | None]) -> None:
    """Have something happen between the first look and the first signal, or have that look see something else."""
    looks: list[int] = []

    def observe(client: Server, request: t.Any) -> t.Sequence[_sessions.Session]:
        seen = pg_terminate.observe(client, request)
        looks.append(1)
        return (between(seen) or seen) if len(looks) == 1 else seen

    monkeypatch.setattr(pg_terminate, "MODULE", dataclasses.replace(pg_terminate.MODULE, observe=observe))


def test_one_is_ended_by_its_id_and_once(pg: Postgres, terminate: Caller) -> None:
    with Pool(pg, 3, "idle in transaction") as pool:
        pid, name = pool.pids[1], id_of(pg, pool.pids[1])
        assert f" {name} app@prod " in pg.log.read_text(errors="replace")  # PostgreSQL's own name of it
        foretold = terminate(pids=[name], check=True)
        assert (foretold["changed"], len(pool.alive())) == (True, 3)
        answer = terminate(pids=[name])
        assert pool.alive() == set(pool.pids) - {pid}
        result = only(answer)
        assert (result["id"], result["result"], result["reappeared"], result["verified"]) == (name, "gone", 0, {"backend_start": "activity"})
        assert answer["steps"][0].startswith(f"terminate session {name} (pid {pid}, app@prod, idle in transaction for ")
        assert (answer["after"], answer["reversibility"], answer["undo"]) == ({name: {"backend_start": "gone"}}, "none", [])
        assert foretold["before"] == answer["before"]
        assert "idle_for" in answer["diff"][0]["before"]
        again = terminate(pids=[name, str(pid)])
        assert not again["changed"]
        assert {result["result"] for result in again["results"]} == {"gone"}
        assert all(result["notes"] for result in again["results"])


def test_whom_the_server_does_not_have_is_not_told_as_gone(pg: Postgres, terminate: Caller) -> None:
    with Pool(pg, 1) as pool:
        for options, words in (
            (dict(database="prdo"), "prdo: there is no such database"),
            (dict(users=["app", "ap", "APP"]), "ap, APP: there is no such role"),
        ):
            error = terminate.fails(**options)
            assert isinstance(error, NotFound)
            assert f"cannot look at the sessions of {words}" in str(error)
        assert len(pool.alive()) == 1
        assert terminate(database="prod", users=["app"])["changed"]


def test_w1_check_mode_sends_no_signal(pg: Postgres, terminate: Caller) -> None:
    with Pool(pg, 4) as pool, session(pg, SLEEP):
        pg.mark()
        for mode in ("terminate", "cancel", "escalate"):
            answer = terminate(database="prod", mode=mode, check=True)
            assert answer["changed"]
        assert not any(name in pg.logged() for name in SIGNALS)
        assert len(pool.alive()) == 4
        terminate(database="prod")
        assert SIGNALS[0] in pg.logged()


def test_w4_what_was_ended_has_changed_and_what_was_not_has_not(terminate: Caller, pg: Postgres) -> None:
    with Pool(pg, 2):
        assert terminate(users=["app"])["changed"]
    assert terminate(users=["app"]) == {**terminate(users=["app"]), "changed": False, "results": [], "steps": []}


@pytest.mark.parametrize("grants", [[], ["pg_signal_backend"]])
def test_w24_what_is_hidden_is_not_passed_by(pg: Postgres, grants: list[str]) -> None:
    pg.role("healer", grants=grants)
    pg.database("other")
    caller = Caller(pg_terminate, pg.socket_options("healer"))
    with Pool(pg, 2) as pool:
        for options in (dict(states=["idle"]), dict(users=["app"]), dict(min_idle="0"), dict(pids=[str(pool.pids[0])]), dict(pids=[id_of(pg, pool.pids[0])])):
            error = caller.fails(check=True, **options)
            assert isinstance(error, Denied)
            assert "GRANT pg_read_all_stats TO healer" in error.fix
        assert ("1 " if "pids" in options else "2 ") in error.why
        assert not caller(database="other", states=["idle"])["changed"]  # whoever they are, they are not meant
        assert not caller(users=["lab"], application_names=["nobody's"])["changed"]
        assert len(pool.alive()) == 2


def test_w24_one_of_a_superuser_spoils_nothing(pg: Postgres, terminate: Caller) -> None:
    with Pool(pg, 3) as pool, session(pg, user="lab") as admin:
        answer = terminate(database="prod")
        assert [result["excluded"] for result in answer["results"] if not result["changed"]] == [["superusers"]]
        assert (pool.alive(), there(pg, admin)) == (set(), True)
        for options in (dict(include=["superusers"]), dict(users=["lab"])):
            error = terminate.fails(database="prod", check=True, **options)
            assert isinstance(error, Denied)
            assert "the superuser lab" in error.why
        assert Caller(pg_terminate, pg.socket_options("lab"))(database="prod", users=["lab"])["changed"]
        assert not there(pg, admin)


def test_no_criterion_means_nobody(pg: Postgres, terminate: Caller) -> None:
    with Pool(pg, 1) as pool:
        empty: list[dict[str, t.Any]] = [{}, dict(blocking_only=False), dict(include=["own"])]
        empty += [dict(users=[]), dict(users=[""]), dict(database=""), dict(pids=[]), dict(states=[])]
        for options in empty:
            assert isinstance(terminate.fails(**options), Invalid), options
        wrong: list[dict[str, t.Any]] = [dict(pids=["1;2"]), dict(pids=["0"]), dict(pids=["-1"]), dict(client_addresses=["10.0.0.5/8"]), dict(min_idle="soon")]
        for options in wrong:
            assert isinstance(terminate.fails(**options), Invalid), options
        assert len(pool.alive()) == 1


def test_all_criteria_are_to_be_met(pg: Postgres, terminate: Caller) -> None:
    pg.role("web")
    pg.database("other", owner="app")
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(Pool(pg, 1, application="a"))
        b = stack.enter_context(Pool(pg, 1, application="b"))
        c = stack.enter_context(Pool(pg, 1, "idle in transaction", application="a"))
        d = stack.enter_context(Pool(pg, 1, database="other", application="a"))
        e = stack.enter_context(Pool(pg, 1, "active", user="web", application="a"))
        pools = dict(a=a, b=b, c=c, d=d, e=e)

        def meant(**options: t.Any) -> str:
            steps = " ".join(terminate(check=True, **options)["steps"])
            return "".join(name for name, pool in pools.items() if f"pid {pool.pids[0]}," in steps)

        assert meant(database="prod") == "abce"
        assert meant(application_names=["a"]) == "acde"
        assert meant(application_names=["a"], database="prod") == "ace"
        assert meant(users=["web", "healer"]) == "e"
        assert meant(states=["idle"], users=["app"]) == "abd"
        assert meant(states=["idle", "active"], database="prod") == "abe"
        assert meant(client_addresses=["local"]) == "abcde"
        assert meant(client_addresses=["127.0.0.0/8", "::1"]) == ""
        assert meant(pids=[str(a.pids[0]), str(b.pids[0])], application_names=["b"]) == "b"
        assert meant(min_idle="1h") == meant(min_query_age="1h", states=["active"]) == meant(min_transaction_age="1d") == ""
        time.sleep(0.05)
        assert meant(min_idle="0.01") == "abcd"
        assert meant(min_transaction_age="0.01") == "ce"
        assert meant(min_query_age="0.01") == "e"
        with session(pg, host="127.0.0.1") as remote:
            pools["r"] = t.cast(Pool, t.cast(object, _One(pid_of(remote))))
            assert meant(client_addresses=["127.0.0.0/8"]) == "r"
            assert meant(client_addresses=["127.0.0.1", "local"]) == "abcder"


class _One:
    def __init__(self, pid: int) -> None:
        self.pids = [pid]


def test_t4_1_what_must_not_be_hit_unless_it_is_named(pg: Postgres) -> None:
    everything = list(_sessions.INCLUDES)
    pg.role("copier", "LOGIN REPLICATION", grants=["app"])
    pg.sql("CREATE TABLE big AS SELECT generate_series(1, 1000) AS id; ALTER TABLE big OWNER TO app", database="prod")
    admin = Caller(pg_terminate, pg.socket_options("lab", timeout=5))
    with contextlib.ExitStack() as stack:
        started = {
            "own": stack.enter_context(session(pg, application="homelab.healer")),
            "superusers": stack.enter_context(session(pg, user="lab")),
            "replication": stack.enter_context(session(pg, user="copier")),
            "tools": stack.enter_context(session(pg, application="pg_dump")),
            "plain": stack.enter_context(session(pg)),
        }
        stack.enter_context(session(pg, "BEGIN", "LOCK TABLE big", "SELECT 1", application="locker"))
        started["maintenance"] = stack.enter_context(session(pg, "/* nightly */ VACUUM big", application="waits for its lock"))
        copy = "COPY (SELECT pg_sleep(1000)) TO '/dev/null'"
        copying = stack.enter_context(session(pg, copy, user="lab", application="copies"))
        walsender = stack.enter_context(contextlib.closing(standby(pg)))
        parallel = "SET force_parallel_mode = on" if pg.version < 160000 else "SET debug_parallel_query = on"
        leader = stack.enter_context(session(pg, parallel, SLEEP, application="leader"))
        workers = "SELECT pid FROM pg_stat_activity WHERE leader_pid = %s AND pid <> leader_pid"
        eventually(lambda: bool(pg.sql(workers, pid_of(leader))))
        ((worker,),) = pg.sql(workers, pid_of(leader))
        pids = {kind: str(pid_of(client)) for kind, client in started.items()}
        found = {str(result["pid"]): result for result in admin(database="prod", check=True)["results"]}
        assert {kind: found[pid]["excluded"] for kind, pid in pids.items()} == {**{kind: [kind] for kind in pids}, "plain": []}
        assert found[str(pid_of(copying))]["excluded"] == ["maintenance", "superusers"]
        assert found[str(pid_of(walsender))]["excluded"] == ["replication", "superusers"]
        assert found[str(worker)]["excluded"] == ["background"]
        assert not any(result["changed"] for result in found.values() if result["excluded"])
        assert all(result["notes"] for result in found.values() if result["excluded"])
        for kind, pid in {**pids, "background": str(worker)}.items():
            if kind != "plain":
                error = admin.fails(pids=[pid], check=True)
                assert (type(error), kind in error.fix) == (Refused, True)
                assert isinstance(admin.fails(pids=[pid], include=[other for other in everything if other != kind], check=True), Refused)
                assert admin(pids=[pid], include=[kind], check=True)["changed"]
        for kind in ("superusers", "replication"):
            user = "lab" if kind == "superusers" else "copier"
            assert admin(users=[user], pids=[pids[kind]], check=True)["changed"]
        checkpointer = str(pg.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")[0][0])
        assert isinstance(admin.fails(pids=[checkpointer]), Refused)
        assert isinstance(admin.fails(pids=[checkpointer], include=everything), (Conflict, Refused))
        ended = admin(database="prod", max_sessions=20)
        left = {str(pid) for (pid,) in pg.sql("SELECT pid FROM pg_stat_activity WHERE datname = 'prod'")}
        assert left == {pid for kind, pid in pids.items() if kind != "plain"} | {str(pid_of(copying)), str(pid_of(walsender))}
        assert {result["application_name"] for result in ended["results"] if result["changed"]} == {"one", "locker", "leader"}


def test_t4_1_it_never_ends_itself(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Caller(pg_terminate, pg.socket_options("lab"))
    everything = list(_sessions.INCLUDES)
    answer = admin(application_names=["homelab.healer"], include=everything)
    assert (answer["changed"], answer["results"]) == (False, [])
    own: list[str] = []

    def observe(client: Server, request: t.Any) -> t.Any:
        own[:] = [str(row["pid"]) for row in client.rows("", "SELECT pg_backend_pid() AS pid")]
        return pg_terminate.observe(client, dataclasses.replace(request, pids=tuple(own)))

    monkeypatch.setattr(pg_terminate, "MODULE", dataclasses.replace(pg_terminate.MODULE, observe=observe))
    error = admin.fails(pids=["1"], include=everything)
    assert isinstance(error, Refused)
    assert "the one that would end it" in error.why


@pytest.mark.parametrize("missing", RIGHTS)
def test_t4_2_each_right_is_needed_and_named(pg: Postgres, missing: str) -> None:
    pg.role("healer", grants=[right for right in RIGHTS if right != missing])
    caller = Caller(pg_terminate, pg.socket_options("healer"))
    with Pool(pg, 2, "idle in transaction") as pool:
        for check in (True, False):
            error = caller.fails(users=["app"], check=check)
            assert isinstance(error, Denied)
            assert f"GRANT {missing} TO healer" in error.fix
        assert len(pool.alive()) == 2
        pg.sql(f"GRANT {missing} TO healer")
        assert caller(users=["app"])["changed"]
        assert pool.alive() == set()


def test_t4_2_the_rights_of_a_user_are_enough_for_its_sessions(pg: Postgres) -> None:
    pg.role("healer", grants=["app"])
    with Pool(pg, 2) as pool, session(pg, user="lab"):
        assert Caller(pg_terminate, pg.socket_options("healer"))(users=["app"])["changed"]
        assert pool.alive() == set()


def test_t4_2_processes_of_the_server(pg: Postgres, terminate: Caller) -> None:
    pg.set(autovacuum="on")
    launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'autovacuum launcher'"
    eventually(lambda: bool(pg.sql(launcher)))
    pid = str(pg.sql(launcher)[0][0])
    assert "include to background" in terminate.fails(pids=[pid]).fix
    assert isinstance(terminate.fails(pids=[pid], include=["background"]), Denied)
    row = Row(backend_type="autovacuum worker", logged_in=False)
    without = _listing(signals=True)
    with pytest.raises(Denied, match="pg_signal_autovacuum_worker"):
        _sessions.need_the_right(row, without, "")
    _sessions.need_the_right(row, dataclasses.replace(without, signals_autovacuum=True), "")


def test_t4_2_an_autovacuum_worker(pg: Postgres, terminate: Caller) -> None:
    slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 0"
    pg.sql(f"CREATE TABLE slow WITH ({slow}) AS SELECT generate_series(1, 200000) AS id; DELETE FROM slow", database="prod")
    pg.set(autovacuum="on", autovacuum_naptime="1s")
    worker = "SELECT a.pid FROM pg_stat_activity a JOIN pg_stat_progress_vacuum p USING (pid) WHERE p.heap_blks_total > 500"  # not a catalog's
    eventually(lambda: bool(pg.sql(worker)), 20)
    pids = [str(pg.sql(worker)[0][0])]
    assert "include to background, maintenance" in terminate.fails(pids=pids).fix
    both = ["background", "maintenance"]
    assert isinstance(terminate.fails(pids=pids, include=both, check=True), Denied)
    if pg.version >= 180000:
        pg.sql("GRANT pg_signal_autovacuum_worker TO healer")
        assert only(terminate(pids=pids, include=both))["result"] == "gone"
    else:
        assert only(Caller(pg_terminate, pg.socket_options("lab"))(pids=pids, include=both))["result"] == "gone"


def Row(**over: t.Any) -> _sessions.Row:
    return _sessions.Row(**{**dict.fromkeys(_sessions.Row.__dataclass_fields__), **over})


def _listing(**over: t.Any) -> _sessions.Listing:
    role = Role("healer", False, True)
    return _sessions.Listing(**{**dict(rows=(), role=role, at=None, signals=False, signals_autovacuum=False), **over})


def test_t4_3_a_signal_that_was_sent_is_not_the_end(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process takes no signal, as one does not that waits for a disk."""
    admin = Caller(pg_terminate, pg.socket_options("lab"))
    with Pool(pg, 2) as pool:
        stuck = pool.pids[0]
        signal_process(stuck, "STOP")
        try:
            answer, error = call(pg_terminate, **admin.options, users=["app"], timeout=0.3)
        finally:
            signal_process(stuck, "CONT")
        assert isinstance(error, TimedOut)
        assert "synchronous standby" in error.why
        assert "Never kill -9" in error.fix
        results = {result["pid"]: result for result in answer["results"]}
        assert (results[stuck]["changed"], results[stuck]["unknown"], results[stuck]["result"]) == (True, True, "still_there")
        assert (results[pool.pids[1]]["result"], results[pool.pids[1]]["error"]) == ("gone", None)
        eventually(lambda: not pool.alive())


def signal_process(pid: int, name: str) -> None:
    subprocess.run(["kill", f"-{name}", str(pid)], check=True)


def test_t4_4_a_cancel_ends_a_statement_and_not_a_session(pg: Postgres, terminate: Caller) -> None:
    with Pool(pg, 1, "idle in transaction") as waiting, Pool(pg, 1, "active") as running:
        answer = terminate(users=["app"], mode="cancel")
        results = {result["pid"]: result for result in answer["results"]}
        idle, cancelled = results[waiting.pids[0]], results[running.pids[0]]
        assert (idle["changed"], "nothing to cancel" in idle["notes"][0]) == (False, True)
        assert (cancelled["result"], cancelled["after"], cancelled["verified"]) == ("cancelled", {"query_start": "cancelled"}, {"query_start": "activity"})
        assert answer["steps"][0].startswith(f"cancel the statement of session {cancelled['id']} (pid {running.pids[0]}, app@prod, active for ")
        assert len(waiting.alive() | running.alive()) == 2
        assert not terminate(users=["app"], mode="cancel")["changed"]


CATCHES = "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(1000); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$"
"""A statement that a cancel does not end."""


def test_t4_4_escalate_cancels_and_ends_what_goes_on(pg: Postgres, terminate: Caller) -> None:
    with Pool(pg, 1, "idle in transaction") as waiting, Pool(pg, 1, "active") as running, session(pg, CATCHES, application="stubborn") as stubborn:
        error = terminate.fails(application_names=["stubborn"], mode="cancel", timeout=0.3)
        assert isinstance(error, TimedOut)
        assert "mode=escalate" in error.fix
        pid = pid_of(stubborn)
        pg.mark()
        answer = terminate(users=["app"], mode="escalate", timeout=0.5)
        results = {result["pid"]: result for result in answer["results"]}
        assert {pid: result["result"] for pid, result in results.items()} == {
            waiting.pids[0]: "gone",
            running.pids[0]: "cancelled",
            pid: "gone",
        }
        assert "after it was cancelled" in results[pid]["notes"][0]
        assert (waiting.alive(), len(running.alive()), bool(pg.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid))) == (set(), 1, False)
        assert pg.logged().count("pg_cancel_backend(pid)") == 2  # what runs nothing is not cancelled first


def test_t4_5_a_pid_that_is_somebody_elses_by_now(pg: Postgres, terminate: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def older(seen: t.Sequence[_sessions.Session]) -> list[_sessions.Session]:
        before = [(one, t.cast(_sessions.Row, one.row)) for one in seen]
        return [
            dataclasses.replace(one, row=dataclasses.replace(row, backend_start=row.backend_start and row.backend_start - timedelta(hours=1)))
            for one, row in before
        ]

    with Pool(pg, 1) as pool:
        name = id_of(pg, pool.pids[0])
        other = f"{int(name.split('.')[0], 16) - 3600:x}.{pool.pids[0]:x}"
        gone = only(terminate(pids=[other]))
        assert (gone["id"], gone["result"], gone["changed"]) == (other, "gone", False)
        stale(monkeypatch, older)
        answer, error = call(pg_terminate, **terminate.options, pids=[str(pool.pids[0])])
        assert len(pool.alive()) == 1
        assert error is None or "there again" in str(error)
        assert answer["results"]


CHANGES: dict[str, dict[str, t.Any]] = {
    "states": dict(states=["idle in transaction"]),
    "min_idle": dict(min_idle="0"),
    "min_transaction_age": dict(min_transaction_age="0"),
    "application_names": dict(application_names=["victim"]),
    "blocking_only": dict(blocking_only=True),
}


def test_t4_5_what_is_no_longer_what_was_meant(pg: Postgres, terminate: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    pg.sql("CREATE TABLE one AS SELECT 1 AS id; ALTER TABLE one OWNER TO app", database="prod")
    for criterion, options in CHANGES.items():
        with contextlib.closing(pg.connect("prod", "app", application_name="victim")) as victim, victim.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("UPDATE one SET id = 2")
            with session(pg, "UPDATE one SET id = 3", application="waiter") as waiter, monkeypatch.context() as patch:
                waits_for(pg, pid_of(waiter), pid_of(victim))

                def moves_on(_seen: t.Any, cursor: t.Any = cursor) -> None:
                    cursor.execute("COMMIT")
                    cursor.execute("SET application_name = 'another'")
                    cursor.execute("BEGIN")

                stale(patch, moves_on)
                answer, error = call(pg_terminate, **terminate.options, pids=[str(pid_of(victim))], **options)
            assert isinstance(error, Conflict), criterion
            assert error.retryable
            assert (answer["changed"], only(answer)["result"], there(pg, victim)) == (False, "still_there", True)


TWICE = "DO $$ BEGIN BEGIN PERFORM pg_sleep(1000); EXCEPTION WHEN query_canceled THEN NULL; END; END $$"


def test_t4_5_a_statement_that_is_another_by_now(pg: Postgres, terminate: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(pg.connect("prod", "app")) as victim, victim.cursor() as cursor:
        pid = pid_of(victim)
        state = "SELECT state, query FROM pg_stat_activity WHERE pid = %s"

        def run() -> None:
            _quietly(cursor, TWICE)
            _quietly(cursor, SLEEP)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            eventually(lambda: pg.sql(state, pid) == [("active", TWICE)])

            def runs_another(_seen: t.Any) -> None:
                pg.sql("SELECT pg_cancel_backend(%s)", pid)
                eventually(lambda: pg.sql(state, pid) == [("active", SLEEP)])

            stale(monkeypatch, runs_another)
            result = only(terminate(min_query_age="0", mode="cancel"))
            assert result["notes"] == ["it ended by itself before it was cancelled"]
            assert pg.sql(state, pid) == [("active", SLEEP)]
        finally:
            pg.sql("SELECT pg_terminate_backend(%s)", pid)
            thread.join()


def test_t4_5_one_that_went_by_itself(pg: Postgres, terminate: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(pg, 3) as pool:
        stale(monkeypatch, lambda _seen: pool.close())
        answer = terminate(users=["app"])
        assert [result["result"] for result in answer["results"]] == ["gone"] * 3
        assert all("by itself" in result["notes"][0] for result in answer["results"])


def test_a_statement_that_ended_by_itself(pg: Postgres, terminate: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(pg, 1, "active") as pool:

        def ends(_seen: t.Any) -> None:
            pg.sql("SELECT pg_cancel_backend(%s)", pool.pids[0])
            eventually(lambda: pg.sql("SELECT state FROM pg_stat_activity WHERE pid = %s", pool.pids[0]) == [("idle",)])

        stale(monkeypatch, ends)
        result = only(terminate(users=["app"], mode="cancel"))
        assert (result["result"], result["notes"]) == ("cancelled", ["it ended by itself before it was cancelled"])
        assert pool.alive() == set(pool.pids)


def test_the_root_of_a_queue(pg: Postgres, terminate: Caller) -> None:
    assert terminate(blocking_only=True)["results"] == []
    with blockers(pg, depth=2, waiters=3) as blocked:
        for check in (True, False):
            answer = terminate(blocking_only=True, check=check)
            assert (only(answer)["pid"], answer["changed"]) == (blocked.root, True)
        eventually(lambda: not pg.sql("SELECT 1 FROM pg_locks WHERE NOT granted"))
        alive = {pid for (pid,) in pg.sql("SELECT pid FROM pg_stat_activity WHERE pid = ANY (%s)", blocked.waiting)}
        assert alive == set(blocked.waiting)  # none of those that waited was ended


def test_the_leader_of_a_parallel_worker_that_waits_is_no_root() -> None:
    rows = (Row(pid=1), Row(pid=2), Row(pid=3, leader_pid=2, blocked_by=[1]), Row(pid=4, blocked_by=[2, 2]), Row(pid=5, blocked_by=[4, 2]))
    assert _listing(rows=rows).roots() == {1: [2, 4, 5]}
    assert _listing(rows=(Row(pid=1, blocked_by=[2]), Row(pid=2, blocked_by=[1]))).roots() == {}  # a deadlock: the server ends it


def test_t4_6_a_prepared_transaction_is_named(pg: Postgres, terminate: Caller) -> None:
    pg.sql("CREATE TABLE one AS SELECT 1 AS id; ALTER TABLE one OWNER TO app", database="prod")
    with contextlib.closing(pg.connect("prod", "app")) as client, client.cursor() as cursor:
        for statement in ("BEGIN", "UPDATE one SET id = 2", "PREPARE TRANSACTION 'it''s lost'"):
            cursor.execute(statement)
    with session(pg, "UPDATE one SET id = 3") as waiter:
        eventually(lambda: pg.sql("SELECT pg_blocking_pids(%s)", pid_of(waiter)) == [([0],)])
        with session(pg, "UPDATE one SET id = 4") as second:
            eventually(lambda: bool(pg.sql("SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s", pid_of(second))))
            answer = terminate(blocking_only=True)
            assert not answer["changed"]
            (note,) = only(answer)["notes"]
            assert "let app ROLLBACK PREPARED 'it''s lost' in the database prod" in note
            (root,) = read(pg_activity_info, **pg.socket_options("lab"))["blockers"]
            assert (root["kind"], root["id"], root["pid"], root["user"]) == ("prepared_transaction", "it's lost", None, "app")
            assert root["blocks"] == sorted([pid_of(waiter), pid_of(second)])
        assert terminate(blocking_only=True, users=["lab"])["results"] == []
        pg.sql("ROLLBACK PREPARED 'it''s lost'", database="prod")


@contextlib.contextmanager
def pgbouncer(pg: Postgres, **more: str) -> t.Iterator[int]:
    """PgBouncer before the database prod, for whoever comes; yields its port."""
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    if not Path(program).exists():
        pytest.skip("there is no PgBouncer: run tests/lab/prepare as root")
    port = _free_port()
    lines = dict(listen_addr="127.0.0.1", listen_port=port, unix_socket_dir="", auth_type="any", pool_mode="transaction", logfile=f"{pg.folder}/pgbouncer.log")
    file = pg.folder / "pgbouncer.ini"
    databases = "".join(f"{name} = host={pg.folder} port={pg.port} dbname={name} user=app password=app-password\n" for name in ("prod", "postgres"))
    file.write_text(f"[databases]\n{databases}[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in {**lines, **more}.items()))
    _give(file)
    command = [*_become(), program, str(file)]
    with subprocess.Popen(command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: _listens(port))
            yield port
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_t4_7_not_through_a_pooler(pg: Postgres, terminate: Caller) -> None:
    options = {name: value for name, value in terminate.options.items() if name != "login_unix_socket"}
    with pgbouncer(pg) as port:
        through = Caller(pg_terminate, {**options, "login_host": "127.0.0.1", "login_port": port, "ssl_mode": "disable"})
        error = through.fails(users=["app"])
        assert isinstance(error, Invalid)
        assert "address of the server itself" in error.fix
    with pgbouncer(pg, ignore_startup_parameters="options") as port:
        through.options["login_port"] = port
        error = through.fails(users=["app"])
        assert isinstance(error, Invalid)
        assert "takes away what a session sets" in error.why


def test_t4_7_a_poolers_session_is_told(pg: Postgres, terminate: Caller) -> None:
    with pgbouncer(pg, application_name_add_host="1") as port:
        client = psycopg2.connect(host="127.0.0.1", port=port, dbname="prod", user="somebody", application_name="shop")
        with contextlib.closing(client), client.cursor() as cursor:
            cursor.execute("SELECT 1")
            result = only(terminate(users=["app"]))
            assert result["application_name"].startswith("shop - 127.0.0.1:")
            assert "pooler" in result["notes"][0]


def test_a_pool_that_comes_back_is_told_and_no_failure(pg: Postgres, terminate: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(pg, 2) as pool, contextlib.ExitStack() as stack:

        def comes_back(_seen: t.Any) -> None:
            stack.enter_context(Pool(pg, 3))

        stale(monkeypatch, comes_back)
        answer = terminate(users=["app"])
        assert [(result["result"], result["reappeared"]) for result in answer["results"]] == [("gone", 3)] * 2
        assert pool.alive() == set()
        assert len(pg.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'app'")) == 3


def test_t4_8_it_gets_in_where_all_connections_are_taken(pg: Postgres) -> None:
    pg.role("healer", grants=RIGHTS)
    with Pool(pg, 127) as pool:
        error = Caller(pg_terminate, pg.socket_options("healer")).fails(users=["app"])
        assert isinstance(error, Unreachable)
        assert "pg_use_reserved_connections" in error.fix
        admin = Caller(pg_terminate, pg.socket_options("lab"))
        refused = admin.fails(users=["app"])
        assert (type(refused), "max_sessions is 100" in refused.why, len(pool.alive())) == (Refused, True, 127)
        with contextlib.closing(pg.connect("postgres")), contextlib.closing(pg.connect("postgres")):  # one is left
            answer = admin(users=["app"], max_sessions=127)
        assert (len(answer["results"]), pool.alive()) == (127, set())


def test_t4_8_reserved_connections() -> None:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres("embedded", max_connections="12", reserved_connections="2", max_wal_senders="0", wal_level="minimal"))
        except NoPostgres as missing:
            pytest.skip(str(missing))
        server.role("app")
        server.role("healer", grants=RIGHTS)
        server.database("prod", owner="app")
        caller = Caller(pg_terminate, server.socket_options("healer"))
        stack.enter_context(Pool(server, 7))
        error = caller.fails(users=["app"])
        assert isinstance(error, Unreachable)
        assert "GRANT pg_use_reserved_connections" in error.fix
        server.sql("GRANT pg_use_reserved_connections TO healer")
        told = read(pg_activity_info, **server.socket_options("healer"))["connections"]
        assert (told["max"], told["reserved"], told["used"], told["available"]) == (12, 5, 8, 0)
        assert caller(users=["app"])["changed"]


def test_t4_9_nothing_is_killed(pg: Postgres, terminate: Caller) -> None:
    """A server of which one process was killed ends all its sessions and recovers; this one goes on."""
    ((before,),) = pg.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    with Pool(pg, 5, "active"), session(pg, user="lab") as other:
        terminate(users=["app"], mode="escalate")
        terminate(users=["app"])
        assert there(pg, other)
    assert pg.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'") == [(before,)]


def test_t4_10_ages_are_those_of_the_moment(pg: Postgres, terminate: Caller) -> None:
    with Pool(pg, 1) as idle:
        pg.sql("SELECT pg_sleep(0.6)")
        facts = only(terminate(users=["app"], check=True))
        assert 0.5 < facts["idle_for"] < 30
        assert (facts["query_age"], facts["transaction_age"]) == (None, None)  # query_start is that of its last statement
        assert terminate(users=["app"], min_query_age="0.1", check=True)["steps"] == []
        assert terminate(users=["app"], min_idle="0.5", check=True)["changed"]
        assert terminate(users=["app"], min_idle="60", check=True)["steps"] == []
        assert len(idle.alive()) == 1


def test_t4_10_what_nobody_knows_is_not_passed_by(pg: Postgres, terminate: Caller) -> None:
    pg.sql("ALTER ROLE app SET track_activities = off")
    with contextlib.closing(pg.connect("prod", "app")) as client, client.cursor() as cursor:
        cursor.execute("SELECT 1")
        for options in (
            dict(min_idle="0"),
            dict(min_query_age="1h"),
            dict(min_transaction_age="0"),
            dict(states=["idle"]),
            dict(states=["disabled"], min_idle="0"),
        ):
            error = terminate.fails(database="prod", **options)
            assert isinstance(error, Refused), options
            assert "track_activities=on" in error.fix
        pg.database("other")
        assert terminate(database="other", min_idle="0")["results"] == []
        assert only(terminate(states=["disabled"], database="prod", check=True))["state"] == "disabled"
        assert terminate(database="prod")["changed"]
        assert not there(pg, client)


def test_t4_11_what_it_runs_is_not_told(pg: Postgres, terminate: Caller) -> None:
    with session(pg, "SELECT 'hunter2', pg_sleep(1000)"):
        assert "hunter2" not in repr(terminate(users=["app"], mode="escalate"))
        assert "hunter2" not in repr(terminate(users=["app"]))


def test_t4_12_one_look_sees_what_the_last_did_not(pg: Postgres, terminate: Caller) -> None:
    """In a transaction the activity would stay that of its first moment, and nobody would ever be seen to end."""
    with Pool(pg, 20, "idle in transaction"):
        began = time.monotonic()
        assert terminate(users=["app"])["changed"]
        assert time.monotonic() - began < 4  # less than the time-out


def test_a_connection_that_is_lost_is_no_lie(pg: Postgres, terminate: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Server.signal

    def lost(server: Server, *arguments: t.Any) -> bool:
        monkeypatch.setattr(Server, "signal", real)
        real(server, *arguments)
        pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'healer'")
        return real(server, *arguments)

    monkeypatch.setattr(Server, "signal", lost)
    monkeypatch.setattr(_run, "STILL_UNDER_WAY", 0.1)
    with Pool(pg, 1) as pool:
        result = only(terminate(users=["app"]))
        assert (result["changed"], result["result"], pool.alive()) == (True, "gone", set())
        assert "the reply to the change was lost" in result["notes"][0]


@contextlib.contextmanager
def benched(pg: Postgres) -> t.Iterator[set[int]]:
    """pgbench on a database of its own; yields the pids of its sessions. It stops when one of them fails."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    if not found:
        pytest.skip("there is no pgbench: run tests/lab/prepare as root")
    pg.role("bench")
    pg.database("bench", owner="bench")
    options = ["-h", str(pg.folder), "-p", str(pg.port), "-U", "bench", "bench"]
    environment = {**_environment(), "PGPASSWORD": "bench-password"}
    subprocess.run([str(found[-1]), "-i", "-q", *options], env=environment, check=True, capture_output=True)
    with subprocess.Popen([str(found[-1]), "-c", "6", "-T", "100", *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        asked = "SELECT pid FROM pg_stat_activity WHERE usename = 'bench' AND query <> ''"
        eventually(lambda: len(pg.sql(asked)) == 6)
        before = {pid for (pid,) in pg.sql(asked)}
        try:
            yield before
            assert {pid for (pid,) in pg.sql(asked)} == before
            assert process.poll() is None
        finally:
            process.kill()


def test_a_hundred_of_a_pool_under_load_on_both_sides(pg: Postgres, terminate: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    with benched(pg), Pool(pg, 100, "idle in transaction") as pool, contextlib.ExitStack() as stack:
        later: list[Pool] = []
        stale(monkeypatch, lambda _seen: later.append(stack.enter_context(Pool(pg, 5, "idle in transaction"))))
        pg.mark()
        answer = terminate(database="prod", states=["idle in transaction"])
        assert (len(answer["results"]), len(answer["steps"])) == (100, 100)
        assert {result["pid"] for result in answer["results"]} == set(pool.pids)
        assert {(result["result"], result["reappeared"], result["error"]) for result in answer["results"]} == {("gone", 5, None)}
        assert (pool.alive(), len(later[0].alive())) == (set(), 5)
        own = [line for line in pg.logged().splitlines() if " healer@" in line and "connection authorized" not in line]
        assert len({line.split("[")[1].split("]")[0] for line in own}) == 1  # one connection for all


def test_the_number_of_questions_does_not_grow(pg: Postgres, terminate: Caller) -> None:
    def asked(**options: t.Any) -> int:
        pg.mark()
        terminate(check=True, **options)
        return sum(" healer@" in line and "LOG:  statement" in line for line in pg.logged().splitlines())

    few = asked(users=["app"], blocking_only=True), asked(users=["app"])
    with Pool(pg, 60):
        assert (asked(users=["app"], blocking_only=True), asked(users=["app"])) == few


def wanted(**criteria: t.Any) -> _sessions.Wanted:
    return _sessions.Wanted(**{**dict.fromkeys((*_sessions.CRITERIA, "include")), **criteria})


def test_ten_thousand_are_judged_in_seconds() -> None:
    rows = tuple(
        Row(pid=pid, id=f"1.{pid:x}", user="app", application_name="pool", backend_type="client backend", logged_in=True, state="idle", state_age=9.0)
        for pid in range(1, 10001)
    )
    began = time.monotonic()
    by_state = _sessions.choose(_listing(rows=rows), wanted(states=("idle",), min_idle=5.0))
    by_id = _sessions.choose(_listing(rows=rows), wanted(pids=tuple(str(row.id) for row in rows)))
    assert (len(by_state), len(by_id)) == (10000, 10000)
    assert time.monotonic() - began < 10


NAMES = ["a", "A", "a ", " a", "%", "_", "a%", "à", "'", '"', "a'b", "\\", "a,b", "*", "?", "null", "0", "app", "prod", "x" * 63]
WORDS = st.one_of(
    st.sampled_from(NAMES), st.text(max_size=8), st.sampled_from(NAMES).flatmap(lambda name: st.sampled_from([name.upper(), name + " ", name[:-1], name * 2]))
)


def test_random_words_never_mean_another(pg: Postgres, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        for name in NAMES:
            stack.enter_context(contextlib.closing(pg.connect("prod", "app", application_name=name)))
        sessions = pg.sql("SELECT pid, usename::text, datname::text, application_name FROM pg_stat_activity WHERE usename = 'app'")
        admin = Caller(pg_terminate, pg.socket_options("lab"))
        params = dict.fromkeys(pg_terminate.ARGUMENTS["argument_spec"])
        params.update({**dict(login_port=5432, login_db="postgres", ssl_mode="disable", connect_timeout=10), **pg.socket_options("lab")})
        server = stack.enter_context(connect(params))
        monkeypatch.setattr(pg_terminate, "MODULE", dataclasses.replace(pg_terminate.MODULE, connect=lambda _params: contextlib.nullcontext(server)))

        @settings(max_examples=10000 if whole else 200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(
            database=st.one_of(st.none(), st.just("prod"), WORDS),
            users=st.one_of(st.none(), st.lists(st.one_of(st.just("app"), WORDS), max_size=2)),
            names=st.one_of(st.none(), st.lists(WORDS, max_size=2)),
            pids=st.one_of(st.none(), st.none(), st.lists(st.one_of(st.sampled_from([str(row[0]) for row in sessions]), WORDS), max_size=2)),
            addresses=st.one_of(st.none(), st.none(), st.lists(st.one_of(st.just("local"), WORDS), max_size=1)),
        )
        def check(database: str | None, users: list[str] | None, names: list[str] | None, pids: list[str] | None, addresses: list[str] | None) -> None:
            given_ = dict(database=database, users=users, application_names=names, pids=pids, client_addresses=addresses)
            options = {name: value for name, value in given_.items() if value is not None}
            answer, error = call(pg_terminate, True, **admin.options, **options)
            meant = {
                pid
                for pid, user, where, called in sessions
                if database in (None, where) and (users is None or user in users) and (names is None or called in names) and (pids is None or str(pid) in pids)
            }
            assert {result["pid"] for result in answer["results"] if result["steps"]} == (set() if error else meant)
            unknown = database not in (None, "prod") or any(user != "app" for user in users or ())
            assert error is None or isinstance(error, (Invalid, Refused)) or (unknown and isinstance(error, NotFound))

        check()


def test_names_of_nothing(pg: Postgres, terminate: Caller) -> None:
    assert isinstance(terminate.fails(login_db="nowhere", users=["app"]), NotFound)
    assert isinstance(terminate.fails(login_password="wrong", users=["app"]), Denied)
    assert isinstance(terminate.fails(login_unix_socket="/nowhere", users=["app"]), HealerError)
