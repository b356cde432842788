# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import json
import re
import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.homelab.healer.plugins.module_utils import _telegram
from ansible_collections.homelab.healer.plugins.module_utils._errors import Invalid
from ansible_collections.homelab.healer.plugins.module_utils._telegram import (
    OPTIONS,
    Answer,
    Command,
    Ignored,
    Telegram,
    answered,
    identities,
    question,
    read,
    units,
)

TOKEN = "7000000001:AAE-unit_unit_unit_unit_unit_unit_un"
USER, CHAT = 4200000001, -1001234567890
NONCE = "00ff" * 8
PRESS: dict[str, t.Any] = {
    "update_id": 5,
    "callback_query": {
        "id": "77",
        "from": {"id": USER, "is_bot": False, "first_name": "Ann", "username": "ann"},
        "message": {"message_id": 9, "chat": {"id": CHAT, "type": "supergroup"}, "date": 1, "text": "?"},
        "chat_instance": "1",
        "data": f"ok:{NONCE}",
    },
}
TEXT: dict[str, t.Any] = {
    "update_id": 6,
    "message": {"message_id": 10, "from": PRESS["callback_query"]["from"], "chat": {"id": CHAT, "type": "supergroup"}, "date": 1, "text": "/pause"},
}
PATHS: list[tuple[str, ...]] = [
    ("update_id",),
    ("callback_query",),
    ("callback_query", "id"),
    ("callback_query", "from"),
    ("callback_query", "from", "id"),
    ("callback_query", "from", "is_bot"),
    ("callback_query", "message"),
    ("callback_query", "message", "message_id"),
    ("callback_query", "message", "chat"),
    ("callback_query", "message", "chat", "id"),
    ("callback_query", "data"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([USER, CHAT, str(USER), f"ok:{NONCE}", "/pause"]),
    lambda inside: (
        st.lists(inside, max_size=4) | st.dictionaries(st.sampled_from(["id", "from", "chat", "message", "data", "is_bot", "text"]) | st.text(), inside)
    ),
    max_leaves=12,
)


def altered(update: dict[str, t.Any], path: t.Sequence[str], value: t.Any) -> dict[str, t.Any]:
    """The same update with something else at one place."""
    other = copy.deepcopy(update)
    inside = other
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return other


def without(update: dict[str, t.Any], path: t.Sequence[str]) -> dict[str, t.Any]:
    other = copy.deepcopy(update)
    inside = other
    for key in path[:-1]:
        inside = inside[key]
    del inside[path[-1]]
    return other


def reason(update: t.Any, chats: t.Any = (CHAT,), users: t.Any = (USER,)) -> str:
    """Why it is ignored; what is read instead, where it is not."""
    reading = read(update, chats, users)
    return reading.reason if isinstance(reading, Ignored) else repr(reading)


def test_a_press_is_an_answer() -> None:
    assert read(PRESS, [CHAT], [USER]) == Answer(True, NONCE, USER, CHAT, 9, "77", "Ann @ann")
    assert read(altered(PRESS, ("callback_query", "data"), f"no:{NONCE}"), [str(CHAT)], [str(USER)]) == Answer(False, NONCE, USER, CHAT, 9, "77", "Ann @ann")
    old = altered(PRESS, ("callback_query", "message"), {"message_id": 9, "chat": {"id": CHAT}, "date": 0})
    assert isinstance(read(old, [CHAT], [USER]), Answer)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("callback_query", "from", "id"), USER + 1, "stranger"),
        (("callback_query", "from", "id"), int(str(USER)[:-1]), "stranger"),
        (("callback_query", "from", "id"), USER * 10, "stranger"),
        (("callback_query", "from", "id"), -USER, "stranger"),
        (("callback_query", "from", "id"), CHAT, "stranger"),
        (("callback_query", "from", "id"), str(USER), "malformed"),
        (("callback_query", "from", "id"), float(USER), "malformed"),
        (("callback_query", "from", "id"), True, "malformed"),
        pytest.param(("callback_query", "from", "id"), 1 << 20000, "malformed", id="huge"),
        (("callback_query", "from", "is_bot"), True, "a bot"),
        (("callback_query", "from", "is_bot"), 0, "malformed"),
        (("callback_query", "from", "is_bot"), None, "malformed"),
        (("callback_query", "message", "chat", "id"), USER, "wrong chat"),
        (("callback_query", "message", "chat", "id"), -CHAT, "wrong chat"),
        (("callback_query", "message", "chat", "id"), CHAT * 10, "wrong chat"),
        (("callback_query", "message", "chat", "id"), str(CHAT), "malformed"),
        (("callback_query", "id"), "", "malformed"),
        (("callback_query", "id"), 77, "malformed"),
        (("callback_query", "data"), "ok", "not our button"),
        (("callback_query", "data"), f"ok:{NONCE}\n", "not our button"),
        (("callback_query", "data"), f" ok:{NONCE}", "not our button"),
        (("callback_query", "data"), f"OK:{NONCE}", "not our button"),
        (("callback_query", "data"), f"ok:{NONCE.upper()}", "not our button"),
        (("callback_query", "data"), f"ok:{NONCE}0", "not our button"),
        (("callback_query", "data"), f"ok:{NONCE[1:]}", "not our button"),
        (("callback_query", "data"), f"not ok:{NONCE}", "not our button"),
        (("callback_query", "data"), "ok:" + "\u0661" * 32, "not our button"),
        (("callback_query", "data"), [f"ok:{NONCE}"], "not our button"),
        (("update_id",), "5", "malformed"),
        (("update_id",), True, "malformed"),
        (("message",), TEXT["message"], "malformed"),
        (("edited_message",), {}, "malformed"),
    ],
)
def test_a_press_that_is_not_exactly_right_is_none(path: tuple[str, ...], value: t.Any, expected: str) -> None:
    assert reason(altered(PRESS, path, value)) == expected


@pytest.mark.parametrize("path", PATHS)
def test_a_press_that_lacks_something_is_none(path: tuple[str, ...]) -> None:
    assert reason(without(PRESS, path)) in ("malformed", "not our button")
    for junk in (None, "", [], {}, [None], {"id": None}, 1.5):
        assert reason(altered(PRESS, path, junk)) in ("malformed", "not our button")


@pytest.mark.parametrize("text", ["approve", "do NOT /approve 123", f"/approve {NONCE}", f"ok:{NONCE}", "yes", "ok", "/approve", "Approve", ""])
def test_a_text_is_never_an_answer(text: str) -> None:
    assert reason(altered(TEXT, ("message", "text"), text)) == "not a button"


@pytest.mark.parametrize("kind", ["edited_message", "channel_post", "inline_query", "my_chat_member", "CALLBACK_QUERY", ""])
def test_another_update_is_neither(kind: str) -> None:
    assert reason({"update_id": 1, kind: PRESS["callback_query"]}) == "not a button"
    assert reason({"update_id": 1, kind: TEXT["message"]}) == "not a button"


def test_a_press_as_a_message_and_a_message_as_a_press_are_neither() -> None:
    assert reason({"update_id": 1, "message": PRESS["callback_query"]}) == "malformed"
    assert reason({"update_id": 1, "callback_query": TEXT["message"]}) == "malformed"


@pytest.mark.parametrize(("chats", "users", "expected"), [([], [USER], "wrong chat"), ([CHAT], [], "stranger"), ([], [], "stranger"), (None, None, "stranger")])
def test_without_chats_or_users_nothing_is_an_answer(chats: t.Any, users: t.Any, expected: str) -> None:
    assert reason(PRESS, chats, users) == reason(TEXT, chats, users) == expected


@pytest.mark.parametrize("text", ["/pause", "/pause@healer_bot"])
def test_a_pause_is_a_command(text: str) -> None:
    assert read(altered(TEXT, ("message", "text"), text), [CHAT], [USER]) == Command("pause", USER, CHAT, "Ann @ann")


@pytest.mark.parametrize(
    "text", ["/pause ", " /pause", "/pause\n", "/Pause", "pause", "/pause now", "do not /pause", "/pause@", "/pause@a b", "/resume", "/paused"]
)
def test_anything_else_is_no_command(text: str) -> None:
    assert reason(altered(TEXT, ("message", "text"), text)) == "not a button"


def test_who_may_not_gives_no_command() -> None:
    assert reason(altered(TEXT, ("message", "from", "id"), USER + 1)) == "stranger"
    assert reason(altered(TEXT, ("message", "chat", "id"), USER)) == "wrong chat"
    assert reason(altered(TEXT, ("message", "from", "is_bot"), True)) == "a bot"
    assert reason(without(TEXT, ("message", "from"))) == "malformed"


def test_why_it_is_ignored_names_numbers_and_no_text() -> None:
    stranger = altered(altered(PRESS, ("callback_query", "from", "first_name"), "Mallory"), ("callback_query", "from", "id"), 13)
    reading = read(stranger, [CHAT], [USER])
    assert str(reading) == f"stranger (user 13, chat {CHAT})"
    assert reading == Ignored("stranger", 13, CHAT, "77")
    assert str(read(None, [CHAT], [USER])) == "malformed"


@given(JSON | st.dictionaries(st.sampled_from(["update_id", "message", "callback_query"]), JSON))
@settings(max_examples=200)
def test_no_junk_raises_or_is_an_answer(update: t.Any) -> None:
    assert not isinstance(read(update, [CHAT], [USER]), Answer)
    assert isinstance(_telegram.next_offset([update], 3), int)


@given(st.sampled_from(PATHS), JSON)
@settings(max_examples=200)
def test_one_thing_that_is_another_is_no_answer(path: tuple[str, ...], value: t.Any) -> None:
    reading = read(altered(PRESS, path, value), [CHAT], [USER])
    right = {
        ("update_id",): isinstance(value, int) and not isinstance(value, bool),
        ("callback_query", "id"): isinstance(value, str),
        ("callback_query", "message", "message_id"): isinstance(value, int) and not isinstance(value, bool),
    }
    if isinstance(reading, Answer) and not right.get(path):
        assert json.dumps(value) == json.dumps(_at(PRESS, path))


def _at(update: t.Any, path: t.Sequence[str]) -> t.Any:
    for key in path:
        update = update[key]
    return update


@pytest.mark.parametrize("value", [USER, str(USER)])
def test_numbers_are_read_as_integers(value: t.Any) -> None:
    (found,) = identities("users", [value], positive=True)
    assert (type(found), found) == (int, USER)


@pytest.mark.parametrize(
    "value",
    [
        "12 34",
        "@name",
        "",
        True,
        False,
        123.0,
        None,
        "123.0",
        "+1",
        " 1",
        "1\n",
        "0",
        0,
        "01",
        "1e3",
        "0x1",
        "\u0661",
        "\u00b2",
        [1],
        1 << 63,
        pytest.param(1 << 20000, id="huge"),
    ],
)
def test_what_is_not_a_number_is_refused(value: t.Any) -> None:
    for call in (
        lambda: identities("chats", [1, value]),
        lambda: read(PRESS, [CHAT], [USER, value]),
        lambda: read(PRESS, [value], [USER]),
        lambda: Telegram(TOKEN, [value], [USER]),
    ):
        with pytest.raises(Invalid):
            call()


def test_what_is_not_a_list_of_numbers_is_refused_and_not_shown() -> None:
    for listed in ("123", 123, {"a": 1}, TOKEN):
        with pytest.raises(Invalid, match="not a list"):
            identities("chats", listed)
    with pytest.raises(Invalid, match="its element 2 is not") as caught:
        identities("users", [1, TOKEN], positive=True)
    assert TOKEN not in str(caught.value)
    with pytest.raises(Invalid):
        identities("users", [-5], positive=True)
    assert identities("chats", ["-5", 7]) == {-5, 7}


@pytest.mark.parametrize(
    "token", ["", None, 99, "secretsecretsecret", "123:short", f"{TOKEN}/x", f"{TOKEN}\n", f" {TOKEN}", "a:AAEunit_unit_unit_unit", f"{TOKEN}?x"]
)
def test_what_is_not_a_token_is_refused_and_not_shown(token: t.Any) -> None:
    with pytest.raises(Invalid) as caught:
        Telegram(token, [CHAT], [USER])
    assert not token or str(token).strip() not in str(caught.value)


@pytest.mark.parametrize(
    "api_url",
    [
        "",
        "api.telegram.org",
        "ftp://api.telegram.org",
        "https://",
        "https://user:pw@host",
        "https://host?x=1",
        "https://host#x",
        "https://h:port",
        "https://h\n",
        None,
    ],
)
def test_what_is_not_an_address_is_refused(api_url: t.Any) -> None:
    with pytest.raises(Invalid, match="api_url"):
        Telegram(TOKEN, [CHAT], [USER], api_url)


def test_without_tls_only_this_machine_is_asked() -> None:
    for api_url in ("http://api.telegram.org", "http://192.168.1.2:8081", "http://127.0.0.1.example.org", "http://localhost.example.org"):
        with pytest.raises(Invalid, match="without TLS"):
            Telegram(TOKEN, [CHAT], [USER], api_url)
    for api_url in ("http://127.0.0.1:8081", "http://localhost:8081/", "http://[::1]:8081", "https://bot.lan/telegram"):
        assert Telegram(TOKEN, [CHAT], [USER], api_url).host in api_url


def test_the_options_are_what_a_bot_takes() -> None:
    def given(**options: t.Any) -> t.Any:
        return ArgumentSpecValidator(OPTIONS).validate({"token": TOKEN, **options})

    read_as = given(chats=[str(CHAT), CHAT], users=[USER])
    assert not read_as.error_messages
    bot = Telegram(**read_as.validated_parameters)
    assert (set(bot.chats), set(bot.users), bot.host) == ({CHAT}, {USER}, "api.telegram.org")
    assert read_as._no_log_values == {TOKEN}
    bot = Telegram(**given().validated_parameters)
    assert not bot.chats | bot.users
    for listed in (["12 34"], "12 34", "@name", [True], True, [123.0], 123.0, [""], {"a": 1}):
        read_as = given(chats=[CHAT], users=listed)
        if not read_as.error_messages:
            with pytest.raises(Invalid):
                Telegram(**read_as.validated_parameters)


def test_nothing_of_a_bot_shows_its_token() -> None:
    assert TOKEN not in repr(Telegram(TOKEN, [CHAT], [USER]))
    assert _telegram.API_URL == "https://api.telegram.org"


def test_buttons_fit_and_are_read_back() -> None:
    nonces = {_telegram.new_nonce() for _number in range(100)}
    assert len(nonces) == 100
    for nonce in nonces:
        (approve, deny), *_rest = _telegram.buttons(nonce)
        assert all(len(key["callback_data"].encode()) <= 64 for key in (approve, deny))
        for key, approved in ((approve, True), (deny, False)):
            reading = read(altered(PRESS, ("callback_query", "data"), key["callback_data"]), [CHAT], [USER])
            assert isinstance(reading, Answer)
            assert (reading.approved, reading.nonce) == (approved, nonce)


ASKED: dict[str, t.Any] = {
    "id": "20261124T120000Z-0badcafe",
    "plan_id": "0123456789abcdef" * 4,
    "target": {"kind": "container", "id": "feedfacefeedfacefeed", "name": "<b>{{ x }}"},
    "remedy": "docker_runaway",
    "problem": "it uses 1.9 CPUs & more",
    "diff": [{"before": "cpus: not set\nmemory: 64MiB\n", "after": "cpus: 0.5\nmemory: 64MiB\n", "before_header": "burner"}],
    "rule": "critical",
    "why": "no rule matches",
    "reversibility": "exact",
    "asked": 1763985600,
    "expires": 1763986500,
}


def test_a_question_shows_what_is_asked() -> None:
    assert question(ASKED).splitlines() == [
        "<b>May this be done?</b>",
        "<b>Target:</b> container &lt;b&gt;{{ x }} (feedfacefeed)",
        "<b>Remedy:</b> docker_runaway",
        "<b>Problem:</b> it uses 1.9 CPUs &amp; more",
        "<pre>-cpus: not set",
        "+cpus: 0.5</pre>",
        "<b>Asks because:</b> rule critical: no rule matches",
        "<b>Way back:</b> exact, as it was",
        "<b>Expires:</b> 2025-11-24 12:15:00 UTC (15 min after it was asked); no answer is no",
        "<b>Plan:</b> <code>0123456789ab</code>",
        "<b>Remediation:</b> <code>20261124T120000Z-0badcafe</code>",
    ]


def test_a_question_says_what_is_not_known() -> None:
    assert question({}).count("unknown") == 8
    assert "(no difference is known)" in question({"diff": []})
    assert "NONE, it cannot be put back" in question({"reversibility": "none"})


def test_several_differences_are_told_apart() -> None:
    told = question({"diff": [{"before": {"cpus": 1}, "after": {"cpus": 2}, "before_header": name} for name in ("a", "<i>")]})
    assert "<pre>a:\n-cpus: 1\n+cpus: 2\n&lt;i&gt;:\n-cpus: 1\n+cpus: 2</pre>" in told


@pytest.mark.parametrize("name", ["x\nWay back: exact", "x\r\n", "a\u202eb", "a\u200bb", "a\x00b", "\ud800"])
def test_no_name_makes_a_line_or_hides_anything(name: str) -> None:
    told = question({**ASKED, "target": name, "problem": name, "rule": name})
    assert len(told.splitlines()) == len(question(ASKED).splitlines())
    assert all(letter.isprintable() or letter == "\n" for letter in told)


def test_what_is_cut_is_told() -> None:
    lines = [f"key{number}: value" for number in range(1000)]
    told = question({**ASKED, "diff": [{"before": "", "after": "\n".join(lines)}]})
    shown = [line for line in told.replace("<pre>", "\n").splitlines() if line.startswith("+key")]
    assert f"... {1000 - len(shown)} more lines; see homelab.healer.approve</pre>" in told
    assert shown == [f"+{line}" for line in lines[: len(shown)]]
    assert len(shown) > 100
    told = question({**ASKED, "problem": "&" * 1000, "diff": "x" * 1000})
    for sign, pattern in (("&amp;", r"((?:&amp;)+)"), ("x", "(x+)")):
        ((shown_of_it, missing),) = re.findall(rf"{pattern}\.\.\. \((\d+) more characters\)", told)
        assert shown_of_it.count(sign) + int(missing) == 1000


@given(
    st.fixed_dictionaries(
        {},
        optional={
            key: st.text() | st.text(alphabet="&<>\U0001f525\n", min_size=3000, max_size=6000) | st.none() for key in ASKED if key not in ("asked", "expires")
        },
    ),
    st.text(),
    st.text(),
)
@settings(max_examples=60, deadline=None)
def test_a_message_always_fits_with_its_answer(remediation: dict[str, t.Any], word: str, who: str) -> None:
    told = question({**ASKED, **remediation})
    assert units(answered(told, word + "&" * 500, who + "<" * 500, 0)) <= 4096
    assert re.fullmatch(r"(?s)(?:[^<>]|</?(?:b|pre|code)>)*", told)
    assert units(_telegram.plain(str(remediation))) <= 4096


def test_an_answer_stands_below_its_question() -> None:
    assert answered("<b>?</b>", "denied", "<Ann> & Co", 0) == "<b>?</b>\n\n<b>Denied</b> by &lt;Ann&gt; &amp; Co, 1970-01-01 00:00:00 UTC"
