"""The stories that the collection heals, told for real: ``make demo``.

A runaway container on a Docker Engine; a database that runs out of memory on a simulated Proxmox VE, and a bloated table in a real PostgreSQL, which need
no root. ``make demo LAB=lxc`` tells the second one in real Linux containers instead.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from tests.lab import demo_docker, demo_lxc, demo_pg, demo_real
from tests.lab.engine import LabError, NoEngine, docker_engine
from tests.lab.postgres import NoPostgres, postgres
from tests.lab.proxmox.client import proxmox


def main() -> t.NoReturn:
    began = time.monotonic()
    missed: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="healer-demo-") as folder:
            if sys.argv[1:] == ["lxc"]:
                demo_real.tell(Path(folder))
            else:
                tell_of_a_runaway_container(_made(Path(folder) / "docker"), missed)
                tell_of_a_database(_made(Path(folder) / "lxc"))
                tell_of_a_bloated_table(_made(Path(folder) / "pg"), missed)
    except LabError as error:
        sys.exit(f"The demo could not be told: {error}")
    print(f"\nTold in {time.monotonic() - began:.0f} s; nothing of it is left running.")
    for what in missed:
        print(f"NOT RUN: {what}")
    sys.exit(0)


def tell_of_a_runaway_container(folder: Path, missed: list[str]) -> None:
    """Tell the story that needs a Docker Engine, or note that it was not told."""
    with contextlib.ExitStack() as stack:
        try:
            engine = stack.enter_context(docker_engine())
        except NoEngine as error:
            missed.append(f"the story of a runaway Docker container: {error}")
            return
        whose = "its own" if engine.owned else "the machine's"
        print(f"A runaway container, on {whose} Docker Engine {engine.api.version()['Version']} with {engine.api.info()['NCPU']} CPUs.")
        demo_docker.tell(engine, folder)


def tell_of_a_database(folder: Path) -> None:
    with proxmox(speed=20) as pve:
        print("\nA database that runs out of memory, on a simulated Proxmox VE 9.2 where twenty seconds pass in one.")
        demo_lxc.tell(pve, folder)


def tell_of_a_bloated_table(folder: Path, missed: list[str]) -> None:
    """Tell the story of PostgreSQL, or note that it was not told."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres("embedded"))
        except NoPostgres as error:
            missed.append(f"the story of a bloated table: {error}")
            return
        print(f"\nA bloated table, in a real PostgreSQL {server.version // 10000} of its own.")
        demo_pg.tell(server, folder)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
