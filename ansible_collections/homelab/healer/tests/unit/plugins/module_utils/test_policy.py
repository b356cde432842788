# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
import typing as t
from dataclasses import fields, replace
from pathlib import Path

import pytest
import zoneinfo
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.homelab.healer.plugins.module_utils import _policy
from ansible_collections.homelab.healer.plugins.module_utils._errors import Invalid, MissingLibrary
from ansible_collections.homelab.healer.plugins.module_utils._policy import BUILT_IN_RULES, DECISIONS, SECTIONS, Plan, Policy, Target, Verdict, read

COLLECTION = Path(__file__).parents[4]
EXAMPLE = COLLECTION / "docs/policy.example.yml"
Document = t.Dict[str, t.Any]


def policy(own_hosts: t.Sequence[str] = (), own_database: str | None = None, **document: t.Any) -> Policy:
    return read(json.dumps({"version": 1, **document}), "policy.yml", own_hosts, own_database)


def rule(name: str, decision: str, match: Document | None = None, **limits: t.Any) -> Document:
    return dict(name=name, decision=decision, match=match or {}, **limits)


def lxc(**facts: t.Any) -> Target:
    return Target.of("pve", {**dict(kind="lxc", id=201, name="201 (web)", node="pve1", tags=["lab"], pool="", hostname="web"), **facts})


def container(**facts: t.Any) -> Target:
    return Target.of("nas", {**dict(kind="container", id="4c01", name="app", labels={"com.docker.compose.project": "media"}, hostname="4c01"), **facts})


def table(*databases: str, **facts: t.Any) -> Target:
    return Target.of("db", {**dict(kind="table", id="16402", name="public.events", databases=list(databases)), **facts})


def resize(before: t.Any = 2048, after: t.Any = 4096, reversibility: str = "exact", key: str = "memory") -> Plan:
    step = dict(module="homelab.healer.lxc_resources", args={"vmid": [201], key: str(after)}, before={"201": {key: before}}, after={"201": {key: after}})
    return Plan([dict(step, reversibility=reversibility)])


def vacuum(full: t.Any = False, **args: t.Any) -> Plan:
    step = dict(module="homelab.healer.pg_vacuum", args=dict(args, full=full), before={"16402": {"vacuum_count": 1}}, after={"16402": {"vacuum_count": 9}})
    return Plan([dict(step, reversibility="none")])


BUILT_IN = read(None, "the built-in policy", own_hosts=["controller"])


@pytest.mark.parametrize(
    ("remedy", "target", "plan", "decision", "name"),
    [
        ("lxc_memory", lxc(), resize(), "auto", "small changes with a way back"),
        ("lxc_memory", lxc(id=200), resize(), "approve", "container 200"),
        ("lxc_memory", lxc(id="200"), resize(), "approve", "container 200"),
        ("docker_runaway", container(id="200"), resize("default", 1.5, "equivalent", "cpus"), "auto", "small changes with a way back"),
        ("docker_runaway", container(), resize("default", 1.5, "none", "cpus"), "approve", "no way back"),
        ("docker_runaway", container(), Plan([{}]), "approve", "no way back"),
        ("lxc_snapshot", lxc(), resize("absent", "present", key="daily"), "auto", "small changes with a way back"),
        ("lxc_snapshot", lxc(), resize("present", "absent", "none", "daily"), "approve", "no way back"),
        ("lxc_resources", lxc(), resize(), "approve", "unknown"),
        ("a remedy that nobody knows", lxc(), resize(), "approve", "unknown"),
        ("pg_bloat", table("app"), vacuum(), "auto", "plain vacuum"),
        ("pg_vacuum", table("app"), vacuum("no"), "auto", "plain vacuum"),
        ("pg_vacuum", table("app"), Plan([{"args": {}, "reversibility": "none"}]), "approve", "no way back"),
        *[("pg_bloat", table("app"), vacuum(full), "approve", "full rewrite") for full in (True, "true", "yes", "True", 1, "on", "what")],
        *[("pg_bloat", table(name), vacuum(), "approve", "production databases") for name in ("prod", "production", "prod2", "Prod", "PRODUCTION_EU")],
        ("pg_bloat", table("app", "prod"), vacuum(), "approve", "production databases"),
        ("pg_bloat", table("preprod"), vacuum(), "auto", "plain vacuum"),
        ("pg_blocker", table("app", kind="session"), Plan([{"reversibility": "none"}]), "approve", "no way back"),
        ("pg_bloat", Target.of("db", dict(kind="table", id="1", name="t")), vacuum(), "approve", "production databases"),
    ],
)
def test_the_built_in_policy(remedy: str, target: Target, plan: Plan, decision: str, name: str) -> None:
    verdict = BUILT_IN.judge(remedy, target, plan)
    assert (verdict.decision, verdict.rule) == (decision, f"built-in: {name}")
    assert verdict.rule in verdict.why
    assert DECISIONS.index(BUILT_IN.judge(remedy, target, None).decision) >= DECISIONS.index(decision)


def test_limits_are_the_rules_own_or_those_of_all() -> None:
    own = dict(cooldown="0", max_per_window=1, max_in_flight=2, max_growth=7, max_shrink=8, wait_for_backup=90, approval=dict(wait="1h", channels=["command"]))
    found = policy(rules=[rule("own", "approve", {"remedy": "a"}, **own), rule("all", "approve")], approval=dict(on_timeout="needs_human"))
    verdict = found.judge("a", lxc(), resize())
    assert (verdict.cooldown, verdict.max_per_window, verdict.max_in_flight, verdict.max_growth, verdict.max_shrink) == (0, 1, 2, 7, 8)
    assert verdict.wait_for_backup == 90
    assert verdict.as_dict()["approval"] == dict(wait=3600, expires=3600, on_timeout="needs_human", channels=["command"])
    verdict = found.judge("b", lxc(), resize())
    assert (verdict.rule, verdict.cooldown, verdict.max_per_window, verdict.max_in_flight, verdict.max_growth) == ("all", 900, None, None, 100)
    assert verdict.approval == found.approval


MATCHES: list[tuple[Document, Target, bool]] = [
    ({}, lxc(), True),
    ({"host": "pv?"}, lxc(), True),
    ({"host": ["a", "b"]}, lxc(), False),
    ({"kind": "LXC", "id": 201, "name": "*(web)", "node": ["pve1", "pve2"], "tags": "lab", "pool": ""}, lxc(), True),
    ({"kind": "lxc", "node": "pve2"}, lxc(), False),
    ({"tags": ["prod*", "lab"]}, lxc(tags=["db", "lab"]), True),
    ({"tags": "lab"}, lxc(tags=[]), False),
    ({"pool": "lab"}, lxc(), False),
    ({"labels": {"com.docker.compose.project": ["me*", "x"]}}, container(), True),
    ({"labels": {"other": "*"}}, container(), False),
    ({"labels": {"on": True}}, container(labels={"on": True}), True),
    ({"database": "a*"}, table("b", "app"), True),
    ({"database": "*"}, table(), False),
    # what a kind cannot have is no unknown
    ({"labels": {"critical": "true"}}, lxc(), False),
    ({"database": "*"}, container(), False),
    ({"node": "*"}, table("app"), False),
    # what it could have and does not tell is
    ({"pool": "lab"}, lxc(pool=None), True),
    ({"tags": "lab"}, lxc(tags=None), True),
    ({"node": "pve2"}, lxc(node=None), True),
    ({"node": "pve2", "kind": "container"}, lxc(node=None), False),
    ({"labels": {"x": "y"}}, container(labels=None), True),
    ({"labels": {"token": "y"}}, container(labels={"token": None}), True),
    ({"database": "x"}, Target.of("db", {"kind": "session"}), True),
    ({"node": "x", "labels": {"x": "y"}}, Target.of("new", {"kind": "something new"}), True),
]


@pytest.mark.parametrize(("match", "target", "matches"), MATCHES)
def test_what_tightens_matches_what_is_or_could_be_meant(match: Document, target: Target, matches: bool) -> None:
    for decision in ("off", "dry_run"):
        verdict = policy(rules=[rule("first", decision, match), rule("second", "approve")]).judge("r", target, resize())
        assert verdict.rule == ("first" if matches else "second"), verdict.why
        assert verdict.decision == (decision if matches else "approve")
    protected = policy(protected=[match]).judge("r", target, None) if match else None
    assert protected is None or (protected.decision == "off") == matches
    frozen = policy(freeze=[dict(name="f", begin="2026-01-01", end="2026-01-01", targets=match)]).freeze("r", target, 1767225600)
    assert (frozen is not None) == matches


@pytest.mark.parametrize(
    ("match", "target", "decision"),
    [
        ({"pool": "lab"}, lxc(pool="lab"), "auto"),
        ({"pool": "lab"}, lxc(pool=None), "approve"),
        ({"database": "test*"}, table("test1", "test2"), "auto"),
        ({"database": "test*"}, table("test1", "app"), "approve"),
        ({"database": "test*"}, table(), "approve"),
        ({}, Target.of("db", {"kind": "session", "id": 1}), "approve"),
        ({}, Target.of("db", {"kind": "table", "id": 1, "databases": ["app"]}), "auto"),
    ],
)
def test_what_loosens_matches_only_what_is_known(match: Document, target: Target, decision: str) -> None:
    verdict = policy(rules=[rule("loose", "auto", match)]).judge("r", target, resize())
    assert verdict.decision == decision
    if decision == "approve" and "pool" in match:
        assert "The rule loose does not count, as pool of 201 (web) is not known." in verdict.why


@pytest.mark.parametrize(
    ("asked", "given", "tightens", "loosens"),
    [
        ({"full": True}, [{"full": True}], True, True),
        ({"full": "yes"}, [{"full": "1"}], True, True),
        ({"full": True}, [{"full": False}], False, False),
        ({"full": True}, [{}], False, False),
        ({"full": False}, [{"full": False}, {"full": True}], True, False),
        ({"full": False}, [{"full": False}, {}], True, True),
        ({"full": False}, [{"full": "{{ what }}"}], True, False),
        ({"tables": "public.*"}, [{"tables": ["public.a", "secret.b"]}], True, False),
        ({"tables": "public.*"}, [{"tables": ["public.a", "public.b"]}], True, True),
        ({"timeout": [60, "9?"]}, [{"timeout": 95}], True, True),
        ({"full": True, "timeout": 60}, [{"full": True, "timeout": 61}], False, False),
    ],
)
def test_options_of_the_steps(asked: Document, given: list[Document], tightens: bool, loosens: bool) -> None:
    plan = Plan([dict(args=args, reversibility="exact") for args in given])
    found = policy(rules=[rule("it", "dry_run", {"options": asked})])
    assert (found.judge("r", lxc(), plan).rule == "it") == tightens
    found = policy(rules=[rule("it", "auto", {"options": asked})])
    assert (found.judge("r", lxc(), plan).decision == "auto") == loosens


def test_before_there_is_a_plan_only_what_could_never_be_allowed_is_stopped() -> None:
    full = rule("never full", "off", {"options": {"full": True}})
    found = policy(rules=[full, rule("vacuum", "auto", {"remedy": "pg_vacuum"}, cooldown="2h")])
    assert [found.judge("pg_vacuum", table("app"), plan).decision for plan in (None, vacuum(), vacuum(True))] == ["auto", "auto", "off"]
    found = policy(rules=[rule("exact", "approve", {"reversibility": "exact"}, cooldown="1h", max_per_window=1), rule("else", "off", cooldown="2h")])
    verdict = found.judge("r", lxc(), None)
    assert (verdict.decision, verdict.rule, verdict.cooldown, verdict.max_per_window) == ("approve", "exact", 3600, None)
    assert found.judge("r", lxc(), resize(reversibility="none")).decision == "off"
    assert policy(rules=[rule("off", "off")]).judge("r", lxc(), None).decision == "off"


@pytest.mark.parametrize(
    ("match", "decision"),
    [({}, "approve"), ({"kind": "lxc"}, "approve"), ({"remedy": "*"}, "approve"), ({"remedy": "lxc_*"}, "auto"), ({"reversibility": "none"}, "auto")],
)
def test_what_cannot_be_put_back_is_auto_only_by_a_rule_that_means_it(match: Document, decision: str) -> None:
    found = policy(rules=[rule("it", "auto", match)])
    verdict = found.judge("lxc_restart", lxc(), resize(reversibility="none"))
    assert (verdict.decision, verdict.rule) == (decision, "it")
    assert found.judge("lxc_restart", lxc(), None).decision == "auto"


def test_the_healer_itself_is_never_touched() -> None:
    found = policy(["nas.example.org", "Controller"], "healer", rules=[rule("all", "auto", {"remedy": "r"})])
    for target in (lxc(hostname="nas"), lxc(hostname="controller.lan"), container(hostname="NAS"), table("app", "healer")):
        verdict = found.judge("r", target, None)
        assert (verdict.decision, verdict.rule[:21]) == ("off", "built-in: the healer'")
    assert found.judge("r", lxc(hostname="nas2"), resize()).decision == "auto"
    assert found.judge("r", lxc(hostname=None), resize()).decision == "approve"
    assert "its host name is not known" in found.judge("r", lxc(hostname=None), resize()).why
    assert found.judge("r", table("healer2"), resize()).decision == "auto"
    assert "which databases are touched is not known" in found.judge("r", table(databases=None), resize()).why


@pytest.mark.parametrize(
    ("before", "after", "key", "told"),
    [
        (2048, 4096, "memory", ""),
        (2048, 4097, "memory", "memory of 201 would go from 2048 to 4097, 100 % more, and max_growth is 100 %"),
        (2048, 1024, "memory", ""),
        (2048, 1000, "memory", "memory of 201 would go from 2048 to 1000, 51 % less, and max_shrink is 50 %"),
        ("1.5", 3, "cpus", ""),
        (0.1, 0.2, "cpus", ""),
        ("1.5", "3.1", "cpus", "cpus of 201 would go from 1.5 to 3.1, 107 % more, and max_growth is 100 %"),
        ("1GiB", "2g", "memory", ""),
        ("1GiB", "3g", "memory", "memory of 201 would go from 1GiB to 3g, 200 % more, and max_growth is 100 %"),
        (2048, "4GiB", "memory", "memory of 201 would go from 2048 to 4GiB, and how much that is cannot be told"),
        (0, 512, "swap", "swap of 201 would go from 0 to 512, from nothing, and max_growth is 100 %"),
        (512, 0, "swap", "swap of 201 would go from 512 to 0, 100 % less, and max_shrink is 50 %"),
        (0, 0, "swap", ""),
        ("default", 1.5, "cpus", ""),
        (1.5, "default", "cpus", ""),
        (None, 5, "cpus", ""),
        (True, 5, "cpus", ""),
        ("0", "3", "cpuset_cpus", ""),
        (3, 4000, "vacuum_count", ""),
        (1234, 0, "pid", ""),
        ("absent", "present", "daily", ""),
    ],
)
def test_a_change_that_is_too_big_is_asked_about(before: t.Any, after: t.Any, key: str, told: str) -> None:
    found, plan = policy(rules=[rule("it", "auto")]), resize(before, after, key=key)
    verdict = found.judge("r", lxc(), plan)
    assert found.too_big(verdict, plan) == ([told] if told else [])
    assert (verdict.decision, verdict.rule) == ("approve" if told else "auto", "it")
    assert told in verdict.why


def test_a_rule_may_allow_more() -> None:
    found = policy(limits=dict(max_growth=10), rules=[rule("it", "auto", max_growth=300, max_shrink=100)])
    assert found.judge("r", lxc(), resize(1024, 4096)).decision == "auto"
    assert found.judge("r", lxc(), resize(1024, 0)).decision == "auto"


def test_targets() -> None:
    target = Target.of("db", {"kind": "sessions", "id": 7, "more": 1})
    assert target == Target("db", "sessions", "7", "")
    assert {Target.of("db", {"kind": kind, "id": "x"}).key for kind in ("session", "sessions", "postgresql")} == {"db/postgresql"}
    assert table("app").key == "db/table/16402"
    assert Target.of("h", {"tags": None, "labels": ["no map"], "pool": "", "node": "", "databases": "one"}) == Target(
        "h", "", "", "", pool="", databases=("one",)
    )
    assert {field.name for field in fields(Target)} >= {"host", "kind", "id", "name", "hostname", "node", "tags", "pool", "labels", "databases"}


# Properties


def any_match() -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries(
        {},
        optional=dict(
            remedy=st.sampled_from(["a", "b", "*"]),
            kind=st.sampled_from(["lxc", "container", "table"]),
            node=st.sampled_from(["n1", "n*"]),
            tags=st.sampled_from(["t1", ["t1", "t2"]]),
            pool=st.sampled_from(["", "p"]),
            labels=st.just({"l": "v"}),
            database=st.sampled_from(["d1", "d*"]),
            options=st.sampled_from([{"full": True}, {"full": False}]),
            reversibility=st.sampled_from(["exact", ["restore_only", "none"]]),
        ),
    )


def any_rules() -> st.SearchStrategy[list[Document]]:
    limits = st.fixed_dictionaries({}, optional=dict(cooldown=st.sampled_from(["0", "1h"]), max_growth=st.sampled_from([10, 500]), max_in_flight=st.just(1)))
    one = st.builds(lambda match, decision, own: dict(own, match=match, decision=decision), any_match(), st.sampled_from(DECISIONS), limits)
    return st.lists(one, max_size=5).map(lambda rules: [dict(found, name=f"r{index}") for index, found in enumerate(rules)])


TARGETS = st.builds(
    Target,
    host=st.just("h"),
    kind=st.sampled_from(["lxc", "container", "table", "something new"]),
    id=st.just("1"),
    name=st.just("it"),
    hostname=st.sampled_from([None, "own", "other"]),
    node=st.sampled_from([None, "n1", "n2"]),
    tags=st.sampled_from([None, (), ("t1",), ("t2", "t3")]),
    pool=st.sampled_from([None, "", "p"]),
    labels=st.sampled_from([None, {}, {"l": "v"}, {"l": "w"}]),
    databases=st.sampled_from([None, (), ("d1",), ("d1", "e"), ("ledger",)]),
)
PLANS = st.builds(
    lambda full, after, reversibility: Plan(
        [dict(args={} if full is None else {"full": full}, before={"1": {"m": 10}}, after={"1": {"m": after}}, reversibility=reversibility)]
    ),
    st.sampled_from([None, True, False]),
    st.sampled_from([11, 30, 90]),
    st.sampled_from(["exact", "restore_only", "none"]),
)
OF_A_TARGET = ("hostname", "node", "tags", "pool", "labels", "databases")


def without(target: Target, names: t.Iterable[str]) -> Target:
    forgotten: dict[str, t.Any] = dict.fromkeys(names)
    return replace(target, **forgotten)


def rank(verdict: Verdict) -> int:
    return DECISIONS.index(verdict.decision)


@settings(deadline=None, max_examples=60)
@given(any_rules(), any_match(), TARGETS, PLANS, st.sets(st.sampled_from(OF_A_TARGET)))
def test_to_know_less_never_makes_it_looser(rules: list[Document], protected: Document, target: Target, plan: Plan, forgotten: set[str]) -> None:
    guarded = {key: value for key, value in protected.items() if key not in ("remedy", "options", "reversibility")}
    found = policy(["own"], "ledger", rules=rules, protected=[guarded] if guarded else [])
    # what a kind of target cannot have is nothing to forget, so it is not told in the first place
    whole = without(target, [name for name in OF_A_TARGET if name not in _policy.TOLD.get(target.kind, OF_A_TARGET)])
    known, less = found.judge("a", whole, plan), found.judge("a", without(whole, forgotten), plan)
    if known.rule.startswith("built-in: the healer's own"):
        assert less.decision != "auto"  # that it is the healer's own can no longer be known
    else:
        assert rank(less) <= rank(known)


@settings(deadline=None, max_examples=60)
@given(any_rules(), TARGETS, PLANS)
def test_what_the_first_gate_stops_no_plan_would_have_allowed(rules: list[Document], target: Target, plan: Plan) -> None:
    found = policy(["own"], "ledger", rules=rules)
    first, second = found.judge("a", target, None), found.judge("a", target, plan)
    assert rank(first) >= rank(second)
    if second.decision != "off":
        assert first.cooldown <= second.cooldown
        assert second.max_in_flight is not None or first.max_in_flight is None


@settings(deadline=None, max_examples=60)
@given(any_rules(), any_rules(), TARGETS, PLANS)
def test_what_comes_after_a_match_changes_nothing(rules: list[Document], more: list[Document], target: Target, plan: Plan) -> None:
    found = policy(rules=[*rules, rule("everything", "dry_run")])
    after = policy(rules=[*rules, rule("everything", "dry_run"), *(dict(other, name=f"m{index}") for index, other in enumerate(more))])
    assert found.judge("a", target, plan) == after.judge("a", target, plan)
    assert found.judge("a", target, None) == after.judge("a", target, None)


@settings(deadline=None, max_examples=60)
@given(any_rules(), TARGETS, PLANS)
def test_every_decision_names_a_rule_that_there_is(rules: list[Document], target: Target, plan: Plan) -> None:
    found = policy(["own"], "ledger", rules=rules)
    verdict = found.judge("a", target, plan)
    assert verdict.rule in {*(one.name for one in found.rules), "built-in: the healer's own host", "built-in: the healer's own database"}
    assert json.loads(json.dumps(verdict.as_dict())) == verdict.as_dict()


# Freezes


def at(text: str, zone: str = "UTC", fold: int = 0) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=fold).timestamp()


def frozen(now: float, *windows: Document, remedy: str = "r") -> str | None:
    freeze = policy(freeze=[dict(dict(name=f"f{index}"), **window) for index, window in enumerate(windows)]).freeze(remedy, lxc(), now)
    return f"{freeze.name} {dt.datetime.fromtimestamp(freeze.until, dt.timezone.utc):%d %H:%M}" if freeze else None


EVENING = {"days": ["fri"], "from": "20:00", "to": "23:30"}
NIGHT = {"days": ["fri"], "from": "22:00", "to": "06:00"}


@pytest.mark.parametrize(
    ("now", "windows", "expected"),
    [
        ("2026-11-27 20:00", [EVENING], "f0 27 23:30"),
        ("2026-11-27 19:59", [EVENING], None),
        ("2026-11-27 23:30", [EVENING], None),
        ("2026-11-26 21:00", [EVENING], None),
        ("2026-11-28 05:59", [NIGHT], "f0 28 06:00"),
        ("2026-11-28 06:00", [NIGHT], None),
        ("2026-11-27 05:00", [NIGHT], None),
        ("2026-11-27 23:00", [{"from": "22:00", "to": "24:00"}], "f0 28 00:00"),
        ("2026-11-27 23:00", [{"days": ["sat", "sun"]}], None),
        ("2026-11-28 00:00", [{"days": ["sat", "sun"]}], "f0 30 00:00"),  # one day follows upon another
        ("2026-11-27 22:00", [EVENING, NIGHT], "f1 28 06:00"),
        ("2026-11-27 21:00", [EVENING, NIGHT], "f0 28 06:00"),
        ("2026-12-24 00:00", [{"begin": "2026-12-24", "end": "2026-12-26"}], "f0 27 00:00"),
        ("2026-12-27 00:00", [{"begin": "2026-12-24", "end": "2026-12-26"}], None),
        ("2026-12-24 18:00", [{"begin": "2026-12-24 18:00", "end": "2026-12-24T19:30"}], "f0 24 19:30"),
        ("2026-12-24 17:59", [{"begin": "2026-12-24 18:00", "end": "2026-12-24T19:30"}], None),
        ("2026-11-27 21:00", [{**EVENING, "begin": "2026-12-01", "end": "2026-12-31"}], None),
        ("2026-12-04 21:00", [{**EVENING, "begin": "2026-12-01", "end": "2026-12-04 22:00"}], "f0 04 22:00"),
        ("2026-11-27 21:00", [{**EVENING, "remedies": ["lxc_*"]}], None),
        ("2026-11-27 21:00", [{**EVENING, "remedies": ["x", "R"]}], "f0 27 23:30"),
        ("2026-11-27 19:00", [{**EVENING, "timezone": "Europe/Berlin"}], "f0 27 22:30"),
    ],
)
def test_freezes(now: str, windows: list[Document], expected: str | None) -> None:
    assert frozen(at(now), *windows) == expected


@pytest.mark.parametrize(
    ("zone", "day", "begins", "hours"),
    [
        ("Europe/Berlin", "2026-06-15", "00:30", 1),
        ("Europe/Berlin", "2026-03-29", "00:30", 1),
        ("Europe/Berlin", "2026-10-25", "00:30", 2),
        ("America/New_York", "2026-06-15", "06:30", 1),
        ("America/New_York", "2026-03-08", "06:30", 1),  # there 02:00 becomes 03:00, and 02:00 becomes 01:00, so that 02:30 comes once
        ("America/New_York", "2026-11-01", "07:30", 1),
    ],
)
def test_half_past_two_when_clocks_change(zone: str, day: str, begins: str, hours: int) -> None:
    found = policy(freeze=[{"name": "f", "timezone": zone, "from": "02:30", "to": "03:30"}])
    start = at(f"{day} {begins}")
    on = [minute for minute in range(-300, 600) if found.freeze("r", lxc(), start + 60 * minute)]
    assert on == list(range(60 * hours))


def naive(window: Document, now: float) -> bool:
    """Whether a clock on the wall shows a time of the window."""
    shown = dt.datetime.fromtimestamp(now, zoneinfo.ZoneInfo(window["timezone"]))
    minutes = shown.hour * 60 + shown.minute
    start, stop = (int(window[key][:2]) * 60 + int(window[key][3:]) for key in ("from", "to"))
    day, before = (_policy.DAYS[(shown.weekday() - back) % 7] in window["days"] for back in (0, 1))
    return start <= minutes < stop and day if start < stop else (day and minutes >= start) or (before and minutes < stop)


TIMES = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.sampled_from([0, 15, 30, 59]))
CHANGES = [("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"), ("America/New_York", "2026-03-08"), ("America/New_York", "2026-11-01")]


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(CHANGES), TIMES, TIMES, st.sets(st.sampled_from(_policy.DAYS), min_size=1), st.integers(-7, 7))
def test_a_freeze_is_on_when_a_clock_says_so(change: tuple[str, str], start: str, stop: str, days: set[str], away: int) -> None:
    if start == stop:
        return
    zone, day = change
    window = {"timezone": zone, "from": start, "to": stop, "days": sorted(days)}
    found = policy(freeze=[dict(window, name="f")])
    midnight = at(day, zone) + 86400 * away
    minutes = [midnight + 60 * minute for minute in range(-120, 26 * 60)]
    freezes = {minute: found.freeze("r", lxc(), minute) for minute in minutes}
    extra = [minute for minute, freeze in freezes.items() if freeze and not naive(window, minute)]
    assert [minute for minute, freeze in freezes.items() if not freeze and naive(window, minute)] == []
    assert len(extra) <= 60 * 2
    change_at = next(now for now in range(int(at(day, zone)), int(at(day, zone)) + 86400, 60) if offset(zone, now) != offset(zone, now - 60))
    assert all(abs(minute - change_at) <= 7200 for minute in extra)
    ends = {minute: freeze.until for minute, freeze in freezes.items() if freeze}
    assert all(end > minute for minute, end in ends.items())
    assert [end for end in set(ends.values()) if found.freeze("r", lxc(), end)] == []


def offset(zone: str, now: float) -> dt.timedelta | None:
    return dt.datetime.fromtimestamp(now, zoneinfo.ZoneInfo(zone)).utcoffset()


def test_where_there_are_no_time_zones_it_is_told_only_if_one_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_policy, "ZONES_ERROR", "ImportError")
    assert frozen(at("2026-11-27 20:00"), EVENING) == "f0 27 23:30"
    with pytest.raises(MissingLibrary, match=r"cannot tell what time it is in Europe/Berlin: .*Python 3.9.*say timezone: UTC"):
        policy(freeze=[dict(EVENING, name="f", timezone="Europe/Berlin")])
    monkeypatch.setattr(_policy, "ZONES_ERROR", None)

    def missing(name: str) -> t.NoReturn:
        raise zoneinfo.ZoneInfoNotFoundError(name)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", missing)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    with pytest.raises(MissingLibrary, match=r"Install .*tzdata"):
        policy(freeze=[dict(EVENING, name="f", timezone="Europe/Berlin")])
    monkeypatch.setattr(_policy, "YAML_ERROR", "ImportError")
    assert read(None, "nowhere").mode == "live"
    with pytest.raises(MissingLibrary, match="PyYAML"):
        policy()


# Common causes

DEPENDS = {
    "lxc/*": ["nas"],
    "lxc/202": ["pve2"],
    "container/app": ["docker"],
    "host/nas": ["docker"],
    "docker": "nas",
    "nas": ["switch"],
    "switch": ["nas", "ups"],
}


@pytest.mark.parametrize(
    ("targets", "causes"),
    [
        ([], []),
        ([lxc(), lxc(id=202)], ["nas", "switch", "ups"]),
        ([lxc(id=202)], ["nas", "pve2", "switch", "ups"]),
        ([lxc(), container()], ["nas", "switch", "ups"]),
        ([container(), container(name="db")], ["docker", "nas", "switch", "ups"]),
        ([lxc(), table("app")], []),
        ([lxc(), Target.of("pve", dict(kind="vm", id=1, name="nas"))], ["nas", "switch", "ups"]),
    ],
)
def test_common_causes(targets: list[Target], causes: list[str]) -> None:
    assert policy(storm=dict(depends_on=DEPENDS)).common_cause(targets) == causes
    assert policy().common_cause(targets) == []


# The file

WRONG = {
    "version": ("mode: live", "it is missing; write version: 1"),
    "version ": ("version: 2", "must be one of: 1"),
    "the file": ("[1]", "it must be a map of version, mode,"),
    "limit": ("version: 1\nlimit: {}", "there is no such key; there are version, mode, limits"),
    "mode": ("version: 1\nmode: dry", "must be one of: live, shadow"),
    "limits": ("version: 1\nlimits: [a]", "it must be a map"),
    "limits ": ("version: 1\nlimits:", "it is empty"),
    "limits.window": ("version: 1\nlimits: {window: soon}", "a time span is a number with an optional unit"),
    "limits.window ": ("version: 1\nlimits: {window: 0}", "it must be between 1 seconds and 366 days"),
    "limits.cooldown": (f"version: 1\nlimits: {{cooldown: {'9' * 400}}}", "it must be between 0 seconds"),
    "limits.max_per_target": ("version: 1\nlimits: {max_per_target: -1}", "it must be between 0 and"),
    "limits.max_growth": ("version: 1\nlimits: {max_growth: true}", "convert to int"),
    "limits.max_shrink": ("version: 1\nlimits: {max_shrink: 101}", "it must be between 0 and 100"),
    "limits.max_per_node": ("version: 1\nlimits: {max_per_node: {a: 1}}", "it must be a single value"),
    "breaker.failures": ("version: 1\nbreaker: {failures: 0}", "it must be between 1 and"),
    "storm.depends_on": ("version: 1\nstorm: {depends_on: {nas: []}}", "an empty list is never read as all"),
    "approval.on_timeout": ("version: 1\napproval: {on_timeout: approve}", "must be one of: deny, needs_human"),
    "approval.channels": ("version: 1\napproval: {channels: [mail]}", "telegram, prompt, command"),
    "approval.channels ": ("version: 1\napproval: {channels: []}", "it is empty"),
    "approval.channels  ": ("version: 1\napproval: {channels: telegram}", "it must be a list of telegram, prompt, command"),
    "approval.channels   ": ("version: 1\napproval: {channels: [[telegram]]}", "it must be a list of single values"),
    "approval.expires": ("version: 1\napproval: {wait: 1h, expires: 5m}", "as long as wait at least, 3600 seconds"),
    "freeze[0].name": ("version: 1\nfreeze: [{days: [mon]}]", "it is missing"),
    "freeze[1].name": ("version: 1\nfreeze: [{name: a, days: [mon]}, {name: a, days: [tue]}]", "a name that no other has"),
    "freeze[0].timezone": ("version: 1\nfreeze: [{name: a, days: [mon], timezone: Mars/Olympus}]", "as IANA names them"),
    "freeze[0].timezone ": ("version: 1\nfreeze: [{name: a, days: [mon], timezone: ../etc}]", "as IANA names them"),
    "freeze[0].days": ("version: 1\nfreeze: [{name: a, days: [monday]}]", "mon, tue, wed, thu, fri, sat, sun"),
    "freeze[0].from": ("version: 1\nfreeze: [{name: a, from: 25:00, to: 1:00}]", 'a time of day, such as "20:00"'),
    "freeze[0].to": ("version: 1\nfreeze: [{name: a, from: 20:00}]", "it is missing, beside from"),
    "freeze[0].to ": ("version: 1\nfreeze: [{name: a, from: 20:00, to: 20:00}]", "it is the same as from"),
    "freeze[0].begin": ("version: 1\nfreeze: [{name: a, begin: 2026-02-30, end: 2026-03-01}]", "day is out of range"),
    "freeze[0].begin ": ("version: 1\nfreeze: [{name: a, begin: 2026-02-01 10:00:00+01:00, end: 2026-03-01}]", "as the time zone's clocks show it"),
    "freeze[0].end": ("version: 1\nfreeze: [{name: a, begin: 2026-02-02, end: 2026-02-01}]", "it is not after begin"),
    "freeze[0]": ("version: 1\nfreeze: [{name: a}]", "it would be on always"),
    "freeze[0].remedies": ("version: 1\nfreeze: [{name: a, days: [mon], remedies: []}]", "never read as all"),
    "freeze[0].targets.remedy": ("version: 1\nfreeze: [{name: a, days: [mon], targets: {remedy: x}}]", "there is no such key"),
    "protected[0]": ("version: 1\nprotected: [{}]", "would protect everything"),
    "protected[0] ": ("version: 1\nprotected: [lxc]", "it must be a map of host, kind"),
    "protected[0].options": ("version: 1\nprotected: [{options: {full: true}}]", "there is no such key"),
    "protected[1].tags": ("version: 1\nprotected: [{id: 1}, {tags: []}]", "never read as all"),
    "rules[0].match": ("version: 1\nrules: [{name: a, decision: off}]", "it is missing"),
    "rules[0].match ": ("version: 1\nrules: [{name: a, decision: off, match: }]", "it is empty"),
    "rules[1].decision": (
        "version: 1\nrules: [{name: a, decision: off, match: {}}, {name: b, decision: on, match: {}}]",
        "one of: off, dry_run, approve, auto",
    ),
    "rules[1].name": ("version: 1\nrules: [{name: a, decision: off, match: {}}, {name: a, decision: off, match: {}}]", "a name that no other has"),
    "rules[0].name": ("version: 1\nrules: [{name: 'built-in: a', decision: off, match: {}}]", "does not begin with built-in:"),
    "rules[0].match.remedy": ("version: 1\nrules: [{name: a, decision: off, match: {remedy: []}}]", "never read as all"),
    "rules[0].match.kind": ("version: 1\nrules: [{name: a, decision: off, match: {kind: ''}}]", "none of them empty"),
    "rules[0].match.id": ("version: 1\nrules: [{name: a, decision: off, match: {id: [200, null]}}]", "none of them empty"),
    "rules[0].match.labels": ("version: 1\nrules: [{name: a, decision: off, match: {labels: {}}}]", "never read as all"),
    "rules[0].match.options": ("version: 1\nrules: [{name: a, decision: off, match: {options: {full: }}}]", "must be a pattern"),
    "rules[0].match.reversibility": ("version: 1\nrules: [{name: a, decision: off, match: {reversibility: never}}]", "exact, equivalent, restore_only, none"),
    "rules[0].match.vmid": ("version: 1\nrules: [{name: a, decision: off, match: {vmid: 1}}]", "there are remedy, host, kind, id"),
    "rules[0].cooldown": ("version: 1\nrules: [{name: a, decision: off, match: {}, cooldown: -1}]", "a time span is"),
    "rules[0].approval.wait": ("version: 1\nrules: [{name: a, decision: off, match: {}, approval: {wait: x}}]", "a time span is"),
    "rules[0].approval.expires": ("version: 1\nrules: [{name: a, decision: off, match: {}, approval: {wait: 1h, expires: 1m}}]", "as long as wait"),
}


@pytest.mark.parametrize("place", WRONG)
def test_every_error_names_its_place_what_is_allowed_and_the_file(place: str) -> None:
    text, told = WRONG[place]
    with pytest.raises(Invalid) as caught:
        read(text, "/etc/healer/policy.yml")
    assert caught.value.what == "cannot use the policy /etc/healer/policy.yml"
    mine = [problem for problem in caught.value.why.split("; ") if problem.startswith(f"{place.strip()}: ")]
    assert mine, caught.value.why
    assert told in caught.value.why


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("version: 1\nrules: []\nrules: []", "the key rules is there twice"),
        ("version: 1\nrules: [{match: *}]", "needs quotes"),
        ("version: [1", "line 1"),
        ("version: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("? {a: b}\n: 1", "is no text"),
        ("version: \x01", "special characters"),
    ],
)
def test_what_is_no_yaml(text: str, told: str) -> None:
    with pytest.raises(Invalid, match=r"^cannot read the policy p.yml: ") as caught:
        read(text, "p.yml")
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing", "---", "null"])
def test_an_empty_file_is_no_policy(text: str) -> None:
    with pytest.raises(Invalid, match="version: it is missing, for the file is empty"):
        read(text, "p.yml")


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        read("version: 1\nlimits: {window: x, cooldown: y}\nrules: [{name: a}]", "p.yml")
    assert [problem.split(":")[0] for problem in caught.value.why.split("; ")] == ["limits.window", "limits.cooldown", "rules[0].match", "rules[0].decision"]


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "rules", "match", "limits", "name", "freeze", "version"]), inner),
    )
)
def test_whatever_is_in_it_is_a_policy_or_invalid(content: t.Any) -> None:
    with contextlib.suppress(Invalid):
        read(json.dumps(content), "p.yml")


def test_values_are_read_as_they_are_written() -> None:
    found = read("version: 1\nrules:\n- name: on\n  decision: off\n  match: {id: 0x10, labels: {version: 1.10, since: 2026-01-01}, name: 007}", "p.yml")
    (rule,) = found.document["rules"]
    assert (rule["name"], rule["decision"]) == ("on", "off")
    assert rule["match"] == {"id": ["0x10"], "name": ["007"], "labels": {"version": ["1.10"], "since": ["2026-01-01"]}}


def test_the_digest_is_that_of_what_is_said() -> None:
    assert read("version: 1", "a").digest == read("# a comment\nversion: '1'\nlimits: {cooldown: 900}", "b", own_hosts=["x"]).digest == read(None, "c").digest
    assert read("version: 1\nlimits: {cooldown: 901}", "a").digest != read(None, "a").digest
    assert re.fullmatch("[0-9a-f]{64}", read(None, "a").digest)
    assert [found["name"] for found in BUILT_IN.as_dict()["rules"]] == [f"built-in: {found['name']}" for found in BUILT_IN_RULES]


def test_the_example_is_valid() -> None:
    found = read(EXAMPLE.read_text(), str(EXAMPLE))
    assert found.mode == "shadow"
    assert found.judge("lxc_memory", lxc(pool="lab"), resize(1024, 3000)).rule == "the lab heals itself"
    assert found.judge("pg_blocker", table("test1", kind="session"), vacuum()).decision == "auto"
    assert found.judge("lxc_memory", lxc(tags=["no-healer"]), None).decision == "off"


# The documentation

TABLE = re.findall(
    r"^\| `([^`]+)` \| (.+?) \| (.+) \|$", (COLLECTION / "docs/policy.md").read_text().partition("## Keys")[2].partition("\n## ")[0], re.MULTILINE
)


def shown(key: _policy.Key) -> str:
    if key.required:
        return "required"
    if not key.default:
        return "none"
    if key.default == ["*"]:
        return '`["*"]`'
    return f"`[{', '.join(key.default)}]`" if isinstance(key.default, list) else f"`{key.default}`"


def test_every_key_is_documented_with_its_default() -> None:
    keys = {f"{section}.{name}" if section else name: key for section, keys in SECTIONS.items() for name, key in keys.items()}
    told = {key: default for key, default, _what in TABLE}
    assert told["approval.expires"] == "as `wait`"
    assert {**told, "approval.expires": "none"} == {place: shown(key) for place, key in keys.items()}
    for place, _default, what in TABLE:
        for choice in keys[place].choices if not place.endswith("days") else ():
            assert f"`{choice}`" in what, place


def test_every_built_in_rule_is_documented_with_its_decision() -> None:
    text = (COLLECTION / "docs/policy.md").read_text()
    rows = re.findall(r"^\| `built-in: ([^`]+)` \| .+ \| `(\w+)` \|$", text, re.MULTILINE)
    assert rows == [(found["name"], found["decision"]) for found in BUILT_IN_RULES]
