# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an alert asks for: a remedy that the rulebook names, and a target out of the alert's labels, which anybody may have chosen.

A label that names a target has to match its pattern from end to end, and the host has to be one of the inventory's, by its name alone.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import dataclass
from urllib.parse import unquote

from ansible_collections.homelab.healer.plugins.module_utils._errors import Invalid

Facts = t.Mapping[str, t.Any]

PATTERNS = {
    "instance": r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}",
    "cluster": r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}",
    "vmid": r"[1-9][0-9]{2,8}",
    "container": r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}",
    "database": r"[A-Za-z_][A-Za-z0-9_.-]{0,62}",
}
"""What a label that names a target has to be, from end to end; the rulebooks have the same."""
TAKES = {
    "lxc_memory": ("proxmox", "vmid"),
    "lxc_cpu": ("proxmox", "vmid"),
    "docker_runaway": ("docker", "container"),
    "pg_bloat": ("postgresql", "database"),
    "pg_blocker": ("postgresql", "database"),
    "pg_connections": ("postgresql", "database"),
    "pg_service": ("proxmox", "vmid"),
}
"""For each remedy the group of the inventory that its hosts are of, and the label that names its target."""
MAY_BE_LEFT_OUT = ("pg_bloat", "pg_blocker", "pg_connections")
"""Remedies that look at all of a server where no database is named."""
LONGEST = 300
MOST_LABELS = 30


@dataclass(frozen=True)
class Alert:
    """One alert: its labels, since when it fires and when it arrived, as it says (ISO 8601, or empty), and how many of the same it stands for."""

    labels: dict[str, str]
    status: str = ""
    began: str = ""
    received: str = ""
    count: int = 1


def read(encoded: str) -> list[Alert]:
    """The alerts that a rulebook passes on: an event, or several by name, as JSON that is percent-encoded."""
    fix = 'Pass it on as "{{ event | tojson | urlencode }}".'
    try:
        told = json.loads(unquote(encoded))
    except ValueError as error:
        raise Invalid("cannot read the alert", why=f"it is no JSON that is percent-encoded: {error}", fix=fix) from None
    if not isinstance(told, dict):
        raise Invalid("cannot read the alert", why=f"it is a {type(told).__name__} and no event", fix=fix)
    several = bool(told) and all(re.fullmatch(r"m(_\d+)?", str(name)) and isinstance(event, dict) for name, event in told.items())
    return [_alert(event) for event in (told.values() if several else [told])]


def _alert(event: Facts) -> Alert:
    """An event of Alertmanager, or what a plain webhook was sent."""
    said = event.get("payload", event)
    said = said if isinstance(said, dict) else {"payload": said}
    labels = said.get("labels", {name: value for name, value in said.items() if name not in ("meta", "status")})
    labels = labels if isinstance(labels, dict) else {"labels": labels}
    meta = event.get("meta") or {}
    window = (meta.get("rule_engine") or {}).get("events_in_window", 1)
    return Alert(
        labels={_short(name): _short(value) for name, value in sorted(labels.items())[:MOST_LABELS]},
        status=_short(said.get("status", "")),
        began=_moment(said.get("startsAt")),
        received=_moment(meta.get("received_at")),
        count=window if isinstance(window, int) else 1,
    )


def _moment(value: t.Any) -> str:
    """A moment in UTC as Go and Python write it, to the microsecond; empty where it is none."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(?:Z|\+00:00)", value, re.ASCII) if isinstance(value, str) else None
    return f"{found[1]}{(found[2] or '.')[:7].ljust(7, '0')}+00:00" if found else ""


def _short(value: t.Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:LONGEST]


def answer(alert: Alert, remedy: str, groups: t.Mapping[str, t.Sequence[str]]) -> dict[str, t.Any]:
    """On which ``host`` of the inventory which ``remedy`` shall look at which target; ``why`` says why none, and is empty otherwise."""
    why = _why_not(alert, remedy, groups)
    told: dict[str, t.Any] = dict(remedy=remedy, host="localhost", vmid="", container="", database="", server="", why=why)
    if why:
        return told
    label = TAKES[remedy][1]
    instance = alert.labels["instance"]
    told.update({label: alert.labels.get(label, ""), "host": instance})
    if remedy == "pg_service":
        told.update(host=_cluster(alert, groups), server=instance if instance in groups.get("postgresql", ()) else "")
    return told


def _why_not(alert: Alert, remedy: str, groups: t.Mapping[str, t.Sequence[str]]) -> str:
    if remedy not in TAKES:
        return f"there is no remedy {remedy} for alerts" if remedy else "no rule knows it"
    group, label = TAKES[remedy]
    optional = {"cluster", *([label] if remedy in MAY_BE_LEFT_OUT else [])}
    for name in ("instance", label, "cluster"):
        value = alert.labels.get(name, "")
        if not (re.fullmatch(PATTERNS[name], value, re.ASCII) or (not value and name in optional)):
            return f"its label {name} is no name of one" if value else f"it has no label {name}"
    host = _cluster(alert, groups) if remedy == "pg_service" else alert.labels["instance"]
    if not host:
        return f"it has no label cluster, and the inventory's group proxmox has {len(groups.get('proxmox', ()))} hosts"
    if host not in groups.get(group, ()):
        return f"the inventory's group {group} has no host {host}"
    if host in groups:
        return f"{host} is a host of the inventory and a group as well, so a run would be for all of the group"
    return ""


def _cluster(alert: Alert, groups: t.Mapping[str, t.Sequence[str]]) -> str:
    """Where a server's container is: the cluster that is named, or the only one."""
    clusters = groups.get("proxmox", ())
    return alert.labels.get("cluster", "") or (clusters[0] if len(clusters) == 1 else "")
