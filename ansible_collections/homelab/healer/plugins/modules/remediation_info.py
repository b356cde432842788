#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: remediation_info
version_added: 0.1.0
short_description: Tell what the ledger knows of remediations
description:
  - Lists remediations, the newest first, and what is paused, frozen or waiting. Reads only.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.ledger
options:
  remediation:
    description: The id of the one to tell of. Without it those that O(state) and O(since) choose.
    type: str
  state:
    description: V(open) is for those that are under way, or were left behind by a run that ended.
    type: str
    choices: [all, open]
    default: all
  since:
    description: Only those that began within that time, such as V(7d). Without it of all time.
    type: str
  limit:
    description: How many at the most.
    type: int
    default: 100
  gather:
    description: V(events) adds what was written down of each, which is long.
    type: list
    elements: str
    choices: [events]
seealso:
  - module: homelab.healer.ledger_verify
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: See what is under way
  homelab.healer.remediation_info:
    state: open
"""

RETURN = r"""
remediations:
  description: The remediations, the newest first. Times are seconds since 1970 by the ledger's clock, V(null) for what has not happened.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The id.
      type: str
    remedy:
      description: The short name of the remedy.
      type: str
    host:
      description: The inventory's name of the host.
      type: str
    target:
      description: What leases, cooldowns and freezes go by, such as V(pve/lxc/200).
      type: str
    name:
      description: What a person calls the target.
      type: str
    node:
      description: The node that its budget is counted on.
      type: str
    state:
      description: >-
        V(planned), V(asked), V(approved), V(applying), V(verifying) or V(undoing) while it is under way, and V(healthy), V(healed), V(rolled_back),
        V(needs_human), V(denied) or V(shadow) when it has ended.
      type: str
    why:
      description: Why, in a line.
      type: str
    rule:
      description: The rule of the policy that decided.
      type: str
    plan_id:
      description: What an approval is bound to, or empty.
      type: str
    opened:
      description: When the gate was asked first.
      type: float
    decided:
      description: When the gate had its plan.
      type: float
    asked:
      description: When a human was asked.
      type: float
    answered:
      description: When she approved.
      type: float
    applied:
      description: When the change was begun.
      type: float
    changed:
      description: When it was done, and its verification began.
      type: float
    closed:
      description: When it ended.
      type: float
    fence:
      description: The number of its lease.
      type: int
    until:
      description: When its lease ends, or ended.
      type: float
    expires:
      description: Until when a question can be answered.
      type: float
    approver:
      description: Who approved it, or empty.
      type: str
    recurred:
      description: When the same trouble came back, within a day of the success.
      type: float
    recovered:
      description: When another run took it over.
      type: float
    holder:
      description: Who has its lease, a V(user), V(machine) and process. Empty where it never had one.
      type: dict
    events:
      description: What was written down, with O(gather=events), each with V(seq), V(at), V(kind) and V(facts).
      type: list
      elements: dict
switches:
  description: What is set, by name, such as V(pause), V(storm) and V(freeze pve/lxc/200), each with V(since) and what is known of it.
  returned: success
  type: dict
head:
  description: The ledger's last entry, as V(number:hash).
  returned: success
  type: str
error:
  description: What went wrong.
  returned: failure
  type: dict
"""

import typing as t
from dataclasses import asdict, dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils import _gate
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger, Remediation, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_ledger
from ansible_collections.homelab.healer.plugins.module_utils._sizes import parse_span


@dataclass(frozen=True)
class Request:
    """Which remediations to tell of."""

    ledger: t.Mapping[str, t.Any]
    remediation: str | None
    state: str
    since: float | None = field(metadata={"parse": parse_span})
    limit: int
    gather: tuple[str, ...] | None


def act(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    """Read, all of one moment."""
    with ledger.turn():
        if request.remediation is not None:
            rows = [ledger.get(request.remediation)]
        else:
            begun = 0.0 if request.since is None else ledger.now() - request.since
            which = f" AND {_gate.UNDER_WAY}" if request.state == "open" else ""
            rows = ledger.find(f"opened >= ?{which} ORDER BY opened DESC, id LIMIT ?", begun, request.limit)
        return dict(remediations=[_told(ledger, row, "events" in (request.gather or ())) for row in rows], switches=ledger.switches())


def _told(ledger: Ledger, row: Remediation, whole: bool) -> dict[str, t.Any]:
    told = {name: value for name, value in asdict(row).items() if name != "nonce"}
    events = [dict(seq=event.seq, at=event.at, kind=event.kind, facts=event.facts) for event in ledger.events(row.id)] if whole else []
    return {**told, "holder": _gate.holder_of(ledger, row), "events": events}


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        remediation=dict(type="str"),
        state=dict(type="str", choices=["all", "open"], default="all"),
        since=dict(type="str"),
        limit=dict(type="int", default=100),
        gather=dict(type="list", elements="str", choices=["events"]),
    ),
)


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
