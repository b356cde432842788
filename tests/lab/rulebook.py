"""``ansible-rulebook`` with one of the collection's rulebooks, as a person would start it, and what is sent to its webhook."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import typing as t
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from ansible_collections.homelab.healer.plugins.module_utils._ledger import Ledger, Remediation, connect
from tests.lab.engine import LabError
from tests.lab.monitoring import free_port
from tests.lab.playbooks import COLLECTION, Controller
from tests.lab.stepped import Stops, kill_leftovers, leftovers

TOKEN = "of-the-rulebook"
AT_ONCE = "1000"
"""As the rulebooks' own comment has it."""
Labels = t.Mapping[str, t.Any]


def missing() -> str:
    """What of it is not here."""
    return "" if shutil.which("java") else "java"


class Rulebook:
    """A rulebook that runs on a controller, with its inventory and its ledger.

    ``stops`` is where each run that it begins stops, and ``throttle`` for how long it takes the same alert once, if not as it ships.
    """

    def __init__(self, controller: Controller, name: str = "alertmanager", *, stops: Stops | None = None, throttle: str = "", **variables: t.Any) -> None:
        self.controller = controller
        self.name = name
        self._stops = stops
        self._throttle = throttle
        self.port = free_port()
        self.log = controller.folder / "rulebook.log"
        self._variables = {"healer_webhook_port": self.port, "healer_webhook_token": TOKEN, **variables}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Rulebook:
        """Start it, and wait until it listens."""
        given = self.controller.folder / "rulebook-variables.yml"
        given.write_text(yaml.safe_dump(self._variables))
        command = [str(Path(sys.executable).with_name("ansible-rulebook")), "-r", self._rules(), "-e", str(given), "--max-concurrent-actions", AT_ONCE]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-i", str(self.controller.folder / "inventory.yml"), "-v"],
                cwd=self.controller.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while time.monotonic() < until and self._process.poll() is None:
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.1)
        self.kill()
        raise LabError(f"the rulebook does not listen:\n{self.told}")

    def _rules(self) -> str:
        """The rulebook's name, or the path of one that differs by nothing but its throttle."""
        if not self._throttle:
            return f"homelab.healer.{self.name}"
        path = self.controller.folder / f"{self.name}.yml"
        shipped = (COLLECTION / f"extensions/eda/rulebooks/{self.name}.yml").read_text()
        path.write_text(shipped.replace("once_within: 5 minutes", f"once_within: {self._throttle}"))
        return str(path)

    def environment(self) -> dict[str, str]:
        places = self.controller.folder / "tmp"  # what a killed rulebook leaves behind of its runs
        places.mkdir(exist_ok=True)
        environment = {**self.controller.environment(), "TMPDIR": str(places)}
        environment["ANSIBLE_CALLBACKS_ENABLED"] = "lab_packed"  # what one run passed on would be overwritten by the next
        if self._stops:
            environment["ANSIBLE_CALLBACKS_ENABLED"] += ",lab_breakpoint"
            environment.update(self._stops.environment)
        return environment

    def __enter__(self) -> Rulebook:
        return self.start()

    def __exit__(self, *_failure: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it at once, and all that it has begun."""
        self.crash()
        kill_leftovers(self.controller.folder)

    def crash(self) -> None:
        """End its own process, and leave alone what it has begun: that has a session of its own."""
        if self.runs():
            assert self._process
            self._process.kill()
            self._process.wait()

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def begun(self) -> list[int]:
        """The processes of runs that it has begun and that are still there."""
        return [pid for pid in leftovers(self.controller.folder) if not (self._process and pid == self._process.pid)]

    @property
    def told(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/alerts"

    def remediations(self) -> list[Remediation]:
        """What the ledger has, the oldest first."""
        return self._ask(lambda ledger: ledger.find("id <> '' ORDER BY opened, id"))

    def alerts(self) -> list[dict[str, t.Any]]:
        """What it wrote down as not answered."""
        return self._ask(lambda ledger: [json.loads(body) for (body,) in ledger.rows("SELECT body FROM journal WHERE kind = 'alert' ORDER BY seq")])

    def times(self, remediation: str) -> dict[str, str]:
        """When what happened in a remediation, by its record; nothing where it was refused before there was a plan."""
        question = "SELECT body FROM journal WHERE remediation = ? AND kind IN ('closed', 'failed') ORDER BY seq DESC LIMIT 1"
        found = self._ask(lambda ledger: [json.loads(body).get("times", {}) for (body,) in ledger.rows(question, remediation)])
        return dict(found[0]) if found else {}

    def last(self, kind: str) -> dict[str, t.Any]:
        """What the ledger's last entry of a kind says."""
        return dict(self._ask(lambda ledger: [json.loads(body) for (body,) in ledger.rows("SELECT body FROM journal WHERE kind = ? ORDER BY seq", kind)])[-1])

    def _ask(self, question: t.Callable[[Ledger], list[t.Any]]) -> list[t.Any]:
        if not self.controller.ledger.exists():
            return []
        with connect({"ledger": {"path": str(self.controller.ledger)}}, check=True) as ledger, ledger.turn(writing=False):
            return question(ledger)

    def send(self, body: t.Any, token: str = TOKEN) -> int:
        """Send this to its webhook; returns the status of the answer."""
        request = urllib.request.Request(
            self.address,
            body if isinstance(body, bytes) else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def alert(self, *alerts: Labels, status: str = "firing") -> int:
        """Send alerts with these labels, as Alertmanager does."""
        return self.send({"version": "4", "status": status, "alerts": [alert_of(labels, status) for labels in alerts]})


def alert_of(labels: Labels, status: str = "firing") -> dict[str, t.Any]:
    """An alert as Alertmanager sends it."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000000001Z", time.gmtime())
    return {
        "status": status,
        "labels": dict(labels),
        "annotations": {"summary": "trouble"},
        "startsAt": now,
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "0" * 16,
    }
