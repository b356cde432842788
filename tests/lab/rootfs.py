"""A Debian for the lab's containers, with systemd, OpenRC and PostgreSQL in it: built once, and kept for whoever comes next."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import typing as t
from pathlib import Path

from tests.lab.engine import LabError

RELEASE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
BASE = ("systemd", "systemd-sysv", "dbus", "procps")
MORE = ("postgresql-15", "openrc")
"""The first has contrib and pgbench in it; the second sleeps but where it is made init."""
IDLE = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "console-getty.service",
)
"""Units that would do things of their own meanwhile, or wait for a terminal."""
USELESS = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/sbin/policy-rc.d",
    "etc/resolv.conf",
    "etc/machine-id",
)
SETTINGS = "shared_buffers = 16MB\nmax_connections = 60\nautovacuum = off\njit = off\nmax_wal_size = 256MB\n"
CACHE = Path("/var/cache/homelab.healer-lab")
FORMAT = 1
"""To be raised when what is done to the packages changes."""


class NoContainers(LabError):
    """No real containers can run here; says why."""


@contextlib.contextmanager
def alone(name: str) -> t.Iterator[None]:
    """Let nobody else on this machine do the same meanwhile."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kept() -> Path:
    """Where the root file system is kept as a tar file, if it was built on this machine."""
    what = repr((FORMAT, RELEASE, BASE, MORE, IDLE, USELESS, SETTINGS))
    return CACHE / f"{RELEASE}-{hashlib.sha256(what.encode()).hexdigest()[:12]}.tar"


def archive() -> Path:
    """The root file system as a tar file; built where there is none yet, which takes some minutes."""
    path = kept()
    with alone("rootfs"):
        if not path.exists():
            _build(path)
    return path


def _build(path: Path) -> None:
    if not shutil.which("debootstrap"):
        raise NoContainers("there is no debootstrap to make their root file system with: run tests/lab/prepare")
    with tempfile.TemporaryDirectory(prefix="rootfs-", dir=CACHE) as folder:
        root, log = Path(folder) / "root", Path(folder) / "log"
        try:
            _run(log, "debootstrap", "--variant=minbase", f"--include={','.join(BASE)}", RELEASE, str(root), MIRROR)
            (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # nothing is started in here
            (root / "usr/sbin/policy-rc.d").chmod(0o755)
            _run(log, "chroot", str(root), "apt-get", "install", "--yes", "--no-install-recommends", *MORE)
        finally:
            subprocess.run(["umount", "--recursive", str(root / "proc")], stderr=subprocess.DEVNULL, check=False)
        _finish(root)
        _run(log, "tar", "--create", "--one-file-system", "--numeric-owner", "--xattrs", "--file", f"{folder}/tar", "--directory", str(root), ".")
        (Path(folder) / "tar").replace(path)


def _run(log: Path, *command: str) -> None:
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    proxies = {name: value for name, value in os.environ.items() if name.endswith("_proxy")}
    with log.open("ab") as output:
        done = subprocess.run(command, env=environment | proxies, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if done.returncode:
        raise NoContainers(f"their root file system cannot be made: {command[0]} fails:\n{log.read_text(errors='replace')[-1500:]}")


def _finish(root: Path) -> None:
    """Take out what is not needed, and let PostgreSQL's clients in who come through the root file system."""
    for name in USELESS:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            path.mkdir()
        else:
            path.unlink(missing_ok=True)
    (root / "etc/machine-id").touch()
    for unit in IDLE:
        (root / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    settings = root / "etc/postgresql/15/main"
    (settings / "conf.d/lab.conf").write_text(SETTINGS)
    (settings / "conf.d/lab.conf").chmod(0o644)
    (settings / "pg_hba.conf").write_text("local all all trust\nlocal replication all trust\n")
