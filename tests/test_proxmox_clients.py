"""Clients that others wrote work unmodified with the simulated Proxmox VE: proxmoxer, community.proxmox and prometheus-pve-exporter.

A simulator that only our own modules understood would prove nothing. Each client is started as its users start it, and what it says is compared with
the simulator's state as seen from behind.
"""

from __future__ import annotations

import typing as t
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from proxmoxer import ProxmoxAPI
from proxmoxer.core import AuthenticationError, ResourceException
from proxmoxer.tools import Tasks

from tests.lab import peers
from tests.lab.playbooks import Controller, Run
from tests.lab.proxmox.client import Proxmox, proxmox
from tests.lab.watch import BUNDLES, pve_exporter

MIB = 1 << 20
PEER = "community.proxmox.proxmox"
TEMPLATE = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"


@pytest.fixture(scope="module", params=["9.2", "8.4"])
def release(request: pytest.FixtureRequest) -> t.Iterator[Proxmox]:
    with proxmox(release=request.param) as started:
        yield started


@pytest.fixture
def server(release: Proxmox, monkeypatch: pytest.MonkeyPatch) -> Proxmox:
    """A server as it was when it started, and nothing in the environment that says whom requests should trust."""
    for name in BUNDLES:
        monkeypatch.delenv(name, raising=False)
    release.reset()
    return release


# proxmoxer


def with_token(server: Proxmox) -> t.Any:
    options = server.options_for("healer@pve!healer")
    names = dict(user=options["api_user"], token_name=options["api_token_id"], token_value=options["api_token_secret"])
    return ProxmoxAPI(options["api_host"], port=options["api_port"], verify_ssl=options["ca_path"], **names)


def with_password(server: Proxmox) -> t.Any:
    options = server.options
    return ProxmoxAPI(options["api_host"], port=options["api_port"], verify_ssl=options["ca_path"], user="healer@pve", password=server.passwords["healer@pve"])


@pytest.mark.parametrize("connect", [with_token, with_password])
def test_proxmoxer(server: Proxmox, connect: t.Callable[[Proxmox], t.Any]) -> None:
    pve = connect(server)
    assert {node["node"]: node["status"] for node in pve.nodes.get()} == {"pve1": "online", "pve2": "online"}
    container = pve.nodes("pve1").lxc(200)
    config = container.config.get()
    assert {key: str(value) for key, value in config.items() if key != "digest"} == server.guest(200)["config"]
    assert config["digest"] == server.guest(200)["digest"]

    container.config.put(memory=3072, digest=config["digest"])
    assert server.guest(200)["config"]["memory"] == "3072"
    with pytest.raises(ResourceException, match="detected modified configuration"):
        container.config.put(memory=4096, digest=config["digest"])
    with pytest.raises(ResourceException) as refused:
        container.config.put(memory=1)
    assert (refused.value.status_code, list(refused.value.errors)) == (400, ["memory"])

    upid = container.snapshot.post(snapname="before", description="by proxmoxer")
    ended = Tasks.blocking_status(pve, upid, timeout=20, polling_interval=0.05)
    assert ended is not None
    assert (ended["status"], ended["exitstatus"], ended["type"]) == ("stopped", "OK", "vzsnapshot")
    assert "TASK OK" in Tasks.decode_log(pve.nodes("pve1").tasks(upid).log.get())
    assert server.guest(200)["snapshots"]["before"]["memory"] == "3072"
    assert len(server.logins()) == (connect is with_password)


def test_proxmoxer_is_told_who_may_not_and_whom_not_to_trust(server: Proxmox) -> None:
    host = f"{server.options['api_host']}:{server.options['api_port']}"
    with pytest.raises(AuthenticationError, match="Couldn't authenticate user"):
        ProxmoxAPI(host, user="healer@pve", password="wrong", verify_ssl=server.options["ca_path"])
    with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        ProxmoxAPI(host, user="healer@pve", password="wrong", verify_ssl=True)


# community.proxmox


@pytest.fixture(scope="module")
def collections() -> Path:
    return peers.collections()


@pytest.fixture
def play(server: Proxmox, collections: Path, tmp_path: Path) -> t.Callable[[list[dict[str, t.Any]]], Run]:
    """Runs tasks with the peer alone on the path; it checks certificates with its own option ``ca_path``."""
    controller = Controller(tmp_path)
    controller.defaults = {f"group/{PEER}": {**server.options, "validate_certs": True}}
    return lambda tasks: controller.play(tasks, collections=collections)


Play = t.Callable[[list[dict[str, t.Any]]], Run]


def test_community_proxmox_looks_and_changes(server: Proxmox, play: Play) -> None:
    before = server.guest(200)["config"]
    postgres = {"vmid": 200, "node": "pve1", "hostname": "postgres"}
    run = play(
        [
            {f"{PEER}_vm_info": {}},
            {f"{PEER}_vm_info": {"vmid": 200, "config": "current"}},
            {PEER: {**postgres, "memory": 3072}, "ignore_errors": True},
            # 2.0.0 sends cmode=default unless told otherwise; it was right before, and is after
            {PEER: {**postgres, "memory": 3072, "cores": 3, "cmode": "tty"}},
            {PEER: {**postgres, "memory": 3072, "cores": 3, "cmode": "tty"}},
        ]
    )
    assert run.returncode == 0, run.output
    everything, one = (answer["proxmox_vms"] for answer in run.answers(f"{PEER}_vm_info"))
    known = server.state()["guests"]
    assert [
        (str(vm["vmid"]), vm["type"], vm["node"], vm["name"], vm["status"], vm["maxmem"], vm["template"])
        for vm in sorted(everything, key=lambda vm: int(vm["vmid"]))
    ] == [
        (
            vmid,
            guest["kind"],
            guest["node"],
            guest["name"],
            guest["status"],
            int((before if vmid == "200" else guest["config"])["memory"]) * MIB,
            guest["config"].get("template") == "1",
        )
        for vmid, guest in known.items()
    ]
    assert [vm["id"] for vm in one] == ["lxc/200"]
    assert {key: str(value) for key, value in one[0]["config"].items() if key != "digest"} == before

    refused, changed, again = run.answers(PEER)
    # word for word what a real 9.2.2 told somebody: github.com/ansible-collections/community.proxmox/issues/443
    words = "400 Bad Request: Parameter verification failed. - {'cmode': \"value 'default' does not have a value in the enumeration 'shell, console, tty'\"}"
    assert words in refused["msg"]
    assert (changed["changed"], changed["vmid"], again["changed"]) == (True, 200, False)
    after = server.guest(200)
    assert {**before, "memory": "3072", "cores": "3"} == after["config"]
    assert after["pending"] == {"cmode": "tty"}  # waits for a restart, as the console's mode does
    assert after["kernel"]["memory"] == 3072
    assert [write["status"] for write in server.writes()] == [400, 200]


@pytest.mark.parametrize("release", ["9.2"], indirect=True)
def test_community_proxmox_snapshots_starts_stops_creates_and_removes(server: Proxmox, play: Play) -> None:
    """One run for all: what must be seen in between is asked in between, by the peer itself."""
    snap, web = f"{PEER}_snap", {"vmid": 201}
    made = {"vmid": 210, "node": "pve1", "hostname": "made", "ostemplate": TEMPLATE, "disk": "local-zfs:4", "storage": "local-zfs", "memory": 256}
    run = play(
        [
            {snap: {**web, "snapname": "before", "description": "by the peer"}},
            {f"{snap}_info": web},
            {f"{snap}_info": {**web, "snapname": "before"}},
            {PEER: {**web, "node": "pve2", "hostname": "renamed", "cmode": "tty"}},
            {f"{PEER}_vm_info": {**web, "config": "current"}},
            {snap: {**web, "snapname": "before", "state": "rollback"}},
            {PEER: {**web, "state": "started"}},
            {PEER: {**web, "state": "restarted"}},
            {PEER: {**web, "state": "stopped"}},
            {PEER: {**web, "state": "stopped"}},
            {snap: {**web, "snapname": "before", "state": "absent"}},
            {PEER: made},
            {f"{PEER}_vm_info": {"vmid": 210, "config": "current"}},
            {PEER: {"vmid": 210, "state": "absent"}},
        ]
    )
    assert run.returncode == 0, run.output
    assert [answer["msg"] for answer in run.answers(snap)] == ["Snapshot before created", "Snapshot before rolled back", "Snapshot before removed"]
    assert [answer["msg"] for answer in run.answers(PEER)] == [
        "VM renamed (201) has been updated.",
        *(f"VM web (201) {what}." for what in ("started", "is restarted", "stopped")),
        "VM web (201) is already stopped.",
        f"Created VM made (210) from template {TEMPLATE}",
        "VM 210 removed.",
    ]
    listed, single = run.answers(f"{snap}_info")
    assert {entry["name"]: entry.get("description") for entry in listed["snapshots"]} == {"before": "by the peer\n", "current": "You are here!"}
    assert single["snapshot"]["name"] == "before"
    renamed, created = (answer["proxmox_vms"][0] for answer in run.answers(f"{PEER}_vm_info"))
    assert (renamed["config"]["hostname"], renamed["status"]) == ("renamed", "running")
    assert (created["config"]["memory"], created["config"]["unprivileged"], created["status"]) == (256, 1, "stopped")
    assert created["config"]["rootfs"] == "local-zfs:subvol-210-disk-0,size=4G"

    now = server.guest(201)
    assert (now["config"]["hostname"], now["status"], now["snapshots"], now["pending"]) == ("web", "stopped", {}, {})
    assert "210" not in server.state()["guests"]
    kinds = ["vzsnapshot", "vzrollback", "vzstart", "vzshutdown", "vzstart", "vzshutdown", "vzdelsnapshot", "vzcreate", "vzdestroy"]
    assert [(task["type"], task["exitstatus"]) for task in server.tasks()] == [(kind, "OK") for kind in kinds]


# prometheus-pve-exporter


Samples = dict[str, dict[str, tuple[float, dict[str, str]]]]


def scrape(address: str, server: Proxmox) -> Samples:
    """What Prometheus would read: by metric and id, the value and all labels."""
    target = f"{server.options['api_host']}:{server.options['api_port']}"
    query = urlencode({"target": target, "cluster": 1, "node": 1})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}/pve?{query}", timeout=30) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[sample.labels.get("id", "")] = (sample.value, sample.labels)
    return found


def values(samples: Samples, name: str) -> dict[str, float]:
    return {key: value for key, (value, _labels) in samples[name].items()}


@pytest.mark.parametrize("secret", ["token", "password"])
def test_prometheus_pve_exporter(server: Proxmox, tmp_path: Path, secret: str) -> None:
    options = server.options
    token = {"token_name": options["api_token_id"], "token_value": options["api_token_secret"]}
    config = {"user": "root@pam", "verify_ssl": True, **(token if secret == "token" else {"password": server.passwords["root@pam"]})}
    with pve_exporter(tmp_path, config, options["ca_path"]) as address:
        first = scrape(address, server)
        state = server.state()
        guests = {f"{guest['kind']}/{vmid}": guest for vmid, guest in state["guests"].items()}
        up = values(first, "pve_up")
        assert {key: up[key] for key in guests} == {key: float(guest["status"] == "running") for key, guest in guests.items()}
        assert [up[key] for key in ("node/pve1", "node/pve2", "cluster/homelab", "storage/pve1/local-zfs")] == [1.0] * 4
        sizes, used = values(first, "pve_memory_size_bytes"), values(first, "pve_memory_usage_bytes")
        assert {key: sizes[key] for key in guests} == {key: int(guest["config"]["memory"]) * MIB for key, guest in guests.items()}
        assert {key: used[key] for key in guests} == {key: guest["usage"]["memory"] for key, guest in guests.items()}
        assert {key: sizes[f"node/{key}"] for key in state["nodes"]} == {key: node["memory"] * MIB for key, node in state["nodes"].items()}
        assert first["pve_guest_info"]["lxc/200"] == (
            1.0,
            {"id": "lxc/200", "node": "pve1", "name": "postgres", "type": "lxc", "template": "0", "tags": "database"},
        )
        assert first["pve_version_info"][""][1]["release"] == state["release"]

        server.set_guest(200, memory=3072, hostname="renamed")
        server.set_guest(201, status="stopped")
        server.advance(30)  # the cluster's view lags
        second = scrape(address, server)
        assert values(second, "pve_up")["lxc/201"] == 0
        assert values(second, "pve_memory_size_bytes")["lxc/200"] == 3072 * MIB
        assert second["pve_guest_info"]["lxc/200"][1]["name"] == "renamed"
    assert server.writes() == []
    assert len(server.logins()) == (2 if secret == "password" else 0)
