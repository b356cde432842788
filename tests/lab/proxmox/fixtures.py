"""States to begin from."""

from __future__ import annotations

import os
import typing as t

Document = dict[str, t.Any]

LEAST_ON_GUESTS = ["VM.Audit", "VM.Config.CPU", "VM.Config.Memory", "VM.PowerMgmt", "VM.Snapshot", "VM.Snapshot.Rollback"]
ROOT_PASSWORD = "lab-password"
DAY = 86400


def recordings() -> Document:
    """The state that the recordings of real servers began from."""
    template = "local:vztmpl/bb_1_amd64.tar.gz"
    return {
        # the servers could not ask anybody for the address of a host
        "resolver": "Temporary failure in name resolution",
        "nodes": {"pve1": {"memory": 24104, "used": 1700, "cpus": 2, "swap": 0, "disk": 12, "uptime": 3960}},
        "storages": {
            "btr": {"type": "btrfs", "content": "images,rootdir", "total": 2},
            "dirst": {"type": "dir", "content": "images,rootdir", "total": 12},
            "local": {"type": "dir", "content": "backup,iso,rootdir,vztmpl", "contents": [_archive(template)], "total": 12},
        },
        "default_workload": {"memory": 0.6, "cpu": 0, "disk": 8},
        "roles": {"Healer": LEAST_ON_GUESTS},
        "users": {"root@pam": {"password": ROOT_PASSWORD}, "heal@pve": {"password": "heal-password"}},
        "tokens": {"root@pam!tk": {"privsep": False}, "heal@pve!ci": {"privsep": True}},
        "acl": [{"path": "/vms", "user": "heal@pve", "role": "Healer"}, {"path": "/vms", "token": "heal@pve!ci", "role": "Healer"}],
    }


def _archive(name: str) -> Document:
    return {"volid": name, "content": "vztmpl", "format": "tgz", "size": 1996800, "age": 3600}


def homelab() -> Document:
    """Two nodes, containers on three kinds of storage, and a token with exactly what the documentation lists."""
    return {
        "cluster": "homelab",
        "nodes": {"pve1": {"memory": 16384, "cpus": 8, "used": 1400}, "pve2": {"memory": 16384, "cpus": 8, "used": 1200}},
        "storages": {
            "local": {
                "type": "dir",
                "content": "iso,vztmpl",
                "total": 90,
                "used": 20,
                "contents": [_archive("local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst")],
            },
            "local-zfs": {"type": "zfspool", "total": 800, "used": 240, "nodes": ["pve1"]},
            "local-lvm": {"type": "lvmthin", "total": 400, "used": 120, "nodes": ["pve2"]},
            "backup": {
                "type": "dir",
                "content": "backup",
                "shared": True,
                "total": 2000,
                "used": 900,
                "contents": [_backup(200, DAY // 2), _backup(201, 9 * DAY)],
            },
        },
        "guests": {
            "100": {
                "kind": "qemu",
                "node": "pve1",
                "status": "running",
                "config": {"name": "router", "memory": 2048, "cores": 2, "scsi0": "local-zfs:vm-100-disk-0,size=16G"},
                "workload": {"memory": 1500, "cpu": 0.2},
            },
            "200": {
                "node": "pve1",
                "status": "running",
                "config": _container("postgres", "local-zfs:subvol-200-disk-0,size=32G", memory=2048, swap=512, cores=2, tags="database"),
                # wants more than it may have: the database at its limit
                "workload": {"memory": 2700, "main": 700, "cpu": 1.2, "disk": 9000},
            },
            "201": {
                "node": "pve2",
                "status": "running",
                "config": _container("web", "local-lvm:vm-201-disk-0,size=8G", memory=1024, swap=256, cores=1, tags="web"),
                "workload": {"memory": 300, "cpu": 0.1},
            },
            "202": {
                "node": "pve1",
                "status": "running",
                "config": _container("media", "local-zfs:subvol-202-disk-0,size=8G", memory=2048, swap=0, cores=2, mp0="/srv/media,mp=/media"),
                "workload": {"memory": 900, "cpu": 0.3},
            },
            "203": {"node": "pve1", "status": "stopped", "config": _container("archive", "local-zfs:subvol-203-disk-0,size=4G", memory=512, swap=512)},
            "299": {"node": "pve2", "template": True, "config": _container("base", "local-lvm:vm-299-disk-0,size=4G", memory=512, swap=512)},
        },
        "roles": {"HealerGuests": LEAST_ON_GUESTS, "HealerNodes": ["Sys.Audit"], "HealerStorage": ["Datastore.Audit"]},
        "users": {"root@pam": {"password": ROOT_PASSWORD}, "healer@pve": {"password": "healer-password"}},
        "tokens": {"root@pam!lab": {"privsep": False}, "healer@pve!healer": {"privsep": True}},
        "acl": [
            {"path": path, kind: who, "role": role}
            for path, role in (("/vms", "HealerGuests"), ("/nodes", "HealerNodes"), ("/storage", "HealerStorage"))
            for kind, who in (("user", "healer@pve"), ("token", "healer@pve!healer"))
        ],
    }


def node_of_containers(guests: t.Mapping[int, Document]) -> Document:
    """A node whose guests are a lab's real containers, with the homelab's tokens. ``guests`` are their configurations by number."""
    state = homelab()
    state["nodes"] = {"pve1": {"memory": 16384, "cpus": os.cpu_count() or 1, "used": 1400}}
    state["storages"] = {"local-btrfs": {"type": "btrfs", "total": 100, "used": 10}}
    state["guests"] = {
        str(vmid): {
            "node": "pve1",
            "status": "running",
            "config": _container(
                config.get("hostname", f"CT{vmid}"),
                f"local-btrfs:{vmid}/subvol-{vmid}-disk-0.subvol,size=16G",
                **{"memory": 512, "swap": 0, **{key: value for key, value in config.items() if key != "hostname"}},
            ),
        }
        for vmid, config in guests.items()
    }
    return state


def _container(hostname: str, rootfs: str, **keys: t.Any) -> Document:
    return {"hostname": hostname, "rootfs": rootfs, "unprivileged": 1, "net0": "name=eth0,bridge=vmbr0,ip=dhcp,type=veth", **keys}


def _backup(vmid: int, age: int) -> Document:
    return {
        "volid": f"backup:backup/vzdump-lxc-{vmid}-{age}.tar.zst",
        "content": "backup",
        "format": "tar.zst",
        "size": 2**30,
        "age": age,
        "vmid": vmid,
        "subtype": "lxc",
    }


def document(fixture: str | None) -> Document:
    return recordings() if fixture == "recordings" else homelab()
