"""What the tests of the whole system share: the lab's engine, and runs of the collection's playbooks in it."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from tests.lab.engine import Engine, OwnEngine, docker_engine
from tests.lab.playbooks import Controller


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the long tests whole instead of a sample of them")


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether the long tests are to run whole."""
    return bool(request.config.getoption("--all"))


@pytest.fixture(scope="session")
def engine() -> t.Iterator[Engine]:
    with docker_engine() as started:
        yield started


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
