# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import time
import typing as t

from ansible.errors import AnsiblePromptInterrupt, AnsiblePromptNoninteractive
from ansible.utils.display import Display

from ansible_collections.homelab.healer.plugins.module_utils._approval import SHORTEST
from ansible_collections.homelab.healer.plugins.plugin_utils.ledger import Facts, LedgerAction, holder

display = Display()
JOBS = ("JOB_ID", "AWX_ISOLATED_DATA_DIR", "SEMAPHORE_TASK_ID")
"""What AWX, ansible-runner (so rulebooks too) and Semaphore set. Some of them give their runs a terminal at which nobody is."""
SEMAPHORE = "semaphore_vars"
"""The extra variable that Semaphore gives to every run. Whoever gives it by hand is not asked at the terminal either."""


class ActionModule(LedgerAction):
    """Says who asks or answers, and asks at the terminal where there is one."""

    def asked(self, variables: Facts) -> Facts:
        run = holder()
        if run["job"]:
            run["launched_by"] = str(variables.get("awx_user_name", ""))
        return {"run": run}

    def answer(self, module: t.Any, options: Facts, variables: Facts) -> Facts:
        ask = super().answer
        job = SEMAPHORE in variables or any(os.environ.get(name) for name in JOBS)
        if options.get("state") != "asked" or (options.get("approval") or {}).get("telegram") or job:
            return ask(module, options, variables)
        told = ask(module, {**options, "prompt": True}, variables)
        if told.get("failed") or told["word"] != "waiting" or not told["ways"]:
            return told
        typed = self._typed(told) if "prompt" in told["ways"] else None
        if typed is not None:
            same = len(typed) >= SHORTEST and told["plan_id"].startswith(typed)
            answered = {"state": "approved" if same else "denied", "plan": typed, "channel": "prompt"}
            ask(module, {**options, **answered}, variables)  # where it is not taken, the question is as it was
        return {**ask(module, options, variables), "changed": True}

    def _typed(self, told: Facts) -> str | None:
        """What was typed within the wait; nothing where nobody did, or could."""
        seconds = int(told["wait"])
        if seconds < 1:
            return None
        shown = "\n".join(["May this be done?", *told["question"], f"Type the first {SHORTEST} characters of the plan's id to approve; anything else denies:"])
        began = time.monotonic()
        try:
            typed: bytes = display.prompt_until(shown, seconds=seconds)
        except AnsiblePromptNoninteractive:
            return None
        except AnsiblePromptInterrupt:
            return ""
        return None if time.monotonic() - began >= seconds else typed.decode("utf-8", "replace").strip()
