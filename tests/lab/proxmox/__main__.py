"""Serve a simulated Proxmox VE."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import ssl
import stat
import tempfile
import typing as t
from pathlib import Path

import trustme
from aiohttp import web

from tests.lab.containers import Containers
from tests.lab.proxmox import fixtures, state
from tests.lab.proxmox.clock import Clock
from tests.lab.proxmox.control import Control
from tests.lab.proxmox.model import World
from tests.lab.proxmox.real import Real
from tests.lab.proxmox.server import Api

PR_SET_PDEATHSIG = 1


class Service:
    """The API and its control port, in a state that can be renewed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._initial: dict[str, t.Any] = json.loads(Path(options.state).read_text(encoding="utf-8")) if options.state else fixtures.document(options.fixture)
        self._secrets: dict[str, str] = {}
        self.api = Api(self._world(self._initial))
        self.control = Control(self.api, self._renew)

    def _world(self, document: dict[str, t.Any]) -> World:
        """A world in a document's state; tokens keep their secrets from one state to the next, so that clients go on."""
        world = World(self._options.release, self._options.cgroup, Clock(self._options.speed))
        if self._options.containers:
            lab = Containers(Path(self._options.containers))
            world.real = {vmid: Real(lab[vmid]) for vmid in lab.numbers()}
        state.load(world, document)
        for full, facts in document.get("tokens", {}).items():
            user, _, name = full.partition("!")
            token = world.access.users[user].tokens[name]
            if "secret" not in facts:
                token.secret = self._secrets.setdefault(full, token.secret)
        return world

    async def _renew(self, document: dict[str, t.Any] | None) -> None:
        world = self._world(self._initial if document is None else document)
        await self.api.tasks.stop()
        self.api.replace_world(world)

    async def watch(self) -> None:
        """Let pvestatd make its rounds: what real containers use is known at the moment only."""
        while True:
            await self.api.world.clock.sleep(self.api.world.until_tick())
            self.api.world.catch_up()

    def facts(self, port: int, control: int, authority: Path) -> dict[str, t.Any]:
        """The line that tells clients how to connect: the token is root's, or the first one."""
        users = self.api.world.access.users
        tokens = {f"{user}!{name}": token.secret for user, facts in users.items() for name, token in facts.tokens.items()}
        chosen = next((full for full in tokens if full.startswith("root@pam!")), next(iter(tokens), "!"))
        user, _, name = chosen.partition("!")
        return {
            "api_host": "127.0.0.1",
            "api_port": port,
            "api_user": user,
            "api_token_id": name,
            "api_token_secret": tokens.get(chosen, ""),
            "ca_path": str(authority),
            "tokens": tokens,
            "passwords": {name: facts.password for name, facts in users.items() if facts.password},
            "control": f"http://127.0.0.1:{control}",
        }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.proxmox", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="address and port; port 0 is a free one")
    parser.add_argument("--state", help="a JSON file with the state to begin in")
    parser.add_argument("--fixture", choices=["recordings"], help="begin in a state that is built in")
    parser.add_argument("--release", choices=["8.4", "9.2"], default="9.2")
    parser.add_argument("--cgroup", type=int, choices=[1, 2])
    parser.add_argument("--containers", help="the folder of the lab whose real containers the guests of the same numbers are")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds per real one")
    options = parser.parse_args(arguments)
    if options.cgroup is None:
        options.cgroup = 1 if options.fixture == "recordings" else 2
    return options


async def serve(options: argparse.Namespace, folder: Path) -> None:
    service = Service(options)
    host, _, port = options.listen.rpartition(":")
    authority, context = _certify(folder, host)
    api = await _listen(service.api.server, host, int(port), context)
    control = await _listen(service.control.server, "127.0.0.1", 0, None)
    print(json.dumps(service.facts(api, control, authority)), flush=True)
    watch = asyncio.create_task(service.watch()) if options.containers else None
    await _end()
    if watch:
        watch.cancel()
    await service.api.tasks.stop()


def _certify(folder: Path, host: str) -> tuple[Path, ssl.SSLContext]:
    issuer = trustme.CA()
    authority = folder / "ca.pem"
    issuer.cert_pem.write_to_path(str(authority))
    authority.chmod(0o644)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issuer.issue_cert(host, "localhost").configure_cert(context)
    return authority, context


async def _listen(server: web.Server, host: str, port: int, context: ssl.SSLContext | None) -> int:
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=context)
    await site.start()
    return int(runner.addresses[0][1])


async def _end() -> None:
    """Return when the process is told to end, or when who started it is gone."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    else:  # no pipe that closes with its other end; the signal would come at the end of the thread that started this, too
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    await ended.wait()


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="proxmox-lab-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        asyncio.run(serve(options, folder))


if __name__ == "__main__":
    main()
