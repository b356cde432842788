# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Messages to people, sent through Apprise.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import contextlib
import traceback
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.homelab.healer.plugins.module_utils._errors import Invalid, MissingLibrary, Unreachable

try:
    import apprise

    IMPORT_ERROR: str | None = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

OPTIONS: dict[str, t.Any] = dict(urls=dict(type="list", elements="str", required=True, no_log=True))


@dataclass(frozen=True)
class Address:
    """Where a message goes: its place in the list, and its kind, such as ``ntfy``. The rest of it is secret."""

    key: int
    kind: str

    @property
    def name(self) -> str:
        return f"address {self.key} ({self.kind})"


@contextlib.contextmanager
def connect(params: t.Mapping[str, t.Any]) -> t.Iterator[Messenger]:
    """Read the addresses. Nothing is sent yet."""
    if IMPORT_ERROR:
        raise MissingLibrary("cannot send a message", why=missing_required_lib("apprise"), fix="Install it where this module runs: pip install 'apprise>=1.9'.")
    yield Messenger(params["urls"])


class Messenger:
    """All addresses, by their places."""

    def __init__(self, urls: t.Sequence[str]) -> None:
        self._urls = list(urls)

    def addresses(self, places: t.Sequence[int] | None) -> list[Address]:
        """The addresses at these places, or all."""
        wanted = range(len(self._urls)) if places is None else places
        for place in wanted:
            if not 0 <= place < len(self._urls):
                raise Invalid(f"cannot send to address {place}", why=f"there are {len(self._urls)}, and the first is 0", fix="Correct places.")
        return [Address(place, _kind(self._urls[place])) for place in wanted]

    def send(self, address: Address, title: str, body: str) -> None:
        """Send one message. Raises ``Invalid`` for an address that Apprise cannot read, ``Unreachable`` where the service did not take it."""
        what, sender = f"cannot send to {address.name}", apprise.Apprise()
        if not sender.add(self._urls[address.key]):
            raise Invalid(what, why="Apprise cannot read it", fix="Write it as Apprise's documentation says.")
        if not sender.notify(title=title, body=body, body_format=apprise.NotifyFormat.TEXT):
            raise Unreachable(what, why="its service did not take the message", fix="Try the address with Apprise's own command, which tells more.")


def _kind(url: str) -> str:
    kind = url.partition("://")[0]
    return kind if kind.isalnum() and len(kind) < 20 else "unreadable"
