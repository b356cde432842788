"""HTTP as the API speaks it: bodies, credentials, reason phrases, and faults on the way."""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import inspect
import json
import random
import re
import time
import typing as t
import zlib
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from tests.lab.proxmox import accounts, cluster, lxc, power, snapshots, workers
from tests.lab.proxmox.access import Identity
from tests.lab.proxmox.calls import Call, Routes, run
from tests.lab.proxmox.errors import VERIFICATION, ApiError
from tests.lab.proxmox.faults import Fault, Faults
from tests.lab.proxmox.model import World
from tests.lab.proxmox.tasks import Tasks, Trouble

METHODS = frozenset({"GET", "POST", "PUT", "DELETE"})
COMPRESSED_FROM = 1024  # bytes
PREFIX = "/api2/"
JSON_TYPE = "application/json;charset=UTF-8"
HEADERS = {"Cache-Control": "max-age=0", "Pragma": "no-cache", "Server": "pve-api-daemon/3.0"}
_TOKEN = re.compile(r"PVEAPIToken[= ]([^=]+)=(.+)")
_NOBODY = Identity("")
LOST = "lost"
LATE = 3600.0  # seconds: longer than any client waits


@dataclasses.dataclass
class Request:
    """What is remembered of a request: ``began`` and ``ended`` are real seconds, ``connection`` numbers the TCP connections."""

    method: str
    path: str
    params: dict[str, t.Any]
    user: str
    connection: int
    began: float
    ended: float = 0.0
    status: int = 0
    refused: bool = False

    @property
    def login(self) -> bool:
        return self.method == "POST" and self.path == "/access/ticket"


class Server(web.Server):
    """One that numbers its connections."""

    def __init__(self, handler: t.Callable[[web.BaseRequest], t.Awaitable[web.StreamResponse]]) -> None:
        super().__init__(handler, access_log=None, keepalive_timeout=60)
        self.connection_numbers: dict[t.Any, int] = {}
        self._count = 0

    def connection_made(self, handler: t.Any, transport: asyncio.Transport) -> None:
        self._count += 1
        self.connection_numbers[handler] = self._count
        super().connection_made(handler, transport)

    def connection_lost(self, handler: t.Any, exc: BaseException | None = None) -> None:
        self.connection_numbers.pop(handler, None)
        super().connection_lost(handler, exc)


class Api:
    """The front: requests in, answers out."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tasks = Tasks(world)
        self.faults = Faults()
        self.requests: list[Request] = []
        self.read_only = False
        release = world.release
        table = [*accounts.routes(release), *cluster.routes(release), *lxc.routes(release), *power.routes(), *snapshots.routes(), *workers.routes()]
        self._routes = Routes(table, release)
        self.server = Server(self.handle)

    def replace_world(self, world: World) -> None:
        """Go on in another state; what was remembered and scripted is forgotten."""
        self.world = world
        self.tasks = Tasks(world)
        self.faults.clear()
        self.requests.clear()
        self.read_only = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, form, query = _split(request)
        number = self.server.connection_numbers.get(request.protocol, 0)
        seen = Request(request.method, path, dict(parse_qsl(query, keep_blank_values=True)), "", number, time.time())
        self.requests.append(seen)
        scripted = self.faults.find(request.method, path)
        try:
            response = await self._answer(request, path, form, seen, scripted)
        finally:
            seen.ended = time.time()
        seen.status = response.status
        response.headers["Date"] = email.utils.formatdate(self.world.now(), usegmt=True)  # the node's clock, which stamps its tasks too
        if scripted and scripted.kind in {"lost", "late"}:
            await _withhold(request, scripted)
        return response

    async def _answer(self, request: web.BaseRequest, path: str, form: str, seen: Request, scripted: Fault | None) -> web.Response:
        try:
            if self.read_only and seen.method != "GET" and not seen.login:
                seen.refused = True
                return _respond(request, 405, "Method Not Allowed", {"data": None, "message": "Method Not Allowed"})
            if scripted and scripted.kind in _BEFORE:
                await _BEFORE[scripted.kind](request, scripted)
            data, total = await self._carry_out(request, path, form, seen, scripted)
        except ApiError as error:
            if error.delay:
                await self.world.clock.sleep(error.delay)
            return _fail(request, error)
        body = {"data": data} | ({"total": total} if total is not None else {})
        return _respond(request, 200, "OK", body | ({"success": 1} if form == "extjs" else {}))

    async def _carry_out(self, request: web.BaseRequest, path: str, form: str, seen: Request, scripted: Fault | None) -> tuple[t.Any, int | None]:
        if request.method not in METHODS:
            raise ApiError(501, f"method '{request.method}' not available", bare=True)
        if form not in {"json", "extjs"}:
            raise ApiError(501, f"no such uri {request.path}", bare=True)
        self.world.catch_up()
        if request.method != "GET":
            self.world.access.forget()
        parts = [unquote(part) for part in path.strip("/").split("/")]
        who = self._authenticate(request, path)
        seen.user = str(who)
        params = await _read_body(request) | seen.params
        seen.params = dict(params)
        route, in_path = self._routes.find(request.method, path, parts)
        call = Call(self.world, self.tasks, who, params, _trouble(scripted))
        result = run(route, call, in_path)
        if inspect.isawaitable(result):
            result = await result
        if request.method != "GET":
            self.world.access.forget()
        return result, call.total

    def _authenticate(self, request: web.BaseRequest, path: str) -> Identity:
        header = request.headers.get("Authorization", "")
        if match := _TOKEN.fullmatch(header):
            who = self.world.access.find_token(match[1], match[2], self.world.now())
            if who is None:
                raise _unauthorized("Authentication failed!")
            return who
        ticket = request.cookies.get("PVEAuthCookie") or header.removeprefix("PVEAuthCookie=")
        if path in {"/access/ticket", "/access/domains"}:
            return _NOBODY
        if not ticket:
            raise _unauthorized("No ticket")
        ticket = unquote(ticket)
        user, issued = self.world.access.tickets.get(ticket, ("", 0.0))
        if not user or issued < self.world.now() - accounts.TICKET_LIFE or not self.world.access.active(user, self.world.now()):
            raise _unauthorized("permission denied - invalid PVE ticket")
        if request.method != "GET" and request.headers.get("CSRFPreventionToken") != accounts.csrf_token(ticket):
            raise _unauthorized("Permission denied - invalid csrf token")
        return Identity(user)


def _unauthorized(text: str) -> ApiError:
    return ApiError(401, text, bare=True, delay=accounts.WRONG_DELAY)


def _split(request: web.BaseRequest) -> tuple[str, str, str]:
    """The path below the format, the format, and the query."""
    raw, _, query = request.raw_path.partition("?")
    if not raw.startswith(PREFIX):
        return unquote(raw), "", query
    form, _, rest = raw.removeprefix(PREFIX).partition("/")
    return unquote(f"/{rest}".rstrip("/") or "/"), form, query


async def _read_body(request: web.BaseRequest) -> dict[str, str]:
    body = await request.read()
    if request.method not in {"PUT", "POST"}:
        if body:
            text = f"Unexpected content for method '{request.method}'"
            raise ApiError(501, text, plain=text)
        return {}
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not body:
        return {}
    if kind == "application/json":
        return _read_json(body)
    if kind not in {"", "application/x-www-form-urlencoded"}:
        text = f"upload 'Content-Type '{kind}' not implemented"
        raise ApiError(506, text, plain=text)
    params: dict[str, str] = {}
    for key, value in parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True):
        params[key] = f"{params[key]}\0{value}" if key in params else value
    return params


def _read_json(body: bytes) -> dict[str, str]:
    text = body.decode("utf-8", "replace")
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken_json(text, error) from None
    if not isinstance(given, dict):
        raise ApiError(500, "Not a HASH reference", plain="Not a HASH reference\n")
    return {key: _as_text(value) for key, value in given.items() if value is not None}


def _broken_json(text: str, error: json.JSONDecodeError) -> ApiError:
    rest = text[error.pos : error.pos + 20] or "(end of string)"
    before = f'"{rest.rstrip("}")}"' if rest != "(end of string)" else rest
    wanted = "'\"' expected" if error.msg.startswith("Expecting property name") else "malformed JSON string, neither tag, array, object, number, string or atom"
    line = f"{wanted}, at character offset {error.pos} (before {before}) at /usr/share/perl5/PVE/APIServer/AnyEvent.pm line 934."
    return ApiError(500, line, plain=f"{line}\n")


def _as_text(value: t.Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    if isinstance(value, list):
        return ",".join(_as_text(item) for item in value)
    return str(value)


def _trouble(scripted: Fault | None) -> Trouble | None:
    if scripted is None or scripted.kind not in {"stuck", "failed", "warnings"}:
        return None
    details = scripted.details
    return Trouble(scripted.kind, details.get("exitstatus", "command failed: exit code 1"), list(details.get("log", [])))


# faults before a request is carried out, and after


async def _fault_error(request: web.BaseRequest, scripted: Fault) -> None:
    details = scripted.details
    reason, body = details.get("reason", "Internal Server Error"), details.get("body")
    raise ApiError(details.get("status", 500), reason, details.get("errors"), plain=body, bare=bool(details.get("bare")))


async def _fault_delay(request: web.BaseRequest, scripted: Fault) -> None:
    await asyncio.sleep(scripted.details.get("seconds", 1.0))


async def _fault_cut(request: web.BaseRequest, scripted: Fault) -> None:
    await request.read()
    _cut(request)
    raise ApiError(595, "Connection reset by peer", bare=True)


async def _fault_unreachable(request: web.BaseRequest, scripted: Fault) -> None:
    raise ApiError(595, scripted.details.get("reason", "No route to host"), bare=True)


_BEFORE: dict[str, t.Callable[[web.BaseRequest, Fault], t.Awaitable[None]]] = {
    "error": _fault_error,
    "delay": _fault_delay,
    "cut": _fault_cut,
    "unreachable": _fault_unreachable,
}


async def _withhold(request: web.BaseRequest, scripted: Fault) -> None:
    """Keep an answer back for good, or for longer than a client waits."""
    if scripted.kind == "lost":
        _cut(request)
    else:
        await asyncio.sleep(scripted.details.get("seconds", LATE))


def _cut(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


# answers


def _fail(request: web.BaseRequest, error: ApiError) -> web.Response:
    reason = error.text.split("\n")[0]
    if error.bare:
        return _finish(request, web.Response(status=error.status, reason=reason, headers=HEADERS))
    if error.plain is not None:
        return _finish(request, web.Response(status=error.status, reason=reason, headers=HEADERS, body=error.plain.encode()))
    message = error.text if not error.newline or error.text.endswith("\n") else f"{error.text}\n"
    body: dict[str, t.Any] = {"data": None, "message": message}
    if error.errors is not None:
        body["errors"] = error.errors
    return _respond(request, error.status, reason if error.text != VERIFICATION else VERIFICATION, body)


def _respond(request: web.BaseRequest, status: int, reason: str, body: dict[str, t.Any]) -> web.Response:
    raw = json.dumps(_shuffled(body), ensure_ascii=False, separators=(",", ":")).encode()
    headers = HEADERS | {"Content-Type": JSON_TYPE}
    if len(raw) > COMPRESSED_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        raw = packer.compress(raw) + packer.flush()
        headers["Content-Encoding"] = "gzip"
    return _finish(request, web.Response(status=status, reason=reason, headers=headers, body=raw))


def _finish(request: web.BaseRequest, response: web.Response) -> web.Response:
    if response.status >= 400:
        response.force_close()
    return response


def _shuffled(value: t.Any, depth: int = 0) -> t.Any:
    """Keys and the entries of lists of guests, snapshots and keys come in no order; log lines, points and workers keep theirs."""
    if isinstance(value, dict):
        keys = list(value)
        begin = int(random.random() * len(keys))  # no order to rely on, at a fraction of a shuffle's price
        return {key: _shuffled(value[key], depth + 1) for key in keys[begin:] + keys[:begin]}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        entries = list(value)
        if depth == 1 and not {"time", "n", "upid", "subdir", "cmd"} & value[0].keys():
            random.shuffle(entries)
        return [_shuffled(entry, depth + 1) for entry in entries] if "time" not in value[0] else entries
    return value
