"""The mission's first story once more, with nothing invented in the container: PostgreSQL, its clients, the limit, the snapshots and the disk are real."""

from __future__ import annotations

import contextlib
import json
import typing as t
from pathlib import Path

from tests.lab.containers import Containers, containers
from tests.lab.demo_lxc import TOKEN, ProxmoxStory
from tests.lab.playbooks import Controller
from tests.lab.proxmox.client import Proxmox
from tests.lab.realnode import DATABASE, LARGE, SMALL, WEB, boot, serve
from tests.lab.rootfs import kept
from tests.lab.squeeze import Squeezed
from tests.lab.telling import expect, paint

PRECIOUS = "/srv/precious"


@contextlib.contextmanager
def node() -> t.Iterator[tuple[Containers, Proxmox]]:
    """Two real containers that have booted, and a simulated Proxmox VE whose guests they are."""
    if not kept().exists():
        print("Making a Debian for the containers, once on this machine: some minutes.", flush=True)
    with containers() as lab:
        boot(lab)
        with serve(lab) as pve:
            yield lab, pve


class RealStory(ProxmoxStory):
    """The story in real containers, with what the kernel and the clients of the database count."""

    def __init__(self, pve: Proxmox, controller: Controller, lab: Containers, database: Squeezed) -> None:
        super().__init__(pve, controller)
        self.lab, self.database = lab, database

    def counts(self) -> None:
        hits, committed = self.database.hits(1), self.database.acknowledged()
        seen = self.lab.usage(DATABASE)
        limit = self.lab[DATABASE].groups.limits().memory
        print(f"   the kernel: a limit of {limit} MiB, reached {paint(str(hits), 'bad' if hits else 'good')} times in a second; {seen.kills} processes killed")
        print(f"   its clients: {committed} commits counted by one of them, {len(self.database.lost())} of them lost")


def tell(folder: Path) -> None:
    """The whole story. Raises ``LabError`` where it does not end as it should, and NoContainers where it cannot be told."""
    with node() as (lab, pve):
        print("A database that runs out of memory, in a real Linux container with systemd, PostgreSQL 15 and btrfs, on a simulated Proxmox VE.")
        database = Squeezed(lab[DATABASE], folder)
        database.fill()
        database.hold(0.92)
        story = RealStory(pve, Controller(folder, proxmox=pve.options_for(TOKEN)), lab, database)
        with database.at_work():
            _squeezed(story)
            _healed(story)
            _put_back(story)
        print(f"   pgbench and its sessions worked through all of it; of {database.acknowledged()} commits none is lost, no connection was dropped")
        _refused(story)
        _restored(story)


def _squeezed(story: RealStory) -> None:
    story.chapter("What is wrong: PostgreSQL is at the limit of container 200, while pgbench works and a client counts its commits")
    story.database.wait_until_short()
    story.counts()
    story.usage()
    story.chapter("The plan: what would be done, and nothing is")
    story.pve.clear()
    run = story.heal("--check", "--diff", vmid=str(DATABASE), memory=str(LARGE))
    expect(run.record["outcome"] == "planned" and story.pve.writes() == [], run)
    story.plan(run)


def _healed(story: RealStory) -> None:
    story.chapter("A btrfs snapshot, the change while it runs, and the verification")
    run = story.heal(vmid=str(DATABASE), memory=str(LARGE))
    expect(run.record["outcome"] == "healed" and story.lab[DATABASE].groups.limits().memory == LARGE, run)
    story.outcome(run)
    story.counts()
    story.chapter("The undo, as the run had printed it")
    (undo,) = run.record["undo"]
    story.command("ansible", "localhost", "-m", undo["module"], "-a", f"'{json.dumps(undo['args'])}'")
    run = story.controller.play([{undo["module"]: undo["args"]}])
    expect(run.returncode == 0 and story.lab[DATABASE].groups.limits().memory == SMALL, run)
    story.counts()


def _put_back(story: RealStory) -> None:
    story.chapter("Too little to help: the verification says so, and the old size is put back without anybody's help")
    run = story.heal(vmid=str(DATABASE), memory=str(SMALL + 8))
    expect(run.record["outcome"] == "rolled_back" and story.lab[DATABASE].groups.limits().memory == SMALL, run)
    expect(story.lab[DATABASE].snapshots() == [], run)
    story.outcome(run)
    story.counts()


def _refused(story: RealStory) -> None:
    story.chapter("A snapshot of a database is no way back from what was committed since: without permission to lose that, it is refused")
    _play(story, "snapshot", vmid=str(DATABASE), snapshot="before")
    story.database.ask("CREATE TABLE orders AS SELECT 1 AS number")
    run = story.play("rollback", vmid=str(DATABASE), snapshot="before")
    expect(run.record["outcome"] == "needs_human" and story.database.ask("SELECT number FROM orders") == [(1,)], run)
    print(f"   {run.record['why']}")
    story.took()


def _restored(story: RealStory) -> None:
    story.chapter("In container 201 a file is destroyed, and the snapshot brings it back")
    web = story.lab[WEB]
    web.exec(["sh", "-c", f"echo 'years of work' > {PRECIOUS}"])
    _play(story, "snapshot", vmid=str(WEB), snapshot="before")
    web.exec(["sh", "-c", f"rm {PRECIOUS}"])
    run = story.play("rollback", vmid=str(WEB), snapshot="before", allow_data_loss="true")
    web.wait()
    expect(run.record["outcome"] == "healed" and web.exec(["cat", PRECIOUS]).stdout == "years of work\n", run)
    print(f"   {PRECIOUS} in it: {paint('years of work', 'good')}")
    story.took()


def _play(story: RealStory, playbook: str, **variables: t.Any) -> None:
    run = story.play(playbook, **variables)
    expect(run.record["outcome"] == "healed", run)
