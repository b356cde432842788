# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a cluster and a token let this collection do, told from what was read of them. Pure: no I/O.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._change import DEFAULT
from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError, NotFound, Refused
from ansible_collections.homelab.healer.plugins.module_utils._guests import held, unlock
from ansible_collections.homelab.healer.plugins.module_utils._sizes import span
from ansible_collections.homelab.healer.plugins.module_utils._snapshots import SNAPSHOTS, History, expired, full, obstacles, volumes

Facts = t.Dict[str, t.Any]
Entry = t.Mapping[str, t.Any]
FULL = 90.0
"""Per cent from which on a storage is full; above it lxc_snapshot makes no more snapshots, if it is not told otherwise."""
OLD_BACKUP = 7 * 86400
"""Seconds after which a backup is old."""
PRESSURE_SINCE = 9
"""The first release that tells who waits for memory or CPU."""
SEVERITIES = ("problem", "warning", "note")
LOCKED_BY_SNAPSHOTS = ("snapshot", "snapshot-delete")
LOWEST = {"proxmoxer": (2, 2), "docker": (7, 0)}
"""The lowest version of each library that works."""


@dataclass(frozen=True)
class Area:
    """Privileges that are granted together: the path they are granted on, and the role to make for them where there is not the documented one."""

    path: str
    role: str
    privileges: tuple[str, ...]


GUESTS = Area("/vms", "HealerGuests", ("VM.Audit", "VM.Config.CPU", "VM.Config.Memory", "VM.PowerMgmt", "VM.Snapshot", "VM.Snapshot.Rollback"))
NODES = Area("/nodes", "HealerNodes", ("Sys.Audit",))
STORAGES = Area("/storage", "HealerStorage", ("Datastore.Audit",))
AREAS = (GUESTS, NODES, STORAGES)
ROLE, EVERY = "Healer", tuple(name for area in AREAS for name in area.privileges)
"""The role that the documentation makes, and all its privileges."""
TOO_MUCH = {
    "VM.Config.Options": "it can set a container's lock, protection and start at boot",
    "VM.Allocate": "it can remove containers",
    "Permissions.Modify": "it can give itself and others any right",
}


@dataclass(frozen=True)
class Remedy:
    """What a remedy needs of a container: all of some privileges or one of others, that it runs, a snapshot as point of return, the node's figures."""

    name: str
    privileges: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    running: bool = False
    returns: bool = False
    figures: bool = False


REMEDIES = (
    Remedy("lxc_memory", ("VM.Config.Memory",), running=True, returns=True, figures=True),
    Remedy("lxc_cpu", ("VM.Config.CPU",), running=True, returns=True),
    Remedy("lxc_resources", ("VM.Config.CPU", "VM.Config.Memory"), returns=True, figures=True),
    Remedy("lxc_restart", ("VM.PowerMgmt",)),
    Remedy("lxc_snapshot", ("VM.Snapshot",)),
    Remedy("lxc_rollback", one_of=("VM.Snapshot", "VM.Snapshot.Rollback")),
)


@dataclass(frozen=True)
class Speaker:
    """Who speaks to the cluster. ``token`` is the id of a user's token, empty for a password; ``separated`` whether that has rights of its own."""

    user: str
    token: str = ""
    separated: bool | None = None

    @property
    def name(self) -> str:
        return f"{self.user}!{self.token}" if self.token else self.user


@dataclass(frozen=True)
class Sight:
    """All that was read.

    ``known`` are the cluster's resources, ``rules`` the privileges by path, each with whether it reaches below, ``roles`` those of each role.
    ``asked`` are the containers that shall be looked at, ``unread`` says why some of them could not be read. By their numbers, ``backups`` says when
    each was backed up last in seconds since 1970, ``backups_unseen`` why that may be wrong, and ``addresses`` where it is, ``None`` if that is not told.
    """

    version: Entry
    speaker: Speaker
    known: t.Sequence[Entry]
    rules: t.Mapping[str, t.Mapping[str, int]]
    asked: tuple[int, ...] | None
    roles: t.Mapping[str, t.AbstractSet[str]] = field(default_factory=dict)
    histories: t.Sequence[History] = ()
    unread: t.Sequence[HealerError] = ()
    backups: t.Mapping[int, int | None] = field(default_factory=dict)
    backups_unseen: t.Mapping[int, str] = field(default_factory=dict)
    addresses: t.Mapping[int, list[str] | None] = field(default_factory=dict)
    libraries: t.Mapping[str, str | None] = field(default_factory=dict)

    def of(self, kind: str) -> list[Entry]:
        """The cluster's resources of one type."""
        return [entry for entry in self.known if entry["type"] == kind]

    def held(self, path: str) -> set[str]:
        """The privileges on a path: its own, or those that reach it from the nearest path above."""
        return held(self.rules, path)

    @property
    def whole(self) -> bool:
        """Whether all guests can be seen."""
        return "VM.Audit" in self.held(GUESTS.path) and not self.hidden

    @property
    def hidden(self) -> list[str]:
        """The numbers of containers that the token shall look at, or has a rule for, and may not see."""
        seen = {str(entry["vmid"]) for entry in self.known if entry["type"] in ("lxc", "qemu")}
        meant = {path.rpartition("/")[2] for path in self.rules if path.startswith("/vms/")} | {str(vmid) for vmid in self.asked or ()}
        return sorted((vmid for vmid in meant - seen if "VM.Audit" not in self.held(f"/vms/{vmid}")), key=int)

    @property
    def storages_missed(self) -> list[str]:
        """Storages that containers have volumes on, and that cannot be seen."""
        used = {source for history in self.histories for source in volumes(history.guest.config).values() if source and not source.startswith("/")}
        return sorted(used - {entry["storage"] for entry in self.of("storage")})


def chosen(known: t.Sequence[Entry], asked: t.Sequence[int] | None) -> dict[str, list[int]]:
    """The containers to look at, by the node that has them; without ``asked`` all that can be seen, templates left out. A node that is down has none."""
    down = {entry["node"] for entry in known if entry["type"] == "node" and entry["status"] == "offline"}
    found: dict[str, list[int]] = {}
    for entry in sorted((entry for entry in known if entry["type"] == "lxc" and entry["node"] not in down), key=lambda entry: int(entry["vmid"])):
        if int(entry["vmid"]) in asked if asked is not None else not entry.get("template"):
            found.setdefault(str(entry["node"]), []).append(int(entry["vmid"]))
    return found


def addresses(interfaces: t.Iterable[Entry] | None) -> list[str] | None:
    """The addresses of a container's network interfaces that others can reach; ``None`` where they are not told."""
    if interfaces is None:
        return None
    reachable = [interface for interface in interfaces if interface.get("name") != "lo"]
    found = [str(interface[key]).partition("/")[0] for interface in reachable for key in ("inet", "inet6") if interface.get(key)]
    return [one for one in found if not one.lower().startswith("fe80:")]


def examine(sight: Sight) -> Facts:
    """The report: what is there, what the token may do, and what is to be done about it."""
    privileges = [_privilege(sight, area, name) for area in AREAS for name in area.privileges]
    containers = [_container(sight, history) for history in sight.histories]
    storages, nodes = _storages(sight), _nodes(sight)
    findings = [
        *_on_token(sight, privileges),
        *_on_nodes(sight, nodes),
        *_on_storages(storages, {node["name"] for node in nodes if node["status"] == "online"}),
        *_on_containers(sight, containers),
        *_on_libraries(sight.libraries),
    ]
    return dict(
        release=str(sight.version["release"]),
        version=str(sight.version["version"]),
        nodes=nodes,
        guests=dict(**_counts(sight.known), whole=sight.whole),
        token=dict(
            name=sight.speaker.name,
            separated=sight.speaker.separated,
            held={path: sorted(held) for path, held in sorted(sight.rules.items())},
            privileges=privileges,
            too_much=_too_much(sight),
        ),
        storages=storages,
        containers=containers,
        remedies=[_remedy(sight, remedy) for remedy in REMEDIES],
        libraries=dict(sight.libraries),
        findings=sorted(findings, key=lambda found: (SEVERITIES.index(found["severity"]), found["what"])),
    )


def finding(severity: str, what: str, why: str, fix: str) -> Facts:
    """One line of the report."""
    return dict(severity=severity, what=what, why=why, fix=fix)


# Rights


def _privilege(sight: Sight, area: Area, name: str) -> Facts:
    """Whether the token has a privilege, for what not, and the commands that grant it."""
    lacking = _lacking(sight, area, name)
    has = not lacking and (_seen(sight, area) or name in sight.held(area.path))
    grant = [] if has else grants(sight, area, _paths(sight, area, lacking), [name])
    return dict(privilege=name, path=area.path, has=has, missing_for=sorted(lacking), grant=grant)


def _seen(sight: Sight, area: Area) -> bool:
    """Whether there is something in an area that can be seen, and tells by that what the token may do."""
    return bool(sight.histories if area is GUESTS else sight.of("node" if area is NODES else "storage"))


def _lacking(sight: Sight, area: Area, name: str) -> dict[str, str]:
    """For what a privilege is missing: the name of each node, storage or container, and its path."""
    if area is NODES:  # what the cluster tells of a node that is up is the proof; of one that is down, only the rules tell
        paths = {str(entry["node"]): f"/nodes/{entry['node']}" for entry in sight.of("node")}
        silent = {entry["node"] for entry in sight.of("node") if "maxmem" not in entry}
        down = {entry["node"] for entry in sight.of("node") if entry["status"] != "online"}
        return {node: path for node, path in paths.items() if node in silent and (node not in down or name not in sight.held(path))}
    if area is STORAGES:
        return {storage: f"/storage/{storage}" for storage in sight.storages_missed}
    if name == "VM.Audit":
        return {vmid: f"/vms/{vmid}" for vmid in sight.hidden}
    return {history.name: f"/vms/{history.key}" for history in sight.histories if name not in history.guest.privileges}


def _paths(sight: Sight, area: Area, lacking: t.Mapping[str, str]) -> list[str]:
    """Where to grant it. A role on a path takes the place of those from above, so a path with other rights than the one above needs a role of its own."""
    above = sight.held(area.path)
    own = {path for path in lacking.values() if path in sight.rules and set(sight.rules[path]) != above}
    return sorted(own | ({area.path} if set(lacking.values()) - own or not lacking else set()))


def grants(sight: Sight, area: Area, paths: t.Sequence[str], missing: t.Sequence[str]) -> list[str]:
    """The commands that grant these privileges on these paths, to be run on a node.

    A role is added to those of the same path and takes the place of those from above, so it gets what the token has of the area there, too.
    """
    role = ROLE if ROLE in sight.roles else area.role
    known = sight.roles.get(role)
    held = {name for path in paths for name in sight.held(path)}
    wanted = [name for name in area.privileges if name in missing or (known is None and name in held)]
    lacking = [name for name in wanted if name not in (known or ())]
    make = f"pveum role {f'add {role}' if known is None else f'modify {role} --append 1'} --privs '{' '.join(lacking)}'"
    speaker = sight.speaker
    whom = ([] if speaker.user == "root@pam" else [f"--users {speaker.user}"]) + ([f"--tokens '{speaker.name}'"] if speaker.token else [])
    return [*([make] if lacking else []), *(f"pveum acl modify {path} {' '.join(whom)} --roles {role}" for path in paths)]


def _too_much(sight: Sight) -> dict[str, list[str]]:
    """Privileges that the collection never needs and that do harm in other hands, each with the highest paths on which the token has it."""
    found = {name: [path for path, held in sorted(sight.rules.items()) if name in held] for name in TOO_MUCH}
    return {name: [path for path in paths if not any(_below(path, other) for other in paths)] for name, paths in found.items() if paths}


def _below(path: str, other: str) -> bool:
    return path != other and path.startswith(other.rstrip("/") + "/")


def _on_token(sight: Sight, privileges: t.Sequence[Facts]) -> list[Facts]:
    speaker, told = sight.speaker, []
    for area in AREAS:
        missing = [entry["privilege"] for entry in privileges if entry["path"] == area.path and not entry["has"]]
        if missing:
            told.append(_missing(sight, area, missing))
    if not sight.whole and sight.histories:
        why = "its privilege VM.Audit is not for all of /vms, so the counts, and the sum of what the guests of a node may use, leave out the others"
        told.append(finding("note", f"{speaker.name} may not see all guests", why, "If that is not meant: grant VM.Audit on /vms."))
    much = _too_much(sight)
    if speaker.user == "root@pam":
        least = Sight(sight.version, Speaker("healer@pve", "healer"), (), {}, None, roles={ROLE: set(EVERY), **sight.roles})
        commands = [] if ROLE in sight.roles else [f"pveum role add {ROLE} --privs '{' '.join(EVERY)}'"]
        commands += ["pveum user add healer@pve", "pveum user token add healer@pve healer --privsep 1"]
        commands += [command for area in AREAS for command in grants(least, area, [area.path], area.privileges)]
        why = "whoever gets hold of its secret has the whole cluster"
        told.append(finding("warning", f"{speaker.name} is the administrator's", why, _run(commands)))
    elif much:
        why = "; ".join(f"with {name} on {', '.join(paths)} {TOO_MUCH[name]}" for name, paths in much.items())
        told.append(finding("warning", f"{speaker.name} may do more than it needs", why, f"Take {', '.join(much)} out of its role, and of its user's."))
    if speaker.separated is False:
        why = "it has all rights of its user, also those that the user is given later"
        fix = f"Give it rights of its own, then run on a node: pveum user token modify {speaker.user} {speaker.token} --privsep 1"
        told.append(finding("warning", f"{speaker.name} has no privilege separation", why, fix))
    return told


def _missing(sight: Sight, area: Area, missing: t.Sequence[str]) -> Facts:
    lacking = {name: path for privilege in missing for name, path in _lacking(sight, area, privilege).items()}
    severity, why = _consequence(area, missing)
    whose = f" for {', '.join(sorted(lacking))}" if lacking else ""
    return finding(severity, f"{sight.speaker.name} lacks {', '.join(missing)}{whose}", why, _run(grants(sight, area, _paths(sight, area, lacking), missing)))


def _consequence(area: Area, missing: t.Sequence[str]) -> tuple[str, str]:
    """How bad it is that these privileges of an area are missing, and what follows."""
    if area is NODES:
        return "problem", "so it cannot see what the node has, and gives no container more memory (lxc_memory, lxc_resources)"
    if area is STORAGES:
        return "warning", "so it cannot see how full storages are, why a container cannot be snapshotted, and where its backups are"
    if "VM.Audit" in missing:
        return "problem", "what it may not see cannot be healed"
    needy = [remedy.name for remedy in REMEDIES if _needs(remedy, set(missing))]
    return ("problem", f"so it cannot do {', '.join(needy)}") if needy else ("note", "it can do without, as VM.Snapshot lets it go back, too")


def _needs(remedy: Remedy, missing: t.AbstractSet[str]) -> bool:
    needed = {*remedy.privileges, *(["VM.Snapshot"] if remedy.returns else [])}
    return bool(needed & missing) or bool(remedy.one_of and set(remedy.one_of) <= missing)


def _run(commands: t.Sequence[str]) -> str:
    return f"Run on a node: {' && '.join(commands)}"


# What there is


def _counts(entries: t.Iterable[Entry]) -> dict[str, int]:
    """How many containers, virtual machines, and templates of either."""
    kinds = ["templates" if entry.get("template") else str(entry["type"]) for entry in entries if entry["type"] in ("lxc", "qemu")]
    return {kind: kinds.count(kind) for kind in ("lxc", "qemu", "templates")}


def _nodes(sight: Sight) -> list[Facts]:
    return [
        dict(
            name=entry["node"],
            status=entry["status"],
            cpus=entry.get("maxcpu"),
            memory=int(entry["maxmem"]) >> 20 if entry.get("maxmem") else None,
            cgroup_version=str(entry.get("cgroup-mode") or ""),
            **_counts(guest for guest in sight.known if guest.get("node") == entry["node"]),
        )
        for entry in sorted(sight.of("node"), key=lambda entry: str(entry["node"]))
    ]


def _on_nodes(sight: Sight, nodes: t.Sequence[Facts]) -> list[Facts]:
    told = []
    for node in nodes:
        if node["status"] != "online":
            why = f"the cluster says it is {node['status']}, so its containers can be neither seen nor healed"
            told.append(finding("problem", f"node {node['name']} is not up", why, "Bring it back; one that has just started is known after ten seconds."))
        if node["cgroup_version"] == "1":
            why = "it has cgroup v1, which measures no pressure, so lxc_memory and lxc_cpu judge by the use alone"
            told.append(finding("note", f"{node['name']} does not tell who waits for memory or CPU", why, "Boot it with cgroup v2, the default since 7.0."))
    if int(str(sight.version["release"]).partition(".")[0]) < PRESSURE_SINCE:
        why = f"Proxmox VE {sight.version['release']} does not tell it, so lxc_memory and lxc_cpu judge by the use alone"
        told.append(finding("note", "the cluster does not tell who waits for memory or CPU", why, "From Proxmox VE 9 on it does."))
    machines = _counts(sight.known)["qemu"]
    if machines:
        why = "this collection heals containers; what runs in a virtual machine it reaches as a Docker Engine or a database"
        told.append(finding("note", f"virtual machines are counted and not changed ({machines})", why, "Nothing is to be done."))
    return told


def _storages(sight: Sight) -> list[Facts]:
    """Each storage once, a local one once for each node."""
    found: dict[str, Facts] = {}
    for entry in sorted(sight.of("storage"), key=lambda entry: (str(entry["storage"]), entry["status"] != "available", str(entry["node"]))):
        shared = bool(int(entry.get("shared") or 0))
        facts = found.setdefault(entry["storage"] if shared else entry["id"], _storage(entry, shared))
        facts["nodes"].append(entry["node"])
    return list(found.values())


def _storage(entry: Entry, shared: bool) -> Facts:
    used = round(100 * float(entry.get("disk") or 0) / float(entry["maxdisk"]), 1) if entry.get("maxdisk") else None
    return dict(
        name=entry["storage"],
        nodes=[],
        shared=shared,
        status=entry["status"],
        type=entry.get("plugintype"),
        content=sorted(str(entry.get("content") or "").split(",")),
        used=used,
        full=used is not None and used >= FULL,
        snapshots=SNAPSHOTS.get(str(entry.get("plugintype"))),
    )


def _on_storages(storages: t.Sequence[Facts], up: t.AbstractSet[str]) -> list[Facts]:
    told = []
    for storage in storages:
        name = f"storage {storage['name']} ({', '.join(storage['nodes'])})"
        if storage["full"]:
            why = "no snapshot is made there any more, and a full storage stops all guests that are on it"
            fix = "Make room: remove snapshots, volumes and backups that nobody needs."
            told.append(finding("problem", f"{name} is {storage['used']:g} % full", why, fix))
        if storage["status"] != "available" and up & set(storage["nodes"]):
            fix = "Look with pvesm status on the node."
            told.append(finding("problem", f"{name} is not there", f"the cluster says it is {storage['status']}", fix))
    return told


def _container(sight: Sight, history: History) -> Facts:
    taken = sight.backups.get(history.key)
    return dict(
        vmid=history.key,
        name=history.guest.hostname,
        node=history.guest.node.name,
        status=history.guest.status,
        lock=history.guest.lock,
        template=history.guest.template,
        tags=[tag for tag in str(history.guest.config.get("tags") or "").split(";") if tag],
        addresses=sight.addresses.get(history.key),
        no_snapshots=obstacles(history),
        snapshots=[snapshot.name for snapshot in history.snapshots],
        expired=[snapshot.name for snapshot in expired(history, None)],
        incomplete=[snapshot.name for snapshot in history.snapshots if snapshot.incomplete],
        backup_age=None if taken is None else max(0, int(history.seen - taken)),
        backup_unseen=sight.backups_unseen.get(history.key, ""),
    )


def _on_containers(sight: Sight, containers: t.Sequence[Facts]) -> list[Facts]:
    told = [finding("problem", error.what, error.why, error.fix) for error in (*sight.unread, *_wrongly_asked(sight))]
    for facts in containers:
        told += _on_container(facts)
    return told + _on_unseen_backups(containers)


def _wrongly_asked(sight: Sight) -> list[HealerError]:
    here = {int(entry["vmid"]): entry["type"] for entry in sight.known if entry["type"] in ("lxc", "qemu")}
    told: list[HealerError] = []
    for vmid in sight.asked or ():
        if vmid not in here:
            unsure = ", or this token may not see it" if str(vmid) in sight.hidden else ""
            told.append(NotFound(f"cannot find container {vmid}", why=f"there is none{unsure}", fix="Look with pct list."))
        elif here[vmid] == "qemu":
            told.append(Refused(f"cannot heal {vmid}", why="that is a virtual machine", fix="This collection changes containers; leave it out."))
    return told


def _on_container(facts: Facts) -> list[Facts]:
    name, vmid, told = f"{facts['vmid']} ({facts['name']})", facts["vmid"], []
    if facts["no_snapshots"]:
        fix = "Back it up instead. A change that can be put back exactly is made without a snapshot."
        told.append(finding("warning", f"{name} cannot be snapshotted", "; ".join(facts["no_snapshots"]), fix))
    if facts["lock"]:
        told.append(finding("warning", f"{name} is locked", f"CT is locked ({facts['lock']}), so nothing about it can be changed", unlock(vmid, facts["lock"])))
    if facts["expired"]:
        fix = f"Call homelab.healer.lxc_snapshot with vmid {vmid} and state absent: it removes what has expired, and nothing else."
        told.append(finding("warning", f"{name} has snapshots that nobody needs any more", f"their time is over: {', '.join(facts['expired'])}", fix))
    if facts["incomplete"] and facts["lock"] not in LOCKED_BY_SNAPSHOTS:
        fix = f"Look at that task's log, then remove it: pct delsnapshot {vmid} {facts['incomplete'][0]} --force 1."
        told.append(finding("warning", f"{name} has incomplete snapshots", f"their task failed half-way: {', '.join(facts['incomplete'])}", fix))
    return told + _on_backup(name, facts)


def _on_backup(name: str, facts: Facts) -> list[Facts]:
    age, fix = facts["backup_age"], f"Back it up: vzdump {facts['vmid']}, or a job for all."
    if _backed_up(facts) or facts["backup_unseen"]:
        return []
    if age is None:
        return [finding("warning", f"{name} has no backup", "none is on its node's storages, nor on those that are shared", fix)]
    return [finding("warning", f"the last backup of {name} is old", f"it was made {span(age)} ago", fix)]


def _backed_up(facts: Facts) -> bool:
    """Whether nothing is to be said about a container's backups: it has a young one, or needs none."""
    return bool(facts["template"]) or (facts["backup_age"] is not None and facts["backup_age"] <= OLD_BACKUP)


def _on_unseen_backups(containers: t.Sequence[Facts]) -> list[Facts]:
    """Which containers may have a backup that cannot be seen, once for each reason."""
    names: dict[str, list[str]] = {}
    for facts in containers:
        if facts["backup_unseen"] and not _backed_up(facts):
            age = facts["backup_age"]
            known = "no backup can be seen" if age is None else f"the last that can be seen is {span(age)} old"
            names.setdefault(f"{known}; {facts['backup_unseen']}", []).append(f"{facts['vmid']} ({facts['name']})")
    fix = "Let the token see where backups are; what shows them to it lets it make them, too. Or look with pvesm list on the node."
    return [finding("note", f"cannot tell when {', '.join(whose)} was backed up last", why, fix) for why, whose in names.items()]


def _on_libraries(libraries: t.Mapping[str, str | None]) -> list[Facts]:
    told = []
    for name, lowest in LOWEST.items():
        version, wanted = libraries.get(name), ".".join(str(part) for part in lowest)
        if version and tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < lowest:
            fix = f"Where the modules run: pip install '{name}>={wanted}'."
            told.append(finding("warning", f"the library {name} is too old", f"it is {version}, and this collection is made for {wanted} or newer", fix))
    return told


# Remedies


def _remedy(sight: Sight, remedy: Remedy) -> Facts:
    """Whether a remedy could heal all, some or none of the containers, and what is in its way."""
    reasons = {history.name: _hindrances(remedy, history) for history in sight.histories}
    hindered = [dict(container=name, why=why) for name, why in reasons.items() if why]
    able = len(reasons) - len(hindered)
    if not reasons:
        hindered = [dict(container="", why=["no container can be seen"])]
    return dict(remedy=remedy.name, can="none" if not able else "some" if hindered else "all", why=hindered)


def _hindrances(remedy: Remedy, now: History) -> list[str]:
    guest, told = now.guest, []
    if guest.template:
        told.append("it is a template")
    if guest.lock:
        told.append(f"it is locked ({guest.lock})")
    if remedy.running and not guest.running:
        told.append(f"it is {guest.status}")
    told += [f"{name} is missing" for name in remedy.privileges if name not in guest.privileges]
    if remedy.one_of and not guest.privileges & set(remedy.one_of):
        told.append(f"{' and '.join(remedy.one_of)} are missing, of which it needs one")
    if remedy.figures and guest.running and guest.node.memory is None:  # a stopped one uses none, so nothing is to be proved
        told.append(f"without Sys.Audit on {guest.node.name} it gets no more memory")
    unlimited = guest.limits["cores"] == DEFAULT and guest.limits["cpulimit"] == DEFAULT
    if remedy.name == "lxc_cpu" and unlimited:
        told.append("it has no CPU limit that could be raised; a given one (lxc_cpu_cpulimit) would hold it back")
    if remedy.name == "lxc_rollback" and all(snapshot.incomplete for snapshot in now.snapshots):
        told.append("it has no snapshot to go back to")
    return told + _no_snapshot(remedy, now)


def _no_snapshot(remedy: Remedy, now: History) -> list[str]:
    """Why there would be no snapshot. Before a change one is made where the container and its storages can, and there the change depends on it."""
    reasons, crowded = obstacles(now), [f"no snapshot is made while {told}" for told in full(now, FULL)]
    if remedy.name == "lxc_snapshot":
        return reasons or crowded
    if reasons or crowded or not remedy.returns or "VM.Snapshot" in now.guest.privileges:
        return []
    return [f"VM.Snapshot is missing, which the snapshot before it needs ({remedy.name}_snapshot=false leaves that out)"]
