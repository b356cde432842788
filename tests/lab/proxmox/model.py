"""The cluster: nodes, storages, guests, and what pvestatd has told about them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
import random
import typing as t

from tests.lab.cgroups import Limits
from tests.lab.proxmox.access import Access
from tests.lab.proxmox.clock import Clock
from tests.lab.proxmox.config import Config, Volume
from tests.lab.proxmox.errors import TaskError, die
from tests.lab.proxmox.real import Real
from tests.lab.proxmox.usage import MIB, History, Stretch, Usage, Workload

GIB = 1024 * MIB
TICK = 10.0  # seconds from one round of pvestatd to the next
STALE = 300.0  # seconds for which the cluster shows what a node told last
FLOCK_PATIENCE = 10.0
SNAPSHOTTING = frozenset({"btrfs", "zfspool", "lvmthin", "rbd"})
DEFAULT_DISK = 4 * GIB


@dataclasses.dataclass
class Node:
    """``memory``, ``used`` (by the host itself), ``arc`` and ``swap`` in MiB, ``disk`` in GiB, ``booted`` a moment of simulated time."""

    name: str
    memory: int = 16384
    used: int = 1200
    arc: int = 0
    swap: int = 8192
    cpus: int = 8
    cpu: float = 0.02
    disk: int = 100
    booted: float = 0.0
    online: bool = True
    ip: str = "10.99.0.1"


@dataclasses.dataclass
class Storage:
    """``total`` and ``used`` in GiB.

    ``delay`` is how many seconds longer each snapshot operation takes, ``fail`` what an operation (snapshot, rollback, delete) dies of.
    """

    name: str
    type: str
    content: str = "images,rootdir"
    nodes: list[str] | None = None
    shared: bool = False
    active: bool = True
    total: float = 500.0
    used: float = 100.0
    contents: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    delay: float = 0.0
    fail: dict[str, str] = dataclasses.field(default_factory=dict)

    def on(self, node: str) -> bool:
        return self.nodes is None or node in self.nodes


@dataclasses.dataclass
class Kernel:
    """What the cgroups of a running guest have: MiB, CPUs; ``cpulimit`` 0 is none."""

    cores: int = 0
    cpulimit: float = 0.0
    cpuunits: int = 0
    memory: int = 0
    swap: int = 0


class Flock:
    """The lock on a guest's configuration file that each change takes, and power tasks keep for their whole life."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held = False
        self._waiting: collections.deque[asyncio.Future[bool]] = collections.deque()

    @contextlib.asynccontextmanager
    async def held(self, complaint: str) -> t.AsyncIterator[None]:
        """Hold the lock; after ten seconds of waiting raise TimeoutError with the complaint."""
        if self._held:
            await self._wait(complaint)
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._pass_on()

    async def _wait(self, complaint: str) -> None:
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        timer = self._clock.call_later(FLOCK_PATIENCE, lambda: None if turn.done() else turn.set_result(False))
        try:
            if not await turn:
                raise TimeoutError(complaint)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self._held = False
                self._pass_on()
            raise
        finally:
            timer.cancel()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._held = True  # nobody may come in between
                turn.set_result(True)
                return


@dataclasses.dataclass
class Guest:
    """A container, or a virtual machine, which is only counted. With ``real`` it is a real one, and its workload and kernel's limits are not invented."""

    vmid: int
    node: str
    flock: Flock
    kind: str = "lxc"
    config: Config = dataclasses.field(default_factory=Config)
    running: bool = False
    started: float = 0.0
    grows_from: float = 0.0
    grown: float = 0.0  # MiB by which the workload had grown at that moment
    created: float = 0.0
    workload: Workload = dataclasses.field(default_factory=Workload)
    kernel: Kernel = dataclasses.field(default_factory=Kernel)
    dead: bool = False
    frozen: bool = False
    real: Real | None = None
    oom_kills: int = 0
    ha: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    pid: int = 0
    starts: int = 0
    sampled: int = 0  # the start of which a processor sample was taken
    history: History = dataclasses.field(default_factory=History)
    series: dict[str, list[dict[str, t.Any]]] = dataclasses.field(default_factory=dict)
    # names of the snapshots that a volume has, oldest first; also those that others took
    taken: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    _settled: float = 0.0
    _overrun: float = 0.0

    @property
    def name(self) -> str:
        return self.config.current.get("hostname") or self.config.current.get("name") or f"{'CT' if self.kind == 'lxc' else 'VM'}{self.vmid}"

    @property
    def template(self) -> bool:
        return self.config.current.get("template") == "1"

    def check_lock(self, error: t.Callable[[str], Exception] = die) -> None:
        if self.config.lock:
            raise error(f"CT is locked ({self.config.lock})")


class World:
    """Everything that the server knows."""

    def __init__(self, release: str, cgroup: int, clock: Clock) -> None:
        self.release = release
        self.cgroup = cgroup
        self.clock = clock
        self.access = Access(release)
        self.nodes: dict[str, Node] = {}
        self.storages: dict[str, Storage] = {}
        self.guests: dict[int, Guest] = {}
        self.real: t.Mapping[int, Real] = {}  # the containers that guests of these numbers are
        self.templates: dict[str, Workload] = {}
        self.default_workload = Workload()
        self.cluster: str | None = None
        self.local = ""
        self.quorate = True
        self.resolver = "Name or service not known"
        self.told: dict[int, tuple[float, dict[str, t.Any]]] = {}
        self.told_nodes: dict[str, float] = {}
        self._began = clock.now()
        self._ticked = 0
        self._pids = 5000
        self.random = random.Random()

    @property
    def version(self) -> str:
        return {"8.4": "8.4.21", "9.2": "9.2.11"}.get(self.release, f"{self.release}.1")

    def now(self) -> float:
        return self.clock.now()

    def pid(self) -> int:
        self._pids += random.randint(1, 9)
        return self._pids

    # what pvestatd does

    def catch_up(self) -> None:
        """Do the last round of pvestatd that is due. Nothing changed since the one before that, since every change comes here first."""
        tick = math.floor((self.now() - self._began) / TICK)
        if tick > self._ticked:
            self._ticked = tick
            self.tick(self._began + tick * TICK)

    def until_tick(self) -> float:
        """Seconds until pvestatd's next round."""
        return TICK - (self.now() - self._began) % TICK

    def tick(self, moment: float) -> None:
        """Set what the kernel learns from pvestatd only, and tell the cluster about the guests of the nodes that run."""
        for node in self.nodes.values():
            if node.online:
                self.told_nodes[node.name] = moment
        for guest in self.guests.values():
            if not self.nodes[guest.node].online or guest.config.lock == "create":
                continue
            if guest.real:
                self.look(guest)
                guest.real.measure()
            if guest.running and guest.kernel.cores != (cores := self.wanted_cores(guest)):
                if guest.real:
                    guest.real.set_cores(cores)
                guest.kernel.cores = cores
                self.note(guest, moment)
            self.told[guest.vmid] = (moment, self.status(guest, moment, sampler="pvestatd"))
            if guest.real:
                guest.real.remember(*self.told[guest.vmid])

    def look(self, guest: Guest) -> None:
        """Notice that a real container was started or ended by something else than this server, or by itself."""
        if guest.real is None or (guest.running == bool(pid := guest.real.pid) and guest.pid == pid):
            return
        if guest.running:
            self._ended(guest)
        if pid:
            self.start(guest)

    def wanted_cores(self, guest: Guest) -> int:
        """The CPUs that the kernel will grant: no more than the node has."""
        host = self.nodes[guest.node].cpus
        return min(int(guest.config.current.get("cores") or host), host)

    # guests

    def container(self, node: str, vmid: int) -> Guest:
        return self.find(node, vmid, "lxc")

    def find(self, node: str, vmid: int, kind: str) -> Guest:
        guest = self.guests.get(vmid)
        if guest is None or guest.node != node or guest.kind != kind:
            folder = "lxc" if kind == "lxc" else "qemu-server"
            raise die(f"Configuration file 'nodes/{node}/{folder}/{vmid}.conf' does not exist")
        return guest

    def check_write(self, guest: Guest, error: t.Callable[[str], Exception] = die) -> None:
        """Without quorum nobody may write a configuration."""
        if not self.quorate:
            raise error(f"unable to open file '/etc/pve/nodes/{guest.node}/lxc/{guest.vmid}.conf.tmp.{self.pid()}' - Permission denied")

    @contextlib.asynccontextmanager
    async def locked(self, guest: Guest, error: t.Callable[[str], Exception] = die) -> t.AsyncIterator[None]:
        """Hold a guest's flock; ``error`` makes the exception of a wait that was too long."""
        folder = "lxc/pve-config" if guest.kind == "lxc" else "qemu-server/lock"
        try:
            async with guest.flock.held(f"can't lock file '/run/lock/{folder}-{guest.vmid}.lock' - got timeout"):
                yield
        except TimeoutError as timeout:
            raise error(str(timeout)) from None

    def note(self, guest: Guest, moment: float | None = None) -> None:
        """Remember that something about a guest changed; to be called after each change."""
        now = self.now() if moment is None else moment
        self.settle(guest, now)
        kernel = guest.kernel
        cpus = min(kernel.cpulimit or math.inf, kernel.cores or math.inf, self.nodes[guest.node].cpus)
        guest.history.add(
            Stretch(
                since=now,
                running=guest.running,
                grows_from=guest.grows_from,
                grown=guest.grown,
                workload=guest.workload,
                dead=guest.dead,
                memory=kernel.memory or guest.config.memory(),
                swap=kernel.swap,
                cpus=cpus,
                shown_cpus=self.shown_cpus(guest),
                shown_memory=guest.config.memory() * MIB,
                shown_disk=self.disk_size(guest),
            )
        )

    def settle(self, guest: Guest, now: float) -> None:
        """Count the out-of-memory kills since the last time."""
        last = guest.history.last()
        if last is not None:
            guest._overrun += last.kills(guest._settled, now)
            whole = int(guest._overrun)
            guest.oom_kills += whole
            guest._overrun -= whole
        guest._settled = now

    def usage(self, guest: Guest, moment: float) -> Usage:
        if guest.real:
            return guest.real.usage() if guest.running else Usage()
        last = guest.history.last()
        return last.usage(moment) if last else Usage()

    def shown_cpus(self, guest: Guest) -> float:
        values = guest.config.current
        if guest.kind == "qemu":
            return int(values.get("cores", "1")) * int(values.get("sockets", "1"))
        if values.get("cores"):
            return int(values["cores"])
        limit = float(values.get("cpulimit", "0"))
        return int(limit) if limit == int(limit) and limit else limit or self.nodes[guest.node].cpus

    def disk_size(self, guest: Guest) -> int:
        root = self.root(guest)
        return (root.size if root else 0) or DEFAULT_DISK

    @staticmethod
    def root(guest: Guest) -> Volume | None:
        return guest.config.volumes().get("rootfs")

    def start(self, guest: Guest) -> None:
        """Set a guest going with what its configuration says; a real one that does not start raises LabError."""
        self.catch_up()
        pid = guest.real.start(self.limits(self.configured_kernel(guest))) if guest.real else self.pid()
        guest.running, guest.dead, guest.frozen = True, False, False
        guest.started = guest.grows_from = self.now()
        guest.grown = 0.0
        guest.starts += 1
        guest.pid = pid
        guest.kernel = self.configured_kernel(guest)
        self.note(guest)

    def configured_kernel(self, guest: Guest) -> Kernel:
        """What the cgroups of a guest are set to when it starts."""
        values = guest.config.current
        units = int(values.get("cpuunits", "1024" if self.cgroup == 1 else "100"))
        return Kernel(self.wanted_cores(guest), float(values.get("cpulimit", "0")), units, guest.config.memory(), guest.config.swap())

    @staticmethod
    def limits(kernel: Kernel) -> Limits:
        """What the control groups of a real container are set to."""
        return Limits(kernel.memory, kernel.swap, kernel.cores, kernel.cpulimit)

    def kill(self, guest: Guest) -> None:
        self.catch_up()
        if guest.real:
            guest.real.kill()
        self._ended(guest)

    def _ended(self, guest: Guest) -> None:
        guest.running, guest.frozen, guest.pid = False, False, 0
        guest.kernel = Kernel()
        self.note(guest)

    def shrink_memory(self, guest: Guest, memory: int, swap: int) -> None:
        """Set the limits of a running guest, as cgroup v2 does: what does not fit is killed, and nobody is told."""
        self.catch_up()
        self.settle(guest, self.now())
        used = self.usage(guest, self.now())
        lowered = memory < guest.kernel.memory or swap < guest.kernel.swap
        guest.kernel.memory, guest.kernel.swap = memory, swap
        if lowered and used.memory + used.swap > (memory + swap) * MIB:
            guest.oom_kills += 1
            needed = guest.workload.main if guest.workload.main is not None else guest.workload.memory
            guest.dead = guest.dead or needed > memory + swap

    def status(self, guest: Guest, moment: float, sampler: str) -> dict[str, t.Any]:
        """A guest as lists and ``status/current`` show it. The first sample of the processor after a start says nothing yet."""
        used = self.usage(guest, moment)
        cpus = self.shown_cpus(guest)
        load = guest.workload
        seconds = max(0.0, moment - guest.started) if guest.running else 0.0
        root = self.root(guest)
        shown: dict[str, t.Any] = {
            "vmid": guest.vmid,
            "name": guest.name,
            "type": guest.kind,
            "status": "running" if guest.running else "stopped",
            "cpus": cpus,
            "cpu": self._sample(guest, used.cpu / cpus) if guest.running else 0,
            "mem": used.memory,
            "maxmem": guest.config.memory() * MIB,
            "swap": used.swap,
            "maxswap": guest.config.swap() * MIB,
            "disk": int(load.disk * MIB) if guest.running else 0,
            "maxdisk": self.disk_size(guest) if (root and root.size) or not guest.running else 2 * GIB,
            "uptime": int(seconds),
            "netin": int(load.netin * seconds),
            "netout": int(load.netout * seconds),
            "diskread": int(load.diskread * seconds),
            "diskwrite": int(load.diskwrite * seconds),
        }
        if guest.real:
            shown |= {name: value for name, value in guest.real.moved().items() if guest.running or name == "maxdisk"}
        values = guest.config.current
        shown |= {key: values[key] for key in ("lock", "tags") if key in values}
        if guest.template:
            shown["template"] = 1
        if guest.running:
            shown["pid"] = guest.pid
            if self.release >= "9":
                shown |= self._pressure(used)
        return shown

    def _sample(self, guest: Guest, share: float) -> float:
        if guest.sampled == guest.starts:
            return round(share, 12)
        again = guest.sampled > 0
        guest.sampled = guest.starts
        return -0.00109352370633972 if again else 0  # the counter of the run before was higher

    def _pressure(self, used: Usage) -> dict[str, float | None]:
        if self.cgroup == 1:
            return {f"pressure{what}{kind}": None for what in ("cpu", "io", "memory") for kind in ("some", "full")}
        return {
            "pressurecpusome": used.cpu_pressure,
            "pressurecpufull": 0,
            "pressureiosome": 0,
            "pressureiofull": 0,
            "pressurememorysome": used.memory_pressure,
            "pressurememoryfull": round(used.memory_pressure / 2, 2),
        }

    # storages

    def volume_storage(self, volume: Volume) -> Storage | None:
        return self.storages.get(volume.storage) if volume.storage else None

    def can_snapshot(self, values: dict[str, Volume]) -> bool:
        """Whether every volume's storage can: one bind mount is enough that none can be taken."""
        return all((storage := self.volume_storage(volume)) is not None and storage.type in SNAPSHOTTING for volume in values.values())

    def node_memory(self, node: Node) -> int:
        """Bytes that are in use on a node."""
        now = self.now()
        guests = sum(self.usage(guest, now).memory for guest in self.guests.values() if guest.node == node.name and guest.running)
        return min(node.memory * MIB, (node.used + node.arc) * MIB + guests)


def task_error(text: str) -> TaskError:
    return TaskError(text)
