# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Questions to a server by which people answer: with its certificate verified, without following where a reply sends on, and JSON read with care.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import ssl
import typing as t
import urllib.error
from urllib.parse import SplitResult, urlsplit

from ansible.module_utils.urls import open_url

from ansible_collections.homelab.healer.plugins.module_utils._errors import Invalid

BIGGEST = 1 << 63
LONGEST_REPLY = 16 << 20
LONGEST_TIMEOUT = 600

Lost = t.Union[OSError, http.client.HTTPException, ValueError]


def whole(value: t.Any) -> int | None:
    """A whole number; ``true`` is none, nor are digits in a text."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and -BIGGEST < value < BIGGEST else None


def part(value: t.Any, *keys: str) -> t.Any:
    """What stands under these keys, one in the other; nothing where there is no such place."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def text(value: t.Any, *keys: str) -> str:
    """The text that stands there; empty for anything else."""
    found = part(value, *keys)
    return found if isinstance(found, str) else ""


def address(option: str, url: t.Any, server: str, example: str) -> SplitResult:
    """The address below which to ask. Raises ``Invalid`` for what is none, and for one by which anybody on the way could answer."""
    what, fix = f"cannot use {option}", f"Give an address such as {example}; nothing was asked."
    try:
        parts = urlsplit(url.rstrip("/"))
        host, _port = parts.hostname or "", parts.port
    except (AttributeError, ValueError):
        host, parts = "", None
    if parts is None or not host or parts.scheme not in ("https", "http") or {"?", "#", "@"} & set(url) or not url.isprintable():
        raise Invalid(what, why=f"it is not the address of {server}", fix=fix)
    if parts.scheme == "http" and not _own(host):
        raise Invalid(what, why="without TLS anybody on the way could read the token and answer; only this machine may be asked so", fix="Use https://.")
    return t.cast(SplitResult, parts)


def check(ca_path: str | None, timeout: float) -> None:
    """Raise ``Invalid`` where it could not be asked with these."""
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise Invalid("cannot use timeout", why=f"it is not a number of seconds above 0 and at most {LONGEST_TIMEOUT}", fix="Leave it out, or give seconds.")
    if ca_path and not _authority(ca_path):
        raise Invalid("cannot use ca_path", why="there is no certificate of an authority", fix="Give the path of a PEM file, or leave it out.")


def exchange(
    url: str, *, method: str, headers: t.Mapping[str, str], timeout: float, ca_path: str | None, payload: bytes | None = None
) -> tuple[int, t.Any] | Lost:
    """The status and body of an answer, nothing for a body that is not JSON.

    A failure is returned, so that none is raised while another is handled, which would carry the address along, and a token that may be part of it.
    """
    try:
        try:
            # No redirect is followed and nothing is read from ~/.netrc; what is asked without TLS goes to this machine, and so past any proxy.
            response = open_url(
                url,
                data=payload,
                headers=dict(headers),
                method=method,
                timeout=timeout,
                ca_path=ca_path,
                use_proxy=not url.startswith("http:"),
                use_netrc=False,
                decompress=False,
                follow_redirects="none",
                http_agent="homelab.healer",
            )
        except urllib.error.HTTPError as refused:
            response = refused
        with response:
            status, raw = int(response.code), response.read(LONGEST_REPLY)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return error
    try:
        return status, json.loads(raw)
    except (ValueError, RecursionError):
        return status, None


def lost(error: Lost, option: str) -> tuple[str, str]:
    """Why there was no answer, and what to do; ``option`` is the one that has the address."""
    cause = error.reason if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException) else error
    fix = f"Look whether this machine reaches it, and {option} names it."
    if isinstance(cause, ssl.SSLError):
        fix = f"Give the authority that signed the server's certificate as ca_path, and in {option} the name that stands in it; it is never asked unverified."
    return str(cause) or type(cause).__name__, fix


def _own(host: str) -> bool:
    """Whether that host is this machine, as far as its name says."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _authority(path: str) -> bool:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError):
        return False
    return True
