"""A run of ``ansible-playbook`` that stops where a test wants to do something, such as to kill it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.engine import LabError
from tests.lab.playbooks import Controller

LONGEST = 300
"""Seconds after which a run that does not go on is given up."""


@dataclass(frozen=True)
class Breakpoint:
    """The ``number``-th task, since the stop before, whose ``file.yml: name`` matches; at its ``start`` or its ``end``."""

    task: str
    number: int = 1
    at: str = "start"


class Stops:
    """Where runs stop, each in its turn, and wait for a word. ``environment`` is what a run needs to come to them."""

    def __init__(self, *stops: Breakpoint) -> None:
        # A short path, as a socket's may have no more than 107 characters.
        self._place = tempfile.TemporaryDirectory(prefix="healer-lab-", dir="/var/tmp")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._place.name}/socket")
        self._listener.listen()
        self._listener.settimeout(0.05)
        self._stopped: socket.socket | None = None
        self.environment = {
            "HEALER_LAB_BREAKPOINTS": json.dumps([asdict(stop) for stop in stops]),
            "HEALER_LAB_SOCKET": f"{self._place.name}/socket",
        }

    def __enter__(self) -> Stops:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the one that has stopped go on, and stop nobody any more."""
        if self._stopped:
            self._stopped.close()
        self._listener.close()
        self._place.cleanup()

    def wait(self, still: t.Callable[[], bool]) -> int:
        """Wait until a run is at its next stop, as long as one may ``still`` come; returns its process, or 0 where none comes any more."""
        limit = time.monotonic() + LONGEST
        while True:
            with contextlib.suppress(TimeoutError):
                self._stopped, _address = self._listener.accept()
                self._stopped.setblocking(True)
                return int(self._stopped.recv(20))
            if not still() or time.monotonic() > limit:
                return 0

    def go_on(self) -> None:
        assert self._stopped
        with self._stopped:
            self._stopped.sendall(b".")
        self._stopped = None


class Stepped:
    """A run that has begun. ``pid`` is known from the first stop on."""

    def __init__(self, controller: Controller, playbook: str, stops: t.Sequence[Breakpoint], *arguments: str, **variables: t.Any) -> None:
        self.pid = 0
        self.output = controller.folder / "run.log"
        self._stops = Stops(*stops)
        environment = controller.environment()
        environment["ANSIBLE_CALLBACKS_ENABLED"] += ",lab_breakpoint"
        with self.output.open("wb") as log:
            self._process = subprocess.Popen(
                controller.command(playbook, *arguments, **variables),
                cwd=controller.folder,
                env={**environment, **self._stops.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Stepped:
        return self

    def __exit__(self, *_error: object) -> None:
        """End it, and wait until nothing of it is left."""
        self.kill()
        self._stops.close()

    def until_it_stops(self) -> None:
        """Wait until it is at its next stop."""
        self.pid = self._stops.wait(lambda: self._process.poll() is None)
        if not self.pid:
            raise LabError(f"the run does not come to its stop:\n{self.output.read_text()[-3000:]}")

    def go_on(self) -> None:
        self._stops.go_on()

    def kill(self) -> None:
        """End the controller as a crash would; what it had begun goes on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid or self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=LONGEST)

    def until_it_ends(self) -> int:
        """Wait for its end; returns its exit code."""
        return self._process.wait(timeout=LONGEST)


def leftovers(folder: Path) -> list[int]:
    """The processes of runs of a controller that are still there, also those whose controller was killed."""
    mark = f"HEALER_LAB_FOLDER={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0") and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(entry.name))
    return found


def kill_leftovers(folder: Path) -> None:
    """End them, as a crash of the controller's machine would."""
    while found := leftovers(folder):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until_nothing_is_left(folder: Path, seconds: float = 120) -> None:
    """Wait until what a killed controller had begun has ended."""
    limit = time.monotonic() + seconds
    while leftovers(folder):
        if time.monotonic() > limit:
            raise LabError(f"still at work: {leftovers(folder)}")
        time.sleep(0.05)
