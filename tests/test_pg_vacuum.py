"""``pg_vacuum`` against real servers: each trap of the field, rights, locks, space, names and broken connections."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from ansible_collections.homelab.healer.plugins.module_utils import _postgresql, _run, _tables, _vacuum
from ansible_collections.homelab.healer.plugins.module_utils._errors import (
    Conflict,
    Denied,
    HealerError,
    Invalid,
    NotConverged,
    NotFound,
    Refused,
    TaskFailed,
    TimedOut,
    Unreachable,
)
from ansible_collections.homelab.healer.plugins.module_utils._run import Answer
from ansible_collections.homelab.healer.plugins.module_utils._sessions import Holder
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Size
from ansible_collections.homelab.healer.plugins.module_utils._tables import Bloat, Table
from ansible_collections.homelab.healer.plugins.modules import pg_vacuum
from tests.lab.modules import Caller, _validated, call
from tests.lab.postgres import ACCOUNT, Postgres, _become, _free_port, bloat
from tests.lab.postgres import prepared as lab_prepared

TABLE = "public.events"
FULL: dict[str, t.Any] = dict(full=True, min_bloat="0", min_bloat_ratio=0.1, assume_free_space="1TiB")
ANY: dict[str, t.Any] = dict(min_dead_tuples=0, min_dead_ratio=0)
"""So that each run vacuums."""


@pytest.fixture
def vacuum(pg: Postgres) -> Caller:
    """The module as the owner's member with the documented rights."""
    pg.role("healer", grants=["pg_monitor", "app"])
    return Caller(pg_vacuum, {**pg.options(), "login_db": "prod"})


def of(pg: Postgres, what: str, table: str = TABLE) -> t.Any:
    """One figure of a table by the server's own words."""
    ((value,),) = pg.sql(f"SELECT {what} FROM pg_class c WHERE c.oid = %s::regclass", table, database="prod")
    return value


count = functools.partial(of, what="pg_stat_get_vacuum_count(c.oid)")
dead = functools.partial(of, what="pg_stat_get_dead_tuples(c.oid)")
filenode = functools.partial(of, what="c.relfilenode::bigint")


def tried(vacuum: Caller, check: bool = False, **options: t.Any) -> tuple[Answer, HealerError]:
    """The answer and the failure of a call that must fail."""
    answer, error = call(vacuum.module, check, **{**vacuum.options, **options})
    assert error is not None
    return answer, error


def refused(vacuum: Caller, kind: type[HealerError], *words: str, **options: t.Any) -> HealerError:
    """The same failure in check mode and for real, and nothing changed. ``words`` are in what it says."""
    foretold, said = tried(vacuum, check=True, **options)
    answer, error = tried(vacuum, **options)
    assert (type(error), type(said)) == (kind, kind)
    assert str(error) == str(said)
    assert (answer["changed"], foretold["changed"]) == (False, False)
    for word in words:
        assert word in str(error)
    return error


@contextlib.contextmanager
def session(pg: Postgres, *statements: str, user: str = "lab", **more: t.Any) -> t.Iterator[Connection]:
    """Another client that has executed these, and stays."""
    with contextlib.closing(pg.connect("prod", user, **more)) as client, client.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        yield client


@contextlib.contextmanager
def vacuumed_by_somebody(pg: Postgres, table: str = TABLE) -> t.Iterator[int]:
    """A session that is vacuuming a table for a long time; its pid."""
    with contextlib.closing(pg.connect("prod")) as client, client.cursor() as cursor:
        cursor.execute("SET vacuum_cost_delay = 100")
        cursor.execute("SET vacuum_cost_limit = 1")
        runner = threading.Thread(target=_quietly, args=(cursor, f"VACUUM {table}"))
        runner.start()
        pid = client.info.backend_pid
        until(lambda: bool(pg.sql("SELECT 1 FROM pg_stat_progress_vacuum WHERE pid = %s", pid)))
        try:
            yield pid
        finally:
            client.cancel()
            runner.join()


def _quietly(cursor: t.Any, statement: str) -> None:
    with contextlib.suppress(psycopg2.Error):
        cursor.execute(statement)


def until(holds: t.Callable[[], bool], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def delete(pg: Postgres, where: str = "id % 2 = 0", table: str = TABLE) -> None:
    pg.sql(f"DELETE FROM {table} WHERE {where}", database="prod")


def running(vacuum: Caller, pool: ThreadPoolExecutor, **options: t.Any) -> t.Any:
    """The module at work in another thread."""
    return pool.submit(call, vacuum.module, False, **{**vacuum.options, **options})


def at_work(pg: Postgres) -> bool:
    return bool(pg.sql("SELECT 1 FROM pg_stat_progress_vacuum p JOIN pg_stat_activity a USING (pid) WHERE a.application_name = 'homelab.healer'"))


def test_it_vacuums_what_needs_it_and_tells_what_that_did(pg: Postgres, vacuum: Caller) -> None:
    rows = bloat(pg)
    answer = vacuum(tables=[TABLE], analyze=True)
    (result,) = answer["results"]
    assert answer["changed"]
    assert result["dead_tuples"] == result["removed"] == rows
    assert (result["left"], result["verified"]) == (0, {"vacuum_count": "statistics"})
    assert answer["steps"] == [f'VACUUM (ANALYZE) {"ONLY " if pg.version >= 180000 else ""}"public"."events"']
    assert (answer["undo"], answer["reversibility"]) == ([], "none")
    assert dead(pg) == 0
    assert not vacuum(tables=[TABLE], analyze=True)["changed"]


@contextlib.contextmanager
def pgbouncer(pg: Postgres, ignored: str) -> t.Iterator[dict[str, t.Any]]:
    """PgBouncer in front of a server, in transaction mode; the options that lead to it."""
    port = _free_port()
    lines = ["[databases]", f"prod = host={pg.folder} port={pg.port} user=healer password=healer-password", "[pgbouncer]"]
    lines += [f"listen_port = {port}", "listen_addr = 127.0.0.1", f"unix_socket_dir = {pg.folder}", "auth_type = any", "pool_mode = transaction"]
    lines += [f"ignore_startup_parameters = {ignored}"] if ignored else []
    ini = pg._own_file("pgbouncer.ini", "\n".join(lines).encode(), 0o644)
    with subprocess.Popen([*_become(), "/usr/sbin/pgbouncer", "-q", str(ini)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: _listens(pg.folder / f".s.PGSQL.{port}"))
            yield pg.socket_options(login_port=port)
        finally:
            process.terminate()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.mark.skipif(not Path("/usr/sbin/pgbouncer").exists(), reason="there is no PgBouncer")
@pytest.mark.parametrize("ignored", ["", "options,extra_float_digits"], ids=["plain", "ignoring"])
def test_t3_1_a_pooler_that_takes_away_settings_is_refused(pg: Postgres, vacuum: Caller, ignored: str) -> None:
    bloat(pg, rows=5000)
    pg.set(idle_session_timeout="1h")
    with pgbouncer(pg, ignored) as options:
        refused(Caller(pg_vacuum, {**options, "login_db": "prod"}), Invalid, "PgBouncer", "Give the address of the server itself", tables=[TABLE])
        with contextlib.closing(pg.connect("prod", "healer", port=options["login_port"])) as client, client.cursor() as cursor:
            cursor.execute("SHOW idle_session_timeout")
            assert cursor.fetchone() == ("1h",)  # nothing of ours is left in the session that others get
    assert count(pg) == 0


@contextlib.contextmanager
def german(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[None]:
    """The server speaks German, where the machine can: nobody may go by its words."""
    place = pg.folder / "locales"
    place.mkdir()
    made = subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", str(place / "de_DE.UTF-8")], capture_output=True, check=False)
    if made.returncode or pg.kind != "debian":
        yield
        return
    with monkeypatch.context() as changed:
        changed.setenv("LOCPATH", str(place))
        pg.restart()
        pg.set(lc_messages="de_DE.UTF-8")
        with pytest.raises(psycopg2.Error, match="existiert nicht"):
            pg.sql("SELECT * FROM nothing")
        yield
        pg.set(lc_messages=None)
    pg.restart()


def test_t3_2_what_the_server_skips_is_never_called_done_in_whatever_language(pg: Postgres, vacuum: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    bloat(pg, rows=5000)
    with german(pg, monkeypatch):
        bloat(pg, rows=5000)
        with session(pg, "BEGIN", f"LOCK TABLE {TABLE} IN SHARE UPDATE EXCLUSIVE MODE") as other:
            answer, error = tried(vacuum, tables=[TABLE], lock_timeout="0.2s")
            assert isinstance(error, Conflict)
            assert f"process {other.info.backend_pid} (" in error.why
            assert (answer["changed"], answer["results"][0]["changed"], answer["results"][0]["steps"]) == (False, False, [])
        monkeypatch.setattr(pg_vacuum, "guard", lambda *_: pg.sql("REVOKE app FROM healer"))  # the right is lost just after it was looked at
        answer, error = tried(vacuum, tables=[TABLE])
        assert isinstance(error, NotConverged)
        assert "nothing was done" in str(error)
        assert (answer["changed"], answer["results"][0]["changed"]) == (False, False)
        monkeypatch.undo()
        refused(vacuum, Denied, "GRANT", tables=[TABLE])
        refused(vacuum, Denied, "GRANT", tables=[TABLE], **FULL)
    assert count(pg) == 0


def test_t3_3_a_rewrite_is_known_by_its_file_not_by_counts(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    before, size = filenode(pg), of(pg, "pg_total_relation_size(c.oid)")
    foretold = vacuum(tables=[TABLE], **FULL, check=True)
    assert filenode(pg) == before
    answer = vacuum(tables=[TABLE], **FULL)
    (result,) = answer["results"]
    assert (answer["steps"], answer["before"], answer["after"]) == (foretold["steps"], foretold["before"], foretold["after"])
    assert answer["steps"] == ['VACUUM (FULL, SKIP_LOCKED, ANALYZE) "public"."events"']
    assert result["before"] == {"filenode": before}
    assert filenode(pg) != before
    assert result["verified"] == {"filenode": "catalog"}
    assert result["freed"] == size - of(pg, "pg_total_relation_size(c.oid)") > 0
    assert count(pg) == 0
    assert not vacuum(tables=[TABLE], **FULL)["changed"]
    assert not vacuum(tables=[TABLE])["changed"]


@pytest.mark.parametrize("analyzed", [True, False])
def test_t3_4_lost_statistics_are_a_reason_to_vacuum_once(pg: Postgres, vacuum: Caller, analyzed: bool) -> None:
    if analyzed:
        bloat(pg, rows=5000)
    else:
        pg.sql("CREATE TABLE events AS SELECT id FROM generate_series(1, 5000) id", database="prod")
        pg.sql("ALTER TABLE events OWNER TO app", database="prod")
    pg.restart("immediate")
    pg.sql("INSERT INTO events VALUES (9000000)", database="prod")  # life goes on
    answer = vacuum(tables=[TABLE])
    assert answer["results"][0]["why"] == ["its statistics were lost, so nobody knows its dead rows"]
    assert count(pg) == 1
    assert not vacuum(tables=[TABLE])["changed"]


def test_t3_4_lost_statistics_and_a_rewrite(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    pg.restart("immediate")
    (result,) = vacuum(tables=[TABLE], **FULL)["results"]  # nobody knows its bloat, so it is only vacuumed
    assert (list(result["before"]), "its statistics were lost" in " ".join(result["notes"])) == (["vacuum_count"], True)
    assert vacuum(tables=[TABLE], **FULL)["results"][0]["freed"] > 0
    assert not vacuum(tables=[TABLE], **FULL)["changed"]


def test_t3_4_nothing_can_be_told_where_nothing_is_counted(pg: Postgres, vacuum: Caller) -> None:
    pg.set(track_counts="off")
    pg.sql("CREATE TABLE events AS SELECT id FROM generate_series(1, 5000) id", database="prod")
    pg.sql("ALTER TABLE events OWNER TO app", database="prod")
    refused(vacuum, Refused, "track_counts", tables=[TABLE])


def test_t3_4_an_empty_table_needs_nothing(pg: Postgres, vacuum: Caller) -> None:
    pg.sql("CREATE TABLE events (id int)", database="prod", user="app")
    pg.sql("CREATE TABLE nothing ()", database="prod", user="app")
    for options in ({}, FULL):
        answer = vacuum(schemas=["public"], **options)
        assert not answer["changed"]
        assert {result["dead_ratio"] for result in answer["results"]} == {0}
    assert vacuum(tables=["events", "nothing"], **ANY, analyze=True)["changed"]
    assert not vacuum(tables=["events", "nothing"], analyze=True)["changed"]
    vacuum(tables=["events", "nothing"], full=True, min_bloat="0", min_bloat_ratio=0, assume_free_space="1")


def test_t3_5_a_plain_vacuum_is_judged_by_dead_rows_not_by_bytes(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000, ratio=0)
    delete(pg, "id > 2500")
    size = of(pg, "pg_relation_size(c.oid)")
    answer = vacuum(tables=[TABLE], truncate=False)
    assert "TRUNCATE FALSE" in answer["steps"][0]
    assert (answer["results"][0]["removed"], of(pg, "pg_relation_size(c.oid)")) == (2500, size)
    delete(pg, "id > 1000")
    answer = vacuum(tables=[TABLE])
    assert answer["results"][0]["freed"] > 0
    assert of(pg, "pg_relation_size(c.oid)") < size


def test_t3_6_space_is_proved_or_said(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    unsaid = {name: value for name, value in FULL.items() if name != "assume_free_space"}
    blind = Caller(pg_vacuum, {**vacuum.options, "login_user": "app", "login_password": "app-password"})
    refused(blind, Refused, "assume_free_space", "pg_monitor", tables=[TABLE], **unsaid)
    refused(vacuum, Refused, "assume_free_space is 1MiB", tables=[TABLE], **unsaid, assume_free_space="1MiB")
    before = filenode(pg)
    if os.geteuid() == 0:
        assert vacuum(tables=[TABLE], **unsaid)["changed"]
    else:
        assert blind(tables=[TABLE], **FULL)["changed"]
    assert filenode(pg) != before


@pytest.mark.parametrize(("fact", "by", "proved"), [("identity", 0, True), ("identity", 1, False), ("started", 3600, False), ("folder", None, False)])
def test_t3_6_only_the_servers_own_files_prove_space(pg: Postgres, fact: str, by: int | None, proved: bool) -> None:
    if not os.access(pg.data, os.R_OK):
        pytest.skip("the server's files cannot be read by this user")

    class Elsewhere:
        """A server of which one thing is otherwise than here."""

        def rows(self, what: str, question: str) -> list[dict[str, t.Any]]:
            ((folder, identity, started),) = pg.sql(question)
            told = {"folder": folder, "identity": identity, "started": started}
            return [{**told, fact: "/nowhere" if by is None else told[fact] + by}]

    assert bool(_vacuum._disks(t.cast(t.Any, Elsewhere()), {""})) is proved


@contextlib.contextmanager
def small_tablespace(pg: Postgres, size: str) -> t.Iterator[Path]:
    """A tablespace ``small`` on a file system of its own."""
    with tempfile.TemporaryDirectory(prefix="healer-lab-disk-", dir="/var/tmp") as folder:
        image, place = Path(folder) / "image", Path(folder) / "place"
        place.mkdir()
        Path(folder).chmod(0o755)
        with image.open("wb") as file:
            file.truncate(Size(int(size) << 20))
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True, stdin=subprocess.DEVNULL)
        mounted = subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False, capture_output=True)
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
        try:
            inner = place / "data"
            inner.mkdir()
            subprocess.run(["chown", ACCOUNT, str(inner)], check=True)
            pg.sql(f"CREATE TABLESPACE small LOCATION '{inner}'")
            try:
                yield inner
            finally:
                pg.sql("DROP TABLE IF EXISTS events", database="prod")
                pg.sql("DROP TABLESPACE small")
        finally:
            for _ in range(50):
                if not subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode:
                    break
                time.sleep(0.1)  # the server may still have a file of it open
            else:
                subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_t3_6_a_small_disk(pg: Postgres, vacuum: Caller) -> None:
    with small_tablespace(pg, "24"):
        bloat(pg, rows=50000)
        pg.sql("ALTER TABLE events SET TABLESPACE small", database="prod")
        pg.sql("CHECKPOINT")
        before, rows = filenode(pg), pg.sql("SELECT count(*), sum(id) FROM events", database="prod")
        proved = {name: value for name, value in FULL.items() if name != "assume_free_space"}
        error = refused(vacuum, Refused, "are free there", tables=[TABLE], **proved)
        assert "will not rewrite public.events" in error.what
        pg.sql("CREATE INDEX more ON events (body) TABLESPACE pg_default", database="prod")
        filler = "CREATE TABLE filler TABLESPACE small AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)"
        pg.sql(filler, database="prod")
        answer, error = tried(vacuum, tables=[TABLE], **FULL)  # it said that there was space
        assert isinstance(error, TaskFailed)
        assert "Free space on the server's disk" in error.fix
        assert (answer["changed"], filenode(pg)) == (False, before)
        assert pg.sql("SELECT count(*), sum(id) FROM events", database="prod") == rows
        assert dead(pg) > 0
        pg.sql("DROP TABLE filler", database="prod")


def made_up(**values: t.Any) -> Table:
    """A table that nobody has."""
    numbers = dict(vacuum_count=0, analyze_count=0, live=1000, dead=0, toast_live=0, toast_dead=0, modified=0, pages=10, xid_age=1, mxid_age=1)
    texts = dict(schema="public", relation="events", kind="r", owner="app", place="")
    flags = dict(may=True, shared=False, temporary=False, identity=True)
    rest = dict(key=1, root=1, filenode=1, rows=1000.0, last_vacuum=None, last_analyze=None, size=Size(1 << 20), heap=Size(1 << 19), fillfactor=100)
    return Table(**{**numbers, **texts, **flags, **rest, **values})


def wishes(**values: t.Any) -> _vacuum.Wishes:
    options: dict[str, t.Any] = dict(full=False, freeze=False, analyze=False, truncate=True, fail_on_blocked_horizon=True)
    options.update(dict.fromkeys(("index_workers", "buffer_usage_limit", "assume_free_space")), min_dead_tuples=1000, min_dead_ratio=0.1)
    options.update(min_xid_age=150000000, min_mxid_age=150000000, min_bloat=Size(0), min_bloat_ratio=0.3)
    options.update(lock_timeout=5.0, max_duration=3600.0, cost_delay=0.0)
    return _vacuum.Wishes(**{**options, **values})


def site(**values: t.Any) -> _vacuum.Site:
    return _vacuum.Site(**{**dict(version=180000, standby=False, counting=True, hidden=False, role="healer", xid=1000, wal=True), **values})


BLOATED = Bloat(Size(1 << 18), 0.5, "estimate")


def test_t3_7_what_no_server_can_do_together_is_refused_before_it_is_asked(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    refused(vacuum, Invalid, "index_workers and full=true exclude each other", tables=[TABLE], index_workers=2, **FULL)
    refused(vacuum, Invalid, "buffer_usage_limit and full=true", tables=[TABLE], buffer_usage_limit="2MB", **FULL)
    for options in (
        dict(index_workers=-1),
        dict(index_workers=1025),
        dict(cost_delay=-1),
        dict(cost_delay=101),
        dict(cost_delay=float("nan")),
        dict(lock_timeout="30d"),
        dict(max_duration="3000w"),
        dict(max_duration="9" * 400),
        dict(min_dead_ratio=1.5),
        dict(min_bloat_ratio=-1),
    ):
        refused(vacuum, Invalid, next(iter(options)), tables=[TABLE], **options)
    if pg.version < 160000:
        refused(vacuum, Invalid, "needs PostgreSQL 16", tables=[TABLE], buffer_usage_limit="2MB")
    else:
        refused(vacuum, Invalid, "buffer_usage_limit", tables=[TABLE], buffer_usage_limit="1")
        assert "BUFFER_USAGE_LIMIT '2048 kB'" in vacuum(tables=[TABLE], buffer_usage_limit="2MB")["steps"][0]
    vacuum(tables=[TABLE], **ANY, index_workers=2, freeze=True, truncate=False, analyze=True, cost_delay=0.5)
    assert of(pg, "age(relfrozenxid)") < 10


def test_t3_6_from_postgresql_19_on_a_rewrite_lets_others_work_meanwhile() -> None:
    table = made_up(bloat=BLOATED)
    rewrite, plain = wishes(full=True), 'VACUUM (FULL, SKIP_LOCKED, ANALYZE) "public"."events"'
    assert _vacuum.statement(rewrite, table, 190000) == 'REPACK (CONCURRENTLY, ANALYZE) "public"."events"'
    assert _vacuum.statement(rewrite, table, 180000) == plain
    for other in (replace(table, identity=False), replace(table, kind="m")):
        assert _vacuum.statement(rewrite, other, 190000) == plain
    assert "FREEZE" in _vacuum.statement(wishes(full=True, freeze=True), table, 190000)


def test_t3_8_exactly_the_documented_rights_are_enough(pg: Postgres) -> None:
    plain = Caller(pg_vacuum, {**pg.options(), "login_db": "prod"})
    for grant in ["GRANT app TO healer"] if pg.version < 170000 else ["GRANT MAINTAIN ON events TO healer", "GRANT pg_maintain TO healer"]:
        bloat(pg, rows=5000)
        for options in ({}, dict(analyze=True), FULL):
            refused(
                plain, Denied, "healer may not: it is app's", 'GRANT "app" TO "healer"' if pg.version < 170000 else "GRANT MAINTAIN", tables=[TABLE], **options
            )
        pg.sql(grant, database="prod")
        assert plain(tables=[TABLE])["changed"]
        bloat(pg, rows=5000)
        if "ON events" in grant:
            pg.sql(grant, database="prod")
        # Before 17 the owner's member sees the statistics of its columns as well; with MAINTAIN alone that needs SELECT.
        if pg.version >= 170000:
            assert "GRANT SELECT" in plain(tables=[TABLE], min_dead_tuples=10**6, **FULL)["results"][0]["notes"][0]
            pg.sql("GRANT SELECT ON events TO healer", database="prod")
        assert plain(tables=[TABLE], **FULL)["changed"]
        pg.sql("REVOKE ALL ON events FROM healer", database="prod")
        pg.sql(grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM "), database="prod")
    bloat(pg, rows=5000)
    pg.sql("ALTER DATABASE prod OWNER TO healer")
    assert plain(tables=[TABLE])["changed"]


def test_t3_9_a_table_that_somebody_is_vacuuming_is_left_alone(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=20000)
    bloat(pg, "other", rows=5000)
    with vacuumed_by_somebody(pg) as pid:
        answers = [vacuum(tables=[TABLE, "other"], check=check) for check in (True, False)]
    for answer in answers:
        assert [result["changed"] for result in answer["results"]] == [False, True]
        assert f"process {pid} (VACUUM" in answer["results"][0]["notes"][0]
        assert str(pid) in answer["results"][0]["skipped"]
    assert (count(pg), count(pg, table="other")) == (0, 1)


def test_t3_9_who_holds_the_lock_is_told_in_time(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    with session(pg, "BEGIN", f"LOCK TABLE {TABLE} IN SHARE MODE", application_name="report") as other:
        foretold = vacuum(tables=[TABLE], check=True)
        assert f"process {other.info.backend_pid} (lab, report, idle in transaction) has ShareLock" in foretold["results"][0]["notes"][0]
        began = time.monotonic()
        answer, error = tried(vacuum, tables=[TABLE], lock_timeout="0.3s")
        assert 0.3 < time.monotonic() - began < 2
        assert f"process {other.info.backend_pid} (lab, report, idle in transaction) has ShareLock" in error.why
    assert (type(error), error.retryable, answer["changed"], count(pg)) == (Conflict, True, False, 0)
    with session(pg, "BEGIN", f"LOCK TABLE {TABLE} IN SHARE MODE", "PREPARE TRANSACTION 'forgotten'"):
        error = vacuum.fails(tables=[TABLE], lock_timeout="0.1s")
    assert "prepared transaction forgotten has ShareLock" in error.why
    pg.sql("ROLLBACK PREPARED 'forgotten'", database="prod")
    assert vacuum(tables=[TABLE])["changed"]


def test_t3_9_a_lock_on_an_index_alone_is_told_as_well(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    with session(pg, "BEGIN", "ALTER INDEX events_pkey SET (fillfactor = 50)", application_name="tuning") as other:
        for options in ({}, {**FULL, "min_dead_tuples": 1}):
            answer, error = tried(vacuum, tables=[TABLE], **options, lock_timeout="0.1s")
            assert (type(error), answer["changed"]) == (Conflict, False)
            assert f"process {other.info.backend_pid} (lab, tuning, idle in transaction) has " in error.why
            assert " on public.events_pkey" in error.why


@contextlib.contextmanager
def old_snapshot(pg: Postgres) -> t.Iterator[str]:
    with session(pg, "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1", application_name="report") as other:
        yield f"pid {other.info.backend_pid}"


@contextlib.contextmanager
def prepared(pg: Postgres) -> t.Iterator[str]:
    with session(pg, "BEGIN", "CREATE TABLE mine ()", "PREPARE TRANSACTION 'forgotten'"):
        pass
    yield "prepared transaction forgotten"
    pg.sql("ROLLBACK PREPARED 'forgotten'", database="prod")


@contextlib.contextmanager
def stopped_standby(pg: Postgres) -> t.Iterator[str]:
    with standby(pg) as copy:
        with contextlib.closing(copy.connect("postgres")) as client, client.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT 1")
            until(lambda: pg.sql("SELECT xmin IS NOT NULL FROM pg_replication_slots") == [(True,)], 20)
        copy.stop("immediate")
        yield "slot healer_lab_standby"


@contextlib.contextmanager
def standby(pg: Postgres) -> t.Iterator[Postgres]:
    """A standby of a server, which tells it what its queries may still see by a slot."""
    folder = Path(tempfile.mkdtemp(prefix="healer-lab-pg-", dir="/var/tmp"))
    folder.chmod(0o755)
    subprocess.run(["chown", "-R", f"--reference={pg.folder}", str(folder)], check=True)
    copy = Postgres(pg.kind, folder, pg.bin)
    where = f"host={pg.folder} port={pg.port} user=lab password=lab-password"
    try:
        copy._run(["pg_basebackup", "-D", str(copy.data), "-d", where, "-R", "-C", "-S", "healer_lab_standby", "-c", "fast", "-X", "stream"])
        with (copy.data / "postgresql.conf").open("a") as conf:
            conf.write(f"port = {copy.port}\nunix_socket_directories = '{folder}'\nhot_standby_feedback = on\nwal_receiver_status_interval = 1\n")
        copy.start()
        yield copy
    finally:
        copy.remove()


HOLDERS = {"session": old_snapshot, "prepared": prepared, "standby": stopped_standby}


@pytest.mark.parametrize("kind", HOLDERS)
def test_t3_10_who_keeps_dead_rows_alive_is_named(pg: Postgres, vacuum: Caller, kind: str) -> None:
    if kind == "standby" and pg.kind != "debian":
        pytest.skip("one server with a standby is enough")
    bloat(pg, rows=5000, ratio=0)
    with HOLDERS[kind](pg) as holder:
        delete(pg)
        foretold = vacuum(tables=[TABLE], check=True)
        assert holder in foretold["results"][0]["notes"][0]
        answer, error = tried(vacuum, tables=[TABLE])
        assert isinstance(error, NotConverged)
        assert "still 2500 dead rows" in error.why
        assert f"They are kept alive by {holder.partition('pid')[0]}" in error.why
        assert holder in error.why
        assert (answer["changed"], answer["results"][0]["left"], answer["results"][0]["removed"]) == (True, 2500, 0)
        lenient = vacuum(tables=[TABLE], fail_on_blocked_horizon=False)
        assert lenient["changed"]
        assert holder in " ".join(lenient["results"][0]["notes"])
    if kind != "standby":
        assert vacuum(tables=[TABLE])["results"][0]["removed"] == 2500


def test_t3_10_a_slot_that_holds_back_catalogs_is_not_blamed_for_tables(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000, ratio=0)
    pg.sql("SELECT pg_create_logical_replication_slot('abandoned', 'pgoutput')", database="prod")
    pg.sql("SELECT pg_create_physical_replication_slot('physical', true)")
    delete(pg)
    answer = vacuum(tables=[TABLE])
    assert (answer["results"][0]["left"], answer["results"][0]["notes"]) == (0, [])
    pg.sql("CREATE TABLE short_lived ()", database="prod")
    for _ in range(3):
        pg.sql("DO $$ BEGIN FOR i IN 1..600 LOOP EXECUTE 'COMMENT ON TABLE events IS ''' || i || ''''; END LOOP; END $$", database="prod")
    owner = Caller(pg_vacuum, {**vacuum.options, "login_user": "lab", "login_password": "lab-password"})
    error = owner.fails(tables=["pg_catalog.pg_description"], min_dead_ratio=0)
    assert (type(error), "slot abandoned" in error.why) == (NotConverged, True)


def test_t3_10_a_holder_that_began_after_the_deletes_is_not_blamed(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    with session(pg, "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT 1"):
        pg.sql("SELECT pg_current_xact_id()")
        answer = vacuum(tables=[TABLE])
    assert answer["results"][0]["left"] == 0


def test_t3_10_a_hidden_holder(pg: Postgres) -> None:
    pg.role("healer", grants=["app"])
    plain = Caller(pg_vacuum, {**pg.options(), "login_db": "prod"})
    bloat(pg, rows=5000, ratio=0)
    with old_snapshot(pg) as holder:
        delete(pg)
        _answer, error = tried(plain, tables=[TABLE])
    assert isinstance(error, NotConverged)
    assert f"kept alive by session with unknown start ({holder}, lab@prod)" in error.why
    assert 'GRANT pg_read_all_stats TO "healer" lets this role see what it does' in error.why
    assert plain(tables=[TABLE])["changed"]


def test_t3_10_a_rewrite_that_would_copy_dead_rows_is_not_begun() -> None:
    table = made_up(dead=5000, bloat=BLOATED)
    old = Holder("session", "6.1", 7, "prod", "app", None, "idle in transaction", 50, 3600.0)
    for holder, conflict in (
        (old, True),
        (replace(old, seconds=1.0), False),
        (replace(old, kind="slot", seconds=None, age=5000), True),
        (replace(old, kind="slot", seconds=None, age=50), False),
        (replace(old, catalogs=True), False),
    ):
        with pytest.raises(Conflict, match="nothing be won") if conflict else contextlib.nullcontext():
            _vacuum.guard(wishes(full=True), table, site(holders=(holder,)))
        _vacuum.guard(wishes(), table, site(holders=(holder,)))


def test_t3_11_what_has_no_rows_of_its_own(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    pg.sql("CREATE VIEW seen AS SELECT * FROM events", database="prod", user="app")
    refused(vacuum, Invalid, "it is a view", tables=["seen"])
    refused(vacuum, Invalid, "it is an index", tables=["events_pkey"])
    if pg.kind == "debian":
        for statement in (
            "CREATE EXTENSION postgres_fdw",
            "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw",
            "CREATE FOREIGN TABLE away (id int) SERVER far",
        ):
            pg.sql(statement, database="prod")
        refused(vacuum, Invalid, "it is a foreign table", tables=["away"])
    with session(pg, "CREATE TEMPORARY TABLE passing AS SELECT id FROM generate_series(1, 5000) id", user="app"):
        ((schema,),) = pg.sql("SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'passing'", database="prod")
        refused(vacuum, NotFound, "passing", tables=["passing"])
        refused(vacuum, Refused, "temporary table of another session", tables=[f"{schema}.passing"])
        assert vacuum(schemas=[schema], check=True)["results"] == []
    assert vacuum(tables=["public.events"])["changed"]


def test_t3_11_a_partitioned_table_is_its_partitions(pg: Postgres, vacuum: Caller) -> None:
    for statement in (
        "CREATE SCHEMA archive",
        "CREATE TABLE measured (id int) PARTITION BY RANGE (id)",
        "CREATE TABLE archive.measured PARTITION OF measured FOR VALUES FROM (0) TO (3000)",
        "CREATE TABLE measured_2 PARTITION OF measured FOR VALUES FROM (3000) TO (6000) PARTITION BY RANGE (id)",
        "CREATE TABLE measured_2a PARTITION OF measured_2 FOR VALUES FROM (3000) TO (6000)",
        "INSERT INTO measured SELECT generate_series(0, 5999)",
        "DELETE FROM measured WHERE id % 2 = 0",
    ):
        pg.sql(statement, database="prod", user="app")
    refused(vacuum, Invalid, "archive.measured", "public.measured", tables=["measured"])
    answer = vacuum(tables=["public.measured"], analyze=True)
    assert {result["name"]: result["removed"] for result in answer["results"] if result["name"] != "public.measured_2"} == {
        "public.measured": 0,
        "archive.measured": 1500,
        "public.measured_2a": 1500,
    }
    assert pg.sql("SELECT count(*) > 0 FROM pg_statistic WHERE starelid = 'public.measured'::regclass AND stainherit", database="prod") == [(True,)]
    assert not vacuum(tables=["public.measured"], analyze=True)["changed"]
    assert not vacuum(schemas=["public", "archive"], analyze=True)["changed"]


def test_t3_11_a_materialised_view(pg: Postgres, vacuum: Caller) -> None:
    pg.sql("CREATE MATERIALIZED VIEW summed AS SELECT id FROM generate_series(1, 5000) id", database="prod", user="app")
    pg.sql("CREATE UNIQUE INDEX ON summed (id)", database="prod", user="app")
    assert vacuum(tables=["summed"], **ANY)["changed"]
    assert count(pg, table="summed") == 1
    assert vacuum(tables=["summed"], analyze=True, full=True, min_bloat="0", min_bloat_ratio=0, assume_free_space="1GiB")["changed"]
    assert not vacuum(tables=["summed"], analyze=True)["changed"]


def test_t3_11_only_the_toast_table_is_full_of_dead_rows(pg: Postgres, vacuum: Caller) -> None:
    for statement in (
        "CREATE TABLE events (id int, body text)",
        "ALTER TABLE events ALTER body SET STORAGE EXTERNAL",
        "INSERT INTO events SELECT id, repeat('x', 20000) FROM generate_series(1, 200) id",
        "UPDATE events SET body = repeat('y', 20000) WHERE id <= 150",
    ):
        pg.sql(statement, database="prod", user="app")
    answer = vacuum(tables=[TABLE])
    assert answer["results"][0]["dead_tuples"] == 150
    assert "in its TOAST table" in answer["results"][0]["why"][0]
    assert (answer["results"][0]["left"], answer["results"][0]["removed"]) == (0, 150 + answer["results"][0]["toast_dead_tuples"])
    assert not vacuum(tables=[TABLE])["changed"]


def test_t3_12_near_wraparound_nothing_but_a_plain_vacuum() -> None:
    old = made_up(xid_age=1_700_000_000, bloat=BLOATED)
    for options in (dict(full=True), dict(freeze=True)):
        with pytest.raises(Refused, match="plain vacuum is quick enough"):
            _vacuum.guard(wishes(**options), old, site())
    _vacuum.guard(wishes(), old, site())
    assert _vacuum.statement(wishes(), old, 150000) == 'VACUUM "public"."events"'
    assert _vacuum.settings(wishes(), old, 5)["vacuum_freeze_table_age"] == "0"


def test_t3_13_the_cost_delay_is_set(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    pg.mark()
    vacuum(tables=[TABLE], cost_delay=2.5)
    assert "set_config('vacuum_cost_delay', '2.5ms', false)" in pg.logged()


def test_t3_14_workers_for_indexes(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    assert "PARALLEL 0" in vacuum(tables=[TABLE], **ANY, index_workers=0)["steps"][0]
    assert "PARALLEL 2" in vacuum(tables=[TABLE], **ANY, index_workers=2)["steps"][0]


SCRIPT = """
import json, sys
from ansible_collections.homelab.healer.plugins.modules import pg_vacuum
from tests.lab.modules import call
call(pg_vacuum, **json.loads(sys.argv[1]))
"""


def test_t3_15_the_server_ends_it_when_the_client_dies(pg: Postgres, vacuum: Caller, whole: bool) -> None:
    if pg.kind != "debian" and not whole:
        pytest.skip("it takes ten seconds; one server is enough")
    bloat(pg, rows=20000)
    pg.set(vacuum_cost_limit=1)
    options = json.dumps({**vacuum.options, "tables": [TABLE], "cost_delay": 100})
    with subprocess.Popen([sys.executable, "-c", SCRIPT, options], cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL) as client:
        try:
            until(lambda: at_work(pg), 20)
        finally:
            client.kill()
    until(lambda: not at_work(pg), 15)
    pg.set(vacuum_cost_limit=None)
    assert vacuum(tables=[TABLE])["changed"]


def test_t3_15_time_is_over(pg: Postgres, vacuum: Caller) -> None:
    for table in ("events", "second", "third"):
        bloat(pg, table, rows=20000 if table == "events" else 5000)
    pg.set(vacuum_cost_limit=1)
    answer, error = tried(vacuum, tables=[TABLE, "second", "third"], cost_delay=100, max_duration="1s", parallel=1)
    assert isinstance(error, TimedOut)
    first, *rest = answer["results"]
    assert "was cancelled; process" in first["error"]["why"]
    assert "VACUUM, scanning heap" in first["error"]["why"]
    assert (first["changed"], [result["changed"] for result in rest]) == (True, [False, False])
    assert all("max_duration, 1 s, was over before it was begun" in result["error"]["why"] for result in rest)
    assert [count(pg, table=table) for table in ("events", "second", "third")] == [0, 0, 0]
    pg.set(vacuum_cost_limit=None)
    assert vacuum(tables=[TABLE, "second", "third"])["changed"]


def test_t3_15_time_is_over_in_a_rewrite_or_before_it_began(pg: Postgres, vacuum: Caller) -> None:
    pg.sql("CREATE FUNCTION slow(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS 'BEGIN PERFORM pg_sleep(0.01); RETURN $1; END'", database="prod")
    bloat(pg, rows=500)
    pg.sql("DELETE FROM events WHERE id > 100", database="prod")
    pg.sql("CREATE INDEX ON events (slow(id))", database="prod")
    pg.sql("ANALYZE events", database="prod")
    before = filenode(pg)
    answer, error = tried(vacuum, tables=[TABLE], **FULL, max_duration="0.5s")
    assert isinstance(error, TimedOut)
    assert "VACUUM FULL" in error.why
    assert (answer["changed"], filenode(pg)) == (False, before)
    with session(pg, "BEGIN", f"LOCK TABLE {TABLE} IN SHARE MODE"):
        answer, error = tried(vacuum, tables=[TABLE], **ANY, max_duration="0.3s")
    assert (type(error), answer["changed"]) == (TimedOut, False)


def test_t3_16_the_older_of_transactions_and_multixacts_of_table_and_toast() -> None:
    assert _vacuum.why(wishes(), made_up(xid_age=200_000_000)) == ("it is 200000000 transactions and 1 multixacts old",)
    assert _vacuum.why(wishes(), made_up(mxid_age=200_000_000)) == ("it is 1 transactions and 200000000 multixacts old",)
    assert _vacuum.why(wishes(), made_up()) == ()


@pytest.mark.parametrize("freeze", [True, False])
def test_t3_16_age_goes_away(pg: Postgres, vacuum: Caller, freeze: bool) -> None:
    bloat(pg, rows=5000, ratio=0)
    pg.sql("DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$", database="prod")
    pg.sql("VACUUM events", database="prod")
    assert vacuum(tables=[TABLE], min_xid_age=200, freeze=freeze)["changed"]
    assert not vacuum(tables=[TABLE], min_xid_age=200, freeze=freeze)["changed"]


def test_t3_16_age_that_somebody_holds_does_not_go_away(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000, ratio=0)
    with old_snapshot(pg) as holder:
        pg.sql("DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$", database="prod")
        _answer, error = tried(vacuum, tables=[TABLE], min_xid_age=200, freeze=True)
    assert (type(error), holder in error.why) == (NotConverged, True)


def test_t3_17_a_rewrite_goes_by_the_exact_bloat_where_it_can(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    estimated = vacuum(tables=[TABLE], **FULL, check=True)["results"][0]
    assert "(estimate)" in " ".join(estimated["why"])
    if pg.kind == "debian":
        pg.sql("CREATE EXTENSION pgstattuple", database="prod")
        exact = vacuum(tables=[TABLE], **FULL, check=True)["results"][0]
        assert "(exact)" in " ".join(exact["why"])
        assert exact["bloat_ratio"] == pytest.approx(estimated["bloat_ratio"], abs=0.1)


@pytest.mark.parametrize("needs", ["function", "table"])
@pytest.mark.parametrize("options", [{}, FULL], ids=["analyze", "full"])
def test_t3_18_an_index_whose_function_finds_nothing_says_what_to_do(pg: Postgres, vacuum: Caller, needs: str, options: dict[str, t.Any]) -> None:
    bloat(pg, rows=2000)
    body = {"function": "RETURN helper($1)", "table": "RETURN (SELECT min(x) FROM looked_up)"}[needs]
    for statement in (
        "CREATE FUNCTION helper(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT $1'",
        "CREATE TABLE looked_up AS SELECT 1::bigint AS x",
        f"CREATE FUNCTION outer_one(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS 'BEGIN {body}; END'",
        "CREATE TABLE copy (LIKE events)",
        "CREATE INDEX ON copy (outer_one(id))",
        "INSERT INTO copy SELECT * FROM events",
        "DELETE FROM copy WHERE id % 2 = 0",
    ):
        pg.sql(statement, database="prod", user="app")
    pg.sql("UPDATE pg_class SET reltuples = 500 WHERE relname = 'copy'", database="prod")
    before = filenode(pg, table="copy")
    answer, error = tried(vacuum, tables=["copy"], analyze=True, **{**options, "min_bloat_ratio": 0, "min_dead_tuples": 100})
    assert isinstance(error, TaskFailed)
    assert "ALTER FUNCTION ... SET search_path" in error.fix
    assert (answer["changed"], filenode(pg, table="copy")) == (not options, before)


@pytest.mark.parametrize("sql", ["SELECT count(*) FROM events", "INSERT INTO events VALUES (-1)"])
def test_a_rewrite_never_queues_for_its_lock(pg: Postgres, vacuum: Caller, sql: str) -> None:
    bloat(pg, rows=5000)
    with session(pg, "BEGIN", "SELECT count(*) FROM events", application_name="report") as reader, ThreadPoolExecutor() as pool:
        future = running(vacuum, pool, tables=[TABLE], **FULL, lock_timeout="1.2s")
        slowest = 0.0
        while not future.done():
            began = time.monotonic()
            pg.sql("BEGIN; SET LOCAL lock_timeout = '1s'; " + sql + "; ROLLBACK", database="prod")
            slowest = max(slowest, time.monotonic() - began)
        answer, error = future.result()
        assert isinstance(error, Conflict)
        assert f"process {reader.info.backend_pid} (lab, report, idle in transaction) has AccessShareLock" in error.why
        assert (answer["changed"], slowest < 0.3) == (False, True), slowest
        future = running(vacuum, pool, tables=[TABLE], **FULL, lock_timeout="5s")
        until(lambda: bool(pg.sql("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'VACUUM (FULL%'")))
        reader.cursor().execute("ROLLBACK")
        answer, error = future.result()
    assert (error, answer["changed"]) == (None, True)


def test_check_mode_runs_no_maintenance(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    pg.mark()
    for options in ({}, dict(analyze=True), FULL):
        assert vacuum(tables=[TABLE], **options, check=True)["changed"]
    assert set(re.findall(r"homelab\.healer LOG:  statement:\s+(\w+)", pg.logged())) == {"SELECT", "WITH"}
    assert count(pg) == 0


STATES = st.fixed_dictionaries(
    {
        "rows": st.integers(0, 3000),
        "gone": st.integers(1, 10),
        "moved": st.integers(1, 10),
        "toasted": st.booleans(),
        "indexed": st.booleans(),
        "looked_at": st.sampled_from(["", "ANALYZE", "VACUUM", "VACUUM ANALYZE"]),
    }
)
WANTED = st.fixed_dictionaries(
    {},
    optional={
        "analyze": st.booleans(),
        "freeze": st.booleans(),
        "truncate": st.booleans(),
        "full": st.booleans(),
        "min_dead_tuples": st.sampled_from([1, 100, 1000]),
        "min_dead_ratio": st.sampled_from([0, 0.01, 0.2, 0.5]),
        "min_xid_age": st.sampled_from([5000, 10**8]),
        "min_bloat": st.sampled_from(["8KiB", "100KiB"]),
        "min_bloat_ratio": st.sampled_from([0.1, 0.3]),
    },
)


def test_check_mode_foretells_any_run_and_a_second_has_nothing_to_do(pg: Postgres, vacuum: Caller, whole: bool) -> None:
    seen = {True: 0, False: 0}

    @settings(max_examples=100 if whole else 8, deadline=None, derandomize=not whole, database=None, suppress_health_check=list(HealthCheck))
    @given(STATES, WANTED)
    def holds(state: dict[str, t.Any], options: dict[str, t.Any]) -> None:
        body = "repeat(md5(id::text), 400)" if state["toasted"] else "md5(id::text)"
        with session(pg, "DROP TABLE IF EXISTS events", user="app") as client, client.cursor() as cursor:
            cursor.execute(f"CREATE TABLE events AS SELECT id, {body} AS body FROM generate_series(1, {state['rows']}) AS id")
            if state["indexed"]:
                cursor.execute("CREATE UNIQUE INDEX ON events (id)")
            cursor.execute(f"DELETE FROM events WHERE id % {state['gone']} = 1")
            cursor.execute(f"{state['looked_at']} {'events' if state['looked_at'] else 'SELECT 1'}")
            cursor.execute(f"UPDATE events SET body = body || 'x' WHERE id % {state['moved']} = 1")
        options = {"assume_free_space": "1GiB", **options}
        foretold = vacuum(tables=[TABLE], **options, check=True)
        answer = vacuum(tables=[TABLE], **options)
        assert [foretold[part] for part in ("changed", "steps", "undo", "reversibility")] == [
            answer[part] for part in ("changed", "steps", "undo", "reversibility")
        ]
        assert (foretold["before"], foretold["after"]) == (answer["before"], answer["after"])
        assert not (again := vacuum(tables=[TABLE], **options))["changed"], again["results"][0]["why"]
        seen[answer["changed"]] += 1

    holds()
    assert min(seen.values()) > 0, seen


def test_two_runs_at_the_same_time(pg: Postgres, vacuum: Caller) -> None:
    for number in range(6):
        bloat(pg, f"t{number}", rows=2000, ratio=0.6)
    for options in (dict(analyze=True), {**FULL, "min_bloat_ratio": 0.2}):
        with ThreadPoolExecutor() as pool:
            futures = [running(vacuum, pool, schemas=["public"], **options, parallel=3) for _ in range(2)]
        for future in futures:
            _answer, error = future.result()
            assert error is None or isinstance(error, Conflict), error
        assert not vacuum(schemas=["public"], **options)["changed"]


def test_many_tables_at_once(pg: Postgres, vacuum: Caller) -> None:
    with session(pg, user="app") as client, client.cursor() as cursor:
        for number in range(60):
            cursor.execute(f"CREATE TABLE t{number} AS SELECT generate_series(1, 50) AS id")
            cursor.execute(f"DELETE FROM t{number} WHERE id % 2 = 0")
    answer = vacuum(schemas=["public"], min_dead_tuples=10, parallel=4)
    assert len(answer["steps"]) == 60
    assert {(result["removed"], result["left"]) for result in answer["results"]} == {(25, 0)}
    assert not vacuum(schemas=["public"], min_dead_tuples=10, parallel=4)["changed"]


@pytest.mark.parametrize("instead", ["", "; CREATE TABLE events AS SELECT 1 AS id; ALTER TABLE events OWNER TO app"])
def test_a_table_that_went_or_was_replaced_meanwhile_is_left_alone(pg: Postgres, vacuum: Caller, monkeypatch: pytest.MonkeyPatch, instead: str) -> None:
    bloat(pg, rows=2000, ratio=0.6)
    monkeypatch.setattr(pg_vacuum, "guard", lambda *_: pg.sql(f"ALTER TABLE events RENAME TO old{instead}", database="prod"))
    answer, error = tried(vacuum, tables=[TABLE])
    assert (type(error), error.retryable, answer["results"][0]["steps"]) == (Conflict, True, [])
    assert "removed, renamed or replaced" in error.why
    assert not answer["changed"]
    assert pg.sql("SELECT relname FROM pg_stat_user_tables WHERE vacuum_count > 0", database="prod") == []


def test_one_tables_failure_leaves_the_others(pg: Postgres, vacuum: Caller) -> None:
    for table in ("events", "second", "third"):
        bloat(pg, table, rows=5000)
    with session(pg, "BEGIN", "LOCK TABLE second IN SHARE MODE"):
        answer, error = tried(vacuum, tables=["events", "second", "third"], lock_timeout="0.2s")
    assert {result["name"]: result["changed"] for result in answer["results"]} == {"public.events": True, "public.second": False, "public.third": True}
    assert "Not changed: public.second" in error.fix


def test_a_vacuum_whose_session_is_ended_is_told(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=20000)
    bloat(pg, "second", rows=5000)
    pg.set(vacuum_cost_limit=1)
    with ThreadPoolExecutor() as pool:
        future = running(vacuum, pool, tables=[TABLE, "second"], cost_delay=20, parallel=1)
        until(lambda: at_work(pg))
        time.sleep(0.3)
        pg.set(vacuum_cost_limit=None)
        pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_vacuum")
        answer, error = future.result()
    assert isinstance(error, Unreachable)
    assert {result["name"]: result["changed"] for result in answer["results"]} == {"public.events": True, "public.second": True}
    assert count(pg, table="second") == 1
    assert vacuum(tables=[TABLE])["changed"]


def test_a_server_that_is_killed_meanwhile(pg: Postgres, vacuum: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_postgresql, "CANCELLING", 0.5)
    bloat(pg, rows=20000)
    pg.set(vacuum_cost_limit=1)
    with ThreadPoolExecutor() as pool:
        future = running(vacuum, pool, tables=[TABLE], cost_delay=100)
        until(lambda: at_work(pg))
        pg.kill()
        answer, error = future.result()
    assert isinstance(error, Unreachable)
    assert (answer["changed"], answer["results"][0]["unknown"]) == (True, True)
    assert isinstance(vacuum.fails(tables=[TABLE]), Unreachable)
    pg.start()
    pg.set(vacuum_cost_limit=None)
    assert vacuum(tables=[TABLE])["changed"]
    assert not vacuum(tables=[TABLE])["changed"]


def test_a_server_that_goes_and_comes(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=2000, ratio=0.6)
    seen: list[HealerError] = []
    with ThreadPoolExecutor() as pool:
        restarted = pool.submit(pg.restart, "fast")
        while not restarted.done():
            _answer, error = call(vacuum.module, True, **vacuum.options, tables=[TABLE])
            seen += [error] if error else []
        restarted.result()
    assert {type(error) for error in seen} <= {Unreachable}, seen
    assert all(error.retryable for error in seen)
    assert vacuum(tables=[TABLE])["changed"]


def test_a_standby_is_refused(debian_postgres: Postgres) -> None:
    pg = debian_postgres
    pg.reset()
    for role in ("app", "healer"):
        pg.role(role)
    pg.database("prod", owner="app")
    bloat(pg, rows=5000)
    pg.sql("GRANT app TO healer")
    with standby(pg) as copy:
        options = copy.socket_options()
        for wanted in ({}, ANY):
            refused(Caller(pg_vacuum, {**options, "login_db": "prod"}), Refused, "standby", tables=[TABLE], **wanted)


def test_connections_that_cannot_be(pg: Postgres, vacuum: Caller, tmp_path: Path) -> None:
    bloat(pg, rows=2000)

    def fails(kind: type[HealerError], *words: str, **options: t.Any) -> None:
        error = refused(Caller(pg_vacuum, {**vacuum.options, **options}), kind, *words, tables=[TABLE])
        assert "password" not in error.why or "healer-password" not in str(error)

    fails(Denied, "login_password", login_password="wrong")
    fails(NotFound, "Check the names of the database", login_db="Prod")
    fails(Invalid, "login_db", login_db="")
    fails(Unreachable, "login_port", login_port=_free_port())
    fails(Invalid, "port", login_port=99999)
    pg.sql("CREATE DATABASE closed ALLOW_CONNECTIONS false")
    fails(Denied, "template or closed", login_db="closed")
    pg.database("private")
    pg.sql("REVOKE CONNECT ON DATABASE private FROM public")
    fails(Denied, "GRANT CONNECT ON DATABASE", login_db="private")
    pg.sql("ALTER ROLE healer NOLOGIN")
    fails(Denied, "LOGIN")
    pg.sql("ALTER ROLE healer LOGIN CONNECTION LIMIT 0")
    fails(Unreachable, "connection")
    pg.sql("ALTER ROLE healer CONNECTION LIMIT -1")
    if pg.tls:
        fails(Unreachable, "nowhere.invalid", login_host="nowhere.invalid")
        trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
        fails(Unreachable, "ca_cert", ca_cert=str(tmp_path / "other.pem"))
        fails(Unreachable, "ca_cert", ca_cert=None)
        fails(Invalid, "ca_cert", ca_cert=str(tmp_path / "missing.pem"))
    else:
        del vacuum.options["login_unix_socket"]
        fails(Unreachable, "ssl_mode=prefer", login_host="127.0.0.1")


def test_a_long_name_of_a_database_is_never_cut_to_another(pg: Postgres, vacuum: Caller) -> None:
    name = "d" * 63
    pg.database(name, owner="app")
    bloat(pg, database=name, rows=2000)
    _answer, error = tried(vacuum, tables=[TABLE], login_db=f"{name}x")
    assert isinstance(error, (Invalid, NotFound))
    assert Caller(pg_vacuum, {**vacuum.options, "login_db": name})(tables=[TABLE], min_dead_tuples=1)["changed"]


def test_a_crash_in_the_middle_is_not_taken_for_a_vacuum(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=20000)
    vacuum(tables=[TABLE])
    delete(pg)
    pg.set(vacuum_cost_limit=1)
    with ThreadPoolExecutor() as pool:
        future = running(vacuum, pool, tables=[TABLE], cost_delay=100, min_dead_ratio=0)
        until(lambda: at_work(pg))
        ((pid,),) = pg.sql("SELECT pid FROM pg_stat_progress_vacuum")
        os.kill(pid, 9)
        answer, error = future.result()
    assert isinstance(error, Unreachable)
    (result,) = answer["results"]
    assert (result["changed"], result["verified"], result["steps"]) == (True, {}, [])
    assert "it holds" not in " ".join(result["notes"])


@pytest.mark.parametrize("meanwhile", ["ANALYZE events", "SELECT pg_stat_reset_single_table_counters('events'::regclass)", "ALTER TABLE events SET UNLOGGED"])
def test_what_others_do_meanwhile_is_not_taken_for_a_vacuum(pg: Postgres, vacuum: Caller, monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    bloat(pg, rows=5000)
    vacuum(tables=[TABLE])
    delete(pg)

    def lost(*_: t.Any) -> None:
        pg.sql(meanwhile, database="prod")
        raise Unreachable("cannot run it", why="the connection was lost", fix="Look.", uncertain=True)

    monkeypatch.setattr(_postgresql.Server, "maintain", lost)
    monkeypatch.setattr(_run, "STILL_UNDER_WAY", 0)
    answer, error = tried(vacuum, tables=[TABLE])
    assert isinstance(error, Unreachable)
    assert (answer["results"][0]["changed"], answer["results"][0]["verified"]) == (True, {})
    if "UNLOGGED" not in meanwhile:
        answer, error = tried(vacuum, tables=[TABLE], full=True, min_bloat="0", min_bloat_ratio=0, assume_free_space="1TiB")
        assert (type(error), answer["changed"]) == (Unreachable, False)


def cut(pg: Postgres, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[], None]:
    """What cuts the module's connections that were opened since, as a lost network does."""
    opened: list[Connection] = []

    def connected(**arguments: t.Any) -> Connection:
        opened.append(genuine(**arguments))
        return opened[-1]

    def broken() -> None:
        for client in opened:
            with contextlib.suppress(psycopg2.Error), socket.socket(fileno=os.dup(client.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    genuine = psycopg2.connect
    monkeypatch.setattr(psycopg2, "connect", connected)
    return broken


SLOW = "CREATE FUNCTION slow(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS 'BEGIN PERFORM pg_sleep(0.01); RETURN $1; END'"


@pytest.mark.parametrize("seen", [True, False])
def test_a_rewrite_whose_connection_is_lost_does_not_go_on_unseen(pg: Postgres, vacuum: Caller, monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    pg.sql(SLOW, database="prod")
    bloat(pg, rows=1000)
    pg.sql("DELETE FROM events WHERE id > 150", database="prod")
    monkeypatch.setattr(_run, "STILL_UNDER_WAY", 0)
    pg.sql("CREATE INDEX ON events (slow(id))", database="prod")
    pg.sql("ANALYZE events", database="prod")
    before, broken = filenode(pg), cut(pg, monkeypatch)
    if not seen:
        monkeypatch.setattr(_postgresql, "CANCELLING", 0)
    with ThreadPoolExecutor() as pool:
        future = running(vacuum, pool, tables=[TABLE], **FULL)
        until(lambda: bool(pg.sql("SELECT 1 FROM pg_stat_progress_cluster")))
        broken()
        answer, error = future.result()
    assert isinstance(error, Unreachable)
    assert (answer["changed"], answer["results"][0]["unknown"]) == (not seen, not seen)
    assert ("the server may still be at it" in error.why) is not seen
    if seen:
        assert not pg.sql("SELECT 1 FROM pg_stat_progress_cluster")
        assert filenode(pg) == before


def test_what_was_vacuumed_before_its_analyze_found_a_lock_counts(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    with session(pg) as other, other.cursor() as cursor, ThreadPoolExecutor() as pool:
        pg.set(vacuum_cost_limit=1)
        future = running(vacuum, pool, tables=[TABLE], analyze=True, cost_delay=5, lock_timeout="0.5s")
        until(lambda: at_work(pg))
        cursor.execute("BEGIN")
        cursor.execute(f"LOCK TABLE {TABLE} IN SHARE MODE")  # waits for the vacuum, and has the table before its ANALYZE
        answer, error = future.result()
        cursor.execute("ROLLBACK")
    assert isinstance(error, Conflict)
    assert (answer["changed"], count(pg)) == (True, 1)


@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "full"])
def test_somebody_elses_cancel_is_told_as_that(pg: Postgres, vacuum: Caller, options: dict[str, t.Any]) -> None:
    pg.sql(SLOW, database="prod")
    bloat(pg, rows=1000 if options else 20000)
    if options:
        pg.sql("CREATE INDEX ON events (slow(id)) WHERE id < 100", database="prod")
        pg.sql("ANALYZE events", database="prod")
    pg.set(vacuum_cost_limit=1)
    with ThreadPoolExecutor() as pool:
        future = running(vacuum, pool, tables=[TABLE], **options, cost_delay=50)
        view = "pg_stat_progress_cluster" if options else "pg_stat_progress_vacuum"
        until(lambda: bool(pg.sql(f"SELECT pg_cancel_backend(pid) FROM {view}")))
        answer, error = future.result()
    assert isinstance(error, TimedOut)
    assert "cancelled by somebody else" in error.why
    assert answer["changed"] is not bool(options)


def test_a_question_that_hangs_keeps_nobody_from_cancelling(pg: Postgres, vacuum: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    bloat(pg, rows=20000)
    pg.set(vacuum_cost_limit=1)
    monkeypatch.setattr(_postgresql, "ASKING", 0.2)
    monkeypatch.setattr(pg_vacuum, "how_far", lambda *_: str(time.sleep(5)))  # type: ignore[func-returns-value]
    began = time.monotonic()
    answer, error = tried(vacuum, tables=[TABLE], cost_delay=100, max_duration="0.5s")
    assert time.monotonic() - began < 3
    assert (type(error), answer["changed"]) == (TimedOut, True)
    assert "could not be asked" in error.why


def test_settings_for_an_old_table_are_not_the_next_tables(pg: Postgres) -> None:
    old, young = (_vacuum.settings(wishes(), made_up(xid_age=age), 5) for age in (200_000_000, 1))
    with contextlib.closing(pg.connect("prod")) as client, client.cursor() as cursor:
        cursor.execute("SHOW vacuum_freeze_table_age")
        usual = cursor.fetchone()
        for wanted, expected in ((old, ("0",)), (young, usual)):
            _postgresql._set(client, wanted)
            cursor.execute("SHOW vacuum_freeze_table_age")
            assert cursor.fetchone() == expected


@pytest.mark.parametrize("options", [{}, FULL], ids=["plain", "full"])
def test_a_table_that_loses_its_name_while_it_is_asked_for(pg: Postgres, vacuum: Caller, monkeypatch: pytest.MonkeyPatch, options: dict[str, t.Any]) -> None:
    bloat(pg, rows=5000)
    genuine = _postgresql.Server.maintain

    def late(*arguments: t.Any) -> None:
        pg.sql("ALTER TABLE events RENAME TO old; CREATE TABLE events (); ALTER TABLE events OWNER TO app", database="prod")
        monkeypatch.undo()
        genuine(*arguments)

    monkeypatch.setattr(_postgresql.Server, "maintain", late)
    answer, error = tried(vacuum, tables=[TABLE], **options)
    assert (type(error), answer["changed"]) == (Conflict, False)
    assert "the one that has its name by now may have been taken in its place" in error.why
    assert "nobody let go" not in error.why


def seen_by(caller: Caller) -> t.ContextManager[_postgresql.Server]:
    """The server as the module sees it."""
    return _postgresql.connect(_validated(pg_vacuum, {**caller.options, "tables": [TABLE]}))


def test_t3_6_each_disk_needs_what_a_table_has_there(pg: Postgres, vacuum: Caller) -> None:
    bloat(pg, rows=5000)
    place = pg.folder / "place"
    place.mkdir(exist_ok=True)
    subprocess.run(["chown", f"--reference={pg.data}", str(place)], check=True)
    pg.sql(f"CREATE TABLESPACE away LOCATION '{place}'")
    try:
        pg.sql("CREATE INDEX more ON events (body) TABLESPACE away", database="prod")
        index, whole = of(pg, "pg_table_size('more')"), of(pg, "pg_total_relation_size(c.oid)")
        for temporary in ("", "away"):
            pg.set(temp_tablespaces=temporary)
            with seen_by(vacuum) as server:
                (spread,) = _vacuum._spread(server, [of(pg, "c.oid::bigint")]).values()
            own, sorting = whole - index, index
            assert spread == ({"": own + sorting, str(place): index} if not temporary else {"": own, str(place): index + sorting})
    finally:
        pg.set(temp_tablespaces=None)
        pg.sql("DROP TABLE events", database="prod")
        pg.sql("DROP TABLESPACE away")


def test_t3_6_something_stays_free_on_each_disk() -> None:
    tables = [made_up(key=1), made_up(key=2)]
    around = site(spread={1: {"": 100 << 20, "/indexes": 300 << 20}, 2: {"": 200 << 20}})
    for own, indexes, enough in ((265, 365, True), (264, 365, False), (265, 364, False)):
        free = {"": own, "/indexes": indexes, "wal": 1 << 20}
        disks = {place: _vacuum.Disk(number, Size(size << 20)) for number, (place, size) in enumerate(free.items())}
        with contextlib.nullcontext() if enough else pytest.raises(Refused, match="are free there"):
            _vacuum.check_space(wishes(full=True), tables, replace(around, disks=disks))
    for assumed, enough in ((503, True), (502, False)):
        with contextlib.nullcontext() if enough else pytest.raises(Refused, match="assume_free_space"):
            _vacuum.check_space(wishes(full=True, assume_free_space=Size(assumed << 20)), tables, around)


def test_t3_10_a_standby_that_keeps_up_keeps_nobody_from_rewriting(debian_postgres: Postgres) -> None:
    pg = lab_prepared(debian_postgres)
    pg.role("healer", grants=["pg_monitor", "app"])
    vacuum = Caller(pg_vacuum, {**pg.options(), "login_db": "prod"})
    with standby(pg):
        until(lambda: pg.sql("SELECT xmin IS NOT NULL FROM pg_replication_slots") == [(True,)], 20)
        bloat(pg, rows=5000)
        until(lambda: pg.sql("SELECT age(xmin) = 0 FROM pg_replication_slots") == [(True,)], 20)
        assert vacuum(tables=[TABLE], **FULL)["results"][0]["freed"] > 0


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("session", "pg_terminate"), ("prepared_transaction", "ROLLBACK PREPARED"), ("slot", "pg_drop_replication_slot"), ("standby", "queries on that standby")],
)
def test_t3_10_each_kind_of_holder_has_its_own_advice(kind: str, advice: str) -> None:
    old = Holder(kind, "it", 7, "prod", "app", None, None, 5000, None)
    with pytest.raises(Conflict, match=advice):
        _vacuum.guard(wishes(full=True), made_up(bloat=BLOATED), site(holders=(old,)))


def test_t3_9_a_table_that_somebody_hidden_is_vacuuming_is_left_alone(pg: Postgres) -> None:
    pg.role("healer", grants=["app"])
    bloat(pg, rows=20000)
    with vacuumed_by_somebody(pg) as pid:
        answer = Caller(pg_vacuum, {**pg.options(), "login_db": "prod"})(tables=[TABLE])
    assert not answer["changed"]
    assert f"left alone: process {pid} (VACUUM) is at it already" in answer["results"][0]["notes"]


def test_t3_15_measuring_takes_no_longer_than_all_may_take(debian_postgres: Postgres) -> None:
    pg = lab_prepared(debian_postgres)
    pg.role("healer", grants=["pg_monitor", "app"])
    vacuum = Caller(pg_vacuum, {**pg.options(), "login_db": "prod"})
    bloat(pg, rows=5000)
    pg.sql("CREATE EXTENSION pgstattuple", database="prod")
    for begin in ("ALTER FUNCTION pgstattuple_approx(regclass) RENAME TO genuine", SLOW_MEASURE):
        pg.sql(begin, database="prod")
    began = time.monotonic()
    answer = vacuum(tables=[TABLE], **FULL, max_duration="1s", check=True)
    assert time.monotonic() - began < 4
    assert "(estimate)" in " ".join(answer["results"][0]["why"])


SLOW_MEASURE = """
CREATE FUNCTION pgstattuple_approx(regclass, OUT table_len bigint, OUT dead_tuple_len bigint, OUT approx_free_space bigint)
LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(20); END'
"""


def test_before_postgresql_15_a_rewrite_waits_for_the_count_of_its_analyze(pg: Postgres, vacuum: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bloat(pg, rows=5000)
    late: list[float] = []
    genuine = _tables.find

    def counted_late(client: _postgresql.Server, *arguments: t.Any) -> list[Table]:
        """The tables as a server that counts half a second later tells them."""
        client.version = 140000
        found = genuine(client, *arguments)
        if found[0].analyze_count > 1:
            late.append(time.monotonic())
            return [replace(found[0], analyze_count=1, dead=rows)] if time.monotonic() < late[0] + 0.5 else found
        return found

    def marked_late(client: _postgresql.Server, table: Table) -> dict[str, int]:
        (now,) = counted_late(client, [table.key], None)
        return dict(filenode=now.filenode, vacuum_count=now.vacuum_count, analyze_count=now.analyze_count)

    monkeypatch.setattr(pg_vacuum, "find", counted_late)
    monkeypatch.setattr(pg_vacuum, "marks", marked_late)
    (result,) = vacuum(tables=[TABLE], **FULL)["results"]
    assert (result["removed"], result["left"]) == (rows, 0)
