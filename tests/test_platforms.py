"""AWX and Semaphore: what they are given is what the playbooks read, is what they take, and is made once."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import typing as t
from pathlib import Path

import jinja2
import jinja2.meta
import pytest
import yaml

from ansible_collections.homelab.healer.plugins.filter import platforms
from tests.conftest import sample
from tests.lab.awx import SECRET, Awx, wrong_in_survey
from tests.lab.engine import BURN, LabError, OwnEngine
from tests.lab.peers import awx as awx_collection
from tests.lab.playbooks import COLLECTION, ROOT, Controller, Run
from tests.lab.rest import Rest
from tests.lab.semaphore import Semaphore

PLATFORMS = COLLECTION / "extensions/platforms"
TOLD: dict[str, t.Any] = yaml.safe_load((PLATFORMS / "templates.yml").read_text())
TEMPLATES: list[dict[str, t.Any]] = TOLD["platforms_templates"]
NAMES = [template["name"] for template in TEMPLATES]
WITHOUT_A_TEMPLATE = {"install_timer", "awx_setup", "semaphore_setup"}
"""They set such runners up, or stand in for them."""
REPOSITORY = "https://git.example.org/homelab.healer.git"
HIDDEN = "hunter2-only-here"
SECRETS = {"HEALER_AWX_TOKEN": HIDDEN + "-awx", "PROXMOX_TOKEN_SECRET": HIDDEN, "PGPASSWORD": HIDDEN + "-pg", "SECOND_CLUSTER": HIDDEN + "-own"}
PLAIN = jinja2.Environment()


def filters() -> None:
    """Names of filters that plain Jinja does not know are no mistake here."""
    for name in (
        "mandatory",
        "bool",
        "combine",
        "flatten",
        "regex_replace",
        "split",
        "extract",
        "dict2items",
        "items2dict",
        "homelab.healer.alerts",
        "homelab.healer.answered",
    ):
        PLAIN.filters[name] = lambda value, *_arguments, **_more: value
    for name in ("match", "search", "contains"):
        PLAIN.tests[name] = lambda value, *_arguments: True


filters()


def read_by(playbook: str) -> set[str]:
    """The variables that a playbook's own lines read, and those that the roles in it take from outside."""
    plays = yaml.safe_load((COLLECTION / f"playbooks/{playbook}.yml").read_text())
    found: set[str] = set()

    def look(value: t.Any, condition: bool = False) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                look(inner, key in ("when", "that", "var"))
        elif isinstance(value, list):
            for inner in value:
                look(inner, condition)
        elif isinstance(value, str):
            found.update(jinja2.meta.find_undeclared_variables(PLAIN.parse("{{ " + value + " }}" if condition else value)))

    look(plays)
    for task in (task for play in plays for task in play["tasks"]):
        role = task.get("ansible.builtin.include_role", {}).get("name", "").removeprefix("homelab.healer.")
        defaults = COLLECTION / f"roles/{role}/defaults/main.yml"
        if role and not task.get("vars") and defaults.exists():
            found.update(yaml.safe_load(defaults.read_text()))
            look(yaml.safe_load(defaults.read_text()))
    return found


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_every_question_is_one_that_the_playbook_reads(template: dict[str, t.Any]) -> None:
    file = platforms.playbook_file(template)
    assert (ROOT / file).is_symlink(), file  # AWX lists files that are links, and no playbooks by name
    read = read_by(Path(file).stem)
    asked = {question["variable"] for question in template["survey"]}
    assert asked - read == set()
    assert not any(platforms_refused(name) for name in asked)


def platforms_refused(name: str) -> bool:
    from ansible_collections.homelab.healer.plugins.plugin_utils.ledger import OURS  # noqa: PLC0415 (it needs Ansible's own modules)

    return bool(OURS.fullmatch(name))


def test_every_playbook_has_a_template() -> None:
    playbooks = {path.stem for path in (COLLECTION / "playbooks").glob("*.yml")}
    assert {Path(platforms.playbook_file(template)).stem for template in TEMPLATES} == playbooks - WITHOUT_A_TEMPLATE
    assert len(set(NAMES)) == len(NAMES)
    assert {schedule["template"] for schedule in TOLD["platforms_schedules"]} <= set(NAMES)


@pytest.mark.parametrize("template", TEMPLATES, ids=NAMES)
def test_both_ask_the_same_and_awx_takes_its_survey(template: dict[str, t.Any]) -> None:
    survey = platforms.awx_survey(template)
    questions = survey.get("spec", [])
    assert not questions or wrong_in_survey(survey) == ""
    other = platforms.semaphore_survey(template)
    assert [(one["variable"], one["question_name"], one["required"], one.get("choices", [])) for one in questions] == [
        (two["name"], two["title"], two["required"], [value["value"] for value in two["values"]]) for two in other
    ]


WRONG: list[tuple[dict[str, t.Any], str]] = [
    ({"type": "number"}, "there is no type number"),
    ({"required": "yes"}, "required is missing"),
    ({"default": 4}, "of another type"),
    ({"min": "1"}, "min is no whole number"),
    ({"type": "multiplechoice"}, "it has no choices"),
    ({"type": "multiplechoice", "choices": ["a"], "default": "b"}, "none of its choices"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _change, words in WRONG])
def test_a_survey_that_awx_would_refuse_is_found(change: dict[str, t.Any], words: str) -> None:
    good = {"type": "text", "question_name": "Which?", "variable": "which", "required": True}
    assert wrong_in_survey({"name": "", "description": "", "spec": [good]}) == ""
    assert words in wrong_in_survey({"name": "", "description": "", "spec": [{**good, **change}]})
    assert "twice" in wrong_in_survey({"name": "", "description": "", "spec": [good, good]})
    assert wrong_in_survey({"name": "", "description": "", "spec": []})


def hide_nothing(run: Run, server: Rest) -> None:
    """Fail where a run showed a secret or the token, even when asked to show much."""
    for secret in (HIDDEN, server.token):
        assert secret not in run.output


class Setup:
    """Runs of a playbook that sets a server up, with only what that needs."""

    def __init__(self, folder: Path, playbook: str, server: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.controller = Controller(folder)
        self.server = server
        self.playbook = f"homelab.healer.{playbook}"
        monkeypatch.setenv("CONTROLLER_HOST", server.url)
        monkeypatch.setenv("CONTROLLER_OAUTH_TOKEN", server.token)
        monkeypatch.setenv("SEMAPHORE_TOKEN", server.token)

    def play(self, *arguments: str, **variables: t.Any) -> Run:
        self.server.calls.clear()
        run = self.controller.play(self.playbook, *arguments, **variables)
        hide_nothing(run, self.server)
        return run


def changes(run: Run) -> list[str]:
    return [event["task"] for event in run.events if event["result"].get("changed")]


@pytest.fixture
def awx() -> t.Iterator[Awx]:
    playbooks = {f"playbooks/{path.name}" for path in (ROOT / "playbooks").glob("*.yml")}
    with Awx(playbooks).running() as server:
        yield server


@pytest.fixture
def awx_setup(awx: Awx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    try:
        folder = awx_collection()
    except LabError as error:
        pytest.skip(str(error))
    setup = Setup(tmp_path, "awx_setup", awx, monkeypatch)
    environment = Controller.environment
    monkeypatch.setattr(Controller, "environment", lambda self, collections=ROOT: {**environment(self), "ANSIBLE_COLLECTIONS_PATH": f"{ROOT}:{folder}"})
    return setup


FEW = ["heal_lxc_memory", "heal_pg_bloat", "heal_scheduled", "recover", "approve"]


def test_awx_is_set_up_once_and_foretold_each_time(awx: Awx, awx_setup: Setup) -> None:
    given = {"awx_setup_repository": REPOSITORY, "awx_setup_secrets": SECRETS, "awx_setup_templates": FEW}
    run = awx_setup.play("--check", awx_setup_repository=REPOSITORY, awx_setup_secrets=SECRETS)
    assert (run.returncode, awx.writes()) == (0, []), run.output
    assert "Not looked at in check mode, as what it needs is not there yet: homelab.healer.heal_lxc_memory" in " ".join(run.output.split())

    run = awx_setup.play("-vvv", **given)
    assert run.returncode == 0, run.output
    assert "SHADOW MODE" in run.output
    for arguments in ((), ("--check",)):
        again = awx_setup.play(*arguments, **given)
        assert (again.returncode, changes(again), awx.writes()) == (0, [], []), again.output

    templates = awx.rows("job_templates")
    assert set(templates) == {f"homelab.healer.{name}" for name in FEW}
    memory = templates["homelab.healer.heal_lxc_memory"]
    assert (memory["playbook"], memory["ask_variables_on_launch"], memory["ask_limit_on_launch"]) == ("playbooks/heal_lxc_memory.yml", True, True)
    assert awx.survey("job_templates", "homelab.healer.heal_lxc_memory") == platforms.awx_survey(TEMPLATES[NAMES.index("heal_lxc_memory")])
    assert awx.survey("job_templates", "homelab.healer.recover") == {}
    approve = templates["homelab.healer.approve"]
    assert (approve["ask_variables_on_launch"], approve["ask_limit_on_launch"]) == (False, False)
    assert json.loads(templates["homelab.healer.heal_scheduled"]["extra_vars"]) == {"remediate_shadow": True}
    assert json.loads(templates["homelab.healer.recover"]["extra_vars"]) == {}
    assert json.loads(memory["extra_vars"]) == platforms.awx_variables(TEMPLATES[NAMES.index("heal_lxc_memory")], live=False)

    assert {name: row["injectors"] for name, row in awx.rows("credential_types").items()} == {
        f"homelab.healer.{name}": {"env": {name: "{{ secret }}"}}
        for name in ("HEALER_LEDGER_PASSWORD", "HEALER_TELEGRAM_TOKEN", "HEALER_AWX_TOKEN", "PROXMOX_TOKEN_SECRET", "PGPASSWORD", "SECOND_CLUSTER")
    }
    assert {row["name"]: row["inputs"] for row in awx.rows("credentials").values()} == {
        f"homelab.healer.{name}": {"secret": value} for name, value in SECRETS.items()
    }
    given_to = {name: set(awx.linked("job_templates", f"homelab.healer.{name}", "credentials")) for name in ("heal_pg_bloat", "recover", "approve")}
    own, postgresql = {"homelab.healer.SECOND_CLUSTER"}, {"homelab.healer.PGPASSWORD"}
    assert given_to["heal_pg_bloat"] == {*own, *postgresql, "homelab.healer.HEALER_AWX_TOKEN"}  # which asks AWX who approved
    assert given_to["recover"] == {*own, *postgresql, "homelab.healer.PROXMOX_TOKEN_SECRET"}
    assert given_to["approve"] == own

    workflow = platforms.workflow_name({"name": "heal_lxc_memory"})
    assert set(awx.rows("workflow_job_templates")) == {workflow, platforms.workflow_name({"name": "heal_pg_bloat"})}
    assert [question["variable"] for question in awx.survey("workflow_job_templates", workflow)["spec"]] == ["vmid", "memory"]
    nodes = awx.nodes(workflow)
    assert {name: (node["job_type"], node["leads_to"]) for name, node in nodes.items()} == {
        "plan": ("check", ["approve"]),
        "approve": (None, ["apply"]),
        "apply": ("run", []),
    }
    assert nodes["plan"]["runs"] == nodes["apply"]["runs"] == memory
    for words in ('node "plan"', "template homelab.healer.heal_lxc_memory", "plan_id", "does not approve anything in place of the policy"):
        assert words in " ".join(nodes["approve"]["runs"]["description"].split())
    assert {row["name"]: (awx.lists["job_templates"][row["unified_job_template"]]["name"], row["enabled"]) for row in awx.rows("schedules").values()} == {
        "heal every 10 minutes": ("homelab.healer.heal_scheduled", True),
        "recover every 5 minutes": ("homelab.healer.recover", True),
    }

    awx.rows("job_templates")["homelab.healer.recover"]["description"] = "somebody's own words"
    assert changes(awx_setup.play("--check", **given)) == ["homelab.healer.awx_setup : Make the job templates"]
    assert awx.writes() == []
    live = awx_setup.play(awx_setup_live=True, awx_setup_update_secrets=True, **{**given, "awx_setup_secrets": {**SECRETS, "PGPASSWORD": f"{HIDDEN}-new"}})
    assert live.returncode == 0, live.output
    assert "LIVE" in live.output
    assert json.loads(awx.rows("job_templates")["homelab.healer.heal_scheduled"]["extra_vars"]) == {}
    assert awx.rows("credentials")["homelab.healer.PGPASSWORD"]["inputs"] == {"secret": f"{HIDDEN}-new"}
    assert SECRET not in json.dumps(awx.lists["credentials"])


@pytest.mark.long
def test_awx_takes_every_template(awx: Awx, awx_setup: Setup) -> None:
    run = awx_setup.play(awx_setup_repository=REPOSITORY)
    assert run.returncode == 0, run.output
    assert set(awx.rows("job_templates")) == {f"homelab.healer.{name}" for name in NAMES}
    assert len(awx.rows("workflow_job_templates")) == sum(template.get("look_first", False) for template in TEMPLATES)
    again = awx_setup.play(awx_setup_repository=REPOSITORY)
    assert (again.returncode, changes(again), awx.writes()) == (0, [], []), again.output


def test_a_template_that_nobody_knows_is_told(awx: Awx, awx_setup: Setup) -> None:
    run = awx_setup.play(awx_setup_repository=REPOSITORY, awx_setup_templates=["heal_everything"])
    assert run.returncode != 0
    assert "there are no templates heal_everything. awx_setup_templates may have heal_lxc_memory" in " ".join(run.output.split())
    assert awx.writes() == []


@pytest.mark.long
@pytest.mark.parametrize("later", [False, True], ids=["2024-10", "later"])
def test_semaphore_is_set_up_once_and_foretold_each_time(later: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Semaphore(later).running() as server:
        setup = Setup(tmp_path, "semaphore_setup", server, monkeypatch)
        given = {"semaphore_setup_url": f"{server.url}/", "semaphore_setup_repository": REPOSITORY, "semaphore_setup_secrets": SECRETS}
        run = setup.play("--check", **given)
        assert (run.returncode, server.writes()) == (0, []), run.output
        assert "would make homelab.healer.heal_lxc_memory" in run.output

        run = setup.play("-vvv", **given)
        assert run.returncode == 0, run.output
        for arguments in ((), ("--check",)):
            again = setup.play(*arguments, **given)
            assert (again.returncode, changes(again), server.writes()) == (0, [], []), again.output

        rows = server.rows("templates")
        assert {name: row["survey_vars"] for name, row in rows.items()} == {
            platforms.job_name(template): platforms.semaphore_survey(template) for template in TEMPLATES
        }
        shadow = json.loads(rows["homelab.healer.heal_scheduled"]["arguments"])
        assert (shadow[0], json.loads(shadow[1])) == ("--extra-vars", {"remediate_shadow": True})
        assert {secret["name"]: (secret["type"], secret["secret"]) for secret in server.secrets.values()} == {
            name: ("env", value) for name, value in SECRETS.items()
        }
        assert {row["name"]: (row["cron_format"], row["active"]) for row in server.rows("schedules").values()} == {
            "heal every 10 minutes": ("*/10 * * * *", True),
            "recover every 5 minutes": ("*/5 * * * *", True),
        }

        # what somebody has added stays, and what is ours comes back
        (environment,) = server.lists["environment"].values()
        environment["env"] = '{"LANG": "C.UTF-8"}'
        rows["homelab.healer.recover"]["playbook"] = "playbooks/other.yml"
        new = {
            **given,
            "semaphore_setup_secrets": {**SECRETS, "PGPASSWORD": f"{HIDDEN}-new"},
            "semaphore_setup_live": True,
            "semaphore_setup_update_secrets": True,
        }
        run = setup.play(**new)
        assert run.returncode == 0, run.output
        (environment,) = server.lists["environment"].values()
        assert environment["env"] == '{"LANG": "C.UTF-8"}'
        rows = server.rows("templates")
        assert (rows["homelab.healer.recover"]["playbook"], rows["homelab.healer.heal_scheduled"]["arguments"]) == ("playbooks/recover.yml", "[]")
        assert sorted(secret["secret"] for secret in server.secrets.values()) == sorted({**SECRETS, "PGPASSWORD": f"{HIDDEN}-new"}.values())


def test_a_token_that_semaphore_does_not_know_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Semaphore().running() as server:
        setup = Setup(tmp_path, "semaphore_setup", server, monkeypatch)
        run = setup.play(semaphore_setup_url=server.url, semaphore_setup_token="another")
        assert run.returncode != 0
        assert "HTTP Error 401" in run.output
        assert "whether the token is valid" in " ".join(run.output.split())
        run = setup.play(semaphore_setup_url="", semaphore_setup_token="")
        assert "cannot reach Semaphore: there is no address" in " ".join(run.output.split())


TEXT, FLAG, WHOLE = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}


def rows_of(needed: t.Sequence[str], /, **fields: t.Any) -> dict[str, t.Any]:
    return {"type": "array", "items": {"type": "object", "required": list(needed), "properties": fields, "additionalProperties": False}}


SURVEY = rows_of(
    ["name", "title", "required", "type"],
    name=TEXT,
    title=TEXT,
    description=TEXT,
    required=FLAG,
    type={"enum": ["", "int", "enum"]},
    values=rows_of(["name", "value"], name=TEXT, value=TEXT),
)
BACKUP = {
    "type": "object",
    "required": ["meta", "templates", "repositories", "keys", "views", "inventories", "environments"],
    "properties": {
        "meta": rows_of(["name"], name=TEXT, alert=FLAG, alert_chat=TEXT, max_parallel_tasks=WHOLE, type=TEXT)["items"],
        "keys": rows_of(["name", "type"], name=TEXT, type={"enum": ["none", "ssh", "login_password", "string"]}),
        "views": rows_of(["title", "name"], title=TEXT, name=TEXT, position=WHOLE),
        "repositories": rows_of(["name", "git_url", "git_branch", "ssh_key"], name=TEXT, git_url=TEXT, git_branch=TEXT, ssh_key=TEXT),
        "inventories": rows_of(["name", "type"], name=TEXT, inventory=TEXT, type={"enum": ["static", "static-yaml", "file"]}, ssh_key=TEXT, become_key=TEXT),
        "environments": rows_of(["name", "json"], name=TEXT, json=TEXT, env=TEXT, password=TEXT),
        "schedules": rows_of(["name", "cron_format", "template"], name=TEXT, cron_format=TEXT, active=FLAG, template=TEXT),
        "integrations": {"type": "array", "maxItems": 0},
        "integration_aliases": {"type": "array", "maxItems": 0},
        "templates": rows_of(
            ["name", "playbook", "repository", "inventory", "app"],
            name=TEXT,
            playbook=TEXT,
            description=TEXT,
            arguments=TEXT,
            allow_override_args_in_task=FLAG,
            type={"enum": ["", "build", "deploy"]},
            app=TEXT,
            autorun=FLAG,
            suppress_success_alerts=FLAG,
            survey_vars=SURVEY,
            inventory=TEXT,
            repository=TEXT,
            environment=TEXT,
            environments={"type": "array", "items": TEXT},
            view=TEXT,
            vaults={"type": "array", "maxItems": 0},
            cron=TEXT,
        ),
    },
    "additionalProperties": False,
}
"""The types of Semaphore's backups, those of October 2024 and later ones together: each reader takes what it knows and passes over the rest."""


def wrong_links(project: dict[str, t.Any]) -> list[str]:
    """Names that lead nowhere, or to two, which Semaphore refuses."""
    names = {
        kind: [row.get("title", row["name"]) for row in project[kind]] for kind in ("keys", "views", "repositories", "inventories", "environments", "templates")
    }
    links = [(row["ssh_key"], "keys") for kind in ("repositories", "inventories") for row in project[kind]]
    for row in project["templates"]:
        links += [(row["repository"], "repositories"), (row["inventory"], "inventories"), (row["environment"], "environments"), (row["view"], "views")]
        links += [(name, "environments") for name in row["environments"]]
    links += [(row["template"], "templates") for row in project["schedules"]]
    return [name for name, kind in links if names[kind].count(name) != 1]


def test_the_project_file_is_what_semaphore_restores_and_what_is_made_now(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = tmp_path / "project.json"
    for arguments in (("--check",), (), ()):
        run = Controller(tmp_path).play("homelab.healer.semaphore_setup", *arguments, semaphore_setup_path=str(made))
        assert run.returncode == 0, run.output
        assert made.exists() == (arguments == ())
    assert changes(run) == []
    assert made.read_text() == (PLATFORMS / "semaphore.json").read_text(), "make it anew: semaphore_setup with semaphore_setup_path"
    project = json.loads(made.read_text())
    jsonschema.validate(project, BACKUP)
    assert wrong_links(project) == []
    broken = copy.deepcopy(project)
    broken["templates"][0]["inventory"] = "another"
    assert wrong_links(broken) == ["another"]
    assert not any(row["active"] for row in project["schedules"])


def test_an_execution_environment_can_be_made(tmp_path: Path) -> None:
    pytest.importorskip("ansible_builder")
    builder = Path(sys.executable).with_name("ansible-builder")
    context = tmp_path / "context"
    create = [str(builder), "create", "--file", str(ROOT / "execution-environment.yml"), "--context", str(context)]
    done = subprocess.run(create, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FROM $EE_BASE_IMAGE" in (context / "Dockerfile").read_text()
    (tmp_path / "ansible_collections").symlink_to(ROOT / "ansible_collections")
    done = subprocess.run([str(builder), "introspect", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = yaml.safe_load(done.stdout)
    needed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith(("#", "ansible-core"))]
    built = [line for line in (context / "_build/requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert sorted(line.split("  #")[0] for line in found["python"]) == sorted(needed) == sorted(built)
    assert any(line.startswith("openssh-clients") for line in found["system"])


BOUND = platforms.awx_variables(TEMPLATES[NAMES.index("heal_docker_runaway")], live=False)
"""What the template is run with in AWX."""
LOOKED_AT = {"awx_workflow_job_name": platforms.workflow_name(TEMPLATES[NAMES.index("heal_docker_runaway")])}
"""What AWX says to a job of the workflow."""


@pytest.mark.long
def test_only_the_plan_that_was_looked_at_is_done(own_docker: OwnEngine, controller: Controller) -> None:
    """As the last node of a workflow runs it, with the first one's result among its extra variables."""
    own_docker.run("app", BURN)
    planned = controller.heal("--check", container="app", cpus="0.2", **BOUND, **LOOKED_AT).record
    assert planned["plan_id"]

    def apply(ids: list[str], cpus: str = "0.2") -> Run:
        return controller.heal(container="app", cpus=cpus, remediations=[{"plan_id": plan} for plan in ids], **BOUND)

    for ids, cpus in ((["0" * 64], "0.2"), ([], "0.2"), ([""], "0.2"), ([planned["plan_id"][:8]], "0.2"), ([planned["plan_id"]], "0.3")):
        _denied(apply(ids, cpus))
    _denied(controller.heal(container="app", cpus="0.2", **BOUND, **LOOKED_AT))  # nothing was passed on
    assert own_docker.host_config("app")["NanoCpus"] == 0
    run = apply([planned["plan_id"]])
    assert (run.returncode, run.record["outcome"], run.record["plan_id"]) == (0, "healed", planned["plan_id"]), run.output


def _denied(run: Run) -> None:
    """Assert that a run was refused as by the gate, and did nothing."""
    record = run.record
    assert (run.returncode != 0, record["outcome"], record["gate"]["word"], record["results"]) == (True, "denied", "refused", []), run.output
    assert record["why"].startswith(f"this is plan {record['plan_id']}, and only ")
    assert "what is wrong has changed since it was looked at" in record["why"]


ODD: dict[str, t.Any] = {
    "nothing": "",
    "null": None,
    "a number": 5,
    "true": True,
    "a map": {"any": True},
    "a template that is empty": "{{ [] }}",
    "a template that fails": "{{ not_there }}",
    "any and more": "any,0000",
}


@pytest.mark.parametrize("odd", sample(ODD, "null"))
def test_what_names_no_plan_lets_none_be_done(own_docker: OwnEngine, controller: Controller, odd: str) -> None:
    own_docker.run("app", BURN)
    run = controller.heal(container="app", cpus="0.2", remediate_only_plans=ODD[odd])
    assert run.returncode != 0, run.output
    assert own_docker.host_config("app")["NanoCpus"] == 0


def test_a_plan_that_was_looked_at_is_not_approved_by_that(own_docker: OwnEngine, controller: Controller) -> None:
    own_docker.run("app", BURN)
    controller.policy(rules=[{"name": "ask", "match": {}, "decision": "approve"}])
    plan = controller.heal("--check", container="app", cpus="0.2").record["plan_id"]
    run = controller.heal(container="app", cpus="0.2", remediate_only_plans=[plan])
    assert (run.record["outcome"], run.record["gate"]["rule"]) == ("denied", "ask"), run.output
    assert "nobody" in run.record["why"]
