"""What the tests of the whole system share: the lab's engine, and runs of the collection's playbooks in it."""

from __future__ import annotations

import contextlib
import typing as t
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils import _proxmox
from tests.lab.browser import Browser, NoBrowser, browser
from tests.lab.engine import Engine, NoEngine, OwnEngine, docker_engine
from tests.lab.playbooks import Controller
from tests.lab.postgres import NoPostgres, Postgres, postgres, prepared
from tests.lab.proxmox.client import Proxmox, proxmox
from tests.lab.warm import warm_python

NO_ENGINE = "no Docker Engine can run here"
NO_DEBIAN = "no PostgreSQL of Debian can run here"
NO_EMBEDDED = "no PostgreSQL out of a wheel can run here"
NO_BROWSER = "no browser can run here"
NO_CONTAINERS = "no real Linux containers can run here"
NO_MONITORING = "no programs of Prometheus are here"
NO_RULEBOOK = "no rulebook can run here"
OTHER_CGROUP = "the machine has the other version of control groups"
WANTED = {
    NO_ENGINE: "Docker containers",
    NO_BROWSER: "the report in a browser",
    NO_DEBIAN: "Debian's PostgreSQL",
    NO_EMBEDDED: "the newer PostgreSQL",
    NO_CONTAINERS: "real Linux containers",
    NO_MONITORING: "alerts and exporters",
    NO_RULEBOOK: "rulebooks",
    OTHER_CGROUP: "real limits by the other version of control groups",
}
"""Why tests are skipped that others count on, and what they are tests of."""


def sample(values: t.Iterable[t.Any], *chosen: t.Any) -> list[t.Any]:
    """Values of a parameter, of which those that are not chosen are tried with ``--all`` only."""
    return [value if value in chosen else pytest.param(value, marks=pytest.mark.long) for value in values]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the long tests whole instead of a sample of them")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what measures, so that it can be run with the machine to itself, and keep together what shares something that takes long to make."""
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip("long: runs with --all"))
        if "engine" in getattr(item, "fixturenames", ()) or "bench" in item.path.parts:
            item.add_marker("alone")
        elif item.path.stem == "test_pg_bloat":
            item.add_marker(pytest.mark.xdist_group("bloat"))
        elif item.path.stem in {"test_lxc_real", "test_lxc_service", "test_loop", "test_pg_service"}:
            item.add_marker(pytest.mark.xdist_group("containers"))


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether the long tests are to run whole."""
    return bool(request.config.getoption("--all"))


@pytest.fixture(scope="session", autouse=True)
def _modules_start_at_once() -> t.Iterator[None]:
    with warm_python() as python, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Controller, "python", python)
        yield


@pytest.fixture(scope="session")
def engine() -> t.Iterator[Engine]:
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(docker_engine())
        except NoEngine as error:
            pytest.skip(f"{NO_ENGINE}: {' '.join(str(error).split())}")
        yield started


def pytest_terminal_summary(terminalreporter: t.Any) -> None:
    """Say in one line each what was not run for want of something: it has not passed."""
    for why, what in WANTED.items():
        skipped = [report for report in terminalreporter.stats.get("skipped", []) if why in str(report.longrepr)]
        if skipped:
            reason = str(skipped[0].longrepr[2]).removeprefix("Skipped: ")
            terminalreporter.write_line(f"NOT RUN: {len(skipped)} tests of {what}: {reason}", yellow=True, bold=True)


@pytest.fixture
def docker(engine: Engine) -> t.Iterator[Engine]:
    """The lab's engine, without containers before and after."""
    engine.remove_containers()
    yield engine
    engine.remove_containers()


@pytest.fixture
def own_docker(docker: Engine) -> OwnEngine:
    """The lab's own engine, for tests that do to it what nobody may do to the machine's."""
    if not isinstance(docker, OwnEngine):
        pytest.skip("needs a Docker Engine of its own: run the tests as root")
    return docker


@pytest.fixture
def controller(docker: Engine, tmp_path: Path) -> Controller:
    """``ansible-playbook`` with the lab as its inventory."""
    return Controller(tmp_path, docker.docker_host)


@pytest.fixture(autouse=True)
def _a_hundred_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's nodes wait for locks in simulated seconds, so nobody needs to wait for them in real ones."""
    monkeypatch.setattr(_proxmox, "TAKES_EFFECT", 1.0)


@pytest.fixture(scope="session")
def cluster() -> t.Iterator[Proxmox]:
    with proxmox() as started:
        yield started


@pytest.fixture
def pve(cluster: Proxmox) -> Proxmox:
    """The lab's cluster, as it was when it started."""
    cluster.reset()
    return cluster


@pytest.fixture
def pve_controller(pve: Proxmox, tmp_path: Path) -> Controller:
    """``ansible-playbook`` with the lab's cluster as its inventory, and the token that the documentation describes."""
    return Controller(tmp_path, proxmox=pve.options_for("healer@pve!healer"))


def _started(kind: str, why_not: str) -> t.Iterator[Postgres]:
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(postgres(kind))
        except NoPostgres as error:
            pytest.skip(f"{why_not}: {' '.join(str(error).split())}")
        yield started


@pytest.fixture(scope="session")
def debian_postgres() -> t.Iterator[Postgres]:
    yield from _started("debian", NO_DEBIAN)


@pytest.fixture(scope="session")
def embedded_postgres() -> t.Iterator[Postgres]:
    yield from _started("embedded", NO_EMBEDDED)


@pytest.fixture(params=["debian", "embedded"])
def pg(request: pytest.FixtureRequest) -> Postgres:
    """The lab's PostgreSQL of each kind, as it was when it started, with the database ``prod`` of ``app`` and a ``healer`` who may only connect."""
    return prepared(request.getfixturevalue(f"{request.param}_postgres"))


@pytest.fixture(scope="session")
def chromium() -> t.Iterator[Browser]:
    """A real browser."""
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(browser())
        except NoBrowser as error:
            pytest.skip(f"{NO_BROWSER}: {error}")
        yield started
