"""The mission's first story: PostgreSQL runs out of memory in container 200, on a simulated Proxmox VE."""

from __future__ import annotations

import json
import types
import typing as t
from pathlib import Path

from ansible_collections.homelab.healer.plugins.modules import lxc_info
from tests.lab.engine import LabError
from tests.lab.modules import read
from tests.lab.playbooks import Controller, Run
from tests.lab.proxmox.client import Proxmox
from tests.lab.telling import Story, expect, paint

TOKEN = "healer@pve!healer"
LOOKS: dict[str, t.Any] = {"lxc_memory_sample": 0.5, "lxc_memory_pause": 0, "lxc_memory_looks": 3, "lxc_memory_needed": 2, "lxc_memory_level": 60}
"""Shorter looks than in a real homelab, as time passes faster here."""


class ProxmoxStory(Story):
    """The story on a cluster."""

    def __init__(self, pve: Proxmox, controller: Controller) -> None:
        super().__init__()
        self.pve, self.controller = pve, controller

    def usage(self) -> None:
        """Show what each container uses, of what, and whether anything waits for memory."""
        containers = read(lxc_info, **self.pve.options_for(TOKEN), gather=["snapshots"])["containers"]
        print("   container         memory used      limit   waits for memory   running for   snapshots")
        for facts in containers:
            used = paint(f"{facts['memory_used']:7d} MiB", "bad" if facts["memory_share"] >= 0.9 else "good")
            waits = f"{(facts['pressure'] or {}).get('memory_some', 0):.0f} %"
            names = ", ".join(snapshot["name"] for snapshot in facts["snapshots"]) or "none"
            print(
                f"   {facts['vmid']} {facts['name']:<12} {used}   {facts['limits']['memory']:5d} MiB   {waits:>16}   {facts['uptime'] // 60:7d} min   {names}"
            )
        self.took()

    def heal(self, *arguments: str, **variables: t.Any) -> Run:
        """Run the playbook, showing the command that anybody can type."""
        return self.play("heal_lxc_memory", *arguments, hidden=LOOKS, **variables)

    def play(self, playbook: str, *arguments: str, hidden: t.Mapping[str, t.Any] = types.MappingProxyType({}), **variables: t.Any) -> Run:
        """Run one of the collection's playbooks, showing the command but for what is ``hidden``."""
        given = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
        self.command("ansible-playbook", f"homelab.healer.{playbook}", *given, *arguments)
        run = self.controller.play(f"homelab.healer.{playbook}", *arguments, **{**hidden, **variables})
        if not run.record:
            raise LabError(run.output)
        return run


def tell(pve: Proxmox, folder: Path) -> None:
    """The whole story. Raises ``LabError`` where it does not end as it should."""
    story = ProxmoxStory(pve, Controller(folder, proxmox=pve.options_for(TOKEN)))
    story.chapter("What is wrong: the database in container 200 is at its limit, and waits for memory")
    story.usage()

    story.chapter("The plan: what would be done, and nothing is")
    pve.clear()
    run = story.heal("--check", "--diff", vmid="200", memory="4096")
    expect(run.record["outcome"] == "planned" and pve.writes() == [], run)
    story.plan(run)

    story.chapter("A snapshot, the change while it runs, and the verification: its use levels off, and nothing waits any more")
    run = story.heal(vmid="200", memory="4096")
    expect(run.record["outcome"] == "healed", run)
    story.outcome(run)
    print(f"   written: {', '.join(seen['method'] + ' ' + seen['path'].partition('/lxc/')[2] for seen in pve.writes())}")
    story.usage()

    story.chapter("The undo, as the run had printed it")
    (undo,) = run.record["undo"]
    story.command("ansible", "localhost", "-m", undo["module"], "-a", f"'{json.dumps(undo['args'])}'")
    run = story.controller.play([{undo["module"]: undo["args"]}])
    expect(run.returncode == 0, run)
    story.usage()

    story.chapter("A leak: more memory does not help for long, so the old size is put back without anybody's help")
    pve.set_guest(200, workload={"memory": 2040, "growth": 100})
    run = story.heal(vmid="200", memory="4096")
    expect(run.record["outcome"] == "rolled_back", run)
    story.outcome(run)
    story.usage()
