# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stops a run at the task that a test waits for, until the test says that it may go on."""

from __future__ import annotations

import json
import os
import re
import socket
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: lab_breakpoint
type: notification
short_description: Stop at tasks and wait for a word
description: For the lab's tests only.
"""


class CallbackModule(CallbackBase):
    """HEALER_LAB_BREAKPOINTS says where, one after the other: C(task) matches C(file.yml: name), C(number) counts them since the last stop."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "lab_breakpoint"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._left = json.loads(os.environ.get("HEALER_LAB_BREAKPOINTS", "[]"))
        self._seen = 0
        self._ending = ""
        """The task at whose end is to be stopped."""

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        name = f"{os.path.basename(task.get_path().rpartition(':')[0])}: {task.get_name().rpartition(' : ')[2]}"
        if not (self._left and re.search(self._left[0]["task"], name)):
            return
        self._seen += 1
        if self._seen < self._left[0]["number"]:
            return
        if self._left[0]["at"] == "end":
            self._ending = task._uuid
        else:
            self._stop()

    def _ended(self, result: t.Any, *_args: t.Any, **_kwargs: t.Any) -> None:
        if self._ending and result._task._uuid == self._ending:
            self._ending = ""
            self._stop()

    v2_runner_on_ok = _ended
    v2_runner_on_failed = _ended

    def _stop(self) -> None:
        del self._left[0]
        self._seen = 0
        if not os.path.exists(os.environ["HEALER_LAB_SOCKET"]):
            return  # the test stops nobody any more
        with socket.socket(socket.AF_UNIX) as test:
            test.connect(os.environ["HEALER_LAB_SOCKET"])
            test.sendall(f"{os.getpid()}\n".encode())
            test.recv(1)
