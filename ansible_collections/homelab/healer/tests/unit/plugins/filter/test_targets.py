# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.homelab.healer.plugins.filter.targets import container_target, databases, lxc_target

BACKUP = {"running": None, "last": None, "unseen": "nobody knows"}
LXC = {"vmid": 200, "name": "postgres", "node": "pve1", "tags": [], "pool": "", "backup": BACKUP, "cores": 2}


def test_a_container_of_proxmox() -> None:
    known = {"kind": "lxc", "id": 200, "name": "200 (postgres)", "node": "pve1", "tags": [], "hostname": "postgres", "backup": BACKUP}
    assert lxc_target(LXC) == {**known, "pool": ""}
    assert lxc_target({**LXC, "pool": None}) == known, "what is not known is not said to be none"
    assert lxc_target({"vmid": 0, "name": "no container"}) == {"kind": "lxc", "id": 0, "name": "0 (no container)", "hostname": "no container"}


def test_a_container_of_an_engine() -> None:
    facts: dict[str, object] = {"id": "4f1e", "name": "app", "labels": {}, "hostname": None, "image": "app:1"}
    assert container_target(facts) == {"kind": "container", "id": "4f1e", "name": "app", "labels": {}}
    assert container_target({"id": "", "name": "no container"}) == {"kind": "container", "id": "", "name": "no container"}


def test_databases_of_sessions() -> None:
    assert databases([{"database": "prod"}, {"database": None}, {"database": "app"}, {"database": "prod"}]) == ["app", "prod"]
    assert databases([]) == []
