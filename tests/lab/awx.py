"""As much of AWX's API as awx.awx needs to set it up: lists that are looked up by name, what links to what, surveys, and approval nodes; and what it tells of a
workflow that was run.

Written from its source (24.6.1): what it refuses of a survey, of a credential type and of a template's playbook, that it never tells a secret again, and what
its serializers tell of jobs, of a workflow's nodes and of approvals.
"""

from __future__ import annotations

import copy
import json
import re
import time
import typing as t
from datetime import datetime, timezone

from tests.lab.rest import Refusal, Rest, Row

API = "/api/v2/"
LEADS_ON = ("success_nodes", "failure_nodes", "always_nodes")
LINKS = ("credentials", "labels", "instance_groups", *LEADS_ON)
NODES = ("workflow_jobs", "workflow_nodes")
TEMPLATES = {"job_templates": "job_template", "workflow_job_templates": "workflow_job_template", "projects": "project"}
SECRET = "$encrypted$"
PAGE, MOST = 25, 200
"""How much of a list is told at once, if nobody says otherwise, and at most."""
ASKS = {"job_type": "ask_job_type_on_launch", "limit": "ask_limit_on_launch", "extra_data": "ask_variables_on_launch"}
VALUES: dict[str, t.Any] = {
    "text": str,
    "textarea": str,
    "password": str,
    "multiplechoice": str,
    "multiselect": str,
    "integer": int,
    "float": float,
}
"""What a question's default must be."""


def wrong_in_survey(spec: t.Any) -> str:
    """What AWX would refuse of a survey, and nothing where it would take it."""
    for key, kind in (("name", str), ("description", str), ("spec", list)):
        if not isinstance(spec.get(key), kind):
            return f"{key} is missing, or not what it should be"
    if not spec["spec"]:
        return "there are no questions"
    seen: set[str] = set()
    for question in spec["spec"]:
        wrong = _wrong_in_question(question)
        if wrong:
            return f"{question.get('variable')}: {wrong}"
        if question["variable"] in seen:
            return f"{question['variable']} is asked twice"
        seen.add(question["variable"])
    return ""


def _wrong_in_question(question: Row) -> str:  # noqa: PLR0911 (one for each rule)
    for key, kind in (("type", str), ("question_name", str), ("variable", str), ("required", bool)):
        if not isinstance(question.get(key), kind):
            return f"{key} is missing, or not what it should be"
    if question["type"] not in VALUES:
        return f"there is no type {question['type']}"
    default = question.get("default", "")
    if default != "" and not isinstance(default, VALUES[question["type"]]):
        return "its default is of another type"
    for key in ("min", "max"):
        if question.get(key) is not None and not isinstance(question[key], int):
            return f"{key} is no whole number"
    if question["type"] in ("multiplechoice", "multiselect"):
        if "choices" not in question:
            return "it has no choices"
        chosen = default.splitlines() if isinstance(default, str) else default
        offered = question["choices"].splitlines() if isinstance(question["choices"], str) else question["choices"]
        if any(choice not in offered for choice in chosen) or (question["type"] == "multiplechoice" and len(chosen) > 1):
            return "its default is none of its choices"
    return "a default is encrypted" if str(default).startswith(SECRET) else ""


def told_at(at: float) -> str:
    """A moment as AWX tells it."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat().replace("+00:00", "Z")


class Ran(t.NamedTuple):
    """A workflow whose last job runs: what AWX has of each, to be told as it is here."""

    workflow: Row
    plan: Row
    approval: Row
    apply: Row
    nodes: dict[str, Row]


class Awx(Rest):
    """An AWX with the organization Default, and a project whose playbooks are those given."""

    headers: t.ClassVar[dict[str, str]] = {"X-API-Product-Name": "AWX", "X-API-Product-Version": "24.6.1"}

    def __init__(self, playbooks: t.Iterable[str]) -> None:
        super().__init__()
        self.playbooks = set(playbooks)
        self.lists: dict[str, dict[int, Row]] = {}
        self.links: dict[tuple[str, int, str], list[int]] = {}
        self.surveys: dict[tuple[str, int], Row] = {}
        self._last = 0
        self._add("organizations", {"name": "Default"})

    def rows(self, kind: str) -> dict[str, Row]:
        """What is there of a kind, by name."""
        return {str(row.get("name", row.get("identifier"))): row for row in self.lists.get(kind, {}).values()}

    def linked(self, kind: str, name: str, link: str) -> list[str]:
        """The names of what one is linked to."""
        row = self.rows(kind)[name]
        return [self._name(other) for other in self.links.get((kind, row["id"], link), [])]

    def nodes(self, workflow: str) -> dict[str, Row]:
        """A workflow's nodes by identifier, each with what it leads on to."""
        number = self.rows("workflow_job_templates")[workflow]["id"]
        nodes = [row for row in self.lists["workflow_job_template_nodes"].values() if row["workflow_job_template"] == number]
        return {
            row["identifier"]: {
                **row,
                "runs": self._row(row["unified_job_template"]),
                "leads_to": [self._row(other)["identifier"] for other in self.links.get(("workflow_job_template_nodes", row["id"], "success_nodes"), [])],
            }
            for row in nodes
        }

    def survey(self, kind: str, name: str) -> Row:
        return self.surveys.get((kind, self.rows(kind)[name]["id"]), {})

    def ran(self, remediations: t.Sequence[Row], user: int = 7, username: str = "ann", **variables: t.Any) -> Ran:
        """A workflow that planned this, was approved by this user, and applies it now."""
        now = time.time()
        flow = self._add("workflow_jobs", {"name": "looked at first", "launch_type": "manual", "status": "running"})
        of: Row = {"launch_type": "workflow", "summary_fields": {"source_workflow_job": {"id": flow["id"], "name": flow["name"], "status": "running"}}}
        of["related"] = {"source_workflow_job": f"{API}workflow_jobs/{flow['id']}/"}
        job = {**of, "name": "heal", "job_template": 3, "unified_job_template": 3, "inventory": 2, "job_explanation": ""}
        passed_on = {"remediations": list(remediations)}
        times = {"created": told_at(now - 60), "started": told_at(now - 58), "finished": told_at(now - 40)}
        plan = {**job, "job_type": "check", "status": "successful", "failed": False, "extra_vars": json.dumps(variables), "artifacts": passed_on, **times}
        approval = {**of, "name": "do it?", "status": "successful", "failed": False, "timed_out": False, "timeout": 3600, "approval_expiration": None}
        approval.update(created=told_at(now - 35), started=told_at(now - 35), finished=told_at(now - 10), can_approve_or_deny=False)
        approval["summary_fields"] = {**of["summary_fields"], "approved_or_denied_by": {"id": user, "username": username, "first_name": "", "last_name": ""}}
        apply = {**job, "job_type": "run", "status": "running", "failed": False, "extra_vars": json.dumps({**variables, **passed_on}), "artifacts": {}}
        apply.update(created=told_at(now - 8), started=told_at(now - 5), finished=None)
        jobs = {"plan": ("jobs", plan), "approve": ("workflow_approvals", approval), "apply": ("jobs", apply)}
        rows = {name: (kind, self._add(kind, copy.deepcopy(row))) for name, (kind, row) in jobs.items()}
        nodes: dict[str, Row] = {}
        for name, (kind, row) in rows.items():
            node: Row = {"identifier": name, "job": row["id"], "workflow_job": flow["id"], "do_not_run": False, "all_parents_must_converge": False}
            node["summary_fields"] = {"job": {"id": row["id"], "name": row["name"], "status": row["status"], "type": kind.removesuffix("s")}}
            nodes[name] = self._add("workflow_job_nodes", {**node, **{link: [] for link in LEADS_ON}})
        nodes["plan"]["success_nodes"] = [nodes["approve"]["id"]]
        nodes["approve"]["success_nodes"] = [nodes["apply"]["id"]]
        return Ran(flow, rows["plan"][1], rows["approve"][1], rows["apply"][1], nodes)

    def answer(self, method: str, path: str, query: dict[str, str], body: t.Any) -> tuple[int, t.Any]:
        parts = path.removeprefix(API).strip("/").split("/")
        kind, number, rest = parts[0], int(parts[1]) if len(parts) > 1 else 0, parts[2] if len(parts) > 2 else ""
        if not path.startswith(API) or (number and number not in self.lists.get(kind, {})):
            raise Refusal(404, {"detail": "Not found."})
        if not number:
            return (200, self._listed(kind, query)) if method == "GET" else (201, self._told(kind, self._made(kind, body)))
        if rest:
            return self._under(method, kind, number, rest, body) if (kind, rest) != NODES else (200, self._nodes_of(number, query))
        row = self.lists[kind][number]
        if method == "PATCH":
            self._check(kind, {**row, **body})
            row.update(self._kept(kind, body, row))
        return 200, self._told(kind, row)

    def _nodes_of(self, workflow: int, query: dict[str, str]) -> Row:
        found = [row for row in self.lists["workflow_job_nodes"].values() if row["workflow_job"] == workflow]
        size = min(int(query.get("page_size", PAGE)), MOST)
        told = self._page([self._told("workflow_job_nodes", row) for row in found[:size]])
        return {**told, "count": len(found), "next": f"{API}workflow_jobs/{workflow}/workflow_nodes/?page=2&page_size={size}" if found[size:] else None}

    def _under(self, method: str, kind: str, number: int, rest: str, body: t.Any) -> tuple[int, t.Any]:
        if rest == "survey_spec":
            return self._survey(method, kind, number, body)
        if rest == "create_approval_template":
            if method != "POST":
                raise Refusal(405, {"detail": f'Method "{method}" not allowed.'})
            made = self._add("workflow_approval_templates", {key: body.get(key, "") for key in ("name", "description", "timeout")})
            self.lists[kind][number]["unified_job_template"] = made["id"]
            return 201, self._told("workflow_approval_templates", made)
        if rest not in LINKS or (kind == "workflow_approval_templates"):
            raise Refusal(404, {"detail": "Not found."})
        linked = self.links.setdefault((kind, number, rest), [])
        if method == "GET":
            return 200, self._page([self._told(kind, self._row(other)) for other in linked])
        if body.get("disassociate"):
            linked.remove(body["id"])
        else:
            linked.append(body["id"])
        return 204, None

    def _survey(self, method: str, kind: str, number: int, body: t.Any) -> tuple[int, t.Any]:
        if method == "GET":
            return 200, self.surveys.get((kind, number), {})
        wrong = "" if method == "DELETE" else wrong_in_survey(body)
        if wrong:
            raise Refusal(400, {"error": wrong})
        self.surveys[kind, number] = body or {}
        return 200, None

    def _listed(self, kind: str, query: dict[str, str]) -> Row:
        wanted = {key: value for key, value in query.items() if not key.startswith("or__")}
        either = {key.removeprefix("or__"): value for key, value in query.items() if key.startswith("or__")}
        rows = [{**row, "type": TEMPLATES[name]} for name in TEMPLATES for row in self.lists.get(name, {}).values()]
        rows = rows if kind == "unified_job_templates" else list(self.lists.get(kind, {}).values())
        found = [row for row in rows if all(str(row.get(key)) == value for key, value in wanted.items())]
        found = [row for row in found if not either or any(str(row.get(key)) == value for key, value in either.items())]
        return self._page([self._told(self._kind(row["id"]), row) for row in found])

    def _made(self, kind: str, body: Row) -> Row:
        self._check(kind, body)
        row = self._add(kind, self._kept(kind, body, {}))
        if kind == "projects":
            row.update(status="successful", scm_revision="0" * 40)
        return row

    def _kept(self, kind: str, body: Row, before: Row) -> Row:
        """What is kept of a body: a secret that is sent as it was told is left as it is."""
        kept = copy.deepcopy(body)
        if kind == "credentials" and "inputs" in body:
            old = before.get("inputs", {})
            kept["inputs"] = {key: old.get(key) if value == SECRET else value for key, value in body["inputs"].items()}
        if kind == "workflow_job_template_nodes":
            kept = {**dict.fromkeys(("job_type", "limit", "unified_job_template")), "extra_data": {}, **before, **kept}
        return kept

    def _check(self, kind: str, row: Row) -> None:
        if kind == "job_templates":
            if row["playbook"] not in self.playbooks:
                raise Refusal(400, {"playbook": ["Playbook not found for project."]})
            json.loads(row.get("extra_vars", "{}"))
        elif kind == "credential_types":
            fields = {field["id"] for field in row["inputs"]["fields"]}
            for name, value in row["injectors"].get("env", {}).items():
                if name.startswith("ANSIBLE_") or not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) or not set(re.findall(r"{{ *(\w+) *}}", value)) <= fields:
                    raise Refusal(400, {"injectors": [f"Environment variable {name} is not allowed to be used in credentials."]})
        elif kind == "credentials":
            known = self._row(row["credential_type"])
            if set(row.get("inputs", {})) != {field["id"] for field in known["inputs"]["fields"]}:
                raise Refusal(400, {"inputs": ["unknown or missing"]})
        elif kind == "schedules" and not re.fullmatch(r"DTSTART:\d{8}T\d{6}Z RRULE:FREQ=MINUTELY;INTERVAL=\d+", row["rrule"]):
            raise Refusal(400, {"rrule": ["not parsed"]})
        elif kind == "workflow_job_template_nodes" and row.get("unified_job_template"):
            runs = self._row(row["unified_job_template"])
            for prompt, asks in ASKS.items():
                if row.get(prompt) and "playbook" in runs and not runs.get(asks) and row[prompt] != runs.get(prompt):
                    raise Refusal(400, {prompt: ["Field is not configured to prompt on launch."]})

    def _add(self, kind: str, row: Row) -> Row:
        self._last += 1
        self.lists.setdefault(kind, {})[self._last] = {**row, "id": self._last}
        return self.lists[kind][self._last]

    def _kind(self, number: int) -> str:
        return next(kind for kind, rows in self.lists.items() if number in rows)

    def _row(self, number: int) -> Row:
        for rows in self.lists.values():
            if number in rows:
                return rows[number]
        raise Refusal(400, {"detail": f"Invalid pk {number}"})

    def _name(self, number: int) -> str:
        row = self._row(number)
        return str(row.get("name", row.get("identifier")))

    def _page(self, rows: list[Row]) -> Row:
        return {"count": len(rows), "next": None, "previous": None, "results": rows}

    def _told(self, kind: str, row: Row) -> Row:
        url = f"{API}{kind}/{row['id']}/"
        related = {"survey_spec": f"{url}survey_spec/", "update": f"{url}update/"}
        if row.get("unified_job_template"):
            runs = row["unified_job_template"]
            related["unified_job_template"] = f"{API}{self._kind(runs)}/{runs}/"
        told = {"type": kind.removesuffix("s"), "summary_fields": {}, **copy.deepcopy(row), "url": url, "related": {**related, **row.get("related", {})}}
        if kind == "credentials":
            told["inputs"] = dict.fromkeys(told.get("inputs", {}), SECRET)
        return told
