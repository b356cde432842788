"""Random histories: whatever happens in whatever order, also to runs that are killed, no budget, cooldown or lease is broken, and the ledger stays sound."""

from __future__ import annotations

import collections
import itertools
import shutil
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from ansible_collections.homelab.healer.plugins.module_utils import _gate
from ansible_collections.homelab.healer.plugins.module_utils._audit import verify
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPEN, UNTOUCHED, Ledger
from ansible_collections.homelab.healer.plugins.module_utils._policy import Policy
from tests.lab.ledger import Facts, File, asked, chain, policy, target

NODES = {201: "pve1", 202: "pve1", 203: "pve2", 204: "pve2"}
REMEDIES = ("lxc_memory", "lxc_cpu")
HOUR, WINDOW, STORM, COOL_DOWN, FAILURES = 3600.0, 3600.0, 1800.0, 600.0, 7200.0
LEASE = 300.0


@dataclass(frozen=True)
class Limits:
    """What the random policy allows. ``ask`` is the remedy that a human must approve; ``cpu_*`` are limits of that remedy's own rule."""

    overall: int
    per_target: int
    per_node: int
    in_flight: int
    in_flight_per_node: int
    cooldown: float
    cpu_cooldown: float
    cpu_budget: int
    cpu_in_flight: int
    failures: int
    targets: int
    ask: str

    def cooldown_of(self, remedy: str) -> float:
        return self.cpu_cooldown if remedy == "lxc_cpu" else self.cooldown

    def policy(self) -> Policy:
        cpu: Facts = {"name": "cpu", "match": {"remedy": "lxc_cpu"}, "decision": self.decision("lxc_cpu")}
        cpu.update(cooldown=f"{self.cpu_cooldown:.0f}", max_per_window=self.cpu_budget, max_in_flight=self.cpu_in_flight, max_growth=1000)
        rest: Facts = {"name": "rest", "match": {}, "decision": self.decision("lxc_memory"), "max_growth": 1000}
        limits = {"window": f"{WINDOW:.0f}", "max_per_window": self.overall, "max_per_target": self.per_target, "max_per_node": self.per_node}
        limits.update(max_in_flight=self.in_flight, max_in_flight_per_node=self.in_flight_per_node, cooldown=f"{self.cooldown:.0f}")
        return policy(
            limits=limits,
            breaker={"failures": self.failures, "window": f"{FAILURES:.0f}"},
            storm={"targets": self.targets, "window": f"{STORM:.0f}", "cool_down": f"{COOL_DOWN:.0f}"},
            rules=[cpu, rest],
        )

    def decision(self, remedy: str) -> str:
        return "approve" if self.ask == remedy else "auto"


LIMITS = st.builds(
    Limits,
    overall=st.integers(1, 6),
    per_target=st.integers(1, 3),
    per_node=st.integers(1, 4),
    in_flight=st.integers(1, 3),
    in_flight_per_node=st.integers(1, 2),
    cooldown=st.sampled_from([0.0, 900.0, 5000.0]),
    cpu_cooldown=st.sampled_from([0.0, 60.0, 7000.0]),
    cpu_budget=st.integers(1, 3),
    cpu_in_flight=st.integers(1, 2),
    failures=st.sampled_from([1, 1, 2, 3]),
    targets=st.integers(2, 5),
    ask=st.sampled_from(["", *REMEDIES]),
)


@dataclass
class Known:
    """What the naive model knows of a remediation."""

    id: str
    remedy: str
    vmid: int
    opened: float
    state: str = "planned"
    until: float = 0.0
    expires: float | None = None
    applied: float | None = None
    closed: float | None = None
    fence: int = 0

    @property
    def open(self) -> bool:
        return self.state in OPEN

    @property
    def failed(self) -> bool:
        return self.state in ("rolled_back", "needs_human") and self.applied is not None


@dataclass(frozen=True)
class Run:
    """A run that has a lease, or believes that it has."""

    id: str
    fence: int


class Histories(RuleBasedStateMachine):
    """The ledger as a file, opened anew for each step as each module does, and a list beside it that is looked through from end to end."""

    seen: t.ClassVar[collections.Counter[str]] = collections.Counter()
    """How often which answer was given, over all histories."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="healer-lab-histories-"))
        self.file = File(self.folder / "ledger.db")
        self.now = 1_800_000_000.0
        self.last = 0.0
        self.accepted = 0
        """The number of the entry by which the clock was accepted as it is."""
        self.known: dict[str, Known] = {}
        self.runs: list[Run] = []
        self.paused = self.storm = self.set_back = False
        self.frozen: set[int] = set()
        self.cleared: dict[int, float] = {}
        self.numbers = itertools.count()
        self.checked_to = ""
        self._real = Ledger.now
        setattr(Ledger, "now", lambda ledger: self.now)  # noqa: B010

    def teardown(self) -> None:
        setattr(Ledger, "now", self._real)  # noqa: B010
        self.file.close()
        shutil.rmtree(self.folder)

    @initialize(limits=LIMITS)
    def begin(self, limits: Limits) -> None:
        self.limits, self.policy = limits, limits.policy()

    # What the model expects

    def others(self, own: str) -> list[Known]:
        return [one for one in self.known.values() if one.id != own]

    def expected(self, own: str, remedy: str, vmid: int, *, planned: bool) -> str:  # noqa: PLR0911
        """The check that is in the way, by looking at everything; empty where none is."""
        limits, others = self.limits, self.others(own)
        of_target = [one for one in others if one.vmid == vmid]
        cpu = remedy == "lxc_cpu"

        def on_node(one: Known) -> bool:
            return NODES[one.vmid] == NODES[vmid]

        def used(which: t.Callable[[Known], bool]) -> int:
            return sum(which(one) and (one.applied > self.now - WINDOW if one.applied is not None else one.open) for one in others)

        def flying(which: t.Callable[[Known], bool]) -> int:
            return sum(which(one) and one.open for one in others)

        def anything(_one: Known) -> bool:
            return True

        def by_rule(one: Known) -> bool:
            return one.remedy == "lxc_cpu"

        if self.behind() > 5:
            return "clock"
        if self.paused:
            return "pause"
        if vmid in self.frozen:
            return "frozen"
        if not planned:
            if any(one.open for one in of_target):
                return "one at a time"
            since = self.now - STORM - (COOL_DOWN if self.storm else 0)
            seen = {one.vmid for one in self.known.values() if one.opened > since} | {vmid}
            self.storm = len(seen) >= limits.targets
            if self.storm:
                return "storm"
        since = max(self.now - FAILURES, self.cleared.get(vmid, 0.0))
        if sum(one.failed and one.closed is not None and one.closed > since for one in of_target) >= limits.failures:
            return "breaker"
        begun = [one.applied for one in of_target if one.remedy == remedy and one.applied is not None]
        if begun and self.now - min(max(begun), self.now) < limits.cooldown_of(remedy):
            return "cooldown"
        budgets = [(anything, limits.overall), (lambda one: one.vmid == vmid, limits.per_target), (on_node, limits.per_node)]
        if any(used(which) >= most for which, most in [*budgets, *([(by_rule, limits.cpu_budget)] if cpu else [])]):
            return "budget"
        flights = [(anything, limits.in_flight), (on_node, limits.in_flight_per_node)]
        if any(flying(which) >= most for which, most in [*flights, *([(by_rule, limits.cpu_in_flight)] if cpu else [])]):
            return "in flight"
        return ""

    def behind(self) -> float:
        return max(0.0, self.last - self.now)

    def sweep(self) -> None:
        for one in self.known.values():
            if one.state in UNTOUCHED and one.until < self.now and (one.expires is None or one.expires < self.now):
                self.end(one, "denied" if one.state == "asked" else "rolled_back")

    def end(self, one: Known, outcome: str) -> None:
        one.state, one.closed = outcome, self.now
        if outcome == "needs_human" and one.applied is not None:
            self.frozen.add(one.vmid)

    def holds(self, run: Run) -> bool:
        one = self.known[run.id]
        return one.fence == run.fence and one.open and self.now < one.until

    # What may happen

    def whose(self, one: Known) -> Facts:
        return {"remediation": one.id, "remedy": one.remedy, "host": "pve", "facts": target(one.vmid, node=NODES[one.vmid])}

    @rule(remedy=st.sampled_from(REMEDIES), vmid=st.sampled_from(sorted(NODES)), lease=st.sampled_from([30.0, LEASE]))
    def ask(self, remedy: str, vmid: int, lease: float) -> None:
        one = Known(f"r{next(self.numbers):03}", remedy, vmid, self.now)
        with self.file.turn() as ledger:
            answer = _gate.admit(ledger, self.policy, **self.whose(one), request=asked(lease=lease))
        self.sweep()
        check = self.expected(one.id, remedy, vmid, planned=False)
        assert (answer["checks"][-1]["check"] if answer["why"] else "") == check, answer
        assert answer["word"] == {"": "allowed", "one at a time": "joined"}.get(check, "refused")
        self.seen[f"first {check}"] += 1
        self.known[one.id] = one
        if check:
            one.state, one.closed = "denied", self.now
        else:
            one.fence, one.until = answer["fence"], self.now + lease
            self.runs.append(Run(one.id, one.fence))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def ask_with_an_id_that_is_known(self, data: st.DataObject) -> None:
        one = self.known[data.draw(st.sampled_from(sorted(self.known)))]
        with pytest.raises(Conflict, match="the ledger has one of that id already"), self.file.turn() as ledger:
            _gate.admit(ledger, self.policy, **self.whose(one), request=asked())
        with pytest.raises(Conflict, match="the ledger has one of that id already"), self.file.turn() as ledger:
            _gate.fail(ledger, one.id, remedy=one.remedy, host="pve", facts={}, why="I say so", more={})

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), lease=st.sampled_from([30.0, LEASE]))
    def plan(self, data: st.DataObject, lease: float) -> None:
        """The second question, or the third after it was approved. Also by runs that have lost their lease, or ask twice."""
        self.plan_of(data.draw(st.sampled_from(self.runs)), lease)

    def plan_of(self, run: Run, lease: float) -> None:
        one = self.known[run.id]
        whose = {**self.whose(one), "fence": run.fence, "chain": chain(one.vmid), "request": asked(lease=lease)}
        if not self.holds(run):
            with pytest.raises(Conflict), self.file.turn() as ledger:
                _gate.decide(ledger, self.policy, **whose)
            return
        if one.state not in ("planned", "approved"):
            return  # the chain asks then only
        with self.file.turn() as ledger:
            answer = _gate.decide(ledger, self.policy, **whose)
        check = self.expected(one.id, one.remedy, one.vmid, planned=True)
        word = "refused" if check else "ask" if self.limits.decision(one.remedy) == "approve" and one.state == "planned" else "allowed"
        assert answer["word"] == word, (answer, check)
        self.seen[f"second {check or word}"] += 1
        if word == "refused":
            self.end(one, "denied")
            return
        one.until = self.now + lease
        if word == "allowed":
            one.state, one.applied = "applying", self.now

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), yes=st.booleans(), expires=st.sampled_from([60.0, 4000.0]))
    def ask_a_human(self, data: st.DataObject, yes: bool, expires: float) -> None:
        run = data.draw(st.sampled_from(self.runs))
        one = self.known[run.id]
        if one.state == "planned" and self.holds(run) and self.decided(one):
            with self.file.turn() as ledger:
                ledger.append("asked", one.id, until=self.now + expires, expires=self.now + expires)
            one.state, one.until, one.expires = "asked", self.now + expires, self.now + expires
        elif one.state == "asked" and one.expires is not None and self.now < one.expires and yes:
            with self.file.turn() as ledger:
                ledger.append("approved", one.id, until=self.now + LEASE, approver="ann")
            one.state, one.until = "approved", self.now + LEASE

    def decided(self, one: Known) -> bool:
        with self.file.open() as ledger:
            return ledger.get(one.id).decided is not None

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), kind=st.sampled_from(["verifying", "undoing"]))
    def go_on(self, data: st.DataObject, kind: str) -> None:
        run = data.draw(st.sampled_from(self.runs))
        one = self.known[run.id]
        if one.state in UNTOUCHED and self.holds(run):
            return
        if not self.holds(run):
            with pytest.raises(Conflict), self.file.turn() as ledger:
                ledger.held(run.id, run.fence, "cannot go on")
            return
        with self.file.turn() as ledger:
            ledger.held(run.id, run.fence, "cannot go on")
            ledger.append(kind, run.id, until=self.now + LEASE)
        one.state, one.until = kind, self.now + LEASE

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), outcome=st.sampled_from(["healed", "healed", "rolled_back", "needs_human"]))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        run = data.draw(st.sampled_from(self.runs))
        if not self.holds(run):
            with pytest.raises(Conflict), self.file.turn() as ledger:
                _gate.close(ledger, ledger.held(run.id, run.fence, "cannot end"), outcome, "so it ended", {})
            return
        with self.file.turn() as ledger:
            _gate.close(ledger, ledger.held(run.id, run.fence, "cannot end"), outcome, "so it ended", {})
        self.end(self.known[run.id], outcome)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        """Another run takes over what was left behind; it may be killed in turn."""
        self.take(self.known[data.draw(st.sampled_from(sorted(self.known)))])

    @precondition(lambda self: any(one.state == "applying" for one in self.known.values()))
    @rule(data=st.data())
    def a_run_dies_as_it_changes(self, data: st.DataObject) -> None:
        one = self.known[data.draw(st.sampled_from(sorted(id_ for id_, one in self.known.items() if one.state == "applying")))]
        self.time_passes(max(0.0, one.until - self.now) + 1.0)
        self.take(one)

    def take(self, one: Known) -> None:
        with self.file.turn() as ledger:
            why = _gate.not_to_be_taken(ledger, ledger.get(one.id), gone=False)
            waits = one.state == "asked" and one.expires is not None and self.now < one.expires
            assert bool(why) == (not one.open or waits or not one.until < self.now), why
            if why:
                return
            one.fence = ledger.append("taken", one.id, until=self.now + LEASE, run={}).seq
        one.until = self.now + LEASE
        self.seen[f"taken {one.state}"] += 1
        self.runs.append(Run(one.id, one.fence))

    @rule(seconds=st.sampled_from([1.0, 20.0, 200.0, 1000.0, 4000.0, 20000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.known) > 3)
    @rule(seconds=st.sampled_from([0.0, 0.0, 100.0, 3000.0]))
    def the_clock_is_set_back(self, seconds: float) -> None:
        self.now -= seconds

    @precondition(lambda self: self.behind() > 0)
    @rule()
    def the_clock_is_accepted(self) -> None:
        with self.file.turn() as ledger:
            ledger.turn_switch("clock", {"ahead": self.last})
            self.accepted = int(ledger.head.partition(":")[0])
        self.set_back = True

    @rule(
        remedy=st.sampled_from(REMEDIES), vmid=st.sampled_from(sorted(NODES)), outcome=st.sampled_from(["healed", "rolled_back", "rolled_back", "needs_human"])
    )
    def heal(self, remedy: str, vmid: int, outcome: str) -> None:
        """A whole run, as far as it may go."""
        self.ask(remedy=remedy, vmid=vmid, lease=LEASE)
        run = Run(f"r{len(self.known) - 1:03}", self.known[f"r{len(self.known) - 1:03}"].fence)
        one = self.known[run.id]
        if self.holds(run):
            self.plan_of(run, LEASE)
        if one.state == "applying":
            with self.file.turn() as ledger:
                _gate.close(ledger, ledger.held(run.id, run.fence, "cannot end"), outcome, "so it ended", {})
            self.end(one, outcome)

    @rule(on=st.sampled_from([False, False, True]))
    def pause(self, on: bool) -> None:
        with self.file.turn() as ledger:
            ledger.turn_switch("pause", {"who": "ann"} if on else None)
        self.paused = on

    @rule(vmid=st.sampled_from(sorted(NODES)))
    def resume_a_target(self, vmid: int) -> None:
        with self.file.turn() as ledger:
            ledger.turn_switch(f"freeze pve/lxc/{vmid}", None)
            ledger.turn_switch(f"cleared pve/lxc/{vmid}", {"at": self.now})
        self.frozen.discard(vmid)
        self.cleared[vmid] = self.now

    @rule(remedy=st.sampled_from(REMEDIES), vmid=st.sampled_from(sorted(NODES)))
    def foretell(self, remedy: str, vmid: int) -> None:
        """Check mode answers, and consumes nothing."""
        before = self.file.path.read_bytes() if self.file.path.exists() else None
        one = Known("foretold", remedy, vmid, self.now)
        with self.file.open(check=True) as ledger, ledger.turn():
            first = _gate.admit(ledger, self.policy, **self.whose(one), request=asked())
            _gate.decide(ledger, self.policy, **self.whose(one), fence=first["fence"], chain=chain(vmid), request=asked())
        assert (self.file.path.read_bytes() if self.file.path.exists() else None) == before

    # What holds at any time

    @invariant()
    def the_ledger_knows_what_happened_and_is_sound(self) -> None:
        with self.file.open() as ledger:
            rows = {row.id: row for row in ledger.find("id <> ''")}
            self.last = max((at for seq, at in ledger.rows("SELECT seq, at FROM journal") if seq >= self.accepted), default=0.0)
            assert verify(ledger, None).findings == []
        assert rows.keys() == self.known.keys()
        for name, one in self.known.items():
            row = rows[name]
            assert (row.state, row.fence, row.applied, row.closed) == (one.state, one.fence, one.applied, one.closed), (row, one)

    @invariant()
    def no_limit_is_broken(self) -> None:
        if not hasattr(self, "limits"):
            return
        limits, all_of_them = self.limits, list(self.known.values())
        flying = [one for one in all_of_them if one.open]
        assert len({one.vmid for one in flying}) == len(flying)
        assert len(flying) <= limits.in_flight
        for node in set(NODES.values()):
            assert sum(NODES[one.vmid] == node for one in flying) <= limits.in_flight_per_node
        if self.set_back:
            return  # somebody took a clock for right that is behind what was done, so spans of time mean nothing
        begun = sorted((one for one in all_of_them if one.applied is not None), key=lambda one: one.applied or 0)
        for place, one in enumerate(begun):
            within = [other for other in begun[: place + 1] if (other.applied or 0) > (one.applied or 0) - WINDOW]
            assert len(within) <= limits.overall
            assert sum(other.vmid == one.vmid for other in within) <= limits.per_target
            assert sum(NODES[other.vmid] == NODES[one.vmid] for other in within) <= limits.per_node
            assert sum(other.remedy == "lxc_cpu" for other in within) <= limits.cpu_budget or one.remedy != "lxc_cpu"
            same = [other.applied or 0 for other in begun[:place] if (other.vmid, other.remedy) == (one.vmid, one.remedy)]
            assert not same or (one.applied or 0) - max(same) >= limits.cooldown_of(one.remedy)


def test_no_history_breaks_a_limit(whole: bool) -> None:
    how = settings(
        max_examples=150 if whole else 15,
        stateful_step_count=60,
        deadline=None,
        derandomize=not whole,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    checks = ["", "clock", "pause", "frozen", "one at a time", "storm", "breaker", "cooldown", "budget", "in flight"]
    all_of_it = {f"first {check}" for check in checks} | {"second allowed", "second ask", "second pause", "taken planned", "taken applying"}
    needed = all_of_it if whole else {"first ", "first budget", "first cooldown", "second allowed"}
    Histories.seen.clear()
    for _round in range(10 if whole else 1):  # what is rare is not in every so many histories
        run_state_machine_as_test(Histories, settings=how)
        if needed <= set(Histories.seen):
            break
    print(f"\nanswers: {dict(sorted(Histories.seen.items()))}")
    assert needed <= set(Histories.seen)


def test_the_rule_that_the_plan_falls_under_has_its_own_limits(tmp_path: Path) -> None:
    """Before there is a plan nobody knows which rule it will be, so its budget is looked at when it is known."""
    full: Facts = {"name": "full", "match": {"options": {"full": ["true"]}}, "decision": "auto", "max_per_window": 1, "max_growth": 1000}
    rest: Facts = {"name": "rest", "match": {}, "decision": "auto", "max_growth": 1000}
    rules = policy(rules=[full, rest])
    file = File(tmp_path / "ledger.db")

    def run(number: int, planned: Facts) -> Facts:
        whose: Facts = {"remediation": f"r{number}", "remedy": "lxc_memory", "host": "pve", "facts": target(200 + number)}
        with file.turn() as ledger:
            first = _gate.admit(ledger, rules, **whose, request=asked())
            return _gate.decide(ledger, rules, **whose, fence=first["fence"], chain=planned, request=asked())

    def fully(number: int) -> Facts:
        return chain(200 + number, args={"vmid": [200 + number], "memory": 1024, "full": True})

    assert [run(1, fully(1))["word"], run(2, chain(202))["word"]] == ["allowed", "allowed"]
    answer = run(3, fully(3))
    assert (answer["word"], answer["rule"], answer["checks"][-1]["check"]) == ("refused", "full", "budget"), answer
    file.close()


@pytest.mark.parametrize("only", [[], ["0" * 64], ["any", "0" * 64], lambda plan: [plan[:8]], lambda plan: [plan + "0"], lambda plan: [plan.upper()]])
def test_a_plan_that_was_not_meant_is_refused_and_written_down(tmp_path: Path, only: t.Any) -> None:
    """As any other refusal: with the plan, its reason and the rule, and nothing left open."""
    rules, planned = policy(), chain(201)
    whose: Facts = {"remediation": "r1", "remedy": "lxc_memory", "host": "pve", "facts": target(201)}
    meant = only(_gate.plan_id(planned["plan"])) if callable(only) else only
    with File(tmp_path / "ledger.db").turn() as ledger:
        first = _gate.admit(ledger, rules, **whose, request=asked())
        told = _gate.decide(ledger, rules, **whose, fence=first["fence"], chain=planned, request=asked(only_plans=meant))
        row, decided = ledger.get("r1"), ledger.latest("r1", "decided")
        kinds = [event.kind for event in ledger.events("r1")]
    assert (told["word"], told["steps"], row.state, row.why) == ("refused", [], "denied", told["why"])
    assert told["why"].startswith(f"this is plan {told['plan_id']}, and only {', '.join(meant) or 'none'} may be done (remediate_only_plans)")
    assert (kinds, decided["plan_id"], decided["decision"]["word"]) == (["opened", "decided", "closed"], told["plan_id"], "refused")


def test_a_plan_that_was_meant_is_allowed(tmp_path: Path) -> None:
    planned = chain(201)
    plan = _gate.plan_id(planned["plan"])
    for number, meant in enumerate(([plan], ["0" * 64, plan], ["any"])):
        whose: Facts = {"remediation": f"r{number}", "remedy": "lxc_memory", "host": "pve", "facts": target(201)}
        with File(tmp_path / f"{number}.db").turn() as ledger:
            first = _gate.admit(ledger, policy(), **whose, request=asked())
            assert _gate.decide(ledger, policy(), **whose, fence=first["fence"], chain=planned, request=asked(only_plans=meant))["word"] == "allowed"
