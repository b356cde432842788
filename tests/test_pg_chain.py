"""The remedies for PostgreSQL, through the whole chain."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.lab.playbooks import Controller
from tests.lab.postgres import Postgres, bloat


@pytest.fixture
def controller(pg: Postgres, tmp_path: Path) -> Controller:
    """A controller whose role has the documented rights: those of the tables' owner, to see all, and to signal."""
    pg.role("healer", grants=["pg_monitor", "pg_signal_backend", "app"])
    return Controller(tmp_path, postgresql=pg.options())


def dead(pg: Postgres, table: str = "public.events") -> int:
    ((count,),) = pg.sql("SELECT pg_stat_get_dead_tuples(%s::regclass)", table, database="prod")
    return int(count)


def test_a_bloated_table_is_vacuumed_and_measured_again(pg: Postgres, controller: Controller) -> None:
    bloat(pg)
    pg.mark()
    run = controller.play("homelab.healer.heal_pg_bloat", "--check", "--diff")
    assert run.record["outcome"] == "planned", run.output
    assert not [line for line in pg.logged().splitlines() if "VACUUM (" in line]
    assert "-dead_tuples: 26667" in run.output, run.output
    planned = run.record["plan_id"]

    run = controller.play("homelab.healer.heal_pg_bloat", database="prod", table="events")
    assert (run.returncode, run.record["outcome"], run.record["plan_id"]) == (0, "healed", planned), run.output
    assert run.record["results"][0]["results"][0]["removed"] == 26667
    assert (dead(pg), run.record["undo"]) == (0, [])
    assert run.record["plan"][0]["reversibility"] == "none"
    assert "40.0 % of its rows are dead" in run.output

    run = controller.play("homelab.healer.heal_pg_bloat", database="prod", table="events")
    assert (run.returncode, run.record["outcome"]) == (0, "healthy"), run.output
