# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Questions to people over Telegram's Bot API, and what an update from there is: an answer, a command, or nothing.

Whether an answer's nonce is the one that was asked with, is used for the first time, and is in time, is the ledger's to say, not this file's.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
import time
import typing as t
import urllib.error
from dataclasses import dataclass
from urllib.parse import quote

from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Denied, HealerError, Invalid, TaskFailed, Unreachable
from ansible_collections.homelab.healer.plugins.module_utils._https import Lost, address, check, exchange, lost, part, text, whole

API_URL = "https://api.telegram.org"
OPTIONS: dict[str, t.Any] = dict(
    token=dict(type="str", required=True, no_log=True),
    chats=dict(type="list", elements="raw", default=[]),
    users=dict(type="list", elements="raw", default=[]),
    api_url=dict(type="str", default=API_URL),
    ca_path=dict(type="path"),
    timeout=dict(type="float", default=10.0),
)
"""What ``Telegram`` takes, as options. The numbers are raw, since Ansible would take ``true`` for 1."""
TOKEN = re.compile(r"(?P<bot>[0-9]{1,20}):(?P<secret>[A-Za-z0-9_-]{16,})")
IDENTITY = re.compile(r"-?[1-9][0-9]{0,18}")
DATA = re.compile(r"(?P<word>ok|no):(?P<nonce>[0-9a-f]{32})")
PAUSE = re.compile(r"/pause(@[A-Za-z0-9_]{1,64})?")
"""Whichever bot it names: to stop is the safe side."""
WANTED = ["message", "callback_query"]
MOST = 4096
"""How long a message may be. Told in UTF-16 units of the text with its marks, which no way of counting exceeds."""
ROOM = 512
"""What a question leaves for the answer that is written under it."""
TOAST = 200
"""How long the text may be that a pressed button shows."""
SHORT_WAIT = 5
"""For how many seconds, at most, to wait when the server says that it was asked too much."""
MARKS = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
REVERSIBILITY = {
    "exact": "exact, as it was",
    "equivalent": "equivalent, the same effect by another value",
    "restore_only": "ONLY BY A SNAPSHOT OR BACKUP",
    "none": "NONE, it cannot be put back",
}
REFUSALS: tuple[tuple[int, str, type[HealerError], str], ...] = (
    (401, "", Denied, "Check the bot's token: BotFather shows it."),
    (403, "", Denied, "Let that person or group start or add the bot, and not block it."),
    (404, "", Denied, "Check the bot's token and api_url: BotFather shows the token, and api_url ends where /bot begins."),
    (409, "webhook", Conflict, "Remove the bot's webhook (deleteWebhook), or give this collection its own bot: a webhook takes all its answers."),
    (409, "", Conflict, "Somebody else reads this bot's updates; give this collection a bot of its own, and one reader at a time."),
    (400, "chat not found", TaskFailed, "Check the chat's number, and let that person or group start or add the bot first."),
    (400, "", TaskFailed, "The server's words say what is wrong."),
)
"""What the server's refusals mean: its code, a phrase, the failure, and what to do. The first that fits."""

Buttons = t.Sequence[t.Sequence[t.Mapping[str, str]]]


@dataclass(frozen=True)
class Answer:
    """A button that somebody pressed who may: ``callback`` is to be acknowledged, ``message`` is where the question stands, ``who`` a name to show."""

    approved: bool
    nonce: str
    user: int
    chat: int
    message: int
    callback: str
    who: str


@dataclass(frozen=True)
class Command:
    """A command of somebody who may give it; ``word`` is ``pause``."""

    word: str
    user: int
    chat: int
    who: str


@dataclass(frozen=True)
class Ignored:
    """Neither, and why: malformed, not a button, not our button, a bot, stranger, or wrong chat. ``callback`` is the pressed button's, empty where none was."""

    reason: str
    user: int | None = None
    chat: int | None = None
    callback: str = ""

    def __str__(self) -> str:
        whose = [f"{name} {number}" for name, number in (("user", self.user), ("chat", self.chat)) if number is not None]
        return f"{self.reason} ({', '.join(whose)})" if whose else self.reason


Reading = t.Union[Answer, Command, Ignored]


def identities(option: str, listed: t.Any, positive: bool = False, whose: str = "Telegram") -> frozenset[int]:
    """The numbers of chats or users that a configuration lists, as integers or as their digits; none where nothing is listed.

    Raises ``Invalid`` for anything else, by its place: what stands there may have been meant for another option, such as the token.
    """
    what, fix = f"cannot read {option}", f"Write {option} as a list of {whose}'s numbers, such as [123456]; nothing was asked or answered."
    if listed is None:
        return frozenset()
    if not isinstance(listed, (list, tuple, set, frozenset)):
        raise Invalid(what, why="it is not a list", fix=fix)
    found = set()
    for place, value in enumerate(listed, start=1):
        number = whole(int(value) if isinstance(value, str) and IDENTITY.fullmatch(value) else value)
        if not number or (positive and number < 0):
            raise Invalid(what, why=f"its element {place} is not the number of a {'user' if positive else 'chat'}", fix=fix)
        found.add(number)
    return frozenset(found)


def read(update: t.Any, chats: t.Any, users: t.Any) -> Reading:
    """What an update is. Only a press of one of our buttons is an answer, by one of ``users`` in one of ``chats``; where one of them is empty, none is.

    Raises ``Invalid`` for a configuration that cannot be read, and nothing for an update, whatever it holds.
    """
    here, allowed = identities("chats", chats), identities("users", users, positive=True)
    if not isinstance(update, dict) or whole(update.get("update_id")) is None or len(update) != 2:
        return Ignored("malformed")
    kind = next(key for key in update if key != "update_id")
    event = update[kind]
    if kind not in WANTED:
        return Ignored("not a button")
    callback = text(event, "id") if kind == "callback_query" else ""
    message = part(event, "message") if kind == "callback_query" else event
    sender, chat, number = part(event, "from"), whole(part(part(message, "chat"), "id")), whole(part(message, "message_id"))
    user, robot = whole(part(sender, "id")), part(sender, "is_bot")
    if user is None or chat is None or number is None or not isinstance(robot, bool) or (kind == "callback_query" and not callback):
        return Ignored("malformed", user, chat, callback)
    for refused, reason in ((robot, "a bot"), (user not in allowed, "stranger"), (chat not in here, "wrong chat")):
        if refused:
            return Ignored(reason, user, chat, callback)
    if kind == "callback_query":
        data = DATA.fullmatch(text(event, "data"))
        return (
            Answer(data["word"] == "ok", data["nonce"], user, chat, number, callback, _named(sender))
            if data
            else Ignored("not our button", user, chat, callback)
        )
    return Command("pause", user, chat, _named(sender)) if PAUSE.fullmatch(text(event, "text")) else Ignored("not a button", user, chat)


def next_offset(updates: t.Iterable[t.Any], offset: int) -> int:
    """What to ask with next, so that these updates do not come again: the last one's number and one.

    Never the highest ever seen, since Telegram begins with another number after a week without updates, and then gives the oldest it has.
    """
    numbers = [number for number in (whole(part(update, "update_id")) for update in updates) if number is not None]
    return max(numbers) + 1 if numbers else offset


def _named(sender: t.Any) -> str:
    """How a person is shown beside the number, which is what counts: anybody may call himself anything."""
    name = " ".join(part for part in (text(sender, "first_name"), text(sender, "last_name")) if part)
    username = text(sender, "username")
    return f"{visible(name)[:64]} {'@' + visible(username)[:32] if username else ''}".strip() or f"user {sender['id']}"


def new_nonce() -> str:
    """A word that nobody can guess: 128 bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def buttons(nonce: str) -> Buttons:
    """The two buttons under a question."""
    return [[{"text": "Approve", "callback_data": f"ok:{nonce}"}, {"text": "Deny", "callback_data": f"no:{nonce}"}]]


def visible(value: t.Any) -> str:
    """The text with all that cannot be seen, or that turns what is beside it around, written out."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(value))


def units(text: str) -> int:
    """How long a text is in UTF-16 units, as Telegram counts."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def escaped(value: t.Any, most: int = MOST) -> str:
    """A value as HTML, at most ``most`` units of it: cut, it says how much is missing."""
    marks = [MARKS.get(letter, letter) for letter in visible(value)]
    if units("".join(marks)) <= most:
        return "".join(marks)
    count, used = 0, units("... (1000000000 more characters)")
    while used + units(marks[count]) <= most:
        used += units(marks[count])
        count += 1
    return f"{''.join(marks[:count])}... ({len(marks) - count} more characters)"


def plain(text: str) -> str:
    """A text of several lines as a message, cut where it is too long."""
    return _fitting(text.splitlines(), MOST)


def question(remediation: t.Mapping[str, t.Any]) -> str:
    """The message that asks for an approval.

    Takes ``id``, ``plan_id``, ``target`` (a dict), ``remedy``, ``problem``, ``diff`` (modules' own, so a list of dicts of ``before``,
    ``after`` and ``before_header``, where both sides are lines of text or dicts),
    ``rule`` and ``why`` (which rule asks, and why), ``reversibility``, ``asked`` and ``expires`` (seconds since 1970). What is missing is shown as unknown.
    """
    asked, expires = remediation.get("asked"), remediation.get("expires")
    head = [
        "<b>May this be done?</b>",
        f"<b>Target:</b> {escaped(_target(remediation.get('target')), 500)}",
        f"<b>Remedy:</b> {escaped(_known(remediation.get('remedy')), 150)}",
        f"<b>Problem:</b> {escaped(_known(remediation.get('problem')), 700)}",
    ]
    way_back = _known(remediation.get("reversibility"))
    tail = [
        f"<b>Asks because:</b> {escaped(_because(remediation), 500)}",
        f"<b>Way back:</b> {escaped(REVERSIBILITY.get(way_back, way_back), 150)}",
        f"<b>Expires:</b> {f'{_utc(expires)}{_how_long(asked, expires)}; no answer is no' if expires is not None else 'unknown'}",
        f"<b>Plan:</b> <code>{escaped(_known(remediation.get('plan_id'))[:12], 80)}</code>",
        f"<b>Remediation:</b> <code>{escaped(_known(remediation.get('id')), 120)}</code>",
    ]
    room = MOST - ROOM - units("\n".join([*head, "<pre></pre>", *tail]))
    return "\n".join([*head, f"<pre>{_fitting(_differences(remediation.get('diff')), room)}</pre>", *tail])


def lines(remediation: t.Mapping[str, t.Any]) -> list[str]:
    """The same question for a terminal, whole."""
    expires, way_back = remediation.get("expires"), _known(remediation.get("reversibility"))
    told = [
        f"Target: {_target(remediation.get('target'))}",
        f"Remedy: {_known(remediation.get('remedy'))}",
        f"Problem: {_known(remediation.get('problem'))}",
        *_differences(remediation.get("diff")),
        f"Asks because: {_because(remediation)}",
        f"Way back: {REVERSIBILITY.get(way_back, way_back)}",
        f"Expires: {'unknown' if expires is None else _utc(expires)}",
        f"Plan: {_known(remediation.get('plan_id'))}",
        f"Remediation: {_known(remediation.get('id'))}",
    ]
    return [visible(line) for line in told]


def answered(text: str, word: str, who: str, at: float) -> str:
    """A question's message after its answer: what was decided, by whom, and when, in seconds since 1970."""
    return f"{text}\n\n<b>{escaped(word[:1].upper() + word[1:], 100)}</b> by {escaped(who, 250)}, {_utc(at)}"


def _known(value: t.Any) -> str:
    return "unknown" if value in (None, "") else str(value)


def _target(target: t.Any) -> str:
    if not isinstance(target, t.Mapping):
        return _known(target)
    name, number = _known(target.get("name")), _known(target.get("id"))
    where = f" on {target['node']}" if target.get("node") else ""
    return f"{_known(target.get('kind'))} {name}{'' if number == name else f' ({number[:12]})'}{where}"


def _because(remediation: t.Mapping[str, t.Any]) -> str:
    rule, why = remediation.get("rule"), remediation.get("why")
    return ": ".join(part for part in (f"rule {rule}" if rule else "", str(why or "")) if part) or "unknown"


def _differences(diffs: t.Any) -> list[str]:
    """What changes, a line for each key before and after."""
    listed = [diffs] if isinstance(diffs, (t.Mapping, str)) else list(diffs or [])
    lines = []
    for diff in listed:
        if not isinstance(diff, t.Mapping):
            lines += str(diff).splitlines()
            continue
        if len(listed) > 1 and diff.get("before_header"):
            lines.append(f"{diff['before_header']}:")
        before, after = _lines(diff.get("before")), _lines(diff.get("after"))
        lines += [line for line in list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:] if not line.startswith("@@")]
    return lines or ["(no difference is known)"]


def _lines(side: t.Any) -> list[str]:
    return [f"{key}: {value}" for key, value in side.items()] if isinstance(side, t.Mapping) else str(side or "").splitlines()


def _fitting(lines: t.Sequence[str], room: int) -> str:
    """As many of these lines, as HTML, as fit into so many units; the last line says how many do not."""
    marked = [escaped(line, 400) for line in lines]
    if units("\n".join(marked)) <= room:
        return "\n".join(marked)
    shown, used = [], units(f"... {len(marked)} more lines; see homelab.healer.approve")
    for line in marked:
        used += units(line) + 1
        if used > room:
            break
        shown.append(line)
    return "\n".join([*shown, f"... {len(marked) - len(shown)} more lines; see homelab.healer.approve"])


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _how_long(asked: float | None, expires: float) -> str:
    if asked is None:
        return ""
    minutes, seconds = divmod(max(0, round(expires - asked)), 60)
    hours, minutes = divmod(minutes, 60)
    told = " ".join(f"{number} {unit}" for number, unit in ((hours, "h"), (minutes, "min"), (seconds, "s")) if number)
    return f" ({told or '0 s'} after it was asked)"


class Telegram:
    """One bot. Its token is part of every address that is asked, and of nothing that this says."""

    def __init__(self, token: t.Any, chats: t.Any, users: t.Any, api_url: str = API_URL, *, ca_path: str | None = None, timeout: float = 10) -> None:
        found = TOKEN.fullmatch(token) if isinstance(token, str) else None
        if not found:
            raise Invalid("cannot use the bot's token", why="it is not a token of a bot", fix="BotFather shows it, as 123456789:AAE...; nothing was asked.")
        self._token, self._secret = found.group(), found["secret"]
        self.chats, self.users = identities("chats", chats), identities("users", users, positive=True)
        parts = address("api_url", api_url, "a Bot API", API_URL)
        self._base, self.host = parts.geturl(), self.scrub(parts.netloc)
        self._ca_path, self._timeout = ca_path, timeout
        check(ca_path, timeout)

    def send(self, chat: int, text: str, buttons: Buttons = ()) -> int:
        """Send a message of HTML with buttons under it, to one of the bot's chats. Returns its number."""
        if chat not in self.chats:
            raise Invalid(f"will not send to chat {chat}", why="it is not one of chats", fix="Add it to chats if it is to see what is asked.")
        parameters: dict[str, t.Any] = dict(chat_id=chat, text=text, parse_mode="HTML", link_preview_options={"is_disabled": True})
        if buttons:
            parameters["reply_markup"] = {"inline_keyboard": buttons}
        number = whole(part(self._ask("sendMessage", parameters), "message_id"))
        if number is None:
            raise self._failure(TaskFailed, "sendMessage", "the answer has no message_id", "Check api_url: that is not the Bot API.", uncertain=True)
        return number

    def edit(self, chat: int, message: int, text: str) -> None:
        """Give a message another text, and no buttons."""
        parameters = dict(chat_id=chat, message_id=message, text=text, parse_mode="HTML", link_preview_options={"is_disabled": True})
        self._ask("editMessageText", parameters, done="message is not modified")

    def acknowledge(self, callback: str, text: str) -> None:
        """Show a text to the one who pressed a button, which also stops the button's waiting."""
        shown = visible(text)[:TOAST]
        while units(shown) > TOAST:
            shown = shown[:-1]
        self._ask("answerCallbackQuery", dict(callback_query_id=callback, text=shown))

    def updates(self, offset: int, wait: int) -> list[t.Any]:
        """What came in since, oldest first, waiting so many seconds where there is nothing; all before ``offset`` (0: nothing) is forgotten by the server."""
        found = self._ask("getUpdates", dict(offset=offset, timeout=int(wait), allowed_updates=WANTED), wait=wait)
        if not isinstance(found, list):
            raise self._failure(TaskFailed, "getUpdates", "the answer is not a list", "Check api_url: that is not the Bot API.")
        return found

    def read(self, update: t.Any) -> Reading:
        """What an update is to this bot's chats and users."""
        return read(update, self.chats, self.users)

    def scrub(self, text: str) -> str:
        """The same text without the token, as it is or as a part of an address."""
        for spelling in (self._token, quote(self._token, safe=""), self._secret):
            text = text.replace(spelling, "***")
        return text

    def _ask(self, method: str, parameters: t.Mapping[str, t.Any], wait: float = 0, done: str = "") -> t.Any:
        """The result of a method; nothing where the server refuses with the words ``done``, since it is as wanted then."""
        for again in (True, False):
            reply = self._exchange(method, json.dumps(parameters).encode(), self._timeout + wait)
            if isinstance(reply, HealerError):
                raise reply
            status, body = reply
            if status == 200 and part(body, "ok") is True:
                return body.get("result")
            code, said = whole(part(body, "error_code")) or status, text(body, "description")
            if done and done in said:
                return None
            pause = whole(part(part(body, "parameters"), "retry_after"))
            if not (again and code == 429 and pause is not None and 0 <= pause <= SHORT_WAIT):
                break
            time.sleep(pause)
        raise self._refusal(method, code, said, body, pause)

    def _exchange(self, method: str, payload: bytes, timeout: float) -> tuple[int, t.Any] | HealerError:
        """The status and body of an answer, nothing for a body that is not JSON, or what went wrong."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        url = f"{self._base}/bot{self._token}/{method}"
        reply = exchange(url, method="POST", headers=headers, timeout=timeout, ca_path=self._ca_path, payload=payload)
        return reply if isinstance(reply, tuple) else self._lost(method, reply)

    def _lost(self, method: str, error: Lost) -> HealerError:
        why, fix = lost(error, "api_url")
        # An error on the way there is wrapped, and then nothing was done; one on the way back is not.
        sent = not isinstance(error, urllib.error.URLError)
        return self._failure(Unreachable, method, why, fix, uncertain=sent and method != "getUpdates")

    def _refusal(self, method: str, code: int, said: str, body: t.Any, pause: int | None) -> HealerError:
        if 300 <= code < 400:
            return self._failure(TaskFailed, method, f"HTTP {code}: it sends elsewhere, and that is never followed", "Give the address itself as api_url.")
        if code == 429:
            failure = self._failure(TaskFailed, method, f"the bot asked too much{'' if pause is None else f'; again in {pause} s'}", "Ask less, or later.")
            failure.retryable = True
            return failure
        if code >= 500:
            fix = "Telegram, or what stands before it, is not well; try again later."
            return self._failure(Unreachable, method, f"HTTP {code}: {said}", fix, uncertain=method != "getUpdates")
        moved = whole(part(part(body, "parameters"), "migrate_to_chat_id"))
        if moved is not None:
            return self._failure(TaskFailed, method, said, f"The group has become another chat: write {moved} into chats in its place.")
        for known, phrase, kind, fix in REFUSALS:
            if code == known and phrase in said:
                return self._failure(kind, method, said or f"HTTP {code}", fix)
        return self._failure(TaskFailed, method, f"HTTP {code}: {said or 'that is no answer of the Bot API'}", "Check api_url.")

    def _failure(self, kind: type[HealerError], method: str, why: str, fix: str, uncertain: bool = False) -> HealerError:
        return kind(f"cannot {method} at {self.host}", why=visible(self.scrub(why))[:300], fix=self.scrub(fix), uncertain=uncertain)
