"""The lab's PostgreSQL is what the other tests take it for."""

from __future__ import annotations

import contextlib
import subprocess
import typing as t

import psycopg2
import pytest

from tests.lab.postgres import NoPostgres, Pool, Postgres, bloat, blockers, postgres


def test_it_is_a_real_server_that_is_asked_for_a_password(pg: Postgres) -> None:
    assert pg.version >= (150000 if pg.kind == "debian" else 180000)
    assert pg.sql("SHOW server_version_num") == [(str(pg.version),)]
    assert pg.sql("SELECT current_user, current_database()", database="prod", user="healer") == [("healer", "prod")]
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        pg.connect(user="healer", password="guessed")
    done = subprocess.run([str(pg.bin / "psql"), "--version"], capture_output=True, text=True, check=True)
    assert str(pg.version // 10000) in done.stdout


def test_its_options_lead_to_it(pg: Postgres) -> None:
    options = pg.options("healer", connect_timeout=5)
    assert options["connect_timeout"] == 5
    assert ("ca_cert" in options) is pg.tls is (pg.kind == "debian")
    given: dict[str, t.Any] = {"host": options.get("login_unix_socket") or options["login_host"], "port": options["login_port"]}
    given.update(user=options["login_user"], password=options["login_password"], dbname="prod")
    if pg.tls:
        given.update(sslmode="verify-full", sslrootcert=options["ca_cert"])
    with contextlib.closing(psycopg2.connect(**given)) as client, client.cursor() as cursor:
        cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert cursor.fetchone() == (pg.tls,)
    assert pg.socket_options()["login_unix_socket"] == str(pg.folder)


def test_reset_leaves_nothing(pg: Postgres) -> None:
    settings = "SELECT name, setting FROM pg_settings WHERE source <> 'client' ORDER BY name"
    before = pg.sql(settings)
    pg.role("other", "LOGIN CREATEDB", ["pg_monitor"])
    pg.set(work_mem="1MB", max_connections=50)
    pg.restart()
    assert pg.sql("SHOW max_connections") == [("50",)]
    pg.set(work_mem=None)
    assert pg.sql("SHOW work_mem") == [("4MB",)]
    pg.sql("GRANT CREATE ON DATABASE postgres TO other")
    pg.sql("CREATE TABLE left_behind AS SELECT 1 AS id")
    pg.sql("ALTER ROLE lab SET work_mem = '2MB'")
    pg.sql("CREATE DATABASE copied IS_TEMPLATE true OWNER other", user="lab")
    pg.sql("SELECT pg_create_logical_replication_slot('stuck', 'pgoutput')", database="prod")
    with contextlib.closing(pg.connect("prod", "app")) as client, client.cursor() as cursor:
        for statement in ("BEGIN", "CREATE TABLE prepared (id int)", "PREPARE TRANSACTION 'forgotten'", "BEGIN", "SELECT 1"):
            cursor.execute(statement)
        pg.reset()
    assert pg.sql("SELECT datname FROM pg_database ORDER BY 1") == [("postgres",), ("template0",), ("template1",)]
    assert pg.sql("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'") == [("lab",)]
    for view in ("pg_prepared_xacts", "pg_replication_slots", "pg_db_role_setting"):
        assert pg.sql(f"SELECT count(*) FROM {view}") == [(0,)], view
    assert pg.sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") == [(1,)]
    assert pg.sql("SELECT to_regclass('left_behind')") == [(None,)]
    assert pg.sql(settings) == before


def test_a_role_is_created_anew_whatever_it_had(pg: Postgres) -> None:
    pg.sql("CREATE TABLE mine (id int)", database="prod", user="app")
    pg.role("app", "LOGIN", ["pg_read_all_stats"])
    assert pg.sql("SELECT to_regclass('mine'), pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'prod'", database="prod") == [(None, "lab")]
    assert pg.sql("SELECT pg_has_role('app', 'pg_read_all_stats', 'usage')", user="app") == [(True,)]


def test_what_it_logs_can_be_read(pg: Postgres) -> None:
    pg.sql("SELECT 'before the mark'")
    pg.mark()
    pg.sql("SELECT %s", "after the mark", database="prod", user="healer")
    assert "healer@prod" in pg.logged()
    assert "SELECT 'after the mark'" in pg.logged()
    assert "before the mark" not in pg.logged()


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75])
def test_bloat_is_what_was_wished(pg: Postgres, ratio: float) -> None:
    dead = bloat(pg, rows=4000, ratio=ratio)
    ((live, counted, estimate, owner),) = pg.sql(
        "SELECT n_live_tup, n_dead_tup, reltuples, tableowner FROM pg_stat_user_tables JOIN pg_class ON pg_class.oid = relid"
        " JOIN pg_tables ON tablename = pg_class.relname WHERE pg_class.relname = 'events'",
        database="prod",
    )
    assert counted == dead
    assert counted / (live + counted) == pytest.approx(ratio, rel=0.05)
    assert (owner, live) == ("app", estimate)
    if pg.kind == "debian":
        pg.sql("CREATE EXTENSION pgstattuple", database="prod")
        assert pg.sql("SELECT tuple_count, dead_tuple_count FROM pgstattuple('events')", database="prod") == [(live, dead)]


@pytest.mark.parametrize("state", ["idle", "idle in transaction", "active"])
def test_a_pool_is_in_its_state_until_it_is_ended(pg: Postgres, state: str) -> None:
    with Pool(pg, 5, state, application="shop") as pool:
        assert pool.alive() == set(pool.pids)
        assert pg.sql("SELECT DISTINCT usename, datname, application_name, state FROM pg_stat_activity WHERE pid = ANY (%s)", pool.pids) == [
            ("app", "prod", "shop", state)
        ]
        assert pg.sql("SELECT pg_terminate_backend(%s, 5000)", pool.pids[0]) == [(True,)]
        assert pool.alive() == set(pool.pids[1:])
    assert pool.alive() == set()


def test_a_queue_waits_for_its_root_and_no_longer(pg: Postgres) -> None:
    with blockers(pg, "prod", depth=2, waiters=3) as blocked:
        assert pg.sql("SELECT state, pg_blocking_pids(pid) FROM pg_stat_activity WHERE pid = %s", blocked.root) == [("idle in transaction", [])]
        asked = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s) AND wait_event_type = 'Lock'"
        assert pg.sql(asked, blocked.waiting) == [(5,)]
        assert pg.sql("SELECT pg_terminate_backend(%s, 5000)", blocked.root) == [(True,)]
        pg.sql("BEGIN; LOCK TABLE healer_lab_queue; COMMIT", database="prod")  # once all have changed what they waited for
        assert pg.sql("SELECT sum(changed)::int FROM healer_lab_queue", database="prod") == [(10,)]
    assert pg.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'prod'") == [(0,)]


class Trouble(Exception):
    """What a test that fails raises."""


@pytest.mark.parametrize("kind", ["debian", "embedded"])
@pytest.mark.parametrize("end", ["stop", "kill", "nothing", "fail"])
def test_nothing_is_left_of_it(kind: str, end: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{kind}_postgres")  # skips, and names, what cannot run here
    with contextlib.suppress(Trouble), postgres(kind, work_mem="3MB") as server:
        assert server.sql("SHOW work_mem") == [("3MB",)]
        assert server.processes()
        assert server.segment in _segments()
        segments = [server.segment]
        if end == "stop":
            server.stop("immediate")
            server.start()
            segments.append(server.segment)
            server.stop()
        elif end == "kill":
            server.kill()
            assert not server.processes()
            server.reset()
            segments.append(server.segment)
            server.kill()
            assert server.segment in _segments()
        elif end == "fail":
            server.connect()
            raise Trouble
    assert not server.folder.exists()
    assert not server.processes()
    assert all(segments)
    assert not set(segments) & set(_segments())


def _segments() -> list[str]:
    return [line.split()[1] for line in subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout.splitlines() if "0x" in line]


def test_a_kind_that_cannot_start_says_why(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("embedded_postgres")
    with pytest.raises(NoPostgres, match="no_such_setting"), postgres("embedded", no_such_setting="1"):
        pass


def test_it_runs_where_its_account_cannot_read_the_checkout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.getfixturevalue("embedded_postgres")
    monkeypatch.setattr("tests.lab.postgres._readable", lambda program: False)
    with postgres("embedded") as server:
        assert server.folder in server.bin.parents
        subprocess.run([str(server.bin / "psql"), "--version"], capture_output=True, check=True)
