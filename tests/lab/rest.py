"""A server on loopback that keeps what it is given as JSON, and remembers who asked for what; what stubs of job runners have in common."""

from __future__ import annotations

import abc
import contextlib
import http.server
import json
import ssl
import threading
import typing as t
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import trustme

Row = dict[str, t.Any]


class Refusal(Exception):
    """What the server refuses, with its code and its words."""

    def __init__(self, code: int, words: t.Any) -> None:
        super().__init__(f"{code}: {words}")
        self.code = code
        self.words = words


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    body: t.Any


class Rest(abc.ABC):
    """Answers requests by ``answer``, one at a time, to whoever has the token."""

    token = "lab-token-3141592653"
    headers: t.ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.url = ""
        self._lock = threading.Lock()

    @abc.abstractmethod
    def answer(self, method: str, path: str, query: dict[str, str], body: t.Any) -> tuple[int, t.Any]:
        """The status and the body of the answer to a request."""

    def writes(self) -> list[Call]:
        """The requests that were not only for reading."""
        return [call for call in self.calls if call.method not in ("GET", "HEAD", "OPTIONS")]

    @contextlib.contextmanager
    def running(self, tls: Path | None = None) -> t.Iterator[t.Self]:
        """Answer on a port of loopback. ``tls`` is a folder for its authority's certificate, ``ca.pem``; without one it speaks plain HTTP."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
        if tls:
            authority, secure = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.cert_pem.write_to_path(str(tls / "ca.pem"))
            authority.issue_cert("127.0.0.1").configure_cert(secure)
            server.socket = secure.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _asked(self, method: str, target: str, authorization: str, content: bytes) -> tuple[int, t.Any]:
        address = urlsplit(target)
        with self._lock:
            body = json.loads(content) if content else None
            self.calls.append(Call(method, address.path, body))
            if authorization != f"Bearer {self.token}":
                return 401, {"detail": "Authentication credentials were not provided."}
            query = {name: values[-1] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
            try:
                return self.answer(method, address.path, query, body)
            except Refusal as refusal:
                return refusal.code, refusal.words

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        rest = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: t.Any) -> None:
                """Tests look at what was asked by themselves."""

            def _any(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                code, answer = rest._asked(self.command, self.path, self.headers.get("Authorization", ""), content)
                told = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(code)
                for name, value in {"Content-Type": "application/json", "Content-Length": str(len(told)), **rest.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(told)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

        return Handler
