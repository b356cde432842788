"""pg_activity_info against real servers."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import threading
import time
import typing as t
from datetime import datetime, timezone

import psycopg2
import pytest

from ansible_collections.homelab.healer.plugins.module_utils import _postgresql, _sessions
from ansible_collections.homelab.healer.plugins.module_utils._errors import NotFound
from ansible_collections.homelab.healer.plugins.modules import pg_activity_info
from tests.lab.modules import read
from tests.lab.postgres import Pool, Postgres, _environment, _free_port, blockers


@pytest.fixture
def look(pg: Postgres) -> t.Callable[..., dict[str, t.Any]]:
    """The module as a role that has the right which its documentation names."""
    pg.role("healer", grants=["pg_read_all_stats"])
    return lambda **options: read(pg_activity_info, **pg.socket_options("healer"), **options)


Look = t.Callable[..., t.Dict[str, t.Any]]


def eventually(check: t.Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.01)


@contextlib.contextmanager
def running(pg: Postgres, statement: str, database: str = "prod", user: str = "app") -> t.Iterator[int]:
    """A session that runs a statement; yields its pid."""
    client = pg.connect(database, user)
    pid = int(client.info.backend_pid)

    def run() -> None:
        with contextlib.suppress(psycopg2.Error), client.cursor() as cursor:
            cursor.execute(statement)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        eventually(lambda: pg.sql("SELECT state, left(query, 50) FROM pg_stat_activity WHERE pid = %s", pid) == [("active", statement[:50])])
        yield pid
    finally:
        pg.sql("SELECT pg_terminate_backend(%s)", pid)
        thread.join()
        client.close()


def test_sessions_and_connections(pg: Postgres, look: Look) -> None:
    with Pool(pg, 3), Pool(pg, 2, "idle in transaction"), Pool(pg, 1, "active") as active, contextlib.closing(pg.connect("postgres")):
        seen = look()
        assert len(seen["sessions"]) == seen["found"] == 7
        told = seen["connections"]
        assert (told["max"], told["reserved"], told["used"], told["available"]) == (130, 3, 8, 119)
        assert told["share"] == round(8 / 127, 3)
        assert told["by_state"] == {"active": 2, "idle": 4, "idle in transaction": 2}
        assert told["by_database"] == {"postgres": 2, "prod": 6}
        assert told["by_user"] == {"app": 6, "healer": 1, "lab": 1}
        (one,) = [session for session in seen["sessions"] if session["pid"] == active.pids[0]]
        assert (one["state"], one["idle_for"], one["wait"]) == ("active", None, "Timeout: PgSleep")
        assert one["query_age"] >= 0
        assert "query" not in one
        assert {session["database"] for session in look(database="prod")["sessions"]} == {"prod"}
        assert [session["id"] for session in look(pids=[one["id"]])["sessions"]] == [one["id"]]
        assert look(pids=[f"1.{one['pid']:x}"])["found"] == 0
        assert seen["hidden"] == 0


def test_what_is_hidden_is_counted(pg: Postgres, look: Look) -> None:
    pg.role("healer")
    with Pool(pg, 3, "idle in transaction") as pool, contextlib.closing(pg.connect("prod", "healer")):
        seen = look(database="prod")
        assert (seen["hidden"], seen["found"], seen["connections"]["used"]) == (3, 4, 5)
        assert [(one["user"], one["id"], one["state"]) for one in seen["sessions"] if one["user"] == "app"] == [("app", None, None)] * 3
        assert look(pids=[f"6920b1a2.{pool.pids[0]:x}"])["found"] == 1  # it could be that one, so nobody may say that it is gone


def test_what_is_not_there_is_no_peace(pg: Postgres, look: Look) -> None:
    for name in ("prdo", "PROD", "pro%", "x" * 64):
        with pytest.raises(NotFound, match=f"cannot look at the sessions of {name}: there is no such database"):
            look(database=name)
    assert look(database="prod")["found"] == 0


def test_databases(pg: Postgres, look: Look) -> None:
    pg.database("closed")
    pg.database("private")
    pg.sql("ALTER DATABASE closed ALLOW_CONNECTIONS false")
    pg.sql("REVOKE CONNECT ON DATABASE private FROM public")
    told = {one["database"]: (one["connect"], one["template"]) for one in look()["databases"]}
    assert told == {
        "closed": (False, False),
        "postgres": (True, False),
        "private": (False, False),
        "prod": (True, False),
        "template0": (False, True),
        "template1": (True, True),
    }


def test_any_process_that_is_named_is_found(pg: Postgres, look: Look) -> None:
    ((pid,),) = pg.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    assert [one["backend_type"] for one in look(pids=[str(pid)])["sessions"]] == ["checkpointer"]
    assert look()["found"] == 0


def test_when_a_statement_began_is_told_while_it_runs(pg: Postgres, look: Look) -> None:
    with Pool(pg, 1, "idle in transaction"), running(pg, "SELECT pg_sleep(1000)") as pid:
        ((began,),) = pg.sql("SELECT query_start FROM pg_stat_activity WHERE pid = %s", pid)
        assert {one["pid"] == pid: one["query_started"] for one in look()["sessions"]} == {True: began.isoformat(), False: None}


def test_a_blocker_that_is_hidden_is_told_as_such(pg: Postgres, look: Look) -> None:
    with blockers(pg, depth=0, waiters=1) as blocked:
        (seen,) = look()["blockers"]
        assert (seen["hidden"], seen["pid"], bool(seen["id"])) == (False, blocked.root, True)
        pg.role("healer")
        (seen,) = look()["blockers"]
        assert (seen["hidden"], seen["pid"], seen["id"]) == (True, blocked.root, None)


def test_t4_11_statements_only_when_asked_for(pg: Postgres, look: Look) -> None:
    with running(pg, f"SELECT 'hunter2', '{'x' * 2000}', pg_sleep(1000)") as pid:
        assert "hunter2" not in repr(look())
        (one,) = look(queries=True, pids=[str(pid)])["sessions"]
        assert one["query"].startswith("SELECT 'hunter2'")
        assert len(one["query"]) == 1000


def test_blockers_are_roots(pg: Postgres, look: Look) -> None:
    with blockers(pg, depth=2, waiters=3) as blocked:
        time.sleep(0.2)
        seen = look()
        (root,) = seen["blockers"]
        assert (root["kind"], root["pid"], root["user"], root["state"]) == ("session", blocked.root, "app", "idle in transaction")
        assert root["blocks"] == sorted(blocked.waiting)
        assert 0.1 < root["waiting"] < 30
        assert (seen["waiting"]["sessions"], seen["waiting"]["longest"]) == (5, root["waiting"])
        by = {one["pid"]: one["blocked_by"] for one in seen["sessions"]}
        assert (by[blocked.root], by[blocked.chain[0]]) == ([], [blocked.root])
    assert (look()["blockers"], look()["waiting"]) == ([], {"sessions": 0, "longest": 0.0})


def as_seen(pg: Postgres, version: int | None = None) -> _sessions.Listing:
    """The sessions, as a server of this version would tell them."""
    params = {**dict.fromkeys(_postgresql.OPTIONS), "ssl_mode": "disable", "connect_timeout": 5, "login_db": "prod", **pg.socket_options("lab")}
    with _postgresql.connect(params) as server:
        server.version = version or server.version
        return _sessions.look(server, True)


def test_who_only_just_blocks_is_not_blamed_for_a_long_statement(pg: Postgres) -> None:
    pg.sql("CREATE TABLE one (id int)", database="prod")
    with contextlib.ExitStack() as stack:
        pid = stack.enter_context(running(pg, "DO $$ BEGIN PERFORM pg_sleep(1.5); LOCK TABLE one; END $$", user="lab"))
        cursor = stack.enter_context(contextlib.closing(pg.connect("prod"))).cursor()
        time.sleep(1)
        cursor.execute("BEGIN")
        cursor.execute("LOCK TABLE one")
        eventually(lambda: pg.sql("SELECT count(*) FROM pg_locks WHERE pid = %s AND NOT granted", pid) == [(1,)])
        for version in (None, 130012):
            listing = as_seen(pg, version)
            (waiter,) = [row for row in listing.rows if row.pid == pid]
            assert (waiter.query_age or 0) > 1.4
            assert 0 <= (waiter.waiting or 0) < 1.2
            assert 0 <= _sessions.blockers(listing)[0]["waiting"] < 1.2
        assert {row.waiting for row in listing.rows if row.pid != pid} == {None}


def test_a_root_is_not_blamed_for_longer_than_its_transaction() -> None:
    now = datetime.now(timezone.utc)
    empty: dict[str, t.Any] = dict.fromkeys(_sessions.Row.__dataclass_fields__)
    rows = [
        {**empty, "pid": 1, "id": "1.1", "transaction_age": 2.0},
        {**empty, "pid": 2, "id": "1.2", "transaction_age": 900.0, "blocked_by": [1], "waiting": 1.0},
        {**empty, "pid": 3, "id": "1.3", "transaction_age": 600.0, "blocked_by": [2], "waiting": 600.0},
    ]
    listing = _sessions.Listing(tuple(_sessions.Row(**row) for row in rows), _postgresql.Role("healer", False, True), now, False, False)
    assert [(one["pid"], one["waiting"]) for one in _sessions.blockers(listing)] == [(1, 2.0)]


def test_the_horizon(pg: Postgres, look: Look) -> None:
    pg.sql("CREATE TABLE one AS SELECT 1 AS id; ALTER TABLE one OWNER TO app", database="prod")
    pg.database("other", owner="app")
    with contextlib.ExitStack() as stack:
        pg.sql("SELECT pg_create_physical_replication_slot('keeps_the_log_only', true)")
        pg.sql("SELECT pg_create_logical_replication_slot('subscriber', 'pgoutput')", database="prod")
        prepared = stack.enter_context(contextlib.closing(pg.connect("prod", "app"))).cursor()
        for statement in ("BEGIN", "UPDATE one SET id = 2", "PREPARE TRANSACTION 'lost'"):
            prepared.execute(statement)
        idle = stack.enter_context(contextlib.closing(pg.connect("prod", "app")))
        cursor = idle.cursor()
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT 1")
        other = stack.enter_context(contextlib.closing(pg.connect("other", "app")))
        other_cursor = other.cursor()
        other_cursor.execute("BEGIN")
        other_cursor.execute("CREATE TABLE mine ()")
        for _ in range(5):
            pg.sql("SELECT txid_current()")
        healer = stack.enter_context(contextlib.closing(pg.connect("prod", "app", application_name="homelab.healer")))
        own = healer.cursor()
        own.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        own.execute("SELECT 1")
        seen = look()
        held = {(one["kind"], one["name"] if one["kind"] != "session" else one["pid"]): one for one in seen["horizon"]}
        assert set(held) == {
            ("slot", "subscriber"),
            ("prepared_transaction", "lost"),
            ("session", idle.info.backend_pid),
            ("session", other.info.backend_pid),
            ("session", healer.info.backend_pid),  # another run's
        }
        assert held["slot", "subscriber"]["catalogs"]
        assert held["session", idle.info.backend_pid]["age"] >= 5
        assert [one["age"] for one in seen["horizon"]] == sorted((one["age"] for one in seen["horizon"]), reverse=True)
        assert ("session", other.info.backend_pid) not in {(one["kind"], one["pid"]) for one in look(database="prod")["horizon"]}
        assert [(one["gid"], one["owner"], one["database"]) for one in seen["prepared"]] == [("lost", "app", "prod")]
        assert {one["database"] for one in seen["wraparound"]} == {"postgres", "prod", "other", "template0", "template1"}


@contextlib.contextmanager
def standby(pg: Postgres, *options: str) -> t.Iterator[None]:
    """A standby of the server, which tells it what its own sessions still need to see."""
    folder = pg.folder / "standby"
    port = _free_port()
    where = f"host={pg.folder} port={pg.port} user=lab password=lab-password application_name=mirror"
    try:
        pg._run(["pg_basebackup", "-D", str(folder), "-d", where, "-R", "-X", "stream", "-c", "fast", *options])
        with (folder / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"port = {port}\nunix_socket_directories = '{folder}'\nhot_standby_feedback = on\nwal_receiver_status_interval = 1\n")
        with subprocess.Popen(
            pg._command(["postgres", "-D", str(folder)]), env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("slot", [False, True])
def test_a_standby_holds_back_all_databases(pg: Postgres, look: Look, slot: bool) -> None:
    if not (pg.bin / "pg_basebackup").exists():
        pytest.skip("this server has no pg_basebackup")
    with standby(pg, *(("-C", "-S", "mirror") if slot else ())):
        kind = "slot" if slot else "standby"
        eventually(lambda: kind in {one["kind"] for one in look(database="prod")["horizon"]}, 30)
        (one,) = (one for one in look(database="prod")["horizon"] if one["kind"] == kind)
        assert (one["name"], one["catalogs"], one["age"] >= 0) == ("mirror", False, True)
        assert one["pid"]
        assert "walsender" in {session["backend_type"] for session in look()["sessions"]}
    pg.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")


def test_holders_read_well() -> None:
    line = dict(kind="standby", name="standby1", pid=1, database=None, user="replicator", application_name="standby1", state="active", age=9, seconds=None)
    assert str(_sessions.Holder(**t.cast(t.Any, line))) == "standby standby1 (pid 1, replicator, active)"
    slot = _sessions.Holder("slot", "s", None, "prod", None, None, "inactive", 9, None, catalogs=True)
    assert str(slot) == "slot s (prod, inactive, catalogs only)"
    session = _sessions.Holder("session", "6920b1a2.1f40", 8000, "prod", "app", "", "idle in transaction", 9, 7300.0)
    assert str(session) == "session 6920b1a2.1f40 (pid 8000, app@prod, idle in transaction for 2 h)"


def test_who_vacuums_holds_back_nobody(pg: Postgres, look: Look) -> None:
    pg.sql("CREATE TABLE slow AS SELECT generate_series(1, 200000) AS id; ALTER TABLE slow OWNER TO app; DELETE FROM slow", database="prod")
    with contextlib.closing(pg.connect("prod", "app")) as client:
        pid = int(client.info.backend_pid)
        with client.cursor() as cursor:
            cursor.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")

        def vacuum() -> None:
            with contextlib.suppress(psycopg2.Error), client.cursor() as cursor:
                cursor.execute("VACUUM slow")

        thread = threading.Thread(target=vacuum)
        thread.start()
        try:
            eventually(lambda: any(one["total"] for one in look(login_db="prod")["progress"]))
            seen = look(login_db="prod")
            (one,) = seen["progress"]
            assert (one["pid"], one["command"], one["database"], one["name"]) == (pid, "VACUUM", "prod", "public.slow")
            assert 0 <= one["share"] <= 1
            assert look()["progress"][0]["name"] is None  # it is in another database
            assert pid not in {holder["pid"] for holder in seen["horizon"]}
            (row,) = look(pids=[str(pid)])["sessions"]
            assert row["maintenance"] == "vacuum"
        finally:
            pg.sql("SELECT pg_terminate_backend(%s)", pid)
            thread.join()


def test_progress_of_an_index(pg: Postgres, look: Look) -> None:
    pg.sql("CREATE TABLE one AS SELECT 1 AS id; ALTER TABLE one OWNER TO app", database="prod")
    with contextlib.closing(pg.connect("prod", "app")) as client, client.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE one SET id = 2")
        with running(pg, "CREATE INDEX CONCURRENTLY ON one (id)") as pid:
            eventually(lambda: any(one["phase"].startswith("waiting") for one in look()["progress"]))
            (one,) = look()["progress"]
            assert (one["pid"], one["command"], one["share"]) == (pid, "CREATE INDEX CONCURRENTLY", None)


def test_every_view_of_progress_of_this_server_can_be_asked(pg: Postgres, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_sessions.PROGRESS, "vacuum", ("a_newer_name", "heap_blks_total"))  # as a later server may have
    assert look()["progress"] == []
    views = {name for name, _columns in pg.sql(_sessions.VIEWS)}
    assert {f"pg_stat_progress_{name}" for name in ("vacuum", "analyze", "create_index", "cluster", "copy", "basebackup")} <= views


def test_the_number_of_questions_does_not_grow(pg: Postgres, look: Look) -> None:
    def asked() -> int:
        pg.mark()
        look()
        return sum(" healer@" in line and "LOG:  statement" in line for line in pg.logged().splitlines())

    few = asked()
    with Pool(pg, 60, "idle in transaction"):
        assert asked() == few <= 20


def test_nothing_is_written(pg: Postgres, look: Look) -> None:
    pg.sql("ALTER ROLE healer SET default_transaction_read_only = on")
    with Pool(pg, 2) as pool:
        assert look(queries=True)["found"] == 2
        assert len(pool.alive()) == 2


def test_the_options_are_those_of_the_adapter() -> None:
    assert set(_postgresql.OPTIONS) <= set(pg_activity_info.ARGUMENTS["argument_spec"])
