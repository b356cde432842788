# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a healer's failure says: what happened, why, and what to do next.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import typing as t


class HealerError(Exception):
    """A failure told to a person as ``{what}: {why}. {fix}`` and to a program as a code.

    ``uncertain`` is true when a write was sent and its reply was lost, so that nobody can say whether it happened before somebody looks;
    ``underway`` when the server may still be at it, so that no look can say how it ends.
    """

    code = ""
    retryable = False
    begun = False
    """Whether the server had begun when it failed, so that it may have changed something."""
    partly = False
    """Whether it did a part of it, which no look can tell."""

    def __init__(self, what: str, *, why: str, fix: str, uncertain: bool = False, underway: bool = False) -> None:
        self.what = what
        self.why = why.rstrip(".\n ")
        self.fix = fix
        self.uncertain = uncertain or underway
        self.underway = underway
        super().__init__(f"{what}: {self.why}. {fix}")

    def as_dict(self) -> dict[str, t.Any]:
        """The failure as data: ``code``, ``what``, ``why``, ``fix`` and ``retryable``."""
        return {"code": self.code, "what": self.what, "why": self.why, "fix": self.fix, "retryable": self.retryable}


class Invalid(HealerError):
    """Options that contradict each other or the target, in a way that the argument spec cannot express."""

    code = "invalid"


class MissingLibrary(HealerError):
    """A Python library that the module needs is not installed where it runs."""

    code = "missing_library"


class Unreachable(HealerError):
    """There is no connection: address, socket, TLS or DNS."""

    code = "unreachable"
    retryable = True


class Denied(HealerError):
    """The server knows us and says no."""

    code = "denied"


class NotFound(HealerError):
    """There is no such target, or it cannot be seen with these rights."""

    code = "not_found"


class Conflict(HealerError):
    """The target is locked, or it changed since it was looked at."""

    code = "conflict"
    retryable = True


class Refused(HealerError):
    """A guard of this collection said no; nothing was touched."""

    code = "refused"


class TaskFailed(HealerError):
    """The server accepted the task, and failed at it."""

    code = "task_failed"


class TimedOut(HealerError):
    """The server accepted the task and is still at it, or did not answer in time."""

    code = "timed_out"


class NotConverged(HealerError):
    """The change was carried out, and did not hold."""

    code = "not_converged"


def together(errors: t.Mapping[str, HealerError]) -> HealerError:
    """One failure for several targets: the only one as it is, several with each target named.

    Takes a mapping of target name to its failure, not empty. The code is the first failure's; it may be retried when all may be.
    """
    found = list(errors.values())
    if len(found) == 1:
        return found[0]
    every = type(found[0])(
        f"{len(found)} targets failed",
        why="; ".join(f"{name}: {error.what}: {error.why}" for name, error in errors.items()),
        fix=" ".join(dict.fromkeys(error.fix for error in found)),
        uncertain=any(error.uncertain for error in found),
    )
    every.retryable = all(error.retryable for error in found)
    return every
