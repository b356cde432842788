"""The repository is at once a collection and a project: every way to get it must give the same, and it must work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import sample
from tests.lab.engine import BURN, Engine
from tests.lab.playbooks import COLLECTION, ROOT, Controller

LINKED = ("galaxy.yml", "plugins", "roles", "extensions", "meta")
OURS = {"README.md", "COPYING", "meta/runtime.yml", "plugins/modules/docker_limits.py", "roles/remediate/tasks/main.yml", "playbooks/heal_docker_runaway.yml"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with what would be committed now."""
    folder = tmp_path_factory.mktemp("checkout") / "repository"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    git = ["git", "-c", "user.name=lab", "-c", "user.email=lab@example.org"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "now"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def test_links_lead_to_the_collection() -> None:
    for name in LINKED:
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).resolve() == COLLECTION / name
    for playbook in (COLLECTION / "playbooks").glob("*.yml"):
        link = ROOT / "playbooks" / playbook.name
        assert link.is_symlink()
        assert link.resolve() == playbook
    assert {path.name for path in (ROOT / "playbooks").iterdir()} == {path.name for path in (COLLECTION / "playbooks").glob("*.yml")}


def contents(archive: Path, folder: Path) -> set[str]:
    """What an archive unpacks to, as it is found through its links."""
    folder.mkdir()
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(folder)], check=True)
    return {str((Path(parent) / name).relative_to(folder)) for parent, _folders, names in os.walk(folder, followlinks=True) for name in names}


def galaxy(*arguments: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "ansible", "galaxy", "collection", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_archives_hold_the_collection_and_nothing_of_the_project(repository: Path, tmp_path: Path) -> None:
    built = {}
    for kind, folder in (("root", repository), ("nested", repository / "ansible_collections/homelab/healer")):
        galaxy("build", "--output-path", str(tmp_path / kind), cwd=folder)
        (archive,) = (tmp_path / kind).glob("homelab-healer-*.tar.gz")
        built[kind] = contents(archive, tmp_path / kind / "unpacked")
        assert built[kind] >= OURS
    nested = "ansible_collections/homelab/healer/"
    root = {name for name in built["root"] if not name.startswith(nested)}
    assert {name.removeprefix(nested) for name in built["root"] if name.startswith(nested)} >= built["nested"] - {"FILES.json", "MANIFEST.json"}
    assert root >= OURS
    assert root <= built["nested"]


NESTED = "git+file://{}#/ansible_collections/homelab/healer"


@pytest.mark.parametrize("source", sample(["{}/", "{}/ansible_collections/homelab/healer/", "git+file://{}", NESTED], "{}/", NESTED))
def test_installed_in_every_way_it_works(repository: Path, docker: Engine, controller: Controller, source: str) -> None:
    installed = controller.folder / "installed"
    galaxy("install", source.format(repository), "-p", str(installed), cwd=controller.folder)
    docker.run("app", BURN)
    task = {"homelab.healer.docker_limits": {"container": "app", "cpus": 0.2}}
    run = controller.play([task], "--check", collections=installed)
    assert run.returncode == 0, run.output
    assert run.answers("homelab.healer.docker_limits")[0]["changed"]
    run = controller.play("homelab.healer.heal_docker_runaway", "--check", collections=installed, container="app", cpus="0.2", docker_runaway_sample=1)
    assert run.returncode == 0, run.output
    assert run.record["outcome"] == "planned"


def test_the_checkout_is_a_project_with_playbook_files(repository: Path, docker: Engine, controller: Controller) -> None:
    """As AWX and Semaphore run it: a file of the checkout, from its root, with its own ansible.cfg."""
    docker.run("app", BURN)
    environment = {name: value for name, value in controller.environment().items() if not name.startswith("ANSIBLE_CO")}
    command = [sys.executable, "-m", "ansible", "playbook", "playbooks/heal_docker_runaway.yml", "-i", str(controller.folder / "inventory.yml"), "--check"]
    done = subprocess.run([*command, "-e", "container=app cpus=0.2"], cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PLANNED: app" in done.stdout
    assert str(repository) in done.stdout


def test_the_example_inventory_reads(repository: Path) -> None:
    command = [sys.executable, "-m", "ansible", "inventory", "-i", "inventories/example", "--list"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"docker"' in done.stdout
