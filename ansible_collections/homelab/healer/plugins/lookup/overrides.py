# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: overrides
author: The homelab.healer authors (@homelab-healer)
version_added: 0.1.0
short_description: Extra variables that would decide in the chain's place
description:
  - What a command line, a survey or an event gives as an extra variable beats every other source of a variable, facts that a role sets included.
  - So the chain looks first whether any of its own was given.
"""

EXAMPLES = r"""
- name: Check that nothing was given that the chain decides by
  ansible.builtin.assert:
    that: query('homelab.healer.overrides') | length == 0
"""

RETURN = r"""
_raw:
  description: The names of these variables.
  type: list
  elements: str
"""


import typing as t

from ansible.plugins.lookup import LookupBase

from ansible_collections.homelab.healer.plugins.plugin_utils.ledger import overrides


class LookupModule(LookupBase):  # type: ignore[misc]
    """Looks at the extra variables."""

    def run(self, terms: t.Sequence[str], variables: t.Any = None, **_options: t.Any) -> list[str]:
        return overrides(self._loader)
