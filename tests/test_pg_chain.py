"""The remedies for PostgreSQL, through the whole chain."""

from __future__ import annotations

import contextlib
import json
import re
import typing as t
from pathlib import Path

import pytest
import yaml
from psycopg2.extras import wait_select

from ansible_collections.homelab.healer.plugins.filter.doctor import database_findings
from tests.lab.playbooks import COLLECTION, Controller
from tests.lab.postgres import Pool, Postgres, bloat, blockers, prepared


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On the newer server, and with ``--all`` on the older one as well: what they have to do with the chain is the same."""
    if "pg" not in metafunc.fixturenames:
        return
    metafunc.parametrize("pg", ["embedded", "debian"] if metafunc.config.getoption("--all") else ["embedded"], indirect=True)


@pytest.fixture
def pg(request: pytest.FixtureRequest) -> Postgres:
    return prepared(request.getfixturevalue(f"{request.param}_postgres"))


@pytest.fixture
def controller(pg: Postgres, tmp_path: Path) -> Controller:
    """A controller whose role has the documented rights."""
    pg.role("healer", grants=["pg_monitor", "pg_signal_backend", "pg_maintain" if pg.version >= 170000 else "app"])
    return Controller(tmp_path, postgresql=pg.options())


def dead(pg: Postgres, table: str = "public.events") -> int:
    ((count,),) = pg.sql("SELECT pg_stat_get_dead_tuples(%s::regclass)", table, database="prod")
    return int(count)


def test_a_bloated_table_is_vacuumed_and_measured_again(pg: Postgres, controller: Controller) -> None:
    bloat(pg)
    planned = controller.play("homelab.healer.heal_pg_bloat", "--check", "--diff")
    assert "-dead_tuples: 26667" in planned.output, planned.output
    run = controller.play("homelab.healer.heal_pg_bloat", database="prod", table="events")
    assert (run.returncode, run.record["outcome"], run.record["plan_id"]) == (0, "healed", planned.record["plan_id"]), run.output
    assert run.record["results"][0]["results"][0]["removed"] == 26667
    assert (dead(pg), run.record["undo"]) == (0, [])
    assert run.record["plan"][0]["reversibility"] == "none"
    assert "40.0 % of its rows are dead" in run.output

    run = controller.play("homelab.healer.heal_pg_bloat", database="prod", table="events")
    assert (run.returncode, run.record["outcome"]) == (0, "healthy"), run.output


def test_what_cannot_be_vacuumed_away_calls_a_human_and_names_who_is_in_the_way(pg: Postgres, controller: Controller) -> None:
    bloat(pg)
    with contextlib.closing(pg.connect("prod", "app", application_name="report")) as reader:
        reader.set_session(isolation_level="REPEATABLE READ", autocommit=False)
        reader.cursor().execute("SELECT count(*) FROM events")
        pg.sql("DELETE FROM events WHERE mod(id, 2) = 0", database="prod")
        pg.sql("SELECT pg_stat_force_next_flush()", database="prod")
        run = controller.play("homelab.healer.heal_pg_bloat", database="prod", table="events")
        assert run.record["outcome"] == "needs_human", run.output
        assert f"(pid {reader.info.backend_pid}, app@prod, idle in transaction" in run.record["why"]


def test_of_a_partitioned_table_what_needs_it_is_rewritten_and_the_rest_left_alone(pg: Postgres, controller: Controller) -> None:
    pg.sql("GRANT pg_read_all_data TO healer")
    pg.database("shut")
    pg.sql("ALTER DATABASE shut ALLOW_CONNECTIONS false")
    pg.sql("CREATE TABLE log (id int, body text) PARTITION BY RANGE (id)", database="prod")
    for part in range(3):
        pg.sql(f"CREATE TABLE log_{part} PARTITION OF log FOR VALUES FROM ({part}0000) TO ({part + 1}0000)", database="prod")
    pg.sql("INSERT INTO log SELECT id, repeat('x', 100) FROM generate_series(0, 29999) AS id", database="prod")
    pg.sql("ANALYZE", database="prod")
    pg.sql("DELETE FROM log WHERE id > 20000 AND mod(id, 10) > 0", database="prod")
    sizes: dict[str, t.Any] = {"pg_bloat_min_bloat": "100KiB"}
    run = controller.play("homelab.healer.heal_pg_bloat", full=True, **sizes)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert (run.record["target"]["name"], run.record["target"]["databases"]) == ("public.log_2 in prod", ["prod"])
    run = controller.play("homelab.healer.heal_pg_bloat", database="prod", table="log", full=True, **sizes)
    assert (run.returncode, run.record["outcome"], run.record["why"]) == (0, "healthy", "log in prod is within bounds"), run.output


def test_a_misspelt_name_is_never_healthy(pg: Postgres, controller: Controller) -> None:
    misspelt: list[tuple[str, dict[str, t.Any], str]] = [
        ("heal_pg_bloat", {"database": "prod", "table": "evnets"}, "there is no such table"),
        ("clear_connections", {"database": "prdo"}, "there is no such database"),
        ("heal_pg_blocker", {"database": "prdo"}, "there is no such database"),
    ]
    for playbook, variables, words in misspelt:
        run = controller.play(f"homelab.healer.{playbook}", **variables)
        assert run.record["outcome"] == "needs_human", run.output
        assert words in run.record["why"]


def test_a_table_that_is_named_is_vacuumed_in_any_case(pg: Postgres, controller: Controller) -> None:
    bloat(pg, ratio=0.001)
    run = controller.play("homelab.healer.vacuum", database="prod", table="public.events")
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output


def test_sessions_that_were_listed_are_ended_and_no_others(pg: Postgres, controller: Controller) -> None:
    pg.database("other", owner="app")
    with Pool(pg, 5) as pool, Pool(pg, 2, database="other") as other, Pool(pg, 1, user="lab") as superuser:
        run = controller.play("homelab.healer.clear_connections", "--check", user="app")
        assert run.record["target"]["databases"] == ["other", "prod"], run.output
        run = controller.play("homelab.healer.clear_connections", database="prod")
        assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
        assert (len(pool.alive()), len(other.alive()), len(superuser.alive())) == (0, 2, 1)
        run = controller.play("homelab.healer.clear_connections", database="prod")
        assert (run.returncode, run.record["outcome"]) == (0, "healthy"), run.output


def test_nothing_named_means_nobody(pg: Postgres, controller: Controller) -> None:
    with Pool(pg, 2) as pool:
        run = controller.play("homelab.healer.clear_connections")
        assert (run.record["outcome"], run.record["error"]["code"], len(pool.alive())) == ("needs_human", "invalid", 2), run.output


def test_a_name_is_not_looked_for_on_several_servers(pg: Postgres, controller: Controller) -> None:
    inventory = controller.folder / "inventory.yml"
    hosts = yaml.safe_load(inventory.read_text())
    hosts["postgresql"]["hosts"]["other"] = hosts["postgresql"]["hosts"]["db"]
    inventory.write_text(yaml.safe_dump(hosts))
    run = controller.play("homelab.healer.clear_connections", database="prod")
    assert run.returncode != 0
    assert "cannot tell on which of db, other" in " ".join(run.output.split())


CHECKED: dict[str, dict[str, t.Any]] = {
    "heal_pg_bloat": {},
    "vacuum": {"database": "prod", "table": "events"},
    "heal_pg_connections": {"pg_connections_threshold": 0.01, "pg_connections_min_idle": "0s"},
    "heal_pg_blocker": {"pg_blocker_min_wait": 0},
    "clear_connections": {"database": "prod"},
}


@pytest.mark.parametrize("playbook", CHECKED)
def test_check_mode_of_each_playbook_foretells_and_writes_nothing(playbook: str, pg: Postgres, controller: Controller) -> None:
    bloat(pg)
    with blockers(pg) as blocked, Pool(pg, 2) as pool:
        before = set(pool.alive())
        pg.mark()
        run = controller.play(f"homelab.healer.{playbook}", "--check", "--diff", **CHECKED[playbook])
        assert (run.returncode, run.record["outcome"]) == (0, "planned"), run.output
        asked = [line.partition("homelab.healer ")[2] for line in pg.logged().splitlines()]
        assert any(asked)
        assert not [line for line in asked if re.search(r"pg_(terminate|cancel)_backend\(|statement: (VACUUM|ANALYZE)", line)]
        assert (pool.alive(), len(blocked.waiting), dead(pg)) == (before, 5, 26667)
        assert run.record["target"]["databases"] == ["prod"]


def test_each_playbook_for_postgresql_is_checked() -> None:
    found = {path.stem for path in (COLLECTION / "playbooks").glob("*.yml") if "hosts: postgresql" in path.read_text()}
    assert found == set(CHECKED)


def test_a_server_that_runs_out_of_connections_gets_rid_of_idle_ones(pg: Postgres, controller: Controller) -> None:
    with Pool(pg, 60), Pool(pg, 50, "idle in transaction") as stuck, Pool(pg, 2, "active") as active:
        run = controller.play("homelab.healer.heal_pg_connections", pg_connections_min_idle="1h", pg_connections_pause=0)
        assert run.record["outcome"] == "needs_human", run.output
        assert "no session that may be ended" in run.record["why"]
        idle = ["idle in transaction"]
        run = controller.play("homelab.healer.heal_pg_connections", pg_connections_min_idle="1s", pg_connections_states=idle, pg_connections_pause=0)
        assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
        assert run.record["target"] == {"kind": "postgresql", "id": "db", "name": "db", "databases": ["prod"]}
        assert (len(stuck.alive()), len(active.alive())) == (0, 2)
        assert run.record["plan"][0]["reversibility"] == "none"
    run = controller.play("homelab.healer.heal_pg_connections")
    assert (run.returncode, run.record["outcome"]) == (0, "healthy"), run.output


def test_who_makes_others_wait_is_ended_and_nobody_else(pg: Postgres, controller: Controller) -> None:
    with blockers(pg) as blocked:
        run = controller.play("homelab.healer.heal_pg_blocker", database="prod")
        assert (run.returncode, run.record["outcome"]) == (0, "healthy"), run.output
        run = controller.play("homelab.healer.heal_pg_blocker", database="prod", pg_blocker_min_wait=1, remediate_pause=0)
        assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
        assert "makes 5 sessions wait" in " ".join(run.output.split())
        left = {pid for (pid,) in pg.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'pool'")}
        assert left == set(blocked.waiting)


def test_a_prepared_transaction_in_the_way_is_a_matter_for_a_human(pg: Postgres, controller: Controller) -> None:
    bloat(pg, rows=10)
    with contextlib.closing(pg.connect("prod", "app")) as client:
        for statement in ("BEGIN", "UPDATE events SET body = ''", "PREPARE TRANSACTION 'forgotten'"):
            client.cursor().execute(statement)
    with contextlib.closing(pg.connect("prod", "app", async_=True)) as waiter:
        wait_select(waiter)
        cursor = waiter.cursor()  # whose end would end what it waits for
        cursor.execute("UPDATE events SET body = 'x'")
        run = controller.play("homelab.healer.heal_pg_blocker", pg_blocker_min_wait=0)
    pg.sql("ROLLBACK PREPARED 'forgotten'", database="prod")
    assert run.record["outcome"] == "needs_human", run.output
    assert "forgotten" in run.record["why"]


def test_the_doctor_tells_what_hinders_healing_and_what_is_wrong(pg: Postgres, controller: Controller) -> None:
    pg.role("healer")
    with Pool(pg, 105):
        run = controller.play("homelab.healer.doctor", doctor_fail_on=["problem"])
    assert run.returncode == 2, run.output
    (report,) = json.loads((controller.folder / "stats.json").read_text())["doctor"]
    told = {finding["what"]: finding["fix"] for finding in report["findings"]}
    assert told["cannot see what the sessions of db do"] == 'GRANT pg_read_all_stats TO "healer".'
    assert told["cannot end sessions of db"] == 'GRANT pg_signal_backend TO "healer".'
    assert "db runs out of connections" in told
    assert f"PostgreSQL {pg.version // 10000}." in run.output


def test_what_is_wrong_with_a_server_is_told() -> None:
    holders = [
        dict(kind="session", name="6920b1a2.1f40", state="idle in transaction", seconds=4000.0),
        dict(kind="session", name="6920b1a2.1f41", state="active", seconds=10.0),
        dict(kind="slot", name="old_replica", state="inactive", seconds=None),
    ]
    answer = dict(
        role=dict(name="healer", superuser=False, sees_all=True, may_signal=True),
        connections=dict(share=0.1, used=10, max=103, reserved=3),
        horizon=holders,
        wraparound=[dict(database="prod", xid_age=1_200_000_000, mxid_age=5), dict(database="new", xid_age=5, mxid_age=5)],
    )
    told = [(finding["severity"], finding["what"], finding["why"]) for finding in database_findings(answer, "db")]
    assert told == [
        ("warning", "dead rows of db cannot be removed", "session 6920b1a2.1f40 (idle in transaction) may still see them"),
        ("warning", "dead rows of db cannot be removed", "slot old_replica (inactive) may still see them"),
        (
            "problem",
            "the database prod of db grows old",
            "its oldest rows are 1200000000 transactions and 5 multixacts old, and at two thousand million of either the server stops",
        ),
    ]
