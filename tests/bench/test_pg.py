"""What vacuuming sixty tables costs, beside vacuumdb and beside the peer's module in a loop, and looking at ten thousand, each in one run."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg2.extensions import connection as Connection

from tests.lab import peers
from tests.lab.playbooks import Controller, Run
from tests.lab.postgres import Postgres
from tests.test_pg_bloat import asked, populate

TABLES = [f"t{number:02}" for number in range(60)]
MANY = 10_000
OURS, PEER = "homelab.healer.pg_vacuum", "community.postgresql.postgresql_query"
OVER_VACUUMDB = 1.2
"""How much slower than vacuumdb our task may be, the playbook left out, where there is so much to do that vacuumdb takes seconds."""
OVER_PSQL = 3.0
"""How much slower than psql, which only reads what an estimate is made of, our look at many tables may be."""


@dataclass(frozen=True)
class Size:
    """How large each of the sixty tables is, and what follows from it."""

    rows: int
    rounds: int
    faster: float
    """How much faster than the peer in a loop. That one's cost is a process for each table, so it counts the less, the more there is to vacuum."""


SIZES = {"large": Size(250_000, 3, 2.5), "small": Size(5_000, 5, 8)}


@pytest.fixture(scope="module")
def server(patient: None, debian_postgres: Postgres) -> t.Iterator[Postgres]:
    debian_postgres.reset()
    debian_postgres.role("healer", grants=["pg_monitor", "pg_read_all_data"])
    yield debian_postgres
    debian_postgres.reset()


def run(client: Connection, *statements: str) -> list[tuple[t.Any, ...]]:
    with client.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


class Bed:
    """Sixty tables with 40 percent of dead rows, the same for everyone who is to vacuum them."""

    def __init__(self, server: Postgres, rows: int) -> None:
        self.server, self.rows = server, rows
        server.database("bed")
        with ThreadPoolExecutor(2) as workers:
            list(workers.map(self._make, TABLES))

    def _make(self, name: str) -> None:
        row = "g::bigint AS id, g * 7919 % 1000 AS customer, md5(g::text) AS body, now() - g * interval '1 s' AS created"
        with contextlib.closing(self.server.connect("bed")) as client:
            run(client, f"CREATE TABLE {name} AS SELECT {row} FROM generate_series(1, {self.rows}) AS g")
            run(client, f"ALTER TABLE {name} ADD PRIMARY KEY (id)", f"CREATE INDEX ON {name} (customer)", f"CREATE INDEX ON {name} (created)")
            run(client, f"DELETE FROM {name} WHERE id % 5 < 2", f"ALTER TABLE {name} OWNER TO healer")

    def anew(self) -> None:
        """A copy as the database ``prod``. The counts of dead rows, which a copy does not have, come by ANALYZE."""
        with contextlib.closing(self.server.connect()) as client:
            run(client, "DROP DATABASE IF EXISTS prod WITH (FORCE)", "CREATE DATABASE prod TEMPLATE bed", "CHECKPOINT")
        vacuumdb(self.server, "--analyze-only")
        assert self.dead() == [(len(TABLES), 0)]

    def dead(self) -> list[tuple[t.Any, ...]]:
        """How many tables have their dead rows still, and how many were vacuumed and analyzed since: all but a page that was in use in that moment."""
        left = f"n_dead_tup >= {self.rows * 2 // 5} AND vacuum_count = 0"
        done = f"n_dead_tup < {self.rows // 100} AND vacuum_count = 1 AND analyze_count = 2"
        return self.server.sql(f"SELECT count(*) FILTER (WHERE {left}), count(*) FILTER (WHERE {done}) FROM pg_stat_user_tables", database="prod")


def environment(server: Postgres) -> dict[str, str]:
    """What the server's own programs connect by: the same way that the modules take."""
    options = server.options()
    variables = {"PGPORT": str(options["login_port"]), "PGUSER": options["login_user"], "PGPASSWORD": options["login_password"]}
    where = {"PGHOST": options["login_host"], "PGSSLMODE": "verify-full", "PGSSLROOTCERT": options["ca_cert"]} if server.tls else {"PGHOST": str(server.folder)}
    return {**os.environ, **variables, **where}


def vacuumdb(server: Postgres, what: str) -> None:
    command = [str(server.bin / "vacuumdb"), what, "--jobs=2", "--quiet", "--dbname=prod", *(f"--table={name}" for name in TABLES)]
    subprocess.run(command, env=environment(server), stdin=subprocess.DEVNULL, check=True)


def theirs(server: Postgres) -> dict[str, t.Any]:
    """The connection options, as the peer's module takes them."""
    return {"ssl_mode": "verify-full", **server.options()} if server.tls else server.options()


def folder_in(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def good(run: Run) -> Run:
    assert run.returncode == 0, run.output
    return run


class Clock:
    """What each way took, in turn."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: t.Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        self.seconds.setdefault(name, []).append(time.monotonic() - began)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def __str__(self) -> str:
        lines = [f"{name:52}{self.median(name):8.2f} s   ({', '.join(f'{one:.2f}' for one in each)})" for name, each in self.seconds.items()]
        return "\n".join([*lines, f"load at the end {os.getloadavg()[0]:.1f}"])


@pytest.fixture
def ours(server: Postgres, tmp_path: Path) -> Controller:
    return Controller(folder_in(tmp_path, "ours"), postgresql=server.options())


def vacuum_all(ours: Controller) -> None:
    (answer,) = good(ours.play([{OURS: {"login_db": "prod", "tables": [f"public.{name}" for name in TABLES], "analyze": True, "jobs": 2}}])).answers(OURS)
    assert sum(result["changed"] and bool(result["verified"]) for result in answer["results"]) == len(TABLES)


@pytest.mark.parametrize("name", SIZES)
def test_sixty_tables_are_vacuumed_almost_as_fast_as_by_vacuumdb_and_faster_than_by_the_peer_in_a_loop(
    server: Postgres, ours: Controller, tmp_path: Path, name: str
) -> None:
    """All as whole runs from the first second to the last, in turn, on copies of the same database, over TLS."""
    peer, collections = Controller(folder_in(tmp_path, "peer")), peers.collections("postgresql")
    size, clock = SIZES[name], Clock()
    bed = Bed(server, size.rows)
    loop = {PEER: {**theirs(server), "login_db": "prod", "query": "VACUUM (ANALYZE) {{ item }}", "autocommit": True}, "loop": TABLES}
    ping, least, own, other = "a playbook that only pings", "vacuumdb --analyze --jobs=2", f"{OURS}, one task, jobs=2", f"{PEER}, in a loop"

    def vacuumed(name: str, work: t.Callable[[], object]) -> None:
        bed.anew()
        clock.time(name, work)
        assert bed.dead() == [(0, len(TABLES))]

    for number in range(size.rounds):
        clock.time(ping, lambda: good(ours.play([{"ansible.builtin.ping": {}}])))
        vacuumed(least, lambda: vacuumdb(server, "--analyze"))
        vacuumed(own, lambda: vacuum_all(ours))
        if number == size.rounds // 2:  # it takes so long that it is run once, in the middle
            vacuumed(other, lambda: good(peer.play([loop], collections=collections)))
    seconds = {way: clock.median(way) for way in clock.seconds}
    work = seconds[own] - seconds[ping]
    rounds = zip(clock.seconds[own], clock.seconds[ping], clock.seconds[least], strict=True)
    over = statistics.median((task - empty) / alone for task, empty, alone in rounds)  # by rounds, as others' work on the machine comes and goes
    told = (
        f"{over:.2f} times vacuumdb, {seconds[other] / seconds[own]:.1f} times faster than the loop"
        f" ({(seconds[other] - seconds[ping]) / work:.1f} times without what a playbook takes that only pings)"
    )
    print(f"\n{len(TABLES)} tables of {size.rows} rows, 40 percent dead:\n{clock}\n{told}")
    if name == "large":
        assert over <= OVER_VACUUMDB, told
    assert seconds[other] >= size.faster * seconds[own], told


RAW = [
    "SELECT c.oid, c.relname, pg_total_relation_size(c.oid), pg_relation_size(c.oid), pg_stat_get_live_tuples(c.oid), pg_stat_get_dead_tuples(c.oid)"
    " FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace",
    "SELECT schemaname, tablename, attname, null_frac, avg_width FROM pg_stats WHERE schemaname = 'public'",
]
"""What an estimate of bloat is made of, at the least."""


def psql(server: Postgres) -> None:
    command = [str(server.bin / "psql"), "--no-psqlrc", "--quiet", "--output=/dev/null", "--dbname=many", *(f"--command={question}" for question in RAW)]
    subprocess.run(command, env=environment(server), stdin=subprocess.DEVNULL, check=True)


def test_ten_thousand_tables_cost_as_many_questions_as_ten(server: Postgres) -> None:
    clock, questions = Clock(), {}
    for count in (10, MANY):
        populate(server, count)
        questions[count] = len(asked(server)[1])
    for _round in range(5):
        clock.time("psql, the sizes, counts and statistics alone", lambda: psql(server))
        clock.time("homelab.healer.pg_bloat_info", lambda: asked(server))
    least, own = (clock.median(way) for way in clock.seconds)
    told = f"{own / least:.1f} times psql; {questions[10]} questions for 10 and {questions[MANY]} for {MANY}"
    print(f"\n{MANY} tables:\n{clock}\n{told}")
    assert 0 < questions[10] == questions[MANY]
    assert own <= OVER_PSQL * least, told
