# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the chain knows of a remediation's target, from what the info modules told of it. What is not known is left out."""

from __future__ import annotations

import typing as t

Facts = t.Mapping[str, t.Any]
Target = dict[str, t.Any]
OF_LXC = {"node": "node", "tags": "tags", "pool": "pool", "hostname": "name", "backup": "backup"}
OF_CONTAINER = {"labels": "labels", "hostname": "hostname"}


def lxc_target(facts: Facts) -> Target:
    """A container of Proxmox VE as C(homelab.healer.lxc_info) has it."""
    return {"kind": "lxc", "id": facts["vmid"], "name": f"{facts['vmid']} ({facts['name']})", **_known(facts, OF_LXC)}


def container_target(facts: Facts) -> Target:
    """A container of a Docker Engine as C(homelab.healer.docker_usage_info) has it."""
    return {"kind": "container", "id": facts["id"], "name": facts["name"], **_known(facts, OF_CONTAINER)}


def databases(sessions: t.Sequence[Facts]) -> list[str]:
    """The databases that these sessions are connected to, each once; one that is connected to none adds none."""
    return sorted({session["database"] for session in sessions if session["database"]})


def _known(facts: Facts, names: t.Mapping[str, str]) -> Target:
    return {name: facts[source] for name, source in names.items() if facts.get(source) is not None}


class FilterModule:
    """The collection's filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"lxc_target": lxc_target, "container_target": container_target, "databases": databases}
