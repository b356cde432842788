"""Log-in, users, tokens, roles and access lists as the API edits them."""

from __future__ import annotations

import secrets
import typing as t

from tests.lab.proxmox.access import Entry, Identity, User, normal_path, privileges
from tests.lab.proxmox.calls import Call, Route, perm
from tests.lab.proxmox.errors import ApiError, deny, die, refuse
from tests.lab.proxmox.schema import BOOLEAN, COUNT, STRING, TOKEN_NAME, USER_ID, Param, split_list, text

TICKET_LIFE = 7200.0  # seconds
WRONG_DELAY = 3.0  # seconds until somebody hears that a log-in or a credential is wrong


def ticket(call: Call) -> dict[str, t.Any]:
    world = call.world
    name = call.params["username"]
    user = name if "@" in name or "realm" not in call.params else f"{name}@{call.params['realm']}"
    known = world.access.users.get(user)
    given = call.params["password"]
    renewed = world.access.tickets.get(given, ("", 0.0))
    right = known is not None and known.password is not None and secrets.compare_digest(known.password.encode(), given.encode())
    if not world.access.active(user, world.now()) or not (right or (renewed[0] == user and renewed[1] > world.now() - TICKET_LIFE)):
        raise ApiError(401, "authentication failure", delay=WRONG_DELAY)
    stamp = f"{int(world.now()):08X}"
    issued = f"PVE:{user}:{stamp}::{secrets.token_urlsafe(48)}=="
    world.access.tickets[issued] = (user, world.now())
    answer = {"username": user, "ticket": issued, "CSRFPreventionToken": csrf_token(issued), "cap": world.access.capabilities(Identity(user))}
    return answer | ({"clustername": world.cluster} if world.cluster else {})


def csrf_token(issued: str) -> str:
    """The token that goes with a ticket; only who has read the ticket's answer knows it."""
    return f"{issued.split(':')[2]}:{issued[-43:]}"


def no_ticket(call: Call) -> None:
    return None


def domains(call: Call) -> list[dict[str, t.Any]]:
    return [{"realm": "pam", "type": "pam", "comment": "Linux PAM standard authentication"}, {"realm": "pve", "type": "pve", "comment": "built in"}]


def permissions(call: Call) -> dict[str, dict[str, int]]:
    user, _, token = call.text("userid", str(call.who)).partition("!")
    asked = Identity(user, token or None)
    if asked != call.who and asked.user != call.who.user:
        call.demand("/access", "Sys.Audit")
    return call.world.access.effective(asked, call.params.get("path"))


# users


def _user(call: Call) -> User:
    user = call.world.access.users.get(call.params["userid"])
    if user is None:
        raise die(f"no such user ('{call.params['userid']}')")
    return user


def list_users(call: Call) -> list[dict[str, t.Any]]:
    seen = call.may("/access", "User.Modify") or call.may("/access", "Sys.Audit") or call.may("/access/groups", "User.Modify")
    shown = []
    for name, user in call.world.access.users.items():
        if seen or name == call.who.user:
            entry = {"userid": name, "enable": int(user.enable), "expire": user.expire, "realm-type": name.rpartition("@")[2]}
            entry |= {"comment": user.comment} if user.comment else {}
            shown.append(entry | ({"tokens": _tokens(user)} if call.flag("full") and user.tokens else {}))
    return shown


def _tokens(user: User) -> list[dict[str, t.Any]]:
    return [{"tokenid": name, "privsep": int(token.privsep), "expire": token.expire} for name, token in user.tokens.items()]


def get_user(call: Call) -> dict[str, t.Any]:
    user = _user(call)
    answer: dict[str, t.Any] = {"enable": int(user.enable), "expire": user.expire, "groups": list(user.groups)}
    if user.tokens:
        answer["tokens"] = {entry.pop("tokenid"): entry for entry in _tokens(user)}
    return answer | ({"comment": user.comment} if user.comment else {})


def add_user(call: Call) -> None:
    name = call.params["userid"]
    if name in call.world.access.users:
        raise die(f"create user failed: user '{name}' already exists")
    call.world.access.users[name] = User()
    _edit_user(call, call.world.access.users[name])


def set_user(call: Call) -> None:
    _edit_user(call, _user(call))


def _edit_user(call: Call, user: User) -> None:
    params = call.params
    user.password = params.get("password", user.password)
    user.comment = params.get("comment", user.comment)
    user.enable = params.get("enable", "1" if user.enable else "0") == "1"
    user.expire = call.integer("expire", user.expire)
    if "groups" in params:
        given = split_list(params["groups"])
        user.groups = [*user.groups, *given] if call.flag("append") else given


def delete_user(call: Call) -> None:
    _user(call)
    name = call.params["userid"]
    access = call.world.access
    del access.users[name]
    access.entries = [entry for entry in access.entries if entry.who != name and not entry.who.startswith(f"{name}!")]


def set_password(call: Call) -> None:
    _user(call).password = call.params["password"]


# tokens


def list_tokens(call: Call) -> list[dict[str, t.Any]]:
    return _tokens(_user(call))


def get_token(call: Call) -> dict[str, t.Any]:
    token = _user(call).tokens.get(call.params["tokenid"])
    if token is None:
        raise die(f"no such token '{call.params['tokenid']}' for user '{call.params['userid']}'")
    return {"privsep": int(token.privsep), "expire": token.expire} | ({"comment": token.comment} if token.comment else {})


def add_token(call: Call) -> dict[str, t.Any]:
    user, name = _user(call), call.params["tokenid"]
    if name in user.tokens:
        raise ApiError(400, "Parameter verification failed.", {"tokenid": "Token already exists."})
    token = call.world.access.add_token(call.params["userid"], name, privsep=call.text("privsep", "1") == "1")
    token.comment, token.expire = call.text("comment"), call.integer("expire", 0)
    info = {"privsep": str(int(token.privsep))} | ({"comment": token.comment} if token.comment else {})
    return {"full-tokenid": f"{call.params['userid']}!{name}", "value": token.secret, "info": info}


def set_token(call: Call) -> dict[str, t.Any]:
    get_token(call)
    token = _user(call).tokens[call.params["tokenid"]]
    token.privsep = call.text("privsep", "1" if token.privsep else "0") == "1"
    token.comment = call.text("comment", token.comment)
    token.expire = call.integer("expire", token.expire)
    return get_token(call)


def delete_token(call: Call) -> None:
    get_token(call)
    del _user(call).tokens[call.params["tokenid"]]
    full = f"{call.params['userid']}!{call.params['tokenid']}"
    call.world.access.entries = [entry for entry in call.world.access.entries if entry.who != full]


def _may_edit(call: Call) -> None:
    """A user's own affairs, or User.Modify."""
    if call.params["userid"] != call.who.user or call.who.token:
        call.demand("/access/groups", "User.Modify")


# roles


def list_roles(call: Call) -> list[dict[str, t.Any]]:
    access = call.world.access
    special = [{"roleid": name, "privs": ",".join(sorted(names)), "special": 1} for name, names in access.builtin.items()]
    return [*special, *({"roleid": name, "privs": ",".join(sorted(names)), "special": 0} for name, names in access.roles.items())]


def get_role(call: Call) -> dict[str, int]:
    held = call.world.access.role(call.params["roleid"])
    if held is None:
        raise die(f"role '{call.params['roleid']}' does not exist")
    return dict.fromkeys(held, 1)


def _given_privileges(call: Call) -> set[str]:
    return set(split_list(call.text("privs")))


def _privileges_param(release: str) -> Param:
    known = privileges(release)

    def check(value: str) -> str | None:
        return next((f"invalid privilege '{name}'" for name in split_list(value) if name not in known), None)

    return Param(check=check)


def add_role(call: Call) -> None:
    name = call.params["roleid"]
    if call.world.access.role(name) is not None:
        raise die(f"create role failed: role '{name}' already exists")
    call.world.access.roles[name] = _given_privileges(call)


def set_role(call: Call) -> None:
    name = call.params["roleid"]
    roles = call.world.access.roles
    if name in call.world.access.builtin:
        raise die(f"auto-generated role '{name}' cannot be modified")
    if name not in roles:
        raise die(f"update role failed: role '{name}' does not exist")
    roles[name] = _given_privileges(call) | (roles[name] if call.flag("append") else set())


def delete_role(call: Call) -> None:
    name = call.params["roleid"]
    if name in call.world.access.builtin:
        raise die(f"auto-generated role '{name}' cannot be deleted")
    if name not in call.world.access.roles:
        raise die(f"delete role failed: role '{name}' does not exist")
    del call.world.access.roles[name]
    call.world.access.entries = [entry for entry in call.world.access.entries if entry.role != name]


# access lists


def list_acl(call: Call) -> list[dict[str, t.Any]]:
    if not call.may("/access", "Sys.Audit") and not call.may("/access", "Permissions.Modify"):
        return []
    return [
        {"path": entry.path, "type": entry.kind, "ugid": entry.who, "roleid": entry.role, "propagate": int(entry.propagate)}
        for entry in call.world.access.entries
    ]


def set_acl(call: Call) -> None:
    access = call.world.access
    path = normal_path(call.params["path"])
    if not call.who.root:
        _demand_modify(call, path)
    kinds = ("user", "group", "token")
    whom = [(kind, who) for kind in kinds for who in split_list(call.text(f"{kind}s"))]
    if not whom:
        raise refuse({f"{kind}s": "either 'users', 'groups' or 'tokens' is required." for kind in kinds})
    for role in split_list(call.params["roles"]):
        if access.role(role) is None:
            raise die(f"ACL update failed: role '{role}' does not exist")
        for kind, who in whom:
            _check_holder(call, kind, who)
            access.entries = [entry for entry in access.entries if (entry.path, entry.kind, entry.who, entry.role) != (path, kind, who, role)]
            if not call.flag("delete"):
                access.entries.append(Entry(path, kind, who, role, call.text("propagate", "1") == "1"))


def _check_holder(call: Call, kind: str, who: str) -> None:
    access = call.world.access
    user, _, token = who.partition("!")
    if kind == "group":
        if who not in access.groups:
            raise die(f"ACL update failed: group '{who}' does not exist")
    elif user not in access.users:
        raise die(f"ACL update failed: user '{user}' does not exist")
    elif kind == "token" and token not in access.users[user].tokens:
        raise die(f"ACL update failed: no such token '{token}' for user '{user}'")


def _demand_modify(call: Call, path: str) -> None:
    if not call.may(path, "Permissions.Modify"):
        raise deny(f"{path}, Permissions.Modify")


def groups(call: Call) -> list[dict[str, str]]:
    return [{"groupid": name, "comment": comment} for name, comment in call.world.access.groups.items()]


def add_group(call: Call) -> None:
    call.world.access.groups[call.params["groupid"]] = call.text("comment")


def routes(release: str) -> list[Route]:
    login = {"username": text(longest=64).needed(), "password": text().needed(), "realm": text(longest=32)}
    login |= dict.fromkeys(("otp", "tfa-challenge", "path", "privs"), STRING) | {"new-format": BOOLEAN}
    userid = {"userid": USER_ID.needed()}
    tokenid = userid | {"tokenid": TOKEN_NAME.needed()}
    user = userid | {
        "comment": STRING,
        "email": STRING,
        "firstname": STRING,
        "lastname": STRING,
        "keys": STRING,
        "groups": STRING,
        "enable": BOOLEAN,
        "expire": COUNT,
    }
    token = tokenid | {"comment": STRING, "expire": COUNT, "privsep": BOOLEAN}
    role = {"roleid": STRING.needed()}
    privs = {"privs": _privileges_param(release)}
    modify, modify_role = perm("/access/groups", "User.Modify"), perm("/access", "Sys.Modify")
    acl = {
        "path": STRING.needed(),
        "roles": STRING.needed(),
        "users": STRING,
        "groups": STRING,
        "tokens": STRING,
        "propagate": BOOLEAN,
        "delete": BOOLEAN,
    }
    return [
        Route("GET", "/access/ticket", no_ticket, {}, open=True),
        Route("POST", "/access/ticket", ticket, login, open=True, tokens=False),
        Route("GET", "/access/domains", domains, {}, open=True),
        Route("GET", "/access/permissions", permissions, {"userid": STRING, "path": STRING}),
        Route("PUT", "/access/password", set_password, userid | {"password": text(shortest=5).needed(), "confirmation-password": STRING}, modify, tokens=False),
        Route("GET", "/access/users", list_users, {"enabled": BOOLEAN, "full": BOOLEAN}),
        Route("POST", "/access/users", add_user, user | {"password": text(shortest=8)}, modify),
        Route("GET", "/access/users/{userid}", get_user, userid, modify),
        Route("PUT", "/access/users/{userid}", set_user, user | {"append": BOOLEAN}, modify),
        Route("DELETE", "/access/users/{userid}", delete_user, userid, modify),
        Route("GET", "/access/users/{userid}/token", list_tokens, userid, _may_edit),
        Route("GET", "/access/users/{userid}/token/{tokenid}", get_token, tokenid, _may_edit),
        Route("POST", "/access/users/{userid}/token/{tokenid}", add_token, token, _may_edit),
        Route("PUT", "/access/users/{userid}/token/{tokenid}", set_token, token, _may_edit),
        Route("DELETE", "/access/users/{userid}/token/{tokenid}", delete_token, tokenid, _may_edit),
        Route("GET", "/access/roles", list_roles, {}),
        Route("POST", "/access/roles", add_role, role | privs, modify_role),
        Route("GET", "/access/roles/{roleid}", get_role, role),
        Route("PUT", "/access/roles/{roleid}", set_role, role | privs | {"append": BOOLEAN}, modify_role),
        Route("DELETE", "/access/roles/{roleid}", delete_role, role, modify_role),
        Route("GET", "/access/acl", list_acl, {}),
        Route("PUT", "/access/acl", set_acl, acl),
        Route("GET", "/access/groups", groups, {}),
        Route("POST", "/access/groups", add_group, {"groupid": STRING.needed(), "comment": STRING}, perm("/access/groups", "Group.Allocate")),
    ]
