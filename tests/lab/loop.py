"""The closed loop: ``make loop`` breaks something, and shows the alert, the decision, the repair, the proof, and the time that each took.

Nobody touches anything in between. Exporters, Prometheus, Alertmanager, ansible-rulebook, PostgreSQL, the Docker Engine and the containers are real, and
what ships is what runs: the rules, the routes, the rulebook, the playbooks, the gate, the remedies. Minutes are seconds, Proxmox VE is simulated, and
cAdvisor, which Debian does not have, is stood in for. The proof is a probe of the lab's own, which the healer does not use.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import typing as t
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import psycopg2

from ansible_collections.homelab.healer.plugins.module_utils._ledger import Remediation
from tests.lab.containers import Containers
from tests.lab.demo_real import node
from tests.lab.engine import BURN, Engine, LabError, docker_engine
from tests.lab.listener import Listener, listening
from tests.lab.monitoring import alertmanager, missing
from tests.lab.playbooks import ROOT, Controller
from tests.lab.postgres import Pool, Postgres, bloat, blockers, postgres, prepared
from tests.lab.proxmox.client import Proxmox
from tests.lab.realnode import DATABASE, TOKEN, WEB
from tests.lab.rulebook import TOKEN as WEBHOOK_TOKEN
from tests.lab.rulebook import Rulebook
from tests.lab.rulebook import missing as missing_java
from tests.lab.squeeze import Squeezed
from tests.lab.telling import paint
from tests.lab.watch import container_exporter, firing, job, postgres_exporter, prometheus, pve_exporter
from tests.lab.way import Way

REPORT = ROOT / ".cache/loop.html"
"""Where the report of it all is left."""
PATIENCE = 120
"""Seconds after which a part of an incident is given up."""
UNIT = "postgresql@15-main.service"
BURNING = " & ".join(f"({BURN})" for _cpu in range(os.cpu_count() or 1)) + " & wait"
"""As much as there is, at the lowest priority, as others have to work meanwhile."""
LIGHT: dict[str, t.Any] = {"CpuShares": 64}
STORM = (301, 302, 303, 304, 305)
INVENTORY: dict[str, t.Any] = {
    "lxc_memory_sample": 1,
    "lxc_memory_pause": 0,
    "lxc_memory_looks": 3,
    "lxc_memory_needed": 2,
    "lxc_memory_level": 60,
    "lxc_memory_size": "+100%",
    "pg_connections_min_idle": "4s",
    "pg_connections_pause": 1,
    "pg_blocker_min_wait": 3,
    "pg_service_stable_for": 1,
    "pg_service_pause": 1,
    "pg_service_needed": 2,
}
"""Minutes are seconds. The size is given, as a container that is a minute old has no history that one could be recommended from."""


@dataclass
class House:
    """A homelab, with what watches it and what heals it."""

    lab: Containers
    pve: Proxmox
    engine: Engine
    server: Postgres
    database: Squeezed
    controller: Controller
    rulebook: Rulebook
    people: Listener
    prometheus: str

    def well(self) -> dict[str, bool]:
        """What is well and has to stay so, asked by clients of the lab's own: what, and whether it is."""
        return {name: _holds(probe) for name, probe in self._probes().items()}

    def _probes(self) -> dict[str, t.Callable[[], bool]]:
        web, quiet = self.lab[WEB], "quiet"
        return {
            "the server db answers a client of its application": lambda: self._rows() == 1000,
            "no commit of the database in container 200 is lost": lambda: self.database.lost() == [],
            "the database in container 200 answers": lambda: self.database.ask("SELECT 1") == [(1,)],
            "container 201 has its file": lambda: web.exec(["cat", "/srv/kept"]).stdout == "kept\n",
            "the limits of container 201 are as they were": lambda: web.groups.limits().memory == 256,
            "Docker's container quiet runs, without a limit": lambda: (
                self.engine.api.inspect_container(quiet)["State"]["Running"] and not self.engine.host_config(quiet)["CpuQuota"]
            ),
        }

    def _rows(self) -> int:
        with contextlib.closing(self.server.connect("prod", "app")) as client, client.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM kept")
            ((count,),) = cursor.fetchall()
            return int(count)

    def calm(self) -> None:
        """Wait until nothing is told, and nothing is under way."""
        wait(lambda: not firing(self.prometheus) and not any(row.open for row in self.rulebook.remediations()), "the alerts end")

    def moments(self, remediation: str) -> dict[str, datetime]:
        """When what happened in a remediation, by its record."""
        return {name: datetime.fromisoformat(when) for name, when in self.rulebook.times(remediation).items()}


def _holds(probe: t.Callable[[], bool]) -> bool:
    try:
        return probe()
    except (psycopg2.Error, LabError, OSError):
        return False


def wait(check: t.Callable[[], t.Any], what: str, seconds: float = PATIENCE) -> t.Any:
    until = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > until:
            raise LabError(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.1)
    return found


Proof = t.Callable[[], str]
"""Tells what proves that it is well again; nothing as long as it is not."""
Fault = t.Callable[[House], t.ContextManager[Proof]]


@dataclass(frozen=True)
class Incident:
    """Something that breaks, the remedy that is to answer it, and how that is to end."""

    what: str
    remedy: str
    outcome: str
    fault: Fault


@dataclass
class Told:
    """What came of an incident. Moments are seconds since 1970."""

    incident: Incident
    outcome: str
    why: str
    rule: str
    proof: str
    took: dict[str, float]
    before: dict[str, bool]
    after: dict[str, bool] = field(default_factory=dict)

    @property
    def harm(self) -> list[str]:
        """What was well before, and is not after."""
        return [name for name, good in self.before.items() if good and not self.after.get(name)]

    @property
    def good(self) -> bool:
        return self.outcome == self.incident.outcome and bool(self.proof) and not self.harm and all(self.before.values())


# The incidents


@contextlib.contextmanager
def bloated(house: House) -> t.Iterator[Proof]:
    bloat(house.server)

    def proof() -> str:
        ((dead, live),) = house.server.sql("SELECT dead_tuple_count, tuple_count FROM pgstattuple('events')", database="prod")
        return f"pgstattuple counts {dead} dead rows beside {live}" if dead < live / 100 else ""

    yield proof
    house.server.sql("DROP TABLE events", database="prod")


@contextlib.contextmanager
def forgotten_transactions(house: House) -> t.Iterator[Proof]:
    ((most,),) = house.server.sql("SELECT setting::int FROM pg_settings WHERE name = 'max_connections'")
    with Pool(house.server, int(0.85 * most) - 4, "idle in transaction") as pool:

        def proof() -> str:
            left = len(pool.alive())
            with contextlib.closing(house.server.connect("prod", "app")):
                return f"{left} of {pool.size} sessions are left, and another client gets in" if left == 0 else ""

        yield proof


@contextlib.contextmanager
def locked(house: House) -> t.Iterator[Proof]:
    with blockers(house.server) as blocked:

        def proof() -> str:
            waiting = house.server.sql("SELECT count(*) FROM pg_locks WHERE NOT granted")
            ((changed,),) = house.server.sql("SELECT count(*) FROM healer_lab_queue WHERE changed > 0", database="prod")
            done = waiting == [(0,)] and changed >= len(blocked.waiting)
            return f"nobody waits for a lock, and {changed} rows are changed by those who waited" if done else ""

        yield proof


@contextlib.contextmanager
def runaway(house: House) -> t.Iterator[Proof]:
    house.engine.run("runaway", BURNING, **LIGHT)
    yield lambda: _uses(house.engine, "runaway")
    house.engine.api.remove_container("runaway", force=True)


def _uses(engine: Engine, name: str) -> str:
    """By the kernel's own figures, over two seconds."""

    def used() -> tuple[float, float]:
        stats = engine.api.stats(name, stream=False, one_shot=True)
        return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]), time.monotonic()

    before, began = used()
    time.sleep(2)
    after, ended = used()
    cpus, limit = (after - before) / 1e9 / (ended - began), (os.cpu_count() or 1) / 2
    running = engine.api.inspect_container(name)["State"]["Running"]
    return f"the kernel counts {cpus:.2f} CPUs, and it runs" if running and cpus <= 1.1 * limit and engine.host_config(name)["CpuQuota"] else ""


@contextlib.contextmanager
def not_to_be_limited(house: House) -> t.Iterator[Proof]:
    house.engine.run("touchy", BURNING, healthcheck=house.engine.dislikes_limits(), **LIGHT)

    def proof() -> str:
        health = house.engine.api.inspect_container("touchy")["State"]["Health"]["Status"]
        limits = house.engine.host_config("touchy")
        return "its own health check is content, and it has no limit, as before" if health == "healthy" and limits["CpuQuota"] <= 0 else ""

    yield proof
    house.engine.api.remove_container("touchy", force=True)


@contextlib.contextmanager
def squeezed(house: House) -> t.Iterator[Proof]:
    database = house.database
    database.hold(0.92)
    with database.at_work():
        database.wait_until_short()

        def proof() -> str:
            hits = database.hits(1)
            told = f"the kernel counts no more hits of the limit; of {database.acknowledged()} commits none is lost, no connection was dropped"
            return told if hits == 0 and not database.lost() else ""

        yield proof
    database.end()
    house.pve.reset()


@contextlib.contextmanager
def killed(house: House) -> t.Iterator[Proof]:
    before = house.database.ask("SELECT pg_postmaster_start_time()")
    house.lab.exec(DATABASE, ["systemctl", "kill", "--signal=KILL", UNIT])
    wait(lambda: not _holds(lambda: house.database.ask("SELECT 1") == [(1,)]), "it is down")

    def proof() -> str:
        if not _holds(lambda: house.database.ask("SELECT 1") == [(1,)]):
            return ""
        renewed = house.database.ask("SELECT pg_postmaster_start_time()") != before
        return (
            f"it answers, is another server than before, and has all {house.database.acknowledged()} commits" if renewed and not house.database.lost() else ""
        )

    yield proof


@contextlib.contextmanager
def storm(house: House) -> t.Iterator[Proof]:
    """A node on which everything is short of memory at once: after the first ones no remedy for each, but one cause for a human."""
    house.controller.policy(storm={"targets": 3, "window": "70s", "cool_down": "1h", "depends_on": {"node/pve1": ["the disk of pve1"]}})
    wait(lambda: all(row.opened < time.time() - 70 for row in house.rulebook.remediations()), "what was before is no part of it")
    for vmid in STORM:
        config = {"hostname": f"app{vmid}", "memory": 512, "swap": 0, "cores": 1}
        house.pve.add_guest(vmid, node="pve1", status="running", config=config, workload={"memory": 900}, uptime=5)

    def proof() -> str:
        changed = [vmid for vmid in STORM if house.pve.guest(vmid)["kernel"]["memory"] != 512]
        told = [message for message in house.people.messages if "targets are in trouble" in str(message)]
        known = len(changed) <= 2 and told and "the disk of pve1" in str(told[0])
        return f"{len(changed)} of {len(STORM)} containers were changed before the third, no other was, and people were told the cause" if known else ""

    yield proof
    for vmid in STORM:
        house.pve.remove_guest(vmid)


INCIDENTS = (
    Incident("a table is bloated", "pg_bloat", "healed", bloated),
    Incident("sessions idle in a transaction take all connections", "pg_connections", "healed", forgotten_transactions),
    Incident("a session blocks others", "pg_blocker", "healed", locked),
    Incident("a container runs away with the CPU", "docker_runaway", "healed", runaway),
    Incident("a fix that does harm, and has to be undone", "docker_runaway", "rolled_back", not_to_be_limited),
    Incident("a database is short of memory in its container", "lxc_memory", "healed", squeezed),
    Incident("PostgreSQL is killed in its container", "pg_service", "healed", killed),
    Incident("a storm with one cause", "lxc_memory", "denied", storm),
)
PARTS = ("alert", "told", "decided", "changed", "verified", "proven")
"""What each time is up to, from the one before; the first is from the fault on."""


# The house


@contextlib.contextmanager
def house(folder: Path) -> t.Iterator[House]:
    """All of it, at work. Raises ``LabError`` where something of it cannot run here."""
    if missing() or missing_java():
        raise LabError(f"it needs {', '.join([*missing(), missing_java()])}: run tests/lab/prepare as root")
    with contextlib.ExitStack() as stack:
        lab, pve = stack.enter_context(node())
        engine = stack.enter_context(docker_engine())
        server = prepared(stack.enter_context(postgres("debian", max_connections="50")))
        people = stack.enter_context(listening())
        database = Squeezed(lab[DATABASE], folder)
        _fill(lab, engine, server, database)
        controller = Controller(folder, engine.docker_host, proxmox=pve.options_for(TOKEN))
        controller.add("nodes", pve1=_way(folder, lab).host(controller.python))
        orders = {"login_unix_socket": database.socket, "login_user": "healer", "login_db": "postgres"}
        controller.add("postgresql", db={"healer_postgresql": server.options()}, orders={"healer_postgresql": orders})
        controller.inventory(**INVENTORY, healer_notify=[f"json://127.0.0.1:{people.port}/"])
        rulebook = stack.enter_context(Rulebook(controller))
        alerts = stack.enter_context(alertmanager(folder, rulebook.address, WEBHOOK_TOKEN))
        options = pve.options
        token = {"user": "root@pam", "verify_ssl": True, "token_name": options["api_token_id"], "token_value": options["api_token_secret"]}
        of_node = stack.enter_context(pve_exporter(folder, token, options["ca_path"]))
        of_server = stack.enter_context(postgres_exporter(_dsn(server.folder, server.port, "monitor", "monitor-password")))
        of_database = stack.enter_context(postgres_exporter(_dsn(Path(database.socket), 5432, "postgres", "")))
        of_containers = stack.enter_context(container_exporter(engine))
        jobs = [
            job("pve", of_node, labels={"instance": "pve"}, metrics_path="/pve", params=_params(pve)),
            job("db", of_server, labels={"instance": "db"}),
            job("orders", of_database, labels={"instance": "orders", "vmid": str(DATABASE)}),
            job("cadvisor", of_containers, labels={"instance": "lab"}),
        ]
        watching = stack.enter_context(prometheus(folder, alerts, jobs))
        yield House(lab, pve, engine, server, database, controller, rulebook, people, watching)


def _params(pve: Proxmox) -> dict[str, list[str]]:
    return {"target": [f"{pve.options['api_host']}:{pve.options['api_port']}"], "cluster": ["1"], "node": ["1"]}


def _dsn(folder: Path, port: int, user: str, password: str) -> str:
    return f"user={user} host={folder} port={port} dbname=postgres" + (f" password={password}" if password else "")


def _fill(lab: Containers, engine: Engine, server: Postgres, database: Squeezed) -> None:
    """What has to be as well afterwards as before."""
    server.role("monitor", grants=["pg_monitor"])
    server.role("healer", grants=["pg_monitor", "pg_signal_backend"])
    server.sql("CREATE EXTENSION IF NOT EXISTS pgstattuple", database="prod")
    server.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id", database="prod", user="app")
    server.sql("GRANT app TO healer")
    database.fill()
    with database.at_work(60):
        time.sleep(2)
    lab[WEB].exec(["sh", "-c", "echo kept > /srv/kept"])
    hba = lab[DATABASE].root / "etc/postgresql/15/main/pg_hba.conf"
    hba.write_text(f"local all healer trust\n{hba.read_text()}")
    database.ask("SELECT pg_reload_conf()")
    database.ask("CREATE ROLE healer LOGIN IN ROLE pg_monitor")
    engine.run("quiet")


def _way(folder: Path, lab: Containers) -> Way:
    place = folder / "way"
    place.mkdir()
    return Way(place, lab.pct)


# What is shown


def happen(house: House, incident: Incident) -> Told:
    """Let it happen, and wait until it is healed, or whatever it is to come to, and proven."""
    before, known = house.well(), {row.id for row in house.rulebook.remediations()}

    def ended() -> Remediation | None:
        rows = [row for row in house.rulebook.remediations() if row.id not in known and row.remedy == incident.remedy and not row.open]
        return next((row for row in rows if row.state == incident.outcome), None)

    with incident.fault(house) as proof:
        began = time.time()
        row = wait(ended, f"{incident.what}: {incident.remedy} comes to {incident.outcome}")
        told = wait(proof, f"{incident.what}: it is proven")
        proven = time.time()
    house.calm()
    times = {name: when.timestamp() for name, when in house.moments(row.id).items()}
    at = [began, times.get("alerted"), times.get("received"), row.decided or row.closed, row.changed, row.closed, proven]
    took = {part: max(0.0, then - first) for part, first, then in zip(PARTS, at, at[1:], strict=False) if first and then}
    return Told(incident, row.state, row.why, row.rule, told, took, before, house.well())


@dataclass
class Table:
    """What is shown, here as Markdown and in the report."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        return "\n".join(f"| {' | '.join(line)} |" for line in [self.columns, ["---"] * len(self.columns), *self.rows])


def incidents(rows: t.Sequence[Told]) -> Table:
    """What came of each, and what it took."""
    lines = []
    for row in rows:
        times = [f"{row.took[part]:.1f}" if part in row.took else "" for part in PARTS]
        lines.append([row.incident.what, row.incident.remedy, row.outcome, *times, row.proof, ", ".join(row.harm) or "none"])
    return Table("Incidents", ["incident", "remedy", "outcome", *(f"{part}, s" for part in PARTS), "proof", "harm"], lines)


def healthy(first: dict[str, bool], last: dict[str, bool]) -> Table:
    """What was well before all of it, and whether it is after."""
    words = {True: "well", False: "NOT WELL"}
    return Table(
        "Looked at by others, before and after", ["probe", "before", "after"], [[name, words[good], words[last[name]]] for name, good in first.items()]
    )


def main(chosen: t.Sequence[str] = ()) -> t.NoReturn:
    """All incidents, or those of the remedies named."""
    began = time.monotonic()
    rows: list[Told] = []
    wanted = [incident for incident in INCIDENTS if not chosen or incident.remedy in chosen]
    try:
        with tempfile.TemporaryDirectory(prefix="healer-loop-") as folder, house(Path(folder)) as home:
            print(f"All of it is at work after {time.monotonic() - began:.0f} s.")
            try:
                first = home.well()
                for incident in wanted:
                    print(f"\n{paint(incident.what, 'title')}", flush=True)
                    row = happen(home, incident)
                    rows.append(row)
                    print(f"   {row.outcome}: {row.why}\n   proof: {row.proof}", flush=True)
                tables = [incidents(rows), healthy(first, home.well())]
                written = home.controller.play("homelab.healer.report", report_path=str(REPORT), report_tables=[asdict(table) for table in tables])
                if written.returncode != 0:
                    raise LabError(f"the report is not written:\n{written.output}")
            except LabError:
                print(home.rulebook.told[-8000:])
                raise
    except LabError as error:
        print(incidents(rows))
        sys.exit(f"The loop is not closed: {error}")
    print("", *tables, "", sep="\n\n")
    print(f"All of it, each with its decision, its diff and its looks is in the report: {REPORT.relative_to(ROOT)}")
    closed = sum(row.good for row in rows)
    print(f"In {time.monotonic() - began:.0f} s; nothing of it is left running.")
    print(f"{closed} of {len(wanted)} closed, harm to {sum(bool(row.harm) for row in rows)}")
    sys.exit(closed != len(wanted))


if __name__ == "__main__":
    main(sys.argv[1:])
