"""Debian's Prometheus, Alertmanager and exporters, each started for a test on a port of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import typing as t
import urllib.error
import urllib.request

from tests.lab.engine import LabError

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
def serving(*command: str, listen: str = "--web.listen-address", ready: str = "/metrics", **environment: str) -> t.Iterator[str]:
    """A program while it serves; yields its address."""
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
            process.terminate()
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
