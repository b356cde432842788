"""Trouble at each request of the modules that change containers of Proxmox VE, and of the whole chain: what they say, and what they leave behind."""

from __future__ import annotations

import re
import subprocess
import sys
import types
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils import _proxmox, _run
from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.modules import lxc_power, lxc_resources, lxc_snapshot
from tests.lab.modules import call
from tests.lab.playbooks import Controller, Run
from tests.lab.proxmox.client import Proxmox

HEALER = "healer@pve!healer"
PHRASE = "the moon stands in the way"
LOG = ["opening the volume", f"{PHRASE}, says the storage"]
EVERYWHERE: dict[str, dict[str, t.Any]] = {
    "error": {"kind": "error", "status": 500, "reason": PHRASE},
    "denied": {"kind": "error", "status": 403, "reason": f"Permission check failed (/vms/200, VM.Moon): {PHRASE}"},
    "unreachable": {"kind": "unreachable", "reason": f"No route to host: {PHRASE}"},
    "delay": {"kind": "delay", "seconds": 0.05},
    "late": {"kind": "late", "seconds": 3},
    "lost": {"kind": "lost"},
    "cut": {"kind": "cut"},
}
"""What can befall any request."""
SILENCE: dict[str, dict[str, t.Any]] = {"silence": {"kind": "error", "status": 500, "reason": PHRASE, "times": -1}}
"""What can befall any reading: it and those like it are never answered again."""
TASKS: dict[str, dict[str, t.Any]] = {
    "stuck": {"kind": "stuck"},
    "failed": {"kind": "failed", "exitstatus": PHRASE, "log": LOG},
    "warnings": {"kind": "warnings", "log": [f"WARN: {PHRASE}"]},
}
"""What can befall the task that a request starts."""
KINDS = {**EVERYWHERE, **SILENCE, **TASKS}


@dataclass(frozen=True)
class Job:
    """A call of a module that changes container 200, what was there before, and how the step is called that it takes."""

    module: types.ModuleType
    options: dict[str, t.Any]
    step: str
    before: dict[str, t.Any] = field(default_factory=dict)


BEFORE = {"before": {"age": 90}}
JOBS = {
    "memory": Job(lxc_resources, {"memory": "4096"}, "cannot change 200 (postgres)"),
    "present": Job(lxc_snapshot, {"name": "made"}, "cannot snapshot 200 (postgres) as made"),
    "absent": Job(lxc_snapshot, {"name": "before", "state": "absent"}, "cannot remove snapshot before of 200 (postgres)", BEFORE),
    "expired": Job(
        lxc_snapshot,
        {"state": "absent"},
        "cannot remove snapshot before of 200 (postgres)",
        {"before": {"age": 90, "description": "[homelab.healer prefix= expires=1000]"}},
    ),
    "rolled_back": Job(
        lxc_snapshot,
        {"name": "before", "state": "rolled_back", "allow_data_loss": True},
        "200 (postgres) back",
        BEFORE,
    ),
    "restarted": Job(lxc_power, {"state": "restarted"}, "200 (postgres)"),
    "stopped": Job(lxc_power, {"state": "stopped"}, "200 (postgres)"),
}


@dataclass(frozen=True)
class Place:
    """One request of a run: the ``number``-th of a method whose path matches."""

    method: str
    path: str
    number: int

    def __str__(self) -> str:
        return f"{self.method} {self.path}{f' #{self.number + 1}' if self.number else ''}"

    @property
    def writes(self) -> bool:
        return self.method != "GET"

    @property
    def tells_of_a_task(self) -> bool:
        return "/tasks/UPID" in self.path


def places(requests: t.Sequence[t.Mapping[str, t.Any]]) -> list[Place]:
    """The requests of a run, each by what tells it apart from the others; a task is looked at as often as it takes, which counts once."""
    found: list[Place] = []
    for seen in requests:
        if seen["login"]:
            continue
        path = "^" + re.sub(r"UPID:[^/]*", "UPID[^/]*", re.sub(r"-\d{8}T\d{6}Z", r"-[^/]*", seen["path"])) + "$"
        number = sum(1 for place in found if (place.method, place.path) == (seen["method"], path))
        if not ("/tasks/UPID" in path and number):
            found.append(Place(seen["method"], path, number))
    return found


def script(pve: Proxmox, place: Place, fault: t.Mapping[str, t.Any]) -> None:
    pve.fault(place.method, place.path, after=place.number, **fault)


def settle(pve: Proxmox) -> None:
    """Let no fault remain, and all tasks come to their end."""
    pve.clear_faults()
    pve.release()
    for _round in range(50):
        if all(task["status"] != "running" for task in pve.tasks()):
            return
        pve.advance(5)
    raise AssertionError("a task does not end")


def looks(pve: Proxmox, vmid: int = 200) -> dict[str, t.Any]:
    """All that the modules may change about a container."""
    guest = pve.guest(vmid)
    config = {key: value for key, value in guest["config"].items() if key not in ("parent", "lock")}
    snapshots = {name: values.get("snapstate", "") for name, values in guest["snapshots"].items()}
    kernel = {key: value for key, value in guest["kernel"].items() if key != "cores"}
    return dict(config=config, snapshots=snapshots, lock=guest["lock"], status=guest["status"], starts=guest["starts"], kernel=kernel)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the lab a hundred seconds pass in one."""
    monkeypatch.setattr(_run, "STILL_UNDER_WAY", 0.1)
    monkeypatch.setattr(_proxmox, "FOUND_LATER", 0.3)
    monkeypatch.setattr(_proxmox, "UNHEARD", 0.3)
    monkeypatch.setattr(_proxmox, "TAKES_EFFECT", 0.3)
    monkeypatch.setattr(lxc_power, "MARGIN", 0)
    monkeypatch.setattr(_proxmox, "POLL_FIRST", 0.02)
    monkeypatch.setattr(_proxmox, "POLL_MOST", 0.1)


def begin(pve: Proxmox, job: Job) -> dict[str, t.Any]:
    """The state before a job, in which everything takes a tenth of a second."""
    pve.reset()
    pve.set_storage("local-zfs", delay=8)
    pve.set_guest(200, workload={"shutdown": 8, "start": 8})
    if job.before:
        pve.set_guest(200, snapshots=job.before)
        pve.set_guest(200, memory=3000)
    pve.clear()
    return looks(pve)


def do(pve: Proxmox, job: Job, timeout: int = 60, **options: t.Any) -> tuple[dict[str, t.Any], HealerError | None]:
    connection = {**pve.options_for(HEALER), "api_timeout": 1, "wait_lock": 0, **({} if job.module is lxc_resources else {"timeout": timeout})}
    return call(job.module, **{**connection, "vmid": [200], **options})


def fits(job: Job, kind: str, place: Place) -> bool:
    """Whether this kind of trouble can befall that request."""
    if kind in TASKS:
        return place.writes and job.module is not lxc_resources
    return not (kind in SILENCE and place.writes)


Good = t.Tuple[t.List[Place], t.Dict[str, t.Any]]


@pytest.fixture(scope="module")
def good_runs() -> dict[str, Good]:
    """The requests of each job without trouble, and how the container looks then; filled as they are needed."""
    return {}


def _good_run(pve: Proxmox, job: Job) -> Good:
    begin(pve, job)
    answer, error = do(pve, job, **job.options)
    assert (error, answer["changed"]) == (None, True)
    return places(pve.requests()), looks(pve)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", JOBS)
def test_trouble_at_each_request(pve: Proxmox, whole: bool, good_runs: dict[str, Good], name: str, kind: str) -> None:
    job = JOBS[name]
    if name not in good_runs:
        good_runs[name] = _good_run(pve, job)
    every, wanted = good_runs[name]
    run = [place for place in every if fits(job, kind, place)]
    turn = list(KINDS).index(kind) + list(JOBS).index(name)
    cells = [place for number, place in enumerate(run) if whole or place.writes or (number + turn) % 14 == 0]
    wrong = {}
    for place in cells:
        try:
            _one_cell(pve, job, kind, place, wanted)
        except AssertionError as failure:
            wrong[str(place)] = failure
    print(f"cells: {len(cells)} of {len(run)}")
    assert not wrong, "\n\n".join(f"{place}: {failure}" for place, failure in wrong.items())


def _one_cell(pve: Proxmox, job: Job, kind: str, place: Place, wanted: t.Mapping[str, t.Any]) -> None:
    before = begin(pve, job)
    script(pve, place, KINDS[kind])
    answer, error = do(pve, job, timeout=1 if kind == "stuck" else 60, **job.options)
    at_once = looks(pve)
    settle(pve)
    after = looks(pve)
    told = f"{error!r} changed={answer['changed']} undo={answer['undo']} {answer['results'] and answer['results'][0]['unknown']}"
    if error is None:
        assert (answer["changed"], at_once, after) == (True, wanted, wanted), told
        if kind == "warnings":
            assert any(PHRASE in note for note in answer["results"][0]["notes"]), answer
    else:
        _says(error, job, kind, place)
        unknown = any(result["unknown"] for result in answer["results"])
        assert answer["changed"] or (at_once == before and after == before), told
        assert not answer["changed"] or unknown or at_once != before, told
        assert not unknown or answer["changed"], told
    if kind in ("delay", "warnings"):
        assert error is None, told
    if answer["changed"]:
        _put_back(pve, job, answer, before, told)


def _says(error: HealerError, job: Job, kind: str, place: Place) -> None:
    said = error.as_dict()
    assert all(said[part] for part in ("code", "what", "why", "fix")), said
    hidden = place.path.endswith("/nodes/pve1/status$") and kind == "denied"  # that a token may not see a node is no failure of its own
    if kind in ("error", "denied", "unreachable", "silence", "failed") and not hidden:
        assert PHRASE in error.why, said
    if kind == "failed":
        assert LOG[-1] in error.why, said
        assert "UPID:pve1:" in error.why, said
    if place.writes or place.tells_of_a_task:
        assert job.step in error.what, said
    else:
        assert hidden or re.match(r"cannot (list|read|find|ask|connect)|changed 200 \(postgres\), but could not look", error.what) or job.step in error.what, (
            said
        )


def _put_back(pve: Proxmox, job: Job, answer: dict[str, t.Any], before: t.Mapping[str, t.Any], told: str) -> None:
    """The undo puts back what it promises."""
    more = {"allow_below_usage": True} if job.module is lxc_resources else {}
    for options in answer["undo"]:
        _answer, error = do(pve, job, **options, **more)
        assert error is None, (error, told)
    settle(pve)
    after = looks(pve)
    if answer["reversibility"] == "exact":
        assert after == before, told
    elif job.module is lxc_power:
        assert (after["status"], after["config"]) == (before["status"], before["config"]), told
    else:
        assert answer["undo"] == [], told


# the whole chain

QUICK: dict[str, t.Any] = {"lxc_memory_sample": 0.2, "lxc_memory_pause": 0, "lxc_memory_looks": 3, "lxc_memory_needed": 2, "lxc_memory_level": 60}
SNAPSHOT, CONFIG = "^/nodes/pve1/lxc/200/snapshot$", "^/nodes/pve1/lxc/200/config$"
REMOVAL = "^/nodes/pve1/lxc/200/snapshot/pre-[^/]*$"
USES = {"healed": {"memory": 2700}, "rolled_back": {"memory": 2040, "growth": 40}}
"""What the container uses: a database at its limit, or one that leaks, which more memory does not help."""
CHAIN: dict[str, list[Place]] = {
    "healed": [
        Place("GET", "^/cluster/resources$", 6),  # the point of return's
        Place("POST", SNAPSHOT, 0),
        Place("GET", "^/nodes/pve1/tasks/UPID[^/]*vzsnapshot[^/]*/status$", 0),
        Place("PUT", CONFIG, 0),
        Place("GET", "^/nodes/pve1/lxc/200/pending$", 1),  # what was written is looked at
        Place("GET", "^/nodes/pve1/lxc/200/status/current$", 4),  # a look of the verification
        Place("DELETE", REMOVAL, 0),
        Place("GET", "^/nodes/pve1/tasks/UPID[^/]*vzdelsnapshot[^/]*/status$", 0),
    ],
    "rolled_back": [
        Place("GET", CONFIG, 9),
        Place("PUT", CONFIG, 1),
        Place("GET", "^/nodes/pve1/lxc/200/pending$", 2),
        Place("DELETE", REMOVAL, 0),
    ],
}
"""Where trouble comes in the chain, by how the chain ends without it."""
CHOSEN = [
    ("healed", 1, "failed"),
    ("healed", 3, "error"),
    ("healed", 3, "lost"),
    ("rolled_back", 1, "error"),
]
"""The cells that are always run."""


def chain_cells() -> list[tuple[str, int, str]]:
    """All cells of the table of the chain."""
    found = []
    for end, where in CHAIN.items():
        for number, place in enumerate(where):
            tasks = TASKS if place.method in ("POST", "DELETE") else {}
            found += [(end, number, kind) for kind in {**EVERYWHERE, **tasks}]
    return found


@pytest.fixture
def impatient(pve: Proxmox, tmp_path: Path) -> Controller:
    """One that does not wait as long as people's playbooks do."""
    controller = Controller(tmp_path, proxmox={**pve.options_for(HEALER), "api_timeout": 2})
    controller.defaults["homelab.healer.lxc_snapshot"] = {"timeout": 3, "wait_lock": 1}
    controller.defaults["homelab.healer.lxc_resources"] = {"wait_lock": 1}
    return controller


def heal(controller: Controller) -> Run:
    role = {"name": "homelab.healer.lxc_memory"}
    return controller.play([{"ansible.builtin.include_role": role, "vars": {**QUICK, "lxc_memory_vmid": "200", "lxc_memory_size": "4096"}}])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The chain takes seconds for each cell, so all of them are for the whole run only."""
    if metafunc.function is test_trouble_in_the_chain:
        metafunc.parametrize(("end", "number", "kind"), chain_cells() if metafunc.config.getoption("--all") else CHOSEN)


def test_trouble_in_the_chain(pve: Proxmox, impatient: Controller, end: str, number: int, kind: str) -> None:
    pve.set_guest(200, workload=USES[end])
    before, place = looks(pve), CHAIN[end][number]
    script(pve, place, KINDS[kind])
    run = heal(impatient)
    hit = [seen for seen in pve.requests() if seen["method"] == place.method and re.search(place.path, seen["path"])]
    assert len(hit) > place.number, "the trouble did not come"
    settle(pve)
    after, record = looks(pve), run.record
    told = f"{record['outcome']}: {record['why']}\n{after}\n{run.output if record['outcome'] == 'needs_human' else ''}"
    assert "Traceback" not in run.output
    assert after["starts"] == before["starts"], told
    if kind in ("failed", "stuck") and place.method == "DELETE":  # what Proxmox VE leaves where it failed is a lock that no request takes away
        assert (after["lock"], record["outcome"]) == ("snapshot-delete" if kind == "failed" else None, "needs_human"), told
        assert after["config"]["memory"] == ("4096" if end == "healed" else "2048"), told
        assert re.search(r"is still there: cannot remove snapshot pre-memory-adjustment-\w+ of 200 \(postgres\)", record["why"]), told
        assert (PHRASE if kind == "failed" else "still runs after 3 s") in record["why"], told
        return
    assert after["lock"] is None, told
    assert {key: value for key, value in after["config"].items() if key != "memory"} == {
        key: value for key, value in before["config"].items() if key != "memory"
    }
    assert all(name in record["why"] for name in after["snapshots"]), told
    assert record["outcome"] in ("rolled_back", "needs_human") if end == "rolled_back" else record["outcome"] in ("healed", "rolled_back", "needs_human"), told
    assert run.returncode == (0 if record["outcome"] == "healed" else 2), told
    if record["outcome"] == "healed":
        assert after["config"]["memory"] == "4096", told
    else:
        assert after["config"] == before["config"], told
        assert after["kernel"] == before["kernel"], told
    if record["outcome"] == "rolled_back":
        assert after["snapshots"] == {}, told
    if record["outcome"] != end:
        assert record["outcome"] == "rolled_back" or after["snapshots"] or not pve.writes(), told
        assert re.search(r"cannot (snapshot|change|remove snapshot \S+ of|list|read) (as \S+ of |the \S+ of )?", record["why"]), told
        assert PHRASE in record["why"] or kind in ("late", "lost", "cut", "stuck"), told
    if kind in ("delay", "warnings"):
        assert record["outcome"] == end, told


# what the server says


ANSWERS = [(False, *row[:3]) for row in _proxmox.REFUSALS]
ENDS = [(True, *row[:3]) for row in _proxmox.REFUSALS if row[0] == 500]
"""A task's end has no status, and counts as 500."""


@pytest.mark.parametrize(("as_task", "status", "phrase", "failure"), [*ANSWERS, *ENDS], ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_refusal_is_told_as_what_it_means(pve: Proxmox, *, as_task: bool, status: int, phrase: str, failure: type[HealerError]) -> None:
    job = JOBS["present" if as_task else "memory"]
    said = f"it says {phrase} here"
    before = begin(pve, job)
    if as_task:
        pve.fault("POST", SNAPSHOT, "failed", exitstatus=said, log=LOG)
    else:
        pve.fault("PUT", CONFIG, "error", status=status, reason=said)
    answer, error = do(pve, job, **job.options)
    assert type(error) is failure
    assert said in error.why
    assert error.fix
    assert as_task == (LOG[-1] in error.why)
    assert (answer["changed"], answer["undo"], looks(pve)) == (False, [], before)


def test_what_nobody_foresaw_is_told_in_its_own_words(pve: Proxmox) -> None:
    begin(pve, JOBS["memory"])
    pve.fault("PUT", CONFIG, "error", status=418, reason=PHRASE)
    answer, error = do(pve, JOBS["memory"], memory="4096")
    assert error is not None
    assert (error.code, error.why, answer["changed"]) == ("task_failed", f"HTTP 418: {PHRASE}", False)


def test_without_the_library_it_says_what_to_install(pve_controller: Controller, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(inventory.read_text().replace(pve_controller.python, str(tmp_path / "bare/bin/python")))
    asked: dict[str, dict[str, t.Any]] = {
        "lxc_resources": {"memory": 4096},
        "lxc_snapshot": {"name": "made"},
        "lxc_power": {"state": "restarted"},
        "lxc_info": {},
    }
    run = pve_controller.play([{f"homelab.healer.{module}": {"vmid": 200, **options}, "ignore_errors": True} for module, options in asked.items()])
    for module in asked:
        (answer,) = run.answers(f"homelab.healer.{module}")
        assert (answer["error"]["code"], answer["changed"]) == ("missing_library", False)
        assert "pip install 'proxmoxer" in answer["msg"]
    assert "Traceback" not in run.output


# whose task it is


def as_root(pve: Proxmox, **options: t.Any) -> None:
    answer, error = call(lxc_snapshot, **{**pve.options_for("root@pam!lab"), "vmid": [200], **options})
    assert (error, answer["changed"]) == (None, True)


@pytest.fixture
def _slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's clock is known to a second, in which there may have been other tasks; here to any number of them."""
    monkeypatch.setattr(_proxmox.Cluster, "now", lambda _self: 2000.0)


@pytest.mark.usefixtures("_slow_clock")
def test_the_task_of_somebody_else_is_not_taken_for_the_own_whose_reply_was_lost(pve: Proxmox) -> None:
    as_root(pve, name="roots")
    pve.fault("POST", SNAPSHOT, "cut")
    answer, error = do(pve, JOBS["present"], name="made")
    assert error is not None
    assert (error.code, answer["changed"]) == ("unreachable", False)


@pytest.mark.usefixtures("_slow_clock")
def test_an_earlier_task_is_not_taken_for_the_one_whose_reply_was_lost(pve: Proxmox) -> None:
    mark = "[homelab.healer prefix= expires=1000]"
    pve.set_guest(200, snapshots={name: {"age": age, "description": mark} for name, age in (("s1", 90), ("s2", 60))})
    pve.fault("DELETE", "/snapshot/s2$", "cut")
    answer, error = do(pve, JOBS["expired"], state="absent")
    assert error is not None
    assert (error.code, error.what) == ("unreachable", "cannot remove snapshot s2 of 200 (postgres)")
    assert (answer["changed"], answer["steps"], list(looks(pve)["snapshots"])) == (True, ["remove snapshot s1 of 200 (postgres)"], ["s2"])


@pytest.mark.usefixtures("_slow_clock")
def test_going_back_twice_at_once_is_not_taken_for_done_by_the_first(pve: Proxmox) -> None:
    job = JOBS["rolled_back"]
    begin(pve, job)
    assert do(pve, job, **job.options)[1] is None
    before = looks(pve)
    pve.fault("POST", "/rollback$", "cut")
    _answer, error = do(pve, job, **job.options)
    assert error is not None
    assert "the node has no task that did it" in error.why
    assert looks(pve) == before


def test_a_task_is_followed_while_nobody_answers(pve: Proxmox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_proxmox, "UNHEARD", 30.0)
    job = JOBS["present"]
    begin(pve, job)
    pve.fault("GET", "/tasks/UPID", "unreachable", reason=PHRASE, times=5)
    assert do(pve, job, **job.options)[1] is None


def test_a_task_that_fails_of_a_conflict_may_have_changed_something(pve: Proxmox) -> None:
    job = JOBS["rolled_back"]
    begin(pve, job)
    pve.set_storage("local-zfs", fail={"rollback": "can't lock file '/run/lock/lxc/pve-config-200.lock' - got timeout"})
    answer, error = do(pve, job, **job.options)
    assert error is not None
    assert (error.code, answer["changed"]) == ("conflict", True)
    assert (looks(pve)["status"], looks(pve)["lock"]) == ("stopped", "rollback")
