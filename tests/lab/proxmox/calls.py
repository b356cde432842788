"""A request on its way through the rules, and the table of what can be asked for."""

from __future__ import annotations

import collections
import dataclasses
import typing as t

from tests.lab.proxmox.access import Identity
from tests.lab.proxmox.errors import ApiError, not_implemented, refuse
from tests.lab.proxmox.model import Guest, World
from tests.lab.proxmox.schema import NODE, VMID, Param, verify
from tests.lab.proxmox.tasks import Job, Task, Tasks, Trouble

SKIPLOCK = "Only root may use this option."


@dataclasses.dataclass
class Call:
    """One request: ``params`` are those of path, query and body together, as text."""

    world: World
    tasks: Tasks
    who: Identity
    params: dict[str, str]
    trouble: Trouble | None = None
    total: int | None = None

    @property
    def node(self) -> str:
        return self.world.local if self.params["node"] == "localhost" else self.params["node"]

    @property
    def vmid(self) -> int:
        return int(self.params["vmid"])

    def container(self) -> Guest:
        return self.world.container(self.node, self.vmid)

    def text(self, name: str, default: str = "") -> str:
        return self.params.get(name, default)

    def integer(self, name: str, default: int) -> int:
        return int(self.params.get(name, default))

    def flag(self, name: str) -> bool:
        return self.params.get(name) == "1"

    def demand(self, path: str, *names: str) -> None:
        self.world.access.demand(self.who, path, *names)

    def may(self, path: str, name: str) -> bool:
        return self.world.access.may(self.who, path, name)

    def fork(self, kind: str, about: str | int, body: t.Callable[[Task], t.Awaitable[None]]) -> str:
        """Start a worker; the answer is its UPID."""
        return self.tasks.start(Job(self.node, kind, str(about), self.who), body, self.trouble).upid

    def refuse_skiplock(self) -> None:
        if self.flag("skiplock") and not self.who.root:
            raise refuse({"skiplock": SKIPLOCK})


Handler = t.Callable[[Call], t.Any]
Rule = t.Callable[[Call], None]


@dataclasses.dataclass(frozen=True)
class Route:
    """``needs`` is the permission rule; ``proxied`` requests are answered by the node in the path; ``numbered`` ones take mp0, net0 and the like."""

    method: str
    path: str
    handler: Handler
    params: dict[str, Param]
    needs: Rule | None = None
    proxied: bool = True
    open: bool = False
    tokens: bool = True
    numbered: bool = False
    since: str = "8"


def perm(path: str, *names: str, any_of: bool = False) -> Rule:
    """The rule that wants privileges on a path, whose ``{vmid}`` and the like come from the request."""

    def rule(call: Call) -> None:
        filled = path.format_map(collections.defaultdict(str, call.params))
        if any_of:
            call.world.access.demand_any(call.who, filled, *names)
        else:
            call.world.access.demand(call.who, filled, *names)

    return rule


_PATH_PARAMS = {"node": NODE, "vmid": VMID}


class Routes:
    """Requests by method and path."""

    def __init__(self, routes: t.Iterable[Route], release: str) -> None:
        self._tree: dict[str, t.Any] = {}
        for route in routes:
            if release < route.since:
                continue
            names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
            known = {name: _PATH_PARAMS.get(name, Param()).needed() for name in names}
            branch = self._tree
            for part in route.path.strip("/").split("/"):
                branch = branch.setdefault("{}" if part.startswith("{") else part, {})
            branch.setdefault("", {})[route.method] = (dataclasses.replace(route, params=known | route.params), names)

    def find(self, method: str, path: str, parts: list[str]) -> tuple[Route, dict[str, str]]:
        """The route and what its path says; 501 where there is none."""
        branch, values = self._tree, []
        for part in parts:
            if part in branch and part:
                branch = branch[part]
            elif "{}" in branch and part:
                branch = branch["{}"]
                values.append(part)
            else:
                raise not_implemented(method, path)
        found = branch.get("", {}).get(method)
        if not found:
            raise not_implemented(method, path)
        return found[0], dict(zip(found[1], values, strict=True))


def run(route: Route, call: Call, in_path: dict[str, str]) -> t.Any:
    """Check a request in the server's own order and carry it out: a result, or something to await."""
    for name, value in in_path.items():
        if call.params.get(name, value) != value:
            raise refuse({name: "duplicate parameter (already defined in URI) with conflicting values!"})
    call.params |= in_path
    if not route.tokens and call.who.token:
        raise ApiError(403, f"Permission check failed (URI '{route.path}' not available with API token, need proper ticket.\n)")
    if route.needs and not call.who.root:
        route.needs(call)
    if route.proxied and "node" in call.params:
        _reach(call)
    if wrong := verify(call.params, route.params, numbered=route.numbered):
        raise refuse(wrong)
    return route.handler(call)


def _reach(call: Call) -> None:
    name = call.params["node"]
    if name == "localhost":
        return
    node = call.world.nodes.get(name)
    if node is None:
        raise ApiError(500, f"hostname lookup '{name}' failed - failed to get address info for: {name}: {call.world.resolver}")
    if not node.online:
        raise ApiError(595, "No route to host", bare=True)
