"""What the demo's stories share: how they are told."""

from __future__ import annotations

import json
import os
import sys
import time

from tests.lab.engine import LabError
from tests.lab.playbooks import Run

COLOURS = {"title": "1;36", "good": "32", "bad": "31", "dim": "2", "-": "31", "+": "32"}


def paint(text: str, colour: str) -> str:
    """The text in colour where a terminal shows it, and as it is elsewhere."""
    return f"\033[{COLOURS[colour]}m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


class Story:
    """Tells what happens, and how long each part took."""

    def __init__(self) -> None:
        self._chapter, self._began = 0, time.monotonic()

    def chapter(self, title: str) -> None:
        self._chapter += 1
        self._began = time.monotonic()
        print(f"\n{paint(f'{self._chapter}. {title}', 'title')}")

    def took(self) -> None:
        print(paint(f"   ({time.monotonic() - self._began:.1f} s)", "dim"))

    def command(self, *words: str) -> None:
        """Show the command that anybody can type."""
        print(paint(f"   $ {' '.join(words)}", "dim"))

    def plan(self, run: Run) -> None:
        record = run.record
        print(f"   {record['why']}")
        for diff in record["diff"]:
            before, after = (diff[side].splitlines() for side in ("before", "after"))
            for side, lines, others in (("-", before, after), ("+", after, before)):
                print("\n".join(f"     {paint(f'{side} {line}', side)}" for line in lines if line not in others))
        how = ", ".join(step["reversibility"] for step in record["plan"])
        by = f", by {json.dumps(record['undo'][0]['args'])}" if record["undo"] else ""
        print(f"   way back: {how}{by}")
        self.took()

    def outcome(self, run: Run) -> None:
        for judgement in run.record["looks"][-1]:
            print(f"   {paint('yes' if judgement['good'] else 'NO ', 'good' if judgement['good'] else 'bad')}  {judgement['told']}")
        healed = run.record["outcome"] == "healed"
        print(f"   outcome: {paint(run.record['outcome'], 'good' if healed else 'bad')}")
        self.took()


def expect(so: bool, run: Run) -> None:
    if not so:
        raise LabError(f"the story went wrong:\n{run.output}")
