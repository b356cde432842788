"""The alerts that call the remedies: each fires and keeps quiet when it should, is documented, and reads metrics that real exporters tell."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import time
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.conftest import NO_MONITORING
from tests.lab.monitoring import alertmanager, get, missing, run, serving, tell
from tests.lab.playbooks import COLLECTION
from tests.lab.postgres import Postgres, bloat, blockers, prepared
from tests.lab.proxmox.client import Proxmox
from tests.lab.watch import pve_exporter
from tests.test_proxmox_clients import scrape

HOME = COLLECTION / "extensions/prometheus"
RULES = sorted((HOME / "rules").glob("*.yml"))
TESTS = sorted((HOME / "tests").glob("*_test.yml"))
QUERIES = HOME / "postgres_exporter_queries.yml"
ALERTMANAGER = HOME / "alertmanager.yml"
DOCUMENT = COLLECTION / "docs/alerts.md"
TARGET = {"vmid", "container", "database", "instance"}
OTHERS = {"node", "name", "storage", "mountpoint", "remedy", "exporter", "trouble"}
"""Labels that a human reads; no remedy is given them."""
Rule = dict[str, t.Any]


def rules() -> list[Rule]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERTS: dict[str, Rule] = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def metrics() -> set[str]:
    """The metrics that exporters have to tell."""
    kinds = r"(?:pve|pg|node|container|machine|homelab_healer|alertmanager)_\w+"
    return {name for rule in rules() for name in re.findall(rf"(?<![\w:]){kinds}(?![\w:]|\s*\()", rule["expr"])}


@pytest.fixture(scope="module")
def _programs() -> None:
    if missing():
        pytest.skip(f"{NO_MONITORING}: {', '.join(missing())}: run tests/lab/prepare as root")


needs_programs = pytest.mark.usefixtures("_programs")


def table() -> dict[str, list[str]]:
    """The rows of the document's table of alerts, by alert."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`")[:1].isupper()}


# What is written


@needs_programs
def test_promtool_takes_the_rules_and_the_example() -> None:
    for command in (["rules", *map(str, RULES)], ["config", "--syntax-only", str(HOME / "prometheus.yml")]):
        done = run("promtool", "check", *command)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_programs
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_tests_say(path: Path) -> None:
    done = run("promtool", "test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_where_it_fires_and_where_it_does_not() -> None:
    asked = [check for path in TESTS for case in yaml.safe_load(path.read_text())["tests"] for check in case["alert_rule_test"]]
    assert {check["alertname"] for check in asked if check["exp_alerts"]} == set(ALERTS)
    assert {check["alertname"] for check in asked if not check["exp_alerts"]} == set(ALERTS)
    assert [f"{path.stem}_test" for path in RULES] == [path.stem for path in TESTS]


def test_labels_carry_the_target_and_choose_nothing() -> None:
    for name, rule in ALERTS.items():
        assert set(rule["labels"]) == {"severity", "answered_by"}, name
        assert rule["labels"]["answered_by"] in {"healer", "human"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= TARGET | OTHERS, name
    for path in TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            told = [alert["exp_labels"] for check in case["alert_rule_test"] for alert in check["exp_alerts"]]
            assert all(set(labels) <= TARGET | OTHERS | {"severity", "answered_by"} for labels in told)
            assert all(re.fullmatch(r"[1-9]\d{2,8}", labels["vmid"]) for labels in told if "vmid" in labels)


def test_the_table_has_every_alert_and_names_playbooks_that_exist() -> None:
    rows = table()
    assert set(rows) == set(ALERTS)
    for name, row in rows.items():
        assert len(row) == 5, name
        assert all(row), name
        playbooks = re.findall(r"`(?:homelab\.healer\.)?((?:heal|restart)_\w+)`", row[3])
        assert bool(playbooks) == (ALERTS[name]["labels"]["answered_by"] == "healer"), name
        for playbook in playbooks:
            assert (COLLECTION / f"playbooks/{playbook}.yml").exists(), playbook
            assert playbook in ALERTS[name]["annotations"]["description"], name
    named = re.findall(r"homelab\.healer\.(\w+)", DOCUMENT.read_text() + str([rule["annotations"] for rule in ALERTS.values()]))
    assert {name for name in named if not (COLLECTION / f"playbooks/{name}.yml").exists()} == set()


def test_the_table_names_the_metrics_that_the_rules_read() -> None:
    text = DOCUMENT.read_text()
    assert {name for name in metrics() if f"`{name}" not in text} == set()


def test_no_threshold_is_below_that_of_its_remedy() -> None:
    """An alert that fires before the remedy finds anything would only be told that all is well."""

    def default(role: str, name: str) -> float:
        return float(yaml.safe_load((COLLECTION / f"roles/{role}/defaults/main.yml").read_text())[f"{role}_{name}"])

    def threshold(alert: str) -> float:
        return float(ALERTS[alert]["expr"].rsplit(" ", 1)[1])

    assert threshold("LxcMemoryHigh") >= default("lxc_memory", "threshold")
    assert threshold("LxcCpuHigh") >= default("lxc_cpu", "threshold")
    assert threshold("PostgresConnectionsHigh") >= default("pg_connections", "threshold")
    assert threshold("PostgresBlocked") >= default("pg_blocker", "min_wait")
    assert threshold("PostgresBloat") >= default("pg_bloat", "min_dead_ratio")
    assert threshold("DockerContainerRunaway") > 0.5  # of the host's CPUs, as the remedy takes half of them by default


# What exporters tell


def test_every_metric_of_the_healer_is_one_that_its_report_writes() -> None:
    written = re.findall(r'(?:metric|gauge|by_remedy)\(\s*"(\w+)"', (COLLECTION / "plugins/filter/report.py").read_text())
    assert {name for name in metrics() if name.startswith("homelab_healer_")} <= {f"homelab_healer_{name}" for name in written}


@needs_programs
@pytest.mark.parametrize("kind", ["debian", "embedded"])
def test_postgres_exporter_tells_what_the_rules_read(request: pytest.FixtureRequest, kind: str) -> None:
    pg: Postgres = prepared(request.getfixturevalue(f"{kind}_postgres"))
    pg.role("monitor", grants=["pg_monitor"])
    dead = bloat(pg)
    dsn = f"user=monitor password=monitor-password host={pg.folder} port={pg.port} dbname=postgres"
    command = ("prometheus-postgres-exporter", "--auto-discover-databases", f"--extend.query-path={QUERIES}")
    with blockers(pg), serving(*command, ready="/", DATA_SOURCE_NAME=dsn) as address:
        time.sleep(1.5)
        told = get(f"{address}/metrics")
    names = set(re.findall(r"^(\w+)", told, re.MULTILINE))
    reserved = {"pg_settings_reserved_connections"} if pg.version < 160000 else set()
    assert {name for name in metrics() if name.startswith("pg_")} - names == reserved
    assert re.search(r"^pg_up 1$", told, re.MULTILINE)
    values = {match[1]: float(match[2]) for match in re.finditer(r'^(pg_healer_\w+\{datname="prod")[^}]*\} (\S+)$', told, re.MULTILINE)}
    assert values['pg_healer_waiting_sessions{datname="prod"'] >= 1
    assert 1 <= values['pg_healer_waiting_longest_seconds{datname="prod"'] < 60
    assert values['pg_healer_table_dead_rows{datname="prod"'] == dead
    assert 'pg_healer_waiting_sessions{datname="postgres"' in told  # where nobody waits there is a row, too


@needs_programs
def test_node_exporter_tells_what_the_rules_read(tmp_path: Path) -> None:
    (tmp_path / "healer.prom").write_text("homelab_healer_targets_frozen 0\n")
    with serving("prometheus-node-exporter", f"--collector.textfile.directory={tmp_path}") as address:
        told = get(f"{address}/metrics")
    names = set(re.findall(r"^(\w+)", told, re.MULTILINE))
    assert {name for name in metrics() if name.startswith("node_")} - names == set()
    assert re.search(r'^node_textfile_mtime_seconds\{file="(.*/)?healer[.]prom"\}', told, re.MULTILINE)
    assert "\nhomelab_healer_targets_frozen 0\n" in told


def test_pve_exporter_tells_what_the_rules_read(pve: Proxmox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    pve.set_guest(200, onboot=1)
    options = pve.options
    config = {"user": "root@pam", "verify_ssl": True, "token_name": options["api_token_id"], "token_value": options["api_token_secret"]}
    with pve_exporter(tmp_path, config, options["ca_path"]) as address:
        told = scrape(address, pve)
    assert {name for name in metrics() if name.startswith("pve_")} - set(told) == set()
    for name in ("pve_memory_usage_bytes", "pve_memory_size_bytes", "pve_cpu_usage_ratio", "pve_disk_usage_bytes", "pve_disk_size_bytes", "pve_up"):
        assert "lxc/200" in told[name]
    assert told["pve_onboot_status"]["lxc/200"][0] == 1
    assert set(told["pve_guest_info"]["lxc/200"][1]) >= {"id", "node", "name", "type", "template"}


# Whom Alertmanager tells


@needs_programs
def test_alertmanager_takes_its_configuration_and_routes_by_it() -> None:
    done = run("amtool", "check-config", str(ALERTMANAGER))
    assert done.returncode == 0, done.stdout + done.stderr
    for name, rule in ALERTS.items():
        told = run("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", f"alertname={name}", f"answered_by={rule['labels']['answered_by']}")
        assert told.stdout.strip() == rule["labels"]["answered_by"], name
    assert {route["receiver"] for route in yaml.safe_load(ALERTMANAGER.read_text())["route"]["routes"]} == {"healer", "human"}


def test_what_inhibits_and_what_is_inhibited_are_alerts() -> None:
    for rule in yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]:
        for side in ("source_matchers", "target_matchers"):
            (matcher,) = rule[side]
            pattern = re.fullmatch(r'alertname=~?"(.+)"', matcher)
            assert pattern
            assert any(re.fullmatch(pattern[1], name) for name in ALERTS), matcher


Told = tuple[str, dict[str, t.Any]]


@contextlib.contextmanager
def rulebook() -> t.Iterator[tuple[str, list[Told]]]:
    """What stands where the rulebook's webhook would: its address, and what it was told, with the token."""
    told: list[Told] = []

    class Webhook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: t.Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/alerts", told
        finally:
            server.shutdown()
            thread.join()


def firing(name: str, **labels: str) -> dict[str, t.Any]:
    return {"labels": {"alertname": name, **ALERTS[name]["labels"], **labels}}


@needs_programs
def test_alertmanager_tells_the_rulebook_each_cause_once_and_by_itself(tmp_path: Path) -> None:
    """A real one, by the configuration that ships; only its times, its port and the token's place are others."""
    with rulebook() as (webhook, told), alertmanager(tmp_path, webhook, "of-the-rulebook") as address:
        assert "# TYPE alertmanager_notifications_failed_total counter" in get(f"{address}/metrics")
        assert 'alertmanager_notifications_failed_total{integration="webhook"' in get(f"{address}/metrics")
        alerts = [
            firing("LxcMemoryHigh", instance="pve", vmid="200", node="pve1"),
            firing("LxcCpuHigh", instance="pve", vmid="200", node="pve1"),  # as its memory is short
            firing("LxcCpuHigh", instance="pve", vmid="201", node="pve1"),
            firing("LxcMemoryHigh", instance="pve", vmid="300", node="pve2"),  # its node is gone
            firing("ProxmoxNodeDown", instance="pve", node="pve2"),
            firing("PostgresBlocked", instance="db", database="prod"),
            firing("PostgresConnectionsHigh", instance="db"),  # as sessions wait
            firing("PostgresConnectionsHigh", instance="other"),
            firing("PostgresIdleInTransaction", instance="other", database="{{ 7*7 }}"),
            firing("LxcDiskFull", instance="pve", vmid="200", node="pve1"),  # a human's
        ]
        tell(address, alerts)
        _until(lambda: len(told) >= 4)
        time.sleep(2)  # nothing more comes
        tell(address, [{**alerts[0], "endsAt": "2020-01-01T00:00:00Z", "startsAt": "2019-01-01T00:00:00Z"}])
        _until(lambda: any(body["status"] == "resolved" for _token, body in told))
    assert {token for token, _body in told} == {"Bearer of-the-rulebook"}
    assert all(len(body["alerts"]) == 1 for _token, body in told)
    first = [body["alerts"][0]["labels"] for _token, body in told if body["status"] == "firing"]
    assert sorted((labels["alertname"], labels.get("vmid") or labels.get("database")) for labels in first[:4]) == [
        ("LxcCpuHigh", "201"),
        ("LxcMemoryHigh", "200"),
        ("PostgresBlocked", "prod"),
        ("PostgresIdleInTransaction", "{{ 7*7 }}"),
    ]
    resolved = [body["alerts"][0]["labels"] for _token, body in told if body["status"] == "resolved"]
    assert [(labels["alertname"], labels["vmid"]) for labels in resolved] == [("LxcMemoryHigh", "200")]


def _until(check: t.Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until
        time.sleep(0.1)
