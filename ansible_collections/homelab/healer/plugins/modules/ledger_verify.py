#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ledger_verify
version_added: 0.1.0
short_description: Prove that the ledger is as it was written
description:
  - Reads the whole ledger and finds what was edited, deleted, moved, inserted, cut off at the end or hashed anew, and names it.
  - Each entry has the hash of the one before, so a change of one needs a change of all after it. The remediations and switches that the gate asks follow from
    the entries, and are compared with them.
  - Who may write the whole file can hash all of it anew. Only a head that was seen earlier proves that nobody did, so keep one elsewhere; every result and
    message has it.
  - Reads in parts, so nobody has to wait for it who writes.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.ledger
options:
  head:
    description: A head of this ledger that was seen earlier, as V(number:hash). What was written up to then must still be there.
    type: str
  fail_on_findings:
    description: Whether the task fails where something is not as it was written.
    type: bool
    default: true
seealso:
  - module: homelab.healer.ledger_prune
  - module: homelab.healer.remediation_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Prove that nothing was changed
  homelab.healer.ledger_verify:
  register: verified

- name: Prove it against a head that was kept elsewhere
  homelab.healer.ledger_verify:
    head: "{{ verified.head }}"
"""

RETURN = r"""
sound:
  description: Whether all is as it was written, and what the head proves is still there.
  returned: success, and failure because of what was found
  type: bool
findings:
  description: What is not, table by table and in order, the first hundred.
  returned: success, and failure because of what was found
  type: list
  elements: dict
  contains:
    table:
      description: Where, V(journal), V(remediations), V(switches) or V(notes).
      type: str
    fault:
      description: >-
        V(edited), V(missing), V(inserted), V(moved), V(rehashed) for an entry that was changed or exchanged and hashed anew, V(cut) for what is missing at the
        end, or V(unproven) for what cannot be said.
      type: str
    what:
      description: It as a sentence.
      type: str
      sample: entry 17 (closed of remediation 20260131T235959Z-0a1b2c3d) is not what was written, it, or its hash, was edited
    seq:
      description: The entry's number, the first where there are several; 0 where it is about none.
      type: int
    remediation:
      description: The id of the remediation, or empty.
      type: str
    column:
      description: Which column of the row, or empty where it is about a whole one.
      type: str
    stored:
      description: What stands in that column.
      type: str
    expected:
      description: What should, by the journal.
      type: str
found:
  description: How many findings there are.
  returned: success, and failure because of what was found
  type: int
entries:
  description: How many entries there are.
  returned: success, and failure because of what was found
  type: int
remediations:
  description: How many remediations there are.
  returned: success, and failure because of what was found
  type: int
pruned_through:
  description: The number of the last entry that was pruned, 0 where none was.
  returned: success, and failure because of what was found
  type: int
head:
  description: The ledger's last entry, as V(number:hash).
  returned: success, and failure because of what was found
  type: str
error:
  description: What went wrong. With the code V(refused) something is not as it was written.
  returned: failure
  type: dict
"""

import typing as t
from dataclasses import asdict, dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils._audit import Report, parse_head, verify
from ansible_collections.homelab.healer.plugins.module_utils._errors import Refused
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger
from ansible_collections.homelab.healer.plugins.module_utils._ledger import look as connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_ledger


@dataclass(frozen=True)
class Request:
    """What to prove it against, and what is to happen where it is not so."""

    ledger: t.Mapping[str, t.Any]
    head: tuple[int, str] | None = field(metadata={"parse": parse_head})
    fail_on_findings: bool


def act(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    """Look at all of it."""
    report = verify(ledger, request.head)
    sound = report.found == 0
    return dict(
        sound=sound,
        findings=[asdict(finding) for finding in report.findings],
        found=report.found,
        entries=report.entries,
        remediations=report.remediations,
        pruned_through=report.through,
        head=report.head,
        error=None if sound or not request.fail_on_findings else _failure(report),
    )


def _failure(report: Report) -> Refused:
    told = [finding.what for finding in report.findings[:5]]
    more = f"; and {report.found - len(told)} more findings" if report.found > len(told) else ""
    fix = "Find out who did it, and put a backup in its place. Nothing that is decided by it can be relied on."
    return Refused("the ledger is not as it was written", why=f"{'; '.join(told)}{more}", fix=fix)


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        head=dict(type="str"),
        fail_on_findings=dict(type="bool", default=True),
    ),
)


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
