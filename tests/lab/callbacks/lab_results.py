# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes what each task answered, and the run's statistics, where a test can read them."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: lab_results
type: notification
short_description: Write the results of tasks and the run's statistics to files
description: For the lab's tests only.
"""


class CallbackModule(CallbackBase):
    """One line of JSON for each task's result."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "lab_results"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, result: t.Any, *_args: t.Any, **_kwargs: t.Any) -> None:
        line = {"task": result._task.get_name(), "action": result._task.resolved_action or result._task.action, "result": result._result}
        with open(os.path.join(os.environ["HEALER_LAB_FOLDER"], "results.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    v2_runner_on_ok = _write
    v2_runner_on_failed = _write

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        with open(os.path.join(os.environ["HEALER_LAB_FOLDER"], "stats.json"), "w", encoding="utf-8") as file:
            json.dump(stats.custom.get("_run", {}), file, default=str)
