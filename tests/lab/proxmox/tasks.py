"""Workers: each is a real asynchronous thing with a UPID, a log and an exit status."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import typing as t

from tests.lab.proxmox.access import Identity
from tests.lab.proxmox.errors import ApiError, TaskError
from tests.lab.proxmox.model import World

UPID = re.compile(r"UPID:([a-zA-Z0-9](?:[a-zA-Z0-9\-]*[a-zA-Z0-9])?):([0-9A-Fa-f]{8}):([0-9A-Fa-f]{8,9}):([0-9A-Fa-f]{8}):([^:\s/]+):([^:\s/]*):([^:\s/]+):")
SHORTEST = 0.1  # seconds that even a worker takes that fails at once


@dataclasses.dataclass
class Trouble:
    """What a fault does to a worker: ``kind`` is stuck, failed or warnings."""

    kind: str
    exitstatus: str = ""
    log: list[str] = dataclasses.field(default_factory=list)


class Job(t.NamedTuple):
    """What a worker is for: ``about`` is mostly a guest's number."""

    node: str
    kind: str
    about: str
    who: Identity


class Task:
    """A worker. ``status`` is None while it runs."""

    def __init__(self, world: World, job: Job, trouble: Trouble | None) -> None:
        now = world.now()
        self._world = world
        self.node, self.kind, self.about, self.who = job
        self.pid = world.pid()
        self.pstart = int((now - world.nodes[job.node].booted) * 100) & 0xFFFFFFFF
        self.began = int(now)
        self.upid = f"UPID:{job.node}:{self.pid:08X}:{self.pstart:08X}:{self.began:08X}:{job.kind}:{job.about}:{job.who}:"
        self.log: list[str] = []
        self.warnings = 0
        self.status: str | None = None
        self.ended = 0
        self.trouble = trouble
        self.released = asyncio.Event()
        self.runner: asyncio.Task[None] | None = None

    def warn(self, text: str) -> None:
        self.log.append(f"WARN: {text}")
        self.warnings += 1

    async def work(self, seconds: float) -> None:
        """Take a time; here a worker gets stuck or fails where it was told to."""
        await self._world.clock.sleep(max(seconds, SHORTEST))
        if self.trouble and self.trouble.kind == "stuck":
            await self.released.wait()
        elif self.trouble and self.trouble.kind == "failed":
            self.log.extend(self.trouble.log)
            raise TaskError(self.trouble.exitstatus)

    async def run(self, body: t.Callable[[Task], t.Awaitable[None]]) -> None:
        try:
            await self._attempt(body)
        except asyncio.CancelledError:
            self.end("unexpected status", "TASK ERROR: received interrupt")

    async def _attempt(self, body: t.Callable[[Task], t.Awaitable[None]]) -> None:
        began = self._world.now()
        try:
            await body(self)
        except (TaskError, ApiError) as error:
            words = str(error).strip()
            await self._world.clock.sleep(max(0.0, began + SHORTEST - self._world.now()))
            self.end(" ".join(words.split("\n")), f"TASK ERROR: {words}")
            return
        await self._world.clock.sleep(max(0.0, began + SHORTEST - self._world.now()))
        if self.trouble and self.trouble.kind == "warnings":
            self.log.extend(self.trouble.log)
            self.warnings += 1
        if self.warnings:
            self.end(f"WARNINGS: {self.warnings}", f"TASK WARNINGS: {self.warnings}")
        else:
            self.end("OK", "TASK OK")

    def end(self, status: str, line: str) -> None:
        self._world.catch_up()
        self.status = status
        self.ended = int(self._world.now())
        self.log.append(line)

    def summary(self) -> dict[str, t.Any]:
        """As ``tasks/UPID/status`` shows it."""
        shown: dict[str, t.Any] = {
            **self._facts(),
            "user": self.who.user,
            "status": "running" if self.status is None else "stopped",
        }
        if self.who.token:
            shown["tokenid"] = self.who.token
        if self.status is not None:
            shown["exitstatus"] = self.status
        return shown

    def listed(self) -> dict[str, t.Any]:
        """As the list of tasks shows it: one that runs carries its token in the user's name."""
        shown = self._facts()
        if self.status is None:
            return shown | {"user": str(self.who), "status": "RUNNING", "saved": "0"}
        shown |= {"user": self.who.user, "status": self.status, "endtime": self.ended}
        return shown | ({"tokenid": self.who.token} if self.who.token else {})

    def _facts(self) -> dict[str, t.Any]:
        return {
            "upid": self.upid,
            "node": self.node,
            "pid": self.pid,
            "pstart": self.pstart,
            "starttime": self.began,
            "type": self.kind,
            "id": self.about,
        }


class Tasks:
    """All workers, oldest first."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tasks: dict[str, Task] = {}

    def start(self, job: Job, body: t.Callable[[Task], t.Awaitable[None]], trouble: Trouble | None = None) -> Task:
        task = Task(self._world, job, trouble)
        self._tasks[task.upid] = task
        task.runner = asyncio.create_task(task.run(body))
        return task

    def get(self, upid: str) -> Task | None:
        return self._tasks.get(upid)

    def on(self, node: str) -> list[Task]:
        return [task for task in self._tasks.values() if task.node == node]

    def everything(self) -> list[Task]:
        return list(self._tasks.values())

    def running(self, kind: str, about: int) -> list[Task]:
        return [task for task in self._tasks.values() if task.status is None and task.kind == kind and task.about == str(about)]

    def release(self) -> None:
        """Let those that are stuck go on."""
        for task in self._tasks.values():
            task.released.set()

    async def stop(self) -> None:
        """Abort all that run."""
        runners = [task.runner for task in self._tasks.values() if task.runner and task.status is None]
        for runner in runners:
            runner.cancel()
        for runner in runners:
            with contextlib.suppress(asyncio.CancelledError):
                await runner
        self._tasks.clear()
