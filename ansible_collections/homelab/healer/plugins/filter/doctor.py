# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the doctor says: which container holds which Docker Engine or PostgreSQL server, and the report as lines."""

from __future__ import annotations

import ipaddress
import re
import socket
import typing as t
from urllib.parse import urlsplit

WORDS = {"docker": r"docker", "postgresql": r"postgres|pgsql"}
"""What the name or a tag of a container has in it that may hold one."""


CROWDED = 0.8
"""The part of its connections that a server may have taken before that is told."""
LONG = 3600
"""Seconds for which a transaction may be open before that is told."""
OLD = 1_000_000_000
"""Transactions or multixacts that a database may be old before that is told; autovacuum should have come at a fifth of that."""


def holders(containers: t.Sequence[t.Mapping[str, t.Any]], services: t.Mapping[str, t.Sequence[t.Sequence[str]]]) -> list[dict[str, t.Any]]:
    """Say which of these containers holds what, and how that is known: by its address, or where that does not tell, by its name or a tag as a hint.

    ``containers`` are those of ``proxmox_doctor_info``. ``services`` are the inventory's hosts with a ``docker`` or a ``postgresql``, each by its name
    and the places where it may be: names, addresses, or an engine's address with its scheme; empty ones are passed over.
    """
    found = []
    for kind, hosts in services.items():
        places = {host: {address for place in where for address in _addresses(place)} for host, *where in hosts}
        for container in containers:
            own = set(container["addresses"] or ())
            met = [(host, sorted(own & addresses)) for host, addresses in places.items() if own & addresses]
            found += [_held(container, kind, host, f"its address {', '.join(shared)}") for host, shared in met]
            hint = "" if met else _hint(container, WORDS[kind])
            found += [_held(container, kind, "", f"a hint only: {hint}")] if hint else []
    return found


def _held(container: t.Mapping[str, t.Any], kind: str, host: str, by: str) -> dict[str, t.Any]:
    return dict(vmid=container["vmid"], name=container["name"], holds=kind, host=host, by=by)


def _hint(container: t.Mapping[str, t.Any], words: str) -> str:
    if re.search(words, container["name"], re.IGNORECASE):
        return "its name"
    return next((f"its tag {tag}" for tag in container["tags"] if re.search(words, tag, re.IGNORECASE)), "")


def _addresses(place: str) -> list[str]:
    """The addresses of a place that other machines can reach; none of a socket or of a name that is not known here."""
    host = urlsplit(place).hostname if "://" in place else place
    if not host or place.startswith("unix:"):
        return []
    try:
        told = [str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)]
    except (OSError, UnicodeError):
        return []
    return [address for address in dict.fromkeys(told) if not ipaddress.ip_address(address).is_loopback]


def database_findings(answer: t.Mapping[str, t.Any], host: str) -> list[dict[str, str]]:
    """Say what is wrong with a PostgreSQL server, by the answer of ``pg_activity_info``, or what hinders healing it."""
    role, connections, found = answer["role"], answer["connections"], []

    def find(severity: str, what: str, why: str, fix: str) -> None:
        found.append(dict(severity=severity, what=what, why=why, fix=fix))

    if not role["sees_all"]:
        why = f"the role {role['name']} may not; so nobody can tell who blocks or keeps dead rows alive"
        find("problem", f"cannot see what the sessions of {host} do", why, f'GRANT pg_read_all_stats TO "{role["name"]}".')
    if not (role["superuser"] or role["may_signal"]):
        find("note", f"cannot end sessions of {host}", f"the role {role['name']} may not", f'GRANT pg_signal_backend TO "{role["name"]}".')
    if connections["share"] >= CROWDED:
        taken = f"{connections['used']} of {connections['max'] - connections['reserved']}"
        find("warning", f"{host} runs out of connections", f"{taken} are taken", "homelab.healer.heal_pg_connections ends those that have been idle for long.")
    for holder in answer["horizon"]:
        if (holder["seconds"] or 0) >= LONG or (holder["kind"] == "slot" and holder["state"] == "inactive"):
            who = f"{holder['kind'].replace('_', ' ')} {holder['name']} ({holder['state']})"
            find("warning", f"dead rows of {host} cannot be removed", f"{who} may still see them", "End it or drop it, if nobody needs it.")
    for database in answer["wraparound"]:
        if database["xid_age"] >= OLD or database["mxid_age"] >= OLD:
            ages = f"{database['xid_age']} transactions and {database['mxid_age']} multixacts"
            age = f"its oldest rows are {ages} old, and at two thousand million of either the server stops"
            find("problem", f"the database {database['database']} of {host} grows old", age, "homelab.healer.pg_vacuum with its schemas makes it younger.")
    return found


def report_lines(record: t.Mapping[str, t.Any]) -> list[str]:
    """A host's report as lines to read: what was looked at, what was found, what each remedy could do, and which container holds what."""
    told = [f"{found['severity'].upper()}: {found['what']}: {found['why']}. {found['fix']}" for found in record["findings"]]
    return [*_looked_at(record), *(told or ["Nothing was found."]), *_remedies(record), *_holding(record)]


def _looked_at(record: t.Mapping[str, t.Any]) -> list[str]:
    cluster, engine, database = record["proxmox"], record["docker"], record["postgresql"]
    told = []
    if cluster:
        guests, nodes = cluster["guests"], ", ".join(node["name"] for node in cluster["nodes"])
        seen = f"{guests['lxc']} containers, {guests['qemu']} virtual machines, nodes {nodes}"
        libraries = ", ".join(f"{name} {version or 'not there'}" for name, version in cluster["libraries"].items())
        told += [f"Proxmox VE {cluster['version']} as {cluster['token']['name']} sees it: {seen}", f"Modules run with {libraries}"]
    if database:
        used, most = database["connections"]["used"], database["connections"]["max"] - database["connections"]["reserved"]
        told.append(f"PostgreSQL {database['server']['version']} as {database['role']['name']} sees it: {used} of {most} connections are taken")
    if engine:
        told.append(f"Docker Engine {engine['engine']}: {engine['containers']} containers run, cgroup v{engine['cgroup_version']}")
    return told


def _remedies(record: t.Mapping[str, t.Any]) -> list[str]:
    told = []
    for remedy in (record["proxmox"] or {}).get("remedies", ()):
        names: dict[str, list[str]] = {}
        for hindered in remedy["why"]:
            for reason in hindered["why"]:
                names.setdefault(reason, []).append(hindered["container"])
        why = "; ".join(f"{', '.join(filter(None, containers))}: {reason}".removeprefix(": ") for reason, containers in names.items())
        told.append(f"{remedy['remedy']} could help {remedy['can']}{f'. Not {why}' if why else ''}")
    return told


def _holding(record: t.Mapping[str, t.Any]) -> list[str]:
    return [
        f"{held['vmid']} ({held['name']}) {'holds' if held['host'] else 'may hold'} {held['holds']} {held['host']}".rstrip() + f", by {held['by']}"
        for held in record["holds"]
    ]


class FilterModule:
    """The collection's filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"database_findings": database_findings, "holders": holders, "report_lines": report_lines}
