"""The report tells what the ledger has: its numbers are those that one comes to by counting, and no name does anything in it."""

from __future__ import annotations

import collections
import html.parser
import json
import math
import os
import shutil
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ansible_collections.homelab.healer.plugins.filter import report
from ansible_collections.homelab.healer.plugins.modules import remediation_info
from tests.lab.browser import Browser
from tests.lab.history import HOSTILE, month
from tests.lab.ledger import Database, File, Store
from tests.lab.playbooks import COLLECTION, Controller
from tests.lab.postgres import Postgres, prepared
from tests.test_documentation import matches, own

TEMPLATE = str(COLLECTION / "roles/report/templates/report.html.j2")
ALL = ["details", "figures", "totals"]
WIDE = {"title": "Wide", "columns": [f"column {number}" for number in range(11)], "rows": [["as long as a sentence of some words is"] * 11]}
"""A table of more columns than a phone has room for."""
OPEN = {"planned", "asked", "approved", "applying", "verifying", "undoing"}
Row = dict[str, t.Any]


@pytest.fixture(params=["a file", "PostgreSQL"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A ledger with a month in it."""
    found = File(tmp_path / "ledger.db") if request.param == "a file" else Database(prepared(_server(request)))
    with found.open() as ledger:
        month(ledger, time.time())
    return found


def _server(request: pytest.FixtureRequest) -> Postgres:
    server: Postgres = request.getfixturevalue("debian_postgres")
    prepared(server).role("healer")
    return server


@pytest.fixture
def file(tmp_path: Path) -> File:
    found = File(tmp_path / "ledger.db")
    with found.open() as ledger:
        month(ledger, time.time())
    return found


def ask(store: Store, **options: t.Any) -> Row:
    answer = store.ask(remediation_info, check=True, **{"since": "30d", "limit": 300, "gather": ALL, **options})
    assert "msg" not in answer, answer
    return answer


def page_of(answer: Row) -> str:
    return report.report_page(answer, TEMPLATE, [WIDE])


class Told:
    """What a ledger holds, counted one by one from its tables."""

    def __init__(self, store: Store, since: float) -> None:
        rows = [dict(zip(store.columns("remediations"), row, strict=True)) for row in store.rows("remediations")]
        self.rows = [row for row in rows if row["opened"] >= since]
        events = [dict(zip(store.columns("journal"), row, strict=True)) for row in store.rows("journal")]
        self.events: dict[str, list[Row]] = {row["id"]: [event for event in events if event["remediation"] == row["id"]] for row in rows}

    def first(self, row: Row, kind: str) -> Row | None:
        return next((event for event in self.events[row["id"]] if event["kind"] == kind), None)

    def outcome(self, row: Row) -> str:
        if row["state"] in OPEN:
            return "open"
        return "recurred" if self.first(row, "recurred") else str(row["state"])

    def joined(self, row: Row) -> bool:
        refused = self.first(row, "refused")
        return refused is not None and json.loads(refused["body"])["checks"][-1]["check"] == "one at a time"

    def counted(self) -> list[Row]:
        """The share's denominator."""
        ended = [row for row in self.rows if self.outcome(row) not in ("open", "shadow", "healthy")]
        return [row for row in ended if not self.joined(row)]

    def alone(self) -> list[Row]:
        """Its numerator."""
        return [row for row in self.counted() if self.outcome(row) == "healed" and not self.first(row, "asked")]

    def seconds(self, part: str) -> list[float]:
        took = []
        for row in self.rows:
            ways = {event["kind"]: event["at"] for event in reversed(self.events[row["id"]])}  # the first of each kind
            end = ways.get("closed", ways.get("refused", ways.get("failed")))
            if end is None:
                continue
            if part == "repair" and row["state"] == "healed":
                took.append(end - ways["opened"])
            if part == "waiting" and "asked" in ways:
                took.append(ways.get("approved", end) - ways["asked"])
            if part == "putting_back" and "undoing" in ways:
                took.append(end - ways["undoing"])
            if part == "planning" and "applying" in ways:
                took.append(ways["applying"] - ways["opened"] - (ways["approved"] - ways["asked"] if "approved" in ways else 0))
            if part == "changing" and "applying" in ways:
                took.append(ways.get("verifying", ways.get("undoing", end)) - ways["applying"])
            if part == "verifying" and "verifying" in ways:
                took.append(ways.get("undoing", end) - ways["verifying"])
        return sorted(took)


def test_figures_are_what_counting_comes_to(store: Store) -> None:
    answer = ask(store)
    figures = answer["figures"]
    told = Told(store, figures["since"])
    assert len(told.rows) == answer["found"] == sum(figures["outcomes"].values())
    assert {outcome: number for outcome, number in figures["outcomes"].items() if number} == collections.Counter(map(told.outcome, told.rows))
    assert figures["share"]["numerator"] == len(told.alone()) > 10
    assert figures["share"]["denominator"] == len(told.counted()) > len(told.alone())
    assert sum(figures["share"]["ended"].values()) + sum(figures["share"]["left_out"].values()) == len(told.rows)
    assert all(figures["share"]["ended"].values())
    assert figures["share"]["left_out"]["joined"] == sum(map(told.joined, told.rows)) == 1
    assert figures["recurred"]["count"] == sum(told.outcome(row) == "recurred" for row in told.rows) > 3
    assert figures["recurred"]["of"] == sum(row["state"] == "healed" for row in told.rows)
    assert set(figures["refused"]) == {"rule", "one at a time", "frozen", "pause", "breaker"}
    for part in figures["seconds"]:
        took = told.seconds(part["part"])
        if took:
            assert part["count"] == len(took)
            assert [part["median"], part["p90"]] == pytest.approx([took[math.ceil(len(took) * share) - 1] for share in (0.5, 0.9)], abs=0.002)
    assert {part["part"] for part in figures["seconds"] if part["count"]} == set(report.PARTS)
    (noticing,) = (part for part in figures["seconds"] if part["part"] == "noticing")
    assert noticing["median"] == 30
    assert figures["alerts"]["found"] == len(HOSTILE)
    assert [alert["labels"]["alertname"] for alert in figures["alerts"]["newest"]] == list(HOSTILE)[::-1]
    for kind, key in (("remedies", "remedy"), ("targets", "target")):
        found = collections.Counter((row[key] or row["host"], told.outcome(row)) for row in told.rows)
        assert {(one["key"], outcome): number for one in figures[kind] for outcome, number in one["outcomes"].items()} == found
    by_day = collections.Counter((int(row["opened"] // 86400), told.outcome(row)) for row in told.rows)
    assert {(int(day["start"] // 86400), outcome): number for day in figures["days"] for outcome, number in day["outcomes"].items()} == by_day


def test_what_needs_a_human_is_told_with_what_to_do(store: Store) -> None:
    waiting = ask(store)["figures"]["waiting"]
    assert [need["kind"] for need in waiting] == ["pause", "storm", "frozen", "question", "interrupted", "stopped", "failed", "failed"]
    assert waiting[2]["target"] == "pve/lxc/501"
    assert waiting[2]["fix"].endswith("homelab.healer.resume -e target=pve/lxc/501")
    assert f"approve -e remediation={waiting[3]['remediation']}" in waiting[3]["fix"]


def test_who_looked_ends_it_and_a_pause_file_is_told(file: File) -> None:
    with file.turn() as ledger:
        for name in ("pause", "storm", "freeze pve/lxc/501"):
            ledger.turn_switch(name, None)
        ledger.turn_switch("cleared pve/lxc/505", {"at": ledger.now(), "who": "ann", "why": ""})
        ledger.turn_switch("freeze pve/table/x; rm -rf ~", {"who": "ann", "why": "", "remediation": ""})
    (file.path.parent / "pause").touch()
    waiting = ask(file)["figures"]["waiting"]
    assert [need["kind"] for need in waiting] == ["pause", "frozen", "question", "interrupted", "failed", "failed"]
    assert str(file.path.parent / "pause") in waiting[0]["why"]
    assert waiting[1]["fix"] == "Look at it, then: ansible-playbook homelab.healer.resume, with its target"  # nothing to copy into a shell


def test_the_answer_is_as_documented(file: File) -> None:
    matches(yaml.safe_load(remediation_info.RETURN), own(ask(file, gather=ALL)))
    matches(yaml.safe_load(remediation_info.RETURN), own(ask(file, gather=["events"])))


def test_metrics_are_what_counting_comes_to(store: Store) -> None:
    answer = ask(store)
    told = Told(store, 0)
    text = report.report_metrics(answer)
    samples = {(sample.name, frozenset(sample.labels.items())): sample.value for family in text_string_to_metric_families(text) for sample in family.samples}

    def value(name: str, **labels: str) -> float:
        return samples[(f"homelab_healer_{name}", frozenset(labels.items()))]

    ended = collections.Counter((row["remedy"], row["state"]) for row in told.rows if row["state"] not in OPEN)
    assert {pair: value("remediations_total", remedy=pair[0], outcome=pair[1]) for pair in ended} == ended
    assert sum(number for (name, _labels), number in samples.items() if name == "homelab_healer_remediations_total") == sum(ended.values())
    assert value("remediations_recurred_total", remedy="lxc_cpu") == sum(told.outcome(row) == "recurred" and row["remedy"] == "lxc_cpu" for row in told.rows)
    unattended = [row for row in told.rows if row["state"] == "healed" and row["remedy"] == "lxc_cpu"]
    assert value("remediations_unattended_total", remedy="lxc_cpu") == len(unattended)
    assert value("remediations_joined_total", remedy="lxc_cpu") == 1
    for part in ("repair", "planning", "waiting", "changing", "verifying", "putting_back"):
        took = told.seconds(part)
        assert value("time_to_repair_seconds_count", part=part) == len(took) > 0
        assert value("time_to_repair_seconds_sum", part=part) == pytest.approx(sum(took), abs=0.1)
        assert value("time_to_repair_seconds_bucket", part=part, le="60.0") == sum(one <= 60 for one in took)
    assert [value("remediations_open", state=state) for state in ("planned", "asked", "applying", "undoing")] == [1, 1, 1, 0]
    assert [value(name) for name in ("remediations_interrupted", "questions_open", "targets_frozen", "paused", "storm")] == [1, 1, 1, 1, 1]
    assert value("last_success_timestamp_seconds") == pytest.approx(max(row["closed"] for row in told.rows if row["state"] == "healed"))
    assert value("alerts_unanswered_total") == len(HOSTILE)
    assert value("ledger_head_info", head=answer["head"]) == 1
    assert value("ledger_entries") == int(answer["head"].partition(":")[0])
    assert not any("target" in dict(labels) or "name" in dict(labels) for _name, labels in samples)
    if shutil.which("promtool"):
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_metrics_escape_what_would_end_a_label(file: File) -> None:
    answer = ask(file)
    answer["totals"]["alone"] = [['a"b\\c\nd', 3]]
    families = {family.name: family for family in text_string_to_metric_families(report.report_metrics(answer))}
    assert families["homelab_healer_remediations_unattended"].samples[0].labels == {"remedy": 'a"b\\c\nd'}


class Reader(html.parser.HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: collections.Counter[str] = collections.Counter()
        self.attributes: set[str] = set()
        self.values: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.text += " " if tag in ("td", "th", "li", "p", "pre", "h3") else ""
        self.attributes |= {name for name, _value in attrs}
        self.values += [value or "" for _name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_no_name_does_anything_in_the_page(file: File) -> None:
    page = page_of(ask(file))
    seen = Reader(page)
    assert seen.open == []
    assert not {"script", "img", "iframe", "link", "object", "form", "a"} & set(seen.tags)
    assert not [name for name in seen.attributes if name.startswith("on")]
    assert not [value for value in seen.values if "owned" in value or value.startswith(("http", "//", "data:", "javascript:"))]
    for name in HOSTILE[:4] + HOSTILE[5:8]:
        assert name in seen.text
    assert "abc\\u202egnp.exe" in seen.text
    assert "\\u0007\\u200b\\u001b[31mred" in seen.text
    assert not {"\u202e", "\u200b", "\u0007", "\x1b"} & set(page)
    assert "x" * 3000 in seen.text
    assert "hunter2" not in page
    assert "hunter2" not in report.report_metrics(ask(file))


def test_the_page_shows_the_figures_and_why_each_was_decided(file: File) -> None:
    answer = ask(file)
    text = " ".join(Reader(page_of(answer)).text.split())
    share, again = answer["figures"]["share"], answer["figures"]["recurred"]
    assert f"{share['numerator']} of {share['denominator']} that were wrong and have ended" in text
    assert f"{again['count']} of {again['of']} that were healed" in text
    for ending, label in report.ENDINGS.items():
        assert f"{label}{' (counted as without a human)' if ending == 'healed_alone' else ''} {share['ended'][ending]}" in text
    for remedy in answer["figures"]["remedies"]:
        told = " ".join(f"{remedy['outcomes'][outcome]} {label}" for outcome, label in report.LABELS.items() if outcome in remedy["outcomes"])
        assert f"{remedy['key']} {remedy['count']} {told}" in " ".join(text.split())
    for row in answer["remediations"]:
        assert row["id"] in text
        assert all(f"{entry['seq']}:{entry['hash']}" in text for entry in row["details"]["entries"])
    assert "by rule ask before memory" in text
    assert "✓ clock, ✓ pause, ✗ rule" in text
    assert "- memory: 512MiB + memory: 1GiB" in text
    assert "by bob over cli" in text
    assert "not approved: bob said no" in text
    assert "memory levels off below its limit: 61 (before: 97)" in text
    assert answer["head"] in text
    assert text.count(" UTC") > len(answer["remediations"])


def test_what_is_left_out_of_the_page_is_in_its_figures(file: File) -> None:
    answer = ask(file, limit=5)
    text = " ".join(Reader(page_of(answer)).text.split())
    assert f"The newest 5 of {answer['found']}; {answer['found'] - 5} older ones are not shown" in text
    assert page_of(answer).count('<details id="') == 5


def test_an_empty_ledger_is_no_trouble(tmp_path: Path) -> None:
    store = File(tmp_path / "ledger.db")
    for since in ("30d", None):
        answer = ask(store, since=since)
        assert "None began." in page_of(answer)
        assert answer["figures"]["share"]["denominator"] == 0
        assert list(text_string_to_metric_families(report.report_metrics(answer)))
    assert not store.path.exists()


def test_years_are_drawn_in_weeks(file: File) -> None:
    assert len(ask(file, since="52w")["figures"]["days"]) == 53
    assert len(ask(file, since=None)["figures"]["days"]) in (41, 42)


@pytest.fixture
def host(tmp_path: Path) -> Controller:
    controller = Controller(tmp_path)
    with File(controller.ledger).open() as ledger:
        month(ledger, time.time())
    return controller


def test_the_playbook_writes_both_for_nobody_else_to_read(host: Controller) -> None:
    paths: dict[str, t.Any] = {"report_path": str(host.folder / "made/report.html"), "report_metrics_path": str(host.folder / "healer.prom")}
    run = host.play("homelab.healer.report", "--check", "--diff", **paths)
    assert run.returncode == 0, run.output
    assert not (host.folder / "made").exists()
    assert not list(host.folder.glob("healer.prom*"))
    for _time in range(2):
        run = host.play("homelab.healer.report", "--diff", **paths)
        assert run.returncode == 0, run.output
        assert "<html" not in run.output
        assert "homelab_healer_remediations_total" not in run.output
    page, metrics = host.folder / "made/report.html", host.folder / "healer.prom"
    assert [oct(path.stat().st_mode & 0o777) for path in (page.parent, page, metrics)] == ["0o750", "0o640", "0o644"]
    assert list(host.folder.glob("healer.prom*")) == [metrics]
    assert os.listdir(page.parent) == ["report.html"]
    assert page.read_text().rstrip().endswith("</html>")
    assert list(text_string_to_metric_families(metrics.read_text()))
    assert "Healed without a human: 30 of 72" in run.output
    assert not list(host.folder.rglob("owned"))
    told = json.loads((host.folder / "stats.json").read_text())
    assert "share" in json.dumps(told)


def test_tables_of_others_are_shown_as_they_are(host: Controller) -> None:
    page = host.folder / "report.html"
    tables = [{"title": "A drill", "columns": ["probe", "after"], "rows": [["the <b>shop</b> answers", "well"], ["backups", "NOT WELL"]]}]
    run = host.play("homelab.healer.report", report_path=str(page), report_tables=tables)
    assert run.returncode == 0, run.output
    text = " ".join(Reader(page.read_text()).text.split())
    assert "A drill probe after the <b>shop</b> answers well backups NOT WELL" in text
    run = host.play("homelab.healer.report", report_path=str(page), report_tables=[{"title": "A drill", "columns": ["probe"]}])
    assert run.returncode != 0
    assert "missing required arguments: rows" in run.output


def test_a_name_that_node_exporter_does_not_read_is_refused(host: Controller) -> None:
    run = host.play("homelab.healer.report", report_metrics_path=str(host.folder / "healer.txt"), report_path=str(host.folder / "report.html"))
    assert run.returncode != 0
    assert "a name that ends in .prom is needed" in run.output
    assert not (host.folder / "report.html").exists()


CONTRAST = """
(() => {
  const parse = (text) => { const n = text.match(/[0-9.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; }
    return [255, 255, 255, 1]; };
  const bad = [];
  let seen = 0;
  for (const e of document.body.querySelectorAll('*')) {
    const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const shape = e.tagName === 'use';
    if (!(words || shape) || ['TITLE', 'SYMBOL'].includes(e.tagName.toUpperCase()) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const colour = parse(e.tagName === 'text' ? style.fill : style.color);
    const [a, b] = [light(colour), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    seen += 1;
    if (ratio < (shape ? 3 : 4.5)) bad.push(`${ratio.toFixed(2)} ${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`);
  }
  return JSON.stringify({seen, bad});
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_reads_in_a_real_browser(file: File, chromium: Browser, width: int, dark: bool) -> None:
    page = file.path.parent / "report.html"
    page.write_text(page_of(ask(file)))
    chromium.show(page, width, dark)
    for opened in (False, True):
        chromium.run(f"document.querySelectorAll('details').forEach((one) => {{ one.open = {str(opened).lower()}; }})")
        assert chromium.run("document.scrollingElement.scrollWidth") <= width
        told = json.loads(chromium.run(CONTRAST))
        assert told["bad"] == []
        assert told["seen"] > (1000 if opened else 300)
    assert chromium.run("document.title").startswith("Remediations until ")
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == ("rgb(17, 21, 26)" if dark else "rgb(255, 255, 255)")
    assert chromium.run("document.querySelectorAll('script, img').length") == 0
    assert chromium.run("performance.getEntriesByType('resource').length") == 0
    shapes = chromium.run("new Set([...document.querySelectorAll('.lanes > svg use')].map((one) => one.getAttribute('href'))).size")
    assert shapes == 7


def test_it_prints(file: File, chromium: Browser) -> None:
    page = file.path.parent / "report.html"
    page.write_text(page_of(ask(file)))
    chromium.show(page, 1280)
    chromium.printed(file.path.parent / "report.pdf")
    assert (file.path.parent / "report.pdf").read_bytes().startswith(b"%PDF")
