"""A yes in AWX, and above all what is none: each against AWX's API on loopback, with nothing written to the target."""

from __future__ import annotations

import json
import time
import typing as t
from pathlib import Path

import pytest
import trustme
import yaml

from ansible_collections.homelab.healer.plugins.modules import approval
from tests.lab.approvals import ANN, Answer, House
from tests.lab.awx import Awx, Ran, told_at
from tests.lab.proxmox.client import Proxmox
from tests.lab.rest import Row
from tests.lab.telegram import bot
from tests.test_approval import writes
from tests.test_documentation import matches, own

pytestmark = pytest.mark.xdist_group("approval")
APPROVER = 7
WHO = f"ann (AWX user {APPROVER})"


@pytest.fixture
def awx() -> t.Iterator[Awx]:
    with Awx(()).running() as server:
        yield server


@pytest.fixture
def house(tmp_path: Path, pve: Proxmox, awx: Awx) -> t.Iterator[House]:
    with bot() as server:
        opened = House(tmp_path, pve, server)
        opened.configure(None, configured(awx))
        opened.policy(channels=["awx"])
        yield opened
        opened.close()


def configured(awx: Awx, **changes: t.Any) -> dict[str, t.Any]:
    return {"host": awx.url, "token": awx.token, "approvers": [APPROVER], "timeout": 5, **changes}


def record(plan_id: str, **changes: t.Any) -> Row:
    """What the job that planned passed on, as far as it matters."""
    target = {"kind": "lxc", "id": 201, "name": "201 (web)", **changes.pop("target", {})}
    return {"id": "20260131T235959Z-0a1b2c3d", "host": "pve", "target": target, "plan_id": plan_id, "outcome": "planned", **changes}


class Case(t.NamedTuple):
    """A plan that the gate wants approved, and a workflow of AWX in which it was."""

    house: House
    awx: Awx
    ran: Ran
    question: Answer

    def ask(self, **options: t.Any) -> Answer:
        mine = {name: self.question[name] for name in ("remediation", "fence")}
        return self.house.call("asked", **{**mine, "run": {**ANN, "job": f"JOB_ID={self.ran.apply['id']}"}, **options})


@pytest.fixture
def case(house: House, awx: Awx) -> Case:
    question, decision = house.planned()
    assert decision["word"] == "ask"
    return Case(house, awx, awx.ran([record(decision["plan_id"])]), question)


def test_a_yes_in_awx_approves_and_is_written_down(case: Case) -> None:
    told = case.ask()
    assert (told["word"], told["who"], told["channel"], told["ways"]) == ("approved", WHO, "awx", ["awx"]), told
    matches(yaml.safe_load(approval.RETURN), own(told))
    assert [call.method for call in case.awx.calls] == ["GET"] * 4
    numbers = {"job": case.ran.apply["id"], "workflow": case.ran.workflow["id"], "approval": case.ran.approval["id"], "planned_by": case.ran.plan["id"]}
    with case.house.ledger() as ledger:
        kept = ledger.latest("one", "approved")
    assert (kept["approver"], kept["channel"]) == (WHO, "awx")
    assert {name: kept["awx"][name] for name in numbers} == numbers
    assert case.awx.token not in case.house.controller.ledger.read_bytes().decode("latin-1") + json.dumps(told)
    assert case.house.gate(**case.question)["word"] == "allowed"


def refused(told: Answer, case: Case, why: str) -> None:
    """Assert that it was a no at once, with this reason, and that the ledger has it."""
    assert told["word"] == "denied", told
    assert why in told["why"]
    assert case.awx.token not in json.dumps(told)
    row = case.house.row("one")
    assert (row.state, row.approver, row.why) == ("denied", "", told["why"])
    assert (case.house.pve.writes(), case.awx.writes()) == ([], [])
    assert case.house.gate(**case.question)["failed"]


# What AWX says


def _set(what: str, **changes: t.Any) -> t.Callable[[Case], object]:
    return lambda case: getattr(case.ran, what).update(changes)


def _by(**changes: t.Any) -> t.Callable[[Case], object]:
    return lambda case: case.ran.approval["summary_fields"]["approved_or_denied_by"].update(changes)


def _links(node: str, **changes: t.Sequence[str]) -> t.Callable[[Case], object]:
    def change(case: Case) -> None:
        case.ran.nodes[node].update({link: [case.ran.nodes[other]["id"] for other in others] for link, others in changes.items()})

    return change


def _node(node: str, **changes: t.Any) -> t.Callable[[Case], object]:
    return lambda case: case.ran.nodes[node].update(changes)


def _kind(node: str, kind: str) -> t.Callable[[Case], object]:
    return lambda case: case.ran.nodes[node]["summary_fields"]["job"].update(type=kind)


def _passed_on(make: t.Callable[[Row], t.Any]) -> t.Callable[[Case], object]:
    """Let the job that planned have passed on something else."""

    def change(case: Case) -> None:
        (planned,) = case.ran.plan["artifacts"]["remediations"]
        case.ran.plan["artifacts"] = {"remediations": make(planned)}

    return change


def _another_workflow(case: Case) -> None:
    """A node of another workflow, as if it were of this."""
    other = case.awx.ran(case.ran.plan["artifacts"]["remediations"])
    case.ran.nodes["approve"]["job"] = other.approval["id"]


def _more_nodes(case: Case) -> None:
    for number in range(200):
        case.awx.lists["workflow_job_nodes"][10_000 + number] = {**case.ran.nodes["plan"], "id": 10_000 + number, "job": None, "success_nodes": []}


NO: dict[str, tuple[t.Callable[[Case], object], str]] = {
    "not answered": (_set("approval", status="pending", finished=None), "is not approved (pending)"),
    "denied": (_set("approval", status="failed", failed=True), "is not approved (failed)"),
    "timed out": (_set("approval", status="failed", timed_out=True), "timed out"),
    "timed out and yet successful": (_set("approval", timed_out=True), "timed out"),
    "canceled": (_set("approval", status="canceled"), "is not approved (canceled)"),
    "a stranger": (_by(id=8, username="bob"), "AWX user 8 (bob), who approved it, is none of approvers"),
    "a number that begins alike": (_by(id=APPROVER * 10 + 1), "is none of approvers"),
    "a number as text": (_by(id=str(APPROVER)), "does not say who approved it"),
    "true": (_by(id=True), "does not say who approved it"),
    "an approver's name alone": (_by(id=8, username="ann"), "is none of approvers"),
    "somebody who is gone": (lambda case: case.ran.approval["summary_fields"].pop("approved_or_denied_by"), "does not say who approved it"),
    "a job that has ended": (_set("apply", status="successful"), "does not run (successful)"),
    "a job outside of workflows": (_set("apply", launch_type="manual"), "is part of no workflow"),
    "a job started again": (_set("apply", launch_type="relaunch", summary_fields={}), "is part of no workflow"),
    "a job without a node": (_node("apply", job=None), "not led to by one approval node alone"),
    "an approval of another workflow": (_another_workflow, "does not say that its nodes belong"),
    "a plan of another workflow": (_node("plan", workflow_job=1), "not led to by one job alone"),
    "a node after a failure": (_links("approve", success_nodes=[], failure_nodes=["apply"]), "not led to by one approval node alone"),
    "a node in any case": (_links("approve", success_nodes=[], always_nodes=["apply"]), "not led to by one approval node alone"),
    "a way around": (_links("plan", success_nodes=["approve", "apply"]), "not led to by one approval node alone"),
    "no approval before it": (_links("approve", success_nodes=[]), "not led to by one approval node alone"),
    "a job in its place": (_kind("approve", "job"), "not led to by one approval node alone"),
    "nothing planned before": (_links("plan", success_nodes=[]), "not led to by one job alone"),
    "planned after a failure": (_links("plan", success_nodes=[], failure_nodes=["approve"]), "not led to by one job alone"),
    "an update in the plan's place": (_kind("plan", "project_update"), "not led to by one job alone"),
    "more nodes than are told": (_more_nodes, "cannot be read"),
    "a plan that failed": (_set("plan", status="failed"), "did not end well in check mode"),
    "a plan that was no plan": (_set("plan", job_type="run"), "did not end well in check mode"),
    "another template": (_set("plan", job_template=4), "ran another template"),
    "no template": (lambda case: [row.update(job_template=None) for row in (case.ran.plan, case.ran.apply)], "ran another template"),
    "another inventory": (_set("plan", inventory=4), "had another inventory"),
    "other variables": (_set("plan", extra_vars='{"force": true}'), "had other variables"),
    "variables that cannot be read": (lambda case: [row.update(extra_vars="- a") for row in (case.ran.plan, case.ran.apply)], "had other variables"),
    "nothing passed on": (_set("plan", artifacts={}), "told 0 plans"),
    "hidden": (_set("plan", artifacts="$hidden due to Ansible no_log flag$"), "told 0 plans"),
    "healthy": (_passed_on(lambda planned: [{**planned, "plan_id": ""}]), "told 0 plans"),
    "two plans": (_passed_on(lambda planned: [planned, {**planned, "host": "pve2"}]), "told 2 plans"),
    "another plan": (_passed_on(lambda planned: [{**planned, "plan_id": "0" * 64}]), f"it was to plan {'0' * 64} of pve/lxc/201"),
    "a plan that begins alike": (_passed_on(lambda planned: [{**planned, "plan_id": planned["plan_id"][:12]}]), "it was to plan "),
    "a plan and more": (_passed_on(lambda planned: [{**planned, "plan_id": planned["plan_id"] + "0"}]), "it was to plan "),
    "another target": (_passed_on(lambda planned: [{**planned, "target": {"kind": "lxc", "id": 2010}}]), "of pve/lxc/2010, and this is plan"),
    "no target": (_passed_on(lambda planned: [{**planned, "target": None}]), "it was to plan "),
    "another host": (_passed_on(lambda planned: [{**planned, "host": "pve2"}]), "of pve2/lxc/201, and this is plan"),
    "asked before the plan was there": (_set("approval", created=told_at(time.time() - 7200)), "is older than the plan"),
    "answered before the plan was there": (
        lambda case: case.ran.approval.update(created=told_at(time.time() - 7200), finished=told_at(time.time() - 7100)),
        "is older than the plan",
    ),
    "answered before it was asked": (lambda case: case.ran.approval.update(finished=told_at(time.time() - 38)), "is older than the plan"),
    "answered in the future": (lambda case: case.ran.approval.update(finished=told_at(time.time() + 60)), "one of the clocks is wrong"),
    "answered too long ago": (
        lambda case: [
            case.ran.plan.update(finished=told_at(time.time() - 90)),
            case.ran.approval.update(created=told_at(time.time() - 80), finished=told_at(time.time() - 70)),
        ],
        "a question may be answered for 60 s",
    ),
    "no time": (_set("approval", finished=None), "does not say when"),
    "a time without a zone": (_set("approval", finished="2026-01-31T23:59:59"), "does not say when"),
}


@pytest.mark.parametrize("no", NO)
def test_what_is_no_yes_in_awx_is_none(case: Case, no: str) -> None:
    change, why = NO[no]
    change(case)
    refused(case.ask(), case, why)


# How AWX is asked


@pytest.mark.parametrize("job", ["", "JOB_ID=", "JOB_ID=0", "JOB_ID=12 ", "JOB_ID=-12", "JOB_ID=1_2", "JOB_ID=\u0661\u0662", "SEMAPHORE_TASK_ID=12"])
def test_what_is_no_job_of_awx_asks_nothing(case: Case, job: str) -> None:
    refused(case.ask(run={**ANN, "job": job}), case, "this run is no job of AWX (it has no JOB_ID)")
    assert case.awx.calls == []


def test_a_job_that_awx_does_not_know_is_refused(case: Case) -> None:
    """Also one whose number begins alike."""
    refused(case.ask(run={**ANN, "job": f"JOB_ID={case.ran.apply['id']}0"}), case, "HTTP 404 Not found.")


BAD: dict[str, tuple[dict[str, t.Any], str]] = {
    "no host": ({"host": ""}, "it is not the address of an AWX"),
    "no address": ({"host": "awx.example.org"}, "it is not the address of an AWX"),
    "no TLS": ({"host": "http://192.0.2.1"}, "without TLS"),
    "no token": ({"token": ""}, "it is empty, or no token"),
    "a token of two lines": ({"token": "a\r\nX-Other: b"}, "it is empty, or no token"),
    "no approvers": ({"approvers": []}, "lists no approvers"),
    "an approver by name": ({"approvers": ["ann"]}, "its element 1 is not the number of a user"),
    "any approver": ({"approvers": ["*"]}, "its element 1 is not the number of a user"),
    "true": ({"approvers": [True]}, "its element 1 is not the number of a user"),
    "no authority": ({"ca_path": "/nowhere/ca.pem"}, "there is no certificate of an authority"),
    "no time": ({"timeout": 0}, "it is not a number of seconds"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_configuration_that_cannot_be_used_asks_nothing(case: Case, bad: str) -> None:
    changes, why = BAD[bad]
    case.house.configure(None, configured(case.awx, **changes))
    refused(case.ask(), case, why)
    assert case.awx.calls == []


def test_without_a_configuration_it_is_no_way_to_answer(case: Case) -> None:
    case.house.configure(None)
    refused(case.ask(), case, "nobody can be asked by awx (no AWX is configured by healer_approval)")


def test_another_token_is_refused(case: Case) -> None:
    case.house.configure(None, configured(case.awx, token="another"))
    refused(case.ask(), case, "HTTP 401 Authentication credentials were not provided. Check the token")


def test_an_awx_that_is_down_is_no_yes(case: Case) -> None:
    with Awx(()).running() as other:
        pass
    case.house.configure(None, configured(other))
    refused(case.ask(), case, "Connection refused")


STRANGE = "that is not what AWX answers"
UNREAD = "cannot be read"
NODE: Row = {"id": 1, "workflow_job": 99, "job": 3, "success_nodes": [], "failure_nodes": [], "always_nodes": []}
REPLIES: dict[str, tuple[int, t.Any, str]] = {
    "jobs forbidden": (403, {"detail": "You do not have permission to perform this action."}, "HTTP 403 You do not have permission"),
    "jobs not well": (502, {}, "HTTP 502"),
    "jobs elsewhere": (302, {}, "HTTP 302"),
    "jobs nothing": (200, None, STRANGE),
    "jobs a list": (200, [], STRANGE),
    "jobs another": (200, {"id": 1, "type": "job", "status": "running"}, STRANGE),
    "workflow_jobs forbidden": (403, {}, "HTTP 403"),
    "workflow_jobs a list": (200, [], STRANGE),
    "workflow_jobs no list": (200, {"count": 0}, UNREAD),
    "workflow_jobs none": (200, {"results": [], "next": None}, UNREAD),
    "workflow_jobs nonsense": (200, {"results": [None], "next": None}, UNREAD),
    "workflow_jobs of another": (200, {"results": [NODE], "next": None}, UNREAD),
    "workflow_jobs no links": (200, {"results": [{**NODE, "success_nodes": None}], "next": None}, UNREAD),
    "workflow_approvals unseen": (404, {"detail": "Not found."}, "HTTP 404 Not found. Give the token's user the role"),
    "workflow_approvals another": (200, {"id": 1, "type": "workflow_approval", "status": "successful"}, STRANGE),
    "workflow_approvals another kind": (200, {"type": "job"}, STRANGE),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_that_is_none_is_no_yes(case: Case, monkeypatch: pytest.MonkeyPatch, reply: str) -> None:
    code, told, why = REPLIES[reply]
    answer = case.awx.answer

    def instead(method: str, path: str, *more: t.Any) -> tuple[int, t.Any]:
        return (code, told) if path.split("/")[3] == reply.partition(" ")[0] else answer(method, path, *more)

    monkeypatch.setattr(case.awx, "answer", instead)
    refused(case.ask(), case, why)


@pytest.mark.parametrize("known", [True, False])
def test_a_certificate_is_always_verified(house: House, tmp_path: Path, known: bool) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    with Awx(()).running(tls=folder) as awx:
        house.configure(None, configured(awx, ca_path=str(folder / "ca.pem" if known else tmp_path / "other.pem")))
        question, decision = house.planned()
        case = Case(house, awx, awx.ran([record(decision["plan_id"])]), question)
        if known:
            assert case.ask()["word"] == "approved"
        else:
            refused(case.ask(), case, "certificate verify failed")
            assert awx.calls == []


# What the ledger says


def test_an_answer_in_awx_counts_once(case: Case) -> None:
    """Neither for the same plan again, nor for another job of the same workflow."""
    assert case.ask()["word"] == "approved"
    assert case.house.call("denied", remediation="one")["word"] == "denied"
    question, _decision = case.house.planned("two")
    told = case.ask(remediation="two", fence=question["fence"])
    assert (told["word"], case.house.row("two").state) == ("denied", "denied")
    assert f"will not take approval {case.ran.approval['id']} of AWX: it was taken already, for remediation one" in told["why"]
    again = case.awx.ran(case.ran.plan["artifacts"]["remediations"])
    question, _decision = case.house.planned("three")
    job = {**ANN, "job": f"JOB_ID={again.apply['id']}"}
    assert case.ask(remediation="three", fence=question["fence"], run=job)["word"] == "approved"


@pytest.mark.parametrize("said", [{}, {"channels": ["command"]}])
def test_a_policy_that_does_not_name_awx_does_not_ask_it(case: Case, said: dict[str, t.Any]) -> None:
    """Not even where it says nothing of channels: that is as it was before there was this one."""
    case.house.policy(**{"wait": "1s", **said})
    question, _decision = case.house.planned("two", vmid=202)
    told = case.ask(remediation="two", fence=question["fence"])
    assert (told["word"], told["ways"], case.awx.calls) == ("denied", ["command"], []), told


def test_where_somebody_else_may_answer_a_no_of_awx_is_only_noted(case: Case) -> None:
    case.house.policy(wait="1s", channels=["awx", "command"])
    question, _decision = case.house.planned("two", vmid=202)
    told = case.ask(remediation="two", fence=question["fence"])
    assert told["word"] == "denied"
    assert told["why"].startswith("nobody answered in time (will not take approval ")
    assert "it was to plan" in told["notes"][0]


def test_check_mode_does_not_ask_awx(case: Case) -> None:
    assert "failed" not in case.ask(check=True)
    assert (case.awx.calls, case.house.row("one").state) == ([], "planned")


# The whole chain


def test_an_apply_job_does_what_was_approved_in_its_workflow(house: House, awx: Awx, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = house.play("homelab.healer.lxc_resources", "--check").record
    assert (planned["outcome"], awx.calls) == ("planned", [])
    ran = awx.ran([planned])
    monkeypatch.setenv("JOB_ID", str(ran.apply["id"]))
    run = house.play(remediations=[planned], remediate_only_plans=[planned["plan_id"]])
    assert (run.returncode, run.record["outcome"], writes(house.pve)) == (0, "healed", ["PUT config"]), run.output
    assert run.record["approval"] == {"word": "approved", "who": WHO, "channel": "awx", "why": f"{WHO} approved plan {planned['plan_id'][:8]}"}
    assert run.record["id"] != planned["id"]
    assert awx.token not in run.output
    assert awx.writes() == []


def test_an_apply_job_denies_what_was_not(house: House, awx: Awx, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = house.play("homelab.healer.lxc_resources", "--check").record
    monkeypatch.setenv("JOB_ID", str(awx.ran([planned], user=8, username="bob").apply["id"]))
    run = house.play()
    assert (run.returncode, run.record["outcome"], house.pve.writes()) == (2, "denied", []), run.output
    assert "AWX user 8 (bob), who approved it, is none of approvers" in run.record["why"]
