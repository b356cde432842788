# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ``extensions/platforms/templates.yml`` says, as AWX and as Semaphore take it."""

from __future__ import annotations

import json
import typing as t

Facts = t.Dict[str, t.Any]
PREFIX = "homelab.healer."
SHADOW = {"remediate_shadow": True}
SWITCH = ("false", "true")
LATER = ("task_params", "environment_ids")
"""What servers of Semaphore know since some release; an older one leaves it out of what it answers."""


def job_name(template: t.Mapping[str, t.Any]) -> str:
    """The name of a job template: that of the playbook, so that a rulebook calls both alike."""
    return PREFIX + str(template["name"])


def workflow_name(template: t.Mapping[str, t.Any]) -> str:
    """The name of the workflow that plans, waits for a yes, and applies."""
    return f"{job_name(template)}, looked at first"


def playbook_file(template: t.Mapping[str, t.Any]) -> str:
    """The file of the checkout, as both look only for files."""
    return "playbooks/{}.yml".format(template.get("playbook", template["name"]))


def choices(question: t.Mapping[str, t.Any]) -> list[str]:
    return list(SWITCH) if question["type"] == "switch" else [str(choice) for choice in question.get("choices", [])]


def awx_survey(template: t.Mapping[str, t.Any], without: t.Sequence[str] = ()) -> Facts:
    """A survey as AWX takes it; empty where there is nothing to ask."""
    spec = [_awx_question(question) for question in template["survey"] if question["variable"] not in without]
    return dict(name="", description="", spec=spec) if spec else {}


def _awx_question(question: t.Mapping[str, t.Any]) -> Facts:
    offered = choices(question)
    asked = dict(
        type={"text": "text", "integer": "integer"}.get(question["type"], "multiplechoice"),
        question_name=question["question"],
        question_description=question["help"],
        variable=question["variable"],
        required=bool(offered or question.get("required", False)),
    )
    if offered:
        asked.update(choices=offered, default=question.get("default", offered[0]))
    elif "default" in question:
        asked.update(default=question["default"])
    if question["type"] == "text":
        asked.update(min=0, max=1024)
    asked.update({key: question[key] for key in ("min", "max") if key in question})
    return asked


def awx_variables(template: t.Mapping[str, t.Any], live: bool) -> Facts:
    """What a job template is always run with.

    After a plan in a workflow, AWX passes that job's result on; then nothing but what was planned may be done. Where the workflow that looks first passes
    nothing on, nothing may be. This can only forbid.
    """
    told: Facts = dict(SHADOW) if template.get("shadow") and not live else {}
    if template.get("look_first"):
        unknown = f"[] if awx_workflow_job_name | default('') == '{workflow_name(template)}' and not ansible_check_mode else ['any']"
        told["remediate_only_plans"] = f"{{{{ remediations | map(attribute='plan_id') | list if remediations is defined else {unknown} }}}}"
    return told


def awx_credential_type(secret: t.Mapping[str, t.Any]) -> Facts:
    """A type of credential that gives its secret to a job as an environment variable, where the inventory looks it up.

    Not as an extra variable: one that says where the ledger is, or how it is reached, is refused from there.
    """
    field = dict(id="secret", type="string", label=secret["label"], secret=True)
    return dict(
        name=secret_name(secret),
        description="{}. Jobs have it as the environment variable {}.".format(secret["label"], secret["variable"]),
        inputs=dict(fields=[field], required=["secret"]),
        injectors=dict(env={str(secret["variable"]): "{{ secret }}"}),
    )


def secret_name(secret: t.Mapping[str, t.Any]) -> str:
    return PREFIX + str(secret["variable"])


def own_secret(variable: str) -> Facts:
    """A secret that only somebody's inventory knows."""
    return dict(variable=variable, of="", label=f"What the inventory looks up as {variable}")


def secrets_of(template: t.Mapping[str, t.Any], secrets: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """The names of the credentials that a template needs. One that nothing is known of may be needed by any."""
    needed = {"ledger", "telegram", "", *template["reads"], *(["awx"] if template.get("look_first") else [])}
    return [secret_name(secret) for secret in secrets if secret["of"] in needed]


def awx_rrule(schedule: t.Mapping[str, t.Any]) -> str:
    return "DTSTART:20260101T000000Z RRULE:FREQ=MINUTELY;INTERVAL={}".format(schedule["minutes"])


def semaphore_survey(template: t.Mapping[str, t.Any]) -> list[Facts]:
    """A survey as Semaphore takes it.

    Without defaults: the field came late, and a backup's reader of that release wants an object where its API wants a string.
    """
    return [_semaphore_question(question) for question in template["survey"]]


def _semaphore_question(question: t.Mapping[str, t.Any]) -> Facts:
    offered = choices(question)
    return dict(
        name=question["variable"],
        title=question["question"],
        required=bool(offered or question.get("required", False)),
        type="enum" if offered else "int" if question["type"] == "integer" else "",
        description=question["help"],
        values=[dict(name=choice, value=choice) for choice in offered],
    )


def semaphore_template(template: t.Mapping[str, t.Any], live: bool = False) -> Facts:
    """What a template is in a backup as well as in the API; what it links to is added there."""
    shadow = template.get("shadow") and not live
    return dict(
        name=job_name(template),
        playbook=playbook_file(template),
        description=template["description"],
        arguments=json.dumps(["--extra-vars", json.dumps(SHADOW)]) if shadow else "[]",
        allow_override_args_in_task=False,
        type="",
        app="ansible",
        autorun=False,
        suppress_success_alerts=bool(template.get("playbook")),
        survey_vars=semaphore_survey(template),
    )


def semaphore_views(titles: t.Iterable[str]) -> list[Facts]:
    return [dict(title=title, position=position) for position, title in enumerate(titles)]


def semaphore_templates(templates: t.Sequence[t.Mapping[str, t.Any]], links: t.Mapping[str, t.Any], live: bool) -> list[Facts]:
    """Templates as the API takes them. What a task may choose when it is started is said as newer servers want it; older ones let it choose."""
    numbers = {key: links[key] for key in ("inventory_id", "repository_id", "environment_id")}
    return [
        {
            **semaphore_template(template, live),
            **numbers,
            "environment_ids": [numbers["environment_id"]],
            "view_id": links["view_ids"].get(links["views"][template["kind"]], 0),
            "task_params": dict(allow_override_limit=True),
        }
        for template in templates
    ]


def semaphore_schedules(schedules: t.Sequence[t.Mapping[str, t.Any]], numbers: t.Mapping[str, int], active: bool) -> list[Facts]:
    return [
        dict(name=schedule["name"], cron_format=semaphore_cron(schedule), active=active, template_id=numbers.get(PREFIX + schedule["template"], 0))
        for schedule in schedules
    ]


def semaphore_plan(wanted: t.Sequence[t.Mapping[str, t.Any]], found: t.Sequence[t.Mapping[str, t.Any]], rows: t.Mapping[str, t.Any]) -> list[Facts]:
    """What has to be made (without an id) or changed. A change says all that is there again, as the server takes what is left out for nothing."""
    label, plan = rows["label"], []
    there = {row[label]: row for row in found}
    for want in wanted:
        row = there.get(want[label])
        if row is None:
            plan.append(dict(id=0, name=want[label], body={**rows["new"], **want, **rows["own"]}))
        elif semaphore_differs(want, row):
            plan.append(dict(id=row["id"], name=want[label], body={**row, **want, **rows["own"]}))
    return plan


def semaphore_refused(plan: t.Sequence[t.Mapping[str, t.Any]], answers: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """What the server would not do, in its words. The request, which has the token, is left out."""
    return [
        "{}: HTTP {}: {}".format(step["name"], answer.get("status", 0), answer.get("content") or answer.get("msg", ""))
        for step, answer in zip(plan, answers)
        if not answer.get("skipped") and answer.get("status") not in (200, 201, 204)
    ]


def semaphore_secrets(environment: t.Mapping[str, t.Any], names: t.Sequence[str], secrets: t.Mapping[str, str]) -> Facts:
    """An environment as it is, and what is to become of its secrets."""
    old = [secret for secret in environment.get("secrets") or [] if secret["type"] == "env" and secret["name"] in names]
    gone = [{**secret, "operation": "delete"} for secret in old]
    made = [dict(type="env", name=name, secret=str(secrets[name]), operation="create") for name in names]
    return {**environment, "secrets": gone + made}


def semaphore_cron(schedule: t.Mapping[str, t.Any]) -> str:
    return "*/{} * * * *".format(schedule["minutes"])


def semaphore_project(told: t.Mapping[str, t.Any], settings: t.Mapping[str, t.Any]) -> Facts:
    """A whole project in the format of Semaphore's backups. It has no secret, as those never have one."""
    name, key, live = settings["name"], settings["key"], bool(settings.get("live"))
    titles = settings["views"]
    rows = []
    crons = {schedule["template"]: semaphore_cron(schedule) for schedule in told["platforms_schedules"]}
    for template in told["platforms_templates"]:
        links = dict(inventory=name, repository=name, environment=name, environments=[name], view=titles[template["kind"]], vaults=[])
        cron = dict(cron=crons[template["name"]]) if template["name"] in crons else {}
        rows.append({**semaphore_template(template, live), **links, **cron})
    return dict(
        meta=dict(name=name, alert=False, max_parallel_tasks=0, type=""),
        keys=[dict(name=key, type="none")],
        repositories=[dict(name=name, git_url=settings["repository"], git_branch=settings["branch"], ssh_key=key)],
        inventories=[dict(name=name, inventory=settings["inventory"], type="file", ssh_key=key)],
        environments=[dict(name=name, json="{}", env="{}")],
        views=[dict(title=title, name=title, position=position) for position, title in enumerate(titles.values())],
        templates=rows,
        schedules=[
            dict(name=schedule["name"], cron_format=semaphore_cron(schedule), active=False, template=PREFIX + schedule["template"])
            for schedule in told["platforms_schedules"]
        ],
        integrations=[],
        integration_aliases=[],
    )


def semaphore_differs(wanted: t.Mapping[str, t.Any], found: t.Mapping[str, t.Any]) -> bool:
    """Whether what a server has is not what is wanted, of the keys that are wanted. What is empty may be left out of its answer."""
    return any(_differs(key, value, found) for key, value in wanted.items())


def _differs(key: str, wanted: t.Any, found: t.Mapping[str, t.Any]) -> bool:
    if key not in found:
        return key not in LATER and bool(wanted)
    if key == "survey_vars":
        return _plain(wanted) != _plain(found[key] or [])
    return bool(found[key] != wanted and (found[key] or wanted))


def _plain(survey: t.Sequence[t.Mapping[str, t.Any]]) -> list[Facts]:
    keys = ("name", "title", "required", "type", "description", "values")
    return [{key: question.get(key) or "" for key in keys} for question in survey]


class FilterModule:
    """The collection's filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {
            "awx_credential_type": awx_credential_type,
            "awx_rrule": awx_rrule,
            "awx_survey": awx_survey,
            "awx_variables": awx_variables,
            "job_name": job_name,
            "own_secret": own_secret,
            "playbook_file": playbook_file,
            "secret_name": secret_name,
            "secrets_of": secrets_of,
            "semaphore_cron": semaphore_cron,
            "semaphore_differs": semaphore_differs,
            "semaphore_plan": semaphore_plan,
            "semaphore_project": semaphore_project,
            "semaphore_refused": semaphore_refused,
            "semaphore_schedules": semaphore_schedules,
            "semaphore_secrets": semaphore_secrets,
            "semaphore_survey": semaphore_survey,
            "semaphore_template": semaphore_template,
            "semaphore_templates": semaphore_templates,
            "semaphore_views": semaphore_views,
            "workflow_name": workflow_name,
        }
