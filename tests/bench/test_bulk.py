"""What twenty containers cost, beside a playbook that only pings, in one run."""

from __future__ import annotations

import statistics
import time
import typing as t

from tests.lab.engine import Engine
from tests.lab.playbooks import Controller

NAMES = [f"app{number:02}" for number in range(20)]
ROUNDS = 3
LIMIT = 2.5


def test_twenty_containers_cost_little_more_than_a_ping(docker: Engine, controller: Controller) -> None:
    for name in NAMES:
        docker.run(name, Memory=64 << 20, MemorySwap=64 << 20)
    ping: list[dict[str, t.Any]] = [{"ansible.builtin.ping": {}}]
    seconds: dict[str, list[float]] = {"ping": [], "limits": []}
    for number in range(ROUNDS + 1):
        change = [{"homelab.healer.docker_limits": {"containers": NAMES, "cpus": 0.5 + number / 100, "memory": f"{65 + number}m"}}]
        for kind, tasks in (("ping", ping), ("limits", change)):
            began = time.monotonic()
            run = controller.play(tasks)
            seconds[kind].append(time.monotonic() - began)
            assert run.returncode == 0, run.output
        (answer,) = run.answers("homelab.healer.docker_limits")
        assert [result["name"] for result in answer["results"] if result["changed"] and result["verified"]] == NAMES
    ratio = statistics.median(seconds["limits"][1:]) / statistics.median(seconds["ping"][1:])
    print(f"20 containers changed and read back: {ratio:.2f} times a playbook that only pings (median of {ROUNDS}, in turn)")
    assert ratio <= LIMIT
