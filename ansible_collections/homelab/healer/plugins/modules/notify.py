#!/usr/bin/python

# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: notify
version_added: 0.1.0
short_description: Send a message to people
description:
  - Sends one message to each address of Apprise, such as V(ntfy://ntfy.sh/topic), V(mailto://...) or V(tgram://...). An address that fails does not keep the
    others from getting it.
  - Addresses hold secrets, so a failure names an address by its kind and its place in the list, and no more.
extends_documentation_fragment:
  - homelab.healer.attributes
  - homelab.healer.attributes.change
requirements:
  - apprise 1.9 or newer, where the module runs
attributes:
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: none
    details: Each run sends the message.
options:
  urls:
    description:
      - The addresses, as Apprise writes them.
      - If not given, the inventory's variable C(healer_notify) is used.
    type: list
    elements: str
    required: true
  title:
    description: The message's title.
    type: str
    default: ""
  body:
    description: The message, as plain text.
    type: str
    required: true
  places:
    description: Only these of the addresses, by their places in O(urls), the first being 0.
    type: list
    elements: int
  parallel:
    description: How many addresses are sent to at the same time.
    default: 4
notes:
  - Where Apprise cannot reach a service, each address takes up to eight seconds.
seealso:
  - name: Apprise's addresses
    description: How each kind of address is written.
    link: https://github.com/caronc/apprise/wiki
author:
  - The homelab.healer authors (@homelab-healer)
"""

EXAMPLES = r"""
- name: Tell somebody
  homelab.healer.notify:
    urls: ["json://127.0.0.1:8099/healer"]
    title: homelab.healer
    body: 200 (postgres) was healed
"""

RETURN = r"""
before:
  description: For each address that is sent to, by its place, V(not sent).
  returned: always
  type: dict
after:
  description: For each address that is sent to, by its place, V(sent).
  returned: always
  type: dict
steps:
  description: What was done, or in check mode would be, a line each.
  returned: always
  type: list
  elements: str
  sample: ["send to address 0 (ntfy)"]
undo:
  description: Empty. A message cannot be taken back.
  returned: always
  type: list
  elements: dict
reversibility:
  description: V(none), or V(exact) where nothing was sent.
  returned: always
  type: str
results:
  description: What became of each address.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its place in O(urls).
      type: int
    name:
      description: Its place and kind.
      type: str
    changed:
      description: Whether it was sent to.
      type: bool
    unknown:
      description: Whether nobody can say if it was.
      type: bool
    before:
      description: The part of RV(before) for it.
      type: dict
    after:
      description: The part of RV(after) for it.
      type: dict
    steps:
      description: What was done.
      type: list
      elements: str
    undo:
      description: Empty.
      type: list
      elements: dict
    reversibility:
      description: As RV(reversibility).
      type: str
    verified:
      description: By what it is known; V(accepted) by the service.
      type: dict
    notes:
      description: What a person should know.
      type: list
      elements: str
    error:
      description: What went wrong with it, or V(none).
      type: dict
error:
  description: What went wrong.
  returned: failure
  type: dict
"""

import typing as t
from dataclasses import dataclass

from ansible_collections.homelab.healer.plugins.module_utils._apprise import OPTIONS, Address, Messenger, connect
from ansible_collections.homelab.healer.plugins.module_utils._change import Change, Step, plan_each
from ansible_collections.homelab.healer.plugins.module_utils._run import Module, change_options, run


@dataclass(frozen=True)
class Request:
    """What to say, and to whom."""

    title: str
    body: str
    places: tuple[int, ...] | None


@dataclass(frozen=True)
class Send(Step):
    """Send the message to one address."""

    address: Address
    title: str
    body: str

    def __str__(self) -> str:
        return f"send to {self.address.name}"

    def apply(self, client: Messenger) -> None:
        client.send(self.address, self.title, self.body)

    def prove(self, client: Messenger, now: Address) -> dict[str, str]:
        return {"message": "accepted"}


def observe(client: Messenger, request: Request) -> list[Address]:
    """The addresses that are meant."""
    return client.addresses(request.places)


def plan(request: Request, now: t.Sequence[Address]) -> dict[t.Any, Change]:
    """A message for each."""
    return plan_each(now, lambda address: _told(request, address))


def _told(request: Request, address: Address) -> Change:
    step = Send(address, request.title, request.body)
    return Change(dict(message="not sent"), dict(message="sent"), steps=(step,), reversibility="none", action=True)


MODULE = Module(Request, connect, observe, plan, target="places")
ARGUMENTS = dict(
    argument_spec=dict(
        OPTIONS,
        title=dict(type="str", default=""),
        body=dict(type="str", required=True),
        places=dict(type="list", elements="int"),
        **change_options(parallel=4),
    ),
)


def main() -> None:
    run(MODULE, ARGUMENTS)


if __name__ == "__main__":
    main()
