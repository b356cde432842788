# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxmox VE, seen and spoken to through proxmoxer.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import contextlib
import email.utils
import queue
import re
import time
import traceback
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from ansible.module_utils.basic import env_fallback, missing_required_lib

from ansible_collections.homelab.healer.plugins.module_utils._backups import KIND, LOCK, in_turn, places
from ansible_collections.homelab.healer.plugins.module_utils._change import Values
from ansible_collections.homelab.healer.plugins.module_utils._errors import (
    Conflict,
    Denied,
    HealerError,
    Invalid,
    MissingLibrary,
    NotFound,
    Refused,
    TaskFailed,
    TimedOut,
    Unreachable,
    together,
)
from ansible_collections.homelab.healer.plugins.module_utils._guests import RESOURCES, Guest, Node, body, grant, pool_of, resources, unlock
from ansible_collections.homelab.healer.plugins.module_utils._snapshots import History, Snapshot

try:
    import requests
    from proxmoxer import ProxmoxAPI
    from proxmoxer.core import AuthenticationError, ResourceException

    IMPORT_ERROR: str | None = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

OPTIONS: dict[str, t.Any] = dict(
    api_host=dict(type="str", required=True, fallback=(env_fallback, ["PROXMOX_HOST"])),
    api_port=dict(type="int", default=8006, fallback=(env_fallback, ["PROXMOX_PORT"])),
    api_user=dict(type="str", required=True, fallback=(env_fallback, ["PROXMOX_USER"])),
    api_password=dict(type="str", no_log=True, fallback=(env_fallback, ["PROXMOX_PASSWORD"])),
    api_token_id=dict(type="str", no_log=False, fallback=(env_fallback, ["PROXMOX_TOKEN_ID"])),
    api_token_secret=dict(type="str", no_log=True, fallback=(env_fallback, ["PROXMOX_TOKEN_SECRET"])),
    validate_certs=dict(type="bool", default=True, fallback=(env_fallback, ["PROXMOX_VALIDATE_CERTS"])),
    ca_path=dict(type="path", fallback=(env_fallback, ["PROXMOX_CA_PATH"])),
    api_timeout=dict(type="int", default=60, fallback=(env_fallback, ["PROXMOX_API_TIMEOUT"])),
)
CREDENTIALS: dict[str, t.Any] = dict(required_one_of=[("api_password", "api_token_id")], required_together=[("api_token_id", "api_token_secret")])
"""What the connection's options need of each other, for ``AnsibleModule``."""
WAIT: dict[str, t.Any] = dict(wait_lock=dict(type="float", default=30.0))
"""The option of every module that changes a container."""
TARGETS: dict[str, t.Any] = dict(vmid=dict(type="list", elements="int", required=True, aliases=["lxc_id"]))
READS_AT_ONCE = 8
POLL_FIRST, POLL_MOST = 0.1, 1.0
"""Seconds between two looks at a task or a lock: short tasks are told soon, long ones do not keep the node busy."""
LOG_LINES = 5
"""How many of a failed task's last log lines an error carries."""
TAKES_EFFECT = 11.0
"""Seconds in which a change without an answer may still be stored: a node waits 10 for the lock of a configuration."""
FOUND_LATER = 3.0
"""Seconds in which a task may appear whose request got no answer."""
UNHEARD = 30.0
"""Seconds for which what has begun is followed although nobody answers, as while the node's API is restarted."""

LOCKED = "CT is locked"
BUSY = "got timeout"
REFUSALS: tuple[tuple[int, str, type[HealerError], str], ...] = (
    (400, "unable to hotplug memory", Conflict, "It uses more than the limit: free memory in the container, or choose a higher limit."),
    (400, "unable to hotplug swap", Conflict, "It uses more than both limits together: free memory in the container, or choose a higher limit."),
    (400, "unable to hotplug", TaskFailed, "The node's kernel refused the value, and nothing was stored; look into the node's journal."),
    (400, "no such task", NotFound, "Look into the node's task list."),
    (400, "", Invalid, "Correct the value; the node's words say what it takes."),
    (401, "", Denied, "Check api_user, and api_password or api_token_id and api_token_secret; a token's id has at least two characters."),
    (403, "", Denied, ""),
    (404, "", Invalid, "Check api_host and api_port: that is not the API of Proxmox VE."),
    (405, "", Refused, "Something between here and the node lets nobody write; nothing was changed."),
    (500, LOCKED, Conflict, ""),
    (500, BUSY, Conflict, "Another task holds the container, such as a shutdown; wait_lock waits longer for it."),
    (500, "detected modified configuration", Conflict, "Somebody else changed it in the same moment; run this again."),
    (500, "does not exist", NotFound, "Look with pct list on its node; it may have been removed or moved."),
    (500, "not running", Conflict, "It was stopped in the meantime; run this again."),
    (500, "already running", Conflict, "It was started in the meantime; run this again."),
    (500, "hostname lookup", NotFound, "Name a node of this cluster, as pvesh get /nodes lists them."),
    (500, "no quorum", Unreachable, "The cluster has no quorum, so it takes no changes; bring its nodes back first."),
    (500, "RPCEnvironment init request failed", Unreachable, "The node's cluster file system is down: systemctl status pve-cluster there."),
    (500, "snapshot feature is not available", Refused, "One of its volumes or mount points cannot be snapshotted; homelab.healer.doctor names it."),
    (500, "is not most recent snapshot", Refused, "Its storage goes back to the newest snapshot only: remove the newer ones, or go back to the newest."),
    (500, "already used", Conflict, "Choose another name, or remove that snapshot."),
    (500, "incomplete snapshot", Conflict, "That snapshot failed half-way; remove it, and make a new one."),
    (500, "replication running", Conflict, "Wait until the replication is done."),
    (501, "", Invalid, "This release of Proxmox VE does not have that request."),
    (595, "", Unreachable, "The node does not answer the one that was asked; look whether it is up."),
)
"""What the server's refusals mean, as an HTTP status or the end of a task (counted as 500): a phrase, the failure, and what to do. The first that fits."""
IN_DOUBT = (502, 503, 504, 596, 597, 598, 599)
"""Answers after which the node may have carried out the request all the same."""
PERMISSION = re.compile(r"\((?P<path>/[^,\s]*), (?P<privileges>[A-Za-z.|,\s]+)\)")


@contextlib.contextmanager
def connect(params: t.Mapping[str, t.Any]) -> t.Iterator[Cluster]:
    """Speak to the cluster that the connection options name. With a token there is no log-in; with a password there is one."""
    if IMPORT_ERROR:
        why = missing_required_lib("proxmoxer and requests")
        raise MissingLibrary("cannot speak to Proxmox VE", why=why, fix="Install them where this module runs: pip install 'proxmoxer>=2.2' requests.")
    host, user, token = params["api_host"], params["api_user"].partition("!")[0], (params["api_token_id"] or "").rpartition("!")[2]
    what = f"cannot connect to Proxmox VE at {host}:{params['api_port']}"
    if params["api_timeout"] <= 0:
        raise Invalid(what, why="api_timeout is not above 0", fix="Give seconds, at least 30: a node may wait 10 for a lock.")
    credentials = dict(token_name=token, token_value=params["api_token_secret"]) if token else dict(password=params["api_password"])
    with translated(what):
        api = ProxmoxAPI(
            host,
            port=params["api_port"],
            user=user,
            verify_ssl=(params["ca_path"] or True) if params["validate_certs"] else False,
            timeout=params["api_timeout"],
            **credentials,
        )
        cluster = Cluster(api, user, token, params.get("wait_lock") or 0)
    try:
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def translated(what: str, writing: bool = False) -> t.Iterator[None]:
    """Tell the library's errors as ours. ``writing``: a lost reply leaves open whether the write happened."""
    try:
        yield
    except ResourceException as error:
        raise refusal(what, error.status_code, _said(error), writing) from error
    except AuthenticationError as error:
        raise Denied(what, why=str(error), fix="Check api_user with its realm (as in root@pam), and api_password.") from error
    except requests.exceptions.Timeout as error:
        raise TimedOut(what, why=str(error), fix="Look whether the node hangs; a longer api_timeout may do.", uncertain=writing) from error
    except (requests.exceptions.RequestException, OSError) as error:
        raise _lost(what, error, writing) from error


def _said(error: ResourceException) -> str:
    """The server's own words: its reason phrase, and what it says of each parameter."""
    errors = error.errors if isinstance(error.errors, dict) else {}
    told = "; ".join(f"{name}: {str(text).strip()}" for name, text in errors.items() if name != "errors")
    return f"{error.content} {told}".strip() if told else str(error.content or error.status_message)


def refusal(what: str, status: int, said: str, writing: bool = False) -> HealerError:
    """The failure that an answer of the server means, ``said`` being its words."""
    for code, phrase, failure, fix in REFUSALS:
        if status == code and phrase in said:
            return failure(what, why=said, fix=fix or _advice(said))
    return TaskFailed(what, why=f"HTTP {status}: {said}", fix="Look into the node's journal.", uncertain=writing and status in IN_DOUBT)


def _advice(said: str) -> str:
    found = PERMISSION.search(said)
    if found:
        return grant(found["path"], [f"one of {found['privileges'].replace('|', ', ')}" if "|" in found["privileges"] else found["privileges"]])
    lock = re.search(r"CT is locked \((?P<lock>[a-z-]+)\)", said)
    return unlock(0, lock["lock"]).replace("pct unlock 0", "pct unlock") if lock else "Let an administrator grant what the server's words ask for."


def _lost(what: str, error: BaseException, writing: bool) -> HealerError:
    if isinstance(error, requests.exceptions.SSLError):
        fix = "Give the cluster's authority (/etc/pve/pve-root-ca.pem of a node) as ca_path, and as api_host a name that stands in the certificate."
        return Unreachable(what, why=str(error), fix=fix)
    if isinstance(error, OSError) and "CA certificate" in str(error):
        return Invalid(what, why=str(error), fix="Give the path of the authority's certificate as ca_path.")
    never = any(phrase in str(error) for phrase in ("Connection refused", "Name or service not known", "No route to host", "Failed to resolve"))
    return Unreachable(what, why=str(error), fix="Look whether the node is up, and api_host and api_port name it.", uncertain=writing and not never)


@dataclass(frozen=True)
class Task:
    """A request that starts a task: its type as in a UPID, the method, the path below the container's own, the parameters."""

    kind: str
    method: str
    path: str
    params: t.Mapping[str, t.Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A task that succeeded, and what it warned of."""

    upid: str
    warnings: tuple[str, ...] = ()

    @property
    def started(self) -> int:
        """When it began, in seconds by its node's clock."""
        return int(self.upid.split(":")[4], 16)


class Cluster:
    """A connected cluster. Reading is free of side effects; ``configure`` and ``carry_out`` are the two ways to write.

    ``user`` and ``token`` (its id, or empty) are who speaks to it.
    """

    def __init__(self, api: t.Any, user: str, token: str, wait_lock: float) -> None:
        self._api, self.user, self.token, self._wait_lock = api, user, token, wait_lock
        self._sessions: queue.LifoQueue[t.Any] = queue.LifoQueue()
        self._raw: dict[int, tuple[str, ...]] = {}
        self._written: dict[int, set[str]] = {}
        self._begun: set[str] = set()
        self._permissions: dict[str, dict[str, int]] | None = None
        self._ahead = 0.0
        self._judged: float | None = None

    def close(self) -> None:
        """Close all connections."""
        while not self._sessions.empty():
            self._sessions.get_nowait().close()

    @contextlib.contextmanager
    def _session(self) -> t.Iterator[t.Any]:
        """A session for one request at a time: requests does not promise that threads may share one. All have the same log-in."""
        try:
            session = self._sessions.get_nowait()
        except queue.Empty:
            session = self._api._backend.get_session()
            session.hooks["response"].append(self._note_time)
        try:
            yield session
        finally:
            self._sessions.put(session)

    def _note_time(self, response: t.Any, **_more: t.Any) -> None:
        """Learn the node's clock from an answer: what it stamps, such as snapshots and tasks, is by that clock."""
        said = email.utils.parsedate_tz(response.headers.get("Date", ""))
        if said:
            self._ahead = email.utils.mktime_tz(said) - time.time()

    def now(self) -> float:
        """The time by the node's clock, in seconds, good to a second."""
        return time.time() + self._ahead

    def ask(self, method: str, where: str, what: str, /, **params: t.Any) -> t.Any:
        """One request; ``what`` is what its failure could not do. Returns its data."""
        with self._session() as session, translated(what, writing=method != "get"):
            resource = self._api(where.strip("/"))
            resource._store = {**resource._store, "session": session}
            answer = getattr(resource, method)(**params)
        if isinstance(answer, dict) and set(answer) == {"errors"}:  # how the library hands on what is no JSON
            fix = "Something between here and the node answers in its place; check api_host and api_port."
            raise Unreachable(what, why=f"the answer is none of Proxmox VE's: {str(answer['errors'])[:100]}", fix=fix, uncertain=method != "get")
        return answer

    def get(self, where: str, what: str, /, **params: t.Any) -> t.Any:
        """Read what is at a path below the API's root; ``what`` is what a failure could not do. An answer that was lost is asked for once more."""
        try:
            return self.ask("get", where, what, **params)
        except Unreachable:
            time.sleep(POLL_FIRST)
            return self.ask("get", where, what, **params)

    # What there is

    def resources(self) -> list[dict[str, t.Any]]:
        """All nodes, guests and storages that the token may see; figures are up to ten seconds old."""
        return list(self.get("cluster/resources", "cannot list the cluster's guests"))

    def guests(self, vmids: t.Sequence[int] | None, node: str | None = None, known: t.Sequence[t.Mapping[str, t.Any]] = ()) -> list[Guest]:
        """These containers as they are, each once; without ``vmids`` all that can be seen, templates left out. ``node``: where they must be.

        ``known`` are the cluster's resources, where they have just been read.
        """
        known = known or self.resources()
        found = self._placed(known, vmids, node)
        names = sorted({entry["node"] for entry in found})
        self.rules()  # before several threads ask for them
        with ThreadPoolExecutor(READS_AT_ONCE) as workers:
            lists = dict(zip(names, workers.map(self._listed, names)))
            nodes = dict(zip(names, workers.map(lambda name: self._node(name, known, lists[name]), names)))
            live = {int(entry["vmid"]): entry for entries in lists.values() for entry in entries}
            guests = workers.map(lambda entry: self._guest_if(entry, nodes[entry["node"]], live, vmids is None), found)
            return [guest for guest in guests if guest]

    def _guest_if(self, entry: t.Mapping[str, t.Any], node: Node, live: t.Mapping[int, t.Mapping[str, t.Any]], may_go: bool) -> Guest | None:
        """A container; ``None`` for one that is gone by now, where nobody asked for it by its number."""
        try:
            return self._guest(entry, node, live)
        except NotFound:
            if not may_go:
                raise
            return None

    def _placed(self, known: t.Sequence[t.Mapping[str, t.Any]], vmids: t.Sequence[int] | None, node: str | None) -> list[t.Mapping[str, t.Any]]:
        here = {int(entry["vmid"]): entry for entry in known if entry["type"] in ("lxc", "qemu")}
        if vmids is None:
            up = [entry for _vmid, entry in sorted(here.items()) if entry["type"] == "lxc" and entry["node"] not in _offline(known)]
            return [entry for entry in up if not entry.get("template") and node in (None, entry["node"])]
        down = [vmid for vmid in vmids if vmid in here and here[vmid]["node"] in _offline(known)]
        if down:
            what, names = f"cannot ask about {', '.join(map(str, down))}", ", ".join(sorted({here[vmid]["node"] for vmid in down}))
            raise Unreachable(what, why=f"the cluster says that {names} is offline", fix="Bring the node back first.")
        found, errors = [], {}
        for vmid in dict.fromkeys(vmids):
            try:
                found.append(self._place(here.get(vmid), vmid, node))
            except HealerError as error:
                errors[str(vmid)] = error
        if errors:
            raise together(errors)
        return found

    def _place(self, entry: t.Mapping[str, t.Any] | None, vmid: int, node: str | None) -> t.Mapping[str, t.Any]:
        what = f"cannot find container {vmid}"
        if entry is None:
            fix = f"Look with pct list. If it is there, {grant(f'/vms/{vmid}', ['VM.Audit'])[0].lower()}{grant(f'/vms/{vmid}', ['VM.Audit'])[1:]}"
            raise NotFound(what, why="there is none, or this token may not see it", fix=fix)
        if entry["type"] == "qemu":
            raise Refused(what, why="that is a virtual machine", fix="This collection changes containers; virtual machines are only counted.")
        if node not in (None, entry["node"]):
            raise NotFound(f"{what} on {node}", why=f"it is on {entry['node']}", fix="Leave node out, and it is found wherever it is.")
        return entry

    def _listed(self, name: str) -> list[dict[str, t.Any]]:
        """A node's containers with their present usage."""
        return list(self.get(f"nodes/{name}/lxc", f"cannot list the containers of {name}"))

    def _node(self, name: str, known: t.Sequence[t.Mapping[str, t.Any]], listed: t.Sequence[t.Mapping[str, t.Any]]) -> Node:
        facts = next((entry for entry in known if entry["type"] == "node" and entry["node"] == name), {})
        machines = [entry for entry in known if entry["type"] == "qemu" and entry["node"] == name]  # the cluster's figures are ten seconds old
        committed = sum(int(entry.get("maxmem") or 0) for entry in [*machines, *listed] if entry.get("status") == "running") >> 20
        node = Node(name, committed=committed, whole=self._sees_all(), cgroup_version=str(facts.get("cgroup-mode") or ""))
        try:
            status = self.get(f"nodes/{name}/status", f"cannot read the state of {name}")
        except Denied:
            return node
        memory = status["memory"]
        available = memory.get("available", memory["total"] - memory["used"])
        return replace(node, cpus=int(status["cpuinfo"]["cpus"]), memory=memory["total"] >> 20, available=available >> 20)

    def _guest(self, entry: t.Mapping[str, t.Any], node: Node, live: t.Mapping[int, t.Mapping[str, t.Any]]) -> Guest:
        vmid = int(entry["vmid"])
        config, pending = self._configuration(vmid, node.name)
        status = live.get(vmid, {})
        return Guest(
            key=vmid,
            limits=resources(config),
            pending={**{key: value for key, value in pending.items() if key not in RESOURCES}, **_awaited(config, pending)},
            hostname=str(config.get("hostname") or f"CT{vmid}"),
            node=node,
            status=str(status.get("status") or entry.get("status") or "unknown"),
            lock=str(config.get("lock") or ""),
            template=bool(int(config.get("template") or 0)),
            used=int(status["mem"]) >> 20 if status.get("mem") is not None else None,
            digest=str(config.get("digest", "")),
            raw=self._raw[vmid],
            privileges=self.privileges(vmid),
            config=config,
        )

    def _configuration(self, vmid: int, node: str) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
        """What is in effect, and what waits for a restart.

        Only ``config`` has the raw settings, and only ``pending`` has what waits; the look after a write needs the latter alone.
        """
        until, pause = time.monotonic() + self._wait_lock, POLL_FIRST
        while True:
            config, pending = self._read_pending(vmid, node) if vmid in self._written else (self._read_config(vmid, node), None)
            if not config.get("lock") or time.monotonic() > until:
                return config, self._read_pending(vmid, node)[1] if pending is None else pending
            time.sleep(pause)
            pause = min(POLL_MOST, 2 * pause)

    def _read_config(self, vmid: int, node: str) -> dict[str, t.Any]:
        config = dict(self.get(f"nodes/{node}/lxc/{vmid}/config", f"cannot read the configuration of container {vmid}", current=1))
        self._raw[vmid] = tuple(f"{key}: {value}" for key, value in config.pop("lxc", ()))
        return config

    def _read_pending(self, vmid: int, node: str) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
        entries = self.get(f"nodes/{node}/lxc/{vmid}/pending", f"cannot read what is pending for container {vmid}")
        config = {entry["key"]: entry["value"] for entry in entries if "value" in entry}
        return config, {entry["key"]: entry.get("pending") for entry in entries if "pending" in entry or "delete" in entry}

    def histories(self, vmids: t.Sequence[int], *, making: bool = False, back_to: str | None = None) -> list[History]:
        """These containers with their snapshots; ``making``: whether one could be made is asked too, ``back_to``: what that one holds."""
        known = self.resources()
        guests = self.guests(vmids, known=known)
        self._judged = self._judged or self.now()  # what was young enough for the plan has not become too old for the look after the change
        with ThreadPoolExecutor(READS_AT_ONCE) as workers:
            return list(workers.map(lambda guest: self._history(guest, known, making, back_to), guests))

    def _history(self, guest: Guest, known: t.Sequence[t.Mapping[str, t.Any]], making: bool, back_to: str | None) -> History:
        base = f"nodes/{guest.node.name}/lxc/{guest.key}"
        listed = self.get(f"{base}/snapshot", f"cannot list the snapshots of {guest.name}")
        found = [
            Snapshot(entry["name"], int(entry.get("snaptime") or 0), entry.get("snapstate") or "", entry.get("description") or "", entry.get("parent") or "")
            for entry in listed
            if entry["name"] != "current"
        ]
        can = making and bool(int(self.get(f"{base}/feature", f"cannot ask whether {guest.name} can be snapshotted", feature="snapshot")["hasFeature"]))
        held = any(snapshot.name == back_to for snapshot in found)
        return History(
            key=guest.key,
            snapshots=tuple(sorted(found, key=lambda snapshot: (snapshot.taken, snapshot.name))),
            rolled_back=next((str(task["upid"]) for task in self.tasks(guest, "vzrollback")), "never") if back_to else "",
            guest=guest,
            can=can if making else None,
            storages={entry["storage"]: entry for entry in known if entry["type"] == "storage" and entry["node"] == guest.node.name},
            seen=self._judged or self.now(),
            then=dict(self.get(f"{base}/snapshot/{back_to}/config", f"cannot read snapshot {back_to} of {guest.name}")) if held else {},
            ha=bool(back_to) and managed(self.status(guest)),
        )

    def status(self, guest: Guest) -> dict[str, t.Any]:
        """A container's status and usage as its node has it now."""
        return dict(self.get(f"nodes/{guest.node.name}/lxc/{guest.key}/status/current", f"cannot read the status of {guest.name}"))

    def statuses(self, guests: t.Sequence[Guest]) -> dict[int, dict[str, t.Any]]:
        """The status and usage of each of these containers, by number."""
        with ThreadPoolExecutor(READS_AT_ONCE) as workers:
            return dict(zip((guest.key for guest in guests), workers.map(self.status, guests)))

    def series(self, guest: Guest) -> list[dict[str, t.Any]]:
        """The history of a container's usage over a week, the peaks of each interval; nothing for one that is too young to have one."""
        points: list[dict[str, t.Any]] = []
        for timeframe in ("week", "day", "hour"):
            with contextlib.suppress(TaskFailed):
                what = f"cannot read the history of {guest.name}"
                points += self.get(f"nodes/{guest.node.name}/lxc/{guest.key}/rrddata", what, timeframe=timeframe, cf="MAX")
        return points

    def pool(self, guest: Guest, known: t.Sequence[t.Mapping[str, t.Any]]) -> str | None:
        """The pool that a container is in, empty for none, ``None`` if it cannot be known. ``known`` are the cluster's resources."""
        entry = next((entry for entry in known if entry["type"] == "lxc" and int(entry["vmid"]) == guest.key), {})
        return pool_of(guest.key, entry, self.rules())

    def last_backup(self, guest: Guest, known: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[int | None, list[str]]:
        """When the last backup of a container was made that can be seen, in seconds since 1970, and why there may be a later one.

        ``known`` are the cluster's resources.
        """
        storages, unseen = places(guest, known, self.rules())
        taken = []
        for storage in storages:
            try:
                what = f"cannot list the backups on {storage}"
                taken += self.get(f"nodes/{guest.node.name}/storage/{storage}/content", what, content="backup", vmid=guest.key)
            except HealerError as error:
                unseen.append(f"{error.what}: {error.why}")
        return max((int(entry["ctime"]) for entry in taken), default=None), unseen

    def backups(self, guests: t.Sequence[Guest], known: t.Sequence[t.Mapping[str, t.Any]]) -> dict[int, dict[str, t.Any]]:
        """What is known of the backups of each container, by its number.

        ``running``: whether it is being backed up or an active task will come to it, ``None`` if that cannot be known. ``last``: when the last one was
        made that can be seen, in seconds since 1970. ``unseen``: why either may be wrong, empty where neither is.
        """
        nodes = {guest.node.name: guest.node for guest in guests}
        with ThreadPoolExecutor(READS_AT_ONCE) as workers:
            lasts = list(workers.map(lambda guest: self.last_backup(guest, known), guests))
            active = dict(zip(nodes, workers.map(self._active_backups, nodes.values())))
        found = {}
        for guest, (last, unseen) in zip(guests, lasts):
            running, why = _backing_up(guest, *active[guest.node.name], self.pool(guest, known))
            found[guest.key] = dict(running=running, last=last, unseen="; ".join([*why, *unseen]))
        return found

    def _active_backups(self, node: Node) -> tuple[list[tuple[str, list[str]]], str]:
        """The backups that run on a node, each with the number of its guest, or without one and with its log; and why there may be others."""
        where, found = f"nodes/{node.name}/tasks", []
        try:
            for task in self.get(where, f"cannot list the tasks of {node.name}", source="active", typefilter=KIND, limit=1000):
                if task["status"] == "RUNNING":
                    about = str(task.get("id") or "")
                    found.append((about, [] if about else self._lines(node.name, str(task["upid"]))))
        except HealerError as error:
            return found, f"{error.what}: {error.why}"
        return found, "" if node.memory is not None else f"without Sys.Audit on {node.name} a backup that others started cannot be seen"

    def _lines(self, node: str, upid: str) -> list[str]:
        """The log of a task; nothing where it has ended meanwhile and is gone."""
        lines = self.get(f"nodes/{node}/tasks/{upid}/log", f"cannot read the log of the backup {upid}", limit=50000)
        return [str(line["t"]) for line in lines] if isinstance(lines, list) else []

    def interfaces(self, guest: Guest) -> list[dict[str, t.Any]] | None:
        """The network interfaces of a container, none where it is stopped; ``None`` where they cannot be told, as by old releases."""
        try:
            path = f"nodes/{guest.node.name}/lxc/{guest.key}/interfaces"
            return list(self.get(path, f"cannot read the addresses of {guest.name}") or ()) if guest.running else []
        except HealerError:
            return None

    def separated(self) -> bool | None:
        """Whether the token has rights of its own; ``None`` for a password, and for a token that may do no more than it needs."""
        try:
            path = f"access/users/{self.user}/token/{self.token}"
            return bool(int(self.get(path, "cannot read the token")["privsep"])) if self.token else None
        except Denied:
            return None

    def wait_for_status(self, guest: Guest, wanted: str, what: str, timeout: float, since: int) -> None:
        """Wait until a container is ``running`` or ``stopped``. Raises with its start's own words where it does not get there.

        ``since`` is the moment, by the node's clock, from which on a failed start counts.
        """
        until, pause = time.monotonic() + timeout, POLL_FIRST
        where = f"nodes/{guest.node.name}/lxc/{guest.key}/status/current"
        while self._follow(lambda: self.get(where, f"{what}: cannot follow its status"), until)["status"] != wanted:
            started = self._follow(lambda: self.tasks(guest, "vzstart"), until) if wanted == "running" else []
            starts = [task for task in started if int(task["starttime"]) >= since]
            failed = next((task for task in starts if task["status"] not in ("RUNNING", "OK") and not str(task["status"]).startswith("WARNINGS")), None)
            if failed:
                why = f"{failed['status']} (task {failed['upid']}; its log ends: {self._tail(guest.node.name, str(failed['upid']))})"
                raise TaskFailed(what, why=why, fix=f"See why it does not start: pct start {guest.key} --debug on {guest.node.name}.")
            if time.monotonic() > until:
                raise TimedOut(what, why=f"it is not {wanted} after {timeout:g} s", fix="Look at its tasks; a longer timeout waits longer.", underway=True)
            time.sleep(pause)
            pause = min(POLL_MOST, 2 * pause)

    def privileges(self, vmid: int) -> frozenset[str]:
        """What the token may do with a container. Where no rule is known for its path or one above, the server is asked for the path itself."""
        own = f"/vms/{vmid}"
        for path in (own, "/vms", "/"):
            if path in self.rules():
                return frozenset(name for name, propagates in self.rules()[path].items() if path == own or int(propagates))
        found = self.get("access/permissions", "cannot read the token's permissions", path=own)
        return frozenset(found.get(own, {}))

    def rules(self) -> dict[str, dict[str, int]]:
        """The token's privileges by path, each with whether it reaches what is below."""
        if self._permissions is None:
            self._permissions = dict(self.get("access/permissions", "cannot read the token's permissions"))
        return self._permissions

    def _sees_all(self) -> bool:
        hidden = [path for path, rights in self.rules().items() if path.startswith("/vms/") and "VM.Audit" not in rights]
        return not hidden and any(int(self.rules().get(path, {}).get("VM.Audit", 0)) for path in ("/", "/vms"))

    # What is changed

    def configure(self, guest: Guest, values: Values) -> tuple[str, ...]:
        """Set resources of a container, if its configuration is still as it was read; nothing else about it changes. Returns what a person should know."""
        what = f"cannot change {guest.name}"
        sent: list[str] = []

        def write(node: str) -> None:
            digest = guest.digest if not sent and guest.key not in self._written else self._unchanged(guest, node, what)
            sent.append(digest)
            self._written.setdefault(guest.key, set()).update(values)
            self.ask("put", f"nodes/{node}/lxc/{guest.key}/config", what, digest=digest, **body(values))

        try:
            self._insist(write, guest)
        except HealerError as error:
            if not error.uncertain or not self._arrives(guest, values):
                raise
            return ("the reply to the change was lost; it was looked at again, and it holds",)
        return ()

    def _unchanged(self, guest: Guest, node: str, what: str) -> str:
        """The digest of a configuration that was written to or locked since it was read, if its resources are still those that the plan knows."""
        config = self._read_config(guest.key, node)
        now, own = resources(config), self._written.get(guest.key, set())
        changed = sorted(key for key in RESOURCES if key not in own and now[key] != guest.limits[key])
        if changed:
            raise Conflict(what, why=f"somebody else changed {', '.join(changed)} meanwhile", fix="Run this again.")
        return str(config["digest"])

    def _arrives(self, guest: Guest, values: Values) -> bool:
        """Whether a request without an answer takes effect, though late: the node may have kept it waiting for a lock."""
        until = time.monotonic() + TAKES_EFFECT
        while time.monotonic() < until:
            with contextlib.suppress(HealerError):
                now = resources(self._read_config(guest.key, guest.node.name))
                if all(now[key] == value for key, value in values.items()):
                    return True
            time.sleep(POLL_MOST)
        return False

    def _insist(self, write: t.Callable[[str], t.Any], guest: Guest) -> t.Any:
        """Write, waiting for a lock as long as ``wait_lock`` allows, and following a container that has just moved to another node."""
        until, pause, node = time.monotonic() + self._wait_lock, POLL_FIRST, guest.node.name
        while True:
            try:
                return write(node)
            except NotFound:
                (entry,) = self._placed(self.resources(), [guest.key], None)
                if entry["node"] == node:
                    raise
                node = entry["node"]
            except Conflict as error:
                if not (LOCKED in error.why or BUSY in error.why) or time.monotonic() > until:
                    raise
                time.sleep(pause)
                pause = min(POLL_MOST, 2 * pause)

    def carry_out(self, guest: Guest, task: Task, what: str, timeout: float, patience: float = 0) -> Ended:
        """Start a task on a container and wait for its end, ``timeout`` seconds at most. Raises with its own words and last log lines where it failed.

        A task whose reply was lost is looked for before anything is said. A lock is waited for as long as ``wait_lock`` allows, or ``patience`` if
        that is more.
        """
        began = self.now()
        self._written.setdefault(guest.key, set())
        until = time.monotonic() + max(self._wait_lock, patience)
        while True:
            try:
                upid = self._insist(lambda node: self.ask(task.method, f"nodes/{node}/lxc/{guest.key}/{task.path}", what, **task.params), guest)
            except HealerError as error:
                if not error.uncertain:
                    raise
                upid = self._late(guest, task.kind, began)
                if upid is None:
                    raise
            self._begun.add(str(upid))
            try:
                return self.wait(str(upid), what, timeout)
            except Conflict as error:
                if LOCKED not in error.why or not self._unlocked(guest, until):
                    raise

    def _unlocked(self, guest: Guest, until: float) -> bool:
        """Wait until a container is not locked any more, by reading; whether it was so in time."""
        pause = POLL_FIRST
        while time.monotonic() < until:
            time.sleep(pause)
            if not self._read_config(guest.key, guest.node.name).get("lock"):
                return True
            pause = min(POLL_MOST, 2 * pause)
        return False

    def _late(self, guest: Guest, kind: str, began: float) -> str | None:
        """The task that a request without an answer started, or ``None`` where none appears: neither one known before, nor somebody else's."""
        until, own = time.monotonic() + FOUND_LATER, f"{self.user}!{self.token}" if self.token else self.user
        while time.monotonic() < until:
            with contextlib.suppress(HealerError):
                for task in self.tasks(guest, kind):
                    upid = str(task["upid"])
                    if int(task["starttime"]) >= int(began) and upid not in self._begun and upid.split(":")[7] == own:
                        return upid
            time.sleep(POLL_MOST / 2)
        return None

    def tasks(self, guest: Guest, kind: str) -> list[dict[str, t.Any]]:
        """The tasks of one type on a container that the token may see, the newest first, those that run included: its own, with Sys.Audit all."""
        params = dict(vmid=guest.key, typefilter=kind, source="all", limit=50)
        found = self.get(f"nodes/{guest.node.name}/tasks", f"cannot list the tasks of {guest.name}", **params)
        return sorted(found, key=lambda task: int(task["starttime"]), reverse=True)

    def under_way(self, guest: Guest, kinds: t.Container[str]) -> str:
        """A task of these types that runs on a container, as far as the token may see: its own, with Sys.Audit all; empty where there is none."""
        active = self.get(f"nodes/{guest.node.name}/tasks", f"cannot list the tasks of {guest.name}", vmid=guest.key, source="active")
        return next((str(task["upid"]) for task in active if task["type"] in kinds and not task.get("endtime")), "")

    def wait(self, upid: str, what: str, timeout: float) -> Ended:
        """Wait for the end of a task."""
        node = upid.split(":")[1]
        until, pause = time.monotonic() + timeout, POLL_FIRST
        while True:
            status = self._follow(lambda: self.get(f"nodes/{node}/tasks/{upid}/status", f"{what}: cannot follow its task {upid}"), until)
            if status["status"] != "running":
                break
            if time.monotonic() > until:
                why = f"its task {upid} still runs after {timeout:g} s; its log ends: {self._tail(node, upid)}"
                raise TimedOut(what, why=why, fix="Look at the task in the node's list; a longer timeout waits longer.", underway=True)
            time.sleep(pause)
            pause = min(POLL_MOST, 2 * pause)
        end = str(status.get("exitstatus", ""))
        if end == "OK":
            return Ended(upid)
        tail = self._tail(node, upid)
        if end.startswith("WARNINGS"):
            return Ended(upid, (f"its task ended with {end.lower()}: {tail}",))
        refused = refusal(what, 500, end)
        error = type(refused)(what, why=f"{end} (task {upid}; its log ends: {tail})", fix=refused.fix)
        error.begun = True
        raise error

    def _follow(self, look: t.Callable[[], t.Any], until: float) -> t.Any:
        """Look at what has begun, and again where that fails: it goes on all the same, and only its end tells what became of it."""
        until = min(until, time.monotonic() + UNHEARD)
        while True:
            try:
                return look()
            except HealerError as error:
                if time.monotonic() > until:
                    raise type(error)(error.what, why=error.why, fix=f"Look at its tasks, which may still run. {error.fix}", underway=True) from error
                time.sleep(POLL_MOST)

    def _tail(self, node: str, upid: str) -> str:
        try:
            lines = self.get(f"nodes/{node}/tasks/{upid}/log", "cannot read a task's log", limit=5000)
        except HealerError as error:
            return f"not readable, {error.why}"
        return " / ".join(str(line["t"]) for line in lines[-LOG_LINES:]) if isinstance(lines, list) else str(lines)


def _backing_up(guest: Guest, active: t.Sequence[tuple[str, list[str]]], blind: str, pool: str | None) -> tuple[bool | None, list[str]]:
    """Whether a container is being backed up or will be by a task that is active, ``None`` if that cannot be known, and why not.

    A lock of a backup that was cut off counts, too: nothing can be changed until an administrator has taken it away.
    """
    turns = [about == str(guest.key) if about else in_turn(log, guest.key, pool) for about, log in active]
    if guest.lock == LOCK or True in turns:
        return True, []
    unsure = ["a backup of several guests runs there, and its log does not tell whether it comes to this one"] if None in turns else []
    why = [*unsure, *([blind] if blind else [])]
    return (None if why else False), why


def managed(status: t.Mapping[str, t.Any]) -> bool:
    """Whether the cluster's HA manager runs a container of this status."""
    return bool(int((status.get("ha") or {}).get("managed") or 0))


def _offline(known: t.Sequence[t.Mapping[str, t.Any]]) -> set[str]:
    return {str(entry["node"]) for entry in known if entry["type"] == "node" and entry.get("status") == "offline"}


def _awaited(config: t.Mapping[str, t.Any], pending: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The resources that wait for a restart, in this collection's words."""
    waiting = {key: value for key, value in pending.items() if key in RESOURCES}
    after = resources({**config, **waiting})
    return {key: after[key] for key in waiting}
