"""The cluster as a plain document (the shape is told in the package's docstring), to begin from and to look at."""

from __future__ import annotations

import dataclasses
import typing as t

from tests.lab.proxmox.access import Entry, User, normal_path
from tests.lab.proxmox.config import Config, Values, clean_description
from tests.lab.proxmox.model import Flock, Guest, Node, Storage, World
from tests.lab.proxmox.storing import allocate
from tests.lab.proxmox.usage import Workload, workload

Document = dict[str, t.Any]


def load(world: World, document: Document) -> None:
    """Put a document's state into an empty world; unknown keys raise TypeError."""
    world.cluster = document.get("cluster")
    world.resolver = document.get("resolver", world.resolver)
    world.templates = {name: workload(facts) for name, facts in document.get("templates", {}).items()}
    world.default_workload = workload(document.get("default_workload", {}))
    for number, (name, facts) in enumerate(document.get("nodes", {}).items(), 1):
        add_node(world, name, {"ip": f"10.99.0.{number}"} | facts)
    world.local = next(iter(world.nodes), "")
    for name, facts in document.get("storages", {}).items():
        load_storage(world, name, facts)
    _load_access(world, document)
    for vmid, facts in document.get("guests", {}).items():
        add_guest(world, int(vmid), facts)
    world.tick(world.now() - 1.0)
    for vmid, facts in document.get("lingering", {}).items():
        world.told[int(vmid)] = (world.now(), facts)


def add_node(world: World, name: str, facts: Document) -> None:
    facts = dict(facts)
    booted = world.now() - facts.pop("uptime", 14 * 86400)
    world.nodes[name] = Node(name, booted=booted, **facts)


def load_storage(world: World, name: str, facts: Document) -> None:
    contents = [{"ctime": int(world.now() - entry.get("age", 0)), **entry} for entry in facts.get("contents", [])]
    world.storages[name] = Storage(name, **{**facts, "contents": contents})


def _load_access(world: World, document: Document) -> None:
    access = world.access
    access.users["root@pam"] = User()
    for name, facts in document.get("users", {}).items():
        access.users[name] = User(**facts)
    access.groups = dict(document.get("groups", {}))
    access.roles = {name: set(names) for name, names in document.get("roles", {}).items()}
    access.pools = {name: set(members) for name, members in document.get("pools", {}).items()}
    for full, facts in document.get("tokens", {}).items():
        user, _, name = full.partition("!")
        access.add_token(user, name, facts.get("secret"), privsep=facts.get("privsep", True))
    for line in document.get("acl", []):
        kind = next(kind for kind in ("token", "user", "group") if kind in line)
        access.entries.append(Entry(normal_path(line["path"]), kind, line[kind], line["role"], line.get("propagate", True)))


def add_guest(world: World, vmid: int, facts: Document) -> Guest:
    """A guest from its facts; one that runs has done so for ``uptime`` seconds (a day if not told)."""
    now = world.now()
    guest = Guest(vmid, facts.get("node", world.local), Flock(world.clock), kind=facts.get("kind", "lxc"))
    guest.created = now - facts.get("age", 30 * 86400)
    defaults = {"memory": "512", "ostype": "debian", "arch": "amd64"} if guest.kind == "lxc" else {"memory": "2048"}
    guest.config = Config(defaults | _texts(facts.get("config", {})), _texts(facts.get("pending", {})), list(facts.get("delete", [])))
    if guest.kind == "lxc" and "rootfs" not in guest.config.current and (storage := _storage_for(world, guest.node)):
        guest.config.current["rootfs"] = allocate(world, vmid, "rootfs", f"{storage}:8")
    guest.config.snapshots = {name: _snapshot(guest, values, now) for name, values in facts.get("snapshots", {}).items()}
    if facts.get("template"):
        guest.config.current["template"] = "1"
    if facts.get("lock"):
        guest.config.current["lock"] = facts["lock"]
    guest.config.raw = [(key, value) for key, value in facts.get("raw", [])]
    guest.workload = workload(facts.get("workload", {}))
    guest.ha = dict(facts.get("ha", {}))
    guest.real = world.real.get(vmid)
    guest.oom_kills = facts.get("oom_kills", 0)
    for name in sorted(guest.config.snapshots, key=lambda name: int(guest.config.snapshots[name]["snaptime"])):
        for volume in _volume_names(guest, name):
            guest.taken.setdefault(volume, []).append(name)
    for volume, names in facts.get("foreign_snapshots", {}).items():
        guest.taken.setdefault(volume, []).extend(names)
    world.guests[vmid] = guest
    if pool := facts.get("pool"):
        world.access.pools.setdefault(pool, set()).add(vmid)
    world.note(guest, guest.created)
    if facts.get("status") == "running":
        _let_run(world, guest, now - facts.get("uptime", 86400), facts)
    return guest


def _storage_for(world: World, node: str) -> str | None:
    """Where a container's volume is if its facts do not tell."""
    return next((storage.name for storage in world.storages.values() if storage.on(node) and "rootdir" in storage.content), None)


def _let_run(world: World, guest: Guest, since: float, facts: Document) -> None:
    """As if the guest had been started then."""
    world.start(guest)
    if guest.real:
        since = world.now() - guest.real.seconds()
    guest.started = guest.grows_from = since
    guest.kernel = dataclasses.replace(guest.kernel, **facts.get("kernel", {}))
    guest.history = type(guest.history)()
    guest._settled = guest._overrun = 0.0
    world.note(guest, since)
    guest._settled = world.now()  # what was killed before does not count


def _volume_names(guest: Guest, snapshot: str) -> list[str]:
    values = guest.config.snapshots[snapshot]
    return [volume.name for volume in Config(values).volumes().values() if volume.storage]


def _texts(values: Document) -> Values:
    texts = {key: str(int(value)) if isinstance(value, bool) else str(value) for key, value in values.items()}
    if "description" in texts:
        texts["description"] = clean_description(texts["description"])
    return texts


def _snapshot(guest: Guest, values: Document, now: float) -> Values:
    """A snapshot's values: those of the guest where it does not say otherwise; ``age`` in seconds instead of ``snaptime``."""
    values = dict(values)
    age = values.pop("age", 3600)
    config = {key: value for key, value in guest.config.current.items() if key not in {"description", "lock", "parent"}}
    return config | {"snaptime": str(int(now - age))} | _texts(values)


def describe_guest(world: World, guest: Guest) -> Document:
    now = world.now()
    world.look(guest)
    world.settle(guest, now)
    used = world.usage(guest, now)
    return {
        "vmid": guest.vmid,
        "kind": guest.kind,
        "node": guest.node,
        "name": guest.name,
        "status": "running" if guest.running else "stopped",
        "config": dict(guest.config.current),
        "pending": dict(guest.config.pending),
        "delete": list(guest.config.deleted),
        "snapshots": {name: dict(values) for name, values in guest.config.snapshots.items()},
        "digest": guest.config.digest(),
        "text": guest.config.text(),
        "lock": guest.config.lock,
        "kernel": dataclasses.asdict(guest.kernel) | (dataclasses.asdict(guest.real.limits()) if guest.real and guest.running else {}),
        "workload": dataclasses.asdict(guest.workload),
        "started": guest.started if guest.running else None,
        "starts": guest.starts,
        "oom_kills": guest.real.figures().kills if guest.real else guest.oom_kills,
        "dead": guest.dead,
        "frozen": guest.frozen,
        "ha": dict(guest.ha),
        "usage": dataclasses.asdict(used),
    }


def describe(world: World) -> Document:
    world.catch_up()
    access = world.access
    return {
        "release": world.release,
        "cgroup": world.cgroup,
        "now": world.now(),
        "next_round": world.until_tick(),
        "cluster": world.cluster,
        "nodes": {name: dataclasses.asdict(node) | {"memory_used": world.node_memory(node)} for name, node in world.nodes.items()},
        "storages": {name: dataclasses.asdict(storage) for name, storage in world.storages.items()},
        "guests": {str(vmid): describe_guest(world, guest) for vmid, guest in sorted(world.guests.items())},
        "users": {name: {"tokens": sorted(user.tokens)} for name, user in access.users.items()},
        "roles": {name: sorted(names) for name, names in access.roles.items()},
        "acl": [dataclasses.asdict(entry) for entry in access.entries],
        "pools": {name: sorted(members, key=str) for name, members in access.pools.items()},
    }


def _change_workload(world: World, guest: Guest, changes: Document) -> None:
    """Go on with another workload: growth counts from now, on top of what has grown unless another size was given."""
    now = world.now()
    world.settle(guest, now)
    wanted = world.usage(guest, now).wanted
    before = guest.workload
    guest.workload = Workload(**(dataclasses.asdict(before) | changes))
    guest.grown = max(0.0, wanted - before.memory) if guest.running and not guest.dead and "memory" not in changes else 0.0
    guest.grows_from = now


def change_guest(world: World, guest: Guest, changes: Document) -> None:
    """Change a guest behind the API's back.

    ``workload`` is merged, ``status`` starts or stops it, other names are keys of its configuration (None removes). What a running guest's kernel
    has follows its configuration, unless ``kernel`` says what it has.
    """
    world.catch_up()
    changes = dict(changes)
    if "workload" in changes:
        _change_workload(world, guest, changes.pop("workload"))
    kernel, status = changes.pop("kernel", {}), changes.pop("status", None)
    for name in ("ha", "oom_kills", "dead", "frozen", "started", "taken"):
        if name in changes:
            setattr(guest, name, changes.pop(name))
    if "snapshots" in changes:
        guest.config.snapshots = {name: _snapshot(guest, values, world.now()) for name, values in changes.pop("snapshots").items()}
    guest.config.pending |= _texts(changes.pop("pending", {}))
    keys = {**changes.pop("config", {}), **changes}
    for key, value in keys.items():
        if value is None:
            guest.config.current.pop(key, None)
        else:
            guest.config.current |= _texts({key: value})
    if status == "running" and not guest.running:
        world.start(guest)
    elif status == "stopped" and guest.running:
        world.kill(guest)
    if guest.running:
        follow = {name: value for name, value in dataclasses.asdict(world.configured_kernel(guest)).items() if name in keys}
        guest.kernel = dataclasses.replace(guest.kernel, **follow | kernel)
        if guest.real and follow | kernel:
            guest.real.set_limits(world.limits(guest.kernel))
    world.note(guest)
