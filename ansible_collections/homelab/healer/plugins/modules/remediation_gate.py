#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: remediation_gate
version_added: 0.1.0
short_description: Ask whether a remediation may happen now
description:
  - Asked twice by every remediation, before it is planned and with the plan in O(chain), and a third time after a human approved it. Decides by the policy
    and by what the ledger knows, writes the decision down before it answers, and names the rule that gave it.
  - The first answer gives the run the target's lease. The last one returns the steps to carry out, as they were written down.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.ledger
  - homelab.healer.ledger.policy
attributes:
  idempotent:
    support: none
    details: Each question is one of its own, and counts.
options:
  remediation:
    description: The id of the remediation.
    type: str
    required: true
  remedy:
    description: The short name of the remedy, such as V(lxc_memory).
    type: str
    required: true
  host:
    description: The inventory's name of the host that the target is on.
    type: str
    required: true
  target:
    description: What is known of the target, with V(kind), V(id) and V(name).
    type: dict
    required: true
  problem:
    description: What is wrong, in a line.
    type: str
    default: ""
  fence:
    description: The number of the lease, from the first answer.
    type: int
    default: 0
  chain:
    description: The plan, and all that another run needs to go on with it after a crash. Without it this is the first question.
    type: dict
    suboptions:
      plan:
        description: What each step's module answered in check mode, with V(purpose), V(module) and V(args).
        type: list
        elements: dict
        required: true
      undo:
        description: The sets of options that put back what was there before, in the order in which to use them.
        type: list
        elements: dict
        default: []
      point_of_return:
        description: What is made before the change, and how to go back to it.
        type: list
        elements: dict
        default: []
      probes:
        description: How it is verified.
        type: list
        elements: dict
        default: []
      baseline:
        description: What the probes saw before the change. Only what they judge is kept.
        type: list
        elements: dict
        default: []
      settings:
        description: The chain's own options.
        type: dict
        default: {}
  shadow:
    description: Whether to write down what would be done, and to do nothing. A policy with V(mode=shadow) wants that in any case.
    type: bool
    default: false
  lease:
    description: For how many seconds nobody else may touch the target unless the run says that it goes on.
    type: float
    default: 3600
  only_plans:
    description:
      - With O(chain), the ids of the plans that may be done, whole; V(any) alone stands for every one. Any other plan is refused.
      - This only forbids, and approves nothing.
    type: list
    elements: str
    default: [any]
  waited:
    description: For how many seconds the run has waited for a backup.
    type: float
    default: 0
  run:
    description: Who asks. Given by the action plugin.
    type: dict
    default: {}
seealso:
  - module: homelab.healer.remediation_record
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Ask whether a container may be touched now
  homelab.healer.remediation_gate:
    remediation: 20260131T235959Z-0a1b2c3d
    remedy: lxc_memory
    host: pve
    target: {kind: lxc, id: 200, name: 200 (postgres), node: pve1}
    problem: 200 (postgres) uses 2040 MiB, 99.6 % of its limit
  check_mode: true
"""

RETURN = r"""
word:
  description:
    - V(allowed), V(refused), or V(joined) where another remediation of the same target is under way.
    - V(wait) while a backup of it runs; then the question does not count, and is to be asked again.
    - With O(chain) also V(ask), where a human has to approve, and V(shadow), where nothing is to be done.
  returned: success
  type: str
  sample: allowed
why:
  description: Why, as a sentence; empty at the first question where nothing is in the way.
  returned: success
  type: str
rule:
  description: The rule of the policy that decided.
  returned: success
  type: str
  sample: critical containers
checks:
  description: What was looked at, in order, up to the first that was in the way.
  returned: success
  type: list
  elements: dict
  contains:
    check:
      description: Its name, such as V(cooldown).
      type: str
    good:
      description: Whether it was not in the way.
      type: bool
    why:
      description: Why it was, or empty.
      type: str
remediation:
  description: The id of the remediation.
  returned: success
  type: str
fence:
  description: The number of the lease, which every further question of this run names.
  returned: success
  type: int
until:
  description: When the lease ends, in seconds since 1970 by the ledger's clock.
  returned: success
  type: float
deadline:
  description: When the last write may begin, a margin before RV(until). 0 at the first question.
  returned: success
  type: float
last_backup:
  description: How old the target's last backup is, as a sentence, or empty where that is not asked.
  returned: success
  type: str
  sample: last backup 11 h 59 min ago
plan_id:
  description: What an approval is bound to, empty at the first question.
  returned: success
  type: str
decision:
  description: What the policy says of it, V(off), V(dry_run), V(approve) or V(auto), whatever else was in the way.
  returned: success
  type: str
told_before:
  description: Whether the same was refused for the same reason within a day before, so that nobody needs to be told again.
  returned: success
  type: bool
steps:
  description: What is to be carried out, V(purpose), V(module) and V(args) each. Empty unless the word is V(allowed).
  returned: success
  type: list
  elements: dict
head:
  description: The ledger's last entry, as V(number:hash). C(homelab.healer.ledger_verify) proves by it that nothing before was changed.
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
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils import _gate
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger, connect
from ansible_collections.homelab.healer.plugins.module_utils._policyfile import POLICY, pause_file, policy_of
from ansible_collections.homelab.healer.plugins.module_utils._run import run_ledger


@dataclass(frozen=True)
class Request:
    """Who asks for what, and with which plan."""

    ledger: t.Mapping[str, t.Any]
    policy: str | None
    remediation: str
    remedy: str
    host: str
    target: t.Mapping[str, t.Any]
    problem: str
    fence: int
    chain: t.Mapping[str, t.Any] | None
    shadow: bool
    lease: float
    only_plans: t.Sequence[str] = field(metadata={"parse": tuple})  # where it is empty, no plan may be done
    waited: float
    run: t.Mapping[str, t.Any]


def act(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    """Answer one of the questions; what is decided is written down with the answer, or neither."""
    policy = policy_of(request.policy, request.ledger, request.run)
    asked = {name: getattr(request, name) for name in ("problem", "run", "lease", "only_plans", "waited", "shadow")}
    asked["pause_file"] = pause_file(request.ledger)
    whose = {name: getattr(request, name) for name in ("remediation", "remedy", "host")}
    with ledger.turn():
        if request.chain is None:
            return _gate.admit(ledger, policy, **whose, facts=request.target, request=asked)
        return _gate.decide(ledger, policy, **whose, fence=request.fence, facts=request.target, chain=request.chain, request=asked)


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        **POLICY,
        remediation=dict(type="str", required=True),
        remedy=dict(type="str", required=True),
        host=dict(type="str", required=True),
        target=dict(type="dict", required=True),
        problem=dict(type="str", default=""),
        fence=dict(type="int", default=0),
        chain=dict(
            type="dict",
            options=dict(
                plan=dict(type="list", elements="dict", required=True),
                undo=dict(type="list", elements="dict", default=[]),
                point_of_return=dict(type="list", elements="dict", default=[]),
                probes=dict(type="list", elements="dict", default=[]),
                baseline=dict(type="list", elements="dict", default=[]),
                settings=dict(type="dict", default={}),
            ),
        ),
        shadow=dict(type="bool", default=False),
        lease=dict(type="float", default=3600),
        only_plans=dict(type="list", elements="str", default=_gate.ANY_PLAN),
        waited=dict(type="float", default=0),
        run=dict(type="dict", default={}),
    ),
)


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
