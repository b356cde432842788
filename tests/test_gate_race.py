"""Many runs at once on one target: one may, the others may not, and nobody waits in vain. And runs that were paused until their lease had ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import yaml

from ansible_collections.homelab.healer.plugins.modules import lxc_resources, remediation_gate, remediation_info, remediation_record
from ansible_collections.homelab.healer.plugins.plugin_utils.ledger import by_our_clock
from tests.lab.engine import LabError
from tests.lab.ledger import Database, Facts, File, Store, chain, target, written_policy
from tests.lab.modules import Caller
from tests.lab.playbooks import Controller, Run
from tests.lab.postgres import Postgres, prepared
from tests.lab.proxmox.client import Proxmox
from tests.test_ledger_faults import Forked, sound
from tests.test_lxc_chain import QUICK

AT_ONCE = 50
LEASE = 45
"""Seconds that are enough for a plan, also where much else is going on."""


@pytest.fixture(scope="module")
def server(debian_postgres: Postgres) -> t.Iterator[Postgres]:
    yield prepared(debian_postgres)
    debian_postgres.reset()


@pytest.fixture(params=["file", "database"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> t.Iterator[Store]:
    made: Store = File(tmp_path / "ledger.db") if request.param == "file" else Database(request.getfixturevalue("server"))
    with contextlib.closing(made):
        yield made


def test_of_fifty_runs_at_once_on_one_target_one_is_allowed(store: Store, tmp_path: Path) -> None:
    """From two controllers where the ledger can be shared. Each goes on to its plan if it may, as a run does."""
    rules = str(written_policy(tmp_path))
    store.close()
    begin = time.time() + 1.5

    def one(number: int) -> Facts:
        whose: Facts = {"remediation": f"r{number:02}", "remedy": "lxc_memory", "host": "pve", "target": target(), "policy": rules}
        whose["run"] = {"user": "ann", "machine": f"controller{number % 2}", "pid": os.getpid()}
        time.sleep(max(0.0, begin - time.time()))
        began = time.monotonic()
        answer = store.ask(remediation_gate, **whose)
        if answer.get("word") == "allowed":
            answer["second"] = store.ask(remediation_gate, **whose, fence=answer["fence"], chain=chain())["word"]
        return {**answer, "seconds": time.monotonic() - began}

    answers = [answer() for answer in [Forked(partial(one, number)) for number in range(AT_ONCE)]]
    print(f"\nthe longest of {AT_ONCE} at once waited {max(answer['seconds'] for answer in answers):.1f} s")
    words = [answer.get("word") for answer in answers]
    assert [answer for answer in answers if answer.get("word") not in ("allowed", "joined")] == []
    assert words.count("allowed") == 1, answers
    (winner,) = (answer for answer in answers if answer["word"] == "allowed")
    assert winner["second"] == "allowed"
    assert all(winner["remediation"] in answer["why"] for answer in answers if answer is not winner)
    known = {row["id"]: row["state"] for row in store.ask(remediation_info)["remediations"]}
    assert sorted(known.values()) == ["applying"] + ["denied"] * (AT_ONCE - 1)
    sound(store)


class Site:
    """Controllers that share a ledger and a policy, and the lab's cluster."""

    def __init__(self, folder: Path, pve: Proxmox, ledger: t.Mapping[str, t.Any]) -> None:
        self.folder, self.pve, self.ledger = folder, pve, dict(ledger)
        self.rules = str(written_policy(folder))

    def controller(self, name: str) -> Controller:
        (self.folder / name).mkdir()
        controller = Controller(self.folder / name, proxmox=self.pve.options_for("healer@pve!healer"))
        path = controller.folder / "inventory.yml"
        inventory = yaml.safe_load(path.read_text())
        inventory["all"]["vars"] = {"healer_ledger": self.ledger, "healer_policy": self.rules}
        path.write_text(yaml.safe_dump(inventory))
        return controller


def test_of_many_playbooks_at_once_one_changes_the_target(pve: Proxmox, tmp_path: Path, whole: bool) -> None:
    runs = 8 if whole else 3
    site = Site(tmp_path, pve, {"path": str(tmp_path / "ledger.db")})
    controllers = [site.controller(f"c{number}") for number in range(runs)]

    def heal(controller: Controller) -> Run:
        return controller.play("homelab.healer.heal_lxc_memory", **QUICK, vmid=200, memory=4096, remediate_pause=1)

    with ThreadPoolExecutor(runs) as pool:
        done = list(pool.map(heal, controllers))
    records = [run.record for run in done]
    outcomes = sorted(record["outcome"] for record in records)
    # Who comes after the others have finished finds nothing to do.
    assert outcomes.count("healed") == 1, [(record["outcome"], record["why"]) for record in records]
    assert set(outcomes) <= {"healed", "denied", "healthy"}, [(record["outcome"], record["why"]) for record in records]
    assert "denied" in outcomes
    assert all("is under way" in record["why"] for record in records if record["outcome"] == "denied")
    assert [seen["method"] for seen in pve.writes()] == ["POST", "PUT", "DELETE"]
    with contextlib.closing(File(tmp_path / "ledger.db")) as store:
        sound(store)


class Pausable:
    """A run of a playbook, with all its processes, that can be stopped and let go on."""

    def __init__(self, controller: Controller, playbook: str, **variables: t.Any) -> None:
        self.folder = controller.folder
        for name in ("stats.json", "results.jsonl"):
            (self.folder / name).write_text("")
        command = [sys.executable, "-m", "ansible", "playbook", playbook, "-i", str(self.folder / "inventory.yml"), "-e", json.dumps(variables)]
        self._output = (self.folder / "output").open("w")
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=controller.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def signal(self, number: int) -> None:
        """To all its processes: Ansible's modules and workers are in its session, some in groups of their own."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if entry.name.isdigit() and (entry / "stat").read_text().rpartition(")")[2].split()[3] == str(self._process.pid):
                    os.kill(int(entry.name), number)

    def __enter__(self) -> Pausable:
        return self

    def __exit__(self, *error: object) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._output.close()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def wait(self) -> Run:
        return Run(self._process.wait(timeout=120), self.output, self.folder)


def until(check: t.Callable[[], t.Any], what: str, run: Pausable) -> None:
    limit = time.monotonic() + 120
    while not check():
        if not run.running or time.monotonic() > limit:
            raise LabError(f"waited in vain until {what}:\n{run.output}")
        time.sleep(0.005)


@pytest.mark.long  # it waits for the end of a lease that is long enough for a playbook
@pytest.mark.parametrize("paused", ["before its first write", "with a write in flight"])
def test_who_was_paused_until_another_took_over_begins_no_write(pve: Proxmox, server: Postgres, tmp_path: Path, paused: str) -> None:
    with contextlib.closing(Database(server)) as store:
        site = Site(tmp_path, pve, store.options)
        one, two = site.controller("one"), site.controller("two")
        if paused == "with a write in flight":
            pve.fault("PUT", "/config$", "late", seconds=6)
        with Pausable(one, "homelab.healer.heal_lxc_memory", **QUICK, vmid=200, memory=4096, remediate_lease=LEASE) as run:
            until(lambda: applying(store), "it is applied", run)
            if paused == "with a write in flight":
                until(lambda: pve.guest(200)["kernel"]["memory"] == 4096, "the write has arrived", run)
            run.signal(signal.SIGSTOP)
            began, before = time.monotonic(), pve.writes()
            assert bool(before) == (paused == "with a write in flight")
            early = two.play("homelab.healer.recover", remediate_lease=LEASE)
            assert "is left alone: the run that has it may still be at it" in told(early), early.output
            time.sleep(max(0.0, LEASE + 1 - (time.monotonic() - began)))
            taken = two.play("homelab.healer.recover", remediate_lease=LEASE)
            assert (taken.record["outcome"], pve.guest(200)["kernel"]["memory"]) == ("rolled_back", 2048), taken.output
            pve.clear()
            run.signal(signal.SIGCONT)
            late = run.wait()
        assert (pve.writes(), pve.guest(200)["kernel"]["memory"], pve.guest(200)["lock"]) == ([], 2048, None)
        assert late.returncode == 2, late.output
        assert "another run took it over; what it had begun may still be under way: " in told(late), late.output
        assert "memory" in told(late).partition("may still be under way: ")[2][:200], late.output
        codes = [(event["result"].get("error") or {}).get("code") for event in late.events if event["action"].startswith("homelab.healer.")]
        assert "conflict" in codes, codes
        if paused == "before its first write":
            assert "refused" in codes  # its module had a deadline
            assert "the deadline has passed" in told(late)
        (row,) = store.ask(remediation_info)["remediations"]
        assert (row["state"], row["id"]) == ("rolled_back", taken.record["id"])
        sound(store)


def applying(store: Database) -> bool:
    with contextlib.suppress(Exception):
        return store.sql("SELECT 1 FROM remediations WHERE state = 'applying'") == [(1,)]
    return False


def test_a_paused_run_begins_no_write_and_is_told_that_its_lease_is_lost(pve: Proxmox, server: Postgres, tmp_path: Path) -> None:
    """The same with what the playbooks call, and a lease as short as can be: a process stops itself between the gate's answer and its change."""
    rules = str(written_policy(tmp_path))
    change = Caller(lxc_resources, pve.options_for("healer@pve!healer"))
    whose: Facts = {"remediation": "r1", "remedy": "lxc_memory", "host": "pve", "target": target(), "policy": rules, "lease": 6}
    with contextlib.closing(Database(server)) as store:
        planned = change(check=True, vmid=[201], memory=1500)
        step = {**chain()["plan"][0], **{name: planned[name] for name in ("changed", "before", "after", "steps", "undo")}}
        step["args"] = {"vmid": [201], "memory": 1500}
        store.ask(remediation_info)
        store.close()

        def one() -> Facts:
            began = time.time()
            first = store.ask(remediation_gate, **whose)
            asked = {**whose, "fence": first["fence"], "chain": {**chain(), "plan": [step]}}
            second = by_our_clock(store.ask(remediation_gate, **asked), whose["lease"], began)
            os.kill(os.getpid(), signal.SIGSTOP)
            refused = [change.fails(**do["args"]).as_dict() for do in second["steps"]]
            noted = store.ask(remediation_record, remediation="r1", state="verifying", fence=first["fence"])
            return {"word": second["word"], "refused": refused, "noted": noted}

        answer = Forked(one)
        assert os.waitpid(answer.pid, os.WUNTRACED)[1] == signal.SIGSTOP << 8 | 0x7F
        taken: Facts = {}
        while not taken.get("taken"):
            time.sleep(0.2)
            taken = store.ask(remediation_record, remediation="r1", state="taken")
        assert (taken["before"], taken["chain"]["plan"][0]["steps"]) == ("applying", step["steps"])
        pve.clear()
        os.kill(answer.pid, signal.SIGCONT)
        late = answer()
        assert (late["word"], [error["code"] for error in late["refused"]], pve.writes()) == ("allowed", ["refused"], [])
        assert late["refused"][0]["why"] == "the deadline has passed"
        assert late["noted"]["error"]["code"] == "conflict"
        assert f"another run took it over; what it had begun may still be under way: {step['steps'][0]}" in late["noted"]["msg"]
        sound(store)


def told(run: Run) -> str:
    return " ".join(run.output.split())


def test_a_deadline_is_by_the_clock_of_who_heeds_it() -> None:
    """The ledger's may be behind by hours, and then its deadline would let a module write long after its lease had ended."""
    behind = 1000.0
    answer: Facts = {
        "word": "allowed",
        "deadline": behind + 55,
        "until": behind + 60,
        "steps": [{"module": "m", "args": {"vmid": [1], "deadline": behind + 55}}],
    }
    ours = by_our_clock(answer, 60, 9000.0)
    assert (ours["deadline"], ours["until"], ours["steps"]) == (9055.0, 1060.0, [{"module": "m", "args": {"vmid": [1], "deadline": 9055.0}}])
    assert by_our_clock({"deadline": 0.0, "steps": []}, 60, 9000.0) == {"deadline": 0.0, "steps": []}
    assert by_our_clock({"failed": True}, 60, 9000.0) == {"failed": True}
