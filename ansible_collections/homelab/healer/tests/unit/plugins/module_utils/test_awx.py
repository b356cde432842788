# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What AWX says, with one thing about it made up at a time: that is no yes, or the same one."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing as t

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._awx import Yes, judge, read
from ansible_collections.homelab.healer.plugins.module_utils._errors import NotFound, Refused

PLAN = "a1b2" * 16
OF = {"launch_type": "workflow", "summary_fields": {"source_workflow_job": {"id": 30}}}
JOB = {**OF, "job_template": 3, "inventory": 2, "extra_vars": json.dumps({"vmid": 201})}
RECORD = {"plan_id": PLAN, "host": "pve", "target": {"kind": "lxc", "id": 201}}
LINKS: dict[str, list[int]] = {"success_nodes": [], "failure_nodes": [], "always_nodes": []}


def node(number: int, job: int, kind: str, *leads_to: int) -> dict[str, t.Any]:
    told = {"id": number, "workflow_job": 30, "job": job, "summary_fields": {"job": {"type": kind}}}
    return {**told, **LINKS, "success_nodes": list(leads_to)}


SAID: dict[str, t.Any] = {
    "apply": {**JOB, "id": 43, "status": "running", "extra_vars": json.dumps({"vmid": 201, "remediations": [RECORD]})},
    "nodes": {"next": None, "results": [node(1, 41, "job", 2), node(2, 42, "workflow_approval", 3), node(3, 43, "job")]},
    "approval": {
        "id": 42,
        "status": "successful",
        "timed_out": False,
        "created": "2026-01-31T10:00:05.000001Z",
        "finished": "2026-01-31T10:01:00Z",
        "launch_type": "workflow",
        "summary_fields": {"source_workflow_job": {"id": 30}, "approved_or_denied_by": {"id": 7, "username": "ann"}},
    },
    "plan": {**JOB, "id": 41, "status": "successful", "job_type": "check", "finished": "2026-01-31T10:00:00Z", "artifacts": {"remediations": [RECORD]}},
}
WHERE = {("jobs", 43): "apply", ("workflow_jobs", 30): "nodes", ("workflow_approvals", 42): "approval", ("jobs", 41): "plan"}
JUNK: list[t.Any] = [None, True, False, 0, 1, -1, 1.5, "", "0", "x", [], [None], {}, {"x": None}, 1 << 70, "2026-13-01T00:00:00Z", "42"]
ONE = Yes(43, 30, 42, 41, 7, "ann", 1769853660.0, PLAN, "pve/lxc/201")


def yes_of(said: dict[str, t.Any]) -> Yes:
    def get(kind: str, number: int, _rest: str) -> dict[str, t.Any]:
        if (kind, number) not in WHERE:
            raise NotFound(f"cannot read {kind} {number}", why="HTTP 404", fix="")
        return dict(said[WHERE[kind, number]])

    return judge(read(get, 43), frozenset([7]))


def places(value: t.Any, path: tuple[t.Any, ...] = ()) -> t.Iterator[tuple[t.Any, ...]]:
    """All places in it, but for what names what was asked for, which is compared where it is fetched."""
    if path and path[1:] != ("id",) and len(path) > 1:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def test_what_awx_says_of_an_approved_workflow_is_a_yes() -> None:
    assert yes_of(SAID) == ONE


@pytest.mark.parametrize("path", list(places(SAID)), ids=lambda path: ".".join(map(str, path)))
def test_what_is_changed_is_no_yes_or_the_same(path: tuple[t.Any, ...]) -> None:
    for junk in (*JUNK, KeyError):
        said = copy.deepcopy(SAID)
        *outer, last = path
        place = said
        for key in outer:
            place = place[key]
        if junk is KeyError:
            del place[last]
        else:
            place[last] = junk
        try:
            found = yes_of(said)
        except (Refused, NotFound):
            continue
        same = dataclasses.replace(found, who="ann") if path[-1] == "username" else found
        if "remediations" in path and same != ONE:  # which plan it is to, the ledger compares
            same = dataclasses.replace(same, plan_id=PLAN, target=ONE.target)
        assert same == ONE, (path, junk, found)
