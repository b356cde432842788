# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of the modules that only read, which a remediation asks again and again.

A module takes half a second before its first line runs, since it is packed, put where it runs, and read anew there. Where that is the controller's own
Python, its code is there already, in the process that Ansible made for the task; then it took a sixth (1.1 s and 0.18 s, a module of PostgreSQL's).

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import importlib
import sys
import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.homelab.healer.plugins.module_utils._run import look
from ansible_collections.homelab.healer.plugins.plugin_utils.ledger import validated

Facts = dict[str, t.Any]


class ReadingAction(ActionBase):  # type: ignore[misc]
    """An action of the same name as its module."""

    TRANSFERS_FILES = False
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: Facts | None = None) -> Facts:
        result: Facts = super().run(tmp, task_vars)
        if not self.here(task_vars or {}):
            wrap = bool(self._task.async_val and not self._connection.has_native_async)
            return {**result, **self._execute_module(module_name=self._task.resolved_action, task_vars=task_vars, wrap_async=wrap)}
        module = importlib.import_module(f"ansible_collections.homelab.healer.plugins.modules.{self._task.resolved_action.rpartition('.')[2]}")
        return {**result, **validated(module, self._task.args, lambda params: look(module.Request, module.connect, module.report, params))}

    def here(self, variables: Facts) -> bool:
        """Whether the module would run under the controller's own Python, as who runs this, and with nothing else around it."""
        delegated = variables.get("ansible_delegated_vars", {}).get(self._task.delegate_to, {}) if self._task.delegate_to else variables
        interpreter = self._templar.template(delegated.get("ansible_python_interpreter", ""))
        asked_for_more = self._connection.become or self._task.async_val or any(self._task.environment or ())
        return sys.platform == "linux" and self._connection.transport == "local" and interpreter == sys.executable and not asked_for_more
