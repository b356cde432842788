#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lxc_service_info
version_added: 0.1.0
short_description: What a service inside Proxmox LXC containers does, and whether it answers
description:
  - Tells of a service inside a container its state, its main process and its run, and of one that stands for others which units do its work.
  - Runs a command in the container, if asked, and tells whether it ended well, such as a query of a database.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.pct
options:
  vmid:
    description: The containers, by their numbers.
    type: list
    elements: int
    required: true
    aliases: [lxc_id]
  name:
    description: The service, such as V(nginx) or V(postgresql@15-main), with or without C(.service).
    type: str
    required: true
    aliases: [service_name]
  probe:
    description:
      - A command that is run in the container, as a list of a program and its arguments, in check mode too. It should only read.
      - It is not run by a shell, and for O(exec_timeout) seconds at the most.
    type: list
    elements: str
  lines:
    description: How many of the last lines of each unit's journal to tell. What may be a secret is left out of them.
    type: int
    default: 0
seealso:
  - module: homelab.healer.lxc_service
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: See how the database in container 200 is, and whether it answers
  homelab.healer.lxc_service_info:
    vmid: 200
    name: postgresql
    probe: [runuser, -u, postgres, --, psql, -XAtqw, -c, SELECT 1]
    lines: 10
  delegate_to: pve1
"""

RETURN = r"""
services:
  description: The service in each container, in the order in which they were named.
  returned: success
  type: list
  elements: dict
  contains:
    vmid:
      description: The container's number.
      type: int
    name:
      description: The unit that was named, an alias by its own name.
      type: str
    up:
      description: Whether all units that do its work are up.
      type: bool
    init:
      description: V(systemd) or V(openrc).
      type: str
    stands_for:
      description: The units that do the work of the one that was named, where these are others.
      type: list
      elements: str
    units:
      description: The units that do its work.
      type: list
      elements: dict
      contains:
        unit:
          description: The name.
          type: str
        load_state:
          description: V(loaded), V(not-found), V(masked) or V(bad-setting).
          type: str
        active_state:
          description: V(active), V(activating), V(deactivating), V(reloading), V(failed) or V(inactive).
          type: str
        sub_state:
          description: Its state in the words of its kind, such as V(running) or V(auto-restart).
          type: str
        up:
          description: Whether it does its work.
          type: bool
        type:
          description: How systemd starts it, such as V(notify); empty with OpenRC.
          type: str
        main_pid:
          description: Its main process, by the container's own numbers; 0 where it has none.
          type: int
        invocation_id:
          description: What another run has another of; systemd's id, or with OpenRC the process and when it began.
          type: str
        n_restarts:
          description: How often systemd has started it again by itself since somebody last did.
          type: int
        result:
          description: V(success), or how it failed, such as V(exit-code).
          type: str
        start_limited:
          description: Whether systemd starts it no more, as it was started too often.
          type: bool
        can_reload:
          description: Whether it can be reloaded.
          type: bool
        enabled:
          description: Whether it is started when the container is; in systemd's words.
          type: str
        changed_at:
          description: When its state changed last, in microseconds of systemd's clock, or a date and time with OpenRC.
          type: str
        since:
          description: Since when it has been active, in systemd's words.
          type: str
        status_text:
          description: What it tells systemd of itself.
          type: str
        journal:
          description: The last lines of its journal, if asked for.
          type: list
          elements: str
    probe:
      description: What became of O(probe), or V(null) without one.
      type: dict
      contains:
        good:
          description: Whether it ended with 0 in time.
          type: bool
        told:
          description: Why it did not, or empty.
          type: str
"""

import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._pct import OPTIONS, Node, connect, each
from ansible_collections.homelab.healer.plugins.module_utils._run import run_info
from ansible_collections.homelab.healer.plugins.module_utils._services import command, lines_told, numbers, service_facts, unit_name


@dataclass(frozen=True)
class Request:
    """Which service to look at, in which containers, and what to run there."""

    vmid: tuple[int, ...] = field(metadata={"parse": numbers})
    name: str = field(metadata={"parse": unit_name})
    probe: tuple[str, ...] | None = field(metadata={"parse": command})
    lines: int = field(metadata={"parse": lines_told})


def report(client: Node, request: Request) -> dict[str, t.Any]:
    """Look at the service in each container, and run the probe."""
    return dict(services=each(request.vmid, lambda vmid: _told(client, request, vmid)))


def _told(client: Node, request: Request, vmid: int) -> dict[str, t.Any]:
    service = client.service(vmid, request.name)
    facts = service_facts(service)
    if request.lines:
        facts["units"] = [dict(told, journal=client.journal(vmid, unit, request.lines)) for told, unit in zip(facts["units"], service.units)]
    why = client.answers(vmid, request.probe, time.monotonic() + client.limit) if request.probe else None
    probe = dict(good=why is None, told=why or "") if request.probe else None
    return dict(facts, vmid=vmid, name=service.asked.id, up=service.up, probe=probe)


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        vmid=dict(type="list", elements="int", required=True, aliases=["lxc_id"]),
        name=dict(type="str", required=True, aliases=["service_name"]),
        probe=dict(type="list", elements="str"),
        lines=dict(type="int", default=0),
    ),
)


def main() -> None:
    run_info(Request, connect, report, ARGUMENTS)


if __name__ == "__main__":
    main()
