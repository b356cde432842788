"""What can be read about workers, and their abortion."""

from __future__ import annotations

import typing as t

from tests.lab.proxmox.calls import Call, Route
from tests.lab.proxmox.errors import refuse
from tests.lab.proxmox.schema import BOOLEAN, COUNT, INTEGER, STRING, Param, enum
from tests.lab.proxmox.tasks import UPID, Task


def _owns(call: Call, owner: str) -> bool:
    """A token owns its own workers; a user those of its tokens too."""
    return owner == str(call.who) or (call.who.token is None and owner.partition("!")[0] == call.who.user)


def _find(call: Call, privilege: str) -> Task | None:
    """The worker, if there is one; those of others want a privilege on the node."""
    match = UPID.fullmatch(call.params["upid"])
    if not match:
        raise refuse({"upid": "unable to parse worker upid"})
    if not _owns(call, match[7]):
        call.demand(f"/nodes/{call.node}", privilege)
    return call.tasks.get(call.params["upid"])


def status(call: Call) -> dict[str, t.Any]:
    task = _find(call, "Sys.Audit")
    if task is None:
        raise refuse({"upid": "no such task"})
    return task.summary()


def log(call: Call) -> t.Any:
    task = _find(call, "Sys.Audit")
    if task is None:
        call.total = 1
        line = {"n": 1, "t": "unable to open file - No such file or directory"}
        return [line] if call.world.release >= "9" else line
    start, limit = call.integer("start", 0), call.integer("limit", 50)
    call.total = len(task.log)
    lines = [{"n": number, "t": line} for number, line in enumerate(task.log, 1)]
    return lines[start : start + limit if limit else None]


def listing(call: Call) -> list[dict[str, t.Any]]:
    """Newest first; without ``source`` only those that have ended."""
    source = call.text("source", "archive")
    auditor = call.may(f"/nodes/{call.node}", "Sys.Audit")
    tasks = [task for task in reversed(call.tasks.on(call.node)) if auditor or _owns(call, str(task.who))]
    active = [task for task in tasks if task.status is None and source != "archive"]
    ended = [task for task in tasks if task.status is not None and source != "active"]
    chosen = [task for task in active + ended if _matches(call, task)]
    call.total = len(chosen)
    start, limit = call.integer("start", 0), call.integer("limit", 50)
    return [task.listed() for task in chosen[start : start + limit if limit else None]]


def everywhere(call: Call) -> list[dict[str, t.Any]]:
    """The newest workers of all nodes."""
    auditor = call.may("/", "Sys.Audit")
    return [task.listed() for task in reversed(call.tasks.everything()) if auditor or _owns(call, str(task.who))][:25]


def _matches(call: Call, task: Task) -> bool:
    wanted = call.params
    if call.flag("errors") and (task.status is None or task.status == "OK"):
        return False
    if "statusfilter" in wanted and _outcome(task) not in wanted["statusfilter"].split(","):
        return False
    return (
        wanted.get("vmid", task.about) == task.about
        and wanted.get("typefilter", task.kind) == task.kind
        and wanted.get("userfilter", "").lower() in str(task.who).lower()
        and int(wanted.get("since", 0)) <= task.began <= int(wanted.get("until", 2**62))
    )


def _outcome(task: Task) -> str:
    if task.status is None or task.status == "unexpected status":
        return "unknown"
    if task.status.startswith("WARNINGS"):
        return "warning"
    return "ok" if task.status == "OK" else "error"


def abort(call: Call) -> None:
    task = _find(call, "Sys.Modify")
    if task is None:
        raise refuse({"upid": "no such task"})
    if task.runner and task.status is None:
        task.runner.cancel()


def index(call: Call) -> list[dict[str, str]]:
    return [{"name": "log"}, {"name": "status"}]


def routes() -> list[Route]:
    upid = {"upid": Param(optional=False)}
    filters = {
        "errors": BOOLEAN,
        "limit": COUNT,
        "since": INTEGER,
        "source": enum("archive", "active", "all"),
        "start": COUNT,
        "statusfilter": STRING,
        "typefilter": STRING,
        "until": INTEGER,
        "userfilter": STRING,
        "vmid": Param("integer", 100, 999999999),
    }
    return [
        Route("GET", "/cluster/tasks", everywhere, {}),
        Route("GET", "/nodes/{node}/tasks", listing, filters),
        Route("GET", "/nodes/{node}/tasks/{upid}", index, upid, proxied=False),
        Route("DELETE", "/nodes/{node}/tasks/{upid}", abort, upid),
        Route("GET", "/nodes/{node}/tasks/{upid}/status", status, upid),
        Route("GET", "/nodes/{node}/tasks/{upid}/log", log, upid | {"start": COUNT, "limit": COUNT, "download": BOOLEAN}),
    ]
