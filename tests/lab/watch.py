"""What watches the lab: Debian's exporters, Prometheus with the rules that ship, and Alertmanager with the routes that ship. Only times are others."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import yaml

from tests.lab.engine import Engine, LabError
from tests.lab.monitoring import get, serving
from tests.lab.playbooks import COLLECTION

HOME = COLLECTION / "extensions/prometheus"
SECONDS = {"600": "4", "60": "3"}
"""How long a session is idle in its transaction, or waits, before it is told: in the rules, and here."""
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that name authorities, which the exporter would trust as well."""
Jobs = list[dict[str, t.Any]]


def rules(folder: Path, *names: str) -> Path:
    """The rules that ship, which fire after seconds instead of minutes."""
    made = folder / "rules"
    made.mkdir()
    for name in names:
        text = (HOME / f"rules/{name}.yml").read_text()
        text = re.sub(r"\bfor: \d+[smh]\b", "for: 2s", text)
        text = re.sub(r"\[\d+m\]", "[10s]", text)
        text = re.sub(r">= (600|60)\b", lambda found: f">= {SECONDS[found[1]]}", text)
        (made / f"{name}.yml").write_text(text)
    return made


def job(name: str, address: str, **more: t.Any) -> dict[str, t.Any]:
    """A job of Prometheus for one exporter; ``labels`` are its target's."""
    targets = {"targets": [address.removeprefix("http://")], "labels": more.pop("labels")}
    return {"job_name": name, "static_configs": [targets], **more}


@contextlib.contextmanager
def postgres_exporter(dsn: str) -> t.Iterator[str]:
    command = ("prometheus-postgres-exporter", "--auto-discover-databases", f"--extend.query-path={HOME}/postgres_exporter_queries.yml")
    with serving(*command, ready="/", DATA_SOURCE_NAME=dsn) as address:
        yield address


@contextlib.contextmanager
def pve_exporter(folder: Path, config: dict[str, t.Any], authority: str) -> t.Iterator[str]:
    """The exporter in a process of its own, with this configuration; its address. It trusts this authority alone."""
    (folder / "pve.yml").write_text(yaml.safe_dump({"default": config}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PVE_") and name not in BUNDLES}
    environment = {**kept, "REQUESTS_CA_BUNDLE": authority}
    command = [sys.executable, "-m", "pve_exporter", "--config.file", str(folder / "pve.yml"), "--web.listen-address", "127.0.0.1:0"]
    log = folder / "exporter.log"
    with log.open("wb") as said:
        # in a session of its own: it has a worker, which must not outlive it
        process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    try:
        yield _address(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"Listening at: (http://127\.0\.0\.1:\d+)", log.read_text(encoding="utf-8")):
            return found[1]
        time.sleep(0.05)
    raise LabError(f"the exporter does not listen: {log.read_text(encoding='utf-8')}")


@contextlib.contextmanager
def container_exporter(engine: Engine) -> t.Iterator[str]:
    """What stands where cAdvisor would, which Debian does not have: the engine's own figures, by cAdvisor's names."""

    class Exporter(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = "\n".join(_told(engine)).encode() + b"\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # Prometheus does not wait any more
                self.wfile.write(body)

        def log_message(self, *_arguments: t.Any) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Exporter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _told(engine: Engine) -> t.Iterator[str]:
    yield f"machine_cpu_cores {engine.api.info()['NCPU']}"
    for container in engine.api.containers():
        name = container["Names"][0].lstrip("/")
        used = engine.api.stats(container["Id"], stream=False, one_shot=True)["cpu_stats"]["cpu_usage"]["total_usage"]
        yield f'container_cpu_usage_seconds_total{{name="{name}"}} {used / 1e9}'
        config = engine.host_config(name)
        quota = config["CpuQuota"] or config["NanoCpus"] // 10_000
        if quota > 0:
            yield f'container_spec_cpu_quota{{name="{name}"}} {quota}'


@contextlib.contextmanager
def prometheus(folder: Path, alertmanager: str, jobs: Jobs) -> t.Iterator[str]:
    """One that looks every two seconds. Yields its address."""
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "1s", "scrape_timeout": "2s"},  # of a server that is down, the exporter tells after 1 s
        "rule_files": [f"{rules(folder, 'lxc', 'docker', 'postgresql')}/*.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager.removeprefix("http://")]}]}]},
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus", "--storage.tsdb.retention.time=1d"]
    with serving(*command, ready="/-/ready") as address:
        yield address


def firing(address: str) -> set[str]:
    """The names of the alerts that fire now."""
    told = json.loads(get(f"{address}/api/v1/alerts"))["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in told if alert["state"] == "firing"}
