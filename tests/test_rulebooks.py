"""Rulebooks: from an alert to a remedy, to its outcome and what follows, and everything else into the record. Run by ``ansible-rulebook`` itself."""

from __future__ import annotations

import importlib.util
import json
import re
import time
import typing as t
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from ansible_rulebook.validators import Validate
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from jinja2.nativetypes import NativeEnvironment

from ansible_collections.homelab.healer.plugins.module_utils._alerts import PATTERNS, TAKES, answer, read
from tests.conftest import NO_RULEBOOK
from tests.lab.playbooks import COLLECTION, Controller
from tests.lab.proxmox.client import Proxmox
from tests.lab.rulebook import Rulebook, alert_of, missing
from tests.test_alert_rules import ALERTS, table
from tests.test_lxc_chain import QUICK, memory

HOME = COLLECTION / "extensions/eda/rulebooks"
FILTER = COLLECTION / "extensions/eda/plugins/event_filter/plain.py"
FORMS = ("alertmanager", "webhook", "schedule")
Rules = list[dict[str, t.Any]]


def rules(name: str) -> Rules:
    (ruleset,) = yaml.safe_load((HOME / f"{name}.yml").read_text())
    return list(ruleset["rules"])


def plain(event: t.Any) -> t.Any:
    spec = importlib.util.spec_from_file_location("plain", FILTER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(event)


@pytest.fixture(scope="module")
def _programs() -> None:
    if missing():
        pytest.skip(f"{NO_RULEBOOK}: {missing()}: run tests/lab/prepare as root")


needs_programs = pytest.mark.usefixtures("_programs")


# What is written


@pytest.mark.parametrize("path", sorted(HOME.glob("*.yml")), ids=lambda path: path.stem)
def test_a_rulebook_keeps_the_schema(path: Path) -> None:
    """ansible-rulebook asks for that where it is given a path, and not where it is given the name of a collection's rulebook."""
    Validate.rulebook(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("name", FORMS)
def test_both_forms_of_a_rulebook_are_the_same(name: str) -> None:
    """eda-server knows no run_playbook, and the command line needs no AWX; nothing else is another."""
    playbooks, jobs = ((HOME / f"{form}.yml").read_text() for form in (name, f"{name}_jobs"))
    (rulebook,) = yaml.safe_load(playbooks)
    for rule in rulebook["rules"]:
        action = rule["action"].pop("run_playbook", None)
        if action:
            given = action.pop("extra_vars", None)
            action.update({"organization": "{{ healer_organization | default('Default') }}"}, **({"job_args": {"extra_vars": given}} if given else {}))
            rule["action"] = {"run_job_template": action}
    assert [rulebook] == yaml.safe_load(jobs)


def admitted(name: str, prefix: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Of each rule with a remedy: what it is for, the remedy, and the pattern of each label."""
    found = {}
    for rule in rules(name):
        wanted = re.search(r'(?:alertname|remedy) == "(\w+)"', rule["condition"])
        if wanted and "answered" not in rule["condition"]:
            patterns = dict(re.findall(rf'{prefix}\.labels\.(\w+) is match\("(.+?)"\)', rule["condition"]))
            found[wanted[1]] = (rule["action"]["run_playbook"]["extra_vars"]["remedy"], patterns)
    return found


def test_each_alert_for_the_healer_has_a_rule_that_calls_its_remedy() -> None:
    found = admitted("alertmanager", "event")
    assert set(found) == {name for name, rule in ALERTS.items() if rule["labels"]["answered_by"] == "healer"}
    for alert, (remedy, patterns) in found.items():
        (playbook,) = re.findall(r"`((?:heal|restart)_\w+)`", table()[alert][3])
        assert playbook == {"pg_service": "restart_postgres"}.get(remedy, f"heal_{remedy}")
        named = set(re.findall(r"with `(\w+)`", table()[alert][3]))
        assert set(patterns) == {"instance"} | named
    assert {remedy for remedy, _patterns in found.values()} == set(TAKES)
    assert set(admitted("webhook", "event.payload")) == set(TAKES)


@pytest.mark.parametrize(("name", "prefix"), [("alertmanager", "event"), ("webhook", "event.payload")])
def test_a_rule_admits_what_the_playbook_does(name: str, prefix: str) -> None:
    for remedy, patterns in admitted(name, prefix).values():
        assert patterns == {label: f"^{PATTERNS[label]}$" for label in patterns}
        assert set(patterns) <= {"instance", TAKES[remedy][1]}
        assert (COLLECTION / f"roles/{remedy}/meta/argument_specs.yml").exists()


def test_each_rule_throttles_by_all_that_it_admits() -> None:
    """Where a rule is throttled by less than its target, one target's alert would be taken for another's."""
    for name, prefix in (("alertmanager", "event"), ("webhook", "event.payload")):
        for rule in rules(name):
            for label in re.findall(rf"{prefix}\.labels\.(\w+) is match", rule["condition"]):
                assert f"{prefix}.labels.{label}" in rule["throttle"]["group_by_attributes"], rule["name"]


def test_nothing_of_an_event_is_given_to_ansible_but_encoded() -> None:
    for name in FORMS:
        for rule in rules(name):
            for variable, value in rule["action"].get("run_playbook", {}).get("extra_vars", {}).items():
                assert variable != "alert" or re.fullmatch(r"\{\{ .+ \| tojson \| urlencode \}\}", value)
                assert variable == "alert" or "{{" not in str(value)


# What reaches an interpreter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["{{ 1 }}", "{% if 1 %}", "{# #}", "a\nb", "%7B", "$ANSIBLE_VAULT;1.1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(["meta", "{{ 2 }}"]), inner, max_size=4),
    max_leaves=12,
)


def texts(value: t.Any) -> t.Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from texts(key)
            yield from texts(below)
    elif isinstance(value, list):
        for below in value:
            yield from texts(below)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_no_event_has_anything_to_evaluate(event: dict[str, t.Any]) -> None:
    told = plain(event)
    for text in texts(told):
        assert not re.search(r"\{[{%#]|[\x00-\x1f]", text)
        assert Environment().from_string(text).render() == text
    assert '"meta":' not in json.dumps(told)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_what_a_rule_passes_on_is_one_word(event: dict[str, t.Any]) -> None:
    """As the rule's own template makes it, of the event that the filter left; and the playbook reads that again."""
    passed = NativeEnvironment().from_string("{{ event | tojson | urlencode }}").render(event=plain(event))
    assert isinstance(passed, str)
    assert re.fullmatch(r"[A-Za-z0-9%_.~/-]+", passed)
    assert len(read(passed)) >= 1


GROUPS = {"proxmox": ["pve"], "docker": ["nas"], "postgresql": ["db"], "all": ["pve", "nas", "db", "localhost"], "ungrouped": ["localhost"]}


HOSTS = st.text(max_size=20) | st.sampled_from(["pve", "pve\n", "all", "*", "pve,db", "pve:db", "@/etc/passwd", "~p.*", "!pve"])


@given(HOSTS, st.text(max_size=12), st.sampled_from([*TAKES, ""]))
def test_only_a_host_of_the_inventory_and_a_name_that_fits_are_answered(instance: str, value: str, remedy: str) -> None:
    label = TAKES[remedy][1] if remedy else "vmid"
    (alert,) = read(quote(json.dumps(alert_of({"instance": instance, label: value}))))
    told = answer(alert, remedy, GROUPS)
    if not told["why"]:
        assert told["host"] in GROUPS[TAKES[remedy][0]]
        assert told[label] == value
        assert value == "" or re.fullmatch(PATTERNS[label], value)
    else:
        assert (told["host"], told["vmid"], told["container"], told["database"]) == ("localhost", "", "", "")


def test_a_host_that_is_a_group_too_is_not_answered() -> None:
    (alert,) = read(quote(json.dumps(alert_of({"instance": "pve", "vmid": "200"}))))
    assert "a group as well" in answer(alert, "lxc_memory", {**GROUPS, "pve": ["pve", "pve2"]})["why"]
    assert answer(alert, "docker_runaway", GROUPS)["why"] == "it has no label container"
    (alert,) = read(quote(json.dumps(alert_of({"instance": "pve", "container": "app"}))))
    assert answer(alert, "docker_runaway", GROUPS)["why"] == "the inventory's group docker has no host pve"


# A rulebook at work


@pytest.fixture
def house(pve: Proxmox, pve_controller: Controller, _programs: None) -> t.Iterator[Rulebook]:
    """A cluster whose container 200 is short of memory, and the rulebook for Alertmanager."""
    pve.set_guest(200, workload={"memory": 2100})
    pve.advance(3600)
    pve_controller.inventory(**QUICK, remediate_pause=0)
    with Rulebook(pve_controller) as rulebook:
        yield rulebook


def wait(check: t.Callable[[], bool], rulebook: Rulebook, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until, rulebook.told[-6000:]
        time.sleep(0.2)


SHORT = {"alertname": "LxcMemoryHigh", "instance": "pve", "vmid": "200", "severity": "warning", "answered_by": "healer"}


def test_a_thousand_alerts_for_one_target_are_one_remediation(house: Rulebook, pve: Proxmox) -> None:
    began = time.monotonic()
    for _hundred in range(10):
        assert house.alert(*[SHORT] * 100) == 200
    assert time.monotonic() - began < 60
    wait(lambda: [row.state for row in house.remediations()] == ["healed"], house)
    assert memory(pve) > 2100
    house.alert(SHORT)  # again, within the throttle
    house.alert(SHORT, status="resolved")
    time.sleep(12)  # what no rule knows would have been written down by now
    assert [row.state for row in house.remediations()] == ["healed"]
    assert house.alerts() == []
    times = house.last("closed")["times"]
    assert times["alerted"] <= times["received"] <= times["started"]


HOSTILE: dict[str, dict[str, t.Any]] = {
    "Jinja": {"vmid": "{{ lookup('pipe', 'touch %OWNED%') }}"},
    "Jinja in a host": {"instance": "{{ lookup('pipe', 'touch %OWNED%') }}"},
    "Jinja in the name": {"alertname": "{{ lookup('pipe', 'touch %OWNED%') }}"},
    "Jinja in a label's name": {"{{ lookup('pipe', 'touch %OWNED%') }}": "x", "vmid": "x"},
    "a block of Jinja": {"vmid": "{% set x = lookup('pipe', 'touch %OWNED%') %}200"},
    "Jinja in what is not asked": {"vmid": "7", "x": "{{ lookup('pipe', 'touch %OWNED%') }}"},
    "a shell": {"vmid": "200; touch %OWNED%"},
    "a shell's substitution": {"vmid": "$(touch %OWNED%)"},
    "a shell's old substitution": {"vmid": "`touch %OWNED%`"},
    "SQL": {"alertname": "PostgresBlocked", "instance": "pve", "database": "prod'; DROP TABLE events; --"},
    "SQL in quotes": {"alertname": "PostgresBloat", "instance": "pve", "database": 'prod"; DROP TABLE events; --'},
    "a path": {"vmid": "../../etc/passwd"},
    "a path of a container": {"alertname": "DockerContainerRunaway", "container": "../../etc/passwd"},
    "a path as a host": {"instance": "@/etc/passwd"},
    "all hosts": {"instance": "all"},
    "any host": {"instance": "*"},
    "several hosts": {"instance": "pve,localhost"},
    "a host pattern": {"instance": "pve:!nothing"},
    "a regular expression": {"instance": "~.*"},
    "a host's neighbour": {"instance": "localhost"},
    "a line more": {"vmid": "200\n"},
    "a line before": {"vmid": "\n200"},
    "another digit": {"vmid": "\u0662\u0660\u0660"},
    "a sign": {"vmid": "-200"},
    "a fraction": {"vmid": "200.0"},
    "a list": {"vmid": ["200"]},
    "nothing": {"vmid": ""},
    "a vault": {"vmid": "$ANSIBLE_VAULT;1.1;AES256\n6162"},
    "a long one": {"vmid": "2" * 5000},
    "an unknown alert": {"alertname": "DoorOpen"},
    "a case": {"alertname": "lxcmemoryhigh"},
}


def test_hostile_alerts_are_refused_and_recorded_and_reach_nothing(house: Rulebook, pve: Proxmox, tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    pve.clear()
    for what, labels in HOSTILE.items():
        told = json.loads(json.dumps({**SHORT, "what": what, **labels}).replace("%OWNED%", str(owned)))
        sent = alert_of(told)
        sent["meta"] = {"hosts": "localhost"}
        sent["annotations"] = {"summary": f"{{{{ lookup('pipe', 'touch {owned}') }}}}"}
        assert house.send({"alerts": [sent]}) == 200, what
    for body in ({"no": "alerts"}, {"alerts": [], "x": 1}, {"alerts": [{"labels": {"what": "bare"}}]}):
        house.send(body)
    assert house.send({"alerts": ["text"]}) >= 400  # and it goes on
    assert house.send(b"no json") >= 400
    assert house.send({"alerts": [alert_of(SHORT)]}, token="of-somebody") == 401
    wanted = {*HOSTILE, "bare"}
    wait(lambda: {alert["labels"].get("what") for alert in house.alerts()} >= wanted, house)
    assert not owned.exists()
    assert house.remediations() == []
    assert pve.requests() == []
    assert all(alert["why"] for alert in house.alerts())
    assert "of-the-rulebook" not in house.told + json.dumps(house.alerts())
    house.alert({**SHORT, "what": "an honest one"})
    wait(lambda: [row.state for row in house.remediations()] == ["healed"], house)


def test_the_next_rung_follows_where_the_first_did_not_help(house: Rulebook, pve: Proxmox) -> None:
    """What came of it comes back as an event; a server that nobody can reach is one whose sessions could not be ended."""
    house.controller.add("postgresql", db={"healer_postgresql": {"login_host": "127.0.0.1", "login_port": 1, "connect_timeout": 1}})
    house.alert({"alertname": "PostgresConnectionsHigh", "instance": "db"})
    wait(lambda: [row.remedy for row in house.remediations()] == ["pg_connections", "pg_blocker"], house)
    assert [row.state for row in house.remediations()] == ["needs_human"] * 2
