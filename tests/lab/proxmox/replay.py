"""Send a recording of a real server to the simulator, request by request, and tell where the answers differ.

A recording is a list of exchanges: ``method path auth data query status reason body task``. It is compared by status, reason phrase, errors per
parameter, the worker's exit status and the shape of the data; what differs from run to run (workers' names, digests) counts as equal.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import ssl
import time
import typing as t
from urllib.parse import quote, urlencode

from tests.lab.proxmox.client import Proxmox

Record = dict[str, t.Any]

ROOT, HEALER = "root@pam!tk", "heal@pve!ci"
# Simulated seconds that passed on the real servers between a worker's end and the next request; the first battery's pauses were not recorded.
PAUSES = {"vzstart": 1.6, "vzreboot": 1.2}
PAUSE_AFTER_START_BY_ROLLBACK = 3.2
_UPID = re.compile(r"UPID:[^:\s]+:[0-9A-Fa-f]{8}:[0-9A-Fa-f]{8,9}:[0-9A-Fa-f]{8}:[^:\s]+:[^:\s]*:[^:\s]+:")


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where an answer is not the recorded one: ``aspect`` is status, reason, errors, exitstatus or shape."""

    number: int
    aspect: str
    request: str
    recorded: t.Any
    live: t.Any


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    body: t.Any  # None where there is none, text where it is no JSON
    exitstatus: str | None = None


class Sender:
    """A connection to the simulator, with the tokens of the recordings."""

    def __init__(self, lab: Proxmox, speed: float) -> None:
        self._lab = lab
        self._speed = speed
        self._context = ssl.create_default_context(cafile=lab.options["ca_path"])

    def send(self, record: Record) -> Answer:
        body, kind = _content(record)
        headers = self._credentials(record) | ({"Content-Type": kind} if body else {})
        answer = self._request(record["method"], record["path"], headers, record.get("query"), body)
        upid = answer.body.get("data") if isinstance(answer.body, dict) and record["method"] != "GET" else None
        if not isinstance(upid, str) or not _UPID.fullmatch(upid):
            return answer
        status = self._ended(upid)
        if status["exitstatus"] == "OK":
            by_rollback = isinstance(record.get("data"), dict) and "start" in record["data"]
            self._pause(PAUSE_AFTER_START_BY_ROLLBACK if by_rollback else PAUSES.get(status["type"], 0.0))
        return dataclasses.replace(answer, exitstatus=status["exitstatus"])

    def _credentials(self, record: Record) -> dict[str, str]:
        if record["auth"] in {"root-token", "heal-token"}:
            full = ROOT if record["auth"] == "root-token" else HEALER
            return {"Authorization": f"PVEAPIToken={full}={self._lab.tokens[full]}"}
        # The recording does not tell what was sent besides the two tokens: the answer says it.
        if record["reason"] == "No ticket" or record["path"] == "/access/ticket":
            return {}
        if record["status"] == 200:
            return {"Authorization": f"PVEAPIToken {ROOT}={self._lab.tokens[ROOT]}"}
        return {"Authorization": f"PVEAPIToken={ROOT}=wrong"}

    def _request(self, method: str, path: str, headers: dict[str, str], query: dict[str, t.Any] | None = None, body: bytes | None = None) -> Answer:
        connection = http.client.HTTPSConnection(self._lab.options["api_host"], self._lab.options["api_port"], timeout=60, context=self._context)
        target = f"/api2/json{quote(path, safe='/:@!')}" + (f"?{urlencode(query)}" if query else "")
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.reason, _parsed(response.read().decode()))
        finally:
            connection.close()

    def _ended(self, upid: str) -> dict[str, t.Any]:
        """The worker's status once it has ended."""
        while True:
            headers = {"Authorization": f"PVEAPIToken={ROOT}={self._lab.tokens[ROOT]}"}
            answer = self._request("GET", f"/nodes/{upid.split(':')[1]}/tasks/{upid}/status", headers)
            status: dict[str, t.Any] = answer.body["data"]
            if status["status"] == "stopped":
                return status
            self._pause(0.2)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds / self._speed)


def replay(lab: Proxmox, records: list[Record], speed: float) -> list[Difference]:
    """Send all records in order; the differences."""
    lab.advance(lab.state()["next_round"] + 0.1)  # the recorded servers had no round between their first requests
    sender = Sender(lab, speed)
    vmid = records[0]["data"]["vmid"]
    found = []
    for number, record in enumerate(records):
        answer = sender.send(record)
        recorded = Answer(record["status"], record["reason"], record["body"], (record.get("task") or {}).get("exitstatus"))
        request = f"{record['method']} {record['path']} {record.get('data') or record.get('query') or ''}".strip()
        wanted, live = _aspects(record, recorded, vmid), _aspects(record, answer, vmid)
        found += [Difference(number, aspect, request, wanted[aspect], live[aspect]) for aspect in wanted if wanted[aspect] != live[aspect]]
    return found


def _content(record: Record) -> tuple[bytes | None, str]:
    data = record.get("data")
    if isinstance(data, str):
        return data.encode(), "text/plain" if record["status"] == 506 else "application/json"
    return (urlencode(data).encode() if data else None), "application/x-www-form-urlencoded"


def _parsed(text: str) -> t.Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"_raw": text}


def _aspects(record: Record, answer: Answer, vmid: int) -> dict[str, t.Any]:
    body = answer.body if isinstance(answer.body, dict) else {}
    return {
        "status": answer.status,
        "reason": _plain(answer.reason),
        "errors": {key: _plain(text) for key, text in (body.get("errors") or {}).items()},
        "exitstatus": _plain(answer.exitstatus or ""),
        "shape": _shape(record, body, vmid),
    }


def _plain(text: str) -> str:
    """A text without what differs from run to run."""
    return re.sub(r"\b[0-9a-f]{40}\b", "DIGEST", _UPID.sub("UPID", text)).strip()


def _shape(record: Record, body: dict[str, t.Any], vmid: int) -> t.Any:
    """What the data are made of: of a list of guests only the recorded container's keys, since others may be beside it."""
    data = body.get("data", "none")
    if isinstance(data, dict):
        return sorted(data)
    if isinstance(data, list):
        if "rrddata" in record["path"]:
            return "points"  # which of them have values depends on the moment
        entries = [entry for entry in data if isinstance(entry, dict)]
        entries = [entry for entry in entries if entry.get("vmid") == vmid] or entries
        return ["list", *sorted({key for entry in entries for key in entry})]
    return "UPID" if isinstance(data, str) and _UPID.fullmatch(data) else type(data).__name__
