"""Any resources, snapshots and states of containers of Proxmox VE: check mode foretells the run, a second run has nothing to do, the undo restores."""

from __future__ import annotations

import json
import re
import types
import typing as t

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ansible_collections.homelab.healer.plugins.module_utils import _proxmox
from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.module_utils._guests import RESOURCES, resources
from ansible_collections.homelab.healer.plugins.modules import lxc_info, lxc_power, lxc_resources, lxc_snapshot
from tests.lab.modules import call, read
from tests.lab.proxmox.client import Proxmox, proxmox

SAMPLE, ALL = 60, 1000
HOUR, DAY = 3600, 86400
VMID = 300
FORETOLD = ("changed", "before", "after", "diff", "steps", "undo", "reversibility")
UNFORESEEN = "Device or resource busy"
"""What only a kernel with cgroup v1 can say: it takes nothing away that is in use."""
Options = t.Dict[str, t.Any]
Answered = t.Tuple[t.Dict[str, t.Any], t.Optional[HealerError]]


def maybe(strategy: st.SearchStrategy[t.Any]) -> st.SearchStrategy[t.Any]:
    return st.one_of(st.none(), strategy)


def some(options: dict[str, st.SearchStrategy[t.Any]]) -> st.SearchStrategy[Options]:
    """At least one of these options."""
    return st.fixed_dictionaries({}, optional=options).filter(bool)


# What may be there. None is a key that the configuration does not name.
PRESENT = st.fixed_dictionaries(
    {
        "cores": maybe(st.integers(1, 8)),
        "cpulimit": maybe(st.sampled_from(["0", "0.5", "1", "1.50", "2.25", "8"])),
        "cpuunits": maybe(st.integers(2, 10_000)),
        "memory": maybe(st.integers(16, 3000)),
        "swap": maybe(st.one_of(st.just(0), st.integers(1, 2000))),
    }
)
NUMBERS = st.integers(16, 4000).map(str)
SIZES = st.one_of(NUMBERS, st.integers(16, 4000).map("{}m".format), st.sampled_from(["1GiB", "2g", "3G"]))
PERCENT = st.integers(-60, 150).map("{:+}%".format)
RELATIVE_SIZES = st.one_of(PERCENT, st.integers(1, 1500).map("+{}".format), st.integers(1, 500).map("-{}m".format))
WANTED = some(
    {
        "cores": st.one_of(st.integers(1, 10).map(str), st.sampled_from(["+1", "-1", "+50%", "default", "all"])),
        "cpulimit": st.one_of(st.integers(1, 800).map(lambda number: str(number / 100)), st.sampled_from(["+0.5", "-25%", "0", "unlimited", "default"])),
        "cpuunits": st.one_of(st.integers(1, 12_000).map(str), st.sampled_from(["+10", "-50%", "default"])),
        "memory": st.one_of(SIZES, SIZES, RELATIVE_SIZES),
        "swap": st.one_of(SIZES, RELATIVE_SIZES, st.sampled_from(["0", "default"])),
    }
)
GUARDS = st.fixed_dictionaries(
    {},
    optional={
        "allow_below_usage": st.just(True),
        "allow_overcommit": st.just(True),
        "memory_max": st.sampled_from(["1g", "3500"]),
        "node_reserve": st.just("2g"),
    },
)
FACTS = st.fixed_dictionaries(
    {
        "running": st.booleans(),
        "used": st.sampled_from([1, 10, 300]),
        "snapshots": st.booleans(),
        "pending": st.sampled_from([{}, {}, {}, {"hostname": "renamed"}]),
        "tags": st.sampled_from([None, "one;two"]),
    }
)
"""Of a container, besides its resources."""


@pytest.fixture(scope="module", params=[2, 1], ids=["cgroup2", "cgroup1"])
def lab(request: pytest.FixtureRequest) -> t.Iterator[Proxmox]:
    with proxmox(cgroup=request.param, speed=50) as started:
        started.clear()
        yield started


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_proxmox, "POLL_FIRST", 0.01)


def sampled(whole: bool, strategy: st.SearchStrategy[t.Any], one: t.Callable[[t.Any], str], needed: t.Collection[str], most: int = ALL // 2) -> None:
    """Try what the strategy makes, half of all on each cluster; each word in ``needed`` must be some one's result. There are ``most`` of them."""
    seen: dict[str, int] = {}
    examples = min(most, (ALL if whole else SAMPLE) // 2)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=not whole,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def holds(case: t.Any) -> None:
        word = one(case)
        seen[word] = seen.get(word, 0) + 1

    holds()
    print(f"cases: {seen}")
    assert sum(seen.values()) >= examples
    assert set(needed) <= set(seen)


class Container:
    """One container made for one case, and the modules about it."""

    def __init__(self, lab: Proxmox, config: Options, **facts: t.Any) -> None:
        self.lab = lab
        self.connection = {**lab.options_for("healer@pve!healer"), "wait_lock": 0}
        if VMID in {int(vmid) for vmid in lab.state()["guests"]}:
            lab.remove_guest(VMID)
        named = {"hostname": "case", "rootfs": "local-zfs:subvol-300-disk-0,size=4G", "unprivileged": 1}
        lab.add_guest(VMID, node="pve1", config={**named, **{key: value for key, value in config.items() if value is not None}}, **facts)
        unnamed = {key: None for key in ("memory",) if config.get(key, 0) is None}
        if unnamed:
            lab.set_guest(VMID, **unnamed)
        lab.clear()

    def call(self, module: types.ModuleType, check: bool = False, **options: t.Any) -> Answered:
        """Call a module, with options as a playbook passes them on."""
        answer, error = call(module, check, **{**self.connection, "vmid": [VMID], **json.loads(json.dumps(options))})
        return json.loads(json.dumps(answer)), error

    def foretold_and_done(self, module: types.ModuleType, **options: t.Any) -> Answered:
        """Call it in check mode, which must write nothing, and then for real, which must answer the same."""
        before = self.looks()
        foretold, refusal = self.call(module, True, **options)
        assert self.lab.writes() == []
        done, error = self.call(module, **options)
        if error and UNFORESEEN in error.why:
            assert refusal is None
            assert done["changed"] == (self.looks() != before)
            return done, error
        assert timeless(str(refusal)) == timeless(str(error))
        for key in FORETOLD:
            assert timeless(foretold[key]) == timeless(done[key]), key
        assert done["results"] or error
        if not done["changed"]:
            assert self.lab.writes() == []
            assert self.looks() == before
        return done, error

    def undo(self, module: types.ModuleType, answer: Options, **more: t.Any) -> None:
        for options in answer["undo"]:
            _answer, error = self.call(module, **options, **more)
            assert error is None, error

    def looks(self) -> dict[str, t.Any]:
        guest = self.lab.guest(VMID)
        config = {key: value for key, value in guest["config"].items() if key != "parent"}
        return {"config": config, "kernel": guest["kernel"], "snapshots": guest["snapshots"], "status": guest["status"], "starts": guest["starts"]}


def timeless(value: t.Any) -> t.Any:
    """Without the stamps of names, and the spans of time in sentences."""
    return json.loads(re.sub(r"\d{8}T\d{6}Z|\(\d+ [a-z0-9 ]*\)|expires=\d+", "*", json.dumps(value)))


# resources


@st.composite
def wishes(draw: st.DrawFn) -> tuple[Options, Options, Options]:
    present, wanted = draw(PRESENT), draw(WANTED)
    named = {key: str(value) for key, value in present.items() if value is not None and value != "0"}
    if named and draw(st.integers(0, 7)) == 0:
        wanted = draw(some({key: st.just(value) for key, value in named.items()}))
    return present, draw(FACTS), {**wanted, **draw(GUARDS)}


def test_resources(lab: Proxmox, whole: bool) -> None:
    sampled(whole, wishes(), lambda case: _resources(lab, *case), ("exact", "equivalent", "refused", "unchanged"))


def _resources(lab: Proxmox, present: Options, facts: Options, wanted: Options) -> str:
    status = "running" if facts["running"] else "stopped"
    container = Container(
        lab,
        {**present, "tags": facts["tags"]},
        status=status,
        pending=facts["pending"],
        workload={"memory": facts["used"]},
        snapshots={"first": {"age": 900}} if facts["snapshots"] else {},
    )
    before = lab.guest(VMID)
    done, error = container.foretold_and_done(lxc_resources, **wanted)
    after = lab.guest(VMID)
    left = set(before["config"]) | set(after["config"])
    for key in left.difference(wanted if done["changed"] else ()):
        assert after["config"].get(key) == before["config"].get(key), key
    assert (after["snapshots"], after["status"], after["starts"]) == (before["snapshots"], before["status"], before["starts"])
    waiting = {key: value for key, value in before["pending"].items() if key not in wanted}
    assert {key: after["pending"].get(key) for key in waiting} == waiting
    if error and UNFORESEEN in error.why:
        container.undo(lxc_resources, done, allow_below_usage=True, allow_overcommit=True)
        assert resources(lab.guest(VMID)["config"]) == resources(before["config"])
        return "in use"
    if error:
        assert not done["changed"], "what is refused is refused before it is begun"
        return "refused"
    if not done["changed"]:
        return "unchanged"
    result = done["results"][0]
    _follows(before, after, result)
    guards = {key: value for key, value in wanted.items() if key not in RESOURCES}
    again, error = container.call(lxc_resources, **{**guards, **{key: str(value) for key, value in result["after"].items()}})
    assert (again["changed"], error) == (False, None)
    for options in done["undo"]:
        _answer, error = container.call(lxc_resources, **options, **{"allow_below_usage": True, "allow_overcommit": True})
        if error and (facts["running"] and facts["used"] > result["before"].get("memory", 0)):
            assert (error.code, UNFORESEEN in error.why) == ("conflict", True)
            return "in use"  # it was so before, too
        assert error is None, error
    restored = lab.guest(VMID)
    assert resources(restored["config"]) == resources(before["config"])
    assert {**restored["kernel"], "cores": 0} == {**before["kernel"], "cores": 0}
    if done["reversibility"] == "exact":
        assert named(restored["config"]) == named(before["config"])
    return str(done["reversibility"])


def named(config: Options) -> Options:
    """The resources that a configuration names, as numbers."""
    return {key: float(config[key]) for key in RESOURCES if key in config}


def _follows(before: Options, after: Options, result: Options) -> None:
    """The configuration, and what the kernel of a running container has, are as the answer says."""
    now = resources(after["config"])
    for key, value in result["after"].items():
        assert now[key] == value, key
        assert key not in after["pending"], key
        if after["status"] == "running" and value != "default" and key != "cores":
            assert float(after["kernel"][key]) == float(value), key
    assert result["before"] == {key: json.loads(json.dumps(was)) for key, was in resources(before["config"]).items() if key in result["before"]}


# snapshots

MARK = "[homelab.healer prefix={}{}]"
AGES = st.lists(st.integers(1, 200), min_size=0, max_size=5, unique=True)


@st.composite
def histories(draw: st.DrawFn) -> dict[str, Options]:
    """Snapshots of this collection's series, of others, of people; some expired, some incomplete."""
    made: dict[str, Options] = {}
    for number, hours in enumerate(sorted(draw(AGES), reverse=True)):
        kind = draw(st.sampled_from(["daily-", "daily-", "other-", "", "manual"]))
        expires = draw(st.sampled_from(["", "", " expires=1000", " expires=9999999999"]))
        description = "by hand" if kind == "manual" else f"Before\n{MARK.format(kind, expires)}"
        incomplete = {"snapstate": "prepare"} if draw(st.integers(0, 9)) == 0 else {}
        made[f"s{number}"] = {"age": hours * HOUR + 1800, "description": description, **incomplete}
    return made


SNAPSHOTS = st.one_of(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["made", "s0", "s1", "s4"])}, optional={"description": st.just("For a change"), "expires": st.sampled_from(["1h", "7d"])}
    ),
    st.fixed_dictionaries(
        {"prefix": st.sampled_from(["daily-", "other-", "new-"])},
        optional={"keep": st.integers(1, 4), "max_age": st.sampled_from(["2h", "4d", "30d"]), "expires": st.just("1d")},
    ),
    st.fixed_dictionaries({"state": st.just("absent"), "name": st.sampled_from(["s0", "s1", "s2", "none"])}),
    st.fixed_dictionaries(
        {"state": st.just("absent")},
        optional={},
    ),
    st.fixed_dictionaries(
        {"state": st.just("absent"), "prefix": st.sampled_from(["daily-", "other-"])},
        optional={"keep": st.integers(1, 3), "max_age": st.sampled_from(["2h", "4d"])},
    ),
)


def test_snapshots(lab: Proxmox, whole: bool) -> None:
    strategy = st.tuples(histories(), st.sampled_from([{}] * 5 + [{"lock": "backup"}, {"features": "fuse=1"}]), st.booleans(), SNAPSHOTS)
    sampled(whole, strategy, lambda case: _snapshots(lab, *case), ("exact", "none", "refused", "unchanged"))


def _snapshots(lab: Proxmox, there: dict[str, Options], more: Options, running: bool, wanted: Options) -> str:
    container = Container(lab, {"memory": 512, **more}, status="running" if running else "stopped", snapshots=there)
    before = container.looks()
    done, error = container.foretold_and_done(lxc_snapshot, **wanted)
    after = container.looks()
    assert {**after, "snapshots": 0} == {**before, "snapshots": 0}
    if error:
        assert not done["changed"]
        return "refused"
    if not done["changed"]:
        return "unchanged"
    changed = done["after"][str(VMID)]
    untouched = {name: {**values, "parent": 0} for name, values in before["snapshots"].items() if name not in changed}
    for name, state in changed.items():
        assert (name in after["snapshots"]) == (state == "present")
        assert (name in before["snapshots"]) == (state == "absent")
        assert state == "present" or wanted.get("name") or "[homelab.healer" in before["snapshots"][name]["description"]
    assert {name: {**values, "parent": 0} for name, values in after["snapshots"].items() if changed.get(name) != "present"} == untouched
    if "prefix" in wanted and "keep" in wanted and wanted.get("state") != "absent":
        own = [values for values in after["snapshots"].values() if MARK.format(wanted["prefix"], "")[:-1] in values.get("description", "")]
        assert len([values for values in own if "snapstate" not in values]) <= wanted["keep"]
    if "prefix" not in wanted or wanted.get("state") == "absent":
        again, error = container.call(lxc_snapshot, **wanted)
        assert (again["changed"], error) == (False, None)
    container.undo(lxc_snapshot, done)
    restored = set(container.looks()["snapshots"])
    if done["reversibility"] == "exact":
        assert restored == set(before["snapshots"])
    else:
        assert restored == set(before["snapshots"]).difference(changed)
    return str(done["reversibility"])


# power


def test_power(lab: Proxmox, whole: bool) -> None:
    strategy = st.tuples(
        st.booleans(),
        st.sampled_from(["started", "stopped", "restarted"]),
        st.fixed_dictionaries({}, optional={"lock": st.sampled_from(["backup", "rollback"]), "pending": st.just({"memory": "700"})}),
        st.booleans(),
    )
    sampled(whole, strategy, lambda case: _power(lab, *case), ("equivalent", "none", "refused", "unchanged"), most=60)


def _power(lab: Proxmox, running: bool, state: str, facts: Options, force: bool) -> str:
    container = Container(lab, {"memory": 512}, status="running" if running else "stopped", **facts)
    before = container.looks()
    done, error = container.foretold_and_done(lxc_power, state=state, force=force, timeout=30)
    after = container.looks()
    if error:
        assert not done["changed"]
        assert "lock" in facts
        return "refused"
    assert after["status"] == ("stopped" if state == "stopped" else "running")
    if not done["changed"]:
        return "unchanged"
    started = state != "stopped"
    assert after["starts"] == before["starts"] + started
    assert after["config"]["memory"] == ("700" if started and "pending" in facts else "512"), "what waits takes effect at the start"
    if state != "restarted":
        again, error = container.call(lxc_power, state=state)
        assert (again["changed"], error) == (False, None)
    container.undo(lxc_power, done)
    assert container.looks()["status"] == before["status"]
    return str(done["reversibility"])


# what random cases found, each by itself


def test_swap_that_is_deleted_does_not_keep_memory_from_the_kernel(lab: Proxmox) -> None:
    container = Container(lab, {"memory": 256, "swap": 128}, status="running", workload={"memory": 10})
    done, error = container.foretold_and_done(lxc_resources, memory=512, swap="default", cores=1)
    assert error is None
    assert [sorted(write["params"]) for write in lab.writes()] == [["digest", "memory"], ["delete", "digest"], ["cores", "digest"]]
    kernel = container.looks()["kernel"]
    assert (kernel["memory"], kernel["swap"]) == (512, 0)
    container.undo(lxc_resources, done)
    kernel = container.looks()["kernel"]
    assert (kernel["memory"], kernel["swap"]) == (256, 128)


def test_a_weight_that_would_be_stored_as_another_is_refused(lab: Proxmox) -> None:
    container = Container(lab, {"cpuunits": 100}, status="stopped")
    _done, error = container.foretold_and_done(lxc_resources, cpuunits="1")
    assert (error is None) == (lab.state()["cgroup"] == 2)
    assert error is None or "the lowest weight is 2" in error.why


def test_a_new_snapshot_of_a_series_lets_go_of_the_one_before(lab: Proxmox) -> None:
    container = Container(lab, {}, snapshots={"s0": {"age": 3 * HOUR, "description": MARK.format("daily-", "")}})
    done, error = container.foretold_and_done(lxc_snapshot, prefix="daily-", max_age="2h")
    assert error is None
    assert done["after"][str(VMID)].pop("s0") == "absent"
    assert list(container.looks()["snapshots"]) == list(done["after"][str(VMID)])


def test_an_age_that_is_reached_while_a_task_runs_is_judged_as_it_was_planned(lab: Proxmox) -> None:
    lab.set_storage("local-zfs", delay=60)
    container = Container(lab, {}, snapshots={name: {"age": age, "description": MARK.format("daily-", "")} for name, age in (("s0", 7180), ("s1", 60))})
    try:
        done, error = container.foretold_and_done(lxc_snapshot, prefix="daily-", max_age="2h")
    finally:
        lab.set_storage("local-zfs", delay=0)
    assert error is None
    assert len(done["after"][str(VMID)]) == 1
    again, error = container.call(lxc_snapshot, state="absent", prefix="daily-", max_age="2h")
    assert (again["after"], error) == ({str(VMID): {"s0": "absent"}}, None)


def test_what_waits_for_a_restart_is_told(lab: Proxmox) -> None:
    container = Container(lab, {}, status="running", pending={"tty": "3"})
    (facts,) = read(lxc_info, **container.lab.options_for("healer@pve!healer"), vmid=[VMID])["containers"]
    assert {key: str(value) for key, value in facts["pending"].items()} == {"tty": "3"}
    done, _error = container.foretold_and_done(lxc_resources, cores=1)
    assert "other changes wait for its next start: tty" in done["results"][0]["notes"]
