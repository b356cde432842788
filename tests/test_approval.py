"""Approvals, and above all what is none: each against the Bot API on loopback, with nothing written to the target."""

from __future__ import annotations

import re
import sqlite3
import time
import typing as t
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
import yaml

from ansible_collections.homelab.healer.plugins.module_utils import _approval
from ansible_collections.homelab.healer.plugins.module_utils._ledger import Remediation
from ansible_collections.homelab.healer.plugins.modules import approval
from tests.conftest import sample
from tests.lab.approvals import House, eventually
from tests.lab.playbooks import Run
from tests.lab.proxmox.client import Proxmox
from tests.lab.telegram import CHAT, TOKEN, USER, Bot, bot
from tests.test_documentation import matches, own

pytestmark = pytest.mark.xdist_group("approval")
STRANGER = 4200000002
OTHER_CHAT = -1009876543210
APPROVED = "Approve"


@pytest.fixture
def server() -> t.Iterator[Bot]:
    with bot(chats=(CHAT, OTHER_CHAT)) as opened:
        yield opened


@pytest.fixture
def house(tmp_path: Path, pve: Proxmox, server: Bot) -> t.Iterator[House]:
    opened = House(tmp_path, pve, server)
    yield opened
    opened.close()


def words(run: Run) -> str:
    return " ".join(run.output.split())


def question_of(server: Bot) -> int:
    """The number of the message that asks."""
    return server.messages()[-1].id


def nonce_of(server: Bot) -> str:
    return str(server.messages()[-1].buttons[0][0]["callback_data"].partition(":")[2])


def press(server: Bot, button: str = APPROVED, user: int = USER) -> dict[str, t.Any]:
    return server.press(question_of(server), button, user)


# Fakes while a run asks


class Asked(t.NamedTuple):
    """A run that asks, and what is sent to it."""

    house: House
    run: Future[Run]
    row: Remediation

    @property
    def server(self) -> Bot:
        return self.house.server


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, cluster: Proxmox) -> t.Iterator[Asked]:
    """One run that asks all the time, in the real chain. Its last test ends it."""
    cluster.reset()
    with bot(chats=(CHAT, OTHER_CHAT)) as server:
        house = House(tmp_path_factory.mktemp("asked"), cluster, server)
        house.policy(wait="10m", channels=["telegram", "command"])
        run = house.start()
        opened = Asked(house, run, house.asked(run))
        yield opened
        house.call("denied", remediation=opened.row.id)
        run.result()
        house.close()


def _callback(**changes: t.Any) -> t.Callable[[Asked], object]:
    """A press that the server never saw, with one thing about it made up."""

    def push(asked: Asked) -> None:
        message = {"message_id": question_of(asked.server), "chat": {"id": CHAT, "type": "supergroup"}, "date": 0, "text": "?"}
        query = {"id": "1", "from": {"id": USER, "is_bot": False, "first_name": "U"}, "message": message, "chat_instance": "1"}
        query["data"] = f"ok:{nonce_of(asked.server)}"
        told = {name: value(asked, query) if callable(value) else value for name, value in changes.items()}
        asked.server.push({"callback_query": {**query, **told}})

    return push


def _says(text: str, **options: t.Any) -> t.Callable[[Asked], object]:
    return lambda asked: asked.server.say(text.format(id=asked.row.id, plan=asked.row.plan_id, nonce=nonce_of(asked.server)), USER, **options)


def _in_message(asked: Asked, query: dict[str, t.Any], **changes: t.Any) -> dict[str, t.Any]:
    return {**query["message"], **changes}


FAKES: dict[str, t.Callable[[Asked], object]] = {
    "a stranger": lambda asked: press(asked.server, user=STRANGER),
    "the right user in a wrong chat": lambda asked: asked.server.press(question_of(asked.server), APPROVED, USER, chat=OTHER_CHAT),
    "the user alone with the bot": lambda asked: asked.server.press(question_of(asked.server), APPROVED, USER, chat=USER),
    "a user whose number begins alike": lambda asked: press(asked.server, user=USER * 10 + 1),
    "a user whose number is the beginning": lambda asked: press(asked.server, user=USER // 10),
    "a chat whose number begins alike": lambda asked: asked.server.press(question_of(asked.server), APPROVED, USER, chat=CHAT * 10 - 1),
    "a chat whose number is the other sign's": lambda asked: asked.server.press(question_of(asked.server), APPROVED, USER, chat=-CHAT),
    "a number written as text": _callback(**{"from": {"id": str(USER), "is_bot": False}}),
    "a bot": lambda asked: asked.server.press(question_of(asked.server), APPROVED, USER, bot=True),
    "a negated sentence": _says("do NOT /approve {id}"),
    "a word": _says("approve"),
    "a command": _says("/approve {id}"),
    "a command with the plan": _says("/approve {plan}"),
    "the button's own word": _says("ok:{nonce}"),
    "a guessed nonce": _callback(data="ok:" + "0" * 32),
    "what the ledger has of the nonce": _callback(data=lambda asked, _query: f"ok:{asked.row.nonce[:32]}"),
    "a nonce and more": _callback(data=lambda asked, query: query["data"] + "0"),
    "another word": _callback(data=lambda asked, query: query["data"].replace("ok", "OK")),
    "a forwarded message": lambda asked: asked.server.push(
        {"message": {"message_id": 1, "from": {"id": USER, "is_bot": False}, "chat": {"id": CHAT}, "forward_origin": {"type": "user"}, "text": "/approve"}}
    ),
    "a forwarded question": _callback(message=lambda asked, query: _in_message(asked, query, chat={"id": OTHER_CHAT, "type": "supergroup"})),
    "an edited message": lambda asked: asked.server.push(
        {"edited_message": {"message_id": 1, "from": {"id": USER, "is_bot": False}, "chat": {"id": CHAT}, "text": f"ok:{nonce_of(asked.server)}"}}
    ),
    "nobody": _callback(**{"from": None}),
}


@pytest.mark.parametrize("fake", FAKES)
def test_what_is_no_answer_by_telegram_is_none(asked: Asked, fake: str) -> None:
    FAKES[fake](asked)
    asked.house.settled()
    _still_asked(asked)


def _still_asked(asked: Asked) -> None:
    row = asked.house.row(asked.row.id)
    assert (row.state, row.approver) == ("asked", "")
    assert asked.house.pve.writes() == []
    assert not asked.run.done()
    assert asked.server.messages()[0].buttons


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"plan": ""}, "that is not its plan"),
        ({"plan": lambda row: row.plan_id[:7]}, "that is not its plan"),
        ({"plan": lambda row: row.plan_id[:8].upper() + "X"}, "that is not its plan"),
        ({"plan": "0" * 64}, "that is not its plan"),
        ({"plan": lambda row: row.plan_id + "0"}, "that is not its plan"),
        ({"plan": lambda row: row.plan_id, "remediation": lambda row: row.id[:-1]}, "none of that id"),
        ({"plan": lambda row: row.plan_id, "remediation": ""}, "none of that id"),
        ({"plan": lambda row: row.plan_id, "remediation": "%"}, "none of that id"),
        ({"plan": lambda row: row.plan_id, "channel": "prompt"}, "not by prompt"),
    ],
)
def test_what_is_no_answer_by_command_is_none(asked: Asked, given: dict[str, t.Any], why: str) -> None:
    options = {name: value(asked.row) if callable(value) else value for name, value in {"remediation": asked.row.id, **given}.items()}
    told = asked.house.call("approved", **options)
    assert told["failed"]
    assert why in told["msg"]
    _still_asked(asked)


def test_who_has_not_the_lease_asks_nothing_and_decides_nothing(asked: Asked) -> None:
    told = asked.house.call("asked", remediation=asked.row.id, fence=asked.row.fence + 1)
    assert (told["failed"], told["error"]["code"]) == (True, "conflict")
    with asked.house.ledger() as ledger:
        opened, chain = (ledger.latest(asked.row.id, kind) for kind in ("opened", "decided"))
    question = dict(remediation=asked.row.id, remedy="lxc_resources", host="pve", target=opened["facts"], fence=asked.row.fence)
    told = asked.house.gate(**question, chain=chain["chain"])
    assert (told["failed"], told["error"]["code"]) == (True, "refused")
    _still_asked(asked)


def test_only_showing_it_and_check_mode_answer_nothing(asked: Asked) -> None:
    told = asked.house.call("approved", remediation=asked.row.id)
    assert (told["changed"], told["word"], told["why"]) == (False, "waiting", f"to approve exactly this, add -e plan={asked.row.plan_id[:8]}")
    assert {"Target: lxc 201 (web) (201) on pve2", "-cores: 1", "+cores: 2", "Asks because: rule ask: The rule ask says approve."} <= set(told["question"])
    for state in ("approved", "denied", "read"):
        press(asked.server, user=STRANGER)
        assert "failed" not in asked.house.call(state, check=True, remediation=asked.row.id, plan=asked.row.plan_id)
    _still_asked(asked)


def test_a_row_that_was_edited_is_no_approval(asked: Asked) -> None:
    """The last one, as it ends the run: somebody has the ledger's file, and writes into it what an approval looks like."""
    with sqlite3.connect(asked.house.controller.ledger) as database:
        database.execute("UPDATE remediations SET state = 'approved', approver = 'ann on laptop', answered = asked WHERE id = ?", (asked.row.id,))
    run = asked.run.result()
    assert (run.returncode, run.record["outcome"], asked.house.pve.writes()) == (2, "denied", []), run.output
    assert "it is not known to be approved: its row in the ledger was edited" in run.record["why"]
    pressed = asked.server.messages()[0]
    assert pressed.buttons == []
    assert "Denied by the healer (it is not known to be approved" in pressed.text


# Where nobody can be asked


@pytest.fixture
def left(request: pytest.FixtureRequest, house: House, whole: bool) -> t.Callable[[], dict[str, t.Any]]:
    """Ask, and tell what came of it and what is in the ledger: by the module's own code, or with ``--all`` in the whole chain."""

    def ask() -> dict[str, t.Any]:
        if whole:
            run = house.play()
            assert run.returncode == 2, run.output
            return {"word": run.record["outcome"], "why": run.record["why"], "state": house.row().state}
        question, decision = house.planned()
        assert decision["word"] == "ask"
        told = house.call("asked", remediation=question["remediation"], fence=question["fence"])
        return {"word": told.get("word"), "why": told.get("why"), "state": house.row().state}

    return ask


BAD: dict[str, tuple[dict[str, t.Any] | None, str]] = {
    "no Telegram": (None, "no Telegram is configured"),
    "no token": ({"token": ""}, "it is not a token of a bot"),
    "a token that is none": ({"token": "123"}, "it is not a token of a bot"),
    "no chats": ({"chats": []}, "lists no chats"),
    "no users": ({"users": []}, "lists no users"),
    "neither": ({"users": [], "chats": []}, "lists no chats and no users"),
    "any chat": ({"chats": ["*"]}, "its element 1 is not the number of a chat"),
    "any user": ({"users": [True]}, "its element 1 is not the number of a user"),
    "a user by name": ({"users": ["@ann"]}, "its element 1 is not the number of a user"),
    "no TLS": ({"api_url": "http://192.0.2.1"}, "without TLS"),
}


@pytest.mark.parametrize("bad", BAD)
def test_where_nobody_can_answer_it_is_a_no_at_once(house: House, left: t.Callable[[], dict[str, t.Any]], bad: str) -> None:
    changes, why = BAD[bad]
    house.policy(channels=["telegram", "prompt"], wait="1h")
    house.configure(None if changes is None else House.bot(house.server, **changes))
    told = left()
    assert (told["word"], told["state"]) == ("denied", "denied")
    assert why in told["why"]
    assert (house.pve.writes(), house.server.messages()) == ([], [])


def _down(house: House) -> None:
    house.server.down()


def _slow(house: House) -> None:
    house.server.slow = 3


def _wrong_token(house: House) -> None:
    house.configure(House.bot(house.server, token="7000000001:AAE-another_another_another_another"))


def _lost(house: House) -> None:
    house.server.lose_reply()


def _refused(house: House) -> None:
    house.server.refuse(403, "Forbidden: bot was blocked by the user")


def _flooded(house: House) -> None:
    house.server.flood(3600)


@pytest.mark.parametrize("fault", [_down, _slow, _wrong_token, _lost, _refused, _flooded], ids=lambda fault: fault.__name__[1:])
def test_a_question_that_could_not_be_sent_is_a_no_at_once(house: House, left: t.Callable[[], dict[str, t.Any]], fault: t.Callable[[House], None]) -> None:
    house.policy(channels=["telegram"], wait="1h")
    fault(house)
    told = left()
    assert (told["word"], told["state"], house.pve.writes()) == ("denied", "denied", [])
    assert told["why"].startswith("nobody could be asked: cannot sendMessage at ")
    house.server.slow = 0
    for message in house.server.messages():  # whose reply was lost
        house.server.press(message.id, APPROVED, USER)
        assert read(house)[0].startswith("Not taken: it has ended: denied (nobody could be asked")
        assert (house.row().state, house.server.messages()[0].buttons) == ("denied", [])


@pytest.mark.parametrize("fault", ["webhook", "goes down", "other reader"])
def test_an_answer_that_cannot_be_read_is_none(house: House, left: t.Callable[[], dict[str, t.Any]], fault: str) -> None:
    house.policy(channels=["telegram"], wait="3s")
    house.server.webhook, house.server.other_reader = fault == "webhook", fault == "other reader"
    run = house.submit(left)
    eventually(house.server.messages, "message")
    if fault == "goes down":
        house.server.down()
    else:
        press(house.server)
    told = run.result()
    assert (told["word"], told["state"], house.pve.writes()) == ("denied", "denied", [])
    assert "nobody answered in time (cannot getUpdates at " in told["why"]


def test_a_run_without_a_terminal_waits_for_nobody(house: House) -> None:
    """That there is none is found out by asking there, when the question is in the ledger already."""
    house.configure(None)
    house.policy(channels=["prompt"], wait="20s")
    question, _decision = house.planned()
    mine = {name: question[name] for name in ("remediation", "fence")}
    assert house.call("asked", prompt=True, **mine)["word"] == "waiting"
    told = house.call("asked", **mine)
    assert told["word"] == "denied"
    assert told["why"].startswith("its run has no terminal, and nobody can be asked by prompt")


def test_where_somebody_may_answer_by_command_telegram_is_not_needed(house: House) -> None:
    house.server.down()
    question, _decision = house.planned()
    run = house.submit(lambda: house.call("asked", remediation="one", fence=question["fence"]))
    row = house.asked()
    assert house.call("approved", remediation="one", plan=row.plan_id[:8])["word"] == "approved"
    told = run.result()
    assert (told["word"], told["who"], told["channel"]) == ("approved", "ann on laptop", "command")
    assert "Connection refused" in told["notes"][0]
    assert house.gate(**question)["word"] == "allowed"


def test_what_it_answers_is_as_documented(house: House) -> None:
    described = yaml.safe_load(approval.RETURN)
    house.configure(None)
    house.policy(wait="0", expires="1h")
    question, _decision = house.planned()
    plan = house.row("one").plan_id
    options = {"remediation": "one", "plan": plan}
    for state, more in (("asked", {"fence": question["fence"]}), ("approved", {}), ("approved", {}), ("denied", {}), ("read", {})):
        told = house.call(state, **{**options, **more})
        matches(described, own(told))
        assert told.get("failed") or set(described) - {"error"} <= {*told, "head"}


# In time, for once, for this plan


def ask(house: House, **about: t.Any) -> tuple[dict[str, t.Any], Future[dict[str, t.Any]], Remediation]:
    """Ask by the module's own code: what the gate was asked, the answer to come, and the question."""
    question, _decision = house.planned(**about)
    asked = house.submit(lambda: house.call("asked", remediation=question["remediation"], fence=question["fence"]))

    def sent() -> bool:
        with house.ledger() as ledger:
            return bool(ledger.latest(question["remediation"], "told"))

    eventually(sent, "question")
    return question, asked, house.row(question["remediation"])


def read(house: House) -> list[str]:
    """Take in what people pressed. Returns what they were shown since."""
    before = len(house.server.toasts())
    assert "failed" not in house.call("read")
    return house.server.toasts()[before:]


def test_an_answer_counts_once(house: House) -> None:
    question, asked, _row = ask(house)
    nonce = nonce_of(house.server)
    update = press(house.server)
    assert asked.result()["word"] == "approved"
    assert house.gate(**question)["word"] == "allowed"
    before = house.events("one")
    house.server.replay(update)
    assert read(house) == ["Not taken: it was begun already: applying"]
    assert "Approved by User" in house.server.messages()[0].text
    deny = {**update["callback_query"], "data": f"no:{nonce}"}
    house.server.push({"callback_query": deny})
    assert read(house) == ["Not taken: it was begun already: applying"]
    told = house.call("approved", remediation="one", plan=house.row("one").plan_id)
    assert "it was begun already" in told["msg"]
    with house.ledger() as ledger, ledger.turn():
        ledger.append("closed", "one", outcome="healed", why="")
    house.server.replay(update)
    assert read(house) == ["Not taken: it has ended: healed ()"]
    assert [event.seq for event in house.events("one")][:-1] == [event.seq for event in before]
    assert house.gate(**question)["error"]["code"] == "conflict"


def test_an_answer_that_comes_too_late_is_none(house: House) -> None:
    house.policy(wait="2s")
    _question, asked, row = ask(house)
    nonce = nonce_of(house.server)
    told = asked.result()
    assert (told["word"], told["why"], house.row("one").state) == ("denied", "nobody answered in time", "denied")
    message = house.server.messages()[0]
    assert (message.buttons, "Denied by the healer (nobody answered in time)" in message.text) == ([], True)
    house.server.push(_pressed(message.id, f"ok:{nonce}"))
    assert read(house) == ["Not taken: it has ended: denied (nobody answered in time)"]
    assert "it has ended: denied" in house.call("approved", remediation="one", plan=row.plan_id)["msg"]


def _pressed(message: int, data: str) -> dict[str, t.Any]:
    """A press of a button that is gone, as one that was on its way."""
    shown = {"message_id": message, "chat": {"id": CHAT, "type": "supergroup"}, "date": 0, "text": "?"}
    return {"callback_query": {"id": "1", "from": {"id": USER, "is_bot": False, "first_name": "U"}, "message": shown, "chat_instance": "1", "data": data}}


def test_a_question_that_outlives_its_run_expires_too(house: House) -> None:
    house.policy(wait="0", expires="2s", on_timeout="needs_human")
    _question, asked, row = ask(house)
    assert asked.result()["word"] == "waiting"
    time.sleep(2.1)
    press(house.server)
    (said,) = read(house)
    assert said.startswith("Not taken: it could be answered until ")
    assert said in f"Not taken: {house.call('approved', remediation='one', plan=row.plan_id)['error']['why']}"
    house.planned("two", vmid=200)  # whoever asks the gate next closes what is over
    assert (house.row("one").state, house.row("one").why) == ("needs_human", "nobody answered in time")


def test_where_nobody_answers_a_human_is_called_if_the_policy_says_so(house: House) -> None:
    house.policy(wait="1s", on_timeout="needs_human")
    _question, asked, _row = ask(house)
    assert (asked.result()["word"], house.row("one").state) == ("needs_human", "needs_human")
    with house.ledger() as ledger:
        assert ledger.switches() == {}


def test_a_clock_that_was_set_back_ends_the_question(house: House) -> None:
    _question, asked, row = ask(house)
    with house.ledger() as ledger, ledger.turn():
        ledger.append("switch", at=ledger.now() + 3600, name="storm", value=None)
    press(house.server)
    told = asked.result()
    assert told["word"] == "denied"
    assert re.fullmatch(r"the ledger's clock is 3(5|6)\d\d s behind its last entry, so nobody can tell what is in time", told["why"])
    assert "it has ended" in house.call("approved", remediation="one", plan=row.plan_id)["msg"]


def test_by_a_clock_that_was_set_back_nothing_is_approved(house: House) -> None:
    house.policy(wait="0", expires="1h")
    question, asked, row = ask(house)
    assert asked.result()["word"] == "waiting"
    with house.ledger() as ledger, ledger.turn():
        ledger.append("switch", at=ledger.now() + 3600, name="storm", value=None)
    press(house.server)
    (said,) = read(house)
    assert "s behind its last entry" in said
    assert "s behind its last entry" in house.call("approved", remediation="one", plan=row.plan_id)["msg"]
    assert house.row("one").state == "asked"
    assert house.gate(**question)["failed"]


def test_an_answer_is_to_its_own_question_only(house: House) -> None:
    first, asked, row = ask(house)
    one = house.server.messages()[0]
    second, other, _row = ask(house, remediation="two", vmid=200, cores=3)
    assert "that is not its plan" in house.call("approved", remediation="two", plan=row.plan_id)["msg"]
    house.server.press(one.id, APPROVED, USER)
    assert asked.result()["word"] == "approved"
    assert house.row("two").state == "asked"
    assert house.gate(**{**second, "fence": first["fence"]})["error"]["code"] == "conflict"
    assert "Approved" not in house.server.messages()[1].text
    press(house.server, "Deny")
    assert other.result()["word"] == "denied"


@pytest.mark.parametrize("words", [("approved", "approved"), ("approved", "denied"), ("denied", "denied")], ids="-".join)
def test_of_two_who_answer_at_once_one_wins_and_the_other_is_told(house: House, words: tuple[str, str]) -> None:
    _question, asked, row = ask(house)
    answers = [house.submit(partial(house.call, word, remediation="one", plan=row.plan_id)) for word in words]
    told = [answer.result() for answer in answers]
    taken, refused = ([answer for answer in told if answer.get("failed", False) is failed] for failed in (False, True))
    assert house.row("one").state == ("denied" if "denied" in words else "approved")
    assert "denied" in [answer["word"] for answer in taken] or "denied" not in words
    if words[0] == words[1]:
        assert [len(taken), len(refused)] == [1, 1]
    for answer in refused:
        assert re.search("it was approved already, by ann on laptop|it has ended: denied \\(ann on laptop said no\\)", answer["msg"])
    assert asked.result()["word"] in words


def test_a_no_wins_until_something_was_begun(house: House) -> None:
    question, asked, _row = ask(house)
    press(house.server)
    assert asked.result()["word"] == "approved"
    assert house.call("denied", remediation="one")["word"] == "denied"
    told = house.gate(**question)
    assert (told["failed"], told["error"]["code"]) == (True, "conflict")
    assert "it has ended: denied" in told["msg"]
    question, asked, _row = ask(house, remediation="two")
    press(house.server)
    assert asked.result()["word"] == "approved"
    assert house.gate(**question)["word"] == "allowed"
    assert "it was begun already" in house.call("denied", remediation="two")["msg"]


def test_only_the_plan_that_was_approved_is_allowed(house: House) -> None:
    """Also not the same plan by other options, which need not show in what is there before and after."""
    changes: list[t.Callable[[dict[str, t.Any]], object]] = [
        lambda step: step["before"]["201"].update(cores=4),
        lambda step: step["after"]["201"].update(cores=4),
        lambda step: step["args"].update(allow_overcommit=True),
        lambda step: step.update(module="homelab.healer.lxc_power"),
    ]
    for number, change in enumerate(changes):
        question, asked, _row = ask(house, remediation=f"r{number}")
        press(house.server)
        assert asked.result()["word"] == "approved"
        change(question["chain"]["plan"][0])
        told = house.gate(**question)
        assert (told["word"], told["steps"], house.row().state) == ("refused", [], "denied")
        assert told["why"] == "the plan has changed since it was approved"


def test_a_plan_that_was_not_meant_is_not_done_though_it_was_approved(house: House) -> None:
    """Also where another run goes on with it; one that is told nothing of plans does what was asked about, which was meant."""
    for number, (meant, word) in enumerate(((["0" * 64], "refused"), (["any"], "allowed"))):
        question, asked, row = ask(house, remediation=f"r{number}", vmid=201 + number)
        press(house.server)
        assert asked.result()["word"] == "approved"
        assert house.gate(**question, only_plans=meant)["word"] == word
        assert house.row(row.id).state == {"refused": "denied", "allowed": "applying"}[word]


def test_what_the_policy_says_now_counts_when_it_is_begun(house: House) -> None:
    question, asked, _row = ask(house)
    press(house.server)
    assert asked.result()["word"] == "approved"
    house.policy(decision="dry_run")
    assert (house.gate(**question)["word"], house.row("one").state, house.row("one").applied) == ("shadow", "shadow", None)


@pytest.mark.parametrize("edit", ["body", "row", "plan"])
def test_what_was_edited_in_the_ledger_is_not_approved(house: House, edit: str) -> None:
    house.policy(wait="0", expires="1h")
    question, asked, row = ask(house)
    asked.result()
    with sqlite3.connect(house.controller.ledger) as database:
        if edit == "body":
            database.execute("UPDATE journal SET body = replace(body, '\"expires\"', '\"ex\"') WHERE kind = 'asked'")
        elif edit == "row":
            database.execute("UPDATE remediations SET expires = expires + 7200")
        else:
            database.execute("UPDATE remediations SET plan_id = ?", ("0" * 64,))
    told = house.call("approved", remediation="one", plan="0" * 64 if edit == "plan" else row.plan_id)
    assert told["failed"], told
    press(house.server)
    assert read(house)[0].startswith("Not taken: ")
    assert house.row("one").state == "asked"
    assert house.gate(**question)["failed"]


def test_one_reads_and_all_get_their_answers(house: House) -> None:
    """A bot has one reader at a time: with several it would tell all but the last that there is another."""
    runs = [ask(house, remediation=f"r{number}", vmid=200 + number) for number in range(3)]
    for message in house.server.messages()[1:]:
        house.server.press(message.id, APPROVED, USER)
    house.server.press(house.server.messages()[0].id, "Deny", USER)
    assert [run.result()["word"] for _question, run, _row in runs] == ["denied", "approved", "approved"]
    assert [message.buttons for message in house.server.messages()] == [[], [], []]
    assert all(call.authorized for call in house.server.calls())


def test_pause_by_telegram(house: House) -> None:
    for user, text in ((STRANGER, "/pause"), (USER, "do not /pause"), (USER, "/pause")):
        house.server.say(text, user)
        assert house.call("read")["changed"] == (user == USER and text == "/pause")
    with house.ledger() as ledger:
        assert ledger.switch("pause") == {"who": f"User {USER} (Telegram user {USER})", "why": "by Telegram"}
    assert house.gate(**{**dict.fromkeys(("remediation", "remedy", "host"), "x"), "target": {"kind": "lxc", "id": 1, "name": "x"}})["word"] == "refused"


def test_reading_that_fails_is_only_noted(house: House) -> None:
    house.server.down()
    told = house.call("read")
    assert "failed" not in told
    assert "Connection refused" in told["notes"][0]
    house.configure({"token": "none"})
    assert "it is not a token" in house.call("read")["notes"][0]


# The whole chain


def writes(pve: Proxmox) -> list[str]:
    return [f"{seen['method']} {seen['path'].rpartition('/')[2]}" for seen in pve.writes()]


def test_a_button_approves_and_the_secrets_are_nowhere(house: House) -> None:
    run = house.start("-vvv", "--diff")
    row = house.asked(run)
    assert house.pve.writes() == []
    nonce = nonce_of(house.server)
    press(house.server)
    done = run.result()
    assert (done.returncode, done.record["outcome"], writes(house.pve)) == (0, "healed", ["PUT config"]), done.output
    who = f"User {USER} (Telegram user {USER})"
    assert done.record["approval"] == {"word": "approved", "who": who, "channel": "telegram", "why": f"{who} approved plan {row.plan_id[:8]}"}
    (message,) = house.server.messages()
    assert (message.buttons, f"Approved by {who}" in message.text, house.server.toasts()) == ([], True, ["Approved"])
    for line in ("Target: lxc 201 (web)", "-cores: 1", "+cores: 2", "Asks because: rule ask", "Way back: exact", f"Remediation: {row.id}"):
        assert line in message.text
    assert row.nonce == _approval.hashed(nonce)
    kept = house.controller.ledger.read_bytes().decode("latin-1")
    told = done.output + (done.folder / "results.jsonl").read_text() + (done.folder / "stats.json").read_text() + kept
    for secret in (nonce, TOKEN, TOKEN.partition(":")[2]):
        assert secret not in told
    assert f"-e plan={row.plan_id[:8]}" in words(done)
    assert [event.kind for event in house.events(row.id)] == ["opened", "decided", "asked", "told", "approved", "applying", "verifying", "closed"]


def test_a_command_approves_what_it_shows(house: House, whole: bool) -> None:
    house.configure(None)
    run = house.start()
    row = house.asked(run)
    other = house.beside()
    shown = other.play("homelab.healer.approve", remediation=row.id)
    assert (shown.returncode, house.row(row.id).state) == (0, "asked"), shown.output
    for line in ("Target: lxc 201 (web)", "+cores: 2", "Asks because: rule ask", "Expires: ", f"to approve exactly this, add -e plan={row.plan_id[:8]}"):
        assert line in words(shown)
    assert house.pve.writes() == []
    given = other.play("homelab.healer.approve", "-e", f"remediation={row.id}", "-e", f"plan={row.plan_id[:8]}")
    assert given.returncode == 0, given.output
    assert f"approved plan {row.plan_id[:8]}" in words(given)
    done = run.result()
    assert (done.record["outcome"], done.record["approval"]["channel"], writes(house.pve)) == ("healed", "command", ["PUT config"]), done.output
    if whole:
        again = other.play("homelab.healer.approve", remediation=row.id, plan=row.plan_id)
        assert (again.returncode, "it has ended: healed" in words(again)) == (2, True)


@pytest.mark.long  # the same is told by the module's own code
@pytest.mark.parametrize("by", ["button", "command"])
def test_a_no_denies(house: House, by: str) -> None:
    run = house.start()
    row = house.asked(run)
    if by == "button":
        press(house.server, "Deny")
    else:
        denied = house.beside().play("homelab.healer.deny", remediation=row.id)
        assert (denied.returncode, "said no" in denied.output) == (0, True), denied.output
    done = run.result()
    assert (done.returncode, done.record["outcome"], house.pve.writes()) == (2, "denied", []), done.output
    assert "said no" in done.record["why"]
    assert house.server.messages()[0].buttons == []


@pytest.mark.parametrize("typed", sample(["the plan", "yes", "nothing", "interrupt"], "the plan"))
def test_the_terminal_asks_for_the_plan(house: House, typed: str) -> None:
    house.configure(None)
    house.policy(wait="10s" if typed == "nothing" else "60s")

    def answer(shown: str) -> str:
        plan = re.search(r"Plan: ([0-9a-f]{64})", shown)
        assert plan
        return {"the plan": f"{plan[1][:8]}\r", "yes": "yes\r", "nothing": "", "interrupt": "\x03"}[typed]

    run = house.at_terminal(answer)
    approved = typed == "the plan"
    assert run.record["outcome"] == ("healed" if approved else "denied"), run.output
    assert writes(house.pve) == (["PUT config"] if approved else [])
    assert run.record["approval"].get("channel") == ("" if typed == "nothing" else "prompt")
    assert "+cores: 2" in run.output


@pytest.mark.long
@pytest.mark.parametrize("job", ["JOB_ID", "AWX_ISOLATED_DATA_DIR", "SEMAPHORE_TASK_ID", "semaphore_vars"])
def test_a_job_is_never_asked_at_its_terminal(house: House, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    variables = {job: {"task_details": {"id": 12}}} if job.islower() else {}  # Semaphore has no variable of the environment that tells
    if not variables:
        monkeypatch.setenv(job, "12")
    house.configure(None)
    house.policy(wait="1s")
    run = house.at_terminal(lambda _shown: pytest.fail("it asked"), **variables)
    assert (run.record["outcome"], run.record["why"], house.pve.writes()) == (
        "denied",
        "nobody answered in time (no Telegram is configured by healer_approval)",
        [],
    )


@pytest.mark.parametrize("drifts", sample([False, True], False))  # the same is told while a run waits
def test_an_answer_after_the_run_is_applied_by_recover_unless_it_has_drifted(house: House, drifts: bool) -> None:
    house.policy(wait="0", expires="1h")
    run = house.play()
    row = house.row()
    assert (run.returncode, run.record["outcome"], row.state, house.pve.writes()) == (2, "needs_human", "asked", []), run.output
    assert "nobody has answered yet" in run.record["why"]
    if drifts:
        house.pve.set_guest(201, cores=4)
    press(house.server)
    recovered = house.controller.play("homelab.healer.recover")
    row = house.row(row.id)
    if drifts:
        assert (row.state, house.pve.writes()) == ("denied", []), recovered.output
        assert "the plan has changed since it was approved" in words(recovered)
    else:
        assert (recovered.returncode, row.state, writes(house.pve)) == (0, "healed", ["PUT config"]), recovered.output
        assert row.approver == f"User {USER} (Telegram user {USER})"


def test_a_target_that_changed_meanwhile_is_left_alone(house: House) -> None:
    run = house.start()
    house.asked(run)
    house.pve.set_guest(201, cores=4)
    press(house.server)
    done = run.result()
    assert (done.returncode, done.record["outcome"], house.pve.writes()) == (2, "denied", []), done.output
    assert done.record["why"] == "the plan has changed since it was approved"


EXTRA: dict[str, dict[str, t.Any]] = {
    "healer_policy": {"healer_policy": "/nowhere"},
    "healer_approval": {"healer_approval": {"telegram": {"token": TOKEN, "chats": [OTHER_CHAT], "users": [STRANGER]}}},
    "healer_ledger": {"healer_ledger": {"path": "/nowhere"}},
    "healer_ledger_host": {"healer_ledger_host": "pve"},
    "__remediate_gate": {"__remediate_gate": {"word": "allowed", "steps": [], "checks": [], "rule": "", "why": ""}},
    "__remediate_approval": {"__remediate_approval": {"word": "approved", "why": "", "who": "", "channel": ""}},
    "__remediate_dry": {"__remediate_dry": False},
    "remediate_steps": {"remediate_steps": []},
}


@pytest.mark.parametrize("name", sample(EXTRA, "healer_policy", "__remediate_gate"))
def test_extra_variables_decide_nothing(house: House, name: str) -> None:
    done = house.play(**EXTRA[name])
    assert (done.returncode, house.pve.writes(), house.server.messages()) == (2, [], []), done.output
    assert f"will not take {name} from extra variables" in words(done)


def test_a_plan_that_is_passed_as_a_variable_is_no_approval(house: House) -> None:
    house.policy(wait="0", expires="1h")
    foretold = house.play("homelab.healer.lxc_resources", "--check").record["plan_id"]
    assert house.server.calls() == []
    done = house.play(plan_id=foretold, plan=foretold, approved=True, approval={"word": "approved"}, remediation="x", word="approved")
    assert (done.record["outcome"], house.row().state, house.row().plan_id, house.pve.writes()) == ("needs_human", "asked", foretold, []), done.output


PAST = [
    "--tags=never",
    "--tags=always",
    "--tags=tagged",
    "--tags=all",
    "--tags=untagged",
    "--skip-tags=always",
    "--skip-tags=untagged",
    "--skip-tags=all",
    "--skip-tags=tagged",
]
BEGINNINGS = [
    "Change, verify, and put back what did not help",
    "Change and verify",
    "Ask whether exactly this may happen",
    "Note the answer",
    "Plan",
    "Remediate",
    "Tidy up",
]
PAST += [f"--start-at-task={prefix}{name}" for name in BEGINNINGS for prefix in ("", "homelab.healer.remediate : ")]


@pytest.mark.parametrize("option", sample(PAST, PAST[0], PAST[6], f"--start-at-task={BEGINNINGS[0]}"))
def test_nothing_skips_the_question(house: House, option: str) -> None:
    """Also in a play that has the roles in it from the beginning, where a task can be begun at."""
    house.policy(wait="0", expires="1h")
    variables = {"lxc_resources_vmid": 201, "lxc_resources_cores": 2, "lxc_resources_snapshot": False}
    play = {"hosts": "proxmox", "gather_facts": False, "module_defaults": house.controller.defaults, "vars": variables}
    path = house.controller.folder / "static.yml"
    tasks = [
        {"name": "Change it", "ansible.builtin.import_role": {"name": "homelab.healer.remediate"}, "vars": {"remediate_remedy": "homelab.healer.lxc_resources"}}
    ]
    path.write_text(yaml.safe_dump([{**play, "tasks": tasks}]))
    done = house.controller.play(str(path), option)
    assert house.pve.writes() == [], done.output
    if house.controller.ledger.exists():
        assert {row.state for row in _rows(house)} <= {"asked"}, done.output


def _rows(house: House) -> list[Remediation]:
    with house.ledger() as ledger:
        return ledger.find("1 = 1")
