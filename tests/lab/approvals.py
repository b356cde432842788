"""Runs that ask a human, the bot by which they ask, and the ledger that they share."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
import tty
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import yaml

from ansible_collections.homelab.healer.plugins.module_utils._ledger import Event, Ledger, Remediation, connect
from ansible_collections.homelab.healer.plugins.modules import approval, remediation_gate
from ansible_collections.homelab.healer.plugins.plugin_utils.ledger import here
from tests.lab.engine import LabError
from tests.lab.playbooks import Controller, Run
from tests.lab.proxmox.client import Proxmox
from tests.lab.telegram import CHAT, TOKEN, USER, Bot

Answer = dict[str, t.Any]
ANN = {"user": "ann", "machine": "laptop", "job": ""}
CHANGE: dict[str, t.Any] = {"vmid": 201, "cores": 2, "lxc_resources_snapshot": False, "remediate_pause": 0}
"""What the runs ask about: a container's second core."""
PATIENCE = 120.0


def _take_terminal() -> None:
    """Let the process have its standard input as its terminal, in whose foreground it is."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def eventually(look: t.Callable[[], t.Any], what: str) -> t.Any:
    """What a look finds as soon as it finds something."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise LabError(f"there was no {what} within {PATIENCE:.0f} s")


class House:
    """A controller whose policy asks about everything, with a bot that one person may answer."""

    def __init__(self, folder: Path, pve: Proxmox, server: Bot) -> None:
        self.pve, self.server, self.telegram = pve, server, self.bot(server)
        self.awx: dict[str, t.Any] = {}
        self.controller = Controller(folder, proxmox=pve.options_for("healer@pve!healer"))
        self.configure(self.telegram)
        self.policy()
        self._pool = ThreadPoolExecutor(4)
        self._beside = 0

    @staticmethod
    def bot(server: Bot, **changes: t.Any) -> dict[str, t.Any]:
        """The options of the bot."""
        return {"token": TOKEN, "chats": [CHAT], "users": [USER], "api_url": server.url, "timeout": 2, **changes}

    def configure(self, telegram: t.Mapping[str, t.Any] | None, awx: t.Mapping[str, t.Any] | None = None) -> None:
        """Let the inventory say this of Telegram, and of AWX."""
        self.telegram, self.awx = dict(telegram or {}), dict(awx or {})
        path = self.controller.folder / "inventory.yml"
        inventory = yaml.safe_load(path.read_text())
        inventory["all"]["vars"]["healer_approval"] = self.approval
        path.write_text(yaml.safe_dump(inventory))

    @property
    def approval(self) -> dict[str, t.Any]:
        return {name: found for name, found in (("telegram", self.telegram), ("awx", self.awx)) if found}

    def policy(self, decision: str = "approve", **approval: t.Any) -> None:
        """Ask about everything, in this way."""
        self.controller.policy(rules=[{"name": "ask", "match": {}, "decision": decision}], approval={"wait": "60s", **approval})

    def beside(self) -> Controller:
        """Another controller with the same inventory, for what runs at the same time."""
        self._beside += 1
        folder = self.controller.folder / f"beside{self._beside}"
        folder.mkdir()
        other = Controller(folder)
        (folder / "inventory.yml").write_text((self.controller.folder / "inventory.yml").read_text())
        return other

    def play(self, playbook: str = "homelab.healer.lxc_resources", *arguments: str, **variables: t.Any) -> Run:
        return self.controller.play(playbook, *arguments, **{**CHANGE, **variables})

    def start(self, *arguments: str, **variables: t.Any) -> Future[Run]:
        """Begin a run, which will ask."""
        return self._pool.submit(lambda: self.play("homelab.healer.lxc_resources", *arguments, **variables))

    def submit(self, call: t.Callable[[], t.Any]) -> Future[t.Any]:
        return self._pool.submit(call)

    @contextlib.contextmanager
    def ledger(self) -> t.Iterator[Ledger]:
        with connect({"ledger": {"path": str(self.controller.ledger)}}, check=False) as ledger:
            yield ledger

    def row(self, remediation: str = "") -> Remediation:
        with self.ledger() as ledger:
            return ledger.get(remediation) if remediation else ledger.find("1 = 1 ORDER BY opened DESC LIMIT 1")[0]

    def events(self, remediation: str) -> list[Event]:
        with self.ledger() as ledger:
            return ledger.events(remediation)

    def asked(self, run: Future[t.Any] | None = None) -> Remediation:
        """The question that is open, once it was asked."""

        def look() -> Remediation | None:
            if run is not None and run.done():
                raise LabError(f"the run ended without a question:\n{run.result().output}")
            if not self.controller.ledger.exists():
                return None
            with self.ledger() as ledger:
                found = ledger.find("state = 'asked'")
                sent = found and (not self.telegram or ledger.latest(found[0].id, "told"))
                return found[0] if sent else None

        found: Remediation = eventually(look, "question")
        return found

    def settled(self) -> None:
        """Wait until somebody has read all that people said."""
        eventually(lambda: not self.server.pending(), "reader of the bot's updates")

    def call(self, state: str, check: bool = False, **options: t.Any) -> Answer:
        """What the module answers on the ledger's host, where the policy and inventory are these."""
        told = {"ledger": {"path": str(self.controller.ledger)}, "approval": self.approval, "run": ANN, "state": state, **options}
        return here(approval, json.loads(json.dumps(told)), check)

    def planned(self, remediation: str = "one", vmid: int = 201, cores: int = 2) -> tuple[Answer, Answer]:
        """A remediation as the chain has it when it is about to ask, without the chain's seconds: what the gate was asked, and its answer."""
        before, after = {str(vmid): {"cores": 1}}, {str(vmid): {"cores": cores}}
        step = dict(purpose="change", module="homelab.healer.lxc_resources", args={"vmid": [vmid], "cores": cores}, changed=True, before=before, after=after)
        step.update(steps=[f"set cores of {vmid} to {cores}"], undo=[], reversibility="exact", notes=[])
        step["diff"] = [{"before": "cores: 1\n", "after": f"cores: {cores}\n", "before_header": str(vmid)}]
        target = {"kind": "lxc", "id": vmid, "name": f"{vmid} (web)", "node": "pve2", "tags": [], "pool": "", "hostname": "web"}
        asked = dict(remediation=remediation, remedy="lxc_resources", host="pve", target=target, problem="it is slow")
        admitted = self.gate(**asked)
        assert admitted["word"] == "allowed", admitted
        question = {**asked, "fence": admitted["fence"], "chain": {"plan": [step]}}
        return question, self.gate(**question)

    def gate(self, **question: t.Any) -> Answer:
        """What the gate answers."""
        told = {"ledger": {"path": str(self.controller.ledger)}, "policy": str(self.controller.folder / "policy.yml"), "run": ANN, **question}
        return here(remediation_gate, json.loads(json.dumps(told)), False)

    def at_terminal(self, typed: t.Callable[[str], str], *arguments: str, **variables: t.Any) -> Run:
        """Run it at a terminal, and type what is made of the shown question."""
        controller = self.controller
        command = [sys.executable, "-m", "ansible", "playbook", "homelab.healer.lxc_resources", "-i", str(controller.folder / "inventory.yml"), *arguments]
        command += ["-e", json.dumps({**CHANGE, **variables})]
        for name in ("stats.json", "results.jsonl"):
            (controller.folder / name).write_text("")
        master, slave = pty.openpty()
        process = subprocess.Popen(
            command,
            cwd=controller.folder,
            env={**controller.environment(), "TERM": "dumb"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 (it does nothing but one call of the kernel)
        )
        os.close(slave)
        shown, began, typed_at = "", time.monotonic(), -PATIENCE
        with contextlib.suppress(OSError):  # a terminal whose last process has ended
            while time.monotonic() - began < 3 * PATIENCE:
                if select.select([master], [], [], 1)[0]:
                    shown += os.read(master, 65536).decode(errors="replace")
                # Ansible drops what is typed before it listens, so it is typed again while it still does.
                listens = not termios.tcgetattr(master)[tty.LFLAG] & termios.ICANON
                if listens and "anything else denies:" in shown and time.monotonic() - typed_at > 3:
                    os.write(master, typed(shown).encode())
                    typed_at = time.monotonic()
        os.close(master)
        return Run(process.wait(PATIENCE), shown, controller.folder)

    def close(self) -> None:
        self._pool.shutdown()
