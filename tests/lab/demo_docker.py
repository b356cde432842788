"""The story of a runaway container, on a real Docker Engine."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ansible_collections.homelab.healer.plugins.modules import docker_usage_info
from tests.lab.engine import BURN, Engine, LabError
from tests.lab.modules import read
from tests.lab.playbooks import Controller, Run
from tests.lab.telling import Story, expect, paint

APP, SHY, QUIET = "demo-app", "demo-shy", "demo-quiet"
LIMIT = "0.2"


class DockerStory(Story):
    """The story on an engine."""

    def __init__(self, engine: Engine, controller: Controller) -> None:
        super().__init__()
        self.engine, self.controller = engine, controller

    def usage(self) -> None:
        """Show what each container uses, and its limit."""
        containers = read(docker_usage_info, docker_host=self.engine.docker_host, containers=[APP, SHY, QUIET], sample=1.0)["containers"]
        print("   container    CPUs used   CPU limit   health      started")
        for facts in containers:
            used = paint(f"{facts['cpu_rate']:9.2f}", "bad" if facts["cpu_rate"] > float(LIMIT) * 1.1 else "good")
            limit = "not set" if facts["live"].get("cpus", facts["limits"]["cpus"]) == "default" else facts["limits"]["cpus"]
            print(f"   {facts['name']:<12} {used}   {limit!s:>9}   {facts['health']:<9}   {facts['started_at'][11:19]}")
        self.took()

    def heal(self, container: str, *arguments: str) -> Run:
        """Run the playbook, showing the command that anybody can type."""
        self.command("ansible-playbook", "homelab.healer.heal_docker_runaway", "-e", f"container={container}", "-e", f"cpus={LIMIT}", *arguments)
        run = self.controller.heal(*arguments, container=container, cpus=LIMIT)
        if not run.record:
            raise LabError(run.output)
        return run


def tell(engine: Engine, folder: Path) -> None:
    """The whole story. Raises ``AssertionError`` where it does not end as it should."""
    story = DockerStory(engine, Controller(folder, engine.docker_host))
    story.chapter("What is wrong: one of three containers eats the CPU")
    engine.run(QUIET)
    engine.run(APP, BURN)
    engine.run(SHY, "exec sleep 100000", healthcheck=engine.dislikes_limits())
    engine.wait_for_health(SHY, "healthy")
    began = time.time()
    story.usage()

    story.chapter("The plan: what would be done, and nothing is")
    run = story.heal(APP, "--check", "--diff")
    expect(run.record["outcome"] == "planned" and engine.events(began) == [], run)
    story.plan(run)

    story.chapter("The change, while the container runs, and its verification")
    run = story.heal(APP)
    expect(run.record["outcome"] == "healed" and engine.events(began) == ["update"], run)
    story.outcome(run)

    story.chapter("The proof: the same container, not restarted, at its limit")
    story.usage()

    story.chapter("The undo, as the run had printed it")
    (undo,) = run.record["undo"]
    story.command("ansible", "localhost", "-m", undo["module"], "-a", f"'{json.dumps(undo['args'])}'")
    run = story.controller.play([{undo["module"]: undo["args"]}])
    expect(run.returncode == 0, run)
    story.usage()

    story.chapter("A change that does harm: this one gets unhealthy when it is limited, and is put back without anybody's help")
    engine.api.remove_container(SHY, force=True)
    engine.run(SHY, BURN, healthcheck=engine.dislikes_limits())
    engine.wait_for_health(SHY, "healthy")
    run = story.heal(SHY)
    expect(run.record["outcome"] == "rolled_back", run)
    story.outcome(run)
    engine.wait_for_health(SHY, "healthy")
    story.usage()
