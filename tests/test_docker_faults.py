"""What can go wrong between the modules and a real engine, and what they say and leave behind then."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._docker import REFUSALS
from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.modules import docker_limits, docker_usage_info
from tests.conftest import sample
from tests.lab.engine import BURN, Engine, OwnEngine
from tests.lab.modules import call, read
from tests.lab.playbooks import Controller
from tests.lab.wire import Wire, said, wire

NAMES = [f"app{number:02}" for number in range(20)]


@pytest.fixture
def line(own_docker: OwnEngine) -> t.Iterator[Wire]:
    with wire(own_docker.folder, own_docker.docker_host) as opened:
        yield opened


def test_twenty_containers_by_one_connection(own_docker: OwnEngine, line: Wire) -> None:
    for name in NAMES:
        own_docker.run(name)
    began = time.time()
    answer, error = call(docker_limits, docker_host=line.docker_host, containers=NAMES, cpus="0.5", memory="64m")
    assert error is None
    assert line.connections == 1
    assert line.writes == 20
    assert [result["name"] for result in answer["results"]] == NAMES
    assert all(result["verified"] == {"cpus": "cgroup", "memory": "cgroup", "memory_swap": "cgroup"} for result in answer["results"])
    assert own_docker.events(began) == ["update"] * 20


def test_the_engine_killed_in_the_middle_of_a_bulk_change(own_docker: OwnEngine, line: Wire) -> None:
    ids = {name: own_docker.run(name) for name in NAMES[:10]}

    def die_at_the_fifth(number: int) -> None:
        if number == 5:
            line.close()
            own_docker.kill()

    line.before_write = die_at_the_fifth
    answer, error = call(docker_limits, docker_host=line.docker_host, containers=NAMES[:10], cpus="0.5")
    own_docker.start()
    assert error is not None
    assert error.code == "unreachable"
    assert str(error).endswith("Changed: app00, app01, app02, app03. Perhaps changed: app04. Not changed: app05, app06, app07, app08, app09.")
    assert answer["changed"]
    assert {options["containers"][0] for options in answer["undo"]} == {ids[name] for name in NAMES[:5]}
    assert len(answer["steps"]) == 4
    quotas = [own_docker.host_config(name)["CpuQuota"] for name in NAMES[:10]]
    assert quotas[:4] == [50_000] * 4
    assert quotas[5:] == [0] * 5
    for options in answer["undo"]:
        _answer, error = call(docker_limits, docker_host=own_docker.docker_host, **options)
        assert error is None
    assert all(own_docker.host_config(name)["CpuQuota"] in (0, -1) for name in NAMES[:10])


@pytest.mark.parametrize("seed", sample(range(4), 3))
def test_killed_at_any_moment_nothing_is_claimed_that_is_not_so(own_docker: OwnEngine, seed: int) -> None:
    for name in NAMES:
        own_docker.run(name)
    chance = random.Random(seed)
    killer = threading.Timer(chance.uniform(0.02, 0.4), own_docker.kill)
    killer.start()
    answer, _error = call(docker_limits, docker_host=own_docker.docker_host, containers=NAMES, cpus="0.5", parallel=chance.choice([1, 4]))
    killer.join()
    own_docker.start()
    for result in answer["results"]:
        quota = own_docker.host_config(result["name"])["CpuQuota"]
        if not result["unknown"]:
            assert quota == (50_000 if result["changed"] else 0), result
        assert bool(result["undo"]) == result["changed"]


def test_a_lost_reply_is_neither_a_failure_nor_a_success_before_somebody_looked(own_docker: OwnEngine, line: Wire) -> None:
    own_docker.run("app")
    line.before_write = lambda number: "cut" if number == 1 else None
    answer, error = call(docker_limits, docker_host=line.docker_host, containers=["app"], cpus="0.5")
    assert error is None
    assert answer["results"][0]["notes"] == ["the reply to the change was lost; it was looked at again, and it holds"]
    assert answer["results"][0]["verified"] == {"cpus": "cgroup"}
    assert own_docker.host_config("app")["CpuQuota"] == 50_000


def test_a_proxy_that_forbids_writes_is_told_apart(own_docker: OwnEngine, line: Wire) -> None:
    own_docker.run("app")
    line.answer_writes = said(403, "Forbidden")
    answer, error = call(docker_limits, docker_host=line.docker_host, containers=["app"], cpus="0.5")
    assert error is not None
    assert (error.code, answer["changed"]) == ("denied", False)
    assert "POST /containers/*/update" in error.fix


@pytest.mark.parametrize(("status", "phrase", "failure"), [row[:3] for row in REFUSALS], ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_refusal_is_told_as_what_it_means(own_docker: OwnEngine, line: Wire, status: int, phrase: str, failure: type[HealerError]) -> None:
    own_docker.run("app")
    line.answer_writes = said(status, f"it says {phrase} here")
    answer, error = call(docker_limits, docker_host=line.docker_host, containers=["app"], cpus="0.5")
    assert type(error) is failure
    assert f"it says {phrase} here" in error.why
    assert (answer["changed"], own_docker.host_config("app")["CpuQuota"]) == (False, 0)


def test_without_the_sdk_it_says_what_to_install(docker: Engine, controller: Controller, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(inventory.read_text().replace(controller.python, str(tmp_path / "bare/bin/python")))
    for module, options in (("docker_limits", {"container": "app", "cpus": 1}), ("docker_usage_info", {})):
        (answer,) = controller.play([{f"homelab.healer.{module}": options}]).answers(f"homelab.healer.{module}")
        assert answer["error"]["code"] == "missing_library"
        assert "pip install docker" in answer["msg"]


def test_a_proxy_that_loses_patience_leaves_it_open_and_it_is_looked_into(own_docker: OwnEngine, line: Wire) -> None:
    own_docker.run("app")
    line.answer_writes = said(504, "Gateway Timeout")
    answer, error = call(docker_limits, docker_host=line.docker_host, containers=["app"], cpus="0.5")
    assert error is not None
    assert (error.code, answer["changed"], answer["results"][0]["unknown"]) == ("task_failed", False, False)


def test_an_engine_that_hangs_is_not_waited_for_without_end(own_docker: OwnEngine, line: Wire) -> None:
    own_docker.run("app")
    line.before_write = lambda number: "late" if number == 1 else None
    began = time.monotonic()
    answer, error = call(docker_limits, docker_host=line.docker_host, containers=["app"], cpus="0.5", timeout=1)
    assert time.monotonic() - began < 5
    assert error is None
    assert answer["results"][0]["notes"] == ["the reply to the change was lost; it was looked at again, and it holds"]


def test_a_socket_without_the_right_to_it(own_docker: OwnEngine) -> None:
    os.chmod(own_docker.folder, 0o755)
    os.seteuid(65534)
    try:
        _answer, error = call(docker_limits, docker_host=own_docker.docker_host, containers=["app"], cpus="0.5")
    finally:
        os.seteuid(0)
    assert error is not None
    assert error.code == "denied"
    assert "group that owns the socket" in error.fix


def test_an_engine_whose_disk_is_full(own_docker: OwnEngine) -> None:
    folder = Path(tempfile.mkdtemp(prefix="healer-lab-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)], check=True)
    cramped = OwnEngine(folder)
    try:
        cramped.build_image()
        cramped.run("app")
        with contextlib.suppress(OSError), (folder / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(1 << 16))
        answer, error = call(docker_limits, docker_host=cramped.docker_host, containers=["app"], cpus="0.5")
        assert error is not None
        assert (error.code, answer["changed"], answer["undo"]) == ("task_failed", False, [])
        assert "no space left on device" in error.why
        (folder / "filler").unlink()
        answer, error = call(docker_limits, docker_host=cramped.docker_host, containers=["app"], cpus="0.5")
        assert (error, answer["results"][0]["verified"]) == (None, {"cpus": "cgroup"})
    finally:
        cramped.stop()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@pytest.mark.parametrize("options", [{"docker_host": "tcp://host:99999"}, {"docker_host": "tcp://a:b"}, {"docker_host": "tcp://[::1"}, {"timeout": 0}])
def test_what_cannot_be_an_address_or_a_timeout(options: dict[str, t.Any]) -> None:
    _answer, error = call(docker_limits, containers=["app"], cpus="0.5", **options)
    assert error is not None
    assert (error.code, error.retryable) == ("invalid", False)


@pytest.mark.parametrize("address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1"])
def test_an_engine_that_is_not_there(address: str) -> None:
    _answer, error = call(docker_limits, docker_host=address, containers=["app"], cpus="0.5")
    assert error is not None
    assert (error.code, error.retryable) == ("unreachable", True)
    assert str(error).startswith(f"cannot connect to the Docker Engine at {address}: ")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_tls_is_verified_unless_told_otherwise(own_docker: OwnEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    own_docker.run("app")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    where, tls = own_docker.tls_host, own_docker.tls
    assert read(docker_usage_info, docker_host=where, containers=["app"], **tls)["containers"][0]["name"] == "app"
    for options, words in (
        ({}, "certificate verify failed"),
        ({**tls, "ca_path": None}, "certificate verify failed"),
        ({"ca_path": tls["ca_path"]}, "certificate"),
        ({"tls": False}, "HTTP request to an HTTPS server"),
    ):
        with pytest.raises(HealerError, match=words) as caught:
            read(docker_usage_info, docker_host=where, containers=["app"], **options)
        assert caught.value.code == "unreachable"
    with pytest.raises(HealerError, match="certificate"):
        read(docker_usage_info, docker_host=where.replace("127.0.0.1", "localhost"), containers=["app"], **tls)
    assert read(docker_usage_info, docker_host=where, containers=["app"], **{**tls, "ca_path": None}, validate_certs=False)["containers"]
    with pytest.raises(HealerError, match="client_cert and client_key belong together"):
        read(docker_usage_info, docker_host=where, containers=["app"], client_cert=tls["client_cert"])
    monkeypatch.setenv("DOCKER_CERT_PATH", str(own_docker.folder))
    for name in ("cert.pem", "key.pem"):
        (own_docker.folder / name).write_bytes(Path(tls["client_cert" if name == "cert.pem" else "client_key"]).read_bytes())
    assert read(docker_usage_info, docker_host=where, containers=["app"])["containers"]


def test_where_the_control_group_is_out_of_sight(own_docker: OwnEngine, controller: Controller) -> None:
    """In a process namespace of its own the module is as far from the kernel's files as on another host."""
    own_docker.run("burner", BURN, Memory=64 << 20, MemorySwap=64 << 20)
    own_docker.run("idle", Memory=64 << 20, MemorySwap=64 << 20)
    task = {"homelab.healer.docker_limits": {"containers": ["burner", "idle"], "cpus": 0.3, "memory": "32m", "memory_swap": "32m", "pids_limit": 50}}
    run = controller.play([task], wrap=("unshare", "--pid", "--fork", "--mount-proc"))
    assert run.returncode == 0, run.output
    (answer,) = run.answers("homelab.healer.docker_limits")
    burner, idle = (result["verified"] for result in answer["results"])
    swap = "stats" if own_docker.api.info()["CgroupVersion"] == "1" else "accepted"
    assert burner == {"cpus": "rate", "memory": "stats", "memory_swap": swap, "pids_limit": "stats"}
    assert idle == {**burner, "cpus": "accepted"}
    again = controller.play([task], wrap=("unshare", "--pid", "--fork", "--mount-proc"))
    assert again.answers("homelab.healer.docker_limits")[0]["changed"] is False
    usage = [{"homelab.healer.docker_usage_info": {"sample": 1}}]
    (facts,) = controller.play(usage, wrap=("unshare", "--pid", "--fork", "--mount-proc")).answers("homelab.healer.docker_usage_info")
    assert facts["containers"][0]["name"] == "burner"
    assert 0.2 < facts["containers"][0]["cpu_rate"] < 0.4
    assert facts["containers"][0]["witness"] == "stats"


def test_two_at_once_end_as_one_of_them_asked(docker: Engine) -> None:
    docker.run("app")
    answers: list[tuple[dict[str, t.Any], HealerError | None]] = []
    runs = [
        threading.Thread(target=lambda cpus=cpus: answers.append(call(docker_limits, docker_host=docker.docker_host, containers=["app"], cpus=cpus)))
        for cpus in ("0.5", "0.7")
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert docker.host_config("app")["CpuQuota"] in (50_000, 70_000)
    assert all(error is None or error.code == "not_converged" for _answer, error in answers)
