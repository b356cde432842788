"""Backups: a worker that takes its guests one after the other, locks each meanwhile, and leaves an archive on a storage."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
import typing as t

from tests.lab.proxmox.access import Identity
from tests.lab.proxmox.errors import TaskError
from tests.lab.proxmox.model import GIB, Guest, Storage, World, task_error
from tests.lab.proxmox.tasks import Job, Task, Tasks

KIND = "vzdump"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to back up, each guest for ``seconds``: those of a node with these numbers, or those that ``options`` (all, exclude, pool) choose."""

    node: str
    vmids: list[int]
    storage: str
    seconds: float
    options: dict[str, t.Any]

    @property
    def command(self) -> str:
        options = {**self.options, "storage": self.storage}
        return " ".join([KIND, *map(str, self.vmids), *(f"--{name} {shlex.quote(str(value))}" for name, value in options.items())])


def start(tasks: Tasks, world: World, wanted: Wanted) -> str:
    """Start a job of root's; its UPID has the number of a guest only if it is for one."""
    chosen = sorted(wanted.vmids or _chosen(world, wanted))
    about = str(chosen[0]) if len(chosen) == 1 else ""
    storage = world.storages[wanted.storage]

    async def body(task: Task) -> None:
        task.log.append(f"INFO: starting new backup job: {wanted.command}")
        done = [await _save(world, task, vmid, storage, wanted.seconds) for vmid in chosen]
        task.log.append(f"INFO: Backup job finished {'successfully' if all(done) else 'with errors'}")
        if not all(done):
            raise TaskError("job errors")

    return tasks.start(Job(wanted.node, KIND, about, Identity("root@pam")), body).upid


def _chosen(world: World, wanted: Wanted) -> list[int]:
    excluded = {int(vmid) for vmid in str(wanted.options.get("exclude", "")).split(",") if vmid}
    members = world.access.pools[wanted.options["pool"]] if "pool" in wanted.options else world.guests.keys() - excluded
    return [vmid for vmid, guest in world.guests.items() if vmid in members and guest.node == wanted.node]


async def _save(world: World, task: Task, vmid: int, storage: Storage, seconds: float) -> bool:
    """Save one guest; whether that worked. Its failure does not end the job."""
    guest, began = world.guests.get(vmid), world.now()
    task.log.append(f"INFO: Starting Backup of VM {vmid} ({guest.kind if guest else 'unknown'})")
    try:
        if guest is None:
            raise TaskError(f"unable to find VM '{vmid}'")
        async with _locked(world, guest):
            await task.work(seconds)
            storage.contents.append(_archive(guest, storage.name, began))
    except TaskError as error:
        task.log.append(f"ERROR: Backup of VM {vmid} failed - {error}")
        return False
    task.log.append(f"INFO: Finished Backup of VM {vmid} ({time.strftime('%H:%M:%S', time.gmtime(world.now() - began))})")
    return True


@contextlib.asynccontextmanager
async def _locked(world: World, guest: Guest) -> t.AsyncIterator[None]:
    """The lock that everybody can see; who aborts the worker takes it away with it."""
    async with world.locked(guest, task_error):
        guest.check_lock(task_error)
        guest.config.current["lock"] = "backup"
    try:
        yield
    finally:
        guest.config.current.pop("lock", None)


def _archive(guest: Guest, storage: str, began: float) -> dict[str, t.Any]:
    """An archive has the time at which it was begun."""
    stamp = time.strftime("%Y_%m_%d-%H_%M_%S", time.gmtime(began))
    form = "tar.zst" if guest.kind == "lxc" else "vma.zst"
    return {
        "volid": f"{storage}:backup/vzdump-{guest.kind}-{guest.vmid}-{stamp}.{form}",
        "content": "backup",
        "format": form,
        "size": GIB,
        "ctime": int(began),
        "vmid": guest.vmid,
        "subtype": guest.kind,
    }
