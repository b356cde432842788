"""The crash matrix: trouble at every step of every remedy, and whether ``homelab.healer.recover`` brings each to an end.

``make matrix`` runs all of it and prints a table; its last line is ``N of N closed``.
"""

from __future__ import annotations

import abc
import argparse
import contextlib
import os
import queue
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import typing as t
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import yaml

from ansible_collections.homelab.healer.plugins.module_utils import _audit, _gate, _ledger
from ansible_collections.homelab.healer.plugins.module_utils._policyfile import policy_of
from tests.lab.containers import Containers, containers
from tests.lab.engine import BURN, Engine, LabError, docker_engine
from tests.lab.playbooks import COLLECTION, Controller
from tests.lab.postgres import Pool, Postgres, bloat, blockers, postgres, prepared
from tests.lab.proxmox.client import Proxmox, proxmox
from tests.lab.proxmox.fixtures import node_of_containers
from tests.lab.stepped import Breakpoint, Stepped, kill_leftovers, until_nothing_is_left
from tests.lab.warm import warm_python
from tests.lab.way import Way
from tests.lab.wire import SessionWire, Wire, said

State = dict[str, t.Any]
VMID = 200
PHRASE = "the moon stands in the way"
ONE_LOOK: State = {"remediate_looks": 1, "remediate_needed": 1, "remediate_pause": 0}
SOON: State = {
    "homelab.healer.lxc_snapshot": {"timeout": 4},
    "homelab.healer.lxc_resources": {"wait_lock": 1},
    "homelab.healer.pg_vacuum": {"lock_timeout": "1s"},
    "homelab.healer.lxc_service": {"exec_timeout": 4},
    "homelab.healer.lxc_service_info": {"exec_timeout": 4},
}
"""What modules wait for in the matrix; a person's playbook is more patient."""


@dataclass(frozen=True)
class Step:
    """A task of the chain that uses the target or the ledger. ``stops`` lead to it; the last of them is it."""

    name: str
    stops: tuple[str, ...]
    ledger: bool = False
    writes: bool = False
    waits: bool = False
    """Whether it may have to wait for a task of the node, or for a lock."""
    undoing: bool = False
    """Whether it is reached only where the verification fails."""


CHANGE, BACK = "^do_step.yml: Change", "^undo_step.yml: Put"
NOTE = "^note.yml: Write down that .* is "


def steps(remedy: Remedy) -> list[Step]:
    """The steps of a remedy, in their order."""
    snapshot, waits = remedy.snapshot, remedy.waits
    if remedy.ladder:
        return [Step("the next rung", (CHANGE, CHANGE), writes=True, waits=waits)]
    found = [
        Step("diagnose", ("^diagnose.yml: ",)),
        Step("gate 1", ("^admit.yml: Ask whether",), ledger=True),
        Step("plan", ("^plan_step.yml: Plan ",)),
        Step("look before", ("^ask.yml: Ask ",)),
        Step("gate 2", ("^decide.yml: Ask whether exactly",), ledger=True),
        *([Step("make the snapshot", (CHANGE,), writes=True, waits=True)] if snapshot else []),
        Step("change", (CHANGE, CHANGE) if snapshot else (CHANGE,), writes=True, waits=waits),
        Step("note: verified", (f"{NOTE}verified",), ledger=True),
        Step("verify", ("^verify.yml: Look$", "^ask.yml: Ask ")),
        *([Step("remove the snapshot", (BACK,), writes=True, waits=True)] if snapshot else []),
        Step("record", ("^record.yml: Write it into the ledger",), ledger=True),
    ]
    if remedy.undo:
        found += [
            Step("note: put back", (f"{NOTE}put back",), ledger=True, undoing=True),
            Step("put back", (BACK,), writes=True, undoing=True),
            Step("look after", ("^undo.yml: Look what", "^ask.yml: Ask "), undoing=True),
            *([Step("remove the snapshot, after putting back", (BACK, BACK), writes=True, waits=True, undoing=True)] if snapshot else []),
            Step("record that it was put back", ("^record.yml: Write it into the ledger",), ledger=True, undoing=True),
        ]
    return found


FAULTS: dict[str, tuple[str, t.Callable[[Step], bool]]] = {
    "killed before": ("controller killed", lambda step: step.name != "diagnose"),
    "killed as it begins": ("controller killed", lambda step: step.writes),
    "killed as it writes": ("controller killed", lambda step: step.writes),
    "unreachable": ("target unreachable", lambda step: not step.ledger),
    "error": ("API error", lambda step: step.writes),
    "lost": ("lost reply", lambda step: step.writes),
    "stuck": ("stuck task", lambda step: step.waits),
    "stuck, killed": ("stuck task", lambda step: step.waits),
    "stuck, machine gone": ("stuck task", lambda step: step.waits),
    "ledger gone": ("ledger host gone", lambda step: step.ledger),
}
"""Each fault: the column of the table that it counts in, and the rule by which steps it makes sense at."""
RULES = """\
The controller is killed before each step but the first, before which there is nothing to recover, and at each step that writes also as its module is
started and as its request arrives; after a step is before the next. The target is unreachable from each step on that uses it. An API error is scripted
where the target is written: one while it is only read is to the chain what an unreachable target is. A reply is lost where there is a write. A task
hangs where a step waits for a task of the node, or for a table's lock: with the controller waiting for it, killed meanwhile, or all of its machine gone and
recovered while it still hangs. The ledger's host is gone from each step on that uses the ledger.
"""


class Site(abc.ABC):
    """Where a remedy heals: what its target is like, and the trouble that can be made there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables: State = {}
        """What a playbook is told of which target is meant."""
        self.written = threading.Event()
        self.killed = threading.Event()

    @abc.abstractmethod
    def controller(self, folder: Path) -> Controller: ...

    @abc.abstractmethod
    def begin(self, remedy: Remedy) -> None:
        """Put the target into the trouble that the remedy heals."""

    @abc.abstractmethod
    def state(self) -> State:
        """All that remedies change."""

    def spoil(self) -> None:
        """Let the change do harm, so that its verification fails; only what can be put back is asked to."""
        raise LabError(f"no change of {type(self).__name__} can be put back")

    @abc.abstractmethod
    def unreachable(self) -> None: ...

    @abc.abstractmethod
    def error(self) -> None:
        """Let the next write fail."""

    @abc.abstractmethod
    def lose(self) -> None:
        """Let the next write be carried out, and its reply be lost."""

    def stick(self) -> None:
        """Let the next task hang; only where a step waits for one."""
        raise LabError(f"nothing of {type(self).__name__} waits for a task")

    @abc.abstractmethod
    def watch(self) -> None:
        """Look out for the next write."""

    def until_it_writes(self) -> None:
        if not self.written.wait(60):
            raise LabError("nothing was written")

    @abc.abstractmethod
    def clear(self) -> None:
        """Let no trouble remain, and what hangs come to its end."""

    def left_behind(self) -> list[str]:
        """Snapshots and locks that were not there before."""
        return []

    def rest(self) -> None:
        """Let nobody wait any more for a run to be killed, and take no more of the machine until it begins again."""
        self.killed.set()

    def close(self) -> None:
        self.rest()


class Cluster(Site):
    def __init__(self, folder: Path, pve: Proxmox) -> None:
        super().__init__(folder)
        self.pve = pve
        self._before: set[str] = set()

    def controller(self, folder: Path) -> Controller:
        return Controller(folder, proxmox={**self.pve.options_for("healer@pve!healer"), "api_timeout": 5})

    def begin(self, remedy: Remedy) -> None:
        self.pve.reset()
        self.pve.set_guest(VMID, workload={"shutdown": 8, "start": 8, **remedy.setting.get("workload", {})})
        if "snapshots" in remedy.setting:
            self.pve.set_guest(VMID, snapshots=remedy.setting["snapshots"])
            self.pve.set_guest(VMID, memory=3000)
        self._before = set(self.pve.guest(VMID)["snapshots"])

    def state(self) -> State:
        guest = self.pve.guest(VMID)
        kernel = {key: value for key, value in guest["kernel"].items() if key != "cores"}
        config = {key: value for key, value in guest["config"].items() if key not in ("parent", "lock")}
        return dict(config=config, kernel=kernel, snapshots=sorted(guest["snapshots"]), lock=guest["lock"], status=guest["status"], starts=guest["starts"])

    def spoil(self) -> None:
        self.pve.set_guest(VMID, status="stopped")
        self.pve.set_guest(VMID, status="running")

    def unreachable(self) -> None:
        self.pve.fault("*", ".*", "cut", times=-1)

    def _at_the_next_write(self, kind: str, **details: t.Any) -> None:
        for method in ("POST", "PUT", "DELETE"):
            self.pve.fault(method, f"/{VMID}/", kind, **details)

    def error(self) -> None:
        self._at_the_next_write("error", status=500, reason=PHRASE)

    def lose(self) -> None:
        self._at_the_next_write("lost")

    def stick(self) -> None:
        self.pve.clear()
        self._at_the_next_write("stuck")

    def watch(self) -> None:
        self.pve.clear()
        self._at_the_next_write("late", seconds=1)

    def until_it_writes(self) -> None:
        limit = time.monotonic() + 60
        while not self.pve.writes():
            if time.monotonic() > limit:
                raise LabError("nothing was written")
            time.sleep(0.01)

    def clear(self) -> None:
        self.pve.clear_faults()
        self.pve.release()
        for _round in range(50):
            if all(task["status"] != "running" for task in self.pve.tasks()):
                return
            self.pve.advance(5)
        raise LabError("a task does not end")

    def left_behind(self) -> list[str]:
        return sorted(set(self.pve.guest(VMID)["snapshots"]) - self._before)


class Inside(Cluster):
    """A service in a real container, reached by the node's ``pct``."""

    UNIT = "postgresql@15-main.service"
    START = "test ! -e /run/broken && { test ! -e /run/slow || sleep 8; } && exec /usr/bin/pg_ctlcluster --skip-systemctl-redirect 15-main start"
    """A cluster that does not start where a file is, which a restart of the container takes away, and slowly where another is."""
    GUEST: t.ClassVar[State] = {"hostname": "postgres", "memory": 768, "swap": 0, "cores": 1, "tags": "database"}

    def __init__(self, folder: Path, lab: Containers, pve: Proxmox) -> None:
        super().__init__(folder, pve)
        self.lab = lab
        self.way = Way(folder, lab.pct)
        self._run = ""

    @classmethod
    @contextlib.contextmanager
    def made(cls, folder: Path) -> t.Iterator[Inside]:
        with containers() as lab:
            root = lab.create(VMID, image="postgres", hostname="postgres", memory=cls.GUEST["memory"]).root
            drop_in = root / f"etc/systemd/system/{cls.UNIT}.d/broken.conf"
            drop_in.parent.mkdir()
            drop_in.write_text(f"[Service]\nExecStart=\nExecStart=/bin/sh -c '{cls.START}'\n")
            lab.start(VMID)
            with proxmox(node_of_containers({VMID: cls.GUEST}), containers=lab.folder, cgroup=lab.version, speed=20) as pve:
                yield cls(folder, lab, pve)

    def controller(self, folder: Path) -> Controller:
        made = super().controller(folder)
        made.add("nodes", pve1=self.way.host(made.python))
        return made

    def begin(self, remedy: Remedy) -> None:
        self.clear()
        self.pve.reset()
        if not self.lab[VMID].running:
            self.lab.start(VMID)
        self.lab[VMID].wait()
        self._systemctl("kill", "--signal=KILL", self.UNIT)
        limit = time.monotonic() + 20
        while self._systemctl("is-active", self.UNIT) in ("active", "activating", "deactivating"):
            if time.monotonic() > limit:
                raise LabError(f"{self.UNIT} does not end")
            time.sleep(0.1)
        self._systemctl("reset-failed", self.UNIT)
        self.lab.exec(VMID, ["rm", "-f", "/run/broken"])
        self._systemctl("start", self.UNIT)
        self._systemctl("kill", "--signal=KILL", self.UNIT)
        if remedy.ladder:
            self.lab.exec(VMID, ["touch", "/run/broken"])
        self._run = self._invocation()

    def _systemctl(self, *words: str) -> str:
        return self.lab.exec(VMID, ["systemctl", *words], check=False).stdout.strip()

    def _invocation(self) -> str:
        return self._systemctl("show", "--value", "--property=InvocationID", "--", self.UNIT)

    def state(self) -> State:
        guest = self.pve.guest(VMID)
        asked = self.lab.exec(VMID, ["runuser", "-u", "postgres", "--", "psql", "-XAtqwc", "SELECT 1"], check=False).stdout
        told = {name: guest[name] for name in ("lock", "status", "starts")}
        return {"answers": asked == "1\n", "renewed": self._invocation() != self._run, **told}

    def unreachable(self) -> None:
        super().unreachable()
        self.way.cut()

    def error(self) -> None:
        super().error()
        self.way.trouble("error")

    def lose(self) -> None:
        super().lose()
        self.way.trouble("lost")

    def stick(self) -> None:
        super().stick()
        self.way.trouble(f"{self.lab.folder}/lxc/{self.lab[VMID].name}")

    def watch(self) -> None:
        super().watch()
        self.way.trouble("late")

    def until_it_writes(self) -> None:
        limit = time.monotonic() + 60
        while not self.way.written and not self.pve.writes():
            if time.monotonic() > limit:
                raise LabError("nothing was written")
            time.sleep(0.01)

    def clear(self) -> None:
        self.way.mend()
        self.lab.thaw(VMID)
        super().clear()
        limit = time.monotonic() + 60
        while self.way.working():
            if time.monotonic() > limit:
                raise LabError("a module on the node does not end")
            time.sleep(0.05)

    def left_behind(self) -> list[str]:
        return sorted(self.pve.guest(VMID)["snapshots"])


class Docker(Site):
    NAME = "busy"

    def __init__(self, folder: Path, engine: Engine) -> None:
        super().__init__(folder)
        self.engine = engine
        self.name = f"{self.NAME}-{folder.parent.name}"
        self.variables = {"container": self.name}
        self.line = self._lay()

    def _lay(self) -> Wire:
        return Wire(self.folder / "wire.sock", Path(self.engine.docker_host.removeprefix("unix://")))

    def controller(self, folder: Path) -> Controller:
        return Controller(folder, docker_host=self.line.docker_host)

    def begin(self, remedy: Remedy) -> None:
        self.close_container()
        self.engine.run(self.name, BURN, CpuPeriod=100_000, CpuQuota=40_000, CpuShares=10_000, Memory=200 << 20, MemorySwap=200 << 20)

    def close_container(self) -> None:
        for container in self.engine.api.containers(all=True, filters={"name": f"^/{self.name}$"}):
            self.engine.api.remove_container(container["Id"], force=True)

    def state(self) -> State:
        config = self.engine.host_config(self.name)
        return {name: config[name] for name in ("CpuPeriod", "CpuQuota", "NanoCpus", "Memory", "MemorySwap", "MemoryReservation")}

    def spoil(self) -> None:
        self.engine.api.restart(self.name, timeout=0)

    def unreachable(self) -> None:
        self.line.close()

    def error(self) -> None:
        def once(number: int) -> None:
            self.line.answer_writes = said(500, PHRASE) if number == first else b""

        first = self.line.writes + 1
        self.line.before_write = once

    def lose(self) -> None:
        first = self.line.writes + 1
        self.line.before_write = lambda number: "cut" if number == first else None

    def watch(self) -> None:
        def hold(_number: int) -> None:
            self.written.set()
            self.killed.wait(30)

        self.written.clear()
        self.killed.clear()
        self.line.before_write = hold

    def clear(self) -> None:
        self.line.close()
        self.line = self._lay()

    def rest(self) -> None:
        super().rest()
        self.close_container()

    def close(self) -> None:
        self.rest()
        self.line.close()


class Server(Site):
    WRITES = r"pg_terminate_backend\(|VACUUM"

    def __init__(self, folder: Path, pg: Postgres) -> None:
        super().__init__(folder)
        self.pg = pg
        self.line = SessionWire(folder, pg.folder, pg.port, self.WRITES)
        self._scene = contextlib.ExitStack()
        self._trouble = contextlib.ExitStack()
        self._see: t.Callable[[], State] = dict

    def controller(self, folder: Path) -> Controller:
        return Controller(folder, postgresql={**self.pg.socket_options(), "login_unix_socket": str(self.folder)})

    def begin(self, remedy: Remedy) -> None:
        self.clear()
        self._scene.close()
        prepared(self.pg)
        self.pg.role("healer", grants=["pg_monitor", "pg_signal_backend", "pg_maintain" if self.pg.version >= 170000 else "app"])
        if remedy.setting["scene"] == "bloat":
            bloat(self.pg, rows=5000)
            self._see = lambda: {"dead": self.pg.sql("SELECT pg_stat_get_dead_tuples('events'::regclass)", database="prod")[0][0]}
        elif remedy.setting["scene"] == "pool":
            pool = self._scene.enter_context(Pool(self.pg, 15))
            self._see = lambda: {"alive": len(pool.alive())}
        else:
            blocked = self._scene.enter_context(blockers(self.pg))
            self._see = lambda: {"blocked by": self.pg.sql("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", blocked.root)[0][0]}
            time.sleep(0.6)

    def state(self) -> State:
        return self._see()

    def unreachable(self) -> None:
        self.line.cut()

    def error(self) -> None:
        self.pg.sql("REVOKE pg_signal_backend, pg_maintain FROM healer")

    def lose(self) -> None:
        self.line.before_statement = lambda: "cut"

    def stick(self) -> None:
        self.written.clear()
        self.line.before_statement = self.written.set
        client = self._trouble.enter_context(contextlib.closing(self.pg.connect("prod")))
        client.autocommit = False
        client.cursor().execute("LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE")

    def watch(self) -> None:
        def hold() -> None:
            self.written.set()
            self.killed.wait(30)

        self.written.clear()
        self.killed.clear()
        self.line.before_statement = hold

    def clear(self) -> None:
        self.line.closed = False
        self.line.before_statement = lambda: None
        self._trouble.close()
        with contextlib.suppress(psycopg2.Error):  # before the role is there
            self.pg.sql("GRANT pg_signal_backend, pg_maintain TO healer")

    def close(self) -> None:
        self._trouble.close()
        self._scene.close()
        self.line.close()


@dataclass(frozen=True)
class Remedy:
    """A playbook of ours, what it is called with, and how its target looks when it has healed: the state's fields that differ."""

    site: str
    playbook: str
    variables: State
    healed: State
    setting: State = field(default_factory=dict)
    undo: bool = False
    snapshot: bool = False
    waits: bool = False
    ladder: bool = False
    """Whether only its next rung is tried, as the first is tried elsewhere."""

    @property
    def name(self) -> str:
        return f"{self.playbook}, next rung" if self.ladder else self.playbook


MEMORY: State = {"lxc_memory_sample": 0.2, "lxc_memory_pause": 0, "lxc_memory_looks": 1, "lxc_memory_needed": 1, "lxc_memory_level": 60}
CPU: State = {"lxc_cpu_settle": 0.4, "lxc_cpu_pause": 0, "lxc_cpu_looks": 1, "lxc_cpu_needed": 1}
SERVICE: State = {"vmid": VMID, "timeout": 10, "pg_service_stable_for": 1, "pg_service_pause": 1, "pg_service_needed": 1, "pg_service_looks": 3}
REMEDIES = {
    remedy.name: remedy
    for remedy in (
        Remedy("docker", "heal_docker_runaway", {"cpus": "0.02", "docker_runaway_sample": 0.5, **ONE_LOOK}, {"CpuQuota": 2_000}, undo=True),
        Remedy("docker", "docker_limits", {"memory": "300m", "docker_limits_sample": 0.2, **ONE_LOOK}, {"Memory": 300 << 20}, undo=True),
        Remedy("proxmox", "heal_lxc_memory", {"vmid": VMID, "memory": 4096, **MEMORY}, {"kernel.memory": 4096}, undo=True, snapshot=True),
        Remedy("proxmox", "heal_lxc_cpu", {"vmid": VMID, "cpulimit": "0.5", **CPU}, {"kernel.cpulimit": 0.5}, undo=True, snapshot=True),
        Remedy("proxmox", "lxc_resources", {"vmid": VMID, "cores": 3, **ONE_LOOK}, {"config.cores": "3"}, undo=True, snapshot=True),
        Remedy("proxmox", "restart_lxc", {"vmid": VMID, "timeout": 4, **ONE_LOOK}, {"starts": 2}, waits=True),
        Remedy("proxmox", "snapshot", {"vmid": VMID, "snapshot": "manual", **ONE_LOOK}, {"snapshots": ["manual"]}, waits=True),
        Remedy(
            "proxmox",
            "rollback",
            {"vmid": VMID, "snapshot": "before", "allow_data_loss": True, **ONE_LOOK},
            {"config.memory": "2048"},
            setting={"snapshots": {"before": {"age": 90}}},
            waits=True,
        ),
        Remedy("inside", "restart_postgres", SERVICE, {"answers": True, "renewed": True}, waits=True),
        Remedy("inside", "restart_postgres", {**SERVICE, "ladder": "restart,container"}, {"answers": True, "renewed": True}, waits=True, ladder=True),
        Remedy("postgresql", "heal_pg_bloat", {"database": "prod", "table": "events", **ONE_LOOK}, {"dead": 0}, setting={"scene": "bloat"}, waits=True),
        Remedy("postgresql", "vacuum", {"database": "prod", "table": "events", **ONE_LOOK}, {"dead": 0}, setting={"scene": "bloat"}, waits=True),
        Remedy(
            "postgresql",
            "heal_pg_connections",
            {
                "pg_connections_min_idle": "0s",
                "pg_connections_threshold": 0.08,
                "pg_connections_pause": 0,
                "pg_connections_looks": 1,
                "pg_connections_needed": 1,
            },
            {"alive": 0},
            setting={"scene": "pool"},
        ),
        Remedy("postgresql", "heal_pg_blocker", {"pg_blocker_min_wait": 0.5, **ONE_LOOK}, {"blocked by": 0}, setting={"scene": "blocker"}),
        Remedy("postgresql", "clear_connections", {"database": "prod", **ONE_LOOK}, {"alive": 0}, setting={"scene": "pool"}),
    )
}


@dataclass(frozen=True)
class Cell:
    remedy: Remedy
    step: Step
    fault: str

    def __str__(self) -> str:
        return f"{self.remedy.name} / {self.step.name} / {self.fault}"


def cells() -> list[Cell]:
    """All of the matrix."""
    return [Cell(remedy, step, fault) for remedy in REMEDIES.values() for step in steps(remedy) for fault, (_column, fits) in FAULTS.items() if fits(step)]


@dataclass
class Told:
    """What became of a cell: how the remediation ended, and what is wrong with that."""

    cell: Cell
    end: str = ""
    why: str = ""
    wrong: list[str] = field(default_factory=list)
    output: str = ""
    seconds: float = 0.0


class Bench:
    """What one worker needs, made when it is needed first."""

    def __init__(self, folder: Path, engine: t.Callable[[], Engine] | None = None) -> None:
        self.folder = folder
        self._engine = engine
        self._stack = contextlib.ExitStack()
        self._sites: dict[str, Site] = {}

    def controller(self, site: Site) -> Controller:
        """A controller with an empty ledger, in a folder of its own."""
        return site.controller(Path(tempfile.mkdtemp(prefix="cell-", dir=self.folder)))

    def site(self, name: str) -> Site:
        if name not in self._sites:
            place = self.folder / name
            place.mkdir(parents=True)
            self._sites[name] = self._make(name, place)
        return self._sites[name]

    def _make(self, name: str, place: Path) -> Site:
        if name == "proxmox":
            return Cluster(place, self._stack.enter_context(proxmox()))
        if name == "inside":
            return self._stack.enter_context(Inside.made(place))
        if name == "postgresql":
            return Server(place, self._stack.enter_context(postgres("embedded")))
        assert self._engine
        return Docker(place, self._engine())

    def close(self) -> None:
        for site in self._sites.values():
            site.close()
        self._stack.close()


def patient(controller: Controller, name: str) -> str:
    """A playbook of the collection as it is, but that its modules do not wait for as long; returns its path."""
    (play,) = yaml.safe_load((COLLECTION / f"playbooks/{name}.yml").read_text())
    play["module_defaults"] = {**play["module_defaults"], **SOON}
    path = controller.folder / f"{name}.yml"
    path.write_text(yaml.safe_dump([play], sort_keys=False))
    return str(path)


def run_cell(bench: Bench, cell: Cell, twice: bool = False) -> Told:
    """Make the trouble, recover, and judge. ``twice``: recover again, which must change nothing."""
    told, began = Told(cell), time.monotonic()
    site = bench.site(cell.remedy.site)
    controller = bench.controller(site)
    folder = controller.folder
    site.begin(cell.remedy)
    before = site.state()
    stops = [Breakpoint(stop) for stop in cell.step.stops]
    if cell.step.undoing:
        stops.insert(0, Breakpoint(f"{NOTE}verified"))
    try:
        with Stepped(controller, patient(controller, cell.remedy.playbook), stops, **site.variables, **cell.remedy.variables) as run:
            for number in range(len(stops)):
                run.until_it_stops()
                if number == 0 and cell.step.undoing:
                    site.spoil()
                if number < len(stops) - 1:
                    run.go_on()
            befall(cell.fault, run, site, controller)
        told.output += run.output.read_text()
        if cell.fault not in ("killed as it begins", "stuck, machine gone"):
            settle(site, folder)
        told.output += recover(controller)
        settle(site, folder)
        if cell.fault in ("killed as it begins", "stuck, machine gone"):  # it may have left alone what still worked
            told.output += recover(controller)
        judge(told, site, controller, before)
        if twice and not told.wrong:
            head, state = head_of(controller), site.state()
            told.output += recover(controller)
            if (head_of(controller), site.state()) != (head, state):
                told.wrong.append("a second recover changed something")
    except (LabError, AssertionError, TimeoutError) as error:
        told.wrong.append(f"{type(error).__name__}: {error}")
    finally:
        site.rest()
        with contextlib.suppress(LabError):
            settle(site, folder)
    told.seconds = time.monotonic() - began
    if not told.wrong:
        shutil.rmtree(folder)
    return told


def settle(site: Site, folder: Path) -> None:
    """Clear all trouble, and wait until nothing of the run is left."""
    ledger = folder / "ledger.db"
    if ledger.is_dir():
        ledger.rmdir()
        (folder / "ledger.kept").rename(ledger) if (folder / "ledger.kept").exists() else None
    site.clear()
    until_nothing_is_left(folder)


def befall(fault: str, run: Stepped, site: Site, controller: Controller) -> None:
    """The run is at its step: let the fault happen, and wait until the run has ended."""
    if fault == "killed before":
        run.kill()
        return
    if fault == "ledger gone":
        if controller.ledger.exists():
            controller.ledger.rename(controller.folder / "ledger.kept")
        controller.ledger.mkdir()
    elif fault == "killed as it writes":
        site.watch()
    elif fault.startswith("stuck"):
        site.stick()
    elif fault != "killed as it begins":
        {"unreachable": site.unreachable, "error": site.error, "lost": site.lose}[fault]()
    run.go_on()
    if fault == "killed as it begins":
        time.sleep(0.03)
        run.kill()
    elif fault == "killed as it writes":
        site.until_it_writes()
        run.kill()
        site.killed.set()
    elif fault in ("stuck, killed", "stuck, machine gone"):
        site.until_it_writes()
        time.sleep(0.5)
        run.kill()
        if fault == "stuck, machine gone":
            kill_leftovers(controller.folder)
    else:
        run.until_it_ends()


def recover(controller: Controller, *arguments: str) -> str:
    return controller.play(patient(controller, "recover"), *arguments).output


def head_of(controller: Controller) -> str:
    """The last that was written into the ledger."""
    with _look(controller) as ledger, ledger.turn(writing=False):
        return ledger.head


@contextlib.contextmanager
def _look(controller: Controller) -> t.Iterator[_ledger.Ledger]:
    with _ledger.look({"ledger": {"path": str(controller.ledger)}}, check=True) as ledger:
        yield ledger


def judge(told: Told, site: Site, controller: Controller, before: State) -> None:
    """What is wrong after recovering: nothing where the matrix' promise is kept."""
    now, left = site.state(), site.left_behind()
    with _look(controller) as ledger:
        report = _audit.verify(ledger, None)
        with ledger.turn(writing=False):
            rows, switches = ledger.find("id <> ''"), ledger.switches()
    told.wrong += [f"the ledger is not as it was written: {finding.what}" for finding in report.findings]
    if len(rows) > 1:
        told.wrong.append(f"{len(rows)} remediations are in the ledger")
    row = rows[0] if rows else None
    told.end, told.why = (row.state, row.why) if row else ("not begun", "")
    frozen = bool(row) and f"freeze {row.target}" in switches if row else False
    if row and row.open:
        told.wrong.append(f"it is still {row.state}")
    elif row and row.state == "healed":
        told.wrong += [f"healed, but {name} is {seen}" for name, seen in _differences(told.cell.remedy, now).items()]
    elif row and row.state == "needs_human" and row.applied is not None:
        if not frozen:
            told.wrong.append("needs a human, but its target is not frozen")
        if told.cell.remedy.playbook != "snapshot":  # whose own is what was asked for
            told.wrong += [f"{name} was left behind and is not named" for name in left if not re.search(rf"{re.escape(name)}\b.*expires", row.why)]
        return
    elif _without_restarts(now, told.cell) != _without_restarts(before, told.cell):
        told.wrong.append(f"{told.end}, but it is not as before: {now} instead of {before}")
    if frozen:
        told.wrong.append(f"{told.end}, but its target is frozen")
    if now.get("lock"):
        told.wrong.append(f"{told.end}, but it is locked: {now['lock']}")
    if left and not (told.cell.remedy.playbook == "snapshot" and told.end == "healed"):
        told.wrong.append(f"{told.end}, but left behind: {', '.join(left)}")
    if row and row.fence and not told.wrong and not _may_begin_again(controller, row):
        told.wrong.append("the gate lets nobody begin again")


def _without_restarts(state: State, cell: Cell) -> State:
    """What the lab itself did to make the verification fail is not the remedy's."""
    return {key: value for key, value in state.items() if not (cell.step.undoing and key == "starts")}


def _differences(remedy: Remedy, now: State) -> State:
    found = {}
    for name, wanted in remedy.healed.items():
        value: t.Any = now
        for part in name.split("."):
            value = value[part]
        if value != wanted:
            found[name] = value
    return found


def _may_begin_again(controller: Controller, row: _ledger.Remediation) -> bool:
    with _look(controller) as ledger, ledger.turn(writing=False):
        opened = ledger.latest(row.id, "opened")
        request = dict(problem="again", run={}, lease=60.0, waited=0.0, pause_file=str(controller.folder / "pause"))
        answer = _gate.admit(
            ledger,
            policy_of(str(controller.folder / "policy.yml"), {"path": str(controller.ledger)}, {}),
            remediation="again",
            remedy=row.remedy,
            host=row.host,
            facts=opened["facts"],
            request=request,
        )
    return bool(answer["word"] == "allowed")


def table(results: t.Sequence[Told]) -> str:
    """A table in Markdown: a row for each remedy, a column for each kind of fault, each with how many of how many were closed."""
    columns = list(dict.fromkeys(column for column, _fits in FAULTS.values()))
    lines = ["| remedy | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for remedy in REMEDIES:
        found = []
        for column in columns:
            those = [told for told in results if told.cell.remedy.name == remedy and FAULTS[told.cell.fault][0] == column]
            found.append(f"{sum(not told.wrong for told in those)} of {len(those)}" if those else "")
        lines.append(f"| `{remedy}` | " + " | ".join(found) + " |")
    return "\n".join(lines)


def run_all(chosen: t.Sequence[Cell], workers: int) -> list[Told]:
    """Run these cells, some at a time, and tell of each as it ends."""
    left: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in random.Random(1).sample(chosen, len(chosen)):  # so that the first of them tell something of all
        left.put(cell)

    def stop(*_signal: object) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                left.get_nowait()

    for number in (signal.SIGINT, signal.SIGTERM):  # end after those that are under way, and clean up
        signal.signal(number, stop)
    results: list[Told] = []
    lock = threading.Lock()
    with contextlib.ExitStack() as stack:
        engines: list[Engine] = []
        Controller.python = stack.enter_context(warm_python())

        def engine() -> Engine:
            with lock:
                if not engines:
                    engines.append(stack.enter_context(docker_engine(heavy=True)))
                return engines[0]

        def work(folder: Path) -> None:
            bench = Bench(folder, engine)
            try:
                while True:
                    try:
                        cell = left.get_nowait()
                    except queue.Empty:
                        return
                    try:
                        told = run_cell(bench, cell, twice=len(results) % 10 == 0)
                    except Exception:  # a cell that cannot be run is not closed, and the others go on
                        told = Told(cell, wrong=[traceback.format_exc()])
                    with lock:
                        results.append(told)
                        wrong = "".join(f" WRONG: {wrong.splitlines()[0]}" for wrong in told.wrong)
                        print(f"{len(results)}/{len(chosen)} {cell}: {told.end} ({told.seconds:.0f} s){wrong}", flush=True)
            finally:
                bench.close()

        place = Path(tempfile.mkdtemp(prefix="hm-", dir="/var/tmp"))  # a short path, as a socket's may have no more than 107 characters
        threads = [threading.Thread(target=work, args=(place / str(number),)) for number in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if not any(told.wrong for told in results):
        shutil.rmtree(place, ignore_errors=True)
    return results


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="a regular expression that the names of the cells must match")
    options.add_argument("--list", action="store_true", help="only list the cells")
    options.add_argument("--workers", type=int, default=(os.cpu_count() or 1) + 1, help="how many cells are run at a time")
    given = options.parse_args()
    chosen = [cell for cell in cells() if re.search(given.only, str(cell))]
    if given.list:
        print(*chosen, f"{len(chosen)} cells", sep="\n")
        return 0
    results = run_all(chosen, given.workers)
    wrong = [told for told in results if told.wrong]
    print(f"\n{RULES}\n{table(results)}\n")
    for told in wrong:
        print(f"NOT CLOSED: {told.cell}: {'; '.join(told.wrong)}\n  {told.end}: {told.why}\n")
    ends = Counter(told.end for told in results)
    print("Ends: " + ", ".join(f"{end} {number}" for end, number in ends.most_common()))
    print(f"{len(results) - len(wrong)} of {len(chosen)} closed")
    return 1 if len(results) - len(wrong) < len(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
