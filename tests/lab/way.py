"""A way to a node: Ansible's own SSH connection, whose ``ssh`` is the lab's, and on the node a ``pct`` that trouble can be made with.

As a script it is both of these; it imports nothing of the lab then, as each use starts it afresh.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

VERBS = {"start", "restart", "reload"}


class Way:
    """The way to one node. What is to happen on it is in files of its folder, for the scripts to see."""

    def __init__(self, folder: Path, pct: Path) -> None:
        """``pct`` is the folder of the lab's own."""
        self.folder = folder
        (folder / "home").mkdir()
        (folder / "bin").mkdir()
        for name, path in (("ssh", folder / "ssh"), ("pct", folder / "bin/pct")):
            path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__)} {name} {folder} {pct}/pct "$@"\n')
            path.chmod(0o755)

    def host(self, python: str) -> dict[str, t.Any]:
        """What the inventory says of the node."""
        return {
            "ansible_connection": "ssh",
            "ansible_ssh_executable": str(self.folder / "ssh"),
            "ansible_ssh_transfer_method": "piped",
            "ansible_python_interpreter": python,
        }

    def cut(self) -> None:
        """Let nobody reach the node any more; what is at work on it goes on."""
        (self.folder / "gone").touch()

    def trouble(self, kind: str) -> None:
        """Let the next write on the node have this trouble: ``error``, ``lost``, ``late``, or the name of a container of LXC that it freezes."""
        (self.folder / "written").unlink(missing_ok=True)
        (self.folder / "trouble").write_text(kind)

    def mend(self) -> None:
        for name in ("gone", "trouble"):
            (self.folder / name).unlink(missing_ok=True)

    @property
    def written(self) -> bool:
        """Whether the troubled write has arrived."""
        return (self.folder / "written").exists()

    def working(self) -> bool:
        """Whether a module is at work on the node."""
        mark = f"HEALER_LAB_NODE={self.folder}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    return True
            except OSError:
                pass
        return False


def ssh(folder: Path, words: list[str]) -> int:
    """Run the last word by a shell of the node, which goes on if this is killed."""
    if (folder / "gone").exists():
        print("ssh: connect to host first port 22: No route to host", file=sys.stderr)
        return 255
    signal.signal(signal.SIGTERM, lambda *_: os._exit(255))  # as where the connection breaks
    (folder / "client").write_text(str(os.getpid()))
    environment = {"PATH": f"{folder}/bin:{os.defpath}:/usr/sbin:/sbin", "HOME": f"{folder}/home", "HEALER_LAB_NODE": str(folder)}
    return subprocess.run(["/bin/sh", "-c", words[-1]], env=environment, start_new_session=True, check=False).returncode


def pct(folder: Path, real: str, words: list[str]) -> t.NoReturn:
    """The lab's own, but where the next write shall have trouble."""
    trouble = folder / "trouble"
    if trouble.exists() and VERBS & set(words):
        kind = trouble.read_text()
        trouble.unlink()
        (folder / "written").touch()
        if kind == "error":
            sys.exit("Failed to act: the moon stands in the way")
        elif kind == "lost":
            code = subprocess.run([real, *words], check=False).returncode
            os.kill(int((folder / "client").read_text()), signal.SIGTERM)
            sys.exit(code)
        elif kind == "late":
            time.sleep(1)
        else:
            place, _slash, name = kind.rpartition("/")
            subprocess.run(["lxc-freeze", "-P", place, "-n", name], check=True)
    os.execv(real, [real, *words])


if __name__ == "__main__":
    if sys.argv[1] == "ssh":
        sys.exit(ssh(Path(sys.argv[2]), sys.argv[4:]))
    pct(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
