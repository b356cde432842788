"""The collection that others have for the same work, to test the simulator with and to measure beside. Never on the path of our own playbooks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.lab.engine import LabError
from tests.lab.playbooks import ROOT

CACHE = ROOT / ".cache"
PACKAGE = "ansible==14.5.0"  # the smallest one with a community.proxmox that has all modules wanted here; what is measured beside has a version
VERSION = "2.0.0"
PLACE = "ansible_collections/community/proxmox"


def collections() -> Path:
    """A folder of collections with community.proxmox alone, fetched from PyPI once."""
    folder = CACHE / "peers"
    if _version(folder) != VERSION:
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="peers-") as made:
            _unpack(_wheel(Path(made)), Path(made) / "peers")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(made) / "peers").rename(folder)
    return folder


def _version(folder: Path) -> str:
    manifest = folder / PLACE / "MANIFEST.json"
    return str(json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"]) if manifest.exists() else ""


def _wheel(folder: Path) -> Path:
    """The package: one that lies in the cache already, or else from PyPI."""
    name, _, version = PACKAGE.partition("==")
    wheel = f"{name}-{version}-py3-none-any.whl"
    if (CACHE / wheel).exists():
        return CACHE / wheel
    # not to be installed: what is taken from it asks for less than the package does, so the Python for which it is looked up is a newer one
    wanted = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.13", "--dest", str(folder), PACKAGE]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *wanted]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise LabError(
            f"community.proxmox {VERSION}, in {PACKAGE} (51 MB), could not be fetched with pip, which said: {said}\n"
            f"Run this where PyPI can be reached, or put {wheel} into {CACHE} by hand."
        )
    return folder / wheel


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(f"{PLACE}/")])
    if _version(folder) != VERSION:
        raise LabError(f"{wheel} has community.proxmox {_version(folder) or '(none)'} instead of {VERSION}.")
