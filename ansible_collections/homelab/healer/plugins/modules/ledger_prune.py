#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ledger_prune
version_added: 0.1.0
short_description: Forget what happened long ago
description:
  - Removes the oldest entries of the ledger that are only about remediations of which nothing was written within O(keep), and these remediations.
  - It stops before the first entry of a remediation that is open or began before that time and ended within it. What is set by a switch stays set.
  - An entry says up to which number, with its hash, so C(homelab.healer.ledger_verify) goes on from there. A head that was seen before proves nothing then
    unless it is newer than what was removed.
  - The ledger is verified first, as what was done to it could not be found any more afterwards.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.ledger
  - homelab.healer.ledger.policy
attributes:
  diff_mode:
    details: RV(entries) and RV(remediations) say how much is removed.
options:
  keep:
    description:
      - What is younger is kept. At least two days, and no less than the policy's windows and cooldowns look back.
    type: str
    default: 400d
seealso:
  - module: homelab.healer.ledger_verify
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Keep a little more than a year
  homelab.healer.ledger_prune:
    keep: 400d
"""

RETURN = r"""
entries:
  description: How many entries are removed.
  returned: success
  type: int
remediations:
  description: How many remediations are removed.
  returned: success
  type: int
pruned_through:
  description: The number of the last entry that is removed, or was earlier, 0 where none was.
  returned: success
  type: int
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
from dataclasses import dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._audit import prune, verify
from ansible_collections.homelab.healer.plugins.module_utils._errors import Refused
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger
from ansible_collections.homelab.healer.plugins.module_utils._ledger import look as connect
from ansible_collections.homelab.healer.plugins.module_utils._policyfile import POLICY, policy_of
from ansible_collections.homelab.healer.plugins.module_utils._run import run_ledger
from ansible_collections.homelab.healer.plugins.module_utils._sizes import parse_span, span

LEAST = 2 * 86400.0
"""Seconds that are always kept: whether a trouble came back is noted for a day."""


@dataclass(frozen=True)
class Request:
    """How much to keep, in seconds."""

    ledger: t.Mapping[str, t.Any]
    policy: str | None
    keep: float = field(metadata={"parse": parse_span})


def act(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    """Forget what is older, if all is as it was written."""
    least = max(LEAST, policy_of(request.policy, request.ledger, {}).looks_back)
    if request.keep < least:
        why = f"the gate looks back {span(least)}, for cooldowns, budgets and failures"
        raise Refused(f"will not keep only {span(request.keep)} of the ledger", why=why, fix=f"Keep at least {span(least)}.")
    report = verify(ledger, None)
    if report.found:
        fix = "Look with homelab.healer.ledger_verify; what is removed could not be looked at any more."
        raise Refused("will not prune the ledger", why=f"it is not as it was written: {report.findings[0].what}", fix=fix)
    with ledger.turn():
        pruned = prune(ledger, ledger.now() - request.keep)
    return dict(changed=pruned.entries > 0, entries=pruned.entries, remediations=pruned.remediations, pruned_through=pruned.through)


ARGUMENTS = dict(argument_spec=dict(OPTIONS, **POLICY, keep=dict(type="str", default="400d")))


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
