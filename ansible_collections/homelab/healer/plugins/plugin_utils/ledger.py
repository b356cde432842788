# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's side of the modules that use the ledger.

Adds what the inventory says of the ledger, says who runs them, refuses extra variables that would decide in the policy's place, and, where the ledger is on
the controller itself, runs the module's own code in this process, which takes a fifth of the time.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib
import json
import os
import platform
import re
import time
import typing as t
from pathlib import Path

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.errors import UnsupportedError
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

from ansible_collections.homelab.healer.plugins.module_utils._errors import HealerError
from ansible_collections.homelab.healer.plugins.module_utils._gate import MARGIN
from ansible_collections.homelab.healer.plugins.module_utils._run import keep

Facts = dict[str, t.Any]
OURS = re.compile(
    r"__(remediate|heal|docker|lxc|pg|recover)_\w+|healer_(ledger|policy|approval|notify|nodes)\w*"
    r"|remediate_(remedy|problem|target|steps|probes|point_of_return|undo_options|record)"
    r"|pg_service_(as|query|database)"
)
"""Variables that the chain decides by, or that say what is run inside a container, and where.

What a command line, a survey or an event gives beats every other source of a variable, so it must not give these.
"""
INVENTORY = {"ledger": "healer_ledger", "policy": "healer_policy", "approval": "healer_approval", "urls": "healer_notify"}
"""Which of the inventory's variables is which option, where a module has it."""


def overrides(loader: t.Any) -> list[str]:
    """The extra variables that would decide in the chain's place."""
    return sorted(str(name) for name in load_extra_vars(loader) if OURS.fullmatch(name))


class LedgerAction(ActionBase):  # type: ignore[misc]
    """An action of the same name as its module."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: Facts | None = None) -> Facts:
        result: Facts = super().run(tmp, task_vars)
        variables = task_vars or {}
        given = overrides(self._loader)
        if given:
            return {**result, **_refusal(given)}
        name = self._task.resolved_action.rpartition(".")[2]
        module = importlib.import_module(f"ansible_collections.homelab.healer.plugins.modules.{name}")
        options = {**self.from_inventory(module, variables), **self.asked(variables), **self._task.args}
        began = time.time()
        return {**result, **by_our_clock(self.answer(module, options, variables), lease_of(module, options), began)}

    def asked(self, variables: Facts) -> Facts:
        """What this action adds to the module's options."""
        return {}

    def from_inventory(self, module: t.Any, variables: Facts) -> Facts:
        """What the inventory says of the module's options."""
        known = module.ARGUMENTS["argument_spec"]
        return {option: self._templar.template(variables[name]) for option, name in INVENTORY.items() if option in known and name in variables}

    def answer(self, module: t.Any, options: Facts, variables: Facts) -> Facts:
        """Run the module, here or where its task is delegated to."""
        options = json.loads(json.dumps(options))  # plain values, whatever Ansible knows of where they come from
        if self._connection.transport == "local" and not self._connection.become:
            return here(module, options, check=self._task.check_mode)
        told: Facts = self._execute_module(module_name=self._task.resolved_action, module_args=options, task_vars=variables)
        return told


def lease_of(module: t.Any, options: Facts) -> float:
    """For how many seconds a module gives a lease, where it does."""
    known = module.ARGUMENTS["argument_spec"].get("lease", {})
    return float(options.get("lease", known.get("default", 0)))


def by_our_clock(told: Facts, lease: float, began: float) -> Facts:
    """The same answer, with its deadline by the clock of the machine whose modules are to heed it.

    The ledger's may be another's, and be wrong by hours. The lease began after ``began``, when it was asked for, so it is not over before this deadline.
    """
    if not told.get("deadline"):
        return told
    deadline = began + lease - MARGIN
    steps = [{**step, "args": {**step["args"], "deadline": deadline}} for step in told.get("steps", [])]
    return {**told, "deadline": deadline, **({"steps": steps} if "steps" in told else {})}


def here(module: t.Any, options: Facts, check: bool) -> Facts:
    """What a module of the ledger answers, asked in this process."""
    return validated(module, options, lambda params: keep(module.Request, module.connect, module.act, params, check))


def validated(module: t.Any, options: Facts, answer: t.Callable[[Facts], tuple[Facts, HealerError | None]]) -> Facts:
    """What a module answers to these options, as Ansible would have it from the module itself."""
    arguments = dict(module.ARGUMENTS)
    checked = ArgumentSpecValidator(arguments.pop("argument_spec"), **arguments).validate(json.loads(json.dumps(options)))
    if checked.error_messages:
        wrong, name = checked.errors[0], f"homelab.healer.{module.__name__.rpartition('.')[2]}"
        msg = f"Unsupported parameters for ({name}) module: {wrong}" if isinstance(wrong, UnsupportedError) else str(wrong)
        return dict(failed=True, changed=False, msg=remove_values(msg, checked._no_log_values))
    told, error = answer(checked.validated_parameters)
    if error:
        told = dict(told, failed=True, msg=str(error), error=error.as_dict())
    plain: Facts = remove_values(json.loads(json.dumps(told)), checked._no_log_values)
    return plain


def _refusal(given: t.Sequence[str]) -> Facts:
    what, why = f"will not take {', '.join(given)} from extra variables", "what may be changed is decided by the ledger host's policy and the chain itself"
    fix = "Leave them out; healer_* variables belong into the inventory."
    return dict(failed=True, changed=False, msg=f"{what}: {why}. {fix}", error=dict(code="refused", what=what, why=why, fix=fix, retryable=False))


def holder() -> Facts:
    """Who runs this: a person, a machine, and a process that can be looked for."""
    main = os.getppid()
    job = next((f"{name}={os.environ[name]}" for name in ("JOB_ID", "SEMAPHORE_TASK_ID") if os.environ.get(name)), "")
    user = os.environ.get("SUDO_USER") or getpass.getuser()
    return dict(
        user=user,
        uid=os.geteuid(),
        machine=platform.node(),
        machine_id=_machine(),
        boot=_boot(),
        tree=_tree(),
        pid=main,
        started=_started(main),
        image=_image(Path(f"/proc/{main}")),
        job=job,
    )


def gone(held: t.Mapping[str, t.Any], remediation: str) -> bool:
    """Whether the process that held a remediation, and all that it had begun, is certainly gone. What ran on another machine cannot be known."""
    ours = holder()
    if not ours["machine_id"] or any(held.get(name) != ours[name] for name in ("machine", "machine_id")):
        return False
    if held.get("boot") != ours["boot"]:  # this machine was started again since
        return True
    if held.get("tree") != ours["tree"]:  # another container on it
        return False
    if os.geteuid() not in (0, held.get("uid", os.geteuid())):  # whose processes we cannot look into
        return False
    return _started(int(held["pid"])) != held["started"] and not _working(held, remediation)


def _working(held: t.Mapping[str, t.Any], remediation: str) -> bool:
    """Whether a process still works for a remediation: the run's own that was about to start a module, the module, or what has started it elsewhere."""
    mark = f"HEALER_REMEDIATION={remediation}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        if (held.get("image") and _image(process) == held["image"]) or mark in _read(process / "environ").split(b"\0") or mark in _read(process / "cmdline"):
            return True
    return False


def _image(process: Path) -> str:
    """What a process has in common with those that it forked and with no others: the places in memory that the kernel drew for its program by lot."""
    places = _read(process / "auxv")
    return hashlib.sha256(places).hexdigest()[:16] if places else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has ended, or is not ours


def _boot() -> str:
    """This start of the machine's kernel."""
    return _read(Path("/proc/sys/kernel/random/boot_id")).decode().strip()


def _tree() -> str:
    """Which of the machine's process trees we are in."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _machine() -> str:
    return _read(Path("/etc/machine-id")).decode().strip()


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks, so that a number that was given out again is not taken for it; empty where it is gone."""
    after_its_name = _read(Path(f"/proc/{pid}/stat")).decode("utf-8", "replace").rpartition(")")[2].split()
    return "" if not after_its_name or after_its_name[0] == "Z" else after_its_name[19]
