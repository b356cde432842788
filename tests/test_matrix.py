"""Whatever ends a run, ``homelab.healer.recover`` brings its remediation to an end. Here a sample of the matrix; ``make matrix`` runs all of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import typing as t
from pathlib import Path

import pytest

from tests.lab.engine import Engine
from tests.lab.matrix import CHANGE, REMEDIES, Bench, Cell, Cluster, cells, head_of, patient, recover, run_cell
from tests.lab.playbooks import Controller
from tests.lab.stepped import Breakpoint, Stepped, until_nothing_is_left

SAMPLE = (
    "heal_docker_runaway / change / killed as it writes",
    "docker_limits / put back / lost",
    "heal_lxc_memory / make the snapshot / killed as it begins",
    "heal_lxc_memory / remove the snapshot / unreachable",
    "heal_lxc_cpu / put back / killed before",
    "lxc_resources / record / ledger gone",
    "restart_lxc / change / stuck, killed",
    "snapshot / change / lost",
    "rollback / change / killed before",
    "heal_pg_bloat / change / stuck",
    "heal_pg_blocker / verify / unreachable",
    "clear_connections / change / killed as it writes",
)
"""The cells that are always run: each kind of fault, and each remedy but two."""
ALL = {str(cell): cell for cell in cells()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What needs an engine has the machine to itself, so it is a test of its own."""
    if "cell" in metafunc.fixturenames:
        names = list(ALL) if metafunc.config.getoption("--all") else SAMPLE
        docker = metafunc.function is test_a_cell_with_containers_of_docker
        chosen = [ALL[name] for name in names if (ALL[name].remedy.site == "docker") == docker]
        metafunc.parametrize("cell", chosen, ids=[str(cell) for cell in chosen])


@pytest.fixture(scope="module")
def place() -> t.Iterator[Path]:
    """A short path, as a socket's may have no more than 107 characters."""
    with tempfile.TemporaryDirectory(prefix="hm-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def bench(place: Path) -> t.Iterator[Bench]:
    made = Bench(place / "own")
    yield made
    made.close()


@pytest.fixture(scope="module")
def docker_bench(place: Path, engine: Engine) -> t.Iterator[Bench]:
    made = Bench(place / "docker", lambda: engine)
    yield made
    made.close()


def check(bench: Bench, cell: Cell) -> None:
    told = run_cell(bench, cell, twice=cell.fault == "killed as it writes")
    assert not told.wrong, f"{told.end}: {told.why}\n{told.output}"


def test_a_cell(bench: Bench, cell: Cell) -> None:
    check(bench, cell)


def test_a_cell_with_containers_of_docker(docker_bench: Bench, cell: Cell) -> None:
    check(docker_bench, cell)


# who may recover what


REMEDY = REMEDIES["restart_lxc"]


class Begun(t.NamedTuple):
    """A restart of a container that has come to its change."""

    run: Stepped
    controller: Controller
    site: Cluster
    before: dict[str, t.Any]


@pytest.fixture
def begun(bench: Bench) -> t.Iterator[Begun]:
    site = bench.site(REMEDY.site)
    assert isinstance(site, Cluster)
    site.begin(REMEDY)
    controller = bench.controller(site)
    with Stepped(controller, patient(controller, REMEDY.playbook), [Breakpoint(CHANGE)], **REMEDY.variables) as run:
        run.until_it_stops()
        yield Begun(run, controller, site, site.state())
    until_nothing_is_left(controller.folder)


def test_what_a_run_still_has_is_left_to_it(begun: Begun) -> None:
    head = head_of(begun.controller)
    told = " ".join(recover(begun.controller).split())
    assert "is left alone: the run that has it may still be at it" in told
    assert (head_of(begun.controller), begun.site.state()) == (head, begun.before), told
    begun.run.go_on()
    assert begun.run.until_it_ends() == 0
    assert begun.site.state()["starts"] == begun.before["starts"] + 1


def test_in_check_mode_nothing_is_recovered(begun: Begun) -> None:
    begun.run.kill()
    head = head_of(begun.controller)
    told = recover(begun.controller, "--check")
    assert (head_of(begun.controller), begun.site.state()) == (head, begun.before), told
    assert "applying" in told


def test_of_two_that_recover_at_once_one_does(begun: Begun) -> None:
    begun.run.kill()
    command = begun.controller.command(patient(begun.controller, "recover"))
    options: dict[str, t.Any] = dict(cwd=begun.controller.folder, env=begun.controller.environment(), stdout=subprocess.PIPE, text=True)
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(told)
    assert sum("ROLLED_BACK: " in words for words in told) == 1, told
    assert begun.site.state() == begun.before


def test_a_killed_run_that_was_about_to_start_a_module_is_still_at_it(begun: Begun) -> None:
    """Its own process is all that there is of the module then, and goes on when the machine gets to it."""
    begun.run.go_on()
    (worker,) = _children(begun.run.pid)
    os.kill(worker, signal.SIGSTOP)
    begun.run.kill()
    told = " ".join(recover(begun.controller).split())
    assert "is left alone: the run that has it may still be at it" in told
    os.kill(worker, signal.SIGCONT)
    until_nothing_is_left(begun.controller.folder)
    told = recover(begun.controller)
    assert "HEALED: " in told
    assert begun.site.state()["starts"] == begun.before["starts"] + 1


def _children(pid: int) -> list[int]:
    """The processes that a process has forked, as soon as there is one."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
        if found:
            return found
        time.sleep(0.001)
    raise AssertionError("it starts nothing")
