"""Containers: lists, configuration, creation, removal and resizing."""

from __future__ import annotations

import copy
import re
import typing as t

from tests.lab.proxmox import hotplug, usage
from tests.lab.proxmox.access import CONFIG_PRIVILEGES
from tests.lab.proxmox.calls import Call, Route, perm
from tests.lab.proxmox.config import (
    VOLUME,
    Config,
    Values,
    clean_description,
    clean_tags,
    parse_size,
    print_size,
    read_volume,
    show,
    shown,
)
from tests.lab.proxmox.errors import ApiError, TaskError, deny, die, refuse
from tests.lab.proxmox.model import TICK, Flock, Guest, task_error
from tests.lab.proxmox.schema import (
    BOOLEAN,
    CONFIG_IDS,
    DIGEST,
    MISSING,
    SNAPNAME,
    STORAGE_ID,
    STRING,
    VMID,
    VOLUME_NAMES,
    Param,
    config_params,
    enum,
    knows_option,
    parse_properties,
    split_list,
    text,
)
from tests.lab.proxmox.storing import allocate, wants_new_disk
from tests.lab.proxmox.tasks import Task

MODIFIED = "detected modified configuration - file changed by other user? Try again."
_AUDIT = perm("/vms/{vmid}", "VM.Audit")
_REQUIRED = frozenset({"memory", "rootfs", "ostype"})
_PRIVILEGE = {
    **dict.fromkeys(("cores", "cpulimit", "cpuunits"), "VM.Config.CPU"),
    **dict.fromkeys(("memory", "swap"), "VM.Config.Memory"),
    **dict.fromkeys(("hostname", "nameserver", "searchdomain"), "VM.Config.Network"),
}


# reading


def listing(call: Call) -> list[dict[str, t.Any]]:
    return _listing(call, "lxc")


def listing_qemu(call: Call) -> list[dict[str, t.Any]]:
    return _listing(call, "qemu")


def _listing(call: Call, kind: str) -> list[dict[str, t.Any]]:
    world = call.world
    now = world.now()
    guests = [guest for guest in world.guests.values() if guest.node == call.node and guest.kind == kind and call.may(f"/vms/{guest.vmid}", "VM.Audit")]
    return [world.status(guest, now, sampler="list") for guest in guests]


def index(call: Call) -> list[dict[str, str]]:
    names = "config pending status vncproxy termproxy vncwebsocket spiceproxy migrate clone rrd rrddata firewall snapshot resize interfaces"
    return [{"subdir": name} for name in names.split()]


def get_config(call: Call) -> dict[str, t.Any]:
    if call.flag("current") and "snapshot" in call.params:
        wrong = "cannot use 'snapshot' parameter with 'current'"
        raise refuse({"snapshot": wrong, "current": wrong})
    return _config(call, call.container())


def get_qemu_config(call: Call) -> dict[str, t.Any]:
    return _config(call, call.world.find(call.node, call.vmid, "qemu"))


def _config(call: Call, guest: Guest) -> dict[str, t.Any]:
    config = guest.config
    name = call.text("snapshot")
    if name:
        if name not in config.snapshots:
            raise die(f"snapshot '{name}' does not exist")
        values = config.snapshots[name]
    else:
        values = config.current if call.flag("current") else config.merged()
    answer = shown(values) | {"digest": config.digest()}
    if config.raw and not name:
        answer["lxc"] = [list(pair) for pair in config.raw]
    return answer


def get_pending(call: Call) -> list[dict[str, t.Any]]:
    return _pending(call.container())


def get_qemu_pending(call: Call) -> list[dict[str, t.Any]]:
    return _pending(call.world.find(call.node, call.vmid, "qemu"))


def _pending(guest: Guest) -> list[dict[str, t.Any]]:
    config = guest.config
    entries: list[dict[str, t.Any]] = [{"key": "digest", "value": config.digest()}]
    for key in config.current.keys() | config.pending.keys():
        entry: dict[str, t.Any] = {"key": key}
        if key in config.current:
            entry["value"] = show(key, config.current[key])
        if key in config.pending:
            entry["pending"] = show(key, config.pending[key])
        if key in config.deleted:
            entry["delete"] = 1
        entries.append(entry)
    return entries


def current(call: Call) -> dict[str, t.Any]:
    return _current(call, call.container())


def qemu_current(call: Call) -> dict[str, t.Any]:
    guest = call.world.find(call.node, call.vmid, "qemu")
    return _current(call, guest) | {"qmpstatus": "running" if guest.running else "stopped", "agent": 0}


def _current(call: Call, guest: Guest) -> dict[str, t.Any]:
    call.world.look(guest)
    shown_now = call.world.status(guest, call.world.now(), sampler="current")
    return shown_now | {"ha": {"managed": 1, "state": "started", **guest.ha} if guest.ha else {"managed": 0}}


def ask_agent(call: Call) -> t.NoReturn:
    """Virtual machines have no agent here."""
    guest = call.world.find(call.node, call.vmid, "qemu")
    raise die("No QEMU guest agent configured" if guest.running else f"VM {guest.vmid} is not running")


def rrddata(call: Call) -> list[dict[str, t.Any]]:
    world, vmid, scope = call.world, call.vmid, call.params["timeframe"]
    guest = world.guests.get(vmid)
    if guest and scope in guest.series:
        return guest.series[scope]
    if guest is None or vmid not in world.told:
        folder = "pve-vm-9.0" if world.release >= "9" else "pve2-vm"
        raise die(f"RRD error: opening '/var/lib/rrdcached/db/{folder}/{vmid}': No such file or directory")
    frame = usage.frames(world.release)[scope]
    pressure = world.release >= "9" and world.cgroup == 2
    if guest.real:
        return guest.real.series(frame, world.now(), TICK, peak=call.text("cf") == "MAX", pressure=pressure)
    return usage.series(guest.history, frame, world.now(), peak=call.text("cf") == "MAX", pressure=pressure)


def feature(call: Call) -> dict[str, int]:
    config = call.container().config
    name = call.text("snapname")
    if name and name not in config.snapshots:
        raise die(f"snapshot '{name}' does not exist")
    volumes = config.volumes()
    if call.params["feature"] == "snapshot":
        return {"hasFeature": int(call.world.can_snapshot(volumes))}
    plain = all(volume.storage for volume in volumes.values())
    linked = bool(name) or config.current.get("template") == "1"
    return {"hasFeature": int(plain and (call.params["feature"] == "copy" or linked))}


def interfaces(call: Call) -> list[dict[str, t.Any]]:
    guest = call.container()
    if not guest.running:
        return []
    found = [{"name": "lo", "hwaddr": "00:00:00:00:00:00", "inet": "127.0.0.1/8", "inet6": "::1/128"}]
    for key, value in sorted(guest.config.current.items()):
        if hotplug.NETWORK.fullmatch(key):
            net = parse_properties(value)
            address = net.get("ip", "")
            shown_net = {"name": net.get("name", "eth0"), "hwaddr": net.get("hwaddr", "bc:24:11:00:00:01").lower()}
            found.append(shown_net | ({"inet": address} if "/" in address else {}))
    return found


# changing the configuration


async def set_config(call: Call) -> None:
    world, release = call.world, call.world.release
    given = {name: value for name, value in call.params.items() if name not in {"node", "vmid", "digest"}}
    if not given:
        raise die("no options specified")
    delete, revert = split_list(given.pop("delete", "")), split_list(given.pop("revert", ""))
    if "cpuunits" in given:
        given["cpuunits"] = str(hotplug.clamp_units(world, int(given["cpuunits"])))
    _check_names(release, given, delete, revert)
    guest = call.container()
    demand_keys(call, guest.config.current, given, [*delete, *revert])
    async with world.locked(guest):
        guest = call.container()
        guest.check_lock()
        _check_digest(call, guest.config)
        world.check_write(guest)
        _update(call, guest, given, delete, revert)


def _check_digest(call: Call, config: Config) -> None:
    if call.text("digest") not in {"", config.digest()}:
        raise die(MODIFIED)


def _check_names(release: str, given: Values, delete: list[str], revert: list[str]) -> None:
    for option, names, other in (("revert", revert, []), ("delete", delete, revert)):
        for name in names:
            if not knows_option(name, release):
                raise refuse({option: f"unknown option '{name}'"})
            if name in given:
                raise refuse({option: f"you can't use '-{name}' and -{option} {name}' at the same time"})
            if name in other:
                raise refuse({option: f"you can't use '-delete {name}' and '-revert {name}' at the same time"})


def demand_keys(call: Call, old: Values, given: Values, removed: t.Iterable[str]) -> None:
    """Each key has its privilege; some are root's alone, and a token of root is not root."""
    if call.who.root:
        return
    for key in removed:
        call.demand(f"/vms/{call.params['vmid']}", _privilege(key))
    for key in sorted(given):
        _demand_key(call, old, key, given[key])


def _privilege(key: str) -> str:
    if VOLUME.fullmatch(key) or key.startswith("unused"):
        return "VM.Config.Disk"
    if hotplug.NETWORK.fullmatch(key):
        return "VM.Config.Network"
    return _PRIVILEGE.get(key, "VM.Config.Options")


def _demand_key(call: Call, old: Values, key: str, value: str) -> None:
    if key == "features":
        if old.get("unprivileged") != "1":
            raise deny("changing feature flags for privileged container is only allowed for root@pam")
        before, after = parse_properties(old.get("features", "")), parse_properties(value)
        if {name: after.get(name) for name in after if name != "nesting"} != {name: before.get(name) for name in before if name != "nesting"}:
            raise deny("changing feature flags (except nesting) is only allowed for root@pam")
    elif key == "hookscript":
        raise deny("changing the hookscript is only allowed for root@pam")
    elif hotplug.DEVICE.fullmatch(key):
        raise deny("configuring device passthrough is only allowed for root@pam")
    call.demand(f"/vms/{call.params['vmid']}", _privilege(key))
    if VOLUME.fullmatch(key):
        volume = read_volume(key, value)
        if volume.storage is None:
            kind = "device" if volume.name.startswith("/dev/") else "bind"
            raise deny(f"mount point type {kind} is only allowed for root@pam")
        if storage := wants_new_disk(value):
            call.demand(f"/storage/{storage}", "Datastore.AllocateSpace")


def _update(call: Call, guest: Guest, given: Values, delete: list[str], revert: list[str]) -> None:
    """Change a copy of the configuration and keep it if nothing was refused; what the kernel took meanwhile it keeps in any case."""
    world = call.world
    world.catch_up()
    world.settle(guest, world.now())
    config = copy.deepcopy(guest.config)
    for key in revert:
        config.pending.pop(key, None)
    config.deleted = [key for key in config.deleted if key not in revert]
    for key in delete:
        _delete_later(guest, config, key)
    for key in sorted(given):
        _check_value(guest, config, key)
        config.pending[key] = _cleaned(key, given[key])
        config.deleted = [name for name in config.deleted if name != key]
    config.tidy()
    selected = {*given, *delete}
    apply = hotplug.Hotplug(world, guest, config, selected).apply if guest.running else lambda: hotplug.apply_stopped(world, guest, config, selected)
    errors = apply()
    if not errors:
        guest.config = config
    world.note(guest)
    if errors:
        raise refuse(errors)


def _delete_later(guest: Guest, config: Config, key: str) -> None:
    if key not in config.current and key not in config.pending:
        return
    if key in _REQUIRED:
        raise die(f"unable to delete required option '{key}'")
    if key == "unprivileged":
        raise die(f"unable to delete read-only option: '{key}'")
    if hotplug.MOUNT.fullmatch(key) or key.startswith("unused"):
        _check_protection(guest, f"can't remove CT {guest.vmid} drive '{key}'")
    config.pending.pop(key, None)
    config.deleted.append(key)


def _check_value(guest: Guest, config: Config, key: str) -> None:
    if key == "unprivileged":
        raise die(f"unable to modify read-only option: '{key}'")
    if VOLUME.fullmatch(key):
        _check_protection(guest, f"can't update CT {guest.vmid} drive '{key}'")


def _check_protection(guest: Guest, what: str) -> None:
    if guest.config.current.get("protection") == "1":
        raise die(f"{what} - protection mode enabled")


def _cleaned(key: str, value: str) -> str:
    cleaners: dict[str, t.Callable[[str], str]] = {"tags": clean_tags, "description": clean_description}
    return cleaners[key](value) if key in cleaners else value


# creation and removal


def create(call: Call) -> str:
    world, node = call.world, call.node
    vmid = call.vmid
    pool = call.text("pool")
    if not (pool and call.may(f"/pool/{pool}", "VM.Allocate")):
        call.demand(f"/vms/{vmid}", "VM.Allocate")
    values = _new_values(call)
    if not call.who.root:
        demand_keys(call, {"unprivileged": call.text("unprivileged")}, {key: value for key, value in values.items() if key not in {"arch", "ostype"}}, ())
    if vmid in world.guests:
        taken = world.guests[vmid]
        raise die(f"unable to create CT {vmid} - {'CT' if taken.kind == 'lxc' else 'VM'} {vmid} already exists on node '{taken.node}'")
    archive = call.params["ostemplate"]
    _check_archive(call, archive)
    guest = Guest(vmid, node, Flock(world.clock), created=world.now())
    guest.workload = world.templates.get(archive, world.default_workload)
    for key in sorted(values):
        if VOLUME.fullmatch(key):
            values[key] = allocate(world, vmid, key, values[key])
    guest.config.current = {"lock": "create"} | values
    world.guests[vmid] = guest
    if pool:
        world.access.pools.setdefault(pool, set()).add(vmid)
    return call.fork("vzcreate", vmid, lambda task: _extract(call, guest, archive, task))


def _new_values(call: Call) -> Values:
    """The configuration that a request for a new container comes to."""
    known = config_params(call.world.release)
    numbered = re.compile(r"(mp|net|dev|unused)\d+")
    values = {key: _cleaned(key, value) for key, value in call.params.items() if (key in known and key != "lock") or numbered.fullmatch(key)}
    defaults = {"arch": "amd64", "hostname": f"CT{call.vmid}", "memory": "512", "swap": "512", "ostype": "debian"}
    values = defaults | {"rootfs": f"{call.text('storage', 'local')}:4"} | values
    if values.get("unprivileged") != "1":
        values.pop("unprivileged", None)
    if "cpuunits" in values:
        values["cpuunits"] = str(hotplug.clamp_units(call.world, int(values["cpuunits"])))
    for key in values:
        if hotplug.NETWORK.fullmatch(key):
            values[key] = _print_net(call, values[key])
    return values


def _print_net(call: Call, value: str) -> str:
    net = parse_properties(value)
    net.setdefault("hwaddr", f"BC:24:11:{':'.join(f'{call.world.random.randrange(256):02X}' for _ in range(3))}")
    net.setdefault("type", "veth")
    return ",".join(f"{key}={net[key]}" for key in sorted(net, key=lambda key: (key != "name", key)))


def _check_archive(call: Call, archive: str) -> None:
    name = archive.partition(":")[0]
    storage = call.world.storages.get(name)
    if storage is None:
        raise die(f"storage '{name}' does not exist")
    if not call.who.root and not any(call.may(f"/storage/{name}", privilege) for privilege in ("Datastore.AllocateSpace", "Datastore.Audit")):
        raise deny(f"/storage/{name}, Datastore.AllocateSpace|Datastore.Audit")
    if not any(entry["volid"] == archive for entry in storage.contents):
        raise die(f"volume '{archive}' does not exist")


async def _extract(call: Call, guest: Guest, archive: str, task: Task) -> None:
    task.log.append(f"extracting archive '/var/lib/vz/template/cache/{archive.rpartition('/')[2]}'")
    try:
        await task.work(1.0)
    except TaskError as error:
        call.world.guests.pop(guest.vmid, None)
        raise TaskError(f"unable to create CT {guest.vmid} - {error}") from None
    guest.config.current.pop("lock", None)
    call.world.catch_up()
    call.world.note(guest)
    if call.flag("start"):
        await call.world.clock.sleep(guest.workload.start)
        call.world.start(guest)


def remove(call: Call) -> str:
    guest = call.container()
    _check_removal(call, guest)
    if guest.running and not call.flag("force"):
        raise die(f"unable to destroy CT {guest.vmid} - container is running")
    return call.fork("vzdestroy", guest.vmid, lambda task: _destroy(call, task))


def _check_removal(call: Call, guest: Guest) -> None:
    _check_protection(guest, f"can't remove CT {guest.vmid}")
    guest.check_lock()
    if guest.ha and not call.flag("purge"):
        raise die(f"unable to remove CT {guest.vmid} - used in HA resources and purge parameter not set.")


async def _destroy(call: Call, task: Task) -> None:
    world = call.world
    guest = call.container()
    async with world.locked(guest, task_error):
        _check_removal(call, guest)
        if guest.running:
            world.kill(guest)
        await task.work(0.3)
        if guest.real:
            guest.real.destroy()
        world.catch_up()
        world.guests.pop(guest.vmid, None)
        for members in world.access.pools.values():
            members.discard(guest.vmid)
        world.access.entries = [entry for entry in world.access.entries if entry.path != f"/vms/{guest.vmid}"]


def make_template(call: Call) -> None:
    guest = call.container()
    guest.check_lock()
    if guest.config.snapshots:
        raise die("unable to create template, because CT contains snapshots")
    if guest.template:
        raise die("you can't convert a template to a template")
    if guest.running:
        raise die("you can't convert a CT to template if the CT is running")
    guest.config.current["template"] = "1"


# resizing


def resize(call: Call) -> str:
    _resized(call)
    return call.fork("resize", call.vmid, lambda task: _resize(call, task))


def _resized(call: Call) -> tuple[Guest, str, int]:
    """The container, the disk and its new size, if the request can be granted."""
    guest, disk, wanted = call.container(), call.params["disk"], call.params["size"]
    guest.check_lock()
    _check_digest(call, guest.config)
    if disk not in guest.config.current:
        missing = {"volume": MISSING} | ({"mp": MISSING} if disk != "rootfs" else {})
        raise ApiError(500, "format error", missing)
    volume = read_volume(disk, guest.config.current[disk])
    if volume.storage and not call.who.root:
        call.demand(f"/storage/{volume.storage}", "Datastore.AllocateSpace")
    size = int(parse_size(wanted.lstrip("+"))) + (volume.size if wanted.startswith("+") else 0)
    if size < volume.size:
        raise die("unable to shrink disk size")
    if size == volume.size:
        raise die("disk is already at specified size")
    return guest, disk, size


async def _resize(call: Call, task: Task) -> None:
    guest = call.container()
    async with call.world.locked(guest, task_error):
        guest, disk, size = _resized(call)
        await task.work(0.3)
        value = re.sub(r",size=[^,]*", "", guest.config.current[disk])
        guest.config.current[disk] = f"{value},size={print_size(size)}"
        call.world.note(guest)


def routes(release: str) -> list[Route]:
    known = config_params(release)
    frames = tuple(name for name in usage.frames(release) if name != "decade")
    base = "/nodes/{node}/lxc/{vmid}"
    creation = {
        **dict.fromkeys(("force", "ignore-unpack-errors", "restore", "start", "unique"), BOOLEAN),
        "bwlimit": Param("number", 0),
        "ostemplate": text(longest=255).needed(),
        "password": text(shortest=5),
        "pool": STRING,
        "ssh-public-keys": STRING,
        "storage": STORAGE_ID,
        "vmid": VMID,
    }
    if release >= "9":
        creation["ha-managed"] = BOOLEAN
    rrd = {"timeframe": enum(*frames).needed(), "cf": enum("AVERAGE", "MAX")}
    removal = {"force": BOOLEAN, "purge": BOOLEAN, "destroy-unreferenced-disks": BOOLEAN}
    size = {"disk": enum(*VOLUME_NAMES).needed(), "size": text(pattern=r"\+?\d+(\.\d+)?[KMGT]?").needed(), "digest": DIGEST}
    change = known | {"delete": CONFIG_IDS, "revert": CONFIG_IDS, "digest": DIGEST}
    qemu = "/nodes/{node}/qemu/{vmid}"
    return [
        Route("GET", "/nodes/{node}/lxc", listing, {}),
        Route("POST", "/nodes/{node}/lxc", create, known | creation, numbered=True),
        Route("GET", base, index, {}),
        Route("DELETE", base, remove, removal, perm("/vms/{vmid}", "VM.Allocate")),
        Route("GET", f"{base}/config", get_config, {"current": BOOLEAN, "snapshot": SNAPNAME}, _AUDIT),
        Route("PUT", f"{base}/config", set_config, change, perm("/vms/{vmid}", *CONFIG_PRIVILEGES, any_of=True), numbered=True),
        Route("GET", f"{base}/pending", get_pending, {}, _AUDIT),
        Route("GET", f"{base}/status/current", current, {}, _AUDIT),
        Route("GET", f"{base}/rrddata", rrddata, rrd, _AUDIT, proxied=False),
        Route("GET", f"{base}/feature", feature, {"feature": enum("snapshot", "clone", "copy").needed(), "snapname": SNAPNAME}, _AUDIT),
        Route("GET", f"{base}/interfaces", interfaces, {}, _AUDIT),
        Route("POST", f"{base}/template", make_template, {}, perm("/vms/{vmid}", "VM.Allocate")),
        Route("PUT", f"{base}/resize", resize, size, perm("/vms/{vmid}", "VM.Config.Disk", any_of=True)),
        Route("GET", "/nodes/{node}/qemu", listing_qemu, {"full": BOOLEAN}),
        Route("GET", f"{qemu}/config", get_qemu_config, {"current": BOOLEAN, "snapshot": SNAPNAME}, _AUDIT),
        Route("GET", f"{qemu}/pending", get_qemu_pending, {}, _AUDIT),
        Route("GET", f"{qemu}/status/current", qemu_current, {}, _AUDIT),
        Route("GET", f"{qemu}/agent/{{command}}", ask_agent, {}, perm("/vms/{vmid}", "VM.GuestAgent.Audit" if release >= "9" else "VM.Monitor")),
        Route("GET", f"{qemu}/rrddata", rrddata, rrd, _AUDIT, proxied=False),
    ]
