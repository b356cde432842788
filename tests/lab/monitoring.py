"""Debian's Prometheus, Alertmanager and exporters, each started for a test on a port of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import typing as t
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from tests.lab.engine import LabError
from tests.lab.playbooks import COLLECTION

PROGRAMS = ("promtool", "amtool", "prometheus-alertmanager", "prometheus-node-exporter", "prometheus-postgres-exporter")


def missing() -> list[str]:
    """Which of the programs are not here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)


def get(address: str) -> str:
    """What an address answers; never by a proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        return str(answer.read().decode())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(*command: str, listen: str = "--web.listen-address", ready: str = "/metrics", killed: bool = False, **environment: str) -> t.Iterator[str]:
    """A program while it serves; yields its address. ``killed``: it ends by a crash."""
    port = free_port()
    with subprocess.Popen(
        [*command, f"{listen}=127.0.0.1:{port}"],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(process, address + ready)
            yield address
        finally:
            process.send_signal(signal.SIGKILL if killed else signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            get(address)
            return
        time.sleep(0.1)
    raise LabError(f"{process.args!r} does not serve")


@contextlib.contextmanager
def alertmanager(folder: Path, webhook: str, token: str, *, killed: bool = False) -> t.Iterator[str]:
    """One by the configuration that ships; only its times, its port and the token's place are others. What it remembers is in the folder."""
    (folder / "token").write_text(f"{token}\n")
    config = yaml.safe_load((COLLECTION / "extensions/prometheus/alertmanager.yml").read_text())
    config["route"].update(group_wait="1s", group_interval="1s")
    healer = next(receiver for receiver in config["receivers"] if receiver["name"] == "healer")
    healer["webhook_configs"][0]["url"] = webhook
    healer["webhook_configs"][0]["http_config"]["authorization"]["credentials_file"] = str(folder / "token")
    config["receivers"] = [healer, {"name": "human"}]
    (folder / "alertmanager-configuration.yml").write_text(yaml.safe_dump(config))
    command = ["--config.file", str(folder / "alertmanager-configuration.yml"), "--storage.path", str(folder / "alertmanager"), "--cluster.listen-address="]
    with serving("prometheus-alertmanager", *command, ready="/-/ready", killed=killed) as address:
        yield address


def tell(address: str, alerts: list[dict[str, t.Any]]) -> None:
    """Tell Alertmanager of alerts, as Prometheus does."""
    request = urllib.request.Request(f"{address}/api/v2/alerts", json.dumps(alerts).encode(), {"Content-Type": "application/json"})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()
