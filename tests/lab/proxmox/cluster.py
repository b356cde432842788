"""What can be read about the cluster, its nodes and storages."""

from __future__ import annotations

import hashlib
import typing as t

from tests.lab.proxmox import usage
from tests.lab.proxmox.calls import Call, Route, perm
from tests.lab.proxmox.errors import die
from tests.lab.proxmox.model import GIB, STALE, Guest, Node, Storage
from tests.lab.proxmox.schema import BOOLEAN, INTEGER, STORAGE_ID, STRING, VMID, VMIDS, Param, enum, split_list
from tests.lab.proxmox.usage import MIB

REPOSITORY = "deadbeef12345678"
_STORAGE_AUDIT = ("Datastore.Audit", "Datastore.AllocateSpace")
_FIGURES = ("cpu", "mem", "maxmem", "disk", "maxdisk", "uptime", "netin", "netout", "diskread", "diskwrite", "name")
_SCOPES = ("vm", "storage", "node", "sdn")


def version(call: Call) -> dict[str, str]:
    return {"version": call.world.version, "release": call.world.release, "repoid": REPOSITORY}


def _node_status(call: Call, node: Node) -> str:
    if not node.online:
        return "offline"
    return "online" if node.name in call.world.told_nodes else "unknown"


def _node_figures(call: Call, node: Node) -> dict[str, t.Any]:
    world = call.world
    busy = sum(world.usage(guest, world.now()).cpu for guest in world.guests.values() if guest.node == node.name and guest.running)
    return {
        "cpu": min(1.0, node.cpu + busy / node.cpus),
        "maxcpu": node.cpus,
        "mem": world.node_memory(node),
        "maxmem": node.memory * MIB,
        "disk": int(0.2 * node.disk * GIB),
        "maxdisk": node.disk * GIB,
        "uptime": int(world.now() - node.booted),
    }


def _node_entry(call: Call, node: Node) -> dict[str, t.Any]:
    status = _node_status(call, node)
    entry: dict[str, t.Any] = {"id": f"node/{node.name}", "node": node.name, "type": "node", "status": status, "level": ""}
    if status == "online" and call.may(f"/nodes/{node.name}", "Sys.Audit"):
        entry |= _node_figures(call, node)
    return entry


def nodes(call: Call) -> list[dict[str, t.Any]]:
    def print_of(name: str) -> str:
        return ":".join(f"{byte:02X}" for byte in hashlib.sha256(name.encode()).digest())

    return [_node_entry(call, node) | {"ssl_fingerprint": print_of(node.name)} for node in call.world.nodes.values()]


def cluster_status(call: Call) -> list[dict[str, t.Any]]:
    world = call.world
    entries: list[dict[str, t.Any]] = []
    if world.cluster:
        entries.append({"type": "cluster", "id": "cluster", "name": world.cluster, "version": 3, "nodes": len(world.nodes), "quorate": int(world.quorate)})
    for number, node in enumerate(world.nodes.values(), 1 if world.cluster else 0):
        entries.append(
            {
                "type": "node",
                "id": f"node/{node.name}",
                "name": node.name,
                "ip": node.ip,
                "nodeid": number,
                "local": int(node.name == world.local),
                "online": int(node.online),
                "level": "",
            }
        )
    return entries


def resources(call: Call) -> list[dict[str, t.Any]]:
    scope = call.text("type")
    found: list[dict[str, t.Any]] = []
    if scope in {"", "vm"}:
        found += [_guest_resource(call, guest) for guest in call.world.guests.values() if call.may(f"/vms/{guest.vmid}", "VM.Audit")]
    if scope in {"", "node"}:
        found += [_node_entry(call, node) | {"cgroup-mode": call.world.cgroup} for node in call.world.nodes.values()]
    if scope in {"", "storage"}:
        found += [_storage_resource(call, storage, node) for storage, node in _storages_seen(call)]
    if scope in {"", "sdn"}:
        found += _networks(call)
    return found


def _guest_resource(call: Call, guest: Guest) -> dict[str, t.Any]:
    """A guest as pvestatd told about it last, by its number: one that was created under an old number has the old one's figures at first."""
    world = call.world
    entry: dict[str, t.Any] = {"id": f"{guest.kind}/{guest.vmid}", "type": guest.kind, "vmid": guest.vmid, "node": guest.node, "status": "unknown"}
    told, figures = world.told.get(guest.vmid, (0.0, {}))
    if world.now() - told < STALE:
        entry |= {key: figures[key] for key in _FIGURES if key in figures}
        entry |= {"status": figures["status"], "maxcpu": figures["cpus"], "template": figures.get("template", 0)}
        if world.release >= "9" and world.cgroup == 2:
            entry["memhost"] = figures["mem"]
    values = guest.config.current
    entry |= {key: values[key] for key in ("lock", "tags") if key in values}
    if guest.ha:
        entry["hastate"] = guest.ha.get("state", "started")
    pool = next((name for name, members in world.access.pools.items() if guest.vmid in members), None)
    if pool and call.may(f"/pool/{pool}", "Pool.Audit"):
        entry["pool"] = pool
    return entry


def _storages_seen(call: Call) -> list[tuple[Storage, Node]]:
    return [
        (storage, node)
        for storage in call.world.storages.values()
        if any(call.may(f"/storage/{storage.name}", name) for name in _STORAGE_AUDIT)
        for node in call.world.nodes.values()
        if storage.on(node.name)
    ]


def _storage_resource(call: Call, storage: Storage, node: Node) -> dict[str, t.Any]:
    entry: dict[str, t.Any] = {
        "id": f"storage/{node.name}/{storage.name}",
        "type": "storage",
        "storage": storage.name,
        "node": node.name,
        "status": "available" if node.online and storage.active else "unknown",
        "shared": int(storage.shared),
        "content": storage.content,
        "plugintype": storage.type,
    }
    if entry["status"] == "available":
        entry |= {"disk": int(storage.used * GIB), "maxdisk": int(storage.total * GIB)}
    return entry


def _networks(call: Call) -> list[dict[str, t.Any]]:
    if not call.may("/sdn/zones/localnetwork", "SDN.Audit"):
        return []
    if call.world.release < "9":
        return [{"id": f"sdn/{name}/localnetwork", "type": "sdn", "sdn": "localnetwork", "node": name, "status": "ok"} for name in call.world.nodes]
    kinds = {"network-type": "zone", "zone-type": "simple"}
    return [
        {"id": f"network/{name}/zone/localnetwork", "type": "network", "network": "localnetwork", "node": name, "status": "ok"} | kinds
        for name in call.world.nodes
    ]


def node_status(call: Call) -> dict[str, t.Any]:
    world = call.world
    node = world.nodes[call.node]
    used, total = world.node_memory(node), node.memory * MIB
    disk = node.disk * GIB
    figures = _node_figures(call, node)
    kernel = {"8": "6.8.12-9-pve", "9": "6.14.8-2-pve"}[world.release[0]]
    status: dict[str, t.Any] = {
        "boot-info": {"mode": "efi", "secureboot": 0},
        "cpu": figures["cpu"],
        "cpuinfo": {
            "cores": node.cpus,
            "cpus": node.cpus,
            "sockets": 1,
            "model": "Simulated CPU",
            "mhz": "2596.148",
            "flags": "fpu vme de pse tsc msr",
            "hvm": "1",
            "user_hz": 100,
        },
        "current-kernel": {"machine": "x86_64", "release": kernel, "sysname": "Linux", "version": "#1 SMP PREEMPT_DYNAMIC"},
        "idle": 0,
        "ksm": {"shared": 0},
        "kversion": f"Linux {kernel} #1 SMP PREEMPT_DYNAMIC",
        "loadavg": [f"{figures['cpu'] * node.cpus:.2f}", f"{figures['cpu'] * node.cpus:.2f}", f"{figures['cpu'] * node.cpus:.2f}"],
        "memory": {"total": total, "used": used, "free": total - used},
        "pveversion": f"pve-manager/{world.version}/{REPOSITORY}",
        "rootfs": {"total": disk, "used": disk // 5, "free": disk - disk // 5, "avail": disk - disk // 5},
        "swap": {"total": node.swap * MIB, "used": 0, "free": node.swap * MIB},
        "uptime": figures["uptime"],
        "wait": 0,
    }
    if world.release >= "9":
        status["memory"]["available"] = total - used + node.arc * MIB // 2
        status["cpuinfo"] |= {"family": "25", "vendor": "AuthenticAMD"}
    return status


def node_rrd(call: Call) -> list[dict[str, t.Any]]:
    """A node's series: what it has now, at every point since it was booted."""
    node = call.world.nodes.get(call.params["node"])
    if node is None:
        raise die(f"RRD error: opening '/var/lib/rrdcached/db/pve2-node/{call.params['node']}': No such file or directory")
    frame = usage.frames(call.world.release)[call.params["timeframe"]]
    now = call.world.now()
    last = int(now // frame.step) * frame.step
    figures = _node_figures(call, node)
    values = {
        "cpu": figures["cpu"],
        "maxcpu": node.cpus,
        "iowait": 0,
        "loadavg": figures["cpu"] * node.cpus,
        "memused": figures["mem"],
        "memtotal": figures["maxmem"],
        "swapused": 0,
        "swaptotal": node.swap * MIB,
        "rootused": figures["disk"],
        "roottotal": figures["maxdisk"],
        "netin": 0,
        "netout": 0,
    }
    moments = range(last - (frame.points - 1) * frame.step, last + 1, frame.step)
    return [{"time": moment} | (values if moment - frame.step >= node.booted else {}) for moment in moments]


def _storage_facts(storage: Storage) -> dict[str, t.Any]:
    total, used = int(storage.total * GIB), int(storage.used * GIB)
    known = {"type": storage.type, "content": storage.content, "enabled": 1, "active": int(storage.active), "shared": int(storage.shared)}
    return known | ({"total": total, "used": used, "avail": total - used} if storage.active else {"total": 0, "used": 0, "avail": 0})


def storages(call: Call) -> list[dict[str, t.Any]]:
    wanted = set(call.text("content").split(",")) - {""}
    found = []
    for storage in call.world.storages.values():
        if not storage.on(call.node) or not any(call.may(f"/storage/{storage.name}", name) for name in _STORAGE_AUDIT):
            continue
        if (wanted and not wanted & set(storage.content.split(","))) or call.text("storage", storage.name) != storage.name:
            continue
        facts = _storage_facts(storage)
        found.append({"storage": storage.name, "used_fraction": facts["used"] / facts["total"] if facts["total"] else 0} | facts)
    return found


def _storage(call: Call) -> Storage:
    storage = call.world.storages.get(call.params["storage"])
    if storage is None:
        raise die(f"storage '{call.params['storage']}' does not exist")
    if not storage.on(call.node):
        raise die(f"storage '{storage.name}' is not available on node '{call.node}'")
    return storage


def storage_index(call: Call) -> list[dict[str, str]]:
    return [{"subdir": name} for name in ("content", "status", "rrd", "rrddata", "upload", "prunebackups")]


def storage_status(call: Call) -> dict[str, t.Any]:
    return _storage_facts(_storage(call))


def storage_content(call: Call) -> list[dict[str, t.Any]]:
    """Volumes; a backup is listed for who may make one of that guest on that storage, or administers the storage: to be the guest's auditor is not enough."""
    storage, world = _storage(call), call.world
    entries = [dict(entry) for entry in storage.contents]
    for guest in world.guests.values():
        for volume in guest.config.volumes().values() if guest.kind == "lxc" and guest.node == call.node else ():
            if volume.storage == storage.name:
                form = "subvol" if "subvol" in volume.name else "raw"
                entries.append({"volid": volume.name, "content": "rootdir", "format": form, "size": volume.size, "vmid": guest.vmid})
    for entry in entries:
        entry["ctime"] = int(entry.get("ctime", world.now() - entry.pop("age", 0)))
        entry.pop("age", None)
    wanted, vmid = call.text("content"), call.text("vmid")
    return [
        entry
        for entry in entries
        if (not wanted or entry["content"] == wanted) and (not vmid or str(entry.get("vmid")) == vmid) and _may_list(call, storage, entry)
    ]


def _may_list(call: Call, storage: Storage, entry: dict[str, t.Any]) -> bool:
    here, guest = f"/storage/{storage.name}", f"/vms/{entry.get('vmid')}"
    if entry["content"] in {"vztmpl", "iso"} or call.may(here, "Datastore.Allocate"):
        return True
    on_storage, on_guest = ("Datastore.AllocateSpace", "VM.Backup") if entry["content"] == "backup" else ("Datastore.Audit", "VM.Config.Disk")
    return call.may(here, on_storage) and call.may(guest, on_guest)


def storage_config(call: Call) -> list[dict[str, t.Any]]:
    shown = []
    for storage in call.world.storages.values():
        if any(call.may(f"/storage/{storage.name}", name) for name in _STORAGE_AUDIT):
            entry = {"storage": storage.name, "type": storage.type, "content": storage.content, "shared": int(storage.shared)}
            shown.append(entry | ({"nodes": ",".join(storage.nodes)} if storage.nodes else {}))
    return shown


def one_storage_config(call: Call) -> dict[str, t.Any]:
    found = [entry for entry in storage_config(call) if entry["storage"] == call.params["storage"]]
    if not found:
        raise die(f"storage '{call.params['storage']}' does not exist")
    return found[0]


def next_id(call: Call) -> str:
    wanted = call.text("vmid")
    if not wanted:
        return str(next(number for number in range(100, 10**9) if number not in call.world.guests))
    if int(wanted) in call.world.guests:
        guest = call.world.guests[int(wanted)]
        raise die(f"{'CT' if guest.kind == 'lxc' else 'VM'} {wanted} already exists on node '{guest.node}'")
    return wanted


def not_backed_up(call: Call) -> list[dict[str, t.Any]]:
    """Guests that no backup job names: there are no jobs here, so those without any backup."""
    saved = {entry.get("vmid") for storage in call.world.storages.values() for entry in storage.contents if entry["content"] == "backup"}
    return [{"vmid": guest.vmid, "name": guest.name, "type": guest.kind} for guest in call.world.guests.values() if guest.vmid not in saved]


def nothing(call: Call) -> list[t.Any]:
    return []


def nobody(call: Call) -> dict[str, t.Any]:
    return {}


def subscription(call: Call) -> dict[str, t.Any]:
    return {"status": "notfound", "message": "There is no subscription key", "serverid": "0" * 32, "url": "https://www.proxmox.com/proxmox-ve/pricing"}


def node_version(call: Call) -> dict[str, str]:
    return version(call)


def pools(call: Call) -> list[dict[str, t.Any]]:
    return [{"poolid": name} for name in call.world.access.pools if call.may(f"/pool/{name}", "Pool.Audit")]


def pool(call: Call) -> dict[str, t.Any]:
    members = call.world.access.pools.get(call.params["poolid"])
    if members is None:
        raise die(f"pool '{call.params['poolid']}' does not exist")
    guests = [guest for guest in call.world.guests.values() if guest.vmid in members]
    return {"members": [_guest_resource(call, guest) for guest in guests]}


def set_pool(call: Call) -> None:
    members = call.world.access.pools.get(call.params["poolid"])
    if members is None:
        raise die(f"pool '{call.params['poolid']}' does not exist")
    given = {int(vmid) for vmid in split_list(call.text("vms"))} | set(split_list(call.text("storage")))
    if call.flag("delete"):
        members -= given
    else:
        members |= given


def add_pool(call: Call) -> None:
    call.world.access.pools.setdefault(call.params["poolid"], set())


def _index(*names: str) -> t.Callable[[Call], list[dict[str, str]]]:
    return lambda call: [{"name": name} for name in names]


def routes(release: str) -> list[Route]:
    frames = tuple(usage.frames(release))
    kind = {"cf": enum("AVERAGE", "MAX")}
    storage = {"storage": STORAGE_ID.needed()}
    audit = perm("/storage/{storage}", *_STORAGE_AUDIT, any_of=True)
    sys_audit = perm("/nodes/{node}", "Sys.Audit")
    page = {"poolid": Param(optional=False)}
    return [
        Route("GET", "/version", version, {}),
        Route("GET", "/nodes", nodes, {}),
        Route("GET", "/cluster", _index("resources", "status", "nextid", "tasks", "backup-info", "ha", "replication"), {}),
        Route("GET", "/cluster/status", cluster_status, {}, perm("/", "Sys.Audit")),
        Route("GET", "/cluster/resources", resources, {"type": enum(*_SCOPES)}),
        Route("GET", "/cluster/nextid", next_id, {"vmid": Param("integer", 100, 999999999, check=VMID.check)}),
        Route("GET", "/cluster/backup-info/not-backed-up", not_backed_up, {}, perm("/", "Sys.Audit")),
        Route("GET", "/cluster/config/qdevice", nobody, {}, perm("/", "Sys.Audit")),
        Route("GET", "/cluster/backup", nothing, {}),
        Route("GET", "/cluster/ha/resources", nothing, {}),
        Route("GET", "/cluster/replication", nothing, {}),
        Route("GET", "/nodes/{node}", _index("lxc", "qemu", "status", "storage", "tasks", "rrddata", "version"), {}),
        Route("GET", "/nodes/{node}/version", node_version, {}),
        Route("GET", "/nodes/{node}/status", node_status, {}, sys_audit),
        Route("GET", "/nodes/{node}/subscription", subscription, {}),
        Route("GET", "/nodes/{node}/replication", nothing, {}),
        Route("GET", "/nodes/{node}/rrddata", node_rrd, {"timeframe": enum(*frames).needed()} | kind, sys_audit, proxied=False),
        Route(
            "GET",
            "/nodes/{node}/storage",
            storages,
            {"content": STRING, "enabled": BOOLEAN, "format": BOOLEAN, "storage": STORAGE_ID, "target": STRING},
        ),
        Route("GET", "/nodes/{node}/storage/{storage}", storage_index, storage, audit, proxied=False),
        Route("GET", "/nodes/{node}/storage/{storage}/status", storage_status, storage, audit),
        Route("GET", "/nodes/{node}/storage/{storage}/content", storage_content, storage | {"content": STRING, "vmid": INTEGER}, audit),
        Route("GET", "/storage", storage_config, {"type": STRING}),
        Route("GET", "/storage/{storage}", one_storage_config, storage),
        Route("GET", "/pools", pools, {"poolid": STRING, "type": STRING}),
        Route("POST", "/pools", add_pool, page | {"comment": STRING}, perm("/pool/{poolid}", "Pool.Allocate")),
        Route("GET", "/pools/{poolid}", pool, page | {"type": STRING}, perm("/pool/{poolid}", "Pool.Audit")),
        Route(
            "PUT",
            "/pools/{poolid}",
            set_pool,
            page | {"vms": VMIDS, "storage": STRING, "delete": BOOLEAN, "comment": STRING, "allow-move": BOOLEAN},
            perm("/pool/{poolid}", "Pool.Allocate"),
        ),
    ]
