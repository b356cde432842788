"""Snapshots: whatever is wrong with a request shows in the worker, after the answer was 200."""

from __future__ import annotations

import asyncio
import typing as t

from tests.lab.engine import LabError
from tests.lab.proxmox import power
from tests.lab.proxmox.calls import Call, Route, perm
from tests.lab.proxmox.config import Values, clean_description, copied, shown, volumes
from tests.lab.proxmox.errors import TaskError, die
from tests.lab.proxmox.model import Guest, World, task_error
from tests.lab.proxmox.schema import BOOLEAN, SNAPNAME, text
from tests.lab.proxmox.storing import keep_unused
from tests.lab.proxmox.tasks import Job, Task

RESERVED = frozenset({"current", "vzdump"})
DURATION = 0.4  # seconds of a snapshot operation on a storage without delay
_AUDIT = perm("/vms/{vmid}", "VM.Audit")
_SNAPSHOT = perm("/vms/{vmid}", "VM.Snapshot")
_ROLLBACK = perm("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", any_of=True)
_READ = perm("/vms/{vmid}", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.Audit", any_of=True)


# reading


def listing(call: Call) -> list[dict[str, t.Any]]:
    return _listing(call.container())


def listing_qemu(call: Call) -> list[dict[str, t.Any]]:
    return _listing(call.world.find(call.node, call.vmid, "qemu"))


def _listing(guest: Guest) -> list[dict[str, t.Any]]:
    config = guest.config
    now: dict[str, t.Any] = {"name": "current", "description": "You are here!", "digest": config.digest(), "running": int(guest.running)}
    if "parent" in config.current:
        now["parent"] = config.current["parent"]
    entries = [now]
    for name, values in config.snapshots.items():
        entry = {"name": name, "snaptime": int(values["snaptime"]), "description": ""}
        entry |= shown({key: values[key] for key in ("description", "parent", "snapstate") if key in values})
        entries.append(entry)
    return entries


def index(call: Call) -> list[dict[str, str]]:
    return [{"cmd": "rollback"}, {"cmd": "config"}]


def get_config(call: Call) -> dict[str, t.Any]:
    return shown(_existing(call.container(), call.params["snapname"]))


def _existing(guest: Guest, name: str, error: t.Callable[[str], Exception] = die) -> Values:
    if name not in guest.config.snapshots:
        raise error(f"snapshot '{name}' does not exist")
    return guest.config.snapshots[name]


async def set_config(call: Call) -> None:
    if "description" not in call.params:
        return
    guest = call.container()
    async with call.world.locked(guest):
        guest.check_lock()
        call.world.check_write(guest)
        values = _existing(guest, call.params["snapname"])
        if description := clean_description(call.params["description"]):
            values["description"] = description
        else:
            values.pop("description", None)


# taking


def create(call: Call) -> str:
    name = call.params["snapname"]
    if name in RESERVED:
        raise die(f"unable to use snapshot name '{name}' (reserved name)")
    return call.fork("vzsnapshot", call.vmid, lambda task: _create(call, name, task))


async def _create(call: Call, name: str, task: Task) -> None:
    world = call.world
    guest = call.container()
    async with world.locked(guest, task_error):
        _prepare(world, guest, name, clean_description(call.text("description")))
    guest.frozen = guest.running
    try:
        await _use_storages(world, guest, name, "snapshot", task)
    except TaskError:
        task.log.append("snapshot create failed: starting cleanup")
        guest.config.snapshots.pop(name, None)
        guest.config.current.pop("lock", None)
        guest.frozen = False
        raise
    guest.frozen = False
    async with world.locked(guest, task_error):
        guest.config.snapshots[name].pop("snapstate")
        guest.config.current.pop("lock", None)
        guest.config.current["parent"] = name
        for volume in volumes(guest.config.snapshots[name]).values():
            guest.taken.setdefault(volume.name, []).append(name)


def _prepare(world: World, guest: Guest, name: str, description: str) -> None:
    config = guest.config
    if guest.template:
        raise TaskError("you can't take a snapshot if it's a template")
    guest.check_lock(task_error)
    if name in config.snapshots:
        raise TaskError(f"snapshot name '{name}' already used")
    if not world.can_snapshot(config.volumes()):
        raise TaskError("snapshot feature is not available")
    world.check_write(guest, task_error)
    for values in config.snapshots.values():
        if values.get("parent") == name:
            del values["parent"]
    config.snapshots[name] = copied(config.current) | {"snapstate": "prepare", "snaptime": str(int(world.now()))}
    if description:
        config.snapshots[name]["description"] = description
    config.current["lock"] = "snapshot"


async def _use_storages(world: World, guest: Guest, name: str, operation: str, task: Task) -> None:
    """Take the time that a snapshot's storages take, and die of what they die of."""
    used = [world.volume_storage(volume) for volume in volumes(guest.config.snapshots[name]).values()]
    await task.work(DURATION + sum(storage.delay for storage in used if storage))
    for storage in used:
        if storage and operation in storage.fail:
            raise TaskError(storage.fail[operation])
    if guest.real:
        try:
            await asyncio.to_thread(guest.real.on_disk, operation, name)
        except LabError as error:
            raise TaskError(str(error)) from error


# removing


def remove(call: Call) -> str:
    name = call.params["snapname"]
    return call.fork("vzdelsnapshot", call.vmid, lambda task: _remove(call, name, task))


async def _remove(call: Call, name: str, task: Task) -> None:
    world = call.world
    guest = call.container()
    async with world.locked(guest, task_error):
        values = _existing(guest, name, task_error)
        guest.check_lock(task_error)
        if guest.template:
            raise TaskError("you can't delete a snapshot if vm is a template")
        world.check_write(guest, task_error)
        guest.config.current["lock"] = "snapshot-delete"
        values["snapstate"] = "delete"
    try:
        await _use_storages(world, guest, name, "delete", task)
    except TaskError as error:  # the lock stays
        if not call.flag("force"):
            raise
        task.log.append(str(error))
    async with world.locked(guest, task_error):
        _forget(guest, name)


def _forget(guest: Guest, name: str) -> None:
    """Take a snapshot out of the file; those that descend from it become its parent's."""
    config = guest.config
    parent = config.snapshots.pop(name).get("parent")
    for values in [config.current, *config.snapshots.values()]:
        if values.get("parent") == name:
            del values["parent"]
            if parent:
                values["parent"] = parent
    config.current.pop("lock", None)
    for names in guest.taken.values():
        if name in names:
            names.remove(name)


# going back


def rollback(call: Call) -> str:
    name = call.params["snapname"]
    return call.fork("vzrollback", call.vmid, lambda task: _rollback(call, name, task))


async def _rollback(call: Call, name: str, task: Task) -> None:
    world = call.world
    guest = call.container()
    async with world.locked(guest, task_error):
        _check_rollback(world, guest, name)
        world.check_write(guest, task_error)
        if guest.running:
            world.kill(guest)
        guest.config.current["lock"] = "rollback"
    await _use_storages(world, guest, name, "rollback", task)  # when it fails, the lock stays and the container is stopped
    async with world.locked(guest, task_error):
        _go_back(guest, name)
        world.catch_up()
        world.note(guest)
    if call.flag("start"):
        body = power.start_body(world, call.node, guest.vmid, linger=power.FORKED_LINGER)
        call.tasks.start(Job(call.node, "vzstart", str(guest.vmid), call.who), body)


def _check_rollback(world: World, guest: Guest, name: str) -> None:
    if guest.template:
        raise TaskError("you can't rollback if vm is a template")
    values = _existing(guest, name, task_error)
    for volume in volumes(values).values():
        storage = world.volume_storage(volume)
        taken = guest.taken.get(volume.name, [])
        if storage and storage.type == "zfspool" and taken and taken[-1] != name:
            raise TaskError(f"can't rollback, '{name}' is not most recent snapshot on '{volume.name}'")
    if "snapstate" in values:
        raise TaskError(f"unable to rollback to incomplete snapshot (snapstate = {values['snapstate']})")
    guest.check_lock(task_error)


def _go_back(guest: Guest, name: str) -> None:
    """The snapshot's values become the configuration; pending changes are lost, volumes that it does not know stay as unused ones."""
    config = guest.config
    before = config.volumes()
    kept = {key: value for key, value in config.current.items() if key == "description" or key.startswith("unused")}
    config.current = copied(config.snapshots[name]) | kept | {"parent": name}
    config.pending, config.deleted = {}, []
    for volume in before.values():
        keep_unused(config.current, volume.name)


def routes() -> list[Route]:
    base = "/nodes/{node}/lxc/{vmid}/snapshot"
    name = {"snapname": SNAPNAME.needed()}
    description = {"description": text()}
    return [
        Route("GET", base, listing, {}, _AUDIT),
        Route("POST", base, create, name | description, _SNAPSHOT),
        Route("GET", f"{base}/{{snapname}}", index, name, proxied=False),
        Route("DELETE", f"{base}/{{snapname}}", remove, name | {"force": BOOLEAN}, _SNAPSHOT),
        Route("GET", f"{base}/{{snapname}}/config", get_config, name, _READ),
        Route("PUT", f"{base}/{{snapname}}/config", set_config, name | description, _SNAPSHOT),
        Route("POST", f"{base}/{{snapname}}/rollback", rollback, name | {"start": BOOLEAN}, _ROLLBACK),
        Route("GET", "/nodes/{node}/qemu/{vmid}/snapshot", listing_qemu, {}, _AUDIT),
    ]
