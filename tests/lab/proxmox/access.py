"""Users, tokens, roles and access lists: who holds which privilege on which path."""

from __future__ import annotations

import dataclasses
import secrets
import uuid

from tests.lab.proxmox.errors import deny

_PRIVILEGES = {
    "Datastore": "Allocate AllocateSpace AllocateTemplate Audit",
    "Group": "Allocate",
    "Mapping": "Audit Modify Use",
    "Permissions": "Modify",
    "Pool": "Allocate Audit",
    "Realm": "Allocate AllocateUser",
    "SDN": "Allocate Audit Use",
    "Sys": "AccessNetwork Audit Console Incoming Modify PowerMgmt Syslog",
    "User": "Modify",
    "VM": (
        "Allocate Audit Backup Clone Config.CDROM Config.CPU Config.Cloudinit Config.Disk Config.HWType Config.Memory Config.Network Config.Options "
        "Console Migrate PowerMgmt Snapshot Snapshot.Rollback"
    ),
}
_BASE = frozenset(f"{area}.{name}" for area, names in _PRIVILEGES.items() for name in names.split())
_NEW_9 = frozenset({"VM.Replicate", *(f"VM.GuestAgent.{name}" for name in ("Audit", "FileRead", "FileWrite", "FileSystemMgmt", "Unrestricted"))})

CONFIG_PRIVILEGES = ("VM.Config.Disk", "VM.Config.CPU", "VM.Config.Memory", "VM.Config.Network", "VM.Config.Options")


def privileges(release: str) -> frozenset[str]:
    return _BASE | (_NEW_9 if release >= "9" else frozenset({"VM.Monitor"}))


def builtin_roles(release: str) -> dict[str, frozenset[str]]:
    every = privileges(release)
    user = {"VM.Audit", "VM.Backup", "VM.Config.CDROM", "VM.Config.Cloudinit", "VM.Console", "VM.PowerMgmt"}
    if release >= "9":
        user |= {name for name in _NEW_9 if "GuestAgent" in name and "Unrestricted" not in name}
    return {
        "Administrator": every,
        "NoAccess": frozenset(),
        "PVEAdmin": every - {"Permissions.Modify", "Realm.Allocate", "Sys.Modify", "Sys.PowerMgmt", "Sys.Incoming", "Sys.AccessNetwork"},
        "PVEAuditor": frozenset(name for name in every if name.endswith(".Audit")),
        "PVEVMAdmin": frozenset(name for name in every if name.startswith("VM.")),
        "PVEVMUser": frozenset(user),
        "PVEDatastoreAdmin": frozenset(name for name in every if name.startswith("Datastore.")),
        "PVEDatastoreUser": frozenset({"Datastore.AllocateSpace", "Datastore.Audit"}),
        "PVEPoolAdmin": frozenset({"Pool.Allocate", "Pool.Audit"}),
        "PVEPoolUser": frozenset({"Pool.Audit"}),
        "PVESysAdmin": frozenset({"Sys.Audit", "Sys.Console", "Sys.Syslog"}),
        "PVEUserAdmin": frozenset({"Group.Allocate", "Realm.AllocateUser", "User.Modify"}),
    }


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who sent a request: a user, or one of the user's tokens."""

    user: str
    token: str | None = None

    def __str__(self) -> str:
        return f"{self.user}!{self.token}" if self.token else self.user

    @property
    def root(self) -> bool:
        """Whether this is root itself: a token of root is not."""
        return self.user == "root@pam" and self.token is None


@dataclasses.dataclass
class Token:
    secret: str
    privsep: bool = True
    comment: str = ""
    expire: int = 0


@dataclasses.dataclass
class User:
    password: str | None = None
    tokens: dict[str, Token] = dataclasses.field(default_factory=dict)
    groups: list[str] = dataclasses.field(default_factory=list)
    comment: str = ""
    enable: bool = True
    expire: int = 0


@dataclasses.dataclass
class Entry:
    """One line of an access list: ``kind`` is user, group or token, ``who`` its name."""

    path: str
    kind: str
    who: str
    role: str
    propagate: bool = True


def normal_path(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part)


class Access:
    """The file of users, and what follows from it. Every question is answered from the present state: an edited role acts on the next request."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.builtin = builtin_roles(release)
        self.roles: dict[str, set[str]] = {}
        self.users: dict[str, User] = {}
        self.groups: dict[str, str] = {}
        self.entries: list[Entry] = []
        self.pools: dict[str, set[int | str]] = {}
        self.tickets: dict[str, tuple[str, float]] = {}
        self._known: dict[tuple[Identity, str], dict[str, bool]] = {}

    def role(self, name: str) -> frozenset[str] | None:
        if name in self.builtin:
            return self.builtin[name]
        return frozenset(self.roles[name]) & privileges(self.release) if name in self.roles else None

    def add_token(self, user: str, name: str, secret: str | None = None, *, privsep: bool = True) -> Token:
        token = Token(secret or str(uuid.uuid4()), privsep)
        self.users.setdefault(user, User()).tokens[name] = token
        return token

    def find_token(self, full: str, secret: str, now: float) -> Identity | None:
        user, _, name = full.partition("!")
        token = self.users[user].tokens.get(name) if user in self.users and len(name) > 1 else None
        if token is None or not self.active(user, now) or 0 < token.expire < now or not secrets.compare_digest(token.secret.encode(), secret.encode()):
            return None
        return Identity(user, name)

    def active(self, user: str, now: float) -> bool:
        known = self.users.get(user)
        return known is not None and known.enable and not 0 < known.expire < now

    def forget(self) -> None:
        """Answer from the present state again; to be called when anything may have been edited."""
        self._known.clear()

    def held(self, who: Identity, path: str) -> dict[str, bool]:
        """The privileges on a path, and whether each reaches what is below it."""
        if (who, path) not in self._known:
            self._known[who, path] = self._held(who, normal_path(path))
        return self._known[who, path]

    def _held(self, who: Identity, path: str) -> dict[str, bool]:
        if who.token is None:
            return self._held_by(who.user, who.user, path, "user")
        of_user = self._held_by(who.user, who.user, path, "user")
        known = self.users.get(who.user)
        token = known.tokens.get(who.token) if known else None
        if token is None:
            return {}
        if not token.privsep:
            return of_user
        own = self._held_by(str(who), who.user, path, "token")
        return {name: reach for name, reach in own.items() if name in of_user}

    def _held_by(self, who: str, user: str, path: str, kind: str) -> dict[str, bool]:
        if kind == "user" and user == "root@pam":
            return dict.fromkeys(self.builtin["Administrator"], True)
        held = self._privileges_of(self._roles(who, user, path, kind))
        for pool in self._pools_of(path):
            held = {**dict.fromkeys(self._privileges_of(self._roles(who, user, f"/pool/{pool}", kind)), False), **held}
        return held

    def _privileges_of(self, roles: dict[str, bool]) -> dict[str, bool]:
        if "NoAccess" in roles:
            return {}
        return {name: reach for role, reach in roles.items() for name in self.role(role) or ()}

    def _roles(self, who: str, user: str, path: str, kind: str) -> dict[str, bool]:
        """The roles on a path: those of a deeper path replace those inherited, a user's own those of its groups."""
        roles: dict[str, bool] = {}
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            here = "/" + "/".join(parts[:depth])
            entries = [entry for entry in self.entries if entry.path == here and (entry.propagate or depth == len(parts))]
            own = {entry.role: entry.propagate for entry in entries if entry.kind == kind and entry.who == who}
            if not own and kind == "user" and user in self.users:
                own = {entry.role: entry.propagate for entry in entries if entry.kind == "group" and entry.who in self.users[user].groups}
            roles = own or roles
        return roles

    def _pools_of(self, path: str) -> list[str]:
        area, _, name = path[1:].partition("/")
        if area not in {"vms", "storage"} or not name:
            return []
        member: int | str = int(name) if name.isdigit() else name
        return [pool for pool, members in self.pools.items() if member in members]

    def may(self, who: Identity, path: str, privilege: str) -> bool:
        return privilege in self.held(who, path)

    def demand(self, who: Identity, path: str, *names: str) -> None:
        """Raise 403 with the first privilege that is missing."""
        held = self.held(who, path)
        for name in names:
            if name not in held:
                raise deny(f"{path}, {name}")

    def demand_any(self, who: Identity, path: str, *names: str) -> None:
        if not self.held(who, path).keys() & set(names):
            raise deny(f"{path}, {'|'.join(names)}")

    def effective(self, who: Identity, only: str | None = None) -> dict[str, dict[str, int]]:
        """Privileges per path, for the usual paths, those that have entries, and what is in a pool."""
        usual = {"/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms"}
        usual |= {f"/{'vms' if isinstance(one, int) else 'storage'}/{one}" for members in self.pools.values() for one in members}
        paths = {normal_path(only)} if only else usual | {entry.path for entry in self.entries}
        found = {path: {name: int(reach) for name, reach in self.held(who, path).items()} for path in sorted(paths)}
        return {path: held for path, held in found.items() if held or only}

    def capabilities(self, who: Identity) -> dict[str, dict[str, int]]:
        areas = {"vms": "/vms", "storage": "/storage", "access": "/access", "nodes": "/nodes", "dc": "/", "sdn": "/sdn", "mapping": "/mapping"}
        return {area: dict.fromkeys(self.held(who, path), 1) for area, path in areas.items()}
