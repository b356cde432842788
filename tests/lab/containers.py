"""Real Linux containers on a btrfs file system of their own, as Proxmox VE's node has them; and the lab's ``pct``, which enters them.

    with containers() as lab:
        lab.create(200, image="postgres", memory=512)
        lab.start(200)
        lab.exec(200, ["systemctl", "restart", "postgresql@15-main"])

Each has a network of its own without a way out. What the lab knows of them is in its folder, so that another process, such as the simulated Proxmox VE,
can be given that folder and handle them as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from tests.lab.cgroups import MIB, PERIOD, WHERE, Figures, Groups, Limits, cpus, home, version
from tests.lab.engine import LabError
from tests.lab.rootfs import NoContainers, alone, archive

__all__ = ["Container", "Containers", "Figures", "Limits", "NoContainers", "containers"]

PREFIX = "healer-lab-lxc-"
DISK = 16 * 2**30
"""Bytes of the file with the file system; it takes no more of the disk than is written."""
PROGRAMS = ("lxc-start", "lxc-attach", "lxc-stop", "mkfs.btrfs", "btrfs", "losetup", "tar")
NODE = "pve1"
OPENRC = "openrc-init"
DEVICES = ("c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm")
CONFIG = """\
lxc.uts.name = {hostname}
lxc.rootfs.path = dir:{root}
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.tty.max = 0
lxc.pty.max = 64
lxc.cap.drop = mac_admin mac_override sys_time sys_module sys_rawio sys_boot
lxc.mount.auto = cgroup:mixed proc:mixed sys:mixed
lxc.signal.halt = {halt}
lxc.console.path = none
"""


class Container:
    """One of them. All that is known of it is in the lab's folder, so any process may make this of the same one."""

    def __init__(self, folder: Path, vmid: int) -> None:
        self.vmid = vmid
        self.name = f"{folder.name}-{vmid}"
        self.disk = folder / "disk" / str(vmid)
        self.root = self.disk / "root"
        self.groups = Groups(self.name)
        self._lxc = folder / "lxc"
        self._log = folder / "lxc" / f"{vmid}.log"

    def _run(self, program: str, *arguments: str, check: bool = True, patience: float = 60) -> subprocess.CompletedProcess[str]:
        command = [program, "-P", str(self._lxc), "-n", self.name, *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, check=False)
        if check and done.returncode:
            log = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
            raise LabError(f"{program} of container {self.vmid} fails: {done.stdout}{done.stderr}{log}")
        return done

    # power

    @property
    def pid(self) -> int:
        """Its first process, as the machine numbers it; 0 where it does not run."""
        told = self._run("lxc-info", "-p", "-H", check=False).stdout.strip()
        return int(told) if told.isdigit() else 0

    def seconds(self) -> float:
        """For how long it has run."""
        began = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[19]  # in ticks since the machine was booted
        return float(Path("/proc/uptime").read_text().split()[0]) - int(began) / os.sysconf("SC_CLK_TCK")

    @property
    def running(self) -> bool:
        return self.pid != 0

    def start(self, limits: Limits) -> None:
        """Start it with these limits; it goes on booting by itself."""
        self._log.parent.mkdir(exist_ok=True)
        config = self._lxc / self.name / "config"
        config.parent.mkdir(exist_ok=True)
        hostname = (self.root / "etc/hostname").read_text().strip()
        lines = [
            CONFIG.format(root=self.root, hostname=hostname, halt="SIGTERM" if self.openrc else "SIGRTMIN+3"),
            *(f"lxc.{key} = {value}\n" for key, value in self._limits(limits)),
        ]
        config.write_text("".join(lines))
        until = time.monotonic() + 10
        while self.groups.file("memory", "").exists() and time.monotonic() < until:
            time.sleep(0.02)  # those of its last run: LXC would make new ones of another name beside them
        self._run("lxc-start", "-d", "-o", str(self._log), "-l", "NOTICE")

    def _limits(self, limits: Limits) -> t.Iterator[tuple[str, object]]:
        """The keys of LXC's configuration that set them; what is allowed of devices goes with them."""
        group = "cgroup2" if self.groups.version == 2 else "cgroup"
        yield f"{group}.devices.deny", "a"
        for device in DEVICES:
            yield f"{group}.devices.allow", device
        yield f"{group}.cpuset.cpus", cpus(limits.cores)
        quota = int(PERIOD * limits.cpulimit)
        if group == "cgroup2":
            yield "cgroup2.memory.max", limits.memory * MIB
            yield "cgroup2.memory.swap.max", limits.swap * MIB
            yield "cgroup2.cpu.max", f"{quota or 'max'} {PERIOD}"
        else:
            yield "cgroup.memory.limit_in_bytes", limits.memory * MIB
            yield "cgroup.memory.memsw.limit_in_bytes", (limits.memory + limits.swap) * MIB
            yield "cgroup.cpu.cfs_quota_us", quota or -1

    @property
    def openrc(self) -> bool:
        """Whether OpenRC is its init, and not systemd."""
        return str((self.root / "sbin/init").readlink()) == OPENRC

    def wait(self, seconds: float = 60) -> None:
        """Until it has booted: its init has started what it was to start."""
        until = time.monotonic() + seconds
        asked = ["sh", "-c", "test ! -e /run/openrc/rc.starting && rc-status --runlevel"] if self.openrc else ["systemctl", "is-system-running"]
        while (state := self.exec(asked, check=False).stdout.strip()) not in {"running", "degraded", "default"}:
            if time.monotonic() > until:
                raise LabError(f"container {self.vmid} has not booted after {seconds:.0f} s: {state}")
            time.sleep(0.1)

    def stop(self, seconds: int = 60) -> bool:
        """Shut it down; whether it ended within that time."""
        return not self.running or self._run("lxc-stop", "--nokill", "-t", str(seconds), check=False, patience=seconds + 30).returncode == 0

    def kill(self) -> None:
        if not self.running:
            return
        self.thaw()  # the signal would wait for that
        done = self._run("lxc-stop", "--kill", check=False)
        if self.running:
            raise LabError(f"container {self.vmid} cannot be killed: {done.stdout}{done.stderr}")

    def freeze(self) -> None:
        self._run("lxc-freeze")

    def thaw(self) -> None:
        self._run("lxc-unfreeze", check=False)

    def exec(self, command: t.Sequence[str], *, check: bool = True, patience: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in it, with a new environment."""
        return self._run("lxc-attach", "--clear-env", "--", *command, check=check, patience=patience)

    # limits

    def set_limits(self, limits: Limits) -> None:
        """Hold it to these while it runs; raises OSError with the kernel's reason where that refuses."""
        self.groups.set_memory(limits.memory, limits.swap)
        self.groups.set_quota(limits.cpulimit)
        self.groups.set_cores(limits.cores)

    # snapshots

    def _snapshot(self, name: str) -> Path:
        return self.disk / f"snapshot-{name}"

    def snapshots(self) -> list[str]:
        return sorted(path.name.removeprefix("snapshot-") for path in self.disk.glob("snapshot-*"))

    def snapshot(self, name: str) -> None:
        """As Proxmox VE makes one: nothing in it runs meanwhile, and what it holds in memory is not part of it."""
        running = self.running
        if running:
            self.freeze()
        try:
            btrfs("subvolume", "snapshot", "-r", str(self.root), str(self._snapshot(name)))
        finally:
            if running:
                self.thaw()

    def delete_snapshot(self, name: str) -> None:
        btrfs("subvolume", "delete", str(self._snapshot(name)))

    def rollback(self, name: str) -> None:
        """Back to a snapshot: it is killed, and what was written since is gone."""
        self.kill()
        btrfs("subvolume", "delete", str(self.root))
        btrfs("subvolume", "snapshot", str(self._snapshot(name)), str(self.root))

    def destroy(self) -> None:
        self.kill()
        for name in self.snapshots():
            self.delete_snapshot(name)
        btrfs("subvolume", "delete", str(self.root))
        self.disk.rmdir()
        shutil.rmtree(self._lxc / self.name, ignore_errors=True)


def btrfs(*arguments: str) -> None:
    done = subprocess.run(["btrfs", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"btrfs {' '.join(arguments)} fails: {done.stderr.strip()}")


class Containers:
    """The lab's containers by their numbers, and what ``pct`` believes: which node this is, and on which each of them is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = version()
        self.pct = folder / "bin"
        """A folder to put on the path: it has ``pct`` in it."""

    def prepare(self) -> None:
        """Make ``pct``, and the images that containers begin as."""
        self._remember({"here": NODE, "guests": {}})
        self.pct.mkdir()
        (self.pct / "pct").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).with_name("pct.py")} {self.folder} "$@"\n')
        (self.pct / "pct").chmod(0o755)
        disk = self.folder / "disk"
        btrfs("subvolume", "create", str(disk / "postgres"))
        _must("tar", "--extract", "--numeric-owner", "--xattrs", "--file", str(archive()), "--directory", str(disk / "postgres"))
        btrfs("subvolume", "snapshot", str(disk / "postgres"), str(disk / "debian"))
        (disk / "debian/etc/systemd/system/postgresql.service").symlink_to("/dev/null")
        btrfs("subvolume", "snapshot", str(disk / "postgres"), str(disk / "openrc"))
        (disk / "openrc/sbin/init").unlink()
        (disk / "openrc/sbin/init").symlink_to(OPENRC)
        for service in ("cgroups", "hwclock.sh"):
            (disk / "openrc/etc/runlevels/sysinit" / service).unlink(missing_ok=True)

    # what is known

    def _facts(self) -> dict[str, t.Any]:
        facts: dict[str, t.Any] = json.loads((self.folder / "facts.json").read_text())
        return facts

    def _remember(self, facts: t.Mapping[str, t.Any]) -> None:
        new = self.folder / "facts.json.new"
        new.write_text(json.dumps(facts))
        new.replace(self.folder / "facts.json")

    def numbers(self) -> list[int]:
        return [int(vmid) for vmid in self._facts()["guests"]]

    def __getitem__(self, vmid: int) -> Container:
        if vmid not in self.numbers():
            raise KeyError(vmid)
        return Container(self.folder, vmid)

    def wanted(self, vmid: int) -> Limits:
        """The limits that it is started with."""
        return Limits(**self._facts()["guests"][str(vmid)]["limits"])

    def move(self, vmid: int, node: str) -> None:
        """Let ``pct`` believe that it is on another node."""
        facts = self._facts()
        facts["guests"][str(vmid)]["node"] = node
        self._remember(facts)

    def execs(self) -> list[list[str]]:
        """What entered containers through ``pct exec``, oldest first: each the words after ``pct``."""
        log = self.folder / "execs.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    # what can be done

    def create(self, vmid: int, image: str = "debian", hostname: str = "", **limits: t.Any) -> Container:
        """A stopped container. ``image`` is ``debian``, ``postgres`` with a server that starts, or ``openrc`` with one that OpenRC starts; ``limits`` are those
        of ``Limits``."""
        container = Container(self.folder, vmid)
        container.disk.mkdir()
        btrfs("subvolume", "snapshot", str(self.folder / "disk" / image), str(container.root))
        name = hostname or f"CT{vmid}"
        (container.root / "etc/hostname").write_text(f"{name}\n")
        (container.root / "etc/hosts").write_text(f"127.0.0.1 localhost {name}\n")
        facts = self._facts()
        facts["guests"][str(vmid)] = {"node": facts["here"], "hostname": name, "name": container.name, "limits": dataclasses.asdict(Limits(**limits))}
        self._remember(facts)
        return container

    def start(self, vmid: int) -> None:
        """Start it, and wait until it has booted."""
        container = self[vmid]
        container.start(self.wanted(vmid))
        container.wait()

    def limits(self, vmid: int, **limits: t.Any) -> None:
        """Change some of its limits: at once if it runs, and for its next start."""
        container, facts = self[vmid], self._facts()
        wanted = dataclasses.replace(self.wanted(vmid), **limits)
        if container.running:
            container.set_limits(wanted)
        facts["guests"][str(vmid)]["limits"] = dataclasses.asdict(wanted)
        self._remember(facts)

    def stop(self, vmid: int) -> None:
        """Shut it down."""
        if not self[vmid].stop():
            raise LabError(f"container {vmid} does not stop")

    def kill(self, vmid: int) -> None:
        self[vmid].kill()

    def freeze(self, vmid: int) -> None:
        self[vmid].freeze()

    def thaw(self, vmid: int) -> None:
        self[vmid].thaw()

    def exec(self, vmid: int, command: t.Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it, not by ``pct``, so that it is not in ``execs``."""
        return self[vmid].exec(command, check=check)

    def usage(self, vmid: int) -> Figures:
        return self[vmid].groups.figures()

    def snapshot(self, vmid: int, name: str) -> None:
        self[vmid].snapshot(name)

    def delete_snapshot(self, vmid: int, name: str) -> None:
        self[vmid].delete_snapshot(name)

    def rollback(self, vmid: int, name: str) -> None:
        """Back to a snapshot; it is stopped afterwards."""
        self[vmid].rollback(name)

    def destroy(self, vmid: int) -> None:
        self[vmid].destroy()
        facts = self._facts()
        del facts["guests"][str(vmid)]
        self._remember(facts)


# the machine


def _demand() -> None:
    """Raise NoContainers where there can be none."""
    if os.geteuid() != 0:
        raise NoContainers("they need root")
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        raise NoContainers(f"{', '.join(missing)} missing: run tests/lab/prepare")
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "--quiet", "btrfs"], stderr=subprocess.DEVNULL, check=False)
    if "\tbtrfs" not in Path("/proc/filesystems").read_text():
        raise NoContainers("the kernel has no btrfs")
    if not Path("/dev/loop-control").exists():
        raise NoContainers("there are no loop devices")
    for controller in ("memory", "cpu", "cpuset", "freezer", "devices") if version() == 1 else ("",):
        group = home(controller, WHERE) / f"{PREFIX}{os.getpid()}"
        try:
            group.mkdir()
            group.rmdir()
        except OSError as error:
            raise NoContainers(f"no control group can be made: {error}") from error
    if version() == 1 and not (home("memory") / "memory.memsw.limit_in_bytes").exists():
        raise NoContainers("the kernel does not account for swap")


def _mount(folder: Path) -> None:
    """A new btrfs file system on a sparse file; without the file's own cache where that can be, as it would count as the containers' memory."""
    file, disk = folder / "disk.btrfs", folder / "disk"
    with file.open("wb") as sparse:
        sparse.truncate(DISK)
    disk.mkdir()
    device = ""
    try:
        _must("mkfs.btrfs", "--quiet", str(file))
        try:
            device = _must("losetup", "--find", "--show", "--direct-io=on", str(file)).strip()
        except NoContainers:  # there are file systems that cannot
            device = _must("losetup", "--find", "--show", str(file)).strip()
        _must("mount", "-t", "btrfs", "-o", "noatime", device, str(disk))
    finally:
        if device:  # it goes as soon as nothing is mounted from it
            subprocess.run(["losetup", "--detach", device], stderr=subprocess.DEVNULL, check=False)


def _must(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoContainers(f"{command[0]} fails: {done.stderr.strip()}")
    return done.stdout


def _tidy(folder: Path) -> None:
    """End the containers of a lab, and remove all that it left."""
    for entry in (folder / "disk").glob("[0-9]*"):
        with contextlib.suppress(LabError, subprocess.TimeoutExpired):
            Container(folder, int(entry.name)).kill()
    if os.path.ismount(folder / "disk") and subprocess.run(["umount", str(folder / "disk")], stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run(["umount", "--lazy", str(folder / "disk")], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Remove what labs left whose process was killed: nobody holds their folder any more."""
    for folder in Path("/var/tmp").glob(f"{PREFIX}*"):
        with _held(folder) as ours:
            if ours:
                _tidy(folder)


@contextlib.contextmanager
def _held(folder: Path) -> t.Iterator[bool]:
    """Hold a lab's folder for as long as this process lives; whether nobody else does."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(number)


@contextlib.contextmanager
def containers() -> t.Iterator[Containers]:
    """A place for containers; nothing of them is left afterwards."""
    _demand()
    archive()
    with contextlib.ExitStack() as stack:
        with alone("folders"):
            _sweep()
            # A short path, as that of a socket in a container's root may have no more than 107 characters.
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/var/tmp"))
            stack.enter_context(_held(folder))
        stack.callback(_tidy, folder)
        _mount(folder)
        lab = Containers(folder)
        lab.prepare()
        yield lab
