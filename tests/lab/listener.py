"""A server on loopback that takes what others send to people, or to a rulebook, and keeps it."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import typing as t
from dataclasses import dataclass, field


@dataclass
class Listener:
    """What was sent to ``port``: the headers and the body, JSON, of each."""

    port: int
    heard: list[tuple[t.Mapping[str, str], dict[str, t.Any]]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, t.Any]]:
        return [body for _headers, body in self.heard]


@contextlib.contextmanager
def listening() -> t.Iterator[Listener]:
    """A listener while it listens."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            listener.heard.append((dict(self.headers), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: t.Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        listener = Listener(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield listener
        finally:
            server.shutdown()
            thread.join()
