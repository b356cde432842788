"""Starting and stopping containers."""

from __future__ import annotations

import asyncio
import math
import typing as t

from tests.lab.engine import LabError
from tests.lab.proxmox import hotplug
from tests.lab.proxmox.access import Identity
from tests.lab.proxmox.calls import Call, Route, perm
from tests.lab.proxmox.errors import TaskError, die
from tests.lab.proxmox.model import Guest, World, task_error
from tests.lab.proxmox.schema import BOOLEAN, COUNT
from tests.lab.proxmox.tasks import Job, Task, Tasks

SHUTDOWN_PATIENCE = 60
HA_PATIENCE = 5.0  # seconds until the high-availability manager does what it was asked for
# What is forked by a worker is not reaped before that one's own parent has looked: its end shows late.
FORKED_LINGER = 11.0


def index(call: Call) -> list[dict[str, str]]:
    return [{"subdir": name} for name in ("current", "start", "stop", "shutdown", "reboot", "migrate")]


def _is_running(call: Call) -> bool:
    guest = call.world.guests.get(call.vmid)
    if guest is None or guest.node != call.node:
        return False
    call.world.look(guest)
    return guest.running


def _managed(call: Call) -> bool:
    guest = call.world.guests.get(call.vmid)
    return guest is not None and bool(guest.ha)


def start(call: Call) -> str:
    call.refuse_skiplock()
    if _is_running(call):
        raise die(f"CT {call.vmid} already running")
    if not call.world.quorate:
        raise die("cluster not ready - no quorum?")
    if _managed(call):
        return _ask_ha(call, "hastart", "vzstart", start_body(call.world, call.node, call.vmid))
    return call.fork("vzstart", call.vmid, start_body(call.world, call.node, call.vmid, check_lock=not call.flag("skiplock")))


def start_body(world: World, node: str, vmid: int, *, check_lock: bool = True, linger: float = 0.0) -> t.Callable[[Task], t.Awaitable[None]]:
    async def body(task: Task) -> None:
        guest = world.container(node, vmid)
        async with world.locked(guest, task_error):
            guest = world.container(node, vmid)
            if guest.template:
                raise TaskError("you can't start a CT if it's a template")
            if check_lock:
                guest.check_lock(task_error)
            await task.work(guest.workload.start)
            boot(world, guest)
        if linger:
            await world.clock.sleep(linger)

    return body


def boot(world: World, guest: Guest) -> None:
    """Apply what waited for a start, and start."""
    config = guest.config
    hotplug.apply_stopped(world, guest, config)
    missing = [volume.name for volume in config.volumes().values() if volume.storage and volume.storage not in world.storages]
    if guest.workload.fails_to_start or missing:
        raise TaskError(f"startup for container '{guest.vmid}' failed")
    try:
        world.start(guest)
    except LabError:
        raise TaskError(f"startup for container '{guest.vmid}' failed") from None


def stop(call: Call) -> str:
    call.refuse_skiplock()
    _demand_running(call, "CT")
    if _managed(call):
        return _ask_ha(call, "hastop", "vzstop", _stop_body(call, overrule=False))
    return call.fork("vzstop", call.vmid, _stop_body(call, overrule=call.flag("overrule-shutdown")))


def _demand_running(call: Call, kind: str) -> None:
    if not _is_running(call):
        raise die(f"{kind} {call.vmid} not running")


def _stop_body(call: Call, *, overrule: bool) -> t.Callable[[Task], t.Awaitable[None]]:
    world, node, vmid = call.world, call.node, call.vmid

    async def body(task: Task) -> None:
        guest = world.container(node, vmid)
        if overrule:
            for other in call.tasks.running("vzshutdown", vmid):
                if other.runner:
                    other.runner.cancel()
                task.log.append(f"overruled vzshutdown task: {other.upid}")
        async with world.locked(guest, task_error):
            if not call.flag("skiplock"):
                guest.check_lock(task_error)
            await task.work(0.3)
            world.kill(guest)

    return body


def shutdown(call: Call) -> str:
    _demand_running(call, "CT")
    if _managed(call):
        return _ask_ha(call, "hastop", "vzshutdown", _shutdown_body(call))
    return call.fork("vzshutdown", call.vmid, _shutdown_body(call))


def _shutdown_body(call: Call) -> t.Callable[[Task], t.Awaitable[None]]:
    world, node, vmid = call.world, call.node, call.vmid
    timeout, force = call.integer("timeout", SHUTDOWN_PATIENCE), call.flag("forceStop")

    async def body(task: Task) -> None:
        guest = world.container(node, vmid)
        async with world.locked(guest, task_error):
            guest.check_lock(task_error)
            # who asks without force waits for the container once more, and a little, after the first wait was in vain
            limit = timeout if force else 2 * timeout + 5
            ends = await _time_to_end(guest, limit)
            await task.work(min(ends, limit))
            if ends > limit and not force:
                raise TaskError("container did not stop")
            world.kill(guest)

    return body


async def _time_to_end(guest: Guest, limit: int) -> float:
    """In how many seconds it will have ended by itself; a real one is given its time, and needs no more, or would never end."""
    if guest.real:
        return 0.0 if await asyncio.to_thread(guest.real.shut_down, limit) else math.inf
    return math.inf if guest.workload.ignores_term else guest.workload.shutdown


def reboot(call: Call) -> str:
    _demand_running(call, "VM")
    world, node, vmid = call.world, call.node, call.vmid
    timeout = call.integer("timeout", SHUTDOWN_PATIENCE)

    async def body(task: Task) -> None:
        guest = world.container(node, vmid)
        async with world.locked(guest, task_error):
            await task.work(min(await _time_to_end(guest, timeout), timeout))
            world.kill(guest)
            await world.clock.sleep(guest.workload.start)
            if guest.config.lock:  # nobody looked at it before
                raise TaskError(f"startup for container '{vmid}' failed")
            boot(world, guest)

    return call.fork("vzreboot", vmid, body)


def suspend(call: Call) -> str:
    async def body(task: Task) -> None:
        raise TaskError("checkpointing failed")

    _demand_running(call, "CT")
    return call.fork("vzsuspend", call.vmid, body)


def resume(call: Call) -> str:
    if _is_running(call):
        raise die(f"CT {call.vmid} already running")

    async def body(task: Task) -> None:
        raise TaskError("restore failed")

    return call.fork("vzresume", call.vmid, body)


def _ask_ha(call: Call, kind: str, later: str, act: t.Callable[[Task], t.Awaitable[None]]) -> str:
    """Store a request: its worker ends well when that is done, and the manager acts some seconds later."""
    world, node, vmid, tasks = call.world, call.node, call.vmid, call.tasks

    async def body(task: Task) -> None:
        task.log.append(f"Requesting HA {kind.removeprefix('ha')} for CT {vmid}")
        await task.work(0.3)
        guest = world.guests.get(vmid)
        if guest:
            guest.ha["state"] = "started" if kind == "hastart" else "stopped"
        world.clock.call_later(HA_PATIENCE, lambda: _act_for_ha(tasks, node, later, vmid, act))

    return call.fork(kind, vmid, body)


def _act_for_ha(tasks: Tasks, node: str, kind: str, vmid: int, act: t.Callable[[Task], t.Awaitable[None]]) -> None:
    tasks.start(Job(node, kind, str(vmid), Identity("root@pam")), act)


def routes() -> list[Route]:
    base = "/nodes/{node}/lxc/{vmid}/status"
    allowed = perm("/vms/{vmid}", "VM.PowerMgmt")
    return [
        Route("GET", base, index, {}),
        Route("POST", f"{base}/start", start, {"skiplock": BOOLEAN, "debug": BOOLEAN}, allowed),
        Route("POST", f"{base}/stop", stop, {"skiplock": BOOLEAN, "overrule-shutdown": BOOLEAN}, allowed),
        Route("POST", f"{base}/shutdown", shutdown, {"timeout": COUNT, "forceStop": BOOLEAN}, allowed),
        Route("POST", f"{base}/reboot", reboot, {"timeout": COUNT}, allowed),
        Route("POST", f"{base}/suspend", suspend, {}, allowed),
        Route("POST", f"{base}/resume", resume, {}, allowed),
    ]
