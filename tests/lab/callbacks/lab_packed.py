# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lets a run use the modules that an earlier run has packed, and find all filters at once."""

from __future__ import annotations

import os

from ansible import constants as C
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader, test_loader

DOCUMENTATION = """
name: lab_packed
type: notification
short_description: Use the modules that an earlier run has packed
description: For the lab's tests only. HEALER_LAB_MODULES is the folder that has them.
"""


class CallbackModule(CallbackBase):
    """All is done when it is loaded."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "lab_packed"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        if "HEALER_LAB_MODULES" in os.environ:
            for loader in (filter_loader, test_loader):
                list(loader.all())
            os.symlink(os.environ["HEALER_LAB_MODULES"], os.path.join(C.DEFAULT_LOCAL_TMP, "ansiballz_cache"))
