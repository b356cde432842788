"""Modules that only read answer the same from the controller's own process and from one of their own."""

from __future__ import annotations

import json
import sys
import typing as t
from pathlib import Path

import pytest

from tests.lab.engine import Engine
from tests.lab.playbooks import Controller
from tests.lab.postgres import Postgres, bloat, prepared
from tests.lab.proxmox.client import Proxmox

Facts = dict[str, t.Any]
MOVES = {"sampled_at", "read_at", "now", "memory_used", "memory_cache", "cpu_rate", "witness", "uptime", "age", "backend_start", "pid", "cpu", "pressure"}
"""What need not be the same a second later."""


def answer(monkeypatch: pytest.MonkeyPatch, make: t.Callable[[], Controller], task: Facts, *, here: bool) -> Facts:
    """What a task answers by its module in this controller's process, or in one of its own."""
    monkeypatch.setattr(Controller, "python", sys.executable)
    controller = make()
    if not here:
        task = {**task, "environment": {"ANYTHING": "else"}}
    controller.play([{**task, "ignore_errors": True}])
    (event,) = controller_events(controller)
    assert ("invocation" in event) is not here  # which Ansible adds to what a process of its own answers
    return {name: value for name, value in event.items() if name not in ("invocation", "_ansible_no_log", "exception")}


def controller_events(controller: Controller) -> list[Facts]:
    lines = (controller.folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line)["result"] for line in lines]


def still(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {name: still(below) for name, below in value.items() if name not in MOVES}
    return [still(below) for below in value] if isinstance(value, list) else type(value).__name__ if isinstance(value, float) else value


@pytest.fixture
def house(pve: Proxmox, debian_postgres: Postgres, tmp_path: Path) -> t.Callable[[], Controller]:
    pg = prepared(debian_postgres)
    pg.role("healer", grants=["pg_monitor"])
    bloat(pg)
    return lambda: Controller(tmp_path, proxmox=pve.options_for("healer@pve!healer"), postgresql=pg.options())


TASKS: dict[str, Facts] = {
    "sessions": {"homelab.healer.pg_activity_info": {}},
    "bloat": {"homelab.healer.pg_bloat_info": {"login_db": "prod", "min_bloat": "1MiB"}},
    "containers": {"homelab.healer.lxc_info": {"vmid": [200, "201"], "gather": ["snapshots", "backup"]}},
    "no such container": {"homelab.healer.lxc_info": {"vmid": [999]}},
    "no such database": {"homelab.healer.pg_activity_info": {"database": "nothing"}},
    "nobody there": {"homelab.healer.pg_activity_info": {"login_port": 1, "login_password": "hunter2", "connect_timeout": 1}},
    "an option that is none": {"homelab.healer.lxc_info": {"vmids": [200]}},
    "an option of another kind": {"homelab.healer.lxc_info": {"sample": "long"}},
    "half of the credentials": {"homelab.healer.lxc_info": {"api_host": "pve", "api_token_id": "x", "api_token_secret": "hunter2", "api_password": "hunter2"}},
}


@pytest.mark.parametrize("what", TASKS)
def test_it_answers_the_same(house: t.Callable[[], Controller], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    near, far = (answer(monkeypatch, house, TASKS[what], here=here) for here in (True, False))
    assert still(near) == still(far)
    assert ("msg" in near) == (what not in ("sessions", "bloat", "containers"))
    assert "hunter2" not in str(near)


def test_docker_too(docker: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.run("app")
    near, far = (
        answer(monkeypatch, lambda: Controller(tmp_path, docker.docker_host), {"homelab.healer.docker_usage_info": {"sample": 0.2}}, here=here)
        for here in (True, False)
    )
    assert still(near) == still(far)
    assert near["containers"][0]["name"] == "app"
