"""The documentation is run: every example as it stands, and every returned value as it is described."""

from __future__ import annotations

import copy
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.homelab.healer.plugins.modules import (
    docker_limits,
    docker_usage_info,
    ledger_prune,
    ledger_verify,
    lxc_info,
    lxc_power,
    lxc_resources,
    lxc_snapshot,
    pg_activity_info,
    pg_bloat_info,
    pg_terminate,
    pg_vacuum,
    remediation_gate,
    remediation_info,
    remediation_pause,
    remediation_record,
)
from tests.lab.engine import OwnEngine
from tests.lab.playbooks import COLLECTION, Controller
from tests.lab.postgres import Pool, Postgres, bloat, prepared
from tests.lab.proxmox.client import Proxmox

TYPES: dict[str, t.Any] = {"dict": dict, "list": list, "str": str, "int": int, "float": (int, float), "bool": bool}


def matches(described: t.Mapping[str, t.Any], value: t.Any, path: str = "") -> None:
    """Assert that a value is as RETURN describes it, and that nothing is returned that is not described."""
    for key, found in value.items():
        assert key in described, f"{path}{key} is not documented"
        facts = described[key]
        if found is None:
            continue
        assert isinstance(found, TYPES[facts["type"]]), f"{path}{key}: {found!r}"
        if facts["type"] == "dict" and "contains" in facts:
            matches(facts["contains"], found, f"{path}{key}.")
        for element in found if facts["type"] == "list" else ():
            assert isinstance(element, TYPES[facts["elements"]]), f"{path}{key}: {element!r}"
            if "contains" in facts:
                matches(facts["contains"], element, f"{path}{key}[].")


COMMON = {"changed", "failed", "invocation", "diff", "msg", "warnings", "exception", "ansible_loop_var", "item"}


def own(answer: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What the module itself returned."""
    return {key: value for key, value in answer.items() if key not in COMMON and not key.startswith("_ansible")}


def documented_answers(module: t.Any, tasks: list[dict[str, t.Any]], controller: Controller) -> None:
    """Run a module's examples; all that they return must be as RETURN describes it."""
    run = controller.play(tasks, "--diff")
    assert run.returncode == 0, run.output
    name = module.__name__.rpartition(".")[2]
    answers = run.answers(f"homelab.healer.{name}")
    assert len(answers) >= sum(f"homelab.healer.{name}" in task for task in tasks) > 0
    described = yaml.safe_load(module.RETURN)
    for answer in answers:
        looped = any("ansible_loop_var" in item for item in answer.get("results", []))
        for single in answer["results"] if looped else [answer]:
            matches(described, own(single))


@pytest.mark.parametrize("module", [docker_limits, docker_usage_info], ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_example_runs_and_returns_what_is_documented(module: t.Any, own_docker: OwnEngine, controller: Controller) -> None:
    for name in ("app", "db", "web"):
        own_docker.run(name, labels={"com.docker.compose.project": "media"}, Memory=64 << 20, MemorySwap=96 << 20)
    tasks = copy.deepcopy(yaml.safe_load(module.EXAMPLES))
    for task in tasks:
        for options in task.values():
            if isinstance(options, dict) and "docker_host" in options:  # the other host of the example is the lab's engine, by TLS
                options.update(docker_host=own_docker.tls_host, **own_docker.tls)
    documented_answers(module, tasks, controller)


@pytest.mark.parametrize("module", [lxc_info, lxc_power, lxc_resources, lxc_snapshot], ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_example_for_containers_of_proxmox_runs(module: t.Any, pve: Proxmox, pve_controller: Controller) -> None:
    documented_answers(module, copy.deepcopy(yaml.safe_load(module.EXAMPLES)), pve_controller)


LEDGER = [ledger_prune, ledger_verify, remediation_gate, remediation_info, remediation_pause, remediation_record]


@pytest.mark.parametrize("module", LEDGER, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_example_for_the_ledger_runs(module: t.Any, tmp_path: Path) -> None:
    documented_answers(module, copy.deepcopy(yaml.safe_load(module.EXAMPLES)), Controller(tmp_path))


@pytest.mark.parametrize("module", [pg_activity_info, pg_bloat_info, pg_terminate, pg_vacuum], ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_example_for_postgresql_runs(module: t.Any, debian_postgres: Postgres, tmp_path: Path) -> None:
    pg = prepared(debian_postgres)
    pg.role("healer", grants=["pg_monitor", "pg_signal_backend", "app"])
    pg.sql("CREATE EXTENSION pgstattuple", database="prod")
    bloat(pg)
    tasks = copy.deepcopy(yaml.safe_load(module.EXAMPLES))
    for task in tasks:
        for options in task.values():
            for name in pg.options() | pg.socket_options() if isinstance(options, dict) else ():
                options.pop(name, None)  # the example's server is the lab's
    with Pool(pg, 3, "idle in transaction"):
        documented_answers(module, tasks, Controller(tmp_path, postgresql=pg.options()))


def test_a_failure_on_proxmox_returns_what_is_documented(pve: Proxmox, pve_controller: Controller) -> None:
    tasks = [{"homelab.healer.lxc_resources": {"vmid": [200, 201], "memory": "+100m"}}]
    pve.fault("PUT", "/lxc/201/config", "error", status=500, reason="it is broken")
    (answer,) = pve_controller.play(tasks).answers("homelab.healer.lxc_resources")
    assert "cannot change 201 (web): HTTP 500: it is broken" in answer["msg"]
    assert {"changed", "before", "undo", "steps", "error"} <= set(answer)
    assert answer["changed"]
    matches(yaml.safe_load(lxc_resources.RETURN), own(answer))


def test_a_failure_returns_what_is_documented(own_docker: OwnEngine, controller: Controller) -> None:
    own_docker.run("app")
    tasks = [{"homelab.healer.docker_limits": {"containers": ["app", "nope"], "cpus": 1}}]
    (answer,) = controller.play(tasks).answers("homelab.healer.docker_limits")
    assert answer["msg"].startswith("cannot find container nope: ")
    assert {"changed", "before", "undo", "steps", "error"} <= set(answer)
    matches(yaml.safe_load(docker_limits.RETURN), own(answer))


MODULES = sorted(path.stem for path in (COLLECTION / "plugins/modules").glob("*.py"))


def test_ansible_doc_renders_it(tmp_path: Path) -> None:
    run = Controller(tmp_path).doc(*(f"homelab.healer.{name}" for name in MODULES))
    assert run.returncode == 0, run.output
    for heading in ("OPTIONS", "ATTRIBUTES", "NOTES", "EXAMPLES", "RETURN VALUES"):
        assert run.output.count(heading) >= len(MODULES) - 1
