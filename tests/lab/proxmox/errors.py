"""What a server answers instead of a result."""

from __future__ import annotations

VERIFICATION = "Parameter verification failed."


class ApiError(Exception):
    """An answer that is no success.

    ``status`` is the HTTP status, ``text`` the message (its first line becomes the reason phrase), ``errors`` a text per parameter. ``bare`` answers have no
    body at all, and ``plain`` ones have the text itself where others have JSON. ``delay`` is in simulated seconds.
    """

    def __init__(
        self,
        status: int,
        text: str,
        errors: dict[str, str] | None = None,
        *,
        bare: bool = False,
        plain: str | None = None,
        delay: float = 0,
        newline: bool = True,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.errors = errors
        self.bare = bare
        self.plain = plain
        self.delay = delay
        self.newline = newline


class TaskError(Exception):
    """A worker's death; the text is the task's exit status."""


def die(text: str) -> ApiError:
    """What a handler says when it fails: 500 with its words as reason phrase."""
    return ApiError(500, text)


def refuse(errors: dict[str, str]) -> ApiError:
    """400 with a text per parameter; refusals of the kernel come back in this shape too."""
    return ApiError(400, VERIFICATION, errors)


def deny(what: str) -> ApiError:
    return ApiError(403, f"Permission check failed ({what})")


def not_implemented(method: str, path: str) -> ApiError:
    return ApiError(501, f"Method '{method} {path}' not implemented", newline=False)
