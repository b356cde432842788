"""Names of tables, finding and measuring them, and ``pg_bloat_info``, against real servers."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import typing as t
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg2.sql import SQL, Identifier

from ansible_collections.homelab.healer.plugins.module_utils import _postgresql, _tables, _vacuum
from ansible_collections.homelab.healer.plugins.module_utils._errors import Denied, HealerError, Invalid, NotFound, TaskFailed
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Size
from ansible_collections.homelab.healer.plugins.module_utils._tables import Name, estimate, has_dead, parse_name, parse_names, parse_schemas, quoted
from ansible_collections.homelab.healer.plugins.modules import pg_bloat_info, pg_vacuum
from tests.lab.modules import Caller, call, read
from tests.lab.postgres import Postgres, _execute, bloat, prepared
from tests.test_pg_vacuum import ANY, made_up, refused, session, until, wishes

LONG = "x" * 63
NAMES = [
    "plain",
    "Mixed",
    "MIXED",
    'double "quotes"',
    '"',
    "dots.in.name",
    ".",
    " leading",
    "trailing ",
    " ",
    "new\nline",
    "tab\t",
    "ünïcödé",
    "u\u0308",
    "ü",
    "select",
    "VACUUM",
    "SKIP_LOCKED",
    "😀",
    "%s",
    "%(oids)s",
    "%",
    "{}",
    "{chosen}",
    "back\\slash",
    "'; DROP TABLE plain; --",
    '"; DROP TABLE plain; --',
    '" (id int); --',
    "-- comment",
    "/* comment */",
    "$$",
    "1",
    "*",
    "all",
    LONG,
    "é" * 31,
]


@pytest.fixture
def vacuum(pg: Postgres) -> Caller:
    pg.role("healer", grants=["pg_monitor", "app"])
    return Caller(pg_vacuum, {**pg.options(), "login_db": "prod"})


def make(pg: Postgres, *names: tuple[str, str]) -> None:
    """Tables of ``app`` in these schemas."""
    with contextlib.closing(pg.connect("prod", "app")) as client:
        for schema, relation in names:
            _execute(client, SQL("CREATE SCHEMA IF NOT EXISTS {0}").format(Identifier(schema)) if schema != "public" else "SELECT 1")
            _execute(client, SQL("CREATE TABLE {0}.{1} AS SELECT 1 AS id").format(Identifier(schema), Identifier(relation)))


def vacuumed(pg: Postgres) -> dict[tuple[str, str], int]:
    """How often each table was vacuumed; those never left out."""
    asked = "SELECT schemaname, relname, vacuum_count FROM pg_stat_user_tables WHERE vacuum_count > 0"
    return {(schema, relation): number for schema, relation, number in pg.sql(asked, database="prod")}


def test_each_name_means_exactly_one_table(pg: Postgres, vacuum: Caller) -> None:
    make(pg, *[("public", name) for name in NAMES])
    expected: dict[tuple[str, str], int] = {}
    for name in NAMES:
        for text in [name] if not set(name) & set('".') else [quoted(name), quoted("public", name)]:
            answer = vacuum(tables=[text], **ANY)
            expected["public", name] = expected.get(("public", name), 0) + 1
            assert (len(answer["results"]), parse_name(answer["results"][0]["name"])) == (1, Name(name, "public"))
        assert vacuumed(pg) == expected
    answer = vacuum(tables=[quoted("public", name) for name in NAMES], **ANY, parallel=4)
    assert vacuumed(pg) == {name: number + 1 for name, number in expected.items()}


def test_each_name_of_a_schema_is_one(pg: Postgres, vacuum: Caller, whole: bool) -> None:
    make(pg, *[(schema, "t") for schema in NAMES])
    some = NAMES if whole else NAMES[::4]
    for number, schema in enumerate(some):
        vacuum(schemas=[schema], **ANY)
        assert vacuumed(pg) == {(done, "t"): 1 for done in some[: number + 1]}
    error = refused(vacuum, Invalid, "there are several", tables=["t"])
    assert "select.t" in error.why
    assert read(pg_bloat_info, **vacuum.options, schemas=NAMES)["found"] == len(NAMES)


def test_what_is_no_name_or_no_table_is_said(pg: Postgres, vacuum: Caller) -> None:
    make(pg, ("public", LONG), ("public", "Events"), ("b", "twice"), ("c", "twice"), ("public", "ü"))
    for text, kind, words in (
        (f"{LONG}y", Invalid, "longer than 63 bytes"),
        (f"public.{LONG}y", Invalid, "longer than 63 bytes"),
        ("", Invalid, "is no name of a table"),
        (".", Invalid, "is no name of a table"),
        ("a.b.c", Invalid, "more than two parts"),
        ('a"b', Invalid, "double quotes"),
        ('"a', Invalid, "is no name"),
        ('"a"b', Invalid, "double quotes"),
        ("public.", Invalid, "is no name"),
        ("nul\0", Invalid, "zero byte"),
        ("\ud800", Invalid, "encoding"),
        ("events", NotFound, "but public.Events"),
        ("EVENTS", NotFound, "but public.Events"),
        ("twice", Invalid, "b.twice, c.twice"),
        ("u\u0308", NotFound, "there is no such table"),
        ("pg_class", NotFound, "there is no such table"),
        ("nowhere.Events", NotFound, "there is no such table"),
    ):
        assert words in str(refused(vacuum, kind, tables=[text], **ANY)), text
    for schema in ("nowhere", "PUBLIC", "publi", "public%"):
        refused(vacuum, NotFound, "there is no schema", schemas=[schema], **ANY)
    several: list[dict[str, t.Any]] = [dict(tables=[]), dict(tables=["t", ""])]
    several += [dict(schemas=[schema]) for schema in ("", "nul\0", f"{LONG}y")]
    several += [dict(schemas=[])]
    for options in several:
        refused(vacuum, Invalid, next(iter(options)), **options, **ANY)
    assert vacuumed(pg) == {}
    vacuum(tables=["c.twice", "c.twice", '"c"."twice"'], **ANY)
    assert vacuumed(pg) == {("c", "twice"): 1}


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=15))
@settings(derandomize=True, database=None)
def test_what_is_shown_reads_back(name: str) -> None:
    assert parse_name(str(Name(name, "a.b"))) == Name(name, "a.b")
    assert parse_name(quoted(name)) == Name(name)
    assert parse_names([quoted(name), str(Name(name))]) == (Name(name),)
    assert parse_schemas([name, name]) == (name,)


WORDS = ["public", "Events", "public.Events", "prod", "1h", "5s", "10MiB", "0", "%s", "{}", "a.b", '"', "'", "\\", "\0", "\ud800", "x" * 5000, "9" * 400, "😀"]
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(WORDS), st.tuples(st.sampled_from(WORDS), st.text(max_size=3)).map("".join))
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([10**6, 2**31, 2**63, 10**30, -(2**40)]))
FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, 0.5, 1.0]))
OPTIONS: dict[str, st.SearchStrategy[t.Any]] = {
    "tables": st.lists(TEXTS, max_size=3),
    "schemas": st.lists(TEXTS, max_size=3),
    **dict.fromkeys(("login_db", "login_user", "login_password", "lock_timeout", "max_duration", "min_bloat", "buffer_usage_limit"), TEXTS),
    **dict.fromkeys(("assume_free_space", "ssl_cert", "ca_cert", "min_size"), TEXTS),
    **dict.fromkeys(("login_port", "index_workers", "min_dead_tuples", "min_xid_age", "min_mxid_age", "parallel", "limit"), NUMBERS),
    **dict.fromkeys(("min_dead_ratio", "min_bloat_ratio", "cost_delay"), FLOATS),
    **{name: st.booleans() for name in ("full", "freeze", "analyze", "truncate", "exact")},
}


@pytest.mark.parametrize("module", [pg_vacuum, pg_bloat_info])
def test_nothing_that_is_written_into_an_option_is_more_than_a_clear_error(debian_postgres: Postgres, whole: bool, module: t.Any) -> None:
    pg = debian_postgres
    pg.reset()
    for role in ("app", "healer"):
        pg.role(role)
    pg.database("prod", owner="app")
    pg.sql("GRANT app, pg_monitor TO healer")
    make(pg, ("public", "Events"), ("a", "b"), ("prod", "0"))
    known = module.ARGUMENTS["argument_spec"]
    seen = {"answer": 0, "error": 0}
    optional = {name: strategy for name, strategy in OPTIONS.items() if name in known}

    @settings(
        max_examples=5000 if whole else 150,
        deadline=None,
        derandomize=not whole,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.fixed_dictionaries({}, optional=optional), st.sets(st.sampled_from(sorted(optional)), max_size=3))
    def holds(options: dict[str, t.Any], kept: set[str]) -> None:
        options = {name: value for name, value in options.items() if name in kept}
        if "tables" in options:
            options.pop("schemas", None)
        elif "schemas" not in options:
            options["tables"] = ["public.Events"]
        if "ssl_cert" in options:
            options["ssl_key"] = options["ssl_cert"]
        everything = {**pg.socket_options(), "login_db": "prod", "connect_timeout": 2, **options}
        try:
            if module is pg_vacuum:
                answer, error = call(module, True, **everything)
                told = answer["results"]
            else:
                told, error = read(module, **everything)["tables"], None
        except HealerError as failure:
            told, error = [], failure
        seen["error" if error else "answer"] += 1
        if error:
            assert error.code
            assert error.why
            assert error.fix
        asked = {parse_name(text) for text in options.get("tables", ())} if not error else set()
        for table in told:
            name = parse_name(table["name"])
            assert {name, Name(name.relation)} & asked or name.schema in options.get("schemas", ())

    pg.mark()
    holds()
    assert min(seen.values()) > 10
    assert not [line for line in pg.logged().splitlines() if "statement: VACUUM" in line or "statement: ANALYZE" in line]
    assert pg.sql("SELECT count(*) FROM pg_stat_user_tables", database="prod") == [(3,)]


def test_partitions_are_found_once_whatever_they_are_called(pg: Postgres, vacuum: Caller) -> None:
    for statement in (
        "CREATE SCHEMA archive",
        "CREATE TABLE m (id int) PARTITION BY RANGE (id)",
        "CREATE TABLE archive.m PARTITION OF m FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE m_2 PARTITION OF m FOR VALUES FROM (10) TO (20)",
    ):
        pg.sql(statement, database="prod", user="app")

    def found(**options: t.Any) -> list[str]:
        return sorted(result["name"] for result in vacuum(**options, check=True)["results"])

    assert found(tables=["public.m"]) == ["archive.m", "public.m", "public.m_2"]
    assert found(tables=["public.m", "archive.m"]) == ["archive.m", "public.m", "public.m_2"]
    assert found(tables=["archive.m"]) == ["archive.m"]
    assert found(schemas=["public"]) == ["public.m", "public.m_2"]


def info(pg: Postgres, **options: t.Any) -> dict[str, t.Any]:
    return read(pg_bloat_info, **{**pg.options(), "login_db": "prod", **options})


def test_bloat_is_told_of_those_that_fit(pg: Postgres) -> None:
    pg.role("healer", grants=["pg_monitor", "pg_read_all_data"])
    for table, ratio in (("much", 0.6), ("some", 0.3), ("none", 0.0)):
        bloat(pg, table, rows=5000, ratio=ratio)

    def names(**options: t.Any) -> list[str]:
        return [table["name"].partition(".")[2] for table in info(pg, **options)["tables"]]

    assert names() == ["much", "some", "none"]
    assert names(min_dead_ratio=0.5) == ["much"]
    assert names(min_dead_tuples=1, min_dead_ratio=0.2) == ["much", "some"]
    assert names(min_bloat="1GiB", min_dead_ratio=0.5) == ["much"]
    assert names(min_bloat="500KiB", min_bloat_ratio=0.5) == ["much"]
    assert names(min_size="1GiB") == []
    assert names(limit=1) == ["much"]
    assert names(limit=-1) == ["much", "some", "none"]
    assert info(pg, limit=1)["found"] == 3
    for table, ratio in zip(info(pg)["tables"], (0.6, 0.3, 0.0), strict=True):
        assert table["bloat_ratio"] == pytest.approx(ratio, abs=0.06)
        assert (table["source"], table["counted"], table["may_vacuum"], table["kind"], table["owner"]) == ("estimate", True, False, "table", "app")


def test_what_nobody_knows_is_not_told_as_no_bloat(pg: Postgres) -> None:
    for table in ("first", "second"):
        bloat(pg, table, rows=5000)
    pg.sql("CREATE TABLE empty (body text)", database="prod")
    pg.sql("CREATE TABLE parts (id int) PARTITION BY LIST (id)", database="prod")
    total = info(pg, tables=["first", "second"])["total"]  # healer may not see their statistics
    assert (total["bloat"], total["bloat_ratio"], total["heap"]) == (None, None, 0)
    total = info(pg, tables=["empty", "parts"])["total"]
    assert (total["bloat"], total["bloat_ratio"]) == (0, 0.0)
    pg.sql("GRANT SELECT ON first TO healer", database="prod")
    told = info(pg)
    assert told["total"]["bloat_ratio"] == told["tables"][0]["bloat_ratio"] > 0.2
    pg.sql("GRANT SELECT ON second TO healer", database="prod")
    assert told["ids"] == sorted(table["id"] for table in told["tables"]) == info(pg, limit=1)["ids"]
    with session(pg, "BEGIN", "LOCK TABLE first"):
        assert info(pg, tables=["first"])["total"]["bloat_ratio"] is None


def test_after_lost_statistics_no_healthy_table_is_told_as_bloated(pg: Postgres) -> None:
    pg.role("healer", grants=["pg_read_all_data"])
    for statement in (
        "CREATE TABLE big WITH (autovacuum_enabled = off) AS SELECT id, repeat('x', 100) AS body FROM generate_series(1, 20000) id",
        "VACUUM ANALYZE big",
        "SELECT pg_stat_reset()",
    ):
        pg.sql(statement, database="prod")
    pg.sql("INSERT INTO big SELECT 1, 'a' FROM generate_series(1, 5)", database="prod")
    until(lambda: info(pg)["tables"][0]["live_tuples"] == 5)
    told = info(pg)
    assert (told["tables"][0]["bloat"], told["tables"][0]["counted"], told["total"]["bloat_ratio"]) == (None, False, None)
    pg.sql("INSERT INTO big SELECT id, repeat('x', 100) FROM generate_series(1, 12000) id", database="prod")
    until(lambda: info(pg)["tables"][0]["live_tuples"] > 12000)
    (one,) = info(pg)["tables"]
    assert one["bloat"] is None  # there may be 12005 rows, or 32005
    pg.sql("ANALYZE big", database="prod")
    until(lambda: info(pg)["tables"][0]["live_tuples"] == 32005)
    assert info(pg)["tables"][0]["bloat_ratio"] < 0.05


def test_a_table_without_a_live_row_is_all_bloat(pg: Postgres) -> None:
    pg.role("healer", grants=["pg_read_all_data"])
    pg.sql("CREATE TABLE queue WITH (autovacuum_enabled = off) AS SELECT id, repeat('x', 100) AS body FROM generate_series(1, 5000) id", database="prod")
    pg.sql("VACUUM ANALYZE queue", database="prod")
    pg.sql("DELETE FROM queue", database="prod")
    until(lambda: info(pg)["tables"][0]["dead_tuples"] == 5000)
    (one,) = info(pg)["tables"]
    assert (one["live_tuples"], one["bloat_ratio"]) == (0, 1.0)


def test_a_lock_in_another_database_is_none_here(pg: Postgres) -> None:
    pg.role("healer", grants=["pg_read_all_data"])
    pg.sql("CREATE TABLE big AS SELECT generate_series(1, 1000) AS id", database="prod")
    pg.sql("CREATE DATABASE staging TEMPLATE prod")
    with contextlib.closing(pg.connect("staging")) as client:
        _execute(client, "BEGIN")
        _execute(client, "LOCK TABLE big")
        assert info(pg)["tables"][0]["size"]
        assert info(pg, login_db="staging")["tables"][0]["size"] is None


def test_a_table_that_is_dropped_while_it_is_measured_is_no_damage(debian_postgres: Postgres) -> None:
    pg = prepared(debian_postgres)
    pg.sql("CREATE EXTENSION pgstattuple", database="prod")
    pg.sql("CREATE TABLE passing AS SELECT 1 AS id", database="prod")
    params = {**dict.fromkeys(_postgresql.OPTIONS), "ssl_mode": "disable", "connect_timeout": 5, "login_db": "prod", **pg.socket_options("lab")}
    with _postgresql.connect(params) as server:
        found = _tables.find(server, [Name("passing")], None)
        pg.sql("DROP TABLE passing", database="prod")
        with pytest.raises(TaskFailed, match=r"could not open relation.*Run this again"):
            _tables.measured(server, found, True)


def test_dead_rows_of_a_toast_table_fit_as_well(pg: Postgres) -> None:
    pg.sql("CREATE TABLE docs (id int, body text)", database="prod", user="app")
    pg.sql("ALTER TABLE docs ALTER body SET STORAGE EXTERNAL, SET (autovacuum_enabled = off, toast.autovacuum_enabled = off)", database="prod", user="app")
    pg.sql("INSERT INTO docs SELECT id, repeat('x', 10000) FROM generate_series(1, 300) id", database="prod", user="app")
    pg.sql("UPDATE docs SET body = repeat('y', 10000) WHERE id <= 100", database="prod", user="app")
    until(lambda: info(pg, tables=["docs"])["tables"][0]["toast_dead_tuples"] == 600)
    told = info(pg, tables=["docs"], min_dead_tuples=500)
    assert (told["found"], told["tables"][0]["toast_live_tuples"], told["total"]["toast_dead_ratio"]) == (1, 1800, 0.25)
    assert (told["tables"][0]["dead_tuples"], told["total"]["dead_ratio"]) == (100, 0.25)
    assert info(pg, tables=["docs"], min_dead_tuples=500, min_dead_ratio=0.3)["found"] == 0


def test_a_table_fits_exactly_if_it_would_be_vacuumed() -> None:
    numbers = [
        dict(zip(("dead", "toast_dead", "live", "rows"), each)) for each in itertools.product((0, 50, 500), (0, 50, 500), (0, 1000), (-1.0, 0.0, 1000.0))
    ]
    for values in numbers:
        for kind in "rmp":
            table = made_up(kind=kind, toast_live=600, **values)
            for tuples, ratio in itertools.product((0, 1, 100, 10**6), (0, 0.3)):
                assert has_dead(table, tuples, ratio) == bool(_vacuum.why(wishes(min_dead_tuples=tuples, min_dead_ratio=ratio), table)), (values, tuples, ratio)


@pytest.mark.parametrize("option", [dict(min_dead_ratio=10), dict(min_bloat_ratio=30), dict(min_dead_ratio=float("nan")), dict(min_dead_tuples=-1)])
def test_thresholds_that_nothing_can_reach_are_refused(pg: Postgres, option: dict[str, t.Any]) -> None:
    with pytest.raises(Invalid, match=next(iter(option))):
        info(pg, **option)


def test_t3_17_bloat_exactly(pg: Postgres) -> None:
    pg.role("healer")
    bloat(pg, rows=5000)
    pg.sql("GRANT SELECT ON events TO healer", database="prod")
    with pytest.raises(Invalid, match="CREATE EXTENSION pgstattuple in prod"):
        info(pg, exact=True)
    if pg.kind != "debian":
        return
    pg.sql('CREATE SCHEMA "100%"', database="prod")
    pg.sql('CREATE EXTENSION pgstattuple SCHEMA "100%"', database="prod")
    with pytest.raises(Denied, match='GRANT pg_stat_scan_tables TO "healer"'):
        info(pg, exact=True)
    assert not info(pg)["exact"]
    pg.sql("GRANT pg_stat_scan_tables TO healer")
    with pytest.raises(Denied, match='GRANT USAGE ON SCHEMA "100%" TO "healer"'):
        info(pg, exact=True)
    pg.sql('GRANT USAGE ON SCHEMA "100%" TO healer', database="prod")
    (exact,), (estimated,) = info(pg, exact=True)["tables"], info(pg)["tables"]
    assert (exact["source"], estimated["source"]) == ("exact", "estimate")
    assert exact["bloat_ratio"] == pytest.approx(estimated["bloat_ratio"], abs=0.08)
    pg.sql("CREATE TABLE empty ()", database="prod")
    pg.sql("CREATE TABLE parts (id int) PARTITION BY LIST (id)", database="prod")
    with session(pg, "CREATE TEMPORARY TABLE passing AS SELECT 1 AS id"):
        told = {table["name"]: table["source"] for table in info(pg, exact=True)["tables"]}
    assert told == {"public.events": "exact", "public.empty": None, "public.parts": None}


def test_reading_large_tables_may_take_longer_than_other_questions(debian_postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    pg = debian_postgres
    pg.reset()
    pg.role("app")
    pg.database("prod", owner="app")
    bloat(pg, rows=500)
    pg.sql("CREATE EXTENSION pgstattuple", database="prod")
    monkeypatch.setitem(_postgresql.SESSION, "statement_timeout", "500ms")
    monkeypatch.setattr(_tables, "EXACT", _tables.EXACT + ", pg_sleep(1)")
    (told,) = info(pg, exact=True, login_user="lab", login_password="lab-password")["tables"]
    assert told["source"] == "exact"


def test_nobodys_lock_is_waited_for(pg: Postgres) -> None:
    pg.role("healer", grants=["pg_monitor"])
    pg.role("reader", grants=["pg_read_all_data"])
    for table in ("locked", "by_index", "queued", "toasted", "open"):
        bloat(pg, table, rows=500)
    ((toast,),) = pg.sql("SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'toasted'", database="prod")
    with contextlib.ExitStack() as held:
        held.enter_context(session(pg, "BEGIN", "LOCK TABLE locked"))
        held.enter_context(session(pg, "BEGIN", "REINDEX INDEX by_index_pkey"))
        held.enter_context(session(pg, "BEGIN", f"REINDEX TABLE {toast}"))
        held.enter_context(session(pg, "BEGIN", "SELECT FROM queued"))
        waiting = held.enter_context(session(pg, "BEGIN"))
        locking = threading.Thread(target=_lock, args=(waiting, "queued"))
        locking.start()
        try:
            until(lambda: bool(pg.sql("SELECT 1 FROM pg_locks WHERE NOT granted")))
            began = time.monotonic()
            told = {table["name"]: table["size"] is None for table in info(pg)["tables"]}
            took = time.monotonic() - began
        finally:
            waiting.cancel()
            locking.join()
    assert told == {"public.locked": True, "public.by_index": True, "public.queued": True, "public.toasted": True, "public.open": False}
    assert took < 1


def _lock(client: t.Any, table: str) -> None:
    with contextlib.suppress(Exception):
        client.cursor().execute(f"LOCK TABLE {table}")


def test_kinds_rights_and_what_nobody_knows(pg: Postgres) -> None:
    pg.role("healer")
    for statement in (
        "CREATE TABLE parts (id int) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (10000)",
        "INSERT INTO parts SELECT generate_series(0, 999)",
        "CREATE MATERIALIZED VIEW summed AS SELECT id, repeat('x', 100) AS body FROM parts",
        "CREATE TABLE never AS SELECT 'text' AS body FROM generate_series(1, 1000)",
        "CREATE VIEW seen AS SELECT 1",
        "ANALYZE summed",
    ):
        pg.sql(statement, database="prod", user="app")
    told = {table["name"]: table for table in info(pg)["tables"]}
    assert {name: table["kind"] for name, table in told.items()} == {
        "public.parts": "partitioned table",
        "public.part": "table",
        "public.summed": "materialized view",
        "public.never": "table",
    }
    assert [told[f"public.{name}"]["bloat"] for name in ("parts", "never", "summed")] == [None, None, None]
    assert told["public.part"]["bloat"] is None  # the width of its column is known without statistics, but not the number of its rows
    assert told["public.never"]["last_analyze"] is None
    assert not any(table["may_vacuum"] for table in told.values())
    assert [table["name"] for table in info(pg, tables=["parts"])["tables"]] == ["public.part", "public.parts"]
    with pytest.raises(Invalid, match="a view"):
        info(pg, tables=["seen"])


def test_an_estimate_lays_rows_out_as_the_server_does() -> None:
    table = made_up(live=1000, heap=Size(10 * 8192), fillfactor=100, vacuum_count=1)
    bigint: tuple[int, str, float | None, int | None] = (8, "d", 0.0, 8)
    bloated = estimate(table, 8192, [bigint])  # 24 + 8 + 4 bytes a row: 226 in a page, so 5 pages
    assert bloated is not None
    assert (bloated.size, bloated.ratio, bloated.source) == (5 * 8192, 0.5, "estimate")
    assert estimate(table, 8192, [(-1, "i", None, None)]) is None
    empty = estimate(made_up(live=0, rows=0.0, heap=Size(0)), 8192, [bigint])
    assert empty is not None
    assert (empty.size, empty.ratio) == (0, 0.0)
    assert estimate(replace(table, heap=None), 8192, [bigint]) is None
    assert estimate(replace(table, vacuum_count=0), 8192, [bigint]) is None


def test_an_estimate_is_near_what_is_there(pg: Postgres) -> None:
    pg.role("healer", grants=["pg_read_all_data"])
    columns = {
        "narrow": "id::int",
        "mixed": "id::smallint AS a, id::bigint AS b, id % 2 = 0 AS even, now() AS at, repeat('x', id % 50) AS body",
        "nulls": "CASE WHEN id % 2 = 0 THEN id END AS a, CASE WHEN id % 3 = 0 THEN repeat('y', 200) END AS b, id AS c",
        "wide": "repeat('z', 1500) AS body, id",
        "numbers": "id::numeric, md5(id::text)::uuid, ARRAY[id, id] AS several",
    }
    for name, selected in columns.items():
        pg.sql(f"CREATE TABLE {name} AS SELECT {selected} FROM generate_series(1, 5000) id", database="prod", user="app")
        pg.sql(f"VACUUM ANALYZE {name}", database="prod", user="app")
    for table in info(pg)["tables"]:
        assert table["bloat_ratio"] < 0.1, table


def test_t3_11_a_table_of_a_thousand_is_one_question(pg: Postgres) -> None:
    pg.role("healer")
    with contextlib.closing(pg.connect("prod", "app")) as client:
        _execute(client, "DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE format('CREATE TABLE many_%s (id int)', i); END LOOP; END $$")
    pg.mark()
    assert info(pg)["found"] == 1000
    assert pg.logged().count("statement:") < 12
