# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who answered the approval node that stands before a job in its workflow of AWX, and which plan was looked at then: read from AWX's API, and judged.

A job knows nothing of itself but its number. All else is what AWX says, and is only read. What does not fit is no yes. Whether the plan is the one that is
asked about, in time and for the first time, is the ledger's to say, not this file's.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import dataclass
from datetime import datetime

from ansible_collections.homelab.healer.plugins.module_utils._errors import Denied, HealerError, Invalid, NotFound, Refused, TaskFailed, Unreachable
from ansible_collections.homelab.healer.plugins.module_utils._https import Lost, address, check, exchange, lost, part, text, whole
from ansible_collections.homelab.healer.plugins.module_utils._policy import Target
from ansible_collections.homelab.healer.plugins.module_utils._telegram import identities, visible

OPTIONS: dict[str, t.Any] = dict(
    host=dict(type="str", required=True),
    token=dict(type="str", required=True, no_log=True),
    approvers=dict(type="list", elements="raw", default=[]),
    ca_path=dict(type="path"),
    timeout=dict(type="float", default=10.0),
)
"""What ``Awx`` takes, as options. The numbers are raw, since Ansible would take ``true`` for 1."""
JOB = re.compile(r"JOB_ID=([1-9][0-9]{0,18})", re.ASCII)
TOKEN = re.compile(r"[\x21-\x7e]+")
MOST_NODES = 200
"""How many nodes AWX tells at once, at most."""
LINKS = ("success_nodes", "failure_nodes", "always_nodes")
PASSED_ON = "remediations"
"""The variable by which AWX passes the result of the job that planned on to the one that applies."""
ROLE = "Give the token's user the role Read or Auditor where the workflow and its templates are."
REFUSALS: t.Mapping[int, tuple[type[HealerError], str]] = {
    401: (Denied, "Check the token, and whether it has expired."),
    403: (Denied, ROLE),
    404: (NotFound, f"{ROLE} Look whether host is the AWX that runs this job."),
}
"""What AWX's refusals mean: the failure, and what to do."""

Get = t.Callable[[str, int, str], t.Mapping[str, t.Any]]
"""What AWX says of one thing: by the kind as AWX names it in the address, its number, and what of it; empty for itself."""


@dataclass(frozen=True)
class Node:
    """A node of a workflow that was run: which job it ran, and to which nodes it leads on, by which kind of link."""

    id: int
    job: int | None
    kind: str
    leads_to: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Said:
    """What AWX says of a job, of the approval node before it, and of the job before that."""

    job: t.Mapping[str, t.Any]
    approval: t.Mapping[str, t.Any]
    plan: t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Yes:
    """A yes of somebody who may give it, to the one plan that was looked at. The numbers are AWX's, ``answered`` is in seconds since 1970."""

    job: int
    workflow: int
    approval: int
    planned_by: int
    user: int
    who: str
    answered: float
    plan_id: str
    target: str


def read(get: Get, job: int) -> Said:
    """Follow a job back through its workflow. Raises ``Refused`` where it is not led to by one approval alone, and that by one job alone."""
    own = get("jobs", job, "")
    workflow = _workflow(own)
    if workflow is None:
        raise _no(f"job {job} is part of no workflow", "Start the workflow, not the template alone; a job that is started again has left its workflow.")
    found = get("workflow_jobs", workflow, "workflow_nodes")
    nodes = [_node(row, workflow) for row in found["results"]] if isinstance(found.get("results"), list) else []
    if found.get("next") is not None or not nodes or None in nodes:
        raise _no(f"the nodes of workflow job {workflow} cannot be read", f"A workflow of at most {MOST_NODES} nodes can be.")
    known = [node for node in nodes if node]
    approve = _before(known, next((node for node in known if node.job == job), None), "workflow_approval")
    plan = _before(known, approve, "job")
    said = Said(own, get("workflow_approvals", approve.job or 0, ""), get("jobs", plan.job or 0, ""))
    if {_workflow(said.approval), _workflow(said.plan)} != {workflow}:
        raise _no(f"AWX does not say that its nodes belong to workflow job {workflow}", "Look at that job in AWX.")
    return said


def judge(said: Said, approvers: t.Collection[int]) -> Yes:
    """The yes that was given, if it was one. Raises ``Refused`` for all else."""
    job, approval, plan = said.job, said.approval, said.plan
    by = part(approval, "summary_fields", "approved_or_denied_by")
    user, who = whole(part(by, "id")), visible(text(by, "username"))[:64]
    planned, asked, answered = _at(plan.get("finished")), _at(approval.get("created")), _at(approval.get("finished"))
    records = _records(plan)
    node, looked = f"approval {approval['id']}", f"job {plan['id']}, which planned,"
    for wrong, why in (
        (job.get("status") != "running", f"job {job['id']} does not run ({text(job, 'status')})"),
        (approval.get("timed_out") is not False, f"{node} timed out"),
        (approval.get("status") != "successful", f"{node} is not approved ({text(approval, 'status')})"),
        (user is None, f"{node} does not say who approved it"),
        (user not in approvers, f"AWX user {user} ({who}), who approved it, is none of approvers"),
        (plan.get("status") != "successful" or plan.get("job_type") != "check", f"{looked} did not end well in check mode"),
        (None in (planned, asked, answered), f"AWX does not say when {node} was answered, or when its plan was there"),
        (not (planned or 0) <= (asked or 0) <= (answered or 0), f"{node} is older than the plan of job {plan['id']}"),
        (whole(job.get("job_template")) is None or job.get("job_template") != plan.get("job_template"), f"{looked} ran another template"),
        (whole(job.get("inventory")) is None or job.get("inventory") != plan.get("inventory"), f"{looked} had another inventory"),
        (_variables(job) is None or _variables(job) != _variables(plan), f"{looked} had other variables"),
        (len(records) != 1, f"{looked} told {len(records)} plans, and a yes is for one"),
    ):
        if wrong:
            raise _no(why, "Look at the workflow's job in AWX.")
    record = records[0]
    return Yes(
        job=job["id"],
        workflow=_workflow(job) or 0,
        approval=approval["id"],
        planned_by=plan["id"],
        user=user or 0,
        who=who,
        answered=answered or 0.0,
        plan_id=text(record, "plan_id"),
        target=Target.of(text(record, "host"), {name: part(record, "target", name) for name in ("kind", "id")}).key,
    )


class Awx:
    """One AWX, and the job of it that runs this. It is only read."""

    def __init__(self, host: t.Any, token: t.Any, approvers: t.Any, run: t.Mapping[str, t.Any], *, ca_path: str | None = None, timeout: float = 10) -> None:
        parts = address("host", host, "an AWX", "https://awx.example.org")
        if not (isinstance(token, str) and TOKEN.fullmatch(token)):
            raise Invalid("cannot use the token of AWX", why="it is empty, or no token", fix="Make one in AWX that may only read; nothing was asked.")
        check(ca_path, timeout)
        self._approvers = identities("approvers", approvers, positive=True, whose="AWX")
        if not self._approvers:
            raise Invalid("cannot ask AWX", why="healer_approval lists no approvers for AWX, so nobody there could answer", fix="List them.")
        job = JOB.fullmatch(str(run.get("job", "")))
        if not job:
            raise _no("this run is no job of AWX (it has no JOB_ID)", "Start the workflow in AWX.")
        self._job = int(job[1])
        self._base, self._host, self._token = parts.geturl(), parts.netloc, token
        self._ca_path, self._timeout = ca_path, timeout

    def yes(self) -> Yes:
        """The yes that was given before this job, if there is one."""
        return judge(read(self._get, self._job), self._approvers)

    def _get(self, kind: str, number: int, rest: str) -> t.Mapping[str, t.Any]:
        path = f"/api/v2/{kind}/{number}/" + (f"{rest}/?page_size={MOST_NODES}" if rest else "")
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        reply = exchange(f"{self._base}{path}", method="GET", headers=headers, timeout=self._timeout, ca_path=self._ca_path)
        what = f"cannot read {path} of {self._host}"
        if not isinstance(reply, tuple):
            raise _lost(what, reply)
        status, body = reply
        if status != 200:
            failure, fix = REFUSALS.get(status, (Unreachable if status >= 500 else TaskFailed, "Look whether host is an AWX, and well; it is asked once."))
            raise failure(what, why=f"HTTP {status} {visible(text(body, 'detail'))[:200]}", fix=fix)
        if not isinstance(body, dict) or not (rest or (whole(body.get("id")) == number and body.get("type") == kind[:-1])):
            raise TaskFailed(what, why="that is not what AWX answers", fix="Look whether host is an AWX.")
        return body


def _lost(what: str, error: Lost) -> HealerError:
    why, fix = lost(error, "host")
    return Unreachable(what, why=visible(why)[:300], fix=fix)


def _no(why: str, fix: str) -> Refused:
    return Refused("there is no yes in AWX", why=why, fix=fix)


def _workflow(job: t.Mapping[str, t.Any]) -> int | None:
    """The number of the workflow job that started a job."""
    return whole(part(job, "summary_fields", "source_workflow_job", "id")) if job.get("launch_type") == "workflow" else None


def _node(row: t.Any, workflow: int) -> Node | None:
    """A node as AWX tells it; nothing where that is not one of this workflow, or cannot be read."""
    number, links = whole(part(row, "id")), [(link, part(row, link)) for link in LINKS]
    if number is None or whole(part(row, "workflow_job")) != workflow or not all(isinstance(found, list) for _link, found in links):
        return None
    leads_to = tuple((link, whole(other) or 0) for link, found in links for other in found)
    return Node(number, whole(part(row, "job")), text(row, "summary_fields", "job", "type"), leads_to)


def _before(nodes: t.Sequence[Node], node: Node | None, kind: str) -> Node:
    """The one node that leads to another, by its success alone. With more than one, or after a failure, that one may run though nobody said yes."""
    before = [(other, link) for other in nodes for link, led_to in other.leads_to if node and led_to == node.id]
    if len(before) != 1 or before[0][1] != LINKS[0] or before[0][0].kind != kind or not before[0][0].job:
        words = {"workflow_approval": "the job's node is not led to by one approval node alone", "job": "the approval node is not led to by one job alone"}
        raise _no(words[kind], "Make the workflow as homelab.healer.awx_setup does: plan, approve, apply, each after the success of the one before.")
    return before[0][0]


def _at(value: t.Any) -> float | None:
    """A moment as AWX writes it, in seconds since 1970; nothing for what is none, or has no time zone."""
    try:
        found = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (AttributeError, ValueError):
        return None
    return found.timestamp() if found.tzinfo else None


def _records(plan: t.Mapping[str, t.Any]) -> list[t.Any]:
    """The results of a job that have a plan."""
    passed_on = part(plan, "artifacts", PASSED_ON)
    return [record for record in passed_on if text(record, "plan_id")] if isinstance(passed_on, list) else []


def _variables(job: t.Mapping[str, t.Any]) -> dict[str, t.Any] | None:
    """The variables that a job was started with, but for what was passed on to it. Options of a plan need not show in what is there before and after."""
    try:
        found = json.loads(text(job, "extra_vars") or "{}")
    except ValueError:
        return None
    return {name: value for name, value in found.items() if name != PASSED_ON} if isinstance(found, dict) else None
