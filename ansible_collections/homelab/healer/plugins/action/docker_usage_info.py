# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.homelab.healer.plugins.plugin_utils.reading import ReadingAction


class ActionModule(ReadingAction):
    """Reads in the controller's process where it would run there anyway."""
