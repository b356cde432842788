"""A wire to the engine that can be watched and cut: what passes is the real client's and the real engine's."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
import typing as t
from pathlib import Path


class Wire:
    """A socket that passes everything on to the engine's.

    ``before_write`` is called with the number of each request that writes, counted from 1, before that is passed on; when it returns
    ``"cut"``, the request is passed on and the reply is not; with ``"late"`` it is passed on two seconds later. ``answer_writes`` is what a proxy that
    guards the engine answers itself, ``answer_reads`` what it answers to the rest.
    """

    def __init__(self, path: Path, upstream: Path) -> None:
        self.docker_host = f"unix://{path}"
        self.connections = 0
        self.writes = 0
        self.answer_writes = b""
        self.answer_reads = b""
        self.before_write: t.Callable[[int], str | None] = lambda number: None
        self._path, self._upstream = path, upstream
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Be gone, as the socket of an engine that was killed and cleaned up is."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX)
        with client, engine, contextlib.suppress(OSError):
            engine.connect(str(self._upstream))
            replies = threading.Thread(target=self._pass_replies, args=(engine, client), daemon=True)
            replies.start()
            while data := client.recv(65536):
                if not data.startswith((b"GET ", b"HEAD ")):
                    data = _whole(data, client)
                    with self._lock:
                        self.writes += 1
                        verdict = self.before_write(self.writes)
                    if self.answer_writes:
                        client.sendall(self.answer_writes)
                        break
                    if verdict == "late":
                        time.sleep(2)
                    if verdict == "cut":
                        client.shutdown(socket.SHUT_RDWR)
                        engine.sendall(data)
                        replies.join(timeout=10)
                        break
                elif self.answer_reads:
                    client.sendall(self.answer_reads)
                    break
                engine.sendall(data)

    @staticmethod
    def _pass_replies(engine: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := engine.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


def said(status: int, words: str) -> bytes:
    """A proxy's answer."""
    message = json.dumps({"message": words}).encode()
    head = f"HTTP/1.1 {status} {words}\r\nContent-Type: application/json\r\nContent-Length: {len(message)}\r\nConnection: close\r\n\r\n"
    return head.encode() + message


def _whole(data: bytes, client: socket.socket) -> bytes:
    """The whole request: a client may send its body after its head."""
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += client.recv(length - len(body))
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def wire(folder: Path, docker_host: str) -> t.Iterator[Wire]:
    """A wire to the engine at a unix socket."""
    opened = Wire(folder / "wire.sock", Path(docker_host.removeprefix("unix://")))
    try:
        yield opened
    finally:
        opened.close()


class SessionWire:
    """A socket that passes everything on to PostgreSQL's. ``before_statement`` is called before what matches ``watched`` is passed on; when it returns
    ``"cut"``, the statement is passed on and the client is gone. While ``closed``, nobody is let in, and those who are in are gone.
    """

    def __init__(self, folder: Path, upstream: Path, port: int, watched: str) -> None:
        self.folder = folder
        self.watched = re.compile(watched.encode())
        self.before_statement: t.Callable[[], str | None] = lambda: None
        self.closed = False
        self._upstream = upstream / f".s.PGSQL.{port}"
        self._clients: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / f".s.PGSQL.{port}"))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Be gone, until ``closed`` is false again."""
        self.closed = True
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = self._listener.accept()
                if self.closed:
                    client.close()
                    continue
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with client, server, contextlib.suppress(OSError):
            self._clients.add(client)
            server.connect(str(self._upstream))
            threading.Thread(target=Wire._pass_replies, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                if self.watched.search(data) and self.before_statement() == "cut":
                    client.shutdown(socket.SHUT_RDWR)
                    server.sendall(data)
                    self._until_it_was_done(server)
                    break
                server.sendall(data)
        self._clients.discard(client)

    @staticmethod
    def _until_it_was_done(server: socket.socket) -> None:
        """Wait a little: a server looks after a statement only whether its client is still there."""
        server.settimeout(2)
        with contextlib.suppress(OSError):
            server.recv(65536, socket.MSG_PEEK)
