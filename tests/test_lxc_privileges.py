"""A token with exactly the privileges that the documentation lists can do all that it says, and with one fewer exactly that part of it cannot be done."""

from __future__ import annotations

import re
import types
import typing as t

import pytest
import yaml
from proxmoxer import ProxmoxAPI

from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.modules import lxc_info, lxc_power, lxc_resources, lxc_snapshot
from tests.lab.modules import call, read
from tests.lab.playbooks import ROOT
from tests.lab.proxmox.client import Proxmox

ON_GUESTS = ("VM.Audit", "VM.Config.CPU", "VM.Config.Memory", "VM.Snapshot", "VM.Snapshot.Rollback", "VM.PowerMgmt")
PATHS = {"/vms/200": ON_GUESTS, "/nodes/pve1": ("Sys.Audit",), "/storage/local-zfs": ("Datastore.Audit",)}
"""What the documentation lists, on no more than it has to be for one container."""
FOR_BACKUPS = {"VM.Backup", "Datastore.AllocateSpace", "Datastore.Allocate"}
"""What only the age of backups needs, and nothing that the collection does."""
USER, TOKEN = "narrow@pve", "narrow@pve!narrow"
Job = t.Tuple[types.ModuleType, t.Dict[str, t.Any]]
CPU: Job = (lxc_resources, {"cores": "1", "cpulimit": "1.5", "cpuunits": "50"})
MORE: Job = (lxc_resources, {"memory": "4096"})
LESS: Job = (lxc_resources, {"memory": "1024", "allow_below_usage": True})
SWAP: Job = (lxc_resources, {"swap": "256"})
MAKE: Job = (lxc_snapshot, {"name": "made"})
REMOVE: Job = (lxc_snapshot, {"name": "before", "state": "absent"})
BACK: Job = (lxc_snapshot, {"name": "before", "state": "rolled_back", "allow_data_loss": True})
RESTART: Job = (lxc_power, {"state": "restarted", "timeout": 5})
STOP: Job = (lxc_power, {"state": "stopped", "timeout": 5})
JOBS = {"cpu": CPU, "more": MORE, "less": LESS, "swap": SWAP, "make": MAKE, "remove": REMOVE, "back": BACK, "restart": RESTART, "stop": STOP}
"""The whole job, each part as it could be asked for."""


class Administrator:
    """Root, who grants rights by the API."""

    def __init__(self, pve: Proxmox) -> None:
        self.pve = pve
        options = pve.options_for("root@pam!lab")
        self.api = ProxmoxAPI(
            options["api_host"],
            port=options["api_port"],
            user="root@pam",
            token_name="lab",
            token_value=options["api_token_secret"],
            verify_ssl=options["ca_path"],
        )
        self.api.access.users.post(userid=USER, password="a-long-password")
        self.token()

    def token(self, name: str = "narrow", privsep: int = 1) -> dict[str, t.Any]:
        """Make a token, and return the options to connect with it."""
        made = self.api.access.users(USER).token(name).post(privsep=privsep)
        self.pve.tokens[made["full-tokenid"]] = made["value"]
        return self.pve.options_for(made["full-tokenid"])

    def grant(self, path: str, privileges: t.Collection[str], *, whom: t.Collection[str] = (USER, TOKEN), propagate: int = 1) -> None:
        """A role of its own with these privileges on a path, for the user and the token."""
        role = f"R{len(self.api.access.roles.get())}"
        self.api.access.roles.post(roleid=role, privs=",".join(privileges))
        for who in whom:
            self.api.access.acl.put(path=path, roles=role, propagate=propagate, **{"tokens" if "!" in who else "users": who})

    def grant_all(self, but: str = "", **how: t.Any) -> None:
        """All that is documented, but one."""
        for path, names in PATHS.items():
            self.grant(path, [name for name in names if name != but], **how)


@pytest.fixture
def root(pve: Proxmox) -> Administrator:
    pve.set_guest(200, snapshots={"before": {"age": 100}})
    return Administrator(pve)


def do(pve: Proxmox, job: Job, check: bool, **options: t.Any) -> tuple[dict[str, t.Any], HealerError | None]:
    module, wanted = job
    connection = {"wait_lock": 0, **pve.options_for(TOKEN)}
    return call(module, check, **{**connection, "vmid": [200], **wanted, **options})


def succeeds(pve: Proxmox, job: Job, **options: t.Any) -> None:
    """It can be foretold and done."""
    for check in (True, False):
        answer, error = do(pve, job, check, **options)
        assert (error, answer["changed"]) == (None, True), (job, error)


def refused(pve: Proxmox, job: Job, **options: t.Any) -> HealerError:
    """It is refused in check mode and for real alike, and nothing is written."""
    pve.clear()
    (_answer, foretold), (_other, error) = (do(pve, job, check, **options) for check in (True, False))
    assert error is not None
    assert str(foretold) == str(error)
    assert pve.writes() == []
    return error


def info(pve: Proxmox, **options: t.Any) -> dict[str, t.Any]:
    return read(lxc_info, **{**pve.options_for(TOKEN), "vmid": [200], "gather": ["snapshots", "recommendation"], **options})


def names_and_grants(error: HealerError, privilege: str, path: str) -> None:
    """The error names the privilege and its path, and how to grant it."""
    assert privilege in str(error)
    assert f"on {path} or above it, as in pveum acl modify {path} --tokens" in error.fix
    assert privilege in error.fix


def test_the_documentation_lists_these() -> None:
    listed = {name for names in PATHS.values() for name in names}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (role,) = re.findall(r'pveum role add \S+ --privs "([^"]*)"', readme)
    assert set(role.split()) == listed
    told = "".join(note for module in (lxc_resources, lxc_snapshot, lxc_power, lxc_info) for note in yaml.safe_load(module.DOCUMENTATION)["notes"])
    assert set(re.findall(r"C\(((?:VM|Sys|Datastore)\.[\w.]+)\)", told)) == listed | FOR_BACKUPS


@pytest.mark.parametrize("name", JOBS)
def test_with_exactly_these_each_part_can_be_done(pve: Proxmox, root: Administrator, name: str) -> None:
    root.grant_all()
    succeeds(pve, JOBS[name])


def test_with_exactly_these_all_can_be_told(pve: Proxmox, root: Administrator) -> None:
    root.grant_all()
    told = info(pve)
    (facts,), (node,) = told["containers"], told["nodes"]
    assert [snapshot["name"] for snapshot in facts["snapshots"]] == ["before"]
    assert facts["no_snapshots"] == []
    assert facts["recommendation"]["why"]
    assert (node["memory"], node["cpus"], node["whole"]) == (16384, 8, False)
    assert [facts["vmid"] for facts in info(pve, vmid=None)["containers"]] == [200]


FEWER = {
    "VM.Config.CPU": {"cpu"},
    "VM.Config.Memory": {"more", "less", "swap"},
    "VM.Snapshot": {"make", "remove"},
    "VM.Snapshot.Rollback": set(),  # VM.Snapshot is enough to go back
    "VM.PowerMgmt": {"restart", "stop"},
}
"""What cannot be done without a privilege on the container."""


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("privilege", FEWER)
def test_with_one_fewer_exactly_that_part_cannot(pve: Proxmox, root: Administrator, privilege: str, name: str) -> None:
    root.grant_all(but=privilege)
    if name not in FEWER[privilege]:
        succeeds(pve, JOBS[name])
        return
    error = refused(pve, JOBS[name])
    assert error.code == "denied"
    names_and_grants(error, privilege, "/vms/200")


def test_of_two_resources_neither_is_changed_where_one_may_not(pve: Proxmox, root: Administrator) -> None:
    root.grant_all(but="VM.Config.Memory")
    error = refused(pve, (lxc_resources, {"cores": "1", "memory": "4096"}))
    names_and_grants(error, "VM.Config.Memory", "/vms/200")
    assert "VM.Config.CPU" not in error.fix


def test_going_back_wants_one_of_two(pve: Proxmox, root: Administrator) -> None:
    root.grant("/vms/200", ["VM.Audit", "VM.PowerMgmt"])
    error = refused(pve, BACK)
    assert error.code == "denied"
    names_and_grants(error, "VM.Snapshot", "/vms/200")


@pytest.mark.parametrize("name", [*JOBS, "info"])
def test_without_audit_it_is_not_seen(pve: Proxmox, root: Administrator, name: str) -> None:
    root.grant_all(but="VM.Audit")
    if name == "info":
        with pytest.raises(HealerError) as caught:
            info(pve)
        error = caught.value
        assert info(pve, vmid=None)["containers"] == []
    else:
        error = refused(pve, JOBS[name])
    assert error.code == "not_found"
    assert "there is none, or this token may not see it" in error.why
    names_and_grants(error, "VM.Audit", "/vms/200")


def test_without_the_nodes_audit_nothing_grows_unless_that_is_allowed(pve: Proxmox, root: Administrator) -> None:
    root.grant_all(but="Sys.Audit")
    error = refused(pve, MORE)
    assert error.code == "refused"
    names_and_grants(error, "Sys.Audit", "/nodes/pve1")
    assert "allow_overcommit=true" in error.fix
    (node,) = info(pve)["nodes"]
    assert (node["memory"], node["cpus"], node["available"]) == (None, None, None)
    succeeds(pve, MORE, allow_overcommit=True)
    for job in (CPU, LESS, SWAP, MAKE, REMOVE, RESTART):
        succeeds(pve, job)


def test_without_a_storages_audit_it_is_not_judged(pve: Proxmox, root: Administrator) -> None:
    root.grant_all()
    pve.set_storage("local-zfs", total=100, used=95)
    pve.advance(20)
    assert "local-zfs is 95 % full" in refused(pve, MAKE).why
    pve.reset()
    pve.set_guest(200, snapshots={"before": {"age": 100}})
    again = Administrator(pve)
    again.grant_all(but="Datastore.Audit")
    pve.set_storage("local-zfs", total=100, used=95)
    pve.advance(20)
    for job in (MAKE, REMOVE, CPU, MORE, RESTART):
        succeeds(pve, job)


def test_without_a_storages_audit_it_is_not_said_which_cannot(pve: Proxmox, root: Administrator) -> None:
    root.grant_all()
    pve.set_guest(200, mp0="local:200/vm-200-disk-1.raw,mp=/data,size=4G")
    assert info(pve)["containers"][0]["no_snapshots"] == ["one of its volumes has no snapshots"]
    assert "one of its volumes has no snapshots" in refused(pve, MAKE).why
    root.grant("/storage/local", ["Datastore.Audit"])
    assert "storages of type dir have no snapshots" in info(pve)["containers"][0]["no_snapshots"][0]


def test_rights_through_a_pool(pve: Proxmox, root: Administrator) -> None:
    root.api.pools.post(poolid="databases")
    root.api.pools("databases").put(vms="200")
    root.grant("/pool/databases", ON_GUESTS)
    root.grant("/nodes", ["Sys.Audit"])
    for name in ("cpu", "more", "back", "make", "restart"):
        succeeds(pve, JOBS[name])
    error = refused(pve, RESTART, vmid=[202])
    assert error.code == "not_found"
    names_and_grants(error, "VM.Audit", "/vms/202")


def test_rights_through_a_pool_with_one_fewer(pve: Proxmox, root: Administrator) -> None:
    root.api.pools.post(poolid="databases")
    root.api.pools("databases").put(vms="200")
    root.grant("/pool/databases", [name for name in ON_GUESTS if name != "VM.Config.CPU"])
    root.grant("/nodes", ["Sys.Audit"])
    names_and_grants(refused(pve, CPU), "VM.Config.CPU", "/vms/200")
    succeeds(pve, MORE)


def test_a_token_without_privilege_separation_may_what_its_user_may(pve: Proxmox, root: Administrator) -> None:
    root.grant_all(but="VM.PowerMgmt", whom=[USER])
    whole = root.token("whole", privsep=0)
    for name in ("cpu", "more", "back", "make"):
        succeeds(pve, JOBS[name], **whole)
    names_and_grants(refused(pve, RESTART, **whole), "VM.PowerMgmt", "/vms/200")
    assert refused(pve, CPU).code == "not_found", "the other token has no rights of its own"


def test_a_token_may_no_more_than_its_user(pve: Proxmox, root: Administrator) -> None:
    root.grant_all(whom=[TOKEN])
    root.grant_all(but="VM.Config.Memory", whom=[USER])
    error = refused(pve, MORE)
    names_and_grants(error, "VM.Config.Memory", "/vms/200")
    assert "needs its user to have them too" in error.fix
    succeeds(pve, CPU)


@pytest.mark.parametrize(("path", "seen"), [("/vms", False), ("/vms/200", True)])
def test_a_role_that_does_not_propagate_counts_where_it_is(pve: Proxmox, root: Administrator, path: str, seen: bool) -> None:
    root.grant(path, ON_GUESTS, propagate=0)
    if seen:
        succeeds(pve, CPU)
    else:
        assert refused(pve, CPU).code == "not_found"


def test_a_role_on_the_container_replaces_the_one_above(pve: Proxmox, root: Administrator) -> None:
    root.grant("/vms", ON_GUESTS)
    root.grant("/vms/200", ["VM.Audit", "VM.Config.CPU"])
    succeeds(pve, CPU)
    names_and_grants(refused(pve, MAKE), "VM.Snapshot", "/vms/200")
    succeeds(pve, MAKE, vmid=[203])


def test_a_password_instead_of_a_token(pve: Proxmox, root: Administrator) -> None:
    root.grant_all(but="VM.Snapshot", whom=[USER])
    with_password = {"api_token_id": None, "api_token_secret": None, "api_password": "a-long-password"}
    succeeds(pve, CPU, **with_password)
    for check in (True, False):
        pve.clear()
        _answer, error = do(pve, MAKE, check, **with_password)
        assert error is not None
        names_and_grants(error, "VM.Snapshot", "/vms/200")
        assert pve.writes() == []
