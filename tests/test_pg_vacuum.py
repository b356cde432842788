"""``pg_vacuum`` against real servers."""

from __future__ import annotations

import contextlib
import typing as t

import pytest

from ansible_collections.homelab.healer.plugins.modules import pg_vacuum
from tests.lab.modules import Caller
from tests.lab.postgres import Postgres, bloat

TABLE = "public.events"


@pytest.fixture
def vacuum(pg: Postgres) -> Caller:
    """The module as the owner's member with the documented rights."""
    pg.role("healer", grants=["pg_monitor", "app"])
    return Caller(pg_vacuum, {**pg.options(), "login_db": "prod"})


def of(pg: Postgres, what: str, table: str = TABLE) -> t.Any:
    """One figure of a table by the server's own words."""
    ((value,),) = pg.sql(f"SELECT {what} FROM pg_class c WHERE c.oid = %s::regclass", table, database="prod")
    return value


def test_it_vacuums_what_needs_it_and_tells_what_that_did(pg: Postgres, vacuum: Caller) -> None:
    dead = bloat(pg)
    answer = vacuum(tables=[TABLE], analyze=True)
    (result,) = answer["results"]
    assert answer["changed"]
    assert result["dead_tuples"] == result["removed"] == dead
    assert (result["left"], result["verified"]) == (0, {"vacuum_count": "statistics"})
    assert answer["steps"] == [f'VACUUM (ANALYZE) {"ONLY " if pg.version >= 180000 else ""}"public"."events"']
    assert (answer["undo"], answer["reversibility"]) == ([], "none")
    assert of(pg, "pg_stat_get_dead_tuples(c.oid)") == 0
    assert not vacuum(tables=[TABLE], analyze=True)["changed"]
