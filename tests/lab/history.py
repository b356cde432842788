"""A month of remediations, written by the gate itself on a clock of the lab's: every way in which one can end, on things with the worst of names."""

from __future__ import annotations

import typing as t
from datetime import datetime, timezone

from ansible_collections.homelab.healer.plugins.module_utils import _gate
from ansible_collections.homelab.healer.plugins.module_utils._ledger import Ledger
from ansible_collections.homelab.healer.plugins.module_utils._policy import read

Facts = dict[str, t.Any]
RULES = """
version: 1
limits: {cooldown: "0", max_per_window: 100000, max_per_target: 100000, max_per_node: 100000, max_in_flight: 100000, max_in_flight_per_node: 100000}
breaker: {failures: 3}
storm: {targets: 100000}
rules:
  - {name: never the printer, match: {remedy: lxc_restart}, decision: "off"}
  - {name: ask before memory, match: {remedy: lxc_memory}, decision: approve}
  - {name: the rest, match: {}, decision: auto, max_growth: 100000, max_shrink: 100}
"""
HOSTILE = (
    "<script>document.title='owned'</script>",
    "{{ lookup('pipe', 'touch owned') }}",
    '"><img src=x onerror="document.title=\'owned\'">',
    "';--",
    "abc\u202egnp.exe",
    "\u05e9\u05dc\u05d5\u05dd",
    "</style></svg></details>&amp;",
    "{% raw %}{# #}\\n",
    "x" * 3000,
    "\u0007\u200b\x1b[31mred",
)
PROBES = ("memory levels off below its limit", "it was not killed for want of memory")


class History:
    """Writes into a ledger whose clock stands still between what happens."""

    def __init__(self, ledger: Ledger, now: float) -> None:
        self.ledger, self.clock, self.number = ledger, now, 0
        self.rules = read(RULES, "the lab's policy")
        ledger._database.now = lambda: self.clock  # type: ignore[method-assign]

    def later(self, seconds: float) -> None:
        self.clock += seconds

    def _id(self) -> str:
        self.number += 1
        return f"{datetime.fromtimestamp(self.clock, timezone.utc):%Y%m%dT%H%M%SZ}-{self.number:08x}"

    def begin(self, remedy: str, vmid: int, name: str, **request: t.Any) -> tuple[Facts, Facts]:
        """The first question. Returns what was asked about, and the answer."""
        facts = {"kind": "lxc", "id": vmid, "name": name, "node": "pve1", "tags": [], "pool": "", "hostname": name[:60], "labels": {"secret": "hunter2"}}
        whose: Facts = {"remediation": self._id(), "remedy": remedy, "host": "pve"}
        asked = {
            "problem": f"{name} is at 97 % of its memory",
            "run": {"user": "ann", "machine": "controller"},
            "lease": 3600.0,
            "waited": 0.0,
            "shadow": False,
            "only_plans": ["any"],
        }
        asked.update(pause_file="/nonexistent/pause", **request)
        answer = _gate.admit(self.ledger, self.rules, **whose, facts=facts, request=asked)
        return dict(whose, facts=facts, request=asked), answer

    def plan(self, asked: Facts, answer: Facts) -> Facts:
        """The second question."""
        key, name = str(asked["facts"]["id"]), asked["facts"]["name"]
        step: Facts = {"purpose": "change", "module": "homelab.healer.lxc_resources", "args": {"vmid": [int(key)], "memory": "1024"}, "changed": True}
        step.update(before={key: {"memory": 512}}, after={key: {"memory": 1024}}, reversibility="exact", steps=[f"set memory of {name} to 1GiB"], results=[])
        step["diff"] = [{"before": "memory: 512MiB\nswap: 512MiB\n", "after": "memory: 1GiB\nswap: 512MiB\n", "before_header": name, "after_header": name}]
        undo = [{"purpose": "change", "module": step["module"], "args": {"vmid": [int(key)], "memory": "512"}}]
        chain = {"plan": [step], "undo": undo, "point_of_return": [], "probes": [], "baseline": [], "settings": {}}
        return _gate.decide(self.ledger, self.rules, **asked, fence=answer["fence"], chain=chain)

    def whole(self, how: str, remedy: str, vmid: int, name: str, takes: float = 60.0) -> str:
        """One from its begin to its end. ``how`` is an outcome, or where it stops: ``asked``, ``planned`` or ``applying``."""
        began = datetime.fromtimestamp(self.clock - takes / 10, timezone.utc).isoformat()
        diagnosed = datetime.fromtimestamp(self.clock, timezone.utc).isoformat()
        alerted = datetime.fromtimestamp(self.clock - takes / 10 - 30, timezone.utc).isoformat()
        asked, answer = self.begin(remedy, vmid, name, shadow=how == "shadow")
        whose = asked["remediation"]
        if answer["word"] != "allowed" or how == "planned":
            return str(whose)
        self.later(takes / 10)
        decided = self.plan(asked, answer)
        if decided["word"] == "ask" and not self._answer(how, asked, takes):
            return str(whose)
        if decided["word"] == "shadow" or how == "applying":
            return str(whose)
        self.later(takes / 5)
        if how != "healed" and takes > 100:  # the change itself failed
            self.ledger.append("undoing", whose, until=self.clock + 3600, reason="it failed")
        else:
            self.ledger.append("verifying", whose, until=self.clock + 3600)
            self.later(takes / 2)
            if how == "rolled_back":
                self.ledger.append("undoing", whose, until=self.clock + 3600, reason="it did not help")
        self.later(takes / 10)
        looks = [[{"name": probe, "kind": "goal", "good": how == "healed" or None, "value": 1, "told": f"{probe}: 61 (before: 97)"} for probe in PROBES]]
        error = {} if how == "healed" else {"code": "task_failed", "what": f"cannot change {name}", "why": "HTTP 500: it is broken", "fix": "Look into it."}
        done = [{"module": "homelab.healer.lxc_resources", "results": [{"id": vmid, "name": name, "steps": [f"set memory of {name} to 1GiB"]}]}]
        facts = {"looks": looks, "results": done, "error": error, "times": {"alerted": alerted, "started": began, "diagnosed": diagnosed}}
        why = {"healed": "; ".join(PROBES), "rolled_back": "memory went on to rise"}.get(how, f"cannot change {name}: HTTP 500: it is broken")
        _gate.close(self.ledger, self.ledger.get(whose), how, why, facts)
        return str(whose)

    def _answer(self, how: str, asked: Facts, takes: float) -> bool:
        whose = asked["remediation"]
        row = self.ledger.get(whose)
        self.ledger.append(
            "asked", whose, plan_id=row.plan_id, nonce="0" * 64, expires=self.clock + 3600, until=self.clock + 3600, channels=["cli"], ways=["cli"]
        )
        if how == "asked":
            return False
        self.later(3 * takes)
        if how == "denied":
            _gate.close(self.ledger, self.ledger.get(whose), "denied", "bob said no", {})
            return False
        self.ledger.append("approved", whose, plan_id=row.plan_id, approver="bob", channel="cli", until=self.clock + 3600)
        self.ledger.append("applying", whose, until=self.clock + 3600)
        return True

    def thaw(self, vmid: int) -> None:
        """A human looked at it."""
        key = f"pve/lxc/{vmid}"
        self.ledger.turn_switch(f"freeze {key}", None)
        self.ledger.turn_switch(f"cleared {key}", {"at": self.clock, "who": "ann", "why": ""})


def month(ledger: Ledger, now: float) -> None:
    """Thirty days that end now, and one remediation from before."""
    with ledger.turn():
        story = History(ledger, now - 40 * 86400)
        story.whole("healed", "lxc_cpu", 300, "from before")
        for number in range(30):
            story.clock = now - (29.5 - number) * 86400
            name = HOSTILE[number % len(HOSTILE)] if number % 3 == 0 else ("nextcloud", "jellyfin", "paperless", "gitea")[number % 4]
            vmid = 200 + number % 10 if number % 3 == 0 else 300 + number % 4
            story.whole("healed", ("lxc_cpu", "lxc_swap")[number % 2], vmid, name, 20 + 7 * number)
            if number % 4 == 0:
                story.later(3600)
                story.whole("healed", "lxc_memory", vmid, name, 60)
            if number % 5 == 0:
                story.later(3600)
                story.whole("rolled_back", "lxc_disk", vmid, name, 30 + 30 * (number % 2) * 10)
            if number % 6 == 0:
                story.later(7200)
                story.whole("healed", ("lxc_cpu", "lxc_swap")[number % 2], vmid, name)  # it has come back
            if number % 7 == 0:
                story.later(60)
                story.whole("shadow", "lxc_cpu", 400, "the one in shadow")
                story.whole("off", "lxc_restart", 401, "printer")
            if number % 9 == 0:
                story.later(60)
                story.whole("denied", "lxc_memory", vmid, name)
            if number % 11 == 0:
                story.later(60)
                story.whole("needs_human", "lxc_disk", vmid, name, 200)
                story.whole("healed", "lxc_disk", vmid, name)  # refused, as it is frozen
                story.thaw(vmid)
        _today(story, now)


def _today(story: History, now: float) -> None:
    story.clock = now - 7000
    story.whole("needs_human", "lxc_disk", 501, HOSTILE[0])
    story.whole("applying", "lxc_cpu", 502, "left in the middle")
    story.clock = now - 1800
    story.whole("healed", "lxc_cpu", 502, "left in the middle")  # joined
    story.whole("asked", "lxc_memory", 503, HOSTILE[2])
    story.whole("planned", "lxc_cpu", 504, "being planned")
    for _time in range(3):
        story.whole("rolled_back", "lxc_disk", 505, "fails and fails")
        story.later(60)
    story.whole("healed", "lxc_disk", 505, "fails and fails")  # the breaker stops it
    for remedy, host in (("docker_runaway", "nas"), ("pg_bloat", HOSTILE[1])):
        _gate.fail(story.ledger, story._id(), remedy=remedy, host=host, facts={}, why="cannot reach the engine", more={"run": {}})
    for number, name in enumerate(HOSTILE):
        story.ledger.append("alert", labels={"alertname": name, name: name}, status="firing", began="", received="", count=number, why=f"no rule knows {name}")
    story.ledger.turn_switch("storm", {"targets": ["a", HOSTILE[0]], "cause": ["the switch"]})
    story.ledger.turn_switch("pause", {"who": "ann", "why": "film night"})
    story.whole("healed", "lxc_cpu", 506, "paused")
    story.clock = now
