# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible_collections.homelab.healer.plugins.plugin_utils.ledger import LedgerAction


class ActionModule(LedgerAction):
    """Adds the inventory's addresses."""

    def answer(self, module: t.Any, options: dict[str, t.Any], variables: dict[str, t.Any]) -> dict[str, t.Any]:
        told: dict[str, t.Any] = self._execute_module(module_name=self._task.resolved_action, module_args=options, task_vars=variables)
        return told
