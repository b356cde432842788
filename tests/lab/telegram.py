"""Telegram's Bot API on loopback, as its public documentation has it: one bot, its chats, and the people in them, whom a test plays.

Also the server's words for what it refuses, the one reader of updates at a time, and the beginning anew of a reader who is too far ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import html
import json
import re
import socket
import ssl
import threading
import time
import typing as t
from pathlib import Path

import trustme
from aiohttp import web

TOKEN = "7000000001:AAE-lab_lab_lab_lab_lab_lab_lab_lab"
CHAT = -1001234567890
USER = 4200000001
NAME = "healer_lab_bot"
MESSAGE_MOST = 4096
TOAST_MOST = 200
DATA_MOST = 64  # bytes
AHEAD = 10
"""How far past the end of the queue an offset may be; one farther away is taken for none."""
TAGS = frozenset(["a", "b", "blockquote", "code", "del", "em", "i", "ins", "pre", "s", "span", "strike", "strong", "tg-emoji", "tg-spoiler", "u"])
TAG = re.compile(r"<(?:(?P<end>/)?(?P<name>[a-z-]+)[^<>]*>)?")
OTHER_READER = "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
WEBHOOK = "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first"
NOT_MODIFIED = (
    "Bad Request: message is not modified: specified new message content and reply markup "
    "are exactly the same as a current content and reply markup of the message"
)

Params = t.Mapping[str, t.Any]
Buttons = list[list[dict[str, t.Any]]]
T = t.TypeVar("T")


class Refusal(Exception):
    """What the server refuses, with its code, its words, and parameters such as ``retry_after``."""

    def __init__(self, code: int, description: str, **parameters: int) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters


@dataclasses.dataclass
class Message:
    """A message of the bot as it is now: ``html`` as it was sent, ``text`` as people see it."""

    id: int
    chat: int
    html: str
    text: str
    buttons: Buttons
    edited: bool = False


@dataclasses.dataclass(frozen=True)
class Call:
    """One request: what was asked, whether with the right token, and when it came (seconds since 1970)."""

    method: str
    params: dict[str, t.Any]
    authorized: bool
    at: float


def _parsed(text: str) -> str:
    """What is seen of HTML as the API takes it: few tags, each closed in order, and no other sign that begins one."""
    seen, opened, at = "", [], 0
    for tag in TAG.finditer(text):
        seen, at = seen + text[at : tag.start()], tag.end()
        if tag["name"] is None or (tag["name"] not in TAGS and not tag["end"]):
            raise Refusal(400, f'Bad Request: can\'t parse entities: Unsupported start tag "{tag["name"] or ""}" at byte offset {tag.start()}')
        if not tag["end"]:
            opened.append(tag["name"])
        elif not opened or opened.pop() != tag["name"]:
            raise Refusal(400, f"Bad Request: can't parse entities: Unexpected end tag at byte offset {tag.start()}")
    if opened:
        raise Refusal(400, f"Bad Request: can't parse entities: Can't find end tag corresponding to start tag \"{opened[-1]}\"")
    return html.unescape(seen + text[at:])


def _seen(params: Params) -> str:
    text = params.get("text")
    if not isinstance(text, str):
        text = ""
    if params.get("parse_mode") == "HTML":
        text = _parsed(text)
    if not text.strip():
        raise Refusal(400, "Bad Request: message text is empty")
    if len(text.encode("utf-16-le")) // 2 > MESSAGE_MOST:
        raise Refusal(400, "Bad Request: message is too long")
    return text


def _keyboard(params: Params) -> Buttons:
    markup = _json(params.get("reply_markup") or {})
    rows = markup.get("inline_keyboard", []) if isinstance(markup, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise Refusal(400, "Bad Request: object expected as reply markup")
    for button in (button for row in rows for button in row):
        if not isinstance(button, dict) or not isinstance(button.get("text"), str) or not button["text"]:
            raise Refusal(400, 'Bad Request: can\'t parse inline keyboard button: Field "text" must be of type String')
        data = button.get("callback_data")
        if not isinstance(data, str):
            raise Refusal(400, "Bad Request: can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard")
        if not 1 <= len(data.encode()) <= DATA_MOST:
            raise Refusal(400, "Bad Request: BUTTON_DATA_INVALID")
    return t.cast("Buttons", rows)


def _json(value: t.Any) -> t.Any:
    """A parameter that is JSON within a form, and itself within JSON."""
    return json.loads(value) if isinstance(value, str) else value


def _number(params: Params, name: str, default: int = 0) -> int:
    try:
        return int(params.get(name) or default)
    except (TypeError, ValueError):
        raise Refusal(400, f"Bad Request: parameter {name} is not a number") from None


class Bot:
    """One bot at a Bot API server of its own. All that people do in its chats is done by calling this, from any thread.

    ``url`` is what a client takes for https://api.telegram.org, ``ca`` the authority's certificate where there is TLS.
    """

    def __init__(self, token: str, chats: t.Collection[int], certificate: trustme.LeafCert | None) -> None:
        self.token = token
        self.chats = set(chats)
        self.ca: str | None = None
        self.webhook = False
        self.other_reader = False
        """Whether somebody else reads all the time, who always gets the turn."""
        self.slow = 0.0
        """Seconds before each answer."""
        self._secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if certificate and self._secure:
            certificate.configure_cert(self._secure)
        self._calls: list[Call] = []
        self._messages: dict[int, Message] = {}
        self._updates: list[tuple[int, t.Any]] = []
        self._callbacks: dict[str, dict[str, t.Any] | None] = {}
        self._scripted: list[Refusal | tuple[int, bytes] | str | None] = []
        self._allowed: list[str] = []
        self._next_update, self._next_message, self._next_callback = 500_000_001, 101, 1
        self._reader: asyncio.Future[None] | None = None
        self._open: dict[asyncio.Transport, asyncio.Task[t.Any]] = {}
        self._switch = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._port = 0
        self._runner: web.ServerRunner | None = None
        self.up()

    @property
    def url(self) -> str:
        return f"{'https' if self._secure else 'http'}://127.0.0.1:{self._port}"

    def close(self) -> None:
        """End the server."""
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def down(self) -> None:
        """Refuse all connections, and cut those that are open, until it is ``up`` again at the same address."""
        with self._switch:
            self._wait(self._stop())

    def up(self) -> None:
        with self._switch:
            self._wait(self._start())

    # What a test sees.

    def messages(self, chat: int | None = None) -> list[Message]:
        """The bot's messages as they are now, the oldest first."""
        return self._do(lambda: [copy.deepcopy(message) for message in self._messages.values() if chat in (None, message.chat)])

    def calls(self, method: str = "") -> list[Call]:
        """What was asked of the server, or by one method, the oldest first."""
        return self._do(lambda: [call for call in self._calls if method in ("", call.method)])

    def toasts(self) -> list[str]:
        """What was shown to those who pressed a button."""
        return [call.params.get("text", "") for call in self.calls("answerCallbackQuery")]

    def pending(self) -> list[t.Any]:
        """The updates that no reader has confirmed."""
        return self._do(lambda: [copy.deepcopy(update) for _number, update in self._updates])

    # What people do.

    def press(self, message_id: int, button: str, user: int | dict[str, t.Any], chat: int | None = None, bot: bool = False) -> dict[str, t.Any]:
        """Press a button that stands under a message now, by its text or data. ``chat``: say that it was in that one. Returns the update."""

        def pressed() -> dict[str, t.Any]:
            message = self._messages[message_id]
            found = [key for row in message.buttons for key in row if button in (key["text"], key["callback_data"])]
            if not found:
                raise LookupError(f"under message {message_id} is no button {button!r} but {message.buttons}")
            query = {
                "id": f"{self._next_callback:019}",
                "from": _person(user, bot),
                "message": {**self._shown(message), "chat": _chat(message.chat if chat is None else chat)},
                "chat_instance": "1",
                "data": found[0]["callback_data"],
            }
            self._next_callback += 1
            return self._add("callback_query", query)

        return self._do(pressed)

    def say(self, text: str, user: int | dict[str, t.Any], chat: int = CHAT, bot: bool = False) -> dict[str, t.Any]:
        """Write a message in a chat. Returns the update."""

        def said() -> dict[str, t.Any]:
            message = {"message_id": self._next_message, "from": _person(user, bot), "chat": _chat(chat), "date": int(time.time()), "text": text}
            self._next_message += 1
            return self._add("message", message)

        return self._do(said)

    def push(self, update: t.Any) -> None:
        """Give the next reader this, whatever it is. A dict without an ``update_id`` gets the next one."""

        def pushed() -> None:
            number = self._next_update
            if isinstance(update, dict) and isinstance(update.get("update_id"), int):
                number = update["update_id"]
            self._queue(number, {"update_id": number, **update} if isinstance(update, dict) else update)

        self._do(pushed)

    def replay(self, update: dict[str, t.Any]) -> dict[str, t.Any]:
        """Let the same press or message come again, under a new number. Returns the update."""
        again = {key: value for key, value in copy.deepcopy(update).items() if key != "update_id"}
        return self._do(lambda: self._queue(self._next_update, {"update_id": self._next_update, **again}))

    # What the server does to its clients.

    def flood(self, retry_after: int, times: int = 1) -> None:
        """Answer the next requests with 429."""
        words = f"Too Many Requests: retry after {retry_after}"
        self._do(lambda: self._scripted.extend([Refusal(429, words, retry_after=retry_after)] * times))

    def refuse(self, code: int, description: str, **parameters: int) -> None:
        """Answer the next request with an error of the API."""
        self._do(lambda: self._scripted.append(Refusal(code, description, **parameters)))

    def answer(self, status: int, body: bytes) -> None:
        """Answer the next request with this, as something before the API does."""
        self._do(lambda: self._scripted.append((status, body)))

    def redirect(self, address: str) -> None:
        """Answer the next request with another address to ask."""
        self._do(lambda: self._scripted.append(address))

    def lose_reply(self) -> None:
        """Do what the next request asks for, and cut the connection instead of answering."""
        self._do(lambda: self._scripted.append(None))

    def begin_elsewhere(self, number: int) -> None:
        """Number the updates from there on, as Telegram does after a week without any."""

        def begun() -> None:
            self._next_update = number

        self._do(begun)

    # How it is done.

    def _do(self, what: t.Callable[[], T]) -> T:
        async def done() -> T:
            return what()

        return self._wait(done())

    def _wait(self, coroutine: t.Coroutine[t.Any, t.Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self) -> None:
        if self._runner:
            return
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0)
        await self._runner.setup()
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener, ssl_context=self._secure).start()

    async def _stop(self) -> None:
        if self._runner:
            runner, self._runner = self._runner, None
            for transport, task in list(self._open.items()):
                transport.abort()
                task.cancel()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport, task = request.transport, asyncio.current_task()
        assert transport
        assert task
        self._open[transport] = task
        try:
            return await self._answer(request, transport)
        finally:
            del self._open[transport]

    async def _answer(self, request: web.BaseRequest, transport: asyncio.Transport) -> web.StreamResponse:
        params = await _params(request)
        prefix, _, method = request.path.lstrip("/").partition("/")
        authorized = prefix == f"bot{self.token}"
        self._calls.append(Call(method, params, authorized, time.time()))
        await asyncio.sleep(self.slow)
        scripted: Refusal | tuple[int, bytes] | str | t.Literal[True] | None = self._scripted.pop(0) if self._scripted else True
        if isinstance(scripted, tuple):
            return web.Response(status=scripted[0], body=scripted[1])
        if isinstance(scripted, str):
            return web.Response(status=302, headers={"Location": scripted})
        try:
            if isinstance(scripted, Refusal):
                raise scripted
            if not authorized:
                known = prefix.startswith("bot") and ":" in prefix
                raise Refusal(401, "Unauthorized") if known else Refusal(404, "Not Found")
            if method not in METHODS:
                raise Refusal(404, "Not Found")
            result = await METHODS[method](self, params)
        except Refusal as refusal:
            told: dict[str, t.Any] = {"ok": False, "error_code": refusal.code, "description": refusal.description}
            return web.json_response({**told, "parameters": refusal.parameters} if refusal.parameters else told, status=refusal.code)
        if scripted is None:
            transport.abort()
        return web.json_response({"ok": True, "result": result})

    def _add(self, kind: str, event: dict[str, t.Any]) -> dict[str, t.Any]:
        """Put what happened into the queue, if the reader has asked for its kind."""
        if kind == "callback_query":
            self._callbacks[event["id"]] = None
        update = {"update_id": self._next_update, kind: event}
        if self._allowed and kind not in self._allowed:
            return copy.deepcopy(update)
        return self._queue(self._next_update, update)

    def _queue(self, number: int, update: T) -> T:
        self._updates.append((number, copy.deepcopy(update)))
        self._updates.sort(key=lambda entry: entry[0])
        if number >= self._next_update:
            self._next_update = number + 1
        if self._reader and not self._reader.done():
            self._reader.set_result(None)
        return copy.deepcopy(update)

    def _shown(self, message: Message) -> dict[str, t.Any]:
        shown: dict[str, t.Any] = {
            "message_id": message.id,
            "from": {"id": int(self.token.split(":")[0]), "is_bot": True, "first_name": "Healer", "username": NAME},
            "chat": _chat(message.chat),
            "date": int(time.time()),
            "text": message.text,
        }
        return {**shown, "reply_markup": {"inline_keyboard": copy.deepcopy(message.buttons)}} if message.buttons else shown

    def _in(self, params: Params) -> int:
        chat = _number(params, "chat_id")
        if chat not in self.chats:
            raise Refusal(400, "Bad Request: chat not found")
        return chat

    async def _get_me(self, params: Params) -> t.Any:
        return {"id": int(self.token.split(":")[0]), "is_bot": True, "first_name": "Healer", "username": NAME, "can_join_groups": True}

    async def _send(self, params: Params) -> t.Any:
        chat = self._in(params)
        message = Message(self._next_message, chat, str(params.get("text")), _seen(params), _keyboard(params))
        self._next_message += 1
        self._messages[message.id] = message
        return self._shown(message)

    async def _edit(self, params: Params) -> t.Any:
        chat, message = self._in(params), self._messages.get(_number(params, "message_id"))
        if not message or message.chat != chat:
            raise Refusal(400, "Bad Request: message to edit not found")
        text, keyboard = _seen(params), _keyboard(params)
        if (str(params.get("text")), keyboard) == (message.html, message.buttons):
            raise Refusal(400, NOT_MODIFIED)
        message.html, message.text, message.buttons, message.edited = str(params.get("text")), text, keyboard, True
        return self._shown(message)

    async def _acknowledge(self, params: Params) -> t.Any:
        if params.get("callback_query_id") not in self._callbacks:
            raise Refusal(400, "Bad Request: query is too old and response timeout expired or query ID is invalid")
        if len(str(params.get("text") or "")) > TOAST_MOST:
            raise Refusal(400, "Bad Request: MESSAGE_TOO_LONG")
        return True

    async def _get_updates(self, params: Params) -> t.Any:
        if self.webhook:
            raise Refusal(409, WEBHOOK)
        if self.other_reader:
            raise Refusal(409, OTHER_READER)
        offset, limit, wait = _number(params, "offset"), _number(params, "limit", 100), _number(params, "timeout")
        if isinstance(allowed := _json(params.get("allowed_updates")), list):
            self._allowed = allowed
        if self._reader and not self._reader.done():
            self._reader.set_exception(Refusal(409, OTHER_READER))
        self._forget(offset)
        if not self._updates and wait > 0:
            self._reader = reader = self._loop.create_future()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader, min(wait, 50))
        return [copy.deepcopy(update) for _number, update in self._updates][: max(1, min(limit, 100))]

    def _forget(self, offset: int) -> None:
        """Confirm what is before the offset. One too far ahead belongs to another numbering, and confirms nothing."""
        if offset < 0:
            self._updates = self._updates[offset:]
        elif offset <= self._next_update + AHEAD:
            self._updates = [entry for entry in self._updates if entry[0] >= offset]

    async def _set_webhook(self, params: Params) -> t.Any:
        self.webhook = bool(params.get("url"))
        return True


METHODS: dict[str, t.Callable[[Bot, Params], t.Awaitable[t.Any]]] = {
    "getMe": Bot._get_me,
    "sendMessage": Bot._send,
    "editMessageText": Bot._edit,
    "answerCallbackQuery": Bot._acknowledge,
    "getUpdates": Bot._get_updates,
    "setWebhook": Bot._set_webhook,
    "deleteWebhook": Bot._set_webhook,
}


async def _params(request: web.BaseRequest) -> dict[str, t.Any]:
    """The parameters, which may be in the address, a form, or JSON."""
    params: dict[str, t.Any] = dict(request.query)
    if request.content_type == "application/json":
        params.update(json.loads(await request.read() or b"{}"))
    else:
        params.update(await request.post())
    return params


def _person(user: int | dict[str, t.Any], bot: bool) -> dict[str, t.Any]:
    return user if isinstance(user, dict) else {"id": user, "is_bot": bot, "first_name": f"User {user}"}


def _chat(chat: int) -> dict[str, t.Any]:
    return {"id": chat, "type": "private", "first_name": f"User {chat}"} if chat > 0 else {"id": chat, "type": "supergroup", "title": "Homelab"}


@contextlib.contextmanager
def bot(token: str = TOKEN, chats: t.Collection[int] = (CHAT,), tls: Path | None = None) -> t.Iterator[Bot]:
    """A bot in these chats. ``tls`` is a folder for its authority's certificate; without one it speaks plain HTTP."""
    authority = trustme.CA() if tls else None
    opened = Bot(token, chats, authority.issue_cert("127.0.0.1") if authority else None)
    if authority and tls:
        opened.ca = str(tls / "telegram-ca.pem")
        authority.cert_pem.write_to_path(opened.ca)
    try:
        yield opened
    finally:
        opened.close()
