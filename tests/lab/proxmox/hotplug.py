"""What happens to a change of a container's configuration: at once, in the kernel, or at the next start."""

from __future__ import annotations

import re
import typing as t

from tests.lab.proxmox.config import VOLUME, Config, read_volume
from tests.lab.proxmox.errors import ApiError
from tests.lab.proxmox.model import Guest, World
from tests.lab.proxmox.storing import allocate, take_out

# Only the file changes, at once; ``cores`` reach the kernel with pvestatd's next round.
FAST = frozenset({"description", "onboot", "startup", "protection", "hostname", "hookscript", "cores", "tags", "lock"})
SHORTEST_QUOTA = 1000  # microseconds in a period of 100,000: the kernel takes no less
NETWORK = re.compile(r"net\d+")
MOUNT = re.compile(r"mp\d+")
DEVICE = re.compile(r"dev\d+")


FILES = {"memory": {1: "memory.limit_in_bytes", 2: "memory.max"}, "cpu": {1: "cpu.cfs_quota_us", 2: "cpu.max"}}


class Skipped(Exception):
    """An option that only a start applies."""


class Refused(Exception):
    """The kernel's own words."""


def clamp_units(world: World, units: int) -> int:
    """What is stored instead of a weight that the kernel would not take."""
    return max(1, min(units, 10000)) if world.cgroup == 2 else max(2, units)


def default_units(world: World) -> int:
    return 100 if world.cgroup == 2 else 1024


def apply_stopped(world: World, guest: Guest, config: Config, selected: t.Container[str] | None = None) -> dict[str, str]:
    """Move pending changes into the configuration; returns a text per key that could not be."""
    errors = {}
    for key in [key for key in config.deleted if selected is None or key in selected]:
        take_out(config, key)
    for key in sorted(key for key in config.pending if selected is None or key in selected):
        try:
            _move(world, guest, config, key)
        except ApiError as error:
            errors[key] = f"unable to apply pending change {key} : {error.text}\n"
    return errors


def _move(world: World, guest: Guest, config: Config, key: str) -> None:
    value = config.pending[key]
    if VOLUME.fullmatch(key):
        value = allocate(world, guest.vmid, key, value)
        if key in config.current and read_volume(key, config.current[key]).name != read_volume(key, value).name:
            take_out(config, key)
    config.current[key] = value
    del config.pending[key]


class Hotplug:
    """One change of a running container. What the kernel took stays in it, whatever becomes of the rest."""

    def __init__(self, world: World, guest: Guest, config: Config, selected: t.Container[str]) -> None:
        self._world = world
        self._guest = guest
        self._config = config
        self._selected = selected
        self._memory_done = False
        self.errors: dict[str, str] = {}

    def apply(self) -> dict[str, str]:
        config = self._config
        for key in sorted(key for key in config.pending if key in self._selected and key in FAST):
            config.current[key] = config.pending.pop(key)
        for key in [key for key in config.deleted if key in self._selected]:
            self._try(key, self._unplug, self._drop)
        for key in sorted(key for key in config.pending if key in self._selected):
            self._try(key, self._plug, self._store)
        return self.errors

    def _try(self, key: str, act: t.Callable[[str], None], then: t.Callable[[str], None]) -> None:
        try:
            act(key)
        except Skipped:
            return
        except Refused as refused:
            self.errors[key] = f"unable to hotplug {key}: {refused}\n"
            return
        then(key)

    def _drop(self, key: str) -> None:
        take_out(self._config, key)

    def _store(self, key: str) -> None:
        self._config.current[key] = self._config.pending.pop(key)

    def _unplug(self, key: str) -> None:
        kernel = self._guest.kernel
        if key == "swap":
            self._set_memory(kernel.memory, 0)
        elif key == "cpulimit":
            if guest := self._guest.real:
                self._ask_kernel("cpu", lambda: guest.set_quota(0.0))
            kernel.cpulimit = 0.0
        elif key == "cpuunits":
            kernel.cpuunits = default_units(self._world)
        elif key not in FAST and not NETWORK.fullmatch(key) and not key.startswith("unused"):
            raise Skipped

    def _plug(self, key: str) -> None:
        value = self._config.pending[key]
        kernel = self._guest.kernel
        if key == "cpulimit":
            self._set_quota(float(value))
        elif key == "cpuunits":
            kernel.cpuunits = int(value)
        elif key in {"memory", "swap"}:
            if not self._memory_done:
                pending = self._config.pending
                self._set_memory(int(pending.get("memory", kernel.memory)), int(pending.get("swap", kernel.swap)))
        elif MOUNT.fullmatch(key) and key not in self._config.current:
            self._config.pending[key] = allocate(self._world, self._guest.vmid, key, value)
        elif not NETWORK.fullmatch(key) and not (DEVICE.fullmatch(key) and self._world.release >= "9"):
            raise Skipped

    def _set_quota(self, limit: float) -> None:
        """A limit of nothing is not the absence of a limit, and the kernel wants a quota of a millisecond at least."""
        if int(100000 * limit) < SHORTEST_QUOTA:
            raise self._refused("cpu", "Invalid argument")
        if guest := self._guest.real:
            self._ask_kernel("cpu", lambda: guest.set_quota(limit))
        self._guest.kernel.cpulimit = limit

    def _set_memory(self, memory: int, swap: int) -> None:
        guest, world = self._guest, self._world
        if real := guest.real:
            self._ask_kernel("memory", lambda: real.set_memory(memory, swap))
            guest.kernel.memory, guest.kernel.swap = memory, swap
        elif world.cgroup == 1:
            used = world.usage(guest, world.now())
            if used.memory + used.swap > (memory + swap) * 2**20 or (used.memory > memory * 2**20 and not swap):
                raise self._refused("memory", "Device or resource busy")
            guest.kernel.memory, guest.kernel.swap = memory, swap
        else:
            world.shrink_memory(guest, memory, swap)
        self._memory_done = True

    def _ask_kernel(self, controller: str, write: t.Callable[[], None]) -> None:
        """Let the kernel decide about a real container."""
        try:
            write()
        except OSError as error:
            raise self._refused(controller, error.strerror or "") from error

    def _refused(self, controller: str, reason: str) -> Refused:
        cgroup = self._world.cgroup
        below = f"{controller}/" if cgroup == 1 else ""
        return Refused(f"closing file '/sys/fs/cgroup/{below}/lxc/{self._guest.vmid}/{FILES[controller][cgroup]}' failed - {reason}")
