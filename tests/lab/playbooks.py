"""Runs of ``ansible-playbook`` against the lab, as a person, AWX or Semaphore would start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.lab.engine import LabError

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = ROOT / "ansible_collections/homelab/healer"


@dataclass(frozen=True)
class Run:
    """What a run printed and how it ended."""

    returncode: int
    output: str
    folder: Path

    @property
    def record(self) -> dict[str, t.Any]:
        """The one remediation's result, as the run passed it on."""
        passed_on = (self.folder / "stats.json").read_text()
        if not passed_on:
            raise LabError(f"the run passed no result on:\n{self.output}")
        (record,) = json.loads(passed_on)["remediations"]
        return dict(record)

    @property
    def events(self) -> list[dict[str, t.Any]]:
        """What each task answered: ``task`` and ``result``."""
        return [json.loads(line) for line in (self.folder / "results.jsonl").read_text().splitlines()]

    def answers(self, action: str) -> list[dict[str, t.Any]]:
        """What the tasks of this action answered."""
        return [event["result"] for event in self.events if event["action"] == action]


class Controller:
    """An Ansible controller in a folder of its own, with the lab's engine, its cluster, or its PostgreSQL, in its inventory."""

    python = sys.executable
    """What its modules run under. Beside one that is warm, runs find the modules that earlier ones have packed."""

    def __init__(
        self,
        folder: Path,
        docker_host: str = "",
        proxmox: t.Mapping[str, t.Any] | None = None,
        postgresql: t.Mapping[str, t.Any] | None = None,
        **variables: t.Any,
    ) -> None:
        """``proxmox`` and ``postgresql`` are the connection options of a cluster and of a server, ``variables`` the engine's further ones."""
        self.folder = folder
        self.ledger = folder / "ledger.db"
        self.defaults: dict[str, t.Any] = {}
        inventory: dict[str, t.Any] = {"all": {"hosts": {"localhost": {"ansible_connection": "local", "ansible_python_interpreter": self.python}}}}
        if docker_host:
            self.defaults["group/homelab.healer.docker"] = {"docker_host": docker_host}
            inventory["docker"] = {"hosts": {"lab": {"healer_docker_host": docker_host, **variables}}}
        if proxmox:
            self.defaults["group/homelab.healer.proxmox"] = dict(proxmox)
            inventory["proxmox"] = {"hosts": {"pve": {"healer_proxmox": dict(proxmox)}}}
        if postgresql:
            self.defaults["group/homelab.healer.postgresql"] = dict(postgresql)
            inventory["postgresql"] = {"hosts": {"db": {"healer_postgresql": dict(postgresql)}}}
        inventory["all"]["vars"] = {"healer_ledger": {"path": str(self.ledger)}, "healer_policy": str(folder / "policy.yml")}
        (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
        self.policy()

    def policy(self, **sections: t.Any) -> None:
        """The policy from now on: what is given, and otherwise one that allows everything at once and at any time."""
        anything = {
            "name": "the lab",
            "match": {"reversibility": ["exact", "equivalent", "restore_only", "none"]},
            "decision": "auto",
            "max_growth": 100000,
            "max_shrink": 100,
        }
        plenty = dict.fromkeys(("max_per_window", "max_per_target", "max_per_node", "max_in_flight", "max_in_flight_per_node"), 100000)
        free = {
            "version": 1,
            "limits": {**plenty, "cooldown": "0"},
            "breaker": {"failures": 100000},
            "storm": {"targets": 100000},
            "approval": {"wait": "1s"},  # nobody is there
            "rules": [anything],
        }
        (self.folder / "policy.yml").write_text(yaml.safe_dump({**free, **sections}))

    def inventory(self, **variables: t.Any) -> None:
        """Give all hosts of the inventory these variables as well."""
        path = self.folder / "inventory.yml"
        inventory = yaml.safe_load(path.read_text())
        inventory["all"]["vars"].update(variables)
        path.write_text(yaml.safe_dump(inventory))

    def add(self, group: str, **hosts: t.Mapping[str, t.Any]) -> None:
        """Add a group of hosts to the inventory, each with its variables."""
        path = self.folder / "inventory.yml"
        inventory = yaml.safe_load(path.read_text())
        inventory[group] = {"hosts": {name: dict(variables) for name, variables in hosts.items()}}
        path.write_text(yaml.safe_dump(inventory))

    def forget(self) -> None:
        """Begin with an empty ledger."""
        self.ledger.unlink(missing_ok=True)

    def environment(self, collections: Path = ROOT) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "DOCKER_", "PROXMOX_", "PG"))}
        packed = Path(self.python).with_name("modules")
        return {
            **kept,
            **({"HEALER_LAB_MODULES": str(packed)} if packed.is_dir() and collections == ROOT else {}),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests/lab/callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "lab_packed,lab_results",
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "HEALER_LAB_FOLDER": str(self.folder),
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        }

    def play(self, playbook: str | list[dict[str, t.Any]], *arguments: str, wrap: t.Sequence[str] = (), collections: Path = ROOT, **variables: t.Any) -> Run:
        """Run a playbook by its name, or from the tasks of a play on the controller."""
        environment = self.environment(collections)
        if wrap or collections != ROOT:
            variables["ansible_python_interpreter"] = sys.executable  # one that is inside the wrapping, and has loaded nothing of ours
            environment.pop("HEALER_LAB_MODULES", None)
        if not isinstance(playbook, str):
            play = {"hosts": "localhost", "gather_facts": False, "module_defaults": self.defaults, "tasks": playbook}
            path = self.folder / "play.yml"
            path.write_text(yaml.safe_dump([play], sort_keys=False))
            playbook = str(path)
        command = [*wrap, *self.command(playbook, *arguments, **variables)]
        done = subprocess.run(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
        return Run(done.returncode, done.stdout + done.stderr, self.folder)

    def command(self, playbook: str, *arguments: str, **variables: t.Any) -> list[str]:
        """How a playbook is run; what an earlier run passed on is forgotten."""
        for name in ("stats.json", "results.jsonl"):
            (self.folder / name).write_text("")
        command = [sys.executable, "-m", "ansible", "playbook", playbook, "-i", str(self.folder / "inventory.yml"), *arguments]
        return [*command, "-e", json.dumps(variables)] if variables else command

    def judged(self, probes: list[dict[str, t.Any]], **variables: t.Any) -> Run:
        """Set a container's limits through the chain, verified by these probes instead of the remedy's own."""
        tasks: list[dict[str, t.Any]] = [
            {"ansible.builtin.include_role": {"name": "homelab.healer.docker_limits", "tasks_from": "diagnose"}},
            {"ansible.builtin.set_fact": {"remediate_probes": probes}},
        ]
        folder = self.folder / "roles/judged/tasks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "diagnose.yml").write_text(yaml.safe_dump(tasks))
        remedy = {"remediate_remedy": "judged", "remediate_pause": 0, **variables}
        return self.play([{"ansible.builtin.include_role": {"name": "homelab.healer.remediate"}, "vars": remedy}])

    def doc(self, *names: str) -> Run:
        """What ``ansible-doc`` shows of modules."""
        command = [sys.executable, "-m", "ansible", "doc", *names]
        done = subprocess.run(command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=60, check=False)
        return Run(done.returncode, done.stdout + done.stderr, self.folder)

    def heal(self, *arguments: str, **variables: t.Any) -> Run:
        """Heal, measuring for a second at a time so that the tests do not take long."""
        return self.play("homelab.healer.heal_docker_runaway", *arguments, **{"docker_runaway_sample": 1, "remediate_pause": 0, **variables})
