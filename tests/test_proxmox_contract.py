"""The simulated Proxmox VE keeps the rules of a real one, and answers a recording of one as that did."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import email.utils
import hashlib
import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import time
import typing as t
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.lab.proxmox import fixtures, replay
from tests.lab.proxmox.client import ROOT, Proxmox, proxmox

Params = dict[str, t.Any]

ROOT_TOKEN, HEALER = "root@pam!lab", "healer@pve!healer"
PG = "/nodes/pve1/lxc/200"
WEB = "/nodes/pve2/lxc/201"
MEDIA = "/nodes/pve1/lxc/202"
STOPPED = "/nodes/pve1/lxc/203"
RECORDINGS = os.environ.get("HEALER_PVE_RECORDINGS", "")

# What may differ from the recordings, by number of the record and aspect, and why.
ACCEPTED = {
    (73, "reason"): "Perl's complaint about broken JSON names the file that it was raised in, which the recorded servers had elsewhere",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    raw: bytes
    headers: dict[str, str]

    @property
    def body(self) -> dict[str, t.Any]:
        body: dict[str, t.Any] = json.loads(self.raw)
        return body

    @property
    def data(self) -> t.Any:
        return self.body["data"]

    @property
    def errors(self) -> dict[str, str]:
        errors: dict[str, str] = self.body["errors"]
        return errors


class Api:
    """Requests to a simulator, each over a connection of its own."""

    def __init__(self, lab: Proxmox) -> None:
        self.lab = lab
        self._context = ssl.create_default_context(cafile=lab.options["ca_path"])

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPSConnection("127.0.0.1", self.lab.options["api_port"], timeout=30, context=self._context)
        with contextlib.closing(connection):
            connection.request(method, f"/api2/json{path}", body, headers or {})
            reply = connection.getresponse()
            return Answer(reply.status, reply.reason, reply.read(), {key.lower(): value for key, value in reply.getheaders()})

    def ask(self, method: str, path: str, token: str = ROOT_TOKEN, /, **params: t.Any) -> Answer:
        """A request with a token; parameters are the query's for GET and DELETE and the form's otherwise."""
        names = {name.replace("__", "-"): value for name, value in params.items()}
        query = f"?{urlencode(names)}" if names and method in {"GET", "DELETE"} else ""
        headers = self.token(token)
        body = None
        if names and not query:
            body, headers = urlencode(names).encode(), headers | {"Content-Type": "application/x-www-form-urlencoded"}
        return self.send(method, path + query, body, headers)

    def token(self, full: str) -> dict[str, str]:
        return {"Authorization": f"PVEAPIToken={full}={self.lab.tokens[full]}"}

    def get(self, path: str, token: str = ROOT_TOKEN, /, **params: t.Any) -> t.Any:
        answer = self.ask("GET", path, token, **params)
        assert answer.status == 200, (answer.status, answer.reason)
        return answer.data

    def begin(self, method: str, path: str, token: str = ROOT_TOKEN, /, **params: t.Any) -> str:
        """Start a worker; its UPID."""
        answer = self.ask(method, path, token, **params)
        assert answer.status == 200, (answer.status, answer.reason)
        upid: str = answer.data
        return upid

    def do(self, method: str, path: str, token: str = ROOT_TOKEN, /, **params: t.Any) -> str:
        """Start a worker and let the time pass that it takes; its exit status."""
        return self.end(self.begin(method, path, token, **params))

    def end(self, upid: str) -> str:
        for _ in range(1000):
            status = self.get(f"/nodes/{upid.split(':')[1]}/tasks/{upid}/status")
            if status["status"] == "stopped":
                return str(status["exitstatus"])
            self.lab.advance(1)
        raise AssertionError("the worker does not end")

    def set(self, path: str, token: str = ROOT_TOKEN, /, **params: t.Any) -> Answer:
        return self.ask("PUT", f"{path}/config", token, **params)

    def later(self, seconds: float, call: t.Callable[[], Answer]) -> Answer:
        """The answer to a request that takes simulated seconds, which pass at once."""
        known = len(self.lab.requests())
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(call)
            while len(self.lab.requests()) == known:
                time.sleep(0.01)
            time.sleep(0.05)
            self.lab.advance(seconds)
            return future.result(timeout=20)


@pytest.fixture(scope="module")
def _server() -> t.Iterator[Proxmox]:
    with proxmox(speed=1) as lab:
        yield lab


@pytest.fixture
def api(_server: Proxmox) -> Api:
    """The homelab; time passes as fast as it really does, so that nothing happens between two requests unless a test lets it."""
    _server.reset()
    return Api(_server)


@contextlib.contextmanager
def serving(**options: t.Any) -> t.Iterator[Api]:
    with proxmox(**({"speed": 1} | options)) as lab:
        yield Api(lab)


# who may


def test_without_credentials_an_empty_401_after_three_seconds(api: Api) -> None:
    began = api.lab.state()["now"]
    answer = api.later(3, lambda: api.send("GET", "/version"))
    assert (answer.status, answer.reason, answer.raw) == (401, "No ticket", b"")
    assert "content-type" not in answer.headers or not answer.raw
    assert api.lab.state()["now"] >= began + 3


@pytest.mark.parametrize("header", ["PVEAPIToken=root@pam!lab=wrong", "PVEAPIToken=nobody@pam!lab=x", "PVEAPIToken=root@pam!t=x"])
def test_wrong_token(api: Api, header: str) -> None:
    answer = api.later(3, lambda: api.send("GET", "/version", headers={"Authorization": header}))
    assert (answer.status, answer.reason, answer.raw) == (401, "Authentication failed!", b"")


def test_a_token_may_be_written_with_a_space(api: Api) -> None:
    secret = api.lab.tokens[ROOT_TOKEN]
    assert api.send("GET", "/version", headers={"Authorization": f"PVEAPIToken {ROOT_TOKEN}={secret}"}).status == 200


def log_in(api: Api, user: str = "healer@pve") -> tuple[dict[str, str], dict[str, str]]:
    body = urlencode({"username": user, "password": api.lab.passwords[user]}).encode()
    data = api.send("POST", "/access/ticket", body).data
    return {"Cookie": f"PVEAuthCookie={data['ticket']}"}, {"CSRFPreventionToken": data["CSRFPreventionToken"]}


def test_ticket_needs_its_csrf_token_for_writes_only(api: Api) -> None:
    cookie, csrf = log_in(api)
    assert api.send("GET", "/version", headers=cookie).status == 200
    refused = api.later(3, lambda: api.send("PUT", f"{PG}/config", b"cores=3", cookie))
    assert (refused.status, refused.reason) == (401, "Permission denied - invalid csrf token")
    assert api.send("PUT", f"{PG}/config", b"cores=3", cookie | csrf).status == 200


def test_ticket_ends_after_two_hours(api: Api) -> None:
    cookie, _csrf = log_in(api)
    api.lab.advance(7190)
    assert api.send("GET", "/version", headers=cookie).status == 200
    api.lab.advance(20)
    answer = api.later(3, lambda: api.send("GET", "/version", headers=cookie))
    assert (answer.status, answer.reason) == (401, "permission denied - invalid PVE ticket")


def test_ticket_is_renewed_by_itself(api: Api) -> None:
    cookie, _csrf = log_in(api)
    ticket = cookie["Cookie"].partition("=")[2]
    body = urlencode({"username": "healer@pve", "password": ticket}).encode()
    assert api.send("POST", "/access/ticket", body).status == 200


def test_wrong_password(api: Api) -> None:
    answer = api.later(3, lambda: api.send("POST", "/access/ticket", b"username=healer@pve&password=no"))
    assert (answer.status, answer.reason) == (401, "authentication failure")
    assert answer.body == {"data": None, "message": "authentication failure\n"}


def test_no_ticket_for_a_token(api: Api) -> None:
    answer = api.ask("POST", "/access/ticket", username="x@pve", password="y")
    assert answer.status == 403
    assert "need proper ticket." in answer.reason


def test_least_privileges_are_enough(api: Api) -> None:
    assert api.set(WEB, HEALER, cores=2, memory=1280, swap=128).status == 200
    assert api.do("POST", f"{WEB}/snapshot", HEALER, snapname="before") == "OK"
    assert api.do("POST", f"{WEB}/snapshot/before/rollback", HEALER, start=1) == "OK"
    api.lab.advance(20)
    assert api.do("POST", f"{WEB}/status/reboot", HEALER) == "OK"
    assert api.do("DELETE", f"{WEB}/snapshot/before", HEALER) == "OK"
    assert api.get("/nodes/pve1/status", HEALER)["memory"]["total"] == 16384 * 2**20
    assert {entry["storage"] for entry in api.get("/nodes/pve1/storage", HEALER)} == {"local", "local-zfs", "backup"}


@pytest.mark.parametrize(
    ("privilege", "method", "path", "params", "words"),
    [
        ("VM.Audit", "GET", f"{PG}/config", {}, "/vms/200, VM.Audit"),
        ("VM.Config.CPU", "PUT", f"{PG}/config", {"cores": 1}, "/vms/200, VM.Config.CPU"),
        ("VM.Config.Memory", "PUT", f"{PG}/config", {"memory": 4096}, "/vms/200, VM.Config.Memory"),
        ("VM.Snapshot", "POST", f"{PG}/snapshot", {"snapname": "x1"}, "/vms/200, VM.Snapshot"),
        ("VM.PowerMgmt", "POST", f"{PG}/status/stop", {}, "/vms/200, VM.PowerMgmt"),
    ],
)
def test_each_privilege_is_needed_and_named(api: Api, *, privilege: str, method: str, path: str, params: Params, words: str) -> None:
    rest = ",".join(name for name in fixtures.LEAST_ON_GUESTS if name != privilege)
    assert api.ask("PUT", "/access/roles/HealerGuests", privs=rest).status == 200
    answer = api.ask(method, path, HEALER, **params)
    assert (answer.status, answer.reason) == (403, f"Permission check failed ({words})")


def test_rollback_wants_either_right(api: Api) -> None:
    rest = ",".join(name for name in fixtures.LEAST_ON_GUESTS if not name.startswith("VM.Snapshot"))
    api.ask("PUT", "/access/roles/HealerGuests", privs=rest)
    answer = api.ask("POST", f"{PG}/snapshot/x1/rollback", HEALER)
    assert answer.reason == "Permission check failed (/vms/200, VM.Snapshot|VM.Snapshot.Rollback)"


def test_privilege_separation_is_the_intersection(api: Api) -> None:
    made = api.ask("POST", "/access/users/healer@pve/token/bare").data
    api.lab.tokens[made["full-tokenid"]] = made["value"]
    assert api.ask("GET", f"{PG}/config", made["full-tokenid"]).status == 403
    api.ask("PUT", "/access/acl", path="/vms", roles="PVEVMAdmin", tokens=made["full-tokenid"])
    assert api.ask("GET", f"{PG}/config", made["full-tokenid"]).status == 200
    assert api.set(PG, made["full-tokenid"], onboot=1).status == 403, "the token has it, its user has not"


def test_a_role_on_a_container_replaces_the_inherited_one(api: Api) -> None:
    api.ask("PUT", "/access/acl", path="/vms/200", roles="PVEAuditor", tokens=HEALER)
    assert api.set(PG, HEALER, cores=1).status == 403
    assert api.set(WEB, HEALER, cores=2).status == 200


def test_a_role_that_does_not_propagate_stays_above(api: Api) -> None:
    api.ask("PUT", "/access/acl", path="/vms", roles="HealerGuests", tokens=HEALER, propagate=0)
    assert api.ask("GET", f"{PG}/config", HEALER).status == 403


def test_pool_gives_rights_on_its_members(api: Api) -> None:
    api.ask("PUT", "/access/acl", path="/vms", roles="HealerGuests", tokens=HEALER, delete=1)
    api.ask("POST", "/pools", poolid="db")
    api.ask("PUT", "/pools/db", vms=200)
    api.ask("PUT", "/access/acl", path="/pool/db", roles="HealerGuests", tokens=HEALER)
    api.ask("PUT", "/access/acl", path="/pool/db", roles="HealerGuests", users="healer@pve")
    assert api.ask("GET", f"{PG}/config", HEALER).status == 200
    assert api.ask("GET", f"{WEB}/config", HEALER).status == 403


def test_without_audit_a_guest_is_invisible_yet_can_be_changed(api: Api) -> None:
    api.ask("PUT", "/access/roles/HealerGuests", privs="VM.Config.CPU")
    assert api.get("/nodes/pve1/lxc", HEALER) == []
    assert api.get("/cluster/resources", HEALER, type="vm") == []
    assert api.set(PG, HEALER, cores=1).status == 200


def test_permissions_of_a_token(api: Api) -> None:
    held = api.get("/access/permissions", HEALER)
    assert {path: sorted(names) for path, names in held.items()} == {
        "/vms": fixtures.LEAST_ON_GUESTS,
        "/nodes": ["Sys.Audit"],
        "/storage": ["Datastore.Audit"],
    }


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"mp1": "/mnt,mp=/data"}, "mount point type bind is only allowed for root@pam"),
        ({"features": "fuse=1"}, "changing feature flags (except nesting) is only allowed for root@pam"),
        ({"hookscript": "local:snippets/x"}, "changing the hookscript is only allowed for root@pam"),
    ],
)
def test_a_token_of_root_is_not_root(api: Api, params: Params, words: str) -> None:
    answer = api.set(PG, **params)
    assert (answer.status, answer.reason) == (403, f"Permission check failed ({words})")


def test_skiplock_is_roots_alone(api: Api) -> None:
    answer = api.ask("POST", f"{STOPPED}/status/start", skiplock=1)
    assert (answer.status, answer.errors) == (400, {"skiplock": "Only root may use this option."})


def test_nodes_without_audit_have_no_figures(api: Api) -> None:
    api.ask("PUT", "/access/roles/HealerNodes", privs="")
    assert set(api.get("/nodes", HEALER)[0]) == {"id", "node", "type", "status", "level", "ssl_fingerprint"}
    assert api.ask("GET", "/nodes/pve1/status", HEALER).reason == "Permission check failed (/nodes/pve1, Sys.Audit)"


def test_a_token_sees_its_own_workers_only(api: Api) -> None:
    api.ask("PUT", "/access/roles/HealerNodes", privs="")
    api.do("POST", f"{WEB}/snapshot", snapname="roots")
    own = api.begin("POST", f"{WEB}/snapshot", HEALER, snapname="mine")
    api.end(own)
    assert [task["upid"] for task in api.get("/nodes/pve2/tasks", HEALER)] == [own]
    assert len(api.get("/nodes/pve2/tasks")) == 2


# the order of checks


def test_order_of_checks(api: Api) -> None:
    assert api.ask("POST", f"{PG}/exec", HEALER).status == 501, "a route that is not there comes before a permission"
    assert api.set(PG, HEALER, vmid=1).errors == {"vmid": "duplicate parameter (already defined in URI) with conflicting values!"}
    assert api.ask("POST", f"{PG}/resize", HEALER).reason == f"Method 'POST {PG}/resize' not implemented"
    assert api.ask("DELETE", "/nodes/nowhere/lxc/7", HEALER).status == 403, "a permission comes before the node"
    assert api.ask("GET", "/nodes/nowhere/lxc/7/config").status == 500, "the node comes before the parameters"
    assert api.ask("GET", "/nodes/pve1/lxc/7/config").status == 400


def test_one_config_privilege_lets_parameters_be_checked_first(api: Api) -> None:
    assert api.set(PG, HEALER, memory="x", onboot=1).status == 400
    api.ask("PUT", "/access/roles/HealerGuests", privs="VM.Audit")
    words = "VM.Config.Disk|VM.Config.CPU|VM.Config.Memory|VM.Config.Network|VM.Config.Options"
    assert api.set(PG, HEALER, memory="x").reason == f"Permission check failed (/vms/200, {words})"


def test_unknown_node_and_node_that_is_down(api: Api) -> None:
    answer = api.ask("GET", "/nodes/nowhere/lxc")
    assert answer.reason == "hostname lookup 'nowhere' failed - failed to get address info for: nowhere: Name or service not known"
    api.lab.set_node("pve2", online=False)
    answer = api.ask("GET", "/nodes/pve2/lxc")
    assert (answer.status, answer.reason, answer.raw) == (595, "No route to host", b"")
    assert {node["node"]: node["status"] for node in api.get("/nodes")} == {"pve1": "online", "pve2": "offline"}


# bodies and parameters


def test_all_bad_parameters_at_once(api: Api) -> None:
    answer = api.set(PG, cores=0, memory="abc", cpulimit=-1, bogus=1, hostname="bad_name!", digest="x" * 41, tags="c!", swap="", cpuunits=500001)
    assert (answer.status, answer.reason) == (400, "Parameter verification failed.")
    assert answer.body["message"] == "Parameter verification failed.\n"
    assert answer.errors == {
        "cores": "value must have a minimum value of 1",
        "memory": "type check ('integer') failed - got 'abc'",
        "cpulimit": "value must have a minimum value of 0",
        "bogus": "property is not defined in schema and the schema does not allow additional properties",
        "hostname": "invalid format - value does not look like a valid DNS name\n",
        "digest": "value may only be 40 characters long",
        "tags": "invalid format - invalid characters in tag\n",
        "swap": "type check ('integer') failed - got ''",
        "cpuunits": "value must have a maximum value of 500000",
    }


def test_json_bodies(api: Api) -> None:
    kind = api.token(ROOT_TOKEN) | {"Content-Type": "application/json"}
    assert api.send("PUT", f"{PG}/config", b'{"onboot": true, "memory": 2304.0, "cores": null}', kind).status == 200
    config = api.get(f"{PG}/config")
    assert (config["onboot"], config["memory"], config["cores"]) == (1, 2304, 2)


def test_booleans_in_a_form_are_digits(api: Api) -> None:
    assert api.set(PG, onboot="true").errors == {"onboot": "type check ('boolean') failed - got 'true'"}


def test_query_parameters_win(api: Api) -> None:
    kind = api.token(ROOT_TOKEN) | {"Content-Type": "application/x-www-form-urlencoded"}
    assert api.send("PUT", f"{PG}/config?memory=2400", b"memory=2500", kind).status == 200
    assert api.get(f"{PG}/config")["memory"] == 2400


@pytest.mark.parametrize(
    ("method", "body", "kind", "status", "reason"),
    [
        ("PUT", b"memory=1", "text/plain", 506, "upload 'Content-Type 'text/plain' not implemented"),
        ("DELETE", b"force=1", "application/x-www-form-urlencoded", 501, "Unexpected content for method 'DELETE'"),
        ("PATCH", b"cores=1", "application/x-www-form-urlencoded", 501, "method 'PATCH' not available"),
        ("PUT", b"{bad", "application/json", 500, '\'"\' expected, at character offset 1 (before "bad")'),
    ],
)
def test_bodies_that_nobody_takes(api: Api, *, method: str, body: bytes, kind: str, status: int, reason: str) -> None:
    answer = api.send(method, f"{PG}/config", body, api.token(ROOT_TOKEN) | {"Content-Type": kind})
    assert answer.status == status
    assert answer.reason.startswith(reason)


def test_there_is_never_a_404(api: Api) -> None:
    assert api.ask("GET", "/nope").body == {"data": None, "message": "Method 'GET /nope' not implemented"}
    missing = "Configuration file 'nodes/pve1/lxc/999.conf' does not exist"
    for method, path in (("GET", "config"), ("GET", "status/current"), ("GET", "snapshot"), ("GET", "pending")):
        assert api.ask(method, f"/nodes/pve1/lxc/999/{path}").reason == missing
    assert api.set("/nodes/pve2/lxc/200", cores=1).reason == "Configuration file 'nodes/pve2/lxc/200.conf' does not exist", "it is on the other node"


def test_large_answers_are_compressed_for_who_asks(api: Api) -> None:
    answer = api.send("GET", "/cluster/resources", headers=api.token(ROOT_TOKEN) | {"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"


def test_answers_carry_the_nodes_clock(api: Api) -> None:
    api.lab.advance(86400)
    told = email.utils.parsedate_to_datetime(api.ask("GET", "/version").headers["date"]).timestamp()
    assert told == pytest.approx(api.lab.state()["now"], abs=3)


def test_order_cannot_be_relied_on(api: Api) -> None:
    assert len({tuple(guest["vmid"] for guest in api.get("/nodes/pve1/lxc")) for _ in range(20)}) > 1
    assert len({tuple(api.get(f"{PG}/config")) for _ in range(20)}) > 1


# the configuration


def test_digest_is_that_of_the_file(api: Api) -> None:
    api.set(PG, description="a: b\nü", tty=3)
    text = api.lab.guest(200)["text"]
    assert text.startswith("#a%3A b\n#%C3%BC\narch: amd64\n")
    assert text.endswith("\n[pve:pending]\ntty: 3\n")
    assert api.get(f"{PG}/config")["digest"] == hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def test_digest_guards_a_change(api: Api) -> None:
    digest = api.get(f"{PG}/config")["digest"]
    assert api.set(PG, cores=3, digest=digest).status == 200
    answer = api.set(PG, cores=4, digest=digest)
    assert (answer.status, answer.reason) == (500, "detected modified configuration - file changed by other user? Try again.")
    api.set(PG, cores=2)
    assert api.get(f"{PG}/config")["digest"] == digest, "the same text has the same digest"


def test_same_values_and_absent_keys_change_nothing(api: Api) -> None:
    digest = api.get(f"{PG}/config")["digest"]
    assert api.set(PG, cores=2, memory=2048).status == 200
    assert api.set(PG, delete="onboot,cpulimit").status == 200
    assert api.get(f"{PG}/config")["digest"] == digest


def test_types_of_values(api: Api) -> None:
    api.set(PG, cpulimit="1.5", description="one", tags="Foo;bar,baz foo", onboot=1)
    config = api.get(f"{PG}/config")
    assert (config["cpulimit"], config["description"], config["tags"], config["onboot"]) == ("1.5", "one\n", "bar;baz;foo", 1)


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({}, 500, "no options specified"),
        ({"delete": "memory"}, 500, "unable to delete required option 'memory'"),
        ({"unprivileged": 0}, 500, "unable to modify read-only option: 'unprivileged'"),
        ({"delete": "foo"}, 400, "unknown option 'foo'"),
        ({"cores": 1, "delete": "cores"}, 400, "you can't use '-cores' and -delete cores' at the same time"),
    ],
)
def test_changes_that_make_no_sense(api: Api, params: Params, status: int, words: str) -> None:
    answer = api.set(PG, **params)
    assert answer.status == status
    assert words == (answer.errors["delete"] if status == 400 else answer.reason)


def test_nobody_looks_at_the_nodes_capacity(api: Api) -> None:
    assert api.set(PG, cores=8192, memory=99999999).status == 200


def test_what_waits_for_a_start(api: Api) -> None:
    api.set(PG, tty=3)
    assert {"key": "tty", "pending": 3} in api.get(f"{PG}/pending")
    assert api.get(f"{PG}/config")["tty"] == 3
    assert "tty" not in api.get(f"{PG}/config", current=1)
    api.set(PG, revert="tty")
    assert "tty" not in api.get(f"{PG}/config")
    api.set(PG, tty=4)
    assert api.do("POST", f"{PG}/status/reboot") == "OK"
    assert api.get(f"{PG}/config", current=1)["tty"] == 4


def test_a_stopped_container_takes_everything_at_once(api: Api) -> None:
    assert api.set(STOPPED, tty=3, cpulimit=0, memory=256).status == 200
    assert api.lab.guest(203)["config"]["cpulimit"] == "0"
    assert not api.lab.guest(203)["pending"]


def test_cores_reach_the_kernel_with_the_next_round(api: Api) -> None:
    api.set(PG, cores=4)
    assert api.lab.guest(200)["kernel"]["cores"] == 2
    api.lab.advance(10)
    assert api.lab.guest(200)["kernel"]["cores"] == 4
    api.set(PG, cores=100)
    api.lab.advance(10)
    assert api.lab.guest(200)["kernel"]["cores"] == 8, "the node has no more"


def test_a_limit_reaches_the_kernel_at_once(api: Api) -> None:
    api.set(PG, cpulimit="1.5", cpuunits=200, memory=4096, swap=0)
    kernel = api.lab.guest(200)["kernel"]
    assert (kernel["cpulimit"], kernel["cpuunits"], kernel["memory"], kernel["swap"]) == (1.5, 200, 4096, 0)
    api.set(PG, delete="cpulimit,cpuunits,swap")
    kernel = api.lab.guest(200)["kernel"]
    assert (kernel["cpulimit"], kernel["cpuunits"], kernel["swap"]) == (0, 100, 0)


@pytest.mark.parametrize("value", ["0", "0.001"])
def test_a_running_container_refuses_a_cpulimit_below_a_hundredth(api: Api, value: str) -> None:
    answer = api.set(PG, cpulimit=value)
    assert answer.status == 400
    assert answer.errors["cpulimit"].startswith("unable to hotplug cpulimit: closing file ")
    assert answer.errors["cpulimit"].endswith("cpu.max' failed - Invalid argument\n")


def test_a_refused_change_leaves_the_file_but_not_the_kernel(api: Api) -> None:
    before = api.get(f"{PG}/config")["digest"]
    assert api.set(PG, cpulimit=0, memory=3000).status == 400
    assert api.get(f"{PG}/config")["digest"] == before
    assert api.lab.guest(200)["kernel"]["memory"] == 3000, "what succeeded stays live"


def test_cpuunits_are_clamped(api: Api) -> None:
    api.set(PG, cpuunits=20000)
    assert api.get(f"{PG}/config")["cpuunits"] == 10000


def test_too_little_memory_kills_on_cgroup_v2(api: Api) -> None:
    assert api.set(PG, memory=1024, swap=0).status == 200
    guest = api.lab.guest(200)
    assert (guest["oom_kills"], guest["dead"]) == (1, False), "the main process still fits"
    assert api.set(PG, memory=512).status == 200
    assert api.lab.guest(200)["dead"]
    api.do("POST", f"{PG}/status/reboot")
    assert not api.lab.guest(200)["dead"]


def test_memory_that_swap_can_take_kills_nothing(api: Api) -> None:
    assert api.set(MEDIA, memory=600, swap=512).status == 200
    assert api.lab.guest(202)["oom_kills"] == 0
    assert api.get(f"{MEDIA}/status/current")["swap"] == 300 * 2**20


def test_an_absent_swap_is_none(api: Api) -> None:
    api.set(PG, delete="swap")
    assert api.get(f"{PG}/status/current")["maxswap"] == 0


def test_cgroup_v1() -> None:
    with serving(cgroup=1) as api:
        answer = api.set(PG, memory=1024)
        assert answer.errors["memory"].endswith("/lxc/200/memory.limit_in_bytes' failed - Device or resource busy\n")
        assert api.get(f"{PG}/config")["memory"] == 2048
        assert api.lab.guest(200)["oom_kills"] == 0
        api.set(PG, cpuunits=1)
        assert api.get(f"{PG}/config")["cpuunits"] == 2
        assert api.get(f"{PG}/status/current")["pressurememorysome"] is None


def test_volumes_that_are_taken_out_stay_as_unused_ones(api: Api) -> None:
    api.set(STOPPED, mp0="local-zfs:2,mp=/data")
    assert api.get(f"{STOPPED}/config")["mp0"] == "local-zfs:subvol-203-disk-1,mp=/data,size=2G"
    api.set(STOPPED, delete="mp0")
    assert api.get(f"{STOPPED}/config")["unused0"] == "local-zfs:subvol-203-disk-1"
    api.set(MEDIA, delete="mp0")
    assert "mp0" in api.get(f"{MEDIA}/config", current=1), "a mount point of a running container is not hot"


# locks


def test_a_config_lock_stops_changes_and_cannot_be_removed(api: Api) -> None:
    api.lab.set_guest(200, lock="backup")
    for params in ({"cores": 1}, {"delete": "lock"}):
        assert api.set(PG, **params).reason == "CT is locked (backup)"
    assert api.get(f"{PG}/status/current")["lock"] == "backup"
    for method, path, params in (
        ("POST", "snapshot", {"snapname": "x1"}),
        ("POST", "status/stop", {}),
        ("POST", "status/shutdown", {}),
    ):
        assert api.do(method, f"{PG}/{path}", **params) == "CT is locked (backup)"


def test_reboot_does_not_look_at_the_lock_before_it_stops(api: Api) -> None:
    api.lab.set_guest(200, lock="backup")
    assert api.do("POST", f"{PG}/status/reboot") == "startup for container '200' failed"
    assert api.get(f"{PG}/status/current")["status"] == "stopped"


def test_a_change_waits_ten_seconds_for_the_file_lock(api: Api) -> None:
    api.lab.set_guest(200, workload={"ignores_term": True})
    shutdown = api.begin("POST", f"{PG}/status/shutdown", timeout=30)
    api.lab.advance(1)
    answer = api.later(10, lambda: api.set(PG, cores=1))
    assert (answer.status, answer.reason) == (500, "can't lock file '/run/lock/lxc/pve-config-200.lock' - got timeout")
    api.end(shutdown)
    assert api.set(PG, cores=1).status == 200


def test_a_change_that_waits_is_carried_out_when_the_lock_is_free(api: Api) -> None:
    api.lab.set_guest(200, workload={"shutdown": 5})
    api.begin("POST", f"{PG}/status/shutdown")
    api.lab.advance(1)
    assert api.later(5, lambda: api.set(PG, cores=7)).status == 200
    assert api.get(f"{PG}/config")["cores"] == 7


# snapshots


def test_snapshots_of_a_chain(api: Api) -> None:
    for name in ("s1", "s2", "s3"):
        assert api.do("POST", f"{WEB}/snapshot", snapname=name, description=f"number {name}") == "OK"
    assert api.do("DELETE", f"{WEB}/snapshot/s2") == "OK"
    found = {entry["name"]: entry for entry in api.get(f"{WEB}/snapshot")}
    assert (found["s3"]["parent"], found["current"]["parent"], found["s1"]["description"]) == ("s1", "s3", "number s1\n")
    assert api.do("POST", f"{WEB}/snapshot/s1/rollback") == "OK", "a thin volume goes back past newer snapshots"
    found = {entry["name"]: entry for entry in api.get(f"{WEB}/snapshot")}
    assert found.keys() == {"s1", "s3", "current"}
    assert found["current"]["parent"] == "s1"


def test_zfs_goes_back_to_the_newest_only(api: Api) -> None:
    for name in ("s1", "s2"):
        api.do("POST", f"{PG}/snapshot", snapname=name)
    words = "can't rollback, 's1' is not most recent snapshot on 'local-zfs:subvol-200-disk-0'"
    assert api.do("POST", f"{PG}/snapshot/s1/rollback") == words
    assert api.get(f"{PG}/status/current")["status"] == "running"
    api.lab.set_guest(200, taken={"local-zfs:subvol-200-disk-0": ["s1", "s2", "autosnap_hourly"]})
    assert "is not most recent" in api.do("POST", f"{PG}/snapshot/s2/rollback"), "others take snapshots too"


@pytest.mark.parametrize(
    ("name", "words"), [("a.b", "invalid configuration ID 'a.b'"), ("1a", "invalid configuration ID '1a'"), ("a", "invalid configuration ID 'a'")]
)
def test_names_that_are_none(api: Api, name: str, words: str) -> None:
    assert api.ask("POST", f"{PG}/snapshot", snapname=name).errors == {"snapname": f"invalid format - {words}\n"}


def test_reserved_and_long_names(api: Api) -> None:
    assert api.ask("POST", f"{PG}/snapshot", snapname="current").reason == "unable to use snapshot name 'current' (reserved name)"
    assert api.ask("POST", f"{PG}/snapshot", snapname="x" * 41).errors == {"snapname": "value may only be 40 characters long"}
    assert api.do("POST", f"{PG}/snapshot", snapname="x" * 40) == "OK"


def test_errors_of_snapshots_come_from_the_worker(api: Api) -> None:
    api.do("POST", f"{PG}/snapshot", snapname="s1")
    assert api.do("POST", f"{PG}/snapshot", snapname="s1") == "snapshot name 's1' already used"
    assert api.do("POST", f"{PG}/snapshot", snapname="S1") == "OK", "names have a case"
    assert api.do("DELETE", f"{PG}/snapshot/nope") == "snapshot 'nope' does not exist"
    assert api.do("POST", f"{PG}/snapshot/nope/rollback") == "snapshot 'nope' does not exist"
    assert api.do("POST", "/nodes/pve1/lxc/999/snapshot", snapname="s1") == "Configuration file 'nodes/pve1/lxc/999.conf' does not exist"
    assert api.do("POST", "/nodes/pve2/lxc/299/snapshot", snapname="s1") == "you can't take a snapshot if it's a template"


def test_a_bind_mount_prevents_snapshots(api: Api) -> None:
    assert api.get(f"{MEDIA}/feature", feature="snapshot") == {"hasFeature": 0}
    assert api.get(f"{PG}/feature", feature="snapshot") == {"hasFeature": 1}
    assert api.do("POST", f"{MEDIA}/snapshot", snapname="s1") == "snapshot feature is not available"


def test_two_snapshots_at_once(api: Api) -> None:
    first = api.begin("POST", f"{PG}/snapshot", snapname="s1")
    assert api.do("POST", f"{PG}/snapshot", snapname="s2") == "CT is locked (snapshot)"
    assert api.end(first) == "OK"


def test_while_a_snapshot_is_taken(api: Api) -> None:
    upid = api.begin("POST", f"{PG}/snapshot", snapname="s1")
    assert {entry["name"]: entry.get("snapstate") for entry in api.get(f"{PG}/snapshot")} == {"s1": "prepare", "current": None}
    assert api.get(f"{PG}/status/current")["lock"] == "snapshot"
    assert api.set(PG, cores=1).reason == "CT is locked (snapshot)"
    assert api.end(upid) == "OK"
    assert "lock" not in api.get(f"{PG}/status/current")


def test_rollback_kills_and_reverts_everything_but_the_description(api: Api) -> None:
    api.do("POST", f"{PG}/snapshot", snapname="s1")
    api.set(PG, memory=4096, cores=4, tty=3, description="later")
    assert api.do("POST", f"{PG}/snapshot/s1/rollback") == "OK"
    config = api.get(f"{PG}/config")
    assert (config["memory"], config["cores"], config.get("tty"), config["description"], config["parent"]) == (2048, 2, None, "later\n", "s1")
    assert api.get(f"{PG}/status/current")["status"] == "stopped"


def test_rollback_with_start_starts_in_another_worker(api: Api) -> None:
    api.do("POST", f"{WEB}/snapshot", snapname="s1")
    api.lab.set_guest(201, workload={"fails_to_start": True})
    assert api.do("POST", f"{WEB}/snapshot/s1/rollback", start=1) == "OK", "its end tells nothing of the start"
    api.lab.advance(12)
    (start,) = api.get("/nodes/pve2/tasks", typefilter="vzstart")
    assert start["status"] == "startup for container '201' failed"
    assert api.get(f"{WEB}/status/current")["status"] == "stopped"


def test_failed_rollback_leaves_it_stopped_and_locked(api: Api) -> None:
    api.do("POST", f"{PG}/snapshot", snapname="s1")
    api.lab.set_storage("local-zfs", fail={"rollback": "zfs error: dataset is busy"})
    assert api.do("POST", f"{PG}/snapshot/s1/rollback") == "zfs error: dataset is busy"
    assert (api.get(f"{PG}/status/current")["status"], api.get(f"{PG}/config")["lock"]) == ("stopped", "rollback")
    assert api.do("POST", f"{PG}/status/start") == "CT is locked (rollback)"
    assert api.set(PG, cores=1).reason == "CT is locked (rollback)"


def test_failed_snapshot_cleans_up(api: Api) -> None:
    api.lab.set_storage("local-zfs", fail={"snapshot": "out of space"})
    upid = api.begin("POST", f"{PG}/snapshot", snapname="s1")
    assert api.end(upid) == "out of space"
    lines = [line["t"] for line in api.get(f"/nodes/pve1/tasks/{upid}/log")]
    assert lines == ["snapshot create failed: starting cleanup", "TASK ERROR: out of space"]
    assert [entry["name"] for entry in api.get(f"{PG}/snapshot")] == ["current"]
    assert "lock" not in api.get(f"{PG}/config")


def test_failed_removal_leaves_lock_and_state(api: Api) -> None:
    api.do("POST", f"{PG}/snapshot", snapname="s1")
    api.lab.set_storage("local-zfs", fail={"delete": "dataset is busy"})
    assert api.do("DELETE", f"{PG}/snapshot/s1") == "dataset is busy"
    assert api.get(f"{PG}/config")["lock"] == "snapshot-delete"
    api.lab.set_guest(200, lock=None)
    assert api.do("POST", f"{PG}/snapshot/s1/rollback") == "unable to rollback to incomplete snapshot (snapstate = delete)"


def test_forced_removal_ignores_the_storage(api: Api) -> None:
    api.do("POST", f"{PG}/snapshot", snapname="s1")
    api.lab.set_storage("local-zfs", fail={"delete": "dataset is busy"})
    assert api.do("DELETE", f"{PG}/snapshot/s1", force=1) == "OK"


def test_an_aborted_worker_leaves_the_container_frozen_and_locked(api: Api) -> None:
    upid = api.begin("POST", f"{PG}/snapshot", snapname="s1")
    assert api.ask("DELETE", f"/nodes/pve1/tasks/{upid}").status == 200
    assert api.end(upid) == "unexpected status"
    guest = api.lab.guest(200)
    assert (guest["frozen"], guest["lock"], guest["status"]) == (True, "snapshot", "running")


def test_configuration_of_a_snapshot(api: Api) -> None:
    api.do("POST", f"{PG}/snapshot", snapname="s1", description="why")
    config = api.get(f"{PG}/snapshot/s1/config")
    assert (config["memory"], config["description"], "digest" in config, "parent" in config) == (2048, "why\n", False, False)
    assert "digest" in api.get(f"{PG}/config", snapshot="s1")
    assert api.ask("PUT", f"{PG}/snapshot/s1/config", description="new").data is None
    assert api.get(f"{PG}/snapshot/s1/config")["description"] == "new\n"
    assert api.ask("PUT", f"{PG}/snapshot/nope/config").status == 200, "without a description nobody looks"
    assert api.ask("PUT", f"{PG}/snapshot/nope/config", description="x").reason == "snapshot 'nope' does not exist"


# power


def test_power(api: Api) -> None:
    assert api.ask("POST", f"{PG}/status/start").reason == "CT 200 already running"
    assert api.ask("POST", f"{STOPPED}/status/stop").reason == "CT 203 not running"
    assert api.ask("POST", f"{STOPPED}/status/shutdown").reason == "CT 203 not running"
    assert api.ask("POST", f"{STOPPED}/status/reboot").reason == "VM 203 not running", "so they say"
    assert api.do("POST", f"{STOPPED}/status/start") == "OK"
    assert api.do("POST", f"{STOPPED}/status/shutdown") == "OK"
    assert api.do("POST", "/nodes/pve2/lxc/299/status/start") == "you can't start a CT if it's a template"
    assert api.do("POST", "/nodes/pve1/lxc/999/status/start") == "Configuration file 'nodes/pve1/lxc/999.conf' does not exist"


def test_shutdown_of_what_ignores_it(api: Api) -> None:
    api.lab.set_guest(200, workload={"ignores_term": True})
    began = api.lab.state()["now"]
    assert api.do("POST", f"{PG}/status/shutdown", timeout=3) == "container did not stop"
    assert 11 <= api.lab.state()["now"] - began < 13
    assert api.get(f"{PG}/status/current")["status"] == "running"
    assert api.do("POST", f"{PG}/status/shutdown", timeout=3, forceStop=1) == "OK"
    assert api.get(f"{PG}/status/current")["status"] == "stopped"


def test_reboot_of_what_ignores_it_kills_it(api: Api) -> None:
    api.lab.set_guest(200, workload={"ignores_term": True})
    starts = api.lab.guest(200)["starts"]
    assert api.do("POST", f"{PG}/status/reboot", timeout=3) == "OK"
    assert api.lab.guest(200)["starts"] == starts + 1


def test_stop_overrules_a_shutdown(api: Api) -> None:
    api.lab.set_guest(200, workload={"ignores_term": True})
    shutdown = api.begin("POST", f"{PG}/status/shutdown", timeout=60)
    assert api.do("POST", f"{PG}/status/stop", overrule__shutdown=1) == "OK"
    assert api.end(shutdown) == "unexpected status"


def test_what_does_not_come_up(api: Api) -> None:
    api.lab.set_guest(203, workload={"fails_to_start": True})
    assert api.do("POST", f"{STOPPED}/status/start") == "startup for container '203' failed"


def test_a_managed_container_is_asked_for_only(api: Api) -> None:
    api.lab.set_guest(200, ha={"state": "started"})
    upid = api.begin("POST", f"{PG}/status/stop")
    assert ":hastop:200:" in upid
    api.lab.advance(0.5)
    assert api.end(upid) == "OK"
    assert api.get(f"{PG}/status/current")["ha"]["managed"] == 1
    assert api.get(f"{PG}/status/current")["status"] == "running"
    api.lab.advance(10)
    assert api.get(f"{PG}/status/current")["status"] == "stopped"


# workers


def test_a_worker(api: Api) -> None:
    upid = api.begin("POST", f"{WEB}/snapshot", HEALER, snapname="s1")
    assert re.fullmatch(r"UPID:pve2:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:vzsnapshot:201:healer@pve!healer:", upid)
    status = api.get(f"/nodes/pve2/tasks/{upid}/status")
    assert (status["status"], status["user"], status["tokenid"], status["id"], "exitstatus" in status) == ("running", "healer@pve", "healer", "201", False)
    assert api.get("/nodes/pve2/tasks") == [], "only those that ended, unless asked for others"
    (running,) = api.get("/nodes/pve2/tasks", source="active")
    assert (running["status"], running["user"]) == ("RUNNING", "healer@pve!healer")
    api.end(upid)
    (ended,) = api.get("/nodes/pve2/tasks", vmid=201)
    assert (ended["status"], ended["user"]) == ("OK", "healer@pve")


def test_workers_that_are_not_there(api: Api) -> None:
    unknown = "UPID:pve1:00001234:00000001:6B036C26:vzstart:101:root@pam:"
    assert api.ask("GET", "/nodes/pve1/tasks/garbage/status").errors == {"upid": "unable to parse worker upid"}
    assert api.ask("GET", f"/nodes/pve1/tasks/{unknown}/status").errors == {"upid": "no such task"}
    assert api.ask("GET", f"/nodes/pve1/tasks/{unknown}/log").data == [{"n": 1, "t": "unable to open file - No such file or directory"}]


# creation, removal, size


def test_create_and_remove(api: Api) -> None:
    archive = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"
    params: Params = {"vmid": 250, "ostemplate": archive, "rootfs": "local-zfs:4", "hostname": "new", "memory": 256, "net0": "name=eth0,bridge=vmbr0"}
    upid = api.begin("POST", "/nodes/pve1/lxc", **params)
    entry = next(entry for entry in api.get("/cluster/resources", type="vm") if entry["vmid"] == 250)
    assert entry == {"id": "lxc/250", "type": "lxc", "vmid": 250, "node": "pve1", "status": "unknown", "lock": "create"}
    assert api.end(upid) == "OK"
    config = api.get("/nodes/pve1/lxc/250/config")
    assert (config["rootfs"], config["swap"], "unprivileged" in config) == ("local-zfs:subvol-250-disk-0,size=4G", 512, False)
    assert api.ask("POST", "/nodes/pve2/lxc", **params).reason == "unable to create CT 250 - CT 250 already exists on node 'pve1'"
    api.set("/nodes/pve1/lxc/250", protection=1)
    assert api.ask("DELETE", "/nodes/pve1/lxc/250").reason == "can't remove CT 250 - protection mode enabled"
    assert api.do("POST", "/nodes/pve1/lxc/250/snapshot", snapname="s1") == "OK", "protection is for volumes"
    api.set("/nodes/pve1/lxc/250", delete="protection")
    assert api.do("DELETE", "/nodes/pve1/lxc/250") == "OK"
    assert api.ask("DELETE", PG).reason == "unable to destroy CT 200 - container is running"


def test_a_new_container_under_an_old_number_has_the_old_ones_figures_at_first(api: Api) -> None:
    def name() -> str:
        return str(next(entry["name"] for entry in api.get("/cluster/resources", type="vm") if entry["vmid"] == 203))

    api.lab.advance(api.lab.state()["next_round"] + 0.1)
    api.do("DELETE", STOPPED)
    archive = "local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst"
    api.do("POST", "/nodes/pve1/lxc", vmid=203, ostemplate=archive, rootfs="local-zfs:4", hostname="other", memory=64)
    assert name() == "archive"
    api.lab.advance(10)
    assert name() == "other"


def test_resize(api: Api) -> None:
    assert api.ask("PUT", f"{PG}/resize", disk="rootfs", size="1X").errors == {"size": "value does not match the regex pattern"}
    assert api.ask("PUT", f"{PG}/resize", disk="rootfs", size="8G").reason == "unable to shrink disk size"
    assert api.ask("PUT", f"{PG}/resize", disk="rootfs", size="32G").reason == "disk is already at specified size"
    missing = api.ask("PUT", f"{PG}/resize", disk="mp3", size="1G")
    assert (missing.status, "volume" in missing.errors) == (500, True)
    assert api.do("PUT", f"{PG}/resize", disk="rootfs", size="+8G") == "OK"
    assert api.get(f"{PG}/config")["rootfs"].endswith("size=40G")


# what the cluster knows, and when


def test_resources_lag(api: Api) -> None:
    def entry() -> dict[str, t.Any]:
        return next(entry for entry in api.get("/cluster/resources", type="vm") if entry["vmid"] == 201)

    api.lab.advance(api.lab.state()["next_round"] + 0.1)
    api.set(WEB, memory=2000, tags="later")
    api.do("POST", f"{WEB}/status/stop")
    assert (entry()["status"], entry()["maxmem"], entry()["tags"]) == ("running", 1024 * 2**20, "later")
    api.lab.advance(10)
    assert (entry()["status"], entry()["maxmem"]) == ("stopped", 2000 * 2**20)


def test_guests_of_a_dead_node(api: Api) -> None:
    api.lab.set_node("pve2", online=False)
    api.lab.advance(60)
    assert {entry["vmid"]: entry["status"] for entry in api.get("/cluster/resources", type="vm")}[201] == "running", "what was told last"
    api.lab.advance(300)
    found = next(entry for entry in api.get("/cluster/resources", type="vm") if entry["vmid"] == 201)
    assert (found["status"], "maxmem" in found) == ("unknown", False)


def test_move(api: Api) -> None:
    api.lab.move(200, "pve2")
    assert api.ask("GET", f"{PG}/config").status == 500
    assert api.get("/nodes/pve2/lxc/200/config")["hostname"] == "postgres"


def test_without_quorum_nothing_is_written(api: Api) -> None:
    api.lab.set_cluster(quorate=False)
    assert api.ask("POST", f"{STOPPED}/status/start").reason == "cluster not ready - no quorum?"
    assert api.set(PG, cores=1).reason.endswith("Permission denied")
    assert [entry["quorate"] for entry in api.get("/cluster/status") if entry["type"] == "cluster"] == [0]


def test_storage_content_tells_the_last_backup(api: Api) -> None:
    (newest,) = api.get("/nodes/pve1/storage/backup/content", content="backup", vmid=200)
    assert api.lab.state()["now"] - newest["ctime"] == pytest.approx(43200, abs=60)


@pytest.mark.parametrize(
    ("on_storage", "on_guest", "seen"), [("Audit", "VM.Backup", 0), ("AllocateSpace", "", 0), ("AllocateSpace", "VM.Backup", 1), ("Allocate", "", 1)]
)
def test_a_backup_is_listed_for_who_may_make_one(api: Api, on_storage: str, on_guest: str, seen: int) -> None:
    """Whether it is asked for by its guest's number or not."""
    api.ask("PUT", "/access/roles/HealerStorage", privs=f"Datastore.Audit,Datastore.{on_storage}")
    api.ask("PUT", "/access/roles/HealerGuests", privs=",".join(["VM.Audit", *([on_guest] if on_guest else [])]))
    for narrow, most in (({"vmid": 200}, 1), ({}, 2)):
        assert len(api.get("/nodes/pve1/storage/backup/content", HEALER, content="backup", **narrow)) == seen * most


def test_a_pool_is_told_to_its_auditor_and_its_members_are_among_the_paths(api: Api) -> None:
    def pools() -> set[str | None]:
        return {entry.get("pool") for entry in api.get("/cluster/resources", HEALER, type="vm") if entry["vmid"] == 200}

    assert "/vms/200" not in api.get("/access/permissions", HEALER)
    api.ask("POST", "/pools", poolid="db")
    api.ask("PUT", "/pools/db", vms=200)
    assert pools() == {None}
    assert sorted(api.get("/access/permissions", HEALER)["/vms/200"]) == fixtures.LEAST_ON_GUESTS
    for whom in ({"tokens": HEALER}, {"users": "healer@pve"}):
        api.ask("PUT", "/access/acl", path="/pool/db", roles="PVEPoolUser", **whom)
    assert pools() == {"db"}


# backups


def active(api: Api, who: str = ROOT_TOKEN) -> list[str]:
    return [task["id"] for task in api.get("/nodes/pve1/tasks", who, source="active", typefilter="vzdump") if task["status"] == "RUNNING"]


def test_a_backup_locks_its_guest_and_leaves_an_archive(api: Api) -> None:
    upid = api.lab.backup([200], seconds=3000)
    assert (active(api), api.get(f"{PG}/config")["lock"], api.set(PG, cores=1).reason) == (["200"], "backup", "CT is locked (backup)")
    assert active(api, HEALER) == ["200"]
    assert len(api.get("/nodes/pve1/storage/backup/content", content="backup", vmid=200)) == 1
    api.lab.advance(3001)
    assert (active(api), "lock" in api.get(f"{PG}/config"), api.get(f"/nodes/pve1/tasks/{upid}/status")["exitstatus"]) == ([], False, "OK")
    newest = max(entry["ctime"] for entry in api.get("/nodes/pve1/storage/backup/content", content="backup", vmid=200))
    assert api.lab.state()["now"] - newest == pytest.approx(3000, abs=120)


def test_a_backup_of_several_guests_takes_them_in_turn_and_goes_on_after_a_failure(api: Api) -> None:
    api.lab.set_guest(202, lock="snapshot")
    upid = api.lab.backup(node="pve1", seconds=1000, all=1, exclude="100")
    assert active(api) == [""]
    locks = []
    for _ in range(3):
        locks.append([vmid for vmid in (200, 202, 203) if api.lab.guest(vmid)["lock"] == "backup"])
        api.lab.advance(1000)
    assert locks == [[200], [203], []]
    lines = [line["t"] for line in api.get(f"/nodes/pve1/tasks/{upid}/log")]
    assert lines[0] == "INFO: starting new backup job: vzdump --all 1 --exclude 100 --storage backup"
    assert "ERROR: Backup of VM 202 failed - CT is locked (snapshot)" in lines
    assert lines[-1] == "TASK ERROR: job errors"


def test_a_backup_that_is_aborted_takes_its_lock_with_it(api: Api) -> None:
    upid = api.lab.backup([200], seconds=3000)
    assert api.lab.guest(200)["lock"] == "backup"
    api.ask("DELETE", f"/nodes/pve1/tasks/{upid}")
    api.lab.advance(1)
    assert not api.lab.guest(200)["lock"]
    assert len(api.get("/nodes/pve1/storage/backup/content", content="backup", vmid=200)) == 1


# usage


def test_memory_at_the_limit(api: Api) -> None:
    now = api.get(f"{PG}/status/current")
    assert (now["mem"], now["swap"], now["pressurememorysome"] > 0) == (2048 * 2**20, 512 * 2**20, True)
    api.lab.advance(600)
    assert api.lab.guest(200)["oom_kills"] == 10
    api.set(PG, memory=4096)
    now = api.get(f"{PG}/status/current")
    assert (now["mem"], now["pressurememorysome"]) == (2700 * 2**20, 0)


def test_a_leak_grows_until_a_restart(api: Api) -> None:
    api.lab.set_guest(201, workload={"growth": 10})
    api.lab.advance(1200)
    assert api.get(f"{WEB}/status/current")["mem"] == pytest.approx(500 * 2**20, rel=0.01)
    api.do("POST", f"{WEB}/status/reboot")
    assert api.get(f"{WEB}/status/current")["mem"] == pytest.approx(300 * 2**20, rel=0.01)


def test_processors_are_a_share_of_what_it_has(api: Api) -> None:
    api.lab.set_guest(201, workload={"cpu": 3})
    assert api.get(f"{WEB}/status/current")["cpu"] == 1.0
    api.set(WEB, cores=4)
    api.lab.advance(10)
    assert api.get(f"{WEB}/status/current")["cpu"] == 0.75


def test_series(api: Api) -> None:
    api.lab.set_guest(201, workload={"growth": 1})
    api.lab.advance(3600)
    points = api.get(f"{WEB}/rrddata", timeframe="hour")
    assert len(points) == 60
    assert points[-1]["mem"] > points[5]["mem"]
    assert (len(api.get(f"{WEB}/rrddata", timeframe="week")), len(api.get(f"{WEB}/rrddata", timeframe="day"))) == (336, 1440)
    assert api.get(f"{WEB}/rrddata", timeframe="hour", cf="MAX")[-1]["mem"] > points[-1]["mem"]
    assert api.ask("GET", f"{WEB}/rrddata", timeframe="decade").status == 400


def test_series_of_a_time_in_which_it_was_off(api: Api) -> None:
    api.do("POST", f"{WEB}/status/stop")
    api.lab.advance(900)
    last = api.get(f"{WEB}/rrddata", timeframe="hour")[-1]
    assert "mem" not in last
    assert last["maxmem"] == 1024 * 2**20
    assert set(api.get(f"{WEB}/rrddata", timeframe="year")[0]) == {"time"}, "before there was anything"


def test_series_set_outright(api: Api) -> None:
    points: list[Params] = [{"time": 60, "mem": 1.0}, {"time": 120}]
    api.lab.history(200, "week", points)
    assert api.get(f"{PG}/rrddata", timeframe="week") == points


def test_two_weeks_of_a_hundred_containers_pass_at_once(api: Api) -> None:
    for vmid in range(300, 400):
        api.lab.add_guest(vmid, status="running", config={"memory": 512}, workload={"growth": 0.01})
    began = time.monotonic()
    api.lab.advance(14 * 86400)
    assert time.monotonic() - began < 2
    assert len([point for point in api.get("/nodes/pve1/lxc/399/rrddata", timeframe="month") if "mem" in point]) > 600


# the older release


def test_release_8() -> None:
    with serving(release="8.4") as api:
        assert api.get("/version")["release"] == "8.4"
        assert "pressurememorysome" not in api.get(f"{PG}/status/current")
        assert "available" not in api.get("/nodes/pve1/status")["memory"]
        assert len(api.get(f"{PG}/rrddata", timeframe="day")) == 70
        assert api.set(PG, env="A=1").errors["env"].startswith("property is not defined")
        assert {entry["type"] for entry in api.get("/cluster/resources")} == {"lxc", "qemu", "node", "storage", "sdn"}
        unknown = "UPID:pve1:00001234:00000001:6B036C26:vzstart:101:root@pam:"
        assert isinstance(api.ask("GET", f"/nodes/pve1/tasks/{unknown}/log").data, dict)
        assert api.ask("POST", "/access/roles", roleid="Watch", privs="VM.Monitor").status == 200


def test_release_9_has_lost_a_privilege(api: Api) -> None:
    answer = api.ask("POST", "/access/roles", roleid="Watch", privs="VM.Monitor")
    assert answer.errors == {"privs": "invalid format - invalid privilege 'VM.Monitor'\n"}


# faults


def test_fault_error(api: Api) -> None:
    api.lab.fault("PUT", "/config$", "error", status=500, reason="cluster not ready", after=1)
    assert [api.set(PG, cores=cores).status for cores in (1, 3, 4)] == [200, 500, 200]
    assert api.get(f"{PG}/config")["cores"] == 4


def test_fault_lost_and_cut(api: Api) -> None:
    api.lab.fault("PUT", "/config$", "lost")
    with pytest.raises((http.client.HTTPException, OSError)):
        api.set(PG, cores=3)
    assert api.get(f"{PG}/config")["cores"] == 3, "it was carried out"
    api.lab.fault("PUT", "/config$", "cut")
    with pytest.raises((http.client.HTTPException, OSError)):
        api.set(PG, cores=4)
    assert api.get(f"{PG}/config")["cores"] == 3


def test_fault_unreachable_and_delay(api: Api) -> None:
    api.lab.fault("GET", "^/nodes/pve1/", "unreachable")
    assert api.ask("GET", f"{PG}/config").status == 595
    api.lab.fault("GET", "^/version", "delay", seconds=0.3)
    began = time.monotonic()
    assert api.ask("GET", "/version").status == 200
    assert time.monotonic() - began >= 0.3


def test_fault_late(api: Api) -> None:
    api.lab.fault("PUT", "/config$", "late", seconds=0.5)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(api.set, PG, cores=5)
        time.sleep(0.2)
        assert api.get(f"{PG}/config")["cores"] == 5, "before the answer came"
        assert not future.done()
        assert future.result().status == 200


def test_fault_stuck(api: Api) -> None:
    api.lab.fault("POST", "/status/shutdown$", "stuck")
    upid = api.begin("POST", f"{PG}/status/shutdown")
    api.lab.advance(1000)
    assert api.get(f"/nodes/pve1/tasks/{upid}/status")["status"] == "running"
    assert "got timeout" in api.later(10, lambda: api.set(PG, cores=1)).reason
    api.lab.release()
    assert api.end(upid) == "OK"


def test_fault_stuck_snapshot_keeps_its_lock(api: Api) -> None:
    api.lab.fault("POST", "/snapshot$", "stuck")
    upid = api.begin("POST", f"{PG}/snapshot", snapname="s1")
    api.lab.advance(100)
    assert api.set(PG, cores=1).reason == "CT is locked (snapshot)"
    api.lab.release()
    assert api.end(upid) == "OK"


def test_fault_failed_and_warnings(api: Api) -> None:
    api.lab.fault("POST", "/status/start$", "failed", exitstatus="no space", log=["reading", "writing"])
    upid = api.begin("POST", f"{STOPPED}/status/start")
    assert api.end(upid) == "no space"
    assert [line["t"] for line in api.get(f"/nodes/pve1/tasks/{upid}/log")] == ["reading", "writing", "TASK ERROR: no space"]
    assert api.get(f"{STOPPED}/status/current")["status"] == "stopped"
    api.lab.fault("POST", "/snapshot$", "warnings", log=["WARN: slow"])
    assert api.do("POST", f"{PG}/snapshot", snapname="s1") == "WARNINGS: 1"
    assert len(api.get(f"{PG}/snapshot")) == 2


def test_a_fault_that_is_none(api: Api) -> None:
    with pytest.raises(ValueError, match="no such kind"):
        api.lab.fault("GET", "/", "explosion")


# the test's own view


def test_requests_are_remembered(api: Api) -> None:
    api.lab.clear()
    connection = http.client.HTTPSConnection("127.0.0.1", api.lab.options["api_port"], context=ssl.create_default_context(cafile=api.lab.options["ca_path"]))
    with contextlib.closing(connection):
        for method, body in (("GET", None), ("PUT", b"cores=3")):
            connection.request(method, f"/api2/json{PG}/config", body, api.token(HEALER))
            connection.getresponse().read()
    log_in(api)
    first, second, third = api.lab.requests()
    assert (first["method"], first["path"], first["user"], first["status"]) == ("GET", f"{PG}/config", HEALER, 200)
    assert (second["params"], first["connection"], third["connection"] > second["connection"]) == ({"cores": "3"}, second["connection"], True)
    assert first["began"] <= first["ended"] <= second["began"]
    assert [seen["path"] for seen in api.lab.writes()] == [f"{PG}/config"]
    assert [seen["path"] for seen in api.lab.logins()] == ["/access/ticket"]


def test_a_guest_that_is_set_has_it_in_the_kernel_too(api: Api) -> None:
    api.lab.set_guest(200, memory=4096, workload={"memory": 3000})
    assert (api.lab.guest(200)["kernel"]["memory"], api.get(f"{PG}/status/current")["mem"]) == (4096, 3000 * 2**20)
    api.lab.set_guest(200, memory=8192, kernel={"memory": 2048})
    assert (api.lab.guest(200)["kernel"]["memory"], api.get(f"{PG}/config")["memory"]) == (2048, 8192)
    api.lab.set_guest(200, status="stopped")
    assert api.get(f"{PG}/status/current")["status"] == "stopped"


def test_read_only_switch(api: Api) -> None:
    api.lab.read_only()
    answer = api.set(PG, cores=7)
    assert (answer.status, answer.reason) == (405, "Method Not Allowed")
    log_in(api)
    assert [seen["path"] for seen in api.lab.refused()] == [f"{PG}/config"]
    api.lab.read_only(False)
    assert api.set(PG, cores=7).status == 200


def test_reset(api: Api) -> None:
    api.set(PG, cores=7)
    api.lab.reset()
    assert api.get(f"{PG}/config")["cores"] == 2
    api.lab.reset({"nodes": {"only": {}}, "tokens": {ROOT_TOKEN: {"privsep": False}}, "guests": {"500": {"status": "running"}}})
    assert [guest["vmid"] for guest in api.get("/nodes/only/lxc")] == [500]
    assert api.lab.requests() != []
    api.lab.reset()


def test_many_requests_a_second(api: Api) -> None:
    """A hundred containers in one run are to be a matter of seconds."""
    context = ssl.create_default_context(cafile=api.lab.options["ca_path"])
    connection = http.client.HTTPSConnection("127.0.0.1", api.lab.options["api_port"], context=context)
    began = time.monotonic()
    with contextlib.closing(connection):
        for _ in range(500):
            connection.request("GET", f"/api2/json{PG}/status/current", headers=api.token(HEALER))
            assert connection.getresponse().read()
    assert time.monotonic() - began < 5


def test_command_line(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text(json.dumps({"nodes": {"n1": {}}, "tokens": {"root@pam!xy": {"privsep": False}}}), encoding="utf-8")
    command = [sys.executable, "-m", "tests.lab.proxmox", "--listen", "127.0.0.1:0", "--state", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        facts = json.loads(process.stdout.readline())
        authority = Path(facts["ca_path"])
        assert authority.stat().st_mode & 0o777 == 0o644
        assert facts["tokens"] == {"root@pam!xy": facts["api_token_secret"]}
        process.stdin.close()
        assert process.wait(timeout=10) == 0, "it ends when who started it is gone"
        assert not authority.parent.exists()


# proxmoxer


@pytest.mark.parametrize("way", ["token", "password"])
def test_proxmoxer(api: Api, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxmoxer = pytest.importorskip("proxmoxer")
    tools = pytest.importorskip("proxmoxer.tools")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    user, _, token = ROOT_TOKEN.partition("!")
    how = {"token_name": token, "token_value": api.lab.tokens[ROOT_TOKEN]} if way == "token" else {"password": api.lab.passwords[user]}
    options = api.lab.options
    client = proxmoxer.ProxmoxAPI("127.0.0.1", port=options["api_port"], user=user, verify_ssl=options["ca_path"], timeout=30, **how)
    assert client.version.get()["release"] == "9.2"
    assert {guest["vmid"] for guest in client.nodes("pve1").lxc.get()} == {200, 202, 203}
    container = client.nodes("pve1").lxc(200)
    container.config.put(cores=3)
    assert container.config.get()["cores"] == 3
    upid = container.snapshot.post(snapname="s1")
    api.end(upid)
    assert tools.Tasks.blocking_status(client, upid)["exitstatus"] == "OK"
    assert tools.Tasks.decode_upid(upid)["type"] == "vzsnapshot"
    api.end(container.snapshot("s1").delete(force=1))
    with pytest.raises(proxmoxer.ResourceException) as caught:
        container.config.put(memory=1, bogus=2)
    assert caught.value.status_code == 400
    assert caught.value.errors.keys() == {"memory", "bogus"}
    api.lab.set_guest(200, lock="backup")
    with pytest.raises(proxmoxer.ResourceException, match=re.escape("CT is locked (backup)")):
        container.config.put(cores=4)


# recordings of real servers


def recording(release: str) -> list[replay.Record]:
    if not RECORDINGS:
        pytest.skip("HEALER_PVE_RECORDINGS does not name the folder of the recordings of real servers")
    file = Path(RECORDINGS) / f"golden-{release}.json"
    if not file.exists():
        pytest.skip(f"no {file.name} in HEALER_PVE_RECORDINGS")
    records: list[replay.Record] = json.loads(file.read_text(encoding="utf-8"))
    return records


SPEED = 10.0


@pytest.mark.parametrize("release", ["8.4", "9.2"])
def test_answers_as_a_real_server_did(release: str) -> None:
    records = recording(release)
    with proxmox(fixture="recordings", release=release, cgroup=1, speed=SPEED) as lab:
        found = replay.replay(lab, records, SPEED)
    unexpected = [difference for difference in found if (difference.number, difference.aspect) not in ACCEPTED]
    assert not unexpected
    assert len({difference.number for difference in found}) <= len(records) * 0.02


def a_recording() -> list[replay.Record]:
    """A few exchanges as they are recorded, written by hand so that the re-sender is tested where no recording is."""
    config = "/nodes/pve1/lxc/210/config"
    creation = {"vmid": 210, "ostemplate": "local:vztmpl/bb_1_amd64.tar.gz", "rootfs": "btr:0", "ostype": "unmanaged", "memory": 64, "swap": 0}
    worker = "UPID:pve1:00000001:00000001:6B0373F6:vzcreate:210:root@pam!tk:"
    keys = dict.fromkeys(("arch", "digest", "hostname", "memory", "ostype", "rootfs", "swap"), "")
    wrong = {"memory": "value must have a minimum value of 16"}
    failed = "Parameter verification failed."

    def exchange(method: str, path: str, data: t.Any, answer: tuple[int, str], body: t.Any, **more: t.Any) -> replay.Record:
        return {"method": method, "path": path, "auth": "root-token", "data": data, "status": answer[0], "reason": answer[1], "body": body, **more}

    return [
        exchange("POST", "/nodes/pve1/lxc", creation, (200, "OK"), {"data": worker}, task={"exitstatus": "OK"}),
        exchange("GET", config, None, (200, "OK"), {"data": keys}),
        exchange("PUT", config, {"memory": 8}, (400, failed), {"data": None, "errors": wrong, "message": f"{failed}\n"}),
        exchange("POST", "/nodes/pve1/lxc/210/snapshot", {"snapname": "s1"}, (200, "OK"), {"data": worker}, task={"exitstatus": "OK"}),
    ]


def test_the_re_sender_finds_what_differs() -> None:
    records = a_recording()
    spoiled = copy.deepcopy(records)
    spoiled[1]["body"]["data"]["bogus"] = ""
    spoiled[2] |= {"status": 500, "reason": "no"}
    spoiled[2]["body"]["errors"] = {"memory": "too little"}
    spoiled[3]["task"] = {"exitstatus": "CT is locked (backup)"}
    with proxmox(fixture="recordings", cgroup=1, speed=SPEED) as lab:
        assert replay.replay(lab, records, SPEED) == []
        lab.reset()
        found = replay.replay(lab, spoiled, SPEED)
    assert [(difference.number, difference.aspect) for difference in found] == [(1, "shape"), (2, "status"), (2, "reason"), (2, "errors"), (3, "exitstatus")]
