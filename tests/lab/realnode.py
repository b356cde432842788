"""The node of the stories in real containers: a database, and a web server of which only the operating system matters."""

from __future__ import annotations

import typing as t

from tests.lab.cgroups import version
from tests.lab.containers import Containers
from tests.lab.proxmox.client import Proxmox, proxmox
from tests.lab.proxmox.fixtures import node_of_containers

TOKEN = "healer@pve!healer"
DATABASE, WEB = 200, 201
SMALL, LARGE = 768, 1536
"""MiB of the database: so little that it is short of it, and so much that it is not."""
SWAP = 256 if version() == 1 else 0
"""MiB. Version 1 counts how often a limit is reached only if it is not the same as that of memory and swap together."""
GUESTS: dict[int, dict[str, t.Any]] = {
    DATABASE: {"hostname": "postgres", "memory": SMALL, "swap": SWAP, "cores": 1, "tags": "database"},
    WEB: {"hostname": "web", "memory": 256, "swap": 64, "tags": "web"},
}
SPEED = 20
"""Simulated seconds per real one: pvestatd makes two rounds a second."""


def boot(lab: Containers) -> None:
    """Create them, and wait until both have booted."""
    for vmid, config in GUESTS.items():
        limits = {name: value for name, value in config.items() if name in {"memory", "swap", "cores"}}
        lab.create(vmid, image="postgres" if vmid == DATABASE else "debian", hostname=config["hostname"], **limits).start(lab.wanted(vmid))
    for vmid in GUESTS:
        lab[vmid].wait()


def serve(lab: Containers) -> t.ContextManager[Proxmox]:
    """A simulated Proxmox VE whose guests they are."""
    return proxmox(node_of_containers(GUESTS), containers=lab.folder, cgroup=lab.version, speed=SPEED)
