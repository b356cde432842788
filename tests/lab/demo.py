"""The story of a runaway container, told on a real Docker Engine: ``make demo``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from ansible_collections.homelab.healer.plugins.modules import docker_usage_info
from tests.lab.engine import BURN, Engine, LabError, docker_engine
from tests.lab.modules import read
from tests.lab.playbooks import Controller, Run

APP, SHY, QUIET = "demo-app", "demo-shy", "demo-quiet"
LIMIT = "0.2"
COLOURS = {"title": "1;36", "good": "32", "bad": "31", "dim": "2", "-": "31", "+": "32"}


def paint(text: str, colour: str) -> str:
    """The text in colour where a terminal shows it, and as it is elsewhere."""
    return f"\033[{COLOURS[colour]}m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


class Story:
    """Tells what happens, and how long each part took."""

    def __init__(self, engine: Engine, controller: Controller) -> None:
        self.engine, self.controller = engine, controller
        self._chapter, self._began = 0, time.monotonic()

    def chapter(self, title: str) -> None:
        self._chapter += 1
        self._began = time.monotonic()
        print(f"\n{paint(f'{self._chapter}. {title}', 'title')}")

    def took(self) -> None:
        print(paint(f"   ({time.monotonic() - self._began:.1f} s)", "dim"))

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
        shown = ["ansible-playbook", "homelab.healer.heal_docker_runaway", "-e", f"container={container}", "-e", f"cpus={LIMIT}", *arguments]
        print(paint(f"   $ {' '.join(shown)}", "dim"))
        run = self.controller.heal(*arguments, container=container, cpus=LIMIT)
        if not run.record:
            raise LabError(run.output)
        return run

    def plan(self, run: Run) -> None:
        record = run.record
        print(f"   {record['why']}")
        for diff in record["diff"]:
            for side, lines in (("-", diff["before"]), ("+", diff["after"])):
                print("\n".join(f"     {paint(f'{side} {line}', side)}" for line in lines.splitlines()))
        print(f"   way back: {', '.join(step['reversibility'] for step in record['plan'])}, by {json.dumps(record['undo'][0]['args'])}")
        self.took()

    def outcome(self, run: Run) -> None:
        for judgement in run.record["looks"][-1]:
            print(f"   {paint('yes' if judgement['good'] else 'NO ', 'good' if judgement['good'] else 'bad')}  {judgement['told']}")
        healed = run.record["outcome"] == "healed"
        print(f"   outcome: {paint(run.record['outcome'], 'good' if healed else 'bad')}")
        self.took()


def tell(engine: Engine, folder: Path) -> None:
    """The whole story. Raises ``AssertionError`` where it does not end as it should."""
    story = Story(engine, Controller(folder, engine.docker_host))
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
    print(paint(f"   $ ansible localhost -m {undo['module']} -a '{json.dumps(undo['args'])}'", "dim"))
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


def expect(so: bool, run: Run) -> None:
    if not so:
        raise LabError(f"the story went wrong:\n{run.output}")


def main() -> t.NoReturn:
    began = time.monotonic()
    try:
        with docker_engine() as engine, tempfile.TemporaryDirectory(prefix="healer-demo-") as folder:
            whose = "its own" if engine.owned else "the machine's"
            print(f"The lab runs on {whose} Docker Engine {engine.api.version()['Version']}, with {engine.api.info()['NCPU']} CPUs.")
            tell(engine, Path(folder))
    except LabError as error:
        sys.exit(f"The demo could not be told: {error}")
    print(f"\nTold in {time.monotonic() - began:.0f} s; nothing of it is left running.")
    sys.exit(0)


if __name__ == "__main__":
    main()
