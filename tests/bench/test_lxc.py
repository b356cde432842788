"""What a hundred LXC containers cost, beside the peer's module in a loop over the same ones, in one run."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
import typing as t
from pathlib import Path

import pytest
from proxmoxer import ProxmoxAPI

from ansible_collections.homelab.healer.plugins.modules import lxc_resources
from tests.lab import peers
from tests.lab.modules import Caller
from tests.lab.playbooks import Controller
from tests.lab.proxmox import fixtures
from tests.lab.proxmox.client import Entry, Proxmox, proxmox

FIRST = 1000
COUNT = 100
ROUNDS = 5
FASTER = 15
EACH = 4  # requests for a container, at most
OURS, PEER = "homelab.healer.lxc_resources", "community.proxmox.proxmox"
VMIDS = list(range(FIRST, FIRST + COUNT))


def place(vmid: int) -> dict[str, t.Any]:
    """The node and the name of a container."""
    return {"node": f"pve{1 + vmid % 2}", "hostname": f"ct{vmid}"}


def hundred() -> dict[str, t.Any]:
    """A hundred small containers on two nodes that have room for them."""
    document = fixtures.homelab()
    document["nodes"] = {name: {"memory": 131072, "cpus": 16, "used": 1400} for name in ("pve1", "pve2")}
    document["guests"] = {
        str(vmid): {
            "node": place(vmid)["node"],
            "status": "running",
            "config": {"hostname": place(vmid)["hostname"], "memory": 512, "swap": 0, "rootfs": f"local-zfs:subvol-{vmid}-disk-0,size=4G"},
            "workload": {"memory": 64},
        }
        for vmid in VMIDS
    }
    return document


@pytest.fixture(scope="module")
def server() -> t.Iterator[Proxmox]:
    with proxmox(hundred()) as started:
        yield started


@pytest.fixture
def pve(server: Proxmox) -> Proxmox:
    server.reset()
    return server


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a way to change containers asked of the server."""

    requests: int
    logins: int
    connections: int
    at_once: int
    """The most requests that were under way at the same time."""

    @classmethod
    def of(cls, seen: t.Sequence[Entry]) -> Cost:
        edges = sorted([(entry["began"], 1) for entry in seen] + [(entry["ended"], -1) for entry in seen])
        under_way = most = 0
        for _moment, step in edges:
            under_way += step
            most = max(most, under_way)
        return cls(len(seen), sum(entry["login"] for entry in seen), len({entry["connection"] for entry in seen}), most)


def memory(pve: Proxmox) -> set[str]:
    """The sizes that the containers have, by their configuration."""
    return {guest["config"]["memory"] for guest in pve.state()["guests"].values()}


def with_password(pve: Proxmox, user: str) -> dict[str, t.Any]:
    """The connection options of a user, who has to log in."""
    options = {name: pve.options[name] for name in ("api_host", "api_port", "ca_path")}
    return {**options, "api_user": user, "api_password": pve.passwords[user]}


@pytest.mark.parametrize("secret", ["token", "password"])
def test_requests_grow_by_at_most_four_for_a_container(pve: Proxmox, secret: str) -> None:
    options = pve.options_for("healer@pve!healer") if secret == "token" else with_password(pve, "healer@pve")
    resources = Caller(lxc_resources, options)
    costs = {}
    for number, count in enumerate((25, 50, 100)):
        pve.clear()
        answer = resources(vmid=VMIDS[:count], memory=600 + number)
        assert [result["id"] for result in answer["results"] if result["changed"] and result["verified"]] == VMIDS[:count]
        costs[count] = Cost.of(pve.requests())
    assert memory(pve) == {"602"}
    print(*(f"\n{count} containers with a {secret}: {cost}" for count, cost in costs.items()))
    assert costs[50].requests - costs[25].requests <= EACH * 25
    assert costs[100].requests - costs[50].requests <= EACH * 50
    assert all(cost.logins == (secret == "password") for cost in costs.values())


def test_several_requests_are_under_way_at_once(pve: Proxmox) -> None:
    """Seen on a server that takes its time, so that it does not hang on how quickly this machine answers."""
    resources = Caller(lxc_resources, pve.options_for("healer@pve!healer"))
    pve.fault("*", r"/lxc/\d+/", "delay", times=-1, seconds=0.05)
    resources(vmid=VMIDS[:24], memory=600)
    costs = {method: Cost.of([entry for entry in pve.requests() if entry["method"] == method]) for method in ("GET", "PUT")}
    print("".join(f"\n24 containers, {method} on a slow server: {cost.at_once} at once" for method, cost in costs.items()))
    assert all(cost.at_once >= 2 for cost in costs.values())


def raw(pve: Proxmox, wanted: int) -> None:
    """The least that a client can do: read each configuration and write it, one after the other."""
    options = pve.options
    names = dict(user=options["api_user"], token_name=options["api_token_id"], token_value=options["api_token_secret"])
    api: t.Any = ProxmoxAPI(options["api_host"], port=options["api_port"], verify_ssl=options["ca_path"], **names)
    for vmid in VMIDS:
        config = api.nodes(place(vmid)["node"]).lxc(vmid).config
        config.put(memory=wanted, digest=config.get()["digest"])


def processor_time() -> float:
    """What this process and those that it started and that ended have used; other people's work on the machine is not in it."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


class Table:
    """What each way took, and what it asked of the server; every run is seen to have changed all containers."""

    def __init__(self, pve: Proxmox) -> None:
        self._pve = pve
        self._wanted = 600
        self.seconds: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}
        self.costs: dict[str, Cost] = {}

    def run(self, name: str, change: t.Callable[[int], None]) -> None:
        self._wanted += 1
        self._pve.clear()
        used, began = processor_time(), time.monotonic()
        change(self._wanted)
        self.seconds.setdefault(name, []).append(time.monotonic() - began)
        self.processor.setdefault(name, []).append(processor_time() - used)
        self.costs[name] = Cost.of(self._pve.requests())
        assert memory(self._pve) == {str(self._wanted)}

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> str:
        busy = statistics.median(self.processor[slow]) / statistics.median(self.processor[fast])
        rounds = ", ".join(f"{seconds:.2f}" for seconds in self.seconds[fast])
        load = os.getloadavg()[0]
        return f"{self.median(slow) / self.median(fast):.1f} times faster ({busy:.1f} by processor time; rounds of {rounds} s; load at the end {load:.1f})"

    def __str__(self) -> str:
        lines = [f"{'':52}{'seconds':>9}{'processor':>11}{'runs':>6}{'requests':>10}{'each':>6}{'log-ins':>9}{'connections':>13}{'at once':>9}"]
        for name, cost in self.costs.items():
            used = statistics.median(self.processor[name])
            figures = f"{self.median(name):>9.2f}{used:>11.2f}{len(self.seconds[name]):>6}{cost.requests:>10}{cost.requests / COUNT:>6.2f}"
            lines.append(f"{name:52}{figures}{cost.logins:>9}{cost.connections:>13}{cost.at_once:>9}")
        return "\n".join(lines)


def folder_in(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


@pytest.mark.usefixtures("patient")
def test_a_hundred_containers_are_set_faster_than_by_the_peer_in_a_loop(pve: Proxmox, tmp_path: Path) -> None:
    """Both as playbooks from the first second to the last, in turn, on the same server, with the same token."""
    ours, peer, theirs = Controller(folder_in(tmp_path, "ours")), Controller(folder_in(tmp_path, "peer")), peers.collections()

    def set_ours(options: dict[str, t.Any]) -> t.Callable[[int], None]:
        def change(wanted: int) -> None:
            run = ours.play([{OURS: {**options, "vmid": VMIDS, "memory": wanted}}])
            assert run.returncode == 0, run.output

        return change

    def set_theirs(wanted: int) -> None:
        # cmode because 2.0.0 sends one that the server refuses unless told another; the name because it demands one
        options = {"vmid": "{{ item.vmid }}", "node": "{{ item.node }}", "hostname": "{{ item.hostname }}", "memory": wanted, "cmode": "tty"}
        run = peer.play([{PEER: {**pve.options, **options}, "loop": [{"vmid": vmid, **place(vmid)} for vmid in VMIDS]}], collections=theirs)
        assert run.returncode == 0, run.output

    table = Table(pve)
    for number in range(ROUNDS):
        table.run(f"{OURS}, one task", set_ours(pve.options))
        if number == ROUNDS // 2:  # it takes so long that it is run once, in the middle
            table.run(f"{PEER}, in a loop", set_theirs)
    table.run(f"{OURS}, with a password", set_ours(with_password(pve, "root@pam")))
    table.run("for comparison, no playbook: proxmoxer, GET and PUT", lambda wanted: raw(pve, wanted))
    told = table.ratio(f"{PEER}, in a loop", f"{OURS}, one task")
    print(f"\nThe memory of {COUNT} containers changed, whole playbooks, in turn:\n{table}\n{told}")
    assert table.median(f"{PEER}, in a loop") >= FASTER * table.median(f"{OURS}, one task"), told
    for name in (f"{OURS}, one task", f"{OURS}, with a password"):
        assert table.costs[name].logins <= 1
        assert table.costs[name].at_once >= 2
