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
  - With O(gather) it also tells why each was decided as it was, and what all of them come to, counted and timed from what was written down.
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
    description:
      - V(events) adds what was written down of each, which is long.
      - V(details) adds of each what a person wants to know, RV(remediations[].details).
      - V(figures) adds what those of the period come to, RV(figures), and what needs a human now.
      - V(totals) adds what metrics are made of, RV(totals).
    type: list
    elements: str
    choices: [events, details, figures, totals]
seealso:
  - module: homelab.healer.ledger_verify
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: See what is under way
  homelab.healer.remediation_info:
    state: open

- name: See what share of the last week was healed without a human, and what waits for one
  homelab.healer.remediation_info:
    since: 7d
    limit: 0
    gather: [figures]
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
    elsewhere:
      description: The hosts beside the controller on which its modules may be at work, while it is V(applying) or V(undoing).
      type: list
      elements: str
    events:
      description: What was written down, with O(gather=events), each with V(seq), V(at), V(kind) and V(facts).
      type: list
      elements: dict
    details:
      description: What a person wants to know, with O(gather=details); otherwise empty.
      type: dict
      contains:
        problem:
          description: What was wrong.
          type: str
        run:
          description: Who ran it, V(user), V(machine) and V(job).
          type: dict
        decisions:
          description: >-
            What the gate said, in order, V(at), V(planned) (whether it had the plan), V(word), V(rule), V(why), V(policy) (the hash of the policy) and
            V(checks), each of which has V(check), V(good) and V(why).
          type: list
          elements: dict
        lines:
          description: What was planned, in words.
          type: list
          elements: str
        diff:
          description: What was planned, V(before_header), V(before) and V(after).
          type: list
          elements: dict
        reversibility:
          description: How well each step can be put back.
          type: list
          elements: str
        undo:
          description: The way back, V(module) and V(args), as JSON.
          type: list
          elements: dict
        approval:
          description: V(approver), V(channel) and V(why), where a human approved.
          type: dict
        looks:
          description: What was seen at each look after the change, a list of V(kind), V(good) and V(told), which says also how it was before.
          type: list
          elements: list
        results:
          description: What was done, V(module) and V(steps).
          type: list
          elements: dict
        error:
          description: What went wrong, V(code), V(what), V(why) and V(fix), or empty.
          type: dict
        entries:
          description: The ledger's entries, V(seq), V(at), V(kind) and V(hash).
          type: list
          elements: dict
found:
  description: How many remediations there are, of which O(limit) says how many are told.
  returned: success
  type: int
figures:
  description: What the remediations come to that began within O(since), with O(gather=figures); otherwise empty. Every one is counted, whatever O(limit) is.
  returned: success
  type: dict
  contains:
    since:
      description: The beginning of the period.
      type: float
    until:
      description: Its end, which is now.
      type: float
    outcomes:
      description: >-
        How many ended as V(healed), V(recurred) (healed, and the same remedy was called to the same target within a day), V(rolled_back),
        V(needs_human), V(denied), V(shadow) or V(healthy), or are V(open). Each is in one of them.
      type: dict
    share:
      description: >-
        V(numerator) of V(denominator) were healed without a human. The denominator are all on which something was wrong and that ended, by V(ended);
        V(healed_alone) of these is the numerator. V(left_out) are those in neither, with V(joined), which were refused as another one of the target was
        under way. Who began a run makes no difference.
      type: dict
    recurred:
      description: V(count) of V(of) successes did not last a day; V(pending) are younger than that, and may still come back.
      type: dict
    refused:
      description: How many were refused before there was a plan, by the check that refused them.
      type: dict
    seconds:
      description: >-
        How long each V(part) took, V(count) of them; half took at most V(median) seconds, and nine of ten at most V(p90). V(repair) is a success from the
        first question to its end, V(noticing) from the begin of the alert to the run that answers it, V(diagnosing) from there to that question (both
        of the newest 1000, by the clocks of who told the alert and of the controller), V(planning) up to the change without
        the V(waiting) for a human, then V(changing), V(verifying) and V(putting_back). What a run that died left undone counts until it was taken over.
      type: list
      elements: dict
    days:
      description: The outcomes by day, UTC, V(start), V(end) and V(outcomes); in long periods several days together.
      type: list
      elements: dict
    remedies:
      description: The outcomes by remedy, V(key), V(name), V(last) (when one began), V(count) and V(outcomes).
      type: list
      elements: dict
    targets:
      description: The same by target, of the hundred with the most. Without a target, as after a failed diagnosis, the key is the host.
      type: list
      elements: dict
    targets_found:
      description: How many targets there are.
      type: int
    waiting:
      description: >-
        What needs a human now, each with V(kind) (V(clock), V(pause), V(storm), V(frozen), V(question), V(interrupted), V(failed) or V(stopped)), V(what),
        V(why), V(since), V(fix), V(remediation) and V(target). V(failed) and V(stopped) are for the last word of a remedy on a target.
      type: list
      elements: dict
    alerts:
      description: >-
        Alerts that no remedy answered, V(found) entries, and the V(newest) of them, each with V(at), V(labels), V(why) and V(count), how many of the same
        arrived at once.
      type: dict
totals:
  description: >-
    Counts of all time and what is so now, with O(gather=totals); otherwise empty. The role P(homelab.healer.report#role) makes metrics of them.
  returned: success
  type: dict
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

import os
import typing as t
from dataclasses import asdict, dataclass, field

from ansible_collections.homelab.healer.plugins.module_utils import _figures, _gate
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger, Remediation
from ansible_collections.homelab.healer.plugins.module_utils._ledger import look as connect
from ansible_collections.homelab.healer.plugins.module_utils._policyfile import pause_file
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
    gather, paused_by = request.gather or (), pause_file(request.ledger)
    paused_by = paused_by if os.path.lexists(paused_by) else ""
    with ledger.turn(writing=False):
        if request.remediation is not None:
            rows, found = [ledger.get(request.remediation)], 1
        else:
            begun = 0.0 if request.since is None else ledger.now() - request.since
            which = "opened >= ?" + (f" AND {_gate.UNDER_WAY}" if request.state == "open" else "")
            rows = ledger.find(f"{which} ORDER BY opened DESC, id LIMIT ?", begun, request.limit)
            found = ledger.rows(f"SELECT count(*) FROM remediations WHERE {which}", begun)[0][0]
        return dict(
            remediations=[_told(ledger, row, gather) for row in rows],
            found=found,
            figures=_figures.figures(ledger, request.since, paused_by) if "figures" in gather else {},
            totals=_figures.totals(ledger, paused_by) if "totals" in gather else {},
            switches=ledger.switches(),
            head=ledger.head,
        )


def _told(ledger: Ledger, row: Remediation, gather: t.Sequence[str]) -> dict[str, t.Any]:
    told = {name: value for name, value in asdict(row).items() if name != "nonce"}
    known = ledger.events(row.id) if gather else []
    events = [dict(seq=event.seq, at=event.at, kind=event.kind, facts=event.facts) for event in known] if "events" in gather else []
    details = _figures.details(known) if "details" in gather else {}
    return {**told, "holder": _gate.holder_of(ledger, row), "elsewhere": _gate.elsewhere(ledger, row), "events": events, "details": details}


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        remediation=dict(type="str"),
        state=dict(type="str", choices=["all", "open"], default="all"),
        since=dict(type="str"),
        limit=dict(type="int", default=100),
        gather=dict(type="list", elements="str", choices=["events", "details", "figures", "totals"]),
    ),
)


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
