"""The closed loop, as ``make loop`` runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import NO_CONTAINERS, NO_RULEBOOK
from tests.lab.loop import INCIDENTS
from tests.lab.playbooks import ROOT
from tests.lab.rulebook import missing


@pytest.mark.long
def test_every_incident_is_closed_and_nothing_is_harmed() -> None:
    if os.geteuid() != 0:
        pytest.skip(f"{NO_CONTAINERS}: run the tests as root")
    if missing():
        pytest.skip(f"{NO_RULEBOOK}: {missing()}: run tests/lab/prepare as root")
    done = subprocess.run([sys.executable, "-m", "tests.lab.loop"], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [f"{len(INCIDENTS)} of {len(INCIDENTS)} closed, harm to 0"], done.stdout + done.stderr
    assert done.returncode == 0
