#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: alert_record
version_added: 0.1.0
short_description: Write down alerts that no remedy answers
description:
  - Writes an entry into the ledger for each alert that no rule knows, or whose target is no target of the inventory, so that C(homelab.healer.report) shows it.
  - Alerts that a remedy answers are not its business. What the remedy did is in the ledger anyway.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.ledger
attributes:
  idempotent:
    support: none
    details: Each alert that arrives is an entry of its own.
options:
  alerts:
    description: The alerts.
    type: list
    elements: dict
    required: true
    suboptions:
      labels:
        description: Its labels, text by name.
        type: dict
        required: true
      status:
        description: What it says of itself, such as V(firing).
        type: str
        default: ""
      began:
        description: Since when it fires, as it says, or empty.
        type: str
        default: ""
      received:
        description: When it arrived, or empty.
        type: str
        default: ""
      count:
        description: How many of the same arrived.
        type: int
        default: 1
  why:
    description: Why nothing answers them, in a line.
    type: str
    required: true
seealso:
  - module: homelab.healer.remediation_info
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Write down an alert that no rule knows
  homelab.healer.alert_record:
    alerts:
      - labels: {alertname: DoorOpen, instance: garage}
        status: firing
    why: no rule knows it
"""

RETURN = r"""
recorded:
  description: How many entries were written.
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
from dataclasses import dataclass

from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_ledger


@dataclass(frozen=True)
class Request:
    """Which alerts, and why nothing answers them."""

    ledger: t.Mapping[str, t.Any]
    alerts: t.Sequence[t.Mapping[str, t.Any]]
    why: str


def act(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    """Write each down."""
    with ledger.turn():
        for alert in request.alerts:
            ledger.append("alert", **alert, why=request.why)
    return dict(changed=bool(request.alerts), recorded=len(request.alerts))


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        alerts=dict(
            type="list",
            elements="dict",
            required=True,
            options=dict(
                labels=dict(type="dict", required=True),
                status=dict(type="str", default=""),
                began=dict(type="str", default=""),
                received=dict(type="str", default=""),
                count=dict(type="int", default=1),
            ),
        ),
        why=dict(type="str", required=True),
    ),
)


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
