#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: remediation_record
version_added: 0.1.0
short_description: Write down how far a remediation has come
description:
  - Notes in the ledger that a remediation is being verified, is being put back, or has ended, before or when it happens, and renews its lease.
  - A run whose lease has ended, or that another took over, is told so and writes nothing more.
  - V(taken) takes over what a run left behind that is certainly gone, or whose lease has ended, and returns all that is needed to bring it to an end.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.ledger
attributes:
  idempotent:
    support: none
    details: Each note is one of its own.
options:
  remediation:
    description: The id of the remediation.
    type: str
    required: true
  state:
    description:
      - How far it has come.
      - V(failed) is for one that ended before it could ask the gate, such as a diagnosis that failed.
    type: str
    choices: [verifying, undoing, closed, failed, taken]
    required: true
  fence:
    description: The number of the run's lease.
    type: int
    default: 0
  outcome:
    description: With V(closed), how it ended.
    type: str
    choices: [healthy, healed, rolled_back, needs_human, denied]
  why:
    description: Why, in a line.
    type: str
    default: ""
  facts:
    description: What else is to be kept, such as V(times), V(looks), V(results) and V(error).
    type: dict
    default: {}
  remedy:
    description: With V(failed), the short name of the remedy.
    type: str
    default: ""
  host:
    description: With V(failed), the inventory's name of the host.
    type: str
    default: ""
  target:
    description: With V(failed), what is known of the target.
    type: dict
    default: {}
  lease:
    description: For how many seconds from now nobody else may touch the target unless the run says that it goes on.
    type: float
    default: 3600
  holder:
    description: With V(taken), who had it, as RV(homelab.healer.remediation_info#module:remediations[].holder) says.
    type: dict
  gone:
    description: Whether that process is certainly gone. Given by the action plugin, which looks for it.
    type: bool
    default: false
  run:
    description: Who writes. Given by the action plugin.
    type: dict
    default: {}
seealso:
  - module: homelab.healer.remediation_gate
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Note that a diagnosis failed
  homelab.healer.remediation_record:
    remediation: 20260131T235959Z-0a1b2c3d
    state: failed
    remedy: docker_runaway
    host: nas
    why: cannot reach the engine
"""

RETURN = r"""
remediation:
  description: The id of the remediation.
  returned: success
  type: str
state:
  description: Its state now, as in RV(homelab.healer.remediation_info#module:remediations[].state).
  returned: success
  type: str
fence:
  description: The number of the lease, a new one with V(taken).
  returned: success
  type: int
until:
  description: When the lease ends, in seconds since 1970 by the ledger's clock.
  returned: success
  type: float
deadline:
  description: When the last write may begin, a margin before RV(until).
  returned: success
  type: float
taken:
  description: Whether it was taken over; only with V(taken). If not, RV(why) says why not, and nothing is to be done.
  returned: success
  type: bool
why:
  description: Why it was not taken over, or empty.
  returned: success
  type: str
before:
  description: With V(taken), the state that it was left in, or empty.
  returned: success
  type: str
outcome:
  description: With V(taken), how it ends where nothing more can be done, or empty.
  returned: success
  type: str
  sample: rolled_back
chain:
  description: >-
    With V(taken), what the gate was given, V(plan), V(undo), V(point_of_return), V(probes), V(baseline) and V(settings). Empty where nothing was planned.
  returned: success
  type: dict
looks:
  description: With V(taken), what was seen before it was put back, so that what the change itself broke is not laid to that. Empty where it was not.
  returned: success
  type: list
  elements: list
opened:
  description: With V(taken), what the first question was about, V(remedy), V(host), V(facts) of the target, and V(problem).
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
  contains:
    code:
      description: >-
        One of V(invalid), V(missing_library), V(unreachable), V(denied), V(not_found), V(conflict), V(refused) and V(task_failed). With V(conflict) the
        lease is lost.
      type: str
    what:
      description: What could not be done.
      type: str
    why:
      description: Why, in the ledger's own words where there are any.
      type: str
    fix:
      description: What to do next.
      type: str
    retryable:
      description: Whether the same may succeed later.
      type: bool
"""

import typing as t
from dataclasses import dataclass

from ansible_collections.homelab.healer.plugins.module_utils import _gate
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger, Remediation, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_ledger


@dataclass(frozen=True)
class Request:
    """What to write down, of which remediation, by whom."""

    ledger: t.Mapping[str, t.Any]
    remediation: str
    state: str
    fence: int
    outcome: str | None
    why: str
    facts: t.Mapping[str, t.Any]
    remedy: str
    host: str
    target: t.Mapping[str, t.Any]
    lease: float
    holder: t.Mapping[str, t.Any] | None
    gone: bool
    run: t.Mapping[str, t.Any]


def act(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    """Write it down, if the run may."""
    with ledger.turn():
        more = _taken(ledger, request) if request.state == "taken" else {}
        if request.state == "failed":
            more = {**request.facts, "run": request.run}
            _gate.fail(ledger, request.remediation, remedy=request.remedy, host=request.host, facts=request.target, why=request.why, more=more)
            more = {}
        elif request.state == "closed":
            _gate.close(ledger, _held(ledger, request), str(request.outcome), request.why, request.facts)
        elif request.state != "taken":
            _held(ledger, request)
            ledger.append(request.state, request.remediation, until=ledger.now() + request.lease, reason=request.why, **request.facts)
        row = ledger.get(request.remediation)
        more = {"taken": False, "why": "", "before": "", "outcome": "", "chain": {}, "looks": [], "opened": {}, **more}
        return dict(more, remediation=row.id, state=row.state, fence=row.fence, until=row.until, deadline=row.until - _gate.MARGIN)


def _held(ledger: Ledger, request: Request) -> Remediation:
    return ledger.held(request.remediation, request.fence, f"cannot go on with remediation {request.remediation}")


def _taken(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    row = ledger.get(request.remediation)
    why = _gate.not_to_be_taken(ledger, row, gone=request.gone and request.holder == _gate.holder_of(ledger, row))
    if why:
        return dict(why=why)
    ledger.append("taken", row.id, until=ledger.now() + request.lease, run=request.run)
    outcome = _gate.lapsed(ledger, row) if row.state == "asked" else "rolled_back"
    chain, looks = ledger.latest(row.id, "decided").get("chain", {}), ledger.latest(row.id, "undoing").get("looks", [])
    return dict(taken=True, before=row.state, outcome=outcome, chain=chain, looks=looks, opened=ledger.latest(row.id, "opened"))


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        remediation=dict(type="str", required=True),
        state=dict(type="str", choices=["verifying", "undoing", "closed", "failed", "taken"], required=True),
        fence=dict(type="int", default=0),
        outcome=dict(type="str", choices=["healthy", "healed", "rolled_back", "needs_human", "denied"]),
        why=dict(type="str", default=""),
        facts=dict(type="dict", default={}),
        remedy=dict(type="str", default=""),
        host=dict(type="str", default=""),
        target=dict(type="dict", default={}),
        lease=dict(type="float", default=3600),
        holder=dict(type="dict"),
        gone=dict(type="bool", default=False),
        run=dict(type="dict", default={}),
    ),
    required_if=[("state", "closed", ["outcome"]), ("state", "failed", ["remedy", "host"])],
)


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
