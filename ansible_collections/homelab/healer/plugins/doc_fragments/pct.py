# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How a module reaches into a container, and which service it means."""

    DOCUMENTATION = r"""
requirements:
  - C(pct), so the module runs as root on the Proxmox VE node that has the container
  - systemd or OpenRC in the container; no Python
options:
  exec_timeout:
    description: How many seconds one command in a container may take, unless another limit is named. A container that is frozen keeps each waiting.
    type: int
    default: 30
notes:
  - Commands are run by C(pct exec) on the node, as lists of arguments. Nothing that is given here goes through a shell, on the node or in the container.
  - They have a clean environment, and a limit of time. What is killed on the node after it may go on in a container that is frozen.
"""
