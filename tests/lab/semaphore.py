"""As much of Semaphore's API as it takes to set a project up, from its source of October 2024, or with what later releases know besides.

Some of what is made is answered with nothing, a change must say the numbers that its address says, and no secret is ever told.
"""

from __future__ import annotations

import copy
import json
import re
import typing as t

from tests.lab.rest import Refusal, Rest, Row

FIELDS: dict[str, dict[str, t.Any]] = {
    "projects": {"name": str, "alert": bool, "alert_chat": str, "max_parallel_tasks": int, "type": str},
    "keys": {"name": str, "type": str},
    "repositories": {"name": str, "git_url": str, "git_branch": str, "ssh_key_id": int},
    "inventory": {"name": str, "inventory": str, "type": str, "ssh_key_id": int, "become_key_id": int},
    "environment": {"name": str, "json": str, "env": str, "password": str},
    "views": {"title": str, "position": int},
    "schedules": {"name": str, "cron_format": str, "active": bool, "template_id": int},
    "templates": {
        "name": str,
        "playbook": str,
        "arguments": str,
        "allow_override_args_in_task": bool,
        "description": str,
        "type": str,
        "app": str,
        "autorun": bool,
        "suppress_success_alerts": bool,
        "survey_vars": list,
        "inventory_id": int,
        "repository_id": int,
        "environment_id": int,
        "view_id": int,
    },
}
"""What is kept; whatever else is sent is ignored."""
LATER: dict[str, t.Any] = {"environment_ids": list, "task_params": dict}
NEEDED = {"keys": ("name", "type"), "repositories": ("name", "git_url", "git_branch", "ssh_key_id"), "environment": ("name", "json", "env")}
SILENT = ("keys", "repositories", "environment")


class Semaphore(Rest):
    """A server without projects. ``later``: one of a release that knows more, and leaves what is empty out of its answers."""

    def __init__(self, later: bool = False) -> None:
        super().__init__()
        self.later = later
        self.lists: dict[str, dict[int, Row]] = {kind: {} for kind in FIELDS}
        self.secrets: dict[int, Row] = {}
        self._last = 0

    def rows(self, kind: str) -> dict[str, Row]:
        return {str(row.get("name", row.get("title"))): row for row in self.lists[kind].values()}

    def answer(self, method: str, path: str, query: dict[str, str], body: t.Any) -> tuple[int, t.Any]:
        if path == "/api/projects":
            return self._kind(method, "projects", 0, 0, body)
        match = re.fullmatch(r"/api/project/(\d+)/(\w+)(?:/(\d+))?", path)
        if not match or match[2] not in FIELDS or int(match[1]) not in self.lists["projects"]:
            raise Refusal(404, None)
        return self._kind(method, match[2], int(match[1]), int(match[3] or 0), body)

    def _kind(self, method: str, kind: str, project: int, number: int, body: t.Any) -> tuple[int, t.Any]:
        rows = self.lists[kind]
        if number and number not in rows:
            raise Refusal(404, None)
        if method == "GET" and number:
            told = self._told(kind, rows[number])
            return 200, {**told, "secrets": self._names(number)} if kind == "environment" else told
        if method == "GET":
            return 200, [self._told(kind, row) for row in rows.values() if row.get("project_id", 0) == project]
        if project and body.get("project_id") != project:
            raise Refusal(400, {"error": "Project ID in body and URL must be the same"})
        row = self._read(kind, body)
        if method == "PUT":
            if body.get("id") != number:
                raise Refusal(400, {"error": "id in URL and in body must be the same"})
            rows[number] = {**row, "id": number, "project_id": project}
        else:
            self._last += 1
            number = self._last
            rows[number] = {**row, "id": number, **({"project_id": project} if project else {})}
        if kind == "environment":
            self._keep(number, body.get("secrets") or [])
        return (204, None) if method == "PUT" or kind in SILENT else (201, self._told(kind, rows[number]))

    def _read(self, kind: str, body: Row) -> Row:
        row: Row = {}
        for key, wanted in {**FIELDS[kind], **(LATER if self.later and kind == "templates" else {})}.items():
            value = body.get(key)
            if value is not None and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
                raise Refusal(400, {"error": f"cannot unmarshal {type(value).__name__} into field {key}"})
            row[key] = value if value is not None else {bool: False, list: [], dict: {}}.get(wanted)
        missing = [key for key in NEEDED.get(kind, ("title",) if kind == "views" else ("name",)) if not row.get(key)]
        if missing:
            raise Refusal(400, {"error": f"{missing[0]} can not be empty"})
        if kind == "templates":
            self._check_template(row)
        if kind == "inventory" and (row["type"] not in ("static", "static-yaml", "file") or row["inventory"].startswith(("/", ".."))):
            raise Refusal(400, {"error": "Invalid inventory"})
        if kind == "schedules" and (not re.fullmatch(r"\*/\d+( \*){4}", row["cron_format"]) or row["template_id"] not in self.lists["templates"]):
            raise Refusal(400, {"error": "Cron"})
        return row

    def _check_template(self, row: Row) -> None:
        links = {"inventory": row["inventory_id"], "repositories": row["repository_id"], "environment": row["environment_id"], "views": row["view_id"]}
        for kind, number in links.items():
            if number not in self.lists[kind]:
                raise Refusal(400, {"error": f"there is no {kind} {number}"})
        if row["app"] != "ansible" or not row["playbook"] or not isinstance(json.loads(row["arguments"] or "[]"), list):
            raise Refusal(400, {"error": "template"})
        for question in row["survey_vars"]:
            if question.get("type") not in ("", "int", "enum") or not all(isinstance(question.get(key), str) for key in ("name", "title", "description")):
                raise Refusal(400, {"error": f"survey {question}"})

    def _keep(self, environment: int, secrets: list[Row]) -> None:
        for secret in secrets:
            if secret.get("operation") == "create":
                self._last += 1
                self.secrets[self._last] = {"environment": environment, "type": secret["type"], "name": secret["name"], "secret": secret["secret"]}
            elif secret.get("operation") == "delete":
                self.secrets.pop(secret["id"])

    def _names(self, environment: int) -> list[Row]:
        kept = {number: row for number, row in self.secrets.items() if row["environment"] == environment}
        return [{"id": number, "type": row["type"], "name": row["name"], "secret": "", "operation": ""} for number, row in kept.items()]

    def _told(self, kind: str, row: Row) -> Row:
        told = copy.deepcopy(row)
        return {key: value for key, value in told.items() if value or not self.later or kind != "templates"}
