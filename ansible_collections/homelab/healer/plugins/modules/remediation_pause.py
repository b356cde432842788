#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: remediation_pause
version_added: 0.1.0
short_description: Stop all new remediations, or let them go on
description:
  - Stops all new work, or that on one target. What is under way is finished, or put back.
  - With O(state=absent) lets it go on. For a target that also ends the freeze after a remediation that needed a human, and what its failures count for the
    breaker.
  - A file named C(pause) beside the ledger stops all new work too, for who has nothing but a shell.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.ledger
options:
  state:
    description: Whether new work is stopped.
    type: str
    choices: [present, absent]
    default: present
  target:
    description:
      - The target that is meant, as RV(homelab.healer.remediation_info#module:remediations[].target) has it, such as V(pve/lxc/200). Without it everything is.
    type: str
  why:
    description: Why, in a line.
    type: str
    default: ""
  accept_clock:
    description: With O(state=absent), take the ledger's clock for right although it is behind its last entry, as after it once was in the future.
    type: bool
    default: false
  run:
    description: Who does it. Given by the action plugin.
    type: dict
    default: {}
seealso:
  - module: homelab.healer.remediation_gate
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Stop all new work for film night
  homelab.healer.remediation_pause:
    why: film night

- name: Let it go on
  homelab.healer.remediation_pause:
    state: absent
"""

RETURN = r"""
switches:
  description: What is set now, by name, each with V(since) and what is known of it.
  returned: success
  type: dict
  sample: {"pause": {"since": 1767225599.0, "who": "ann", "why": "film night"}}
head:
  description: The ledger's last entry, as V(number:hash).
  returned: success
  type: str
error:
  description: What went wrong.
  returned: failure
  type: dict
"""

import os
import typing as t
from dataclasses import dataclass

from ansible_collections.homelab.healer.plugins.module_utils._errors import NotFound, Refused
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger, connect
from ansible_collections.homelab.healer.plugins.module_utils._policyfile import pause_file
from ansible_collections.homelab.healer.plugins.module_utils._run import run_ledger


@dataclass(frozen=True)
class Request:
    """What to stop or let go on, and who says so."""

    ledger: t.Mapping[str, t.Any]
    state: str
    target: str | None
    why: str
    accept_clock: bool
    run: t.Mapping[str, t.Any]


def act(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    """Turn the switches that are not as they should be."""
    with ledger.turn():
        before = ledger.switches()
        wanted = _stopped(ledger, request) if request.state == "present" else _going_on(ledger, request)
        turned = {name: value for name, value in wanted.items() if (value is None) != (name not in before) or name.startswith(("cleared", "clock"))}
        for name, value in turned.items():
            ledger.turn_switch(name, value)
        after = ledger.switches()
    left = pause_file(request.ledger)
    if request.state == "absent" and not request.target and os.path.lexists(left):
        raise Refused("all new work is still stopped", why=f"there is the file {left}", fix="Remove it.")
    return dict(changed=bool(turned), switches=after)


def _stopped(ledger: Ledger, request: Request) -> dict[str, dict[str, t.Any] | None]:
    who = dict(who=request.run.get("user", ""), why=request.why)
    if request.target:
        _known(ledger, request.target)
        return {f"freeze {request.target}": dict(who, remediation="")}
    return {"pause": who}


def _going_on(ledger: Ledger, request: Request) -> dict[str, dict[str, t.Any] | None]:
    if request.target:
        _known(ledger, request.target)
        return {f"freeze {request.target}": None, f"cleared {request.target}": dict(at=ledger.now(), who=request.run.get("user", ""), why=request.why)}
    clock: dict[str, dict[str, t.Any] | None] = {"clock": dict(ahead=ledger.now() + ledger.behind())} if request.accept_clock and ledger.behind() else {}
    return {"pause": None, **clock}


def _known(ledger: Ledger, target: str) -> None:
    if not ledger.rows("SELECT 1 FROM remediations WHERE target = ? LIMIT 1", target):
        known = [key for (key,) in ledger.rows("SELECT DISTINCT target FROM remediations WHERE target <> '' ORDER BY target LIMIT 20")]
        why = f"the ledger knows {', '.join(known)}" if known else "the ledger knows none"
        raise NotFound(f"cannot find the target {target}", why=why, fix="Give one of them, as homelab.healer.report shows it.")


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        state=dict(type="str", choices=["present", "absent"], default="present"),
        target=dict(type="str"),
        why=dict(type="str", default=""),
        accept_clock=dict(type="bool", default=False),
        run=dict(type="dict", default={}),
    ),
)


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
