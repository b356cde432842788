"""What is measured only where somebody asks for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.lab.playbooks import Controller


@pytest.fixture(scope="session")
def asked_for(request: pytest.FixtureRequest, whole: bool) -> bool:
    """Whether what takes minutes is to be measured: with all tests whole, or where benches are named."""
    named = [Path(argument.partition("::")[0]).resolve() for argument in request.config.args]
    return whole or any(path.is_relative_to(Path(__file__).parent) for path in named)


@pytest.fixture(scope="session")
def patient(asked_for: bool) -> None:
    if not asked_for:
        pytest.skip("it takes minutes: make bench, or --all")


@pytest.fixture(autouse=True)
def _modules_start_as_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is what users have."""
    monkeypatch.setattr(Controller, "python", sys.executable)
