#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: approval
version_added: 0.1.0
short_description: Ask a human about a plan, or answer
description:
  - An answer is to exactly one plan, by its RV(plan_id), until the question expires, and for once. Whatever is not a yes of somebody who may give it is a no,
    and so is every failure.
  - A no is taken also after a yes, as long as nothing was begun.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.info
  - homelab.healer.ledger
attributes:
  idempotent:
    support: none
    details: An answer is taken once; the same again is refused.
options:
  state:
    description:
      - V(asked) asks, once the gate said that a human has to approve, and waits for the answer as long as the policy says. Asked again by the same run, it
        goes on waiting for the same answer.
      - V(approved) and V(denied) answer. Without O(plan), V(approved) writes nothing, and only shows what is asked.
      - V(read) takes in what people answered by Telegram meanwhile, without waiting, and C(/pause) as well.
    type: str
    choices: [asked, approved, denied, read]
    required: true
  remediation:
    description: The whole id of the remediation. Needed unless O(state=read).
    type: str
  fence:
    description: With O(state=asked), the number of the run's lease.
    type: int
    default: 0
  plan:
    description: With O(state=approved), the plan's id as it is shown, its first 8 characters at least.
    type: str
  channel:
    description: By which way somebody answers. The policy must allow it for a yes.
    type: str
    choices: [command, prompt]
    default: command
  prompt:
    description: With O(state=asked), whether the caller asks at a terminal itself. Then nothing is waited for. Given by the action plugin.
    type: bool
    default: false
  approval:
    description:
      - How people are asked.
      - If not given, the inventory's variable C(healer_approval) is used.
    type: dict
    default: {}
    suboptions:
      telegram:
        description: A bot of Telegram that belongs to this ledger alone, since a bot has only one reader. Without O(approval.telegram.chats) or
          O(approval.telegram.users) nobody can answer by it.
        type: dict
        suboptions:
          token:
            description: The bot's token, as BotFather shows it.
            type: str
            required: true
          chats:
            description: The numbers of the chats in which it asks. An answer from any other is none.
            type: list
            elements: raw
            default: []
          users:
            description: The numbers of the people who may answer. That of anybody else is none, whatever he calls himself.
            type: list
            elements: raw
            default: []
          api_url:
            description: The address of the Bot API. Without TLS it must be this machine's own.
            type: str
            default: https://api.telegram.org
          ca_path:
            description: The certificate of the authority that signed the server's, where it is not a public one.
            type: path
          timeout:
            description: How many seconds the server may take to answer.
            type: float
            default: 10.0
      awx:
        description:
          - The AWX that runs this as a job. With O(state=asked) it is asked who answered the approval node that stands before the job in its workflow; it is
            only read. Without O(approval.awx.approvers) nobody can answer by it.
          - The policy's C(approval.channels) must have V(awx), which they have not by default.
        type: dict
        suboptions:
          host:
            description: Its address. It must have a certificate that can be verified; without TLS it must be this machine's own.
            type: str
            required: true
          token:
            description: A token of AWX that may only read, of a user who sees the workflow and its jobs.
            type: str
            required: true
          approvers:
            description: The numbers that the users have in AWX who may approve. Anybody else's answer is none.
            type: list
            elements: raw
            default: []
          ca_path:
            description: The certificate of the authority that signed the server's, where it is not a public one.
            type: path
          timeout:
            description: How many seconds the server may take to answer.
            type: float
            default: 10.0
  run:
    description: Who asks or answers. Given by the action plugin.
    type: dict
    default: {}
seealso:
  - module: homelab.healer.remediation_gate
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Take in what people answered meanwhile
  homelab.healer.approval:
    state: read
"""

RETURN = r"""
word:
  description:
    - V(approved) or V(denied); V(waiting) where an answer may still come, and V(needs_human) where none came in time and the policy says so.
    - Empty with O(state=read).
  returned: success
  type: str
  sample: approved
why:
  description: Why, as a sentence.
  returned: success
  type: str
  sample: ann on laptop approved plan 0a1b2c3d
who:
  description: Who answered, or empty.
  returned: success
  type: str
channel:
  description: By which way, V(telegram), V(awx), V(command) or V(prompt), or empty.
  returned: success
  type: str
remediation:
  description: The id of the remediation.
  returned: success
  type: str
plan_id:
  description: The plan that is asked about.
  returned: success
  type: str
expires:
  description: Until when it can be answered, in seconds since 1970 by the ledger's clock.
  returned: success
  type: float
question:
  description: What is asked, line by line, with the whole diff.
  returned: success
  type: list
  elements: str
ways:
  description: With O(state=asked), the ways by which somebody could answer.
  returned: success
  type: list
  elements: str
wait:
  description: With O(state=asked), for how many seconds the run waits.
  returned: success
  type: float
notes:
  description: What did not work, and made no difference, such as a message that could not be edited.
  returned: success
  type: list
  elements: str
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
        lease is lost; with V(refused) the answer was not taken.
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

from ansible_collections.homelab.healer.plugins.module_utils import _approval
from ansible_collections.homelab.healer.plugins.module_utils._ledger import OPTIONS, Ledger, connect
from ansible_collections.homelab.healer.plugins.module_utils._run import run_ledger


@dataclass(frozen=True)
class Request:
    """What to ask, or what is answered, and by whom."""

    ledger: t.Mapping[str, t.Any]
    state: str
    remediation: str | None
    fence: int
    plan: str | None
    channel: str
    prompt: bool
    approval: t.Mapping[str, t.Any]
    run: t.Mapping[str, t.Any]


def act(ledger: Ledger, request: Request) -> dict[str, t.Any]:
    """Ask, answer, or read what was answered."""
    if request.state == "read":
        return _approval.take_in(ledger, request.approval)
    remediation = str(request.remediation)
    if request.state == "asked":
        return _approval.ask(ledger, remediation, request.fence, options=request.approval, prompt=request.prompt, run=request.run)
    voice = _approval.person(request.run, request.channel)
    return _approval.answer(ledger, remediation, request.state, voice, plan=request.plan, options=request.approval)


ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        **_approval.OPTIONS,
        state=dict(type="str", choices=["asked", "approved", "denied", "read"], required=True),
        remediation=dict(type="str"),
        fence=dict(type="int", default=0),
        plan=dict(type="str"),
        channel=dict(type="str", choices=["command", "prompt"], default="command"),
        prompt=dict(type="bool", default=False),
        run=dict(type="dict", default={}),
    ),
    required_if=[(("state"), state, ["remediation"]) for state in ("asked", "approved", "denied")],
)


def main() -> None:
    run_ledger(Request, connect, act, ARGUMENTS)


if __name__ == "__main__":
    main()
