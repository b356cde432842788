# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A human's yes or no to exactly one plan: how people are asked, and what counts as an answer.

What is not a yes of somebody who may give it, to this plan, in time and for the first time, is none.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
import typing as t
from dataclasses import asdict, dataclass, field, replace

from ansible_collections.homelab.healer.plugins.module_utils import _awx, _gate, _telegram
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, HealerError, Refused
from ansible_collections.homelab.healer.plugins.module_utils._ledger import BACKWARDS, Event, Ledger, Remediation, project
from ansible_collections.homelab.healer.plugins.module_utils._policy import Plan
from ansible_collections.homelab.healer.plugins.module_utils._sizes import moment
from ansible_collections.homelab.healer.plugins.module_utils._telegram import Command, Ignored, Reading, Telegram

Facts = t.Mapping[str, t.Any]
Told = t.Dict[str, t.Any]
OPTIONS: dict[str, t.Any] = dict(
    approval=dict(
        type="dict",
        default={},
        options=dict(telegram=dict(type="dict", options=_telegram.OPTIONS), awx=dict(type="dict", options=_awx.OPTIONS)),
    )
)
LOOKS_EVERY = 1.0
"""Seconds between two looks for an answer in the ledger."""
READS_FOR = 2
"""Seconds for which one reading of Telegram waits, during which nobody looks into the ledger."""
SLACK = 120.0
"""Seconds by which a lease is longer than the wait, for what the last reading may take."""
PLANS_WITHIN = 300.0
"""Seconds that a run has, after a yes that it has waited for, to plan again and begin."""
SHORTEST = 8
"""How many characters of a plan's id name it."""
ONCE = 10
"""How often, at most, one look at what came in asks for more of it."""


@dataclass(frozen=True)
class Voice:
    """Who answers, as she is shown, by which channel, and what else is written down of her."""

    who: str
    channel: str
    facts: Facts = field(default_factory=dict)


def person(run: Facts, channel: str) -> Voice:
    """Whoever runs a command on a machine that may write the ledger."""
    by = f" ({', '.join(str(run[name]) for name in ('job', 'launched_by') if run.get(name))})" if run.get("job") else ""
    return Voice(f"{run.get('user') or 'somebody'} on {run.get('machine') or 'an unknown machine'}{by}", channel, {"run": run})


def about(ledger: Ledger, row: Remediation) -> Told:
    """What people are shown of a remediation: the plan that was asked about, or otherwise the last one."""
    facts: dict[str, list[Facts]] = {}
    for event in ledger.events(row.id):
        facts.setdefault(event.kind, []).append(event.facts)
    opened, asked = (facts.get(kind, [{}])[-1] for kind in ("opened", "asked"))
    plans = [decided for decided in facts.get("decided", []) if decided["plan_id"] == asked.get("plan_id", row.plan_id)]
    decided = plans[-1] if plans else {}
    changes = [step for step in decided.get("chain", {}).get("plan", []) if step["purpose"] == "change"]
    return dict(
        id=row.id,
        plan_id=asked.get("plan_id", row.plan_id),
        target=opened.get("facts", {}),
        remedy=row.remedy,
        problem=opened.get("problem", ""),
        diff=[diff for step in changes for diff in _listed(step.get("diff"))],
        rule=decided.get("rule", row.rule),
        why=decided.get("decision", {}).get("why", ""),
        reversibility=Plan(changes).reversibility if changes else "",
        asked=row.asked,
        expires=row.expires,
    )


def _listed(diff: t.Any) -> list[t.Any]:
    return list(diff) if isinstance(diff, (list, tuple)) else [diff] if diff else []


class Asker:
    """Asks by Telegram, where that is possible and allowed, and takes answers from there for whichever question they are.

    A token has only one reader at a time, so who reads holds a lease on it; all others look into the ledger. ``trouble`` is what stood in the way last.
    Where ``run`` is a job of AWX, it also takes what was answered in its workflow before it; ``awx_trouble`` is what stood in the way of that.
    """

    def __init__(self, ledger: Ledger, options: Facts, run: Facts | None = None) -> None:
        self._ledger, self._me = ledger, secrets.token_hex(8)
        self._awx, self.awx_trouble = _awx_of(options.get("awx"), run or {})
        self._telegram: Telegram | None = None
        self.trouble = "no Telegram is configured by healer_approval"
        found = options.get("telegram")
        if not found:
            return
        try:
            telegram = Telegram(**found)
        except HealerError as error:
            self.trouble = str(error)
            return
        missing = [name for name, listed in (("chats", telegram.chats), ("users", telegram.users)) if not listed]
        if missing:
            self.trouble = f"healer_approval lists no {' and no '.join(missing)} for Telegram, so nobody there could answer"
            return
        bot = hashlib.sha256(found["token"].partition(":")[0].encode()).hexdigest()[:16]
        self._reader, self._offset = f"telegram {bot} reader", f"telegram {bot} offset"
        self._lease = 2 * (found["timeout"] + READS_FOR) + _telegram.SHORT_WAIT + 5
        self._telegram, self.trouble = telegram, ""

    @property
    def able(self) -> bool:
        """Whether it can be tried by Telegram."""
        return self._telegram is not None and not self._ledger.dry

    @property
    def awx_able(self) -> bool:
        """Whether AWX can be asked who answered."""
        return self._awx is not None and not self._ledger.dry

    def why_not(self, channels: t.Container[str]) -> str:
        """What stood in the way of these channels, in brackets; empty where nothing did."""
        troubles = [trouble for channel, trouble in (("telegram", self.trouble), ("awx", self.awx_trouble)) if channel in channels and trouble]
        return f" ({'; '.join(troubles)})" if troubles else ""

    @property
    def notes(self) -> list[str]:
        """What stood in the way of what could be tried."""
        tried = ((self.able, self.trouble), (self.awx_able, self.awx_trouble))
        return [trouble for able, trouble in tried if able and trouble]

    def take_from_awx(self, remediation: str) -> None:
        """Take the yes that was given in the workflow of AWX before this job began, if it was one to what is asked now."""
        if not (self._awx and self.awx_able):
            return
        try:
            yes = self._awx.yes()
        except HealerError as error:
            self.awx_trouble = str(error)
            return
        with self._ledger.turn():
            try:
                row = self._ledger.get(remediation)
                _check_meant(self._ledger, row, yes)
                settle(self._ledger, row, "approved", Voice(f"{yes.who} (AWX user {yes.user})", "awx", {"awx": asdict(yes)}), yes.plan_id)
            except Refused as error:
                self.awx_trouble = str(error)

    def send(self, question: Facts, nonce: str) -> tuple[list[Told], list[str]]:
        """Ask in every chat. Returns where the question stands, and what failed."""
        sent: list[Told] = []
        failed: list[str] = []
        telegram = self._telegram
        if telegram is None:
            return sent, failed
        for chat in sorted(telegram.chats):
            try:
                sent.append(dict(chat=chat, message=telegram.send(chat, _telegram.question(question), _telegram.buttons(nonce))))
            except HealerError as error:
                failed.append(str(error))
        return sent, failed

    def read(self, wait: int) -> bool:
        """Take in what people answered since the last time, waiting so many seconds for the first. Returns whether this was the one to read."""
        if not (self._telegram and self.able and self._take_lease()):
            return False
        try:
            updates = self._telegram.updates(self._known(), wait)
        except HealerError as error:
            self.trouble = str(error)
            return False
        self.trouble = ""
        if updates:
            with self._ledger.turn():
                outcomes = [(reading, *self._taken(reading)) for reading in map(self._telegram.read, updates)]
                self._ledger.keep_note(self._offset, str(_telegram.next_offset(updates, self._known())))
            for reading, said, row in outcomes:
                self._reply(reading, said, row)
        return True

    def read_all(self) -> None:
        """Take in what is there, without waiting, and let others read."""
        for _again in range(ONCE):
            before = self._known()
            if not self.read(0) or self._known() == before:
                break
        self.leave()

    def leave(self) -> None:
        """Let others read."""
        if self.able and self._held().get("holder") == self._me:
            with self._ledger.turn():
                self._ledger.keep_note(self._reader, "")

    def show(self, row: Remediation, beside: t.Sequence[Facts] = ()) -> None:
        """Write under a question what became of it, wherever it stands. That this fails changes nothing."""
        if not (self._telegram and self.able):
            return
        with self._ledger.turn(writing=False):
            question, sent = about(self._ledger, row), self._ledger.latest(row.id, "told").get("messages", [])
            word, who, at = _ending(self._ledger, row)
        text = _telegram.answered(_telegram.question(question), word, who, at)
        for place in [*sent, *(place for place in beside if place not in sent)]:
            self._try(self._telegram.edit, place["chat"], place["message"], text)

    def _take_lease(self) -> bool:
        """Be the one who reads. What lies too far ahead was written before the clock was set back."""
        with self._ledger.turn(writing=False):
            if self._others():
                return False
        with self._ledger.turn():
            if self._others():
                return False
            self._ledger.keep_note(self._reader, json.dumps({"holder": self._me, "until": self._ledger.now() + self._lease}))
        return True

    def _others(self) -> bool:
        held, now = self._held(), self._ledger.now()
        return bool(held) and held["holder"] != self._me and now < held["until"] < now + 10 * self._lease

    def _held(self) -> Facts:
        return dict(json.loads(self._ledger.note(self._reader) or "{}"))

    def _known(self) -> int:
        return int(self._ledger.note(self._offset) or 0) if self.able else 0

    def _taken(self, reading: Reading) -> tuple[str, Remediation | None]:
        """Write down what an update says. Returns what to say to the one who pressed a button, and which question it was."""
        if isinstance(reading, Command):
            if self._ledger.switch("pause") is None:
                self._ledger.turn_switch("pause", {"who": f"{reading.who} (Telegram user {reading.user})", "why": "by Telegram"})
            return "", None
        if isinstance(reading, Ignored):
            return "You may not answer here.", None
        found = self._ledger.find("nonce = ?", hashed(reading.nonce))
        if not found:
            return "This question is not known here.", None
        told = {"user": reading.user, "chat": reading.chat, "message": reading.message}
        voice = Voice(f"{reading.who} (Telegram user {reading.user})", "telegram", {"telegram": told})
        try:
            row = settle(self._ledger, found[0], "approved" if reading.approved else "denied", voice)
        except Refused as error:
            return f"Not taken: {error.why}", found[0]
        return row.state.capitalize(), row

    def _reply(self, reading: Reading, said: str, row: Remediation | None) -> None:
        callback = getattr(reading, "callback", "")
        if self._telegram and callback:
            self._try(self._telegram.acknowledge, callback, said)
        if row and isinstance(reading, _telegram.Answer):
            with self._ledger.turn(writing=False):
                row = self._ledger.get(row.id)
            if row.state != "asked":
                self.show(row, [dict(chat=reading.chat, message=reading.message)])

    def _try(self, call: t.Callable[..., None], *arguments: t.Any) -> None:
        try:
            call(*arguments)
        except HealerError as error:
            self.trouble = str(error)


def _awx_of(options: Facts | None, run: Facts) -> tuple[_awx.Awx | None, str]:
    """The AWX that an inventory tells of, or why it cannot be asked."""
    if not options:
        return None, "no AWX is configured by healer_approval"
    try:
        return _awx.Awx(run=run, **options), ""
    except HealerError as error:
        return None, str(error)


def _check_meant(ledger: Ledger, row: Remediation, yes: _awx.Yes) -> None:
    """Refuse a yes in AWX that is to something else than what is asked, too old, or was taken before. An answer counts for one remediation alone."""
    age, life = ledger.now() - yes.answered, (row.expires or 0.0) - (row.asked or 0.0)
    taken = "SELECT remediation, body FROM journal WHERE kind = 'approved' AND remediation IN (SELECT id FROM remediations WHERE approver <> '')"
    before = [whose for whose, body in ledger.rows(taken) if _same(json.loads(body).get("awx", {}), yes)]
    for wrong, why in (
        (
            yes.plan_id != row.plan_id or yes.target != row.target,
            f"it was to plan {yes.plan_id} of {yes.target}, and this is plan {row.plan_id} of {row.target}",
        ),
        (age < -BACKWARDS, f"it was given in {-age:.0f} s by the ledger's clock, so one of the clocks is wrong"),
        (age >= life, f"it was given {age:.0f} s ago, and a question may be answered for {life:.0f} s"),
        (bool(before), f"it was taken already, for remediation {', '.join(before)}"),
    ):
        if wrong:
            raise Refused(f"will not take approval {yes.approval} of AWX", why=why, fix="Start its workflow again.")


def _same(taken: Facts, yes: _awx.Yes) -> bool:
    """Whether that answer is this one. A number alone is not enough, as an AWX that was set up anew begins with them anew."""
    return (taken.get("approval"), taken.get("answered")) == (yes.approval, yes.answered)


def hashed(nonce: str) -> str:
    """What the ledger has of a nonce, which nobody can answer by."""
    return hashlib.sha256(nonce.encode()).hexdigest()


def ask(ledger: Ledger, remediation: str, fence: int, *, options: Facts, prompt: bool, run: Facts) -> Told:
    """Ask about a plan, and wait for the answer for as long as the policy says.

    With ``prompt`` the caller asks at a terminal and nothing is waited for here; asked again, it goes on with the same question. Answers with ``word``:
    V(approved), V(denied), V(needs_human) where nobody answered and the policy says so, or V(waiting) where an answer may still come.
    """
    asker, nonce = Asker(ledger, options, run), _telegram.new_nonce()
    with ledger.turn():
        row = ledger.get(remediation)
        new = row.state == "planned" or row.fence != fence
        if new:
            row = _put(ledger, ledger.held(remediation, fence, f"cannot ask about {row.name}"), asker, nonce, prompt)
        asked, question = ledger.latest(row.id, "asked"), about(ledger, row)
        told = dict(_reply(ledger, row, asker), changed=new, question=_telegram.lines(question), wait=float(asked.get("wait", 0)), ways=asked.get("ways", []))
    if ledger.dry:
        return told
    if new and row.state == "asked" and "awx" in asked["ways"]:
        row = _take_from_awx(ledger, row, asker, asked)
    if new and row.state == "asked" and "telegram" in asked["ways"]:
        _send(ledger, row, asker, question, nonce)
    if not prompt and not new and asked.get("ways") == ["prompt"] and _left(ledger, row, asked) > 1:
        _give_up(ledger, row, asker, asked)
    elif not prompt:
        _wait(ledger, row, asker, asked, new)
    with ledger.turn(writing=False):
        row = ledger.get(remediation)
        told.update(_reply(ledger, row, asker))
    if row.state != "asked":
        asker.show(row)
    return told


def _put(ledger: Ledger, row: Remediation, asker: Asker, nonce: str, prompt: bool) -> Remediation:
    """Write the question down before anybody is asked, or why nobody can be."""
    decision = ledger.latest(row.id, "decided").get("decision", {})
    if decision.get("word") != "ask":
        raise Refused(f"will not ask about {row.name}", why="the gate did not say that a human has to approve", fix="Ask the gate with the plan first.")
    how = decision["approval"]
    can = {"telegram": asker.able, "prompt": prompt, "command": True, "awx": asker.awx_able}
    ways = [channel for channel in how["channels"] if can[channel]]
    now = ledger.now()
    late = ledger.behind() > BACKWARDS
    if ways and not late:
        nonce = hashed(nonce) if "telegram" in ways else ""
        times = dict(until=now + how["wait"] + SLACK, expires=now + how["expires"], wait=how["wait"], on_timeout=how["on_timeout"])
        return project(row, ledger.append("asked", row.id, plan_id=row.plan_id, nonce=nonce, channels=how["channels"], ways=ways, **times))
    why = _clock(ledger) if late else _nobody(asker, how)
    _gate.close(ledger, row, "denied", why, {})
    return replace(row, state="denied", why=why)


def _nobody(asker: Asker, asked: Facts) -> str:
    return f"nobody can be asked by {', '.join(asked['channels'])}{asker.why_not(asked['channels'])}"


def _give_up(ledger: Ledger, row: Remediation, asker: Asker, asked: Facts) -> None:
    """End a question that only a terminal could answer, where the run has none after all or has ended."""
    with ledger.turn():
        row = ledger.get(row.id)
        if row.state == "asked":
            _gate.close(ledger, row, "denied", f"its run has no terminal, and {_nobody(asker, asked)}", {})


def _clock(ledger: Ledger) -> str:
    return f"the ledger's clock is {ledger.behind():.0f} s behind its last entry, so nobody can tell what is in time"


def _take_from_awx(ledger: Ledger, row: Remediation, asker: Asker, asked: Facts) -> Remediation:
    """Take what was answered in AWX. It was answered before this was asked or not at all, so where nobody could answer elsewhere, that is a no at once."""
    asker.take_from_awx(row.id)
    with ledger.turn():
        row = ledger.get(row.id)
        if row.state == "asked" and asked["ways"] == ["awx"]:
            _gate.close(ledger, row, "denied", f"nobody approved it{asker.why_not(['awx'])}", {})
            row = ledger.get(row.id)
    return row


def _send(ledger: Ledger, row: Remediation, asker: Asker, question: Facts, nonce: str) -> None:
    """Ask by Telegram. Where that cannot be done and nobody could answer elsewhere, that is a no at once."""
    sent, failed = asker.send(question, nonce)
    with ledger.turn():
        row = ledger.get(row.id)
        ledger.append("told", row.id, messages=sent, failed=failed)
        if not sent and {*ledger.latest(row.id, "asked")["ways"]} <= {"telegram", "awx"} and row.state == "asked":
            _gate.close(ledger, row, "denied", f"nobody could be asked: {'; '.join(failed)}", {})
    if failed:
        asker.trouble = "; ".join(failed)


def _wait(ledger: Ledger, row: Remediation, asker: Asker, asked: Facts, new: bool) -> None:
    """Wait for an answer, whichever way it comes, and end the question where there is none."""
    left = asked.get("wait", 0.0) if new else _left(ledger, row, asked)
    began = time.monotonic()  # the ledger's clock may be set back, and nobody waits for longer for that
    with contextlib.ExitStack() as reading:
        reading.callback(asker.leave)
        while row.state == "asked":
            more = left - (time.monotonic() - began)
            with ledger.turn(writing=False):
                now, row, behind = ledger.now(), ledger.get(row.id), ledger.behind()
            if row.state != "asked" or more <= 0 or behind > BACKWARDS or (row.expires is not None and now >= row.expires):
                break
            if not ("telegram" in asked["ways"] and asker.read(min(READS_FOR, int(more)))) or more < 1:
                time.sleep(max(0.0, min(LOOKS_EVERY, more)))
    with ledger.turn():
        row = ledger.get(row.id)
        edited = _gate.strays(ledger, row) if row.state == "approved" else ""
        if edited:
            _gate.close(ledger, row, "denied", f"it is not known to be approved: {edited}", {})
        if row.state != "asked":
            return
        if ledger.behind() > BACKWARDS:
            _gate.close(ledger, row, "denied", _clock(ledger), {})
        elif row.expires is not None and row.asked is not None and row.expires - row.asked > asked["wait"] + 1 and ledger.now() < row.expires:
            ledger.append("left", row.id, until=ledger.now())
        else:
            _gate.close(ledger, row, _gate.lapsed(ledger, row), f"{_gate.UNANSWERED}{asker.why_not(asked['channels'])}", {})


def _left(ledger: Ledger, row: Remediation, asked: Facts) -> float:
    """How many seconds of a question's wait are left, where it was begun elsewhere."""
    with ledger.turn(writing=False):
        return float(asked.get("wait", 0.0)) - max(0.0, ledger.now() - (row.asked or 0.0))


def _reply(ledger: Ledger, row: Remediation, asker: Asker) -> Told:
    """What a question has come to."""
    said = _answer(ledger, row)
    who, channel = (str(said.facts[name]) if said else "" for name in ("approver", "channel"))
    told: Told = dict(remediation=row.id, plan_id=row.plan_id, expires=row.expires, who=who, channel=channel, notes=asker.notes)
    if row.state == "asked":
        until = moment(row.expires or 0.0)
        why = f"nobody has answered yet; homelab.healer.approve and deny may until {until}, and homelab.healer.recover does then what was approved"
        return dict(told, word="waiting", why=why)
    if row.state == "approved":
        return dict(told, word="approved", why=f"{who} approved plan {row.plan_id[:SHORTEST]}")
    if row.state in ("denied", "needs_human"):
        return dict(told, word=row.state, why=row.why)
    raise Conflict(f"cannot ask about {row.name}", why=f"it is {row.state}", fix="Nothing more is done here; homelab.healer.report tells how it ended.")


def _answer(ledger: Ledger, row: Remediation) -> Event | None:
    """The event by which a human answered last."""
    found = [event for event in ledger.events(row.id) if event.kind in ("approved", "closed") and event.facts.get("approver")]
    return found[-1] if found else None


def _ending(ledger: Ledger, row: Remediation) -> tuple[str, str, float]:
    """The word, who said it, and when, for the message of a question that is no longer open."""
    said = _answer(ledger, row)
    if said:
        return "approved" if said.kind == "approved" else "denied", str(said.facts["approver"]), said.at
    return {"needs_human": "needs a human"}.get(row.state, row.state), f"the healer ({row.why})", row.closed or ledger.now()


def settle(ledger: Ledger, row: Remediation, word: str, voice: Voice, plan: str | None = None) -> Remediation:
    """Write an answer down, if it is one. ``word`` is V(approved) or V(denied), ``plan`` the plan's id, or as much of it as somebody gave.

    A no is taken also after a yes, as long as nothing was begun. Raises ``Refused`` for what is no answer, which changes nothing.
    """
    why = _open_to(row, word) or (_no_approval(ledger, row, voice, plan) if word == "approved" else "")
    if why:
        what = f"will not take {'the approval' if word == 'approved' else 'the denial'} of {row.id}"
        raise Refused(what, why=why, fix="homelab.healer.report tells what became of it.")
    if word == "denied":
        _gate.close(ledger, row, "denied", f"{voice.who} said no", {**voice.facts, "approver": voice.who, "channel": voice.channel})
    else:
        now = ledger.now()
        until = max(row.until, now + PLANS_WITHIN) if now < row.until else row.until
        ledger.append("approved", row.id, plan_id=row.plan_id, approver=voice.who, channel=voice.channel, until=until, **voice.facts)
    return row if ledger.dry else ledger.get(row.id)


def _open_to(row: Remediation, word: str) -> str:
    """Why a remediation takes no answer."""
    if row.state == "asked" or (row.state == "approved" and word == "denied"):
        return ""
    if row.state == "approved":
        return f"it was approved already, by {row.approver}"
    if not row.open:
        return f"it has ended: {row.state} ({row.why})"
    return "nothing was asked" if row.asked is None else f"it was begun already: {row.state}"


def _no_approval(ledger: Ledger, row: Remediation, voice: Voice, plan: str | None) -> str:
    """Why a yes to a question that is open is none."""
    asked, now = ledger.latest(row.id, "asked"), ledger.now()
    if row.expires is None or now >= row.expires:
        return f"it could be answered until {moment(row.expires or 0.0)}"
    if ledger.behind() > BACKWARDS:
        return _clock(ledger)
    if voice.channel not in asked.get("channels", ()):
        return f"the policy takes answers by {', '.join(asked.get('channels', ()))}, not by {voice.channel}"
    if plan is not None and (len(plan) < SHORTEST or not row.plan_id.startswith(plan)):
        return f"that is not its plan: give the first {SHORTEST} characters of the plan's id at least, as it is shown"
    if asked.get("plan_id") != row.plan_id:
        return "another plan was asked about"
    return _gate.strays(ledger, row)


def answer(ledger: Ledger, remediation: str, word: str, voice: Voice, *, plan: str | None, options: Facts) -> Told:
    """Take the answer of somebody who runs a command, or only show what is asked where she approves and names no plan."""
    asker = Asker(ledger, options)
    with ledger.turn():
        row = ledger.get(remediation)
        question = about(ledger, row)
        seen = word == "approved" and plan is None
        why = _open_to(row, word)
        if seen and why:
            raise Refused(f"cannot approve {row.id}", why=why, fix="homelab.healer.report tells what became of it.")
        if not seen:
            row = settle(ledger, row, word, voice, plan)
    if not seen:
        asker.show(row)
    told = dict(remediation=row.id, plan_id=row.plan_id, expires=row.expires, question=_telegram.lines(question), notes=[], wait=0.0, ways=[])
    if seen:
        return dict(told, changed=False, word="waiting", why=f"to approve exactly this, add -e plan={row.plan_id[:SHORTEST]}", who="", channel="")
    done = {"approved": f"{voice.who} approved plan {row.plan_id[:SHORTEST]}", "denied": f"{voice.who} said no"}[word]
    return dict(told, changed=True, word=word, why=done, who=voice.who, channel=voice.channel, notes=asker.notes)


def take_in(ledger: Ledger, options: Facts) -> Told:
    """Read what people answered meanwhile, without waiting. That it cannot be read is only noted: nothing is approved by that."""
    asker = Asker(ledger, options)
    before = ledger.head
    asker.read_all()
    with ledger.turn(writing=False):
        changed = ledger.head != before
    notes = [asker.trouble] if asker.trouble and options.get("telegram") else []
    return dict(changed=changed, word="", why="", who="", channel="", remediation="", plan_id="", expires=None, question=[], notes=notes, wait=0.0, ways=[])


__all__ = ["OPTIONS", "answer", "ask", "person", "take_in"]
