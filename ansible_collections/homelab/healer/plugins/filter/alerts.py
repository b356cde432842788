# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a playbook makes of the alerts that a rulebook passes on."""

from __future__ import annotations

import typing as t
from dataclasses import asdict

from ansible.errors import AnsibleFilterError

from ansible_collections.homelab.healer.plugins.module_utils._alerts import answer, read
from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError


def alerts(encoded: str) -> list[dict[str, t.Any]]:
    """The alerts, each as a mapping."""
    try:
        return [asdict(alert) for alert in read(str(encoded))]
    except HealerError as error:
        raise AnsibleFilterError(str(error)) from error


def answered(encoded: str, remedy: str, groups: t.Mapping[str, t.Sequence[str]]) -> dict[str, t.Any]:
    """What the alert asks for, by the remedy that a rule names for it. Of several none is answered."""
    try:
        found = read(str(encoded))
    except HealerError as error:
        raise AnsibleFilterError(str(error)) from error
    return answer(found[0], str(remedy) if len(found) == 1 else "", groups)


class FilterModule:
    """The collection's filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"alerts": alerts, "answered": answered}
