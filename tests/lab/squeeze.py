"""A database in a real container that is short of memory: its sessions hold almost all that the container may use, while pgbench works and a client counts
what was committed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection as Connection

from tests.lab.cgroups import MIB
from tests.lab.containers import Container
from tests.lab.engine import LabError
from tests.lab.proxmox.client import ROOT

CLIENTS, RATE = 4, 100
"""Of pgbench: how many work at once, and transactions a second. It leaves the machine something to heal with."""
LARGEST = 64
"""MiB of one result that a session keeps."""
ROWS = 128
"""Rows of a result in one MiB: each takes 8 KiB of memory."""
OTHERS = "SELECT pid, backend_start FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"


class Squeezed:
    """The database, seen by clients outside of its container: they reach its socket through the container's root."""

    def __init__(self, container: Container, folder: Path) -> None:
        self.container = container
        self._log = folder / "committed.log"
        self._output = folder / "pgbench.log"
        self._sessions: list[Connection] = []
        self._held = 0
        self.pid = container.pid
        # A machine that swaps shall not put aside what is held.
        for path in container.groups.file("memory", "").rglob("memory.swappiness"):
            path.write_text("0")
        self.socket = f"/proc/{self.pid}/root/run/postgresql"

    def connect(self) -> Connection:
        client: Connection = psycopg2.connect(host=self.socket, user="postgres", dbname="postgres", connect_timeout=10)
        client.autocommit = True
        return client

    def ask(self, statement: str) -> list[tuple[t.Any, ...]]:
        with contextlib.closing(self.connect()) as client, client.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def fill(self, scale: int = 3) -> None:
        """The tables of pgbench."""
        command = [self._pgbench(), "--initialize", "--quiet", "--scale", str(scale), "--host", self.socket, "--username", "postgres", "postgres"]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)

    @staticmethod
    def _pgbench() -> str:
        found = shutil.which("pgbench") or next((str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/pgbench")), None)
        if not found:
            raise LabError("there is no pgbench: run tests/lab/prepare")
        return found

    def hold(self, share: float) -> None:
        """Let sessions hold memory until that part of the limit is in use, the page cache left out. It is theirs as long as they are connected."""
        while (gap := share * self.container.groups.limits().memory - self.container.groups.figures().memory / MIB) > 0:
            if not self._sessions or gap > LARGEST:
                self._sessions.append(self.connect())
            size = max(1, min(LARGEST, int(gap / 2)))
            with self._sessions[-1].cursor() as cursor:
                cursor.execute(f"SET work_mem = '{2 * LARGEST}MB'")
                cursor.execute(f"DECLARE held_{self._held} CURSOR WITH HOLD FOR SELECT repeat('x', 8000) FROM generate_series(1, {size * ROWS})")
            self._held += 1

    @contextlib.contextmanager
    def at_work(self, seconds: int = 1200) -> t.Iterator[None]:
        """Let pgbench and the counting client work meanwhile, so many seconds at the most.

        Raises LabError where either was disturbed, a session was ended, or what was committed is not there at the end.
        """
        self._log.unlink(missing_ok=True)
        work = ["--client", str(CLIENTS), "--rate", str(RATE), "--time", str(seconds), "--no-vacuum"]
        command = [self._pgbench(), *work, "--host", self.socket, "--username", "postgres", "postgres"]
        with self._output.open("w") as output, _running(command, output) as bench, _running(self._committer(), output) as committer:
            before = self._wait_for_all()
            yield
            after = self.ask(OTHERS)
            committer.terminate()
            ended = committer.wait(timeout=30)
            running = bench.poll() is None
        told = self._output.read_text()
        self._expect(before == after, f"sessions were ended or renewed: {before} before, {after} after")
        self._expect(running and "aborted" not in told, f"pgbench was disturbed: {told[-1000:]}")
        self._expect(ended == 0, f"the counting client was disturbed: {told[-1000:]}")
        self._expect(self.container.pid == self.pid, "the container was started again")
        self._expect(self.lost() == [], f"commits are lost: {self.lost()}")

    def _committer(self) -> list[str]:
        return [sys.executable, "-m", "tests.lab.committer", self.socket, str(self._log)]

    @staticmethod
    def _expect(so: bool, otherwise: str) -> None:
        if not so:
            raise LabError(otherwise)

    def _wait_for_all(self) -> list[tuple[t.Any, ...]]:
        """Until all clients are there and something is committed; the server's processes for them, and since when."""
        limit = time.monotonic() + 30
        there: list[tuple[t.Any, ...]] = []
        while len(there) < len(self._sessions) + CLIENTS + 1 or not self._log.exists() or not self.acknowledged():
            if time.monotonic() > limit:
                raise LabError(f"not all clients are at work: {there} {self._output.read_text()[-1000:]}")
            time.sleep(0.05)
            there = self.ask(OTHERS)
        return there

    def _run(self) -> tuple[int, list[int]]:
        """The counting client's backend, and the numbers whose commit the server acknowledged; the last line may be half written."""
        backend, *numbers = [int(line) for line in self._log.read_text().split("\n")[:-1]] or [0]
        return backend, numbers

    def acknowledged(self) -> int:
        return len(self._run()[1])

    def lost(self) -> list[int]:
        """What the server said it committed and does not have."""
        backend, numbers = self._run()
        there = {number for (number,) in self.ask(f"SELECT number FROM committed WHERE run = {backend}")}
        return [number for number in numbers if number not in there]

    def hits(self, seconds: float) -> int:
        """How often the kernel counts that the limit is reached in so many seconds."""
        before = self.container.groups.figures().limit_hits
        time.sleep(seconds)
        return self.container.groups.figures().limit_hits - before

    def wait_until_short(self, patience: float = 60) -> None:
        """Until the clients' work has filled what the sessions leave, so that the limit is reached again and again."""
        limit = time.monotonic() + patience
        while not self.hits(1):
            if time.monotonic() > limit:
                raise LabError(f"the database is not short of memory after {patience:.0f} s: {self.container.groups.figures()}")

    def end(self) -> None:
        """End the sessions that hold memory."""
        for session in self._sessions:
            session.close()
        self._sessions, self._held = [], 0


@contextlib.contextmanager
def _running(command: list[str], output: t.IO[str]) -> t.Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.kill()
