# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the policy and the pause switch are on the ledger's host.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import os
import platform
import typing as t

from ansible_collections.homelab.healer.plugins.module_utils._errors import Denied
from ansible_collections.homelab.healer.plugins.module_utils._ledger import DEFAULT_PATH
from ansible_collections.homelab.healer.plugins.module_utils._policy import Policy, read

DEFAULT_POLICY = "~/.config/homelab.healer/policy.yml"
POLICY: dict[str, t.Any] = dict(policy=dict(type="path"))


def policy_of(path: str | None, ledger: t.Mapping[str, t.Any], run: t.Mapping[str, t.Any]) -> Policy:
    """The policy that holds: the file's, or the built-in one where no file is named and none is at the default place.

    A file that was named and is not there, or cannot be read, is an error: nothing may happen for want of a rule that somebody wrote.
    """
    place = os.path.expanduser(path or DEFAULT_POLICY)
    try:
        with open(place, encoding="utf-8") as file:
            text: str | None = file.read()
    except FileNotFoundError as error:
        if path:
            raise Denied(f"cannot read the policy {place}", why="there is no such file", fix="Write it, or correct healer_policy.") from error
        text = None
    except (OSError, UnicodeError) as error:
        raise Denied(f"cannot read the policy {place}", why=str(error), fix="Let the ledger's owner read it; it is UTF-8.") from error
    hosts = tuple(name.partition(".")[0] for name in (platform.node(), str(run.get("machine", ""))) if name)
    return read(text, place, own_hosts=hosts, own_database=str(ledger.get("login_db") or ""))


def pause_file(ledger: t.Mapping[str, t.Any]) -> str:
    """The file that stops all new work while it is there, beside the ledger, or where one would be."""
    return os.path.join(os.path.dirname(os.path.expanduser(ledger.get("path") or DEFAULT_PATH)), "pause")
