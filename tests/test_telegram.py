"""The client of Telegram's Bot API against the lab's server of it."""

from __future__ import annotations

import threading
import time
import traceback
import typing as t
from functools import partial
from pathlib import Path

import pytest
import trustme

from ansible_collections.homelab.healer.plugins.module_utils import _telegram
from ansible_collections.homelab.healer.plugins.module_utils._errors import Conflict, Denied, HealerError, Invalid, TaskFailed, Unreachable
from ansible_collections.homelab.healer.plugins.module_utils._telegram import Answer, Command, Ignored, Telegram, next_offset
from tests.lab.telegram import CHAT, TOKEN, USER, Bot, bot

NONCE = "0123456789abcdef" * 2
STRANGER = 4200000002
OTHER_CHAT = -1009876543210


@pytest.fixture
def server() -> t.Iterator[Bot]:
    with bot(chats=(CHAT, OTHER_CHAT)) as opened:
        yield opened


@pytest.fixture
def secure(tmp_path: Path) -> t.Iterator[Bot]:
    with bot(tls=tmp_path) as opened:
        yield opened


def client(server: Bot, token: str = TOKEN, **options: t.Any) -> Telegram:
    options = {"timeout": 5, "ca_path": server.ca, **options}
    return Telegram(token, [CHAT], [USER], server.url, **options)


def failure(call: t.Callable[[], t.Any], kind: type[HealerError], *words: str) -> HealerError:
    """What a call fails with, which says these words and nowhere the token."""
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    assert error.__cause__ is None
    assert error.__context__ is None
    told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.as_dict()) + repr(vars(error))
    for secret in (TOKEN, TOKEN.split(":")[1], TOKEN.replace(":", "%3A")):
        assert secret not in told
    for word in words:
        assert word in str(error)
    return error


def test_a_question_is_asked_pressed_acknowledged_and_answered(secure: Bot) -> None:
    telegram = client(secure)
    number = telegram.send(CHAT, "Limit <code>&lt;b&gt;</code>?", _telegram.buttons(NONCE))
    (asked,) = secure.messages(CHAT)
    assert (asked.id, asked.text) == (number, "Limit <b>?")
    assert [[key["text"] for key in row] for row in asked.buttons] == [["Approve", "Deny"]]
    secure.press(number, "Approve", USER)
    (update,) = telegram.updates(0, 0)
    answer = telegram.read(update)
    assert isinstance(answer, Answer)
    assert (answer.approved, answer.nonce, answer.user, answer.chat, answer.message) == (True, NONCE, USER, CHAT, number)
    telegram.acknowledge(answer.callback, "Approved " * 50)
    assert len(secure.toasts()[0]) == 200
    telegram.edit(CHAT, number, _telegram.answered(asked.html, "approved", answer.who, 0))
    telegram.edit(CHAT, number, _telegram.answered(asked.html, "approved", answer.who, 0))
    (asked,) = secure.messages(CHAT)
    assert (asked.text, asked.buttons) == (f"Limit <b>?\n\nApproved by User {USER}, 1970-01-01 00:00:00 UTC", [])
    assert [call.method for call in secure.calls()] == ["sendMessage", "getUpdates", "answerCallbackQuery", "editMessageText", "editMessageText"]
    assert all(call.authorized for call in secure.calls())


def test_a_question_of_the_greatest_length_is_taken(server: Bot) -> None:
    text = _telegram.question(
        {"diff": [{"before": "", "after": "\n".join(f"&<key{number}>: \U0001f525 {{{{ x }}}}" for number in range(9999))}], "problem": "&" * 9999}
    )
    number = client(server).send(CHAT, text, _telegram.buttons(NONCE))
    assert "more lines; see homelab.healer.approve" in server.messages()[0].text
    assert "+&<key1>: \U0001f525 {{ x }}" in server.messages()[0].text
    client(server).edit(CHAT, number, _telegram.answered(text, "approved", "&" * 9999, time.time()))
    client(server).edit(CHAT, number, _telegram.plain("\n".join(["<&>"] * 9999)))
    assert server.messages()[0].text.startswith("<&>\n<&>")


def test_who_may_not_is_ignored(server: Bot) -> None:
    telegram = client(server)
    number = telegram.send(CHAT, "?", _telegram.buttons(NONCE))
    server.press(number, "Approve", STRANGER)
    server.press(number, "Approve", USER, chat=OTHER_CHAT)
    server.press(number, "Approve", USER, bot=True)
    server.say("approve", USER)
    server.say(f"/approve {NONCE}", USER)
    server.say("/pause", STRANGER)
    server.say("/pause", USER)
    readings = [telegram.read(update) for update in telegram.updates(0, 0)]
    assert [reading.reason for reading in readings if isinstance(reading, Ignored)] == [
        "stranger",
        "wrong chat",
        "a bot",
        "not a button",
        "not a button",
        "stranger",
    ]
    assert readings[-1] == Command("pause", USER, CHAT, f"User {USER}")


def test_what_is_confirmed_does_not_come_again_and_the_rest_does(server: Bot) -> None:
    telegram = client(server)
    first, second = server.say("1", USER), server.say("2", USER)
    assert telegram.updates(0, 0) == telegram.updates(0, 0) == [first, second]
    assert telegram.updates(next_offset([first], 0), 0) == [second]
    assert server.pending() == [second]
    offset = next_offset([second], 0)
    assert telegram.updates(offset, 0) == []
    assert next_offset([], offset) == offset
    again = server.replay(second)
    assert telegram.updates(offset, 0) == [again]
    assert again["message"] == second["message"]


def test_a_numbering_that_begins_anew_is_followed(server: Bot) -> None:
    telegram = client(server)
    offset = next_offset([server.say("1", USER)], 0)
    assert telegram.updates(offset, 0) == []
    server.begin_elsewhere(1000)
    later = server.say("2", USER)
    assert telegram.updates(offset, 0) == [later]
    offset = next_offset([later], offset)
    assert telegram.updates(offset, 0) == []
    assert server.pending() == []


def test_a_reader_waits_for_what_comes(server: Bot) -> None:
    threading.Timer(0.3, lambda: server.say("late", USER)).start()
    began = time.monotonic()
    (update,) = client(server, timeout=1).updates(0, 20)
    assert update["message"]["text"] == "late"
    assert 0.2 < time.monotonic() - began < 5


def test_of_two_readers_the_earlier_is_told(server: Bot) -> None:
    errors: list[HealerError] = []
    first = threading.Thread(target=lambda: errors.append(failure(lambda: client(server).updates(0, 20), Conflict, "terminated by other", "one reader")))
    first.start()
    while not server.calls("getUpdates"):
        time.sleep(0.01)
    time.sleep(0.1)
    assert client(server).updates(0, 0) == []
    first.join(10)
    assert [error.retryable for error in errors] == [True]


def test_a_webhook_is_told(server: Bot) -> None:
    server.webhook = True
    failure(lambda: client(server).updates(0, 0), Conflict, "webhook is active", "deleteWebhook")


def test_an_authority_that_is_not_known_is_refused(secure: Bot, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for ca_path in (None, str(tmp_path / "other.pem")):
        telegram = client(secure, ca_path=ca_path)
        error = failure(partial(telegram.send, CHAT, "?"), Unreachable, "certificate verify failed", "ca_path")
        assert not error.uncertain
    assert secure.calls() == []
    named = Telegram(TOKEN, [CHAT], [USER], secure.url.replace("127.0.0.1", "localhost"), ca_path=secure.ca)
    failure(lambda: named.send(CHAT, "?", ()), Unreachable, "not valid for 'localhost'")
    assert secure.calls() == []
    with pytest.raises(Invalid, match="ca_path"):
        client(secure, ca_path=str(tmp_path / "none.pem"))


def test_a_wrong_token_is_denied(server: Bot) -> None:
    wrong = "7000000001:AAE-another_another_another_another"
    with pytest.raises(Denied, match="Unauthorized") as caught:
        client(server, wrong).updates(0, 0)
    assert wrong.split(":")[1] not in "".join(traceback.format_exception(caught.value))
    server.refuse(403, "Forbidden: bot was blocked by the user")
    failure(lambda: client(server).send(CHAT, "?", ()), Denied, "blocked by the user", "start or add the bot")
    failure(lambda: Telegram(TOKEN, [CHAT], [USER], server.url + "/wrong").send(CHAT, "?", ()), Denied, "api_url")


def test_what_the_server_refuses_is_told(server: Bot) -> None:
    nowhere = Telegram(TOKEN, [1], [USER], server.url)
    failure(lambda: nowhere.send(1, "?", ()), TaskFailed, "chat not found", "Check the chat's number")
    failure(lambda: client(server).send(CHAT, "x" * 4097, ()), TaskFailed, "message is too long")
    failure(lambda: client(server).send(CHAT, "?", _telegram.buttons("x" * 62)), TaskFailed, "BUTTON_DATA_INVALID")
    failure(lambda: client(server).send(CHAT, "<b", ()), TaskFailed)
    failure(lambda: client(server).send(CHAT, "<blink>x</blink>", ()), TaskFailed, "Unsupported start tag")
    failure(lambda: client(server).edit(CHAT, 1, "?"), TaskFailed, "message to edit not found")
    failure(lambda: client(server).acknowledge("1", "?"), TaskFailed, "query is too old")
    server.refuse(400, "Bad Request: group chat was upgraded to a supergroup chat", migrate_to_chat_id=OTHER_CHAT)
    failure(lambda: client(server).send(CHAT, "?", ()), TaskFailed, f"write {OTHER_CHAT} into chats")
    asked = len(server.calls())
    failure(lambda: client(server).send(OTHER_CHAT, "?", ()), Invalid, "not one of chats")
    assert len(server.calls()) == asked


def test_asked_too_much_it_waits_once_where_that_is_short(server: Bot) -> None:
    server.flood(1)
    began = time.monotonic()
    assert client(server).updates(0, 0) == []
    assert 0.9 < time.monotonic() - began < 3
    server.flood(0, times=2)
    error = failure(lambda: client(server).updates(0, 0), TaskFailed, "too much")
    assert error.retryable
    assert len(server.calls()) == 4
    server.flood(3600)
    began = time.monotonic()
    failure(lambda: client(server).updates(0, 0), TaskFailed, "again in 3600 s")
    assert time.monotonic() - began < 1


def test_a_server_that_is_down_slow_or_lost_is_told(server: Bot) -> None:
    telegram = client(server, timeout=0.5)
    server.down()
    assert not failure(lambda: telegram.send(CHAT, "?", ()), Unreachable, "refused").uncertain
    server.up()
    assert telegram.updates(0, 0) == []
    server.slow = 2
    assert failure(lambda: telegram.send(CHAT, "?", ()), Unreachable, "timed out").uncertain
    server.slow = 0
    server.lose_reply()
    assert failure(lambda: telegram.send(CHAT, "sent", ()), Unreachable).uncertain
    assert "sent" in [message.text for message in server.messages()]
    server.lose_reply()
    assert not failure(lambda: telegram.updates(0, 0), Unreachable).uncertain


def test_going_down_ends_a_reader_that_waits(server: Bot) -> None:
    threading.Timer(0.3, server.down).start()
    began = time.monotonic()
    failure(lambda: client(server).updates(0, 20), Unreachable)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (502, f"<html>Bad Gateway: /bot{TOKEN}/sendMessage</html>".encode(), Unreachable),
        (500, f'{{"ok": false, "error_code": 500, "description": "at /bot{TOKEN}/sendMessage"}}'.encode(), Unreachable),
        (400, f'{{"ok": false, "error_code": 400, "description": "at /bot{TOKEN.replace(":", "%3A")}"}}'.encode(), TaskFailed),
        (400, b"null", TaskFailed),
        (200, b"null", TaskFailed),
        (200, b"[" * 100000, TaskFailed),
        (200, b"\xff\xfe", TaskFailed),
        (200, b'{"ok": "true", "result": {"message_id": 1}}', TaskFailed),
        (200, b'{"ok": true, "result": {"message_id": "1"}}', TaskFailed),
        (200, b'{"ok": true}', TaskFailed),
        (404, b"not here", Denied),
        (307, b"", TaskFailed),
        (204, b"", TaskFailed),
    ],
)
def test_an_answer_that_is_none_is_told(server: Bot, status: int, body: bytes, kind: type[HealerError]) -> None:
    server.answer(status, body)
    failure(lambda: client(server).send(CHAT, "?", ()), kind)


def test_no_redirect_is_followed(server: Bot) -> None:
    with bot() as elsewhere:
        server.redirect(f"{elsewhere.url}/bot{TOKEN}/sendMessage")
        failure(lambda: client(server).send(CHAT, "?", ()), TaskFailed, "never followed")
        assert elsewhere.calls() == []


def test_no_proxy_sees_what_is_asked_without_tls(server: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    with bot() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert client(server).updates(0, 0) == []
        assert proxy.calls() == []
