# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands in a container, run by ``pct`` on the Proxmox VE node that has it: the one place with command lines of ``pct`` and what its words mean.

Nothing here goes through a shell: a command is a list of arguments from its beginning to its end.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.homelab.healer.plugins.module_utils._errors import (
    Conflict,
    Denied,
    HealerError,
    Invalid,
    MissingLibrary,
    NotFound,
    Refused,
    TaskFailed,
    TimedOut,
    Unreachable,
    together,
)
from ansible_collections.homelab.healer.plugins.module_utils._services import (
    OPENRC_WORDS,
    PROPERTIES,
    Service,
    Unit,
    bare,
    instances,
    openrc_files,
    openrc_unit,
    parse_units,
    started_at,
    tail,
)

OPTIONS: dict[str, t.Any] = dict(exec_timeout=dict(type="int", default=30))
"""What every module needs that runs something in a container."""
NODES = "/etc/pve/nodes"
"""Where a node knows which node has which guest."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C", "LANG": "C", "HOME": "/root", "TERM": "dumb", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "", "SYSTEMD_URLIFY": "0"}
"""All that a command has around it: ``pct exec`` hands on whatever it was started with."""
KEPT = 1 << 16
"""Bytes of each output that are kept; the rest is read and thrown away."""
POLL = 0.5
"""Seconds between two looks whether a command has ended whose output goes on."""
LAST_WORDS = 2.0
"""Seconds for which the output of a command that has ended is waited for: a service that it started may hold on to it."""
JOURNAL = 10
"""Lines of a unit's journal that are worth telling."""

UNRUNNABLE = "it cannot be run"
"""How the words about a probe begin that can never answer."""

ELSEWHERE = r"^Configuration file 'nodes/(?P<here>[^/']+)/(?:lxc|qemu-server)/(?P<vmid>\d+)\.conf' does not exist"
NO_PROGRAM = r"^lxc-attach: .*Failed to exec|^(?:lxc-attach|env): .*No such file or directory"
NO_SYSTEMD = r"has not been booted with systemd"
Phrases = t.Tuple[t.Tuple[str, t.Type[HealerError], str], ...]
OF_PCT: Phrases = (
    (ELSEWHERE, NotFound, ""),
    (r"^container '\d+' not running!", Conflict, "Start it first, as with homelab.healer.lxc_power."),
    (r"^(?:please run as root|.*can't run as user)", Denied, "pct needs root: let Ansible become root on the node."),
    (r"^400 Parameter verification failed", Invalid, "Give the number of a container, as pct list shows them."),
    (r"^(?:ipcc_send_rec|.*cluster not ready|Unable to load access control list)", Unreachable, "Look on the node: systemctl status pve-cluster."),
    (r"^lxc-attach: .*(?:Failed to get init pid|No such process|is not running)", Conflict, "It was stopped in the meantime; run this again."),
    (NO_PROGRAM, NotFound, "Install it in the container, or name another one."),
    (r"^lxc-attach: ", TaskFailed, "Look with pct enter whether anything can be run in it."),
)
OF_INIT: Phrases = (
    (r"Unit \S+ is masked\.", Refused, "Somebody wanted it never to run. If that is over: systemctl unmask in the container."),
    (
        r"Unit \S+ (?:not found|could not be found)\.|does not exist$",
        NotFound,
        "List what there is: systemctl list-unit-files --type=service in the container.",
    ),
    (r"Job type reload is not applicable|cannot be reloaded because it is inactive", Refused, "It cannot be reloaded; restart it."),
    (r"may be requested by dependency only", Refused, "Its unit file forbids that (RefuseManualStart, RefuseManualStop); act on what it is part of."),
    (r"has a bad unit file setting", Refused, "Correct its unit file: systemd-analyze verify in the container names the line."),
    (
        r"Failed to connect to bus|Transport endpoint is not connected|Connection timed out",
        Unreachable,
        "systemd does not answer there; if that lasts, restart it.",
    ),
    (NO_SYSTEMD, Refused, "Look with pct exec -- ps what runs as process 1 in it, and restart the service by that."),
    (r"Access denied|authentication required", Denied, "systemd does not let the container's root do that."),
)
PHRASES = OF_PCT + OF_INIT
"""What the words of ``pct``, of ``lxc-attach`` and of systemd mean: a pattern for a line, the failure, and what to do. The first that fits."""


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said, each up to ``KEPT`` bytes."""

    code: int
    out: str
    err: str

    def says(self, pattern: str) -> bool:
        """Whether a line of what it complained about fits."""
        return bool(re.search(pattern, self.err, re.MULTILINE))

    @property
    def told(self) -> str:
        """Its last words, fit to be told."""
        return "; ".join(tail(self.err or self.out, 3)) or f"it ended with {self.code}, without a word"


@contextlib.contextmanager
def connect(params: t.Mapping[str, t.Any]) -> t.Iterator[Node]:
    """The node that this runs on."""
    program = shutil.which("pct", path=f"{os.environ.get('PATH', '')}:{PATH}")
    if program is None:
        why = "there is no pct, so this is no node of Proxmox VE"
        raise MissingLibrary("cannot reach into a container", why=why, fix="Let the module run on the node that has the container, with delegate_to.")
    if params["exec_timeout"] <= 0:
        raise Invalid("cannot reach into a container", why="exec_timeout is not above 0", fix="Give seconds; 30 is the default.")
    yield Node(program, params["exec_timeout"])


def refusal(what: str, vmid: int, said: str, phrases: Phrases | None = None) -> HealerError | None:
    """The failure that these words mean; ``None`` where they are none of those that are known."""
    for pattern, failure, fix in phrases or PHRASES:
        found = re.search(pattern, said, re.MULTILINE)
        if found and pattern == ELSEWHERE:
            return elsewhere(what, vmid, found["here"])
        if found:
            return failure(what, why="; ".join(tail(said, 3)), fix=fix)
    return None


def elsewhere(what: str, vmid: int, here: str) -> NotFound:
    """That a container is not on this node, and on which it is."""
    paths = sorted(glob.glob(f"{NODES}/*/*/{vmid}.conf"))
    if not paths:
        why = f"{here}, on which this ran, has no container {vmid}, nor does it know of a node that has"
        return NotFound(what, why=why, fix="Look with pct list on each node; homelab.healer.lxc_info tells which one has it.")
    node, kind = paths[0].split(os.sep)[-3:-1]
    if kind != "lxc":
        return NotFound(what, why=f"{vmid} is a virtual machine", fix="Name a container.")
    return NotFound(what, why=f"it is on {node}, and this ran on {here}", fix=f"Run it on {node}.")


class Node:
    """The node's containers, seen from within. ``run`` is the one way into them; ``act`` and ``reset_failed`` are what changes something."""

    def __init__(self, program: str, limit: float) -> None:
        self._program, self.limit = program, limit

    def run(self, vmid: int, command: t.Sequence[str], what: str, limit: float | None = None, writing: bool = False) -> Done:
        """Run a command in a container, for at most ``limit`` seconds. ``what`` is what a failure could not do.

        How the command itself ends is its caller's matter; what ``pct`` says in its place is raised.
        """
        limit = self.limit if limit is None else limit
        done = execute([self._program, "exec", str(vmid), "--", *command], limit)
        if done is None:
            why = f"{command[0]} gave no answer within {limit:.0f} s; a container that is frozen, as by a backup, keeps everything waiting"
            fix = "Look whether it is frozen (lxc-info on the node), or give exec_timeout or timeout more seconds."
            raise TimedOut(f"{what} in container {vmid}" if str(vmid) not in what else what, why=why, fix=fix, underway=writing)
        if done.code == 255 or done.says("^lxc-attach: "):
            error = None if done.says(NO_PROGRAM) else refusal(what, vmid, done.err, OF_PCT)
            if error:
                raise error
        return done

    # What there is

    def service(self, vmid: int, name: str) -> Service:
        """A service as it is now, with the units that do its work."""
        what = f"cannot look at {name} in {vmid}"
        done = self.run(vmid, ["systemctl", "show", f"--property={PROPERTIES}", "--", name], what)
        if done.says(NO_PROGRAM) or done.says(NO_SYSTEMD):
            return self._openrc(vmid, name, what)
        (unit,) = self._units(vmid, done, 1, what)
        others = instances(unit)
        if not others:
            return Service(vmid, unit, (unit,))
        done = self.run(vmid, ["systemctl", "show", f"--property={PROPERTIES}", "--", *others], what)
        return Service(vmid, unit, tuple(self._units(vmid, done, len(others), what)))

    def unit(self, vmid: int, unit: Unit) -> Unit:
        """The same unit as it is now."""
        what = f"cannot look at {unit.id} in {vmid}"
        if unit.init == "openrc":
            return self._openrc(vmid, unit.id, what).asked
        return self._units(vmid, self.run(vmid, ["systemctl", "show", f"--property={PROPERTIES}", "--", unit.id], what), 1, what)[0]

    def _units(self, vmid: int, done: Done, number: int, what: str) -> list[Unit]:
        if done.code:
            raise refusal(what, vmid, done.err) or TaskFailed(what, why=done.told, fix="Look with pct enter what systemctl says in it.")
        try:
            return parse_units(done.out, number)
        except ValueError as error:
            raise TaskFailed(what, why=f"systemctl's answer is not understood: {error}", fix="Look with pct enter what systemctl show says in it.") from error

    def _openrc(self, vmid: int, name: str, what: str) -> Service:
        try:
            plain = bare(name)
        except ValueError as error:
            raise Invalid(what, why=str(error), fix="Name a service as rc-status lists it in the container.") from error
        done = self.run(vmid, ["rc-service", "--nocolor", plain, "status"], what)
        if done.says(NO_PROGRAM):
            why = "it has neither systemd nor OpenRC"
            raise Refused(what, why=why, fix="Look with pct enter what runs as process 1 in it, and restart the service by that.")
        if done.code not in OPENRC_WORDS:
            raise refusal(what, vmid, done.err) or TaskFailed(what, why=done.told, fix="Look with pct enter what rc-service says in it.")
        files = (f"/run/openrc/{kind}" for kind in (f"daemons/{plain}/001", f"options/{plain}/pidfile", f"options/{plain}/child_pid"))
        child, pidfile = openrc_files(self.run(vmid, ["grep", "", *files], what).out)  # which names the file of each line
        pid = child or (self._number(vmid, pidfile, what) if pidfile else 0)
        born = started_at(self.run(vmid, ["cat", f"/proc/{pid}/stat"], what).out) if pid else ""
        stamp = self.run(vmid, ["stat", "-c", "%z", f"/run/openrc/started/{plain}"], what).out.strip()
        unit = openrc_unit(plain, done.code, pid, born, stamp)
        return Service(vmid, unit, (unit,))

    def _number(self, vmid: int, path: str, what: str) -> int:
        text = self.run(vmid, ["cat", "--", path], what).out.strip()
        return int(text) if text.isdigit() and len(text) < 10 else 0

    def journal(self, vmid: int, unit: Unit, lines: int = JOURNAL) -> list[str]:
        """The last lines that a unit wrote, fit to be told; none where they cannot be had."""
        if unit.init != "systemd":
            return []
        command = ["journalctl", "--quiet", "--no-pager", "--output=short-iso", f"--lines={lines}", f"--unit={unit.id}"]
        try:
            return tail(self.run(vmid, command, "cannot read the journal").out, lines)
        except HealerError as error:
            return [f"(its journal cannot be read: {error.why})"]

    def answers(self, vmid: int, probe: t.Sequence[str], until: float) -> str | None:
        """Why a probe got no answer, in words fit to be told; nothing where it ended with 0. It is killed after ``until``, a second at the earliest."""
        try:
            done = self.run(vmid, probe, f"cannot run {probe[0]} in {vmid}", min(self.limit, max(1.0, until - time.monotonic())))
        except TimedOut as error:
            return error.why
        if done.says(NO_PROGRAM):
            return f"{UNRUNNABLE}: {done.told}"
        return None if done.code == 0 else f"it ended with {done.code}: {done.told}"

    # What changes something

    def act(self, vmid: int, unit: Unit, verb: str, what: str, limit: float) -> None:
        """Let the container's init ``start``, ``restart`` or ``reload`` a unit. systemd goes on with a start by itself after this returns."""
        if unit.init == "openrc":
            command = ["rc-service", "--nocolor", unit.id, verb]
        else:
            command = ["systemctl", *([] if verb == "reload" else ["--no-block"]), verb, "--", unit.id]
        slow = unit.init == "openrc" or verb == "reload"
        self._write(vmid, command, what, limit if slow else self.limit)

    def reset_failed(self, vmid: int, unit: Unit, what: str) -> None:
        """Let systemd forget that a unit failed, and how often it was started."""
        self._write(vmid, ["systemctl", "reset-failed", "--", unit.id], what, self.limit)

    def _write(self, vmid: int, command: t.Sequence[str], what: str, limit: float) -> None:
        done = self.run(vmid, command, what, limit, writing=True)
        if done.code:
            error = refusal(what, vmid, done.err) or TaskFailed(what, why=done.told, fix="Look into its journal.")
            error.begun = isinstance(error, TaskFailed)
            raise error


StateT = t.TypeVar("StateT")


def each(vmids: t.Iterable[int], look: t.Callable[[int], StateT]) -> list[StateT]:
    """What is seen of each container, or all that was in the way, each container named."""
    seen: list[StateT] = []
    errors: dict[str, HealerError] = {}
    for vmid in vmids:
        try:
            seen.append(look(vmid))
        except HealerError as error:
            errors[str(vmid)] = error
    if errors:
        raise together(errors)
    return seen


def execute(command: t.Sequence[str], limit: float) -> Done | None:
    """Run a command for at most ``limit`` seconds, with a clean environment and no input; ``None`` if it had to be killed, with all that it had started."""
    running = subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, start_new_session=True, cwd="/"
    )
    with contextlib.ExitStack() as pipes:  # not the process itself, for which this would wait without a limit
        for pipe in (running.stdout, running.stderr):
            pipes.enter_context(t.cast("t.IO[bytes]", pipe))
        try:
            outputs = _read(running, time.monotonic() + limit)
        finally:
            _end(running)
    return None if outputs is None else Done(running.returncode, *(output.decode("utf-8", "replace") for output in outputs))


def _read(running: subprocess.Popen[bytes], until: float) -> tuple[bytes, bytes] | None:
    """All that a command says until it ends, bounded; ``None`` where it does not end in time."""
    ended = False
    kept: dict[t.Any, bytearray] = {running.stdout: bytearray(), running.stderr: bytearray()}
    with selectors.DefaultSelector() as waiting:
        for output in kept:
            waiting.register(output, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(min(POLL, max(0.0, until - time.monotonic())))
            if running.poll() is not None and not ended:
                ended, until = True, min(until, time.monotonic() + LAST_WORDS)
            if time.monotonic() >= until:
                break
            for key, _events in ready:
                read = os.read(key.fd, 1 << 14)
                kept[key.fileobj].extend(read[: KEPT - len(kept[key.fileobj])])
                if not read:
                    waiting.unregister(key.fileobj)
    try:
        running.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    return bytes(kept[running.stdout]), bytes(kept[running.stderr])


def _end(running: subprocess.Popen[bytes]) -> None:
    """Kill a command that has not ended, and what it had started with it."""
    if running.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(LAST_WORDS)
