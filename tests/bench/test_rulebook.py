"""From an alert's arrival at the rulebook to the change applied, beside a playbook that only pings, in one run, while the container burns one CPU."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.conftest import NO_RULEBOOK
from tests.lab.engine import BURN, Engine
from tests.lab.playbooks import Controller
from tests.lab.rulebook import Rulebook, missing

PINGS = 4
"""How many times a playbook that only pings it may take."""


def limited(engine: Engine, name: str) -> bool:
    host_config = engine.host_config(name)
    return bool(host_config["NanoCpus"] or host_config["CpuQuota"])


def test_a_change_is_applied_soon_after_the_alert(docker: Engine, controller: Controller, asked_for: bool) -> None:
    if missing():
        pytest.skip(f"{NO_RULEBOOK}: {missing()}: run tests/lab/prepare as root")
    rounds = 20 if asked_for else 3
    pings, took = [], []
    controller.inventory(docker_runaway_cpus="0.05")  # so that one process of a container is more than enough
    with Rulebook(controller) as rulebook:
        for number in range(rounds):
            docker.run(f"app{number}", BURN)
            began = time.monotonic()
            assert controller.play([{"ansible.builtin.ping": {}}]).returncode == 0
            pings.append(time.monotonic() - began)
            began = time.monotonic()
            assert rulebook.alert({"alertname": "DockerContainerRunaway", "instance": "lab", "container": f"app{number}"}) == 200
            while not limited(docker, f"app{number}"):
                assert time.monotonic() - began < 120, rulebook.told[-4000:]
                time.sleep(0.02)
            took.append(time.monotonic() - began)
            while len(rulebook.remediations()) <= number or rulebook.remediations()[-1].open:
                time.sleep(0.1)
            docker.remove_containers()
    ping, change = statistics.median(pings), statistics.median(took)
    print(f"\nfrom the alert to the change: {change:.2f} s; a playbook that only pings: {ping:.2f} s; {change / ping:.1f} times, median of {rounds}")
    assert change <= PINGS * ping
