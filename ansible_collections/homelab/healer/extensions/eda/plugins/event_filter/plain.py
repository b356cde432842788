# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import typing as t

DOCUMENTATION = r"""
---
short_description: Make of an event what is data to everybody who reads it
description:
  - What a rulebook gives to a playbook or a job template as an extra variable is a template to Ansible, and ansible-rulebook adds the whole event to it.
    So every text in the event, and every key, gets its braces, percent and number signs and control characters percent-encoded, which leaves no
    expression of Jinja in it. A text of more than 1024 characters is cut.
  - A sender cannot say on which hosts a playbook runs. C(meta) is taken out of the event at any depth, as C(meta.hosts) would become C(--limit), and so are
    the headers of the request, which hold the token.
  - Put it first, before what splits an event.
options: {}
"""

EXAMPLES = r"""
- eda.builtin.webhook:
    host: 127.0.0.1
    port: 5056
    token: "{{ webhook_token }}"
  filters:
    - homelab.healer.plain:
    - eda.builtin.event_splitter:
        splitter_key: payload.alerts
"""

UNSAFE = re.compile(r"[{}%#\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LONGEST = 1024


def main(event: dict[str, t.Any]) -> dict[str, t.Any]:
    """The event as data."""
    return t.cast(dict[str, t.Any], _plain(event))


def _plain(value: t.Any) -> t.Any:
    if isinstance(value, str):
        return UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")), value[:LONGEST])
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(below) for key, below in value.items() if key != "meta"}
    if isinstance(value, list):
        return [_plain(below) for below in value]
    return value
