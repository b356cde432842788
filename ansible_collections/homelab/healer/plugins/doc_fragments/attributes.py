# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What is true of every module, of every module that changes something, and of every one that only reads."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
  platform:
    description: Target OS/families that can be operated against.
    support: full
    platforms: posix
"""

    CHANGE = r"""
options:
  parallel:
    description: How many targets are changed at the same time.
    type: int
  deadline:
    description:
      - A moment in seconds since 1970-01-01 00:00 UTC. No write begins after it; one that has begun is finished.
      - Without it there is no such limit.
    type: float
attributes:
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: full
"""

    INFO = r"""
options: {}
attributes:
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: N/A
    details: This module changes nothing.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
    support: full
"""
