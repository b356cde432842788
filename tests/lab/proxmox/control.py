"""The control port: what a test sets and looks at behind the API's back. Plain HTTP, JSON in and out."""

from __future__ import annotations

import dataclasses
import json
import typing as t

from aiohttp import web

from tests.lab.proxmox import backups, state
from tests.lab.proxmox.model import World
from tests.lab.proxmox.server import Api
from tests.lab.proxmox.usage import workload

Command = t.Callable[[dict[str, t.Any]], t.Any]


class Control:
    """Commands by name; ``renew`` puts another state into the server."""

    def __init__(self, api: Api, renew: t.Callable[[dict[str, t.Any] | None], t.Awaitable[None]]) -> None:
        self._api = api
        self._renew = renew
        self._commands: dict[str, Command] = {
            "requests": self._requests,
            "clear": self._clear,
            "read_only": self._read_only,
            "fault": self._fault,
            "clear_faults": self._clear_faults,
            "state": self._state,
            "guest": self._guest,
            "set_guest": self._set_guest,
            "add_guest": self._add_guest,
            "remove_guest": self._remove_guest,
            "set_node": self._set_node,
            "set_storage": self._set_storage,
            "set_cluster": self._set_cluster,
            "move": self._move,
            "advance": self._advance,
            "backup": self._backup,
            "history": self._history,
            "release": self._release,
            "reset": self._reset,
            "tokens": self._tokens,
        }
        self.server = web.Server(self.handle, access_log=None)

    @property
    def _world(self) -> World:
        return self._api.world

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        command = self._commands.get(request.path.strip("/"))
        if command is None:
            return web.json_response({"error": "no such command"}, status=404)
        body = await request.read()
        self._world.access.forget()
        try:
            answer = command(json.loads(body) if body else {})
            if hasattr(answer, "__await__"):
                answer = await answer
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
        return web.json_response({"result": answer})

    def _requests(self, given: dict[str, t.Any]) -> list[dict[str, t.Any]]:
        return [dataclasses.asdict(seen) | {"login": seen.login} for seen in self._api.requests]

    def _clear(self, given: dict[str, t.Any]) -> None:
        self._api.requests.clear()

    def _read_only(self, given: dict[str, t.Any]) -> None:
        self._api.read_only = bool(given["on"])

    def _fault(self, given: dict[str, t.Any]) -> None:
        self._api.faults.add(given)

    def _clear_faults(self, given: dict[str, t.Any]) -> None:
        self._api.faults.clear()

    def _state(self, given: dict[str, t.Any]) -> dict[str, t.Any]:
        tasks = [task.summary() | {"log": task.log} for task in self._api.tasks.everything()]
        return state.describe(self._world) | {"tasks": tasks}

    def _guest(self, given: dict[str, t.Any]) -> dict[str, t.Any]:
        self._world.catch_up()
        return state.describe_guest(self._world, self._world.guests[given["vmid"]])

    def _set_guest(self, given: dict[str, t.Any]) -> None:
        state.change_guest(self._world, self._world.guests[given["vmid"]], given["changes"])

    def _add_guest(self, given: dict[str, t.Any]) -> None:
        self._world.catch_up()
        if given["vmid"] in self._world.guests:
            raise ValueError(f"guest {given['vmid']} exists")
        guest = state.add_guest(self._world, given["vmid"], given["facts"])
        if given["facts"].get("told", True):
            self._world.told[guest.vmid] = (self._world.now(), self._world.status(guest, self._world.now(), "pvestatd"))

    def _remove_guest(self, given: dict[str, t.Any]) -> None:
        self._world.catch_up()
        del self._world.guests[given["vmid"]]

    def _set_node(self, given: dict[str, t.Any]) -> None:
        self._world.catch_up()
        if given["name"] not in self._world.nodes:
            state.add_node(self._world, given["name"], given["changes"])
            return
        node = self._world.nodes[given["name"]]
        changes = dict(given["changes"])
        if "uptime" in changes:
            changes["booted"] = self._world.now() - changes.pop("uptime")
        self._world.nodes[given["name"]] = dataclasses.replace(node, **changes)

    def _set_storage(self, given: dict[str, t.Any]) -> None:
        known = self._world.storages.get(given["name"])
        if known is None:
            state.load_storage(self._world, given["name"], given["changes"])
        else:
            self._world.storages[given["name"]] = dataclasses.replace(known, **given["changes"])

    def _set_cluster(self, given: dict[str, t.Any]) -> None:
        changes = dict(given["changes"])
        if "default_workload" in changes:
            self._world.default_workload = workload(changes.pop("default_workload"))
        for name, value in changes.items():
            if name not in {"quorate", "cluster", "resolver"}:
                raise ValueError(f"no such fact: {name}")
            setattr(self._world, name, value)

    def _move(self, given: dict[str, t.Any]) -> None:
        self._world.catch_up()
        if given["node"] not in self._world.nodes:
            raise ValueError(f"no such node: {given['node']}")
        guest = self._world.guests[given["vmid"]]
        guest.node = given["node"]
        self._world.note(guest)

    async def _advance(self, given: dict[str, t.Any]) -> float:
        self._world.catch_up()
        await self._world.clock.advance(given["seconds"])
        self._world.catch_up()
        return self._world.now()

    def _backup(self, given: dict[str, t.Any]) -> str:
        node = given.pop("node") or self._world.guests[given["vmids"][0]].node
        return backups.start(self._api.tasks, self._world, backups.Wanted(node, **given))

    def _history(self, given: dict[str, t.Any]) -> None:
        self._world.guests[given["vmid"]].series[given["timeframe"]] = given["points"]

    def _release(self, given: dict[str, t.Any]) -> None:
        self._api.tasks.release()

    async def _reset(self, given: dict[str, t.Any]) -> dict[str, str]:
        await self._renew(given.get("state"))
        return self._tokens({})

    def _tokens(self, given: dict[str, t.Any]) -> dict[str, str]:
        users = self._world.access.users
        return {f"{user}!{name}": token.secret for user, facts in users.items() for name, token in facts.tokens.items()}
