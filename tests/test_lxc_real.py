"""Real Linux containers: what Proxmox VE's simulator is told to do reaches the kernel and the disk, and PostgreSQL in them survives it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.modules import lxc_info, lxc_power, lxc_resources, lxc_snapshot
from tests.conftest import NO_CONTAINERS, OTHER_CGROUP
from tests.lab.cgroups import MIB, Groups, Limits
from tests.lab.containers import Containers, NoContainers, containers
from tests.lab.modules import Caller, read
from tests.lab.playbooks import Controller, Run
from tests.lab.proxmox.client import ROOT, Proxmox
from tests.lab.realnode import DATABASE, GUESTS, LARGE, SMALL, SWAP, TOKEN, WEB, boot, serve
from tests.lab.squeeze import Squeezed

LOOKS: dict[str, t.Any] = {"lxc_memory_sample": 1, "lxc_memory_pause": 0, "lxc_memory_looks": 3, "lxc_memory_needed": 2, "lxc_memory_level": 60}


@pytest.fixture(scope="module")
def lab() -> t.Iterator[Containers]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(containers())
        except NoContainers as error:
            pytest.skip(f"{NO_CONTAINERS}: {' '.join(str(error).split())}")
        boot(made)
        yield made


@pytest.fixture(scope="module")
def cluster_of_real(lab: Containers) -> t.Iterator[Proxmox]:
    with serve(lab) as started:
        yield started


@pytest.fixture
def real(cluster_of_real: Proxmox, lab: Containers) -> Proxmox:
    """Proxmox VE with them as its guests, which run with the limits they began with and have no snapshots."""
    cluster_of_real.reset()
    for vmid in GUESTS:
        for name in lab[vmid].snapshots():
            lab.delete_snapshot(vmid, name)
    return cluster_of_real


@pytest.fixture
def real_controller(real: Proxmox, tmp_path: Path) -> Controller:
    return Controller(tmp_path, proxmox=real.options_for(TOKEN))


@pytest.fixture(scope="module")
def database(lab: Containers, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Squeezed]:
    made = Squeezed(lab[DATABASE], tmp_path_factory.mktemp("squeezed"))
    made.fill()
    yield made
    made.end()


@pytest.fixture
def squeezed(real: Proxmox, database: Squeezed) -> Squeezed:
    """The database at the limit of its container, and all clients connected."""
    database.hold(0.92)
    return database


def heal(controller: Controller, **variables: t.Any) -> Run:
    return controller.play("homelab.healer.heal_lxc_memory", **{**LOOKS, "vmid": DATABASE, **variables})


# the story


def test_a_database_at_its_limit_gets_memory_and_loses_nothing(lab: Containers, real: Proxmox, real_controller: Controller, squeezed: Squeezed) -> None:
    with squeezed.at_work():
        squeezed.wait_until_short()
        begun = squeezed.acknowledged()
        run = heal(real_controller, memory=LARGE)
        assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
        assert lab[DATABASE].groups.limits().memory == LARGE
        assert squeezed.hits(1) == 0, "the limit is reached as before"
        assert squeezed.acknowledged() > begun
    assert (lab.usage(DATABASE).kills, lab[DATABASE].snapshots(), real.guest(DATABASE)["snapshots"]) == (0, [], {})


def test_what_does_not_help_is_put_back_and_loses_nothing(lab: Containers, real: Proxmox, real_controller: Controller, squeezed: Squeezed) -> None:
    with squeezed.at_work():
        squeezed.wait_until_short()
        begun = squeezed.acknowledged()
        run = heal(real_controller, memory=SMALL + 8)
        assert (run.returncode, run.record["outcome"]) == (2, "rolled_back"), run.output
        assert "it has headroom: bad" in run.record["why"]
        assert squeezed.acknowledged() > begun
    assert lab[DATABASE].groups.limits() == Limits(SMALL, SWAP, 1)
    assert (lab.usage(DATABASE).kills, lab[DATABASE].snapshots(), real.guest(DATABASE)["snapshots"]) == (0, [], {})
    assert [f"{seen['method']} {seen['path'].rpartition('/')[2].partition('-20')[0]}" for seen in real.writes()] == [
        "POST snapshot",
        "PUT config",
        "PUT config",
        "DELETE pre-memory-adjustment",
    ]


# what Proxmox VE is asked to do is done


@pytest.mark.parametrize("cgroup", [1, 2])
def test_limits_reach_the_kernel(lab: Containers, real: Proxmox, cgroup: int) -> None:
    if lab.version != cgroup:
        pytest.skip(f"{OTHER_CGROUP}: it has version {lab.version}")
    limits = Caller(lxc_resources, real.options_for(TOKEN))
    wanted: dict[str, t.Any] = {"memory": "384", "swap": "128", "cores": "1", "cpulimit": "0.5"}
    pid = lab[WEB].pid
    answer = limits(vmid=[WEB], **wanted)
    groups = lab[WEB].groups
    wait_until(lambda: groups.limits().cores == 1, "pvestatd sets the cores")
    assert (answer["changed"], groups.limits()) == (True, Limits(384, 128, 1, 0.5))
    assert int(lab.exec(WEB, ["nproc"]).stdout) == 1
    limits.undo(answer)
    wait_until(lambda: groups.limits().cores == os.cpu_count(), "pvestatd sets the cores")
    assert (groups.limits(), lab[WEB].pid) == (Limits(256, 64, os.cpu_count() or 1), pid)


def test_the_kernel_refuses_a_limit_that_does_not_fit(lab: Containers, real: Proxmox) -> None:
    """Version 1 does not go below what is in use; version 2 kills what does not fit."""
    lab.exec(WEB, ["systemd-run", "--quiet", "--unit=hog", "sh", "-c", "{ head --bytes=150M /dev/zero; sleep 1000; } | tail"])
    try:
        wait_until(lambda: lab.usage(WEB).memory > 150 * MIB, "150 MiB are in use")
        limits = Caller(lxc_resources, real.options_for(TOKEN))
        if lab.version == 1:
            error = limits.fails(vmid=[WEB], memory="64", swap="0", allow_below_usage=True)
            assert "Device or resource busy" in error.why
            assert lab[WEB].groups.limits() == Limits(256, 64, os.cpu_count() or 1)
            assert lab.usage(WEB).kills == 0
        else:
            limits(vmid=[WEB], memory="64", swap="0", allow_below_usage=True)
            assert lab.usage(WEB).kills > 0
    finally:
        lab.exec(WEB, ["systemctl", "stop", "hog"], check=False)


def test_usage_is_what_the_kernel_counts(lab: Containers, real: Proxmox) -> None:
    def told() -> dict[str, t.Any]:
        (seen,) = read(lxc_info, **real.options_for(TOKEN), vmid=[WEB])["containers"]
        return dict(seen)

    assert (told()["pid"], told()["status"]) == (lab[WEB].pid, "running")
    wait_until(lambda: abs(told()["memory_used"] - lab.usage(WEB).memory / MIB) <= 2, "the memory in use is the kernel's figure")
    assert real.guest(WEB)["usage"]["cpu"] < 0.1
    lab.exec(WEB, ["systemd-run", "--quiet", "--unit=busy", "--collect", "sh", "-c", "while :; do :; done"])
    try:
        wait_until(lambda: 0.2 < real.guest(WEB)["usage"]["cpu"] < 1.2, "one busy process shows")
        wait_until(lambda: any(point.get("mem") for point in series(real, WEB)), "the archive has a point")
        assert all(point["mem"] < 256 * MIB for point in series(real, WEB) if "mem" in point)
    finally:
        lab.exec(WEB, ["systemctl", "stop", "busy"], check=False)


def series(real: Proxmox, vmid: int) -> list[dict[str, t.Any]]:
    from proxmoxer import ProxmoxAPI  # noqa: PLC0415

    options = real.options_for(TOKEN)
    user, name = options["api_user"], options["api_token_id"]
    api = ProxmoxAPI(
        options["api_host"], port=options["api_port"], user=user, token_name=name, token_value=options["api_token_secret"], verify_ssl=options["ca_path"]
    )
    found: list[dict[str, t.Any]] = api.nodes("pve1").lxc(vmid).rrddata.get(timeframe="hour")
    return found


def test_power_is_real(lab: Containers, real: Proxmox) -> None:
    power = Caller(lxc_power, real.options_for(TOKEN))
    pid = lab[WEB].pid
    power(vmid=[WEB], state="stopped")
    assert (lab[WEB].running, Path(f"/proc/{pid}").exists(), real.guest(WEB)["status"]) == (False, False, "stopped")
    power(vmid=[WEB], state="started")
    assert lab[WEB].running
    lab[WEB].wait()
    lab.kill(WEB)
    assert real.guest(WEB)["status"] == "stopped"  # though nobody told it
    lab.start(WEB)
    assert real.guest(WEB)["status"] == "running"


# snapshots


def test_a_rollback_restores_a_destroyed_file(lab: Containers, real: Proxmox, real_controller: Controller) -> None:
    precious = ["cat", "/srv/precious"]
    lab.exec(WEB, ["sh", "-c", "echo 'years of work' > /srv/precious"])
    Caller(lxc_snapshot, real.options_for(TOKEN))(vmid=[WEB], name="before")
    assert lab[WEB].snapshots() == ["before"]
    lab.exec(WEB, ["sh", "-c", "rm /srv/precious; rm -rf /usr/lib/postgresql"])
    assert lab.exec(WEB, precious, check=False).returncode != 0
    pid = lab[WEB].pid
    run = real_controller.play("homelab.healer.rollback", vmid=WEB, snapshot="before", allow_data_loss=True, remediate_pause=0)
    assert (run.returncode, run.record["outcome"]) == (0, "healed"), run.output
    assert lab[WEB].pid not in {0, pid}
    lab[WEB].wait()
    assert lab.exec(WEB, precious).stdout == "years of work\n"
    assert (lab[WEB].root / "usr/lib/postgresql").is_dir()


def test_a_rollback_of_a_database_needs_permission_to_lose_data(lab: Containers, real: Proxmox, real_controller: Controller, database: Squeezed) -> None:
    Caller(lxc_snapshot, real.options_for(TOKEN))(vmid=[DATABASE], name="before")
    database.ask("CREATE TABLE IF NOT EXISTS orders AS SELECT 1 AS number")
    real.clear()
    run = real_controller.play("homelab.healer.rollback", vmid=DATABASE, snapshot="before", remediate_pause=0)
    assert (run.returncode, run.record["outcome"], real.writes()) == (2, "needs_human", [])
    assert "everything written since" in run.record["why"]
    assert (lab[DATABASE].pid, database.ask("SELECT number FROM orders")) == (database.pid, [(1,)])


# pct


def pct(lab: Containers, *words: str, patience: float = 30, **environment: str) -> subprocess.CompletedProcess[str]:
    command = {**os.environ, "PATH": f"{lab.pct}:{os.environ['PATH']}", **environment}
    return subprocess.run(["pct", *words], env=command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, check=False)


def test_pct_enters_and_says_what_the_real_one_says(lab: Containers, real: Proxmox) -> None:
    begun = len(lab.execs())
    done = pct(lab, "exec", str(WEB), "--", "sh", "-c", "hostname; echo $WORD; exit 7", WORD="kept")
    assert (done.returncode, done.stdout) == (7, "web\nkept\n")
    assert pct(lab, "exec", str(WEB), "--keep-env", "0", "--", "sh", "-c", "echo $WORD", WORD="kept").stdout == "\n"
    assert lab.execs()[begun:] == [
        ["exec", "201", "--", "sh", "-c", "hostname; echo $WORD; exit 7"],
        ["exec", "201", "--keep-env", "0", "--", "sh", "-c", "echo $WORD"],
    ]
    assert pct(lab, "status", str(WEB)).stdout == "status: running\n"
    assert "hostname: web\nmemory: 256\n" in pct(lab, "config", str(WEB)).stdout
    assert [line.split() for line in pct(lab, "list").stdout.splitlines()[1:]] == [["200", "running", "postgres"], ["201", "running", "web"]]
    missing = pct(lab, "exec", "999", "--", "true")
    assert (missing.returncode, missing.stderr) == (255, "Configuration file 'nodes/pve1/lxc/999.conf' does not exist\n")
    lab.move(WEB, "pve2")
    try:
        assert pct(lab, "exec", str(WEB), "--", "true").stderr == "Configuration file 'nodes/pve1/lxc/201.conf' does not exist\n"
    finally:
        lab.move(WEB, "pve1")


def test_pct_waits_for_a_frozen_container(lab: Containers, real: Proxmox) -> None:
    lab.freeze(WEB)
    try:
        with subprocess.Popen([str(lab.pct / "pct"), "exec", str(WEB), "--", "true"], stdin=subprocess.DEVNULL) as waiting:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=2)
            lab.thaw(WEB)
            assert waiting.wait(timeout=30) == 0
    finally:
        lab.thaw(WEB)


def test_pct_does_not_enter_what_does_not_run(lab: Containers) -> None:
    lab.create(300)
    try:
        refused = pct(lab, "exec", "300", "--", "true")
        assert (refused.returncode, refused.stderr) == (255, "container '300' not running!\n")
        assert pct(lab, "status", "300").stdout == "status: stopped\n"
    finally:
        lab.destroy(300)


# nothing is left


KILLED = """
import os
from tests.lab.containers import Limits, containers
with containers() as lab:
    lab.create(300).start(Limits())
    print(lab.folder, lab[300].pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def fail_in_a_lab() -> t.NoReturn:
    with containers() as lab:
        container = lab.create(300)
        container.start(Limits())
        raise RuntimeError("in the middle", lab, container)


def test_nothing_is_left_not_even_by_a_lab_that_was_killed(lab: Containers) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    folder, pid = Path(killed.stdout.split()[0]), killed.stdout.split()[1]
    assert os.path.ismount(folder / "disk")
    assert Path(f"/proc/{pid}").exists()
    with pytest.raises(RuntimeError, match="in the middle") as seen:
        fail_in_a_lab()
    other, mine = seen.value.args[1:]
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert not other.folder.exists()
    left = subprocess.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True, check=True).stdout
    assert not any(str(path) in left for path in (folder, other.folder))
    assert not mine.groups.file("memory", "").exists()
    assert lab[WEB].running  # another lab's are let alone


# the files of version 2, which this machine need not have


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """The control groups of version 2 as a tree of files, with one container in it."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    group = Groups("lab-200", tmp_path).file("memory", "")
    group.mkdir(parents=True)
    files = {
        "memory.max": "805306368",
        "memory.swap.max": "max",
        "memory.current": "700000000",
        "memory.swap.current": "1000",
        "memory.stat": "anon 600000000\nfile 90000000\npgmajfault 12\n",
        "memory.events": "low 0\nhigh 0\nmax 345\noom 2\noom_kill 1\n",
        "memory.pressure": "some avg10=12.50 avg60=3.00 avg300=1.00 total=5\nfull avg10=2.00 avg60=0.00 avg300=0.00 total=1\n",
        "cpu.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n",
        "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
        "cpu.max": "max 100000",
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "io.stat": "8:0 rbytes=100 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n",
        "cpuset.cpus": "0-1,3",
    }
    for name, content in files.items():
        (group / name).write_text(content)
    return tmp_path


def test_version_2_is_read(laid_out: Path) -> None:
    groups = Groups("lab-200", laid_out)
    assert groups.limits() == Limits(768, 0, 3, 0.0)
    seen = groups.figures()
    assert (seen.memory, seen.cache, seen.swap, seen.cpu) == (610000000, 90000000, 1000, 2.5)
    assert (seen.limit_hits, seen.major_faults, seen.kills, seen.read, seen.written) == (345, 12, 1, 101, 22)
    assert seen.pressure == {"cpu": 1.0, "io": 0.0, "memory": 12.5}


def test_version_2_is_written(laid_out: Path) -> None:
    groups = Groups("lab-200", laid_out)
    for name in ("memory.max", "memory.swap.max", "cpu.max"):
        groups.file("memory", name).write_text("")
    groups.set_memory(1024, 128)
    groups.set_quota(1.5)
    written = {name: groups.file("memory", name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.max")}
    assert written == {"memory.max": str(1024 * MIB), "memory.swap.max": str(128 * MIB), "cpu.max": "150000 100000"}
    assert groups.limits() == Limits(1024, 128, 3, 1.5)


def wait_until(so: t.Callable[[], bool], what: str, seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not so():
        if time.monotonic() > limit:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)
