"""A simulated Proxmox VE in a process of its own, and its control port, for tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = ("api_host", "api_port", "api_user", "api_token_id", "api_token_secret", "ca_path")
Entry = dict[str, t.Any]


class Proxmox:
    """A running server. ``options`` are ready for the modules, ``tokens`` are the secrets of all tokens, ``passwords`` those of the users."""

    def __init__(self, process: subprocess.Popen[str], facts: dict[str, t.Any]) -> None:
        self._process = process
        self._control = urlsplit(facts["control"])
        self.options: dict[str, t.Any] = {name: facts[name] for name in OPTIONS}
        self.tokens: dict[str, str] = facts["tokens"]
        self.passwords: dict[str, str] = facts["passwords"]

    def options_for(self, full: str) -> dict[str, t.Any]:
        """The connection options of another token, by its full name (user@realm!id)."""
        user, _, name = full.partition("!")
        return self.options | {"api_user": user, "api_token_id": name, "api_token_secret": self.tokens[full]}

    @property
    def url(self) -> str:
        """The API's base, with its format."""
        return f"https://{self.options['api_host']}:{self.options['api_port']}/api2/json"

    def requests(self) -> list[Entry]:
        """Every request since the last clear, in order of arrival.

        Each has method, path (below the base), params, user, status, connection (its number), began and ended (real seconds).
        """
        found: list[Entry] = self._ask("requests")
        return found

    def writes(self) -> list[Entry]:
        """Those that change something or tried to."""
        return [seen for seen in self.requests() if seen["method"] != "GET" and not seen["login"]]

    def logins(self) -> list[Entry]:
        return [seen for seen in self.requests() if seen["login"]]

    def refused(self) -> list[Entry]:
        """The writes that the read-only switch refused."""
        return [seen for seen in self.requests() if seen["refused"]]

    def clear(self) -> None:
        """Forget the requests."""
        self._ask("clear")

    def read_only(self, on: bool = True) -> None:
        """Answer every write but a log-in with 405."""
        self._ask("read_only", on=on)

    def fault(self, method: str, path: str, kind: str, *, times: int = 1, after: int = 0, **details: t.Any) -> None:
        """Script a fault for the requests of a method (``*`` for any) whose path below the base matches a regular expression.

        The first ``after`` of them pass, the next ``times`` are hit (-1 for all). Kinds: ``error`` (status, reason, body, errors, bare), ``delay``
        (seconds, real), ``lost`` (carried out, then the connection is cut), ``cut`` (cut before), ``late`` (carried out at once, answered after
        ``seconds``, an hour by default), ``unreachable`` (595, reason); and for the worker that a request starts: ``stuck`` (until release),
        ``failed`` (exitstatus, log), ``warnings`` (log).
        """
        self._ask("fault", method=method, path=path, kind=kind, times=times, after=after, details=details)

    def clear_faults(self) -> None:
        self._ask("clear_faults")

    def reset(self, state: dict[str, t.Any] | None = None) -> None:
        """Back to the state of the start, or to this one; requests, faults and the read-only switch are forgotten."""
        self.tokens = self._ask("reset", state=state)

    def state(self) -> dict[str, t.Any]:
        """Everything: release, cgroup, now, next_round (seconds until pvestatd's), nodes, storages, guests, users, roles, acl, pools and tasks."""
        found: dict[str, t.Any] = self._ask("state")
        return found

    def guest(self, vmid: int) -> dict[str, t.Any]:
        """A guest: config, pending, snapshots, status, lock, kernel (the live values), workload, oom_kills, dead, started, usage, digest and text."""
        found: dict[str, t.Any] = self._ask("guest", vmid=vmid)
        return found

    def tasks(self) -> list[Entry]:
        """All workers, oldest first, with their logs."""
        found: list[Entry] = self.state()["tasks"]
        return found

    def set_guest(self, vmid: int, **changes: t.Any) -> None:
        """Change a guest behind the API's back.

        ``workload`` is merged, and its growth counts from now; ``status``, ``kernel``, ``ha``, ``snapshots``, ``pending`` and ``frozen`` are the
        guest's; all else are keys of its configuration (None removes), which a running guest's kernel follows unless ``kernel`` says otherwise.
        """
        self._ask("set_guest", vmid=vmid, changes=changes)

    def add_guest(self, vmid: int, **facts: t.Any) -> None:
        """Add a guest: node, kind, config, status, workload, snapshots, template, lock, ha, uptime, age."""
        self._ask("add_guest", vmid=vmid, facts=facts)

    def remove_guest(self, vmid: int) -> None:
        self._ask("remove_guest", vmid=vmid)

    def set_node(self, name: str, **changes: t.Any) -> None:
        """Change a node or add one: memory, used, arc, swap (MiB), cpus, cpu, disk (GiB), online, uptime."""
        self._ask("set_node", name=name, changes=changes)

    def set_storage(self, name: str, **changes: t.Any) -> None:
        """Change a storage or add one: type, content, total, used (GiB), active, delay (simulated seconds), fail, contents, nodes, shared."""
        self._ask("set_storage", name=name, changes=changes)

    def set_cluster(self, **changes: t.Any) -> None:
        """Change the cluster: quorate, cluster (its name), resolver (its words about unknown nodes), default_workload (of containers created from now on)."""
        self._ask("set_cluster", changes=changes)

    def move(self, vmid: int, node: str) -> None:
        """Migrate a guest at once."""
        self._ask("move", vmid=vmid, node=node)

    def advance(self, seconds: float) -> None:
        """Move the simulated clock forward; what was to happen on the way happens."""
        self._ask("advance", seconds=seconds)

    def backup(self, vmids: t.Sequence[int] = (), *, node: str | None = None, seconds: float = 60, storage: str = "backup", **options: t.Any) -> str:
        """Begin to back up guests of a node, each for so many simulated seconds; without their numbers ``all``, ``exclude`` or ``pool`` chooses them.

        Returns the worker's UPID. A guest is locked while it is its turn, and has an archive on the storage after that.
        """
        found: str = self._ask("backup", vmids=list(vmids), node=node, seconds=seconds, storage=storage, options=options)
        return found

    def history(self, vmid: int, timeframe: str, points: list[dict[str, t.Any]]) -> None:
        """Set a guest's series outright, as ``rrddata`` answers it."""
        self._ask("history", vmid=vmid, timeframe=timeframe, points=points)

    def release(self) -> None:
        """Let the workers go on that are stuck."""
        self._ask("release")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)

    def _ask(self, command: str, **given: t.Any) -> t.Any:
        connection = http.client.HTTPConnection(self._control.hostname or "", self._control.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", f"/{command}", json.dumps(given))
            answer = json.loads(connection.getresponse().read())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]


@contextlib.contextmanager
def proxmox(
    state: dict[str, t.Any] | None = None,
    *,
    release: str = "9.2",
    cgroup: int = 2,
    speed: float = 100,
    fixture: str | None = None,
    containers: Path | None = None,
) -> t.Iterator[Proxmox]:
    """A server in this state (the homelab's without one), stopped at the end. ``speed`` is simulated seconds per real one.

    ``containers`` is the folder of a lab whose real containers the guests of the same numbers shall be.
    """
    with tempfile.TemporaryDirectory(prefix="proxmox-lab-") as folder:
        command = [sys.executable, "-m", "tests.lab.proxmox", "--listen", "127.0.0.1:0", "--release", release, "--cgroup", str(cgroup), "--speed", str(speed)]
        if state is not None:
            file = Path(folder) / "state.json"
            file.write_text(json.dumps(state), encoding="utf-8")
            command += ["--state", str(file)]
        if containers:
            command += ["--containers", str(containers)]
        if fixture:
            command += ["--fixture", fixture]
        with _started(command) as process:
            yield Proxmox(process, _first_line(process))


@contextlib.contextmanager
def _started(command: list[str]) -> t.Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=10)


def _first_line(process: subprocess.Popen[str]) -> dict[str, t.Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the simulator ended before it served")
    facts: dict[str, t.Any] = json.loads(line)
    return facts
