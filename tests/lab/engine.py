"""The lab's Docker Engine: one of its own where the user is root, and otherwise the one that the machine has."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import typing as t
from pathlib import Path

import docker
import trustme
from docker.errors import APIError, DockerException

IMAGE = "homelab-healer-lab:1"
LABEL = "homelab.healer.lab"
APPLETS = ("cat", "dd", "false", "grep", "head", "sh", "sleep", "test", "tr", "true")
BURN = "while :; do :; done"
"""A shell's way to use one whole CPU."""
CGROUPS = "healer-lab"
"""The control group of the containers that have much weight."""


class LabError(Exception):
    """The lab cannot be built here; says what to do."""


class NoEngine(LabError):
    """No Docker Engine can run here, and none of the machine's can be used; says why."""


class Engine:
    """A Docker Engine with the lab's image. ``owned`` tells whether it is the lab's own, and may be killed."""

    def __init__(self, docker_host: str, owned: bool) -> None:
        self.docker_host = docker_host
        self.owned = owned
        self.api: t.Any = docker.APIClient(base_url=docker_host, version="auto", timeout=30)

    def build_image(self) -> None:
        """Import an image of one static busybox: no registry is needed."""
        busybox = Path(sys.prefix) / "lab-busybox"
        if not busybox.exists():
            raise NoEngine("there is no static busybox for its image: run tests/lab/prepare")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for folder in ("bin", "dev", "tmp"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            archive.add(busybox.resolve(), "bin/busybox")
            for applet in APPLETS:
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(entry)
        repository, _, tag = IMAGE.partition(":")
        self.api.import_image_from_data(packed.getvalue(), repository=repository, tag=tag)

    def run(
        self,
        name: str,
        script: str = "exec sleep 100000",
        labels: t.Mapping[str, str] | None = None,
        healthcheck: t.Mapping[str, t.Any] | None = None,
        start: bool = True,
        **host_config: t.Any,
    ) -> str:
        """Start a container without a network that runs a shell script; returns its id. ``host_config`` is the engine's own (``NanoCpus`` and so on)."""
        body = {
            "Image": IMAGE,
            "Cmd": ["/bin/sh", "-c", script],
            "Labels": {LABEL: "1", **(labels or {})},
            "HostConfig": {"NetworkMode": "none", **host_config},
            "Healthcheck": healthcheck,
        }
        # The SDK's own create_container() knows neither NanoCpus nor PidsLimit together with a health check's intervals.
        made = self.api._result(self.api._post_json(self.api._url("/containers/create"), data=body, params={"name": name}), True)
        if start:
            self.api.start(made["Id"])
        return str(made["Id"])

    def update(self, name: str, **limits: t.Any) -> None:
        """What ``docker update`` does, with the engine's own names."""
        self.api._result(self.api._post_json(self.api._url("/containers/{0}/update", name), data=limits), True)

    def host_config(self, name: str) -> dict[str, t.Any]:
        return dict(self.api.inspect_container(name)["HostConfig"])

    def events(self, since: float) -> list[str]:
        """What the engine says happened to containers since then, but for health checks."""
        listed = self.api.events(since=f"{since:.9f}", until=f"{time.time():.9f}", decode=True, filters={"type": "container"})
        return [event["Action"] for event in listed if not event["Action"].startswith(("exec_", "health_status"))]

    def wait_for_health(self, name: str, status: str, seconds: float = 20) -> None:
        limit = time.monotonic() + seconds
        while self.api.inspect_container(name)["State"]["Health"]["Status"] != status:
            if time.monotonic() > limit:
                raise AssertionError(f"{name} is not {status} after {seconds} s")
            time.sleep(0.1)

    def dislikes_limits(self) -> dict[str, t.Any]:
        """A health check that fails as soon as its container's CPU is limited, as a service does that cannot live with less."""
        unlimited = "grep -q -- -1 /sys/fs/cgroup/cpu/cpu.cfs_quota_us" if self.api.info()["CgroupVersion"] == "1" else "grep -q max /sys/fs/cgroup/cpu.max"
        return {"Test": ["CMD-SHELL", unlimited], "Interval": 300_000_000, "Timeout": 5_000_000_000, "Retries": 1}

    def remove_containers(self) -> None:
        for container in self.api.containers(all=True, filters={"label": LABEL}):
            with contextlib.suppress(APIError):
                self.api.remove_container(container["Id"], force=True)


class OwnEngine(Engine):
    """A ``dockerd`` of the lab's own: no bridge, no firewall rules, its own folders, containerd and namespace; reachable by socket and by TLS."""

    def __init__(self, folder: Path, heavy: bool = False) -> None:
        """``heavy``: what its containers burn, they also get on a busy machine."""
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.tls_host, self.tls = self._make_certificates()
        self._cgroup_options = _with_much_weight() if heavy else []
        self._containerd = self._start_containerd()
        self._process = self._containerd
        self.start()
        super().__init__(f"unix://{self.socket}", owned=True)

    def _make_certificates(self) -> tuple[str, dict[str, str]]:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.folder / "ca.pem"))
        for name, certificate in (("server", authority.issue_cert("127.0.0.1")), ("client", authority.issue_cert("client.example"))):
            certificate.private_key_pem.write_to_path(str(self.folder / f"{name}.key"))
            certificate.cert_chain_pems[0].write_to_path(str(self.folder / f"{name}.pem"))
        options = {option: str(self.folder / name) for option, name in (("ca_path", "ca.pem"), ("client_cert", "client.pem"), ("client_key", "client.key"))}
        return f"tcp://127.0.0.1:{_free_port()}", options

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        command = ["dockerd", "--containerd", f"{self.folder}/containerd.sock", "--host", f"unix://{self.socket}", "--host", self.tls_host, "--tlsverify"]
        command += ["--tlscacert", f"{self.folder}/ca.pem", "--tlscert", f"{self.folder}/server.pem", "--tlskey", f"{self.folder}/server.key"]
        command += ["--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec", "--pidfile", f"{self.folder}/dockerd.pid"]
        command += ["--containerd-namespace", "healer-lab", "--containerd-plugins-namespace", "healer-lab-plugins"]
        command += [
            "--bridge",
            "none",
            "--iptables=false",
            "--ip-forward=false",
            "--ip-masq=false",
            "--userland-proxy=false",
            "--storage-driver",
            "vfs",
            "--live-restore",
            *self._cgroup_options,
        ]
        self._process = self._spawn(command, "dockerd.log")
        limit = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                tail = (self.folder / "dockerd.log").read_text(errors="replace")[-2000:]
                raise NoEngine(f"dockerd does not start; its log ends with:\n{tail}")
            time.sleep(0.1)

    def _start_containerd(self) -> subprocess.Popen[bytes]:
        """containerd as a service of its own, as distributions run it: a killed engine leaves it, and the containers, running."""
        (self.folder / "containerd.toml").write_text(
            f"""
            version = 2
            root = "{self.folder}/containerd/root"
            state = "{self.folder}/containerd/state"
            disabled_plugins = ["io.containerd.grpc.v1.cri"]
            [grpc]
            address = "{self.folder}/containerd.sock"
            """
        )
        return self._spawn(["containerd", "--config", f"{self.folder}/containerd.toml"], "containerd.log")

    def _spawn(self, command: list[str], log_name: str) -> subprocess.Popen[bytes]:
        with (self.folder / log_name).open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _answers(self) -> bool:
        with contextlib.suppress(DockerException):
            api = docker.APIClient(base_url=f"unix://{self.socket}", version="auto", timeout=5)
            try:
                return bool(api.ping())
            finally:
                api.close()
        return False

    def kill(self) -> None:
        """End the daemon as a crash would."""
        self._process.kill()
        self._process.wait()
        (self.folder / "dockerd.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Remove the containers, end the daemons, and remove what they left."""
        with contextlib.suppress(DockerException, OSError):
            self.remove_containers()
        self.api.close()
        for process in (self._process, self._containerd):
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._end_leftovers()
        _unmount_below(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_leftovers(self) -> None:
        """A killed engine leaves its containers' shims behind; their command lines name the lab's folder."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                if pid != os.getpid() and str(self.folder).encode() in (entry / "cmdline").read_bytes().split(b"python")[0]:
                    os.kill(pid, signal.SIGKILL)


def _with_much_weight() -> list[str]:
    """Options of ``dockerd`` by which containers that burn do so also on a busy machine; with cgroup v2 it may not choose a group's name."""
    shares = Path("/sys/fs/cgroup/cpu", CGROUPS, "cpu.shares")
    if not shares.parent.parent.is_dir():
        return []
    shares.parent.mkdir(exist_ok=True)
    shares.write_text("20480")  # where others have 1024
    return ["--cgroup-parent", f"/{CGROUPS}"]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _unmount_below(folder: Path) -> None:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False)


@contextlib.contextmanager
def docker_engine(heavy: bool = False) -> t.Iterator[Engine]:
    """The lab's engine with its image; nothing of it is left afterwards."""
    if os.geteuid() == 0 and shutil.which("dockerd"):
        # A short path, as a socket's may have no more than 107 characters, and on a disk: on a tmpfs the containers' files would count as memory.
        own = OwnEngine(Path(tempfile.mkdtemp(prefix="healer-lab-", dir="/var/tmp")), heavy)
        try:
            own.build_image()
            yield own
        finally:
            own.stop()
        return
    try:
        found = Engine(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"), owned=False)
    except DockerException as error:
        raise NoEngine(f"become root, or let this user use the machine's own ({error})") from error
    try:
        found.build_image()
        yield found
    finally:
        found.remove_containers()
        with contextlib.suppress(APIError):
            found.api.remove_image(IMAGE)
