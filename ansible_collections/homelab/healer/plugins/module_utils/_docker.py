# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Docker Engine, seen and spoken to through the docker SDK.

PRIVATE to the collection: it may change at any time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import traceback
import typing as t
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from ansible.module_utils.basic import env_fallback, missing_required_lib

from ansible_collections.homelab.healer.plugins.module_utils._cgroup import Reading, bounded, read_cgroup
from ansible_collections.homelab.healer.plugins.module_utils._change import DEFAULT, Values
from ansible_collections.homelab.healer.plugins.module_utils._containers import PERIOD, Container, Host, body, configured, rate, seen_live
from ansible_collections.homelab.healer.plugins.module_utils._errors import (
    Conflict,
    Denied,
    HealerError,
    Invalid,
    MissingLibrary,
    NotConverged,
    NotFound,
    Refused,
    TaskFailed,
    TimedOut,
    Unreachable,
    together,
)

try:
    import docker
    import requests
    from docker.errors import APIError, DockerException
    from docker.transport import UnixHTTPAdapter
    from docker.utils import version_gte

    class _Socket(UnixHTTPAdapter):
        """Keeps its connections for all requests; the SDK's own opens one for each address that is asked."""

        def get_connection(self, url: str | bytes, proxies: t.Any = None) -> t.Any:
            return super().get_connection("http+docker://localhost", proxies)

    class _Client(docker.APIClient):
        """The SDK's client, deaf to ``REQUESTS_CA_BUNDLE`` and proxy variables, which would override ``ca_path`` and ``docker_host``.

        The SDK asks the engine for its version while it is being made, so what is done here could not be set afterwards.
        """

        trust_env = property(lambda self: False, lambda self, value: None)

        def mount(self, prefix: t.Any, adapter: t.Any) -> None:
            kept = _Socket(adapter.socket_path, timeout=adapter.timeout) if isinstance(adapter, UnixHTTPAdapter) else adapter
            super().mount(prefix, kept)

    IMPORT_ERROR: str | None = None
except ImportError:
    IMPORT_ERROR = traceback.format_exc()

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
STATS_AT_ONCE = 16
"""Old engines answer a question for statistics only once a second, so they are asked for many containers at once."""

OPTIONS: dict[str, t.Any] = dict(
    docker_host=dict(type="str", default="unix:///var/run/docker.sock", fallback=(env_fallback, ["DOCKER_HOST"])),
    tls=dict(type="bool", fallback=(env_fallback, ["DOCKER_TLS"])),
    validate_certs=dict(type="bool", default=True),
    ca_path=dict(type="path", aliases=["tls_ca_cert", "cacert_path"]),
    client_cert=dict(type="path", aliases=["tls_client_cert", "cert_path"]),
    client_key=dict(type="path", aliases=["tls_client_key", "key_path"]),
    timeout=dict(type="int", default=60, fallback=(env_fallback, ["DOCKER_TIMEOUT"])),
)
SELECTORS: dict[str, t.Any] = dict(
    containers=dict(type="list", elements="str", aliases=["container", "name"]),
    labels=dict(type="list", elements="str"),
)
ONE_SELECTOR = [("containers", "labels")]

REFUSALS: tuple[tuple[int, str, type[HealerError], str], ...] = (
    (400, "", Invalid, "Correct the value; the engine's words say what it takes."),
    (401, "", Denied, "Give a client certificate that the engine accepts."),
    (403, "", Denied, "Allow GET /info, /version and /containers, and POST /containers/*/update, in the proxy or plugin that guards the engine."),
    (404, "", NotFound, "Look with docker ps --all; a container that was recreated has another id."),
    (409, "removal", NotFound, "It is being removed; there is nothing left to limit."),
    (409, "", Conflict, "It changed since it was looked at; run this again."),
    (500, "unable to set memory limit", Conflict, "It uses more than the limit by now: free memory in it, or choose a higher limit."),
    (500, "memory.limit_in_bytes", Conflict, "It uses more than the limit by now: free memory in it, or choose a higher limit."),
    (500, "cannot update a stopped container", Conflict, "It restarts again and again: look into its log first, with docker logs."),
    (500, "container not running", Conflict, "It restarts again and again: look into its log first, with docker logs."),
    (500, "", TaskFailed, "Look into the engine's log; its words are above."),
)
"""What the engine's refusals mean: status, a phrase of its message, the failure, and what to do. The first that fits counts."""
STOPPING = ("cannot update a stopped container", "container not running")
"""What the engine says, after it took the update back, where the container ended while it was being updated."""
TRIES, BREATH = 10, 0.2
"""How often, and how many seconds apart, a container that is just restarting is updated before that is called a failure."""


@contextlib.contextmanager
def connect(params: t.Mapping[str, t.Any]) -> t.Iterator[Engine]:
    """Speak to the engine that the connection options name; closes the connection."""
    if IMPORT_ERROR:
        raise MissingLibrary("cannot speak to Docker", why=missing_required_lib("docker"), fix="Install it where this module runs: pip install docker.")
    where = params["docker_host"]
    what = f"cannot connect to the Docker Engine at {where}"
    if params["timeout"] <= 0:
        raise Invalid(what, why=f"a timeout of {params['timeout']} seconds leaves no time for an answer", fix="Give a longer one.")
    try:
        with translated(what):
            api = _Client(base_url=where, version="auto", timeout=params["timeout"], tls=_tls(params), use_ssh_client=where.startswith("ssh://"))
    except ValueError as error:
        raise Invalid(what, why=f"that is no address: {error}", fix="Give one such as unix:///var/run/docker.sock or tcp://host:2376.") from error
    try:
        yield Engine(api, where)
    finally:
        api.close()


def _tls(params: t.Mapping[str, t.Any]) -> t.Any:
    remote = params["docker_host"].startswith(("tcp://", "https://"))
    if not (remote if params["tls"] is None else params["tls"]):
        return False
    folder = os.environ.get("DOCKER_CERT_PATH")
    ca, cert, key = (
        params[option] or (os.path.join(folder, name) if folder else None)
        for option, name in (("ca_path", "ca.pem"), ("client_cert", "cert.pem"), ("client_key", "key.pem"))
    )
    if bool(cert) != bool(key):
        raise Invalid("cannot use half a client certificate", why="client_cert and client_key belong together", fix="Give both or none.")
    return docker.tls.TLSConfig(client_cert=(cert, key) if cert and key else None, ca_cert=ca, verify=params["validate_certs"])


@contextlib.contextmanager
def translated(what: str, writing: bool = False) -> t.Iterator[None]:
    """Tell the SDK's errors as ours. ``writing``: a lost reply leaves open whether the write happened."""
    try:
        yield
    except APIError as error:
        status, said = error.status_code or 500, str(error.explanation or error)
        for code, phrase, failure, fix in REFUSALS:
            if status == code and phrase in said:
                raise failure(what, why=said, fix=fix) from error
        lost = writing and status in (502, 503, 504)  # a proxy's word: the engine may have got it
        raise TaskFailed(what, why=f"HTTP {status}: {said}", fix="Look into the engine's log.", uncertain=lost) from error
    except requests.exceptions.Timeout as error:
        raise TimedOut(what, why=str(error), fix="Look whether the engine hangs; a longer timeout may do.", uncertain=writing) from error
    except (DockerException, requests.exceptions.RequestException, OSError) as error:
        raise _lost(what, error, writing) from error


def _lost(what: str, error: BaseException, writing: bool) -> HealerError:
    causes = list(_causes(error))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return Denied(what, why=str(error), fix="Let this user into the group that owns the socket (usually docker), or become root.")
    if any(isinstance(cause, requests.exceptions.SSLError) for cause in causes):
        return Unreachable(
            what, why=str(error), fix="Give the authority that signed the engine's certificate as ca_path, and the host's name as it stands in it."
        )
    refused = any(isinstance(cause, (ConnectionRefusedError, FileNotFoundError)) for cause in causes)
    return Unreachable(what, why=str(error), fix="Look whether the engine runs and docker_host names it.", uncertain=writing and not refused)


def _causes(error: BaseException | None) -> t.Iterator[BaseException]:
    while error:
        yield error
        yield from (arg for arg in error.args if isinstance(arg, BaseException))
        error = error.__cause__ or error.__context__


class Engine:
    """A connected Docker Engine. Reading is free of side effects; ``update`` is the one write."""

    def __init__(self, api: t.Any, where: str) -> None:
        self._api = api
        self.where = where
        with translated(f"cannot ask the Docker Engine at {where} about its host"):
            info, version = api.info(), api.version()
        if info.get("OSType") != "linux" or any("podman" in part.get("Name", "").lower() for part in version.get("Components") or ()):
            raise Refused(
                f"will not work with the engine at {where}",
                why="its updates are not Docker's on Linux: Windows ignores them, Podman drops some and resets the restart policy",
                fix="Use this with a Docker Engine on Linux.",
            )
        self.host = Host(info["NCPU"], info["MemTotal"], str(info.get("CgroupVersion", "1")), info["SwapLimit"], info["ServerVersion"])

    def select(self, names: t.Sequence[str] | None, labels: t.Sequence[str] | None) -> list[Container]:
        """The containers of these names or ids, or with all these labels (``key`` or ``key=value``), or else all that run; each once."""
        if names is not None:
            found = self._named(names)
        else:
            with translated("cannot list containers"):
                listed = self._api.containers(all=bool(labels), filters={"label": list(labels or ())})
            found = [details for details in (self._still_there(entry["Id"]) for entry in listed) if details]
            if labels and not found:
                raise NotFound(
                    f"no container has the labels {', '.join(labels)}", why="the engine knows none", fix="Look with docker ps --all --filter label=…."
                )
        unique = {details["Id"]: details for details in found}
        with ThreadPoolExecutor(STATS_AT_ONCE) as workers:
            return list(workers.map(self._container, unique.values()))

    def _named(self, names: t.Sequence[str]) -> list[dict[str, t.Any]]:
        found, errors = [], {}
        for name in names:
            try:
                found.append(self._inspect(name[1:] if name.startswith("/") else name))
            except HealerError as error:
                errors[name] = error
        if errors:
            raise together(errors)
        return found

    def _still_there(self, key: str) -> dict[str, t.Any] | None:
        try:
            return self._inspect(key)
        except NotFound:
            return None

    def _inspect(self, name: str) -> dict[str, t.Any]:
        if not NAME.fullmatch(name):
            raise Invalid(f"cannot find container {name!r}", why="no container can have that name", fix="Give a name or an id as docker ps shows it.")
        with translated(f"cannot find container {name}"):
            details: dict[str, t.Any] = self._api.inspect_container(name)
        if name != details["Name"].lstrip("/") and not (len(name) >= 12 and details["Id"].startswith(name)):
            raise NotFound(
                f"cannot find container {name}",
                why=f"that is merely how the id of {details['Name'].lstrip('/')} begins",
                fix="Give a name, or at least 12 characters of an id.",
            )
        return details

    def _container(self, details: dict[str, t.Any]) -> Container:
        host_config, state = details["HostConfig"], details["State"]
        reading = self._read(details) if state["Running"] and not state["Restarting"] else None
        everything = reading.cpus_allowed if reading and reading.cpus_allowed else f"0-{self.host.cpus - 1}"
        limits = configured(host_config, self.host, everything)
        return Container(
            key=details["Id"],
            limits=limits,
            live=seen_live(limits, reading, self.host, everything) if reading else {},
            name=details["Name"].lstrip("/"),
            status=state["Status"],
            host=self.host,
            everything=everything,
            nano_cpus=bool(host_config["NanoCpus"]),
            contradictory=bool(host_config["NanoCpus"]) and host_config["CpuQuota"] < 0,
            period=host_config["CpuPeriod"] or PERIOD,
            details=details,
            reading=reading,
        )

    def _read(self, details: t.Mapping[str, t.Any]) -> Reading | None:
        """What a running container uses now: from its control group where that can be read, else from the engine's statistics."""
        reading = read_cgroup(details["State"]["Pid"], details["Id"])
        if reading:
            return reading
        once = {"one_shot": True} if version_gte(self._api.api_version, "1.41") else {}
        try:
            with translated(f"cannot read the statistics of {details['Name'].lstrip('/')}"):
                return _from_stats(self._api.stats(details["Id"], stream=False, **once))
        except NotFound:
            return None

    def again(self, containers: t.Sequence[Container], seconds: float) -> list[Container]:
        """The same containers some seconds later, in that order; those that are gone are left out."""
        time.sleep(seconds)
        found = [details for details in (self._still_there(container.key) for container in containers) if details]
        with ThreadPoolExecutor(STATS_AT_ONCE) as workers:
            return list(workers.map(self._container, found))

    def verify(self, container: Container, limits: Values) -> dict[str, str]:
        """By what each of these limits is known to hold: ``cgroup``, ``stats``, ``rate``, or ``accepted`` where the engine's word is all there is."""
        verified = {limit: container.witness(limit) for limit in limits}
        cpus = limits.get("cpus", DEFAULT)
        if cpus != DEFAULT and verified["cpus"] == "accepted" and self._keeps_to(container, cpus):
            verified["cpus"] = "rate"
        return verified

    def _keeps_to(self, container: Container, cpus: float) -> bool:
        """Whether a second's measurement shows the container held to this many CPUs; false where it had too little to do to tell."""
        for then in self.again([container], seconds=1):
            used = rate(container.reading, then.reading)
            if used is None or container.reading is None or then.reading is None:
                return False
            if used > cpus * 1.1 + 0.05:
                raise NotConverged(
                    f"limited {container.name} to {cpus} CPUs, but it used {used:.2f}",
                    why="the engine took the limit and the kernel does not keep it",
                    fix="Look into the engine's log; the undo puts the old limit back.",
                )
            return then.reading.throttled > container.reading.throttled
        return False

    def update(self, container: Container, limits: Values) -> None:
        """Set limits of exactly this container while it runs; nothing else about it changes."""
        for _try in range(TRIES - 1):
            try:
                return self._update(container, limits)
            except Conflict as error:
                if not any(phrase in error.why for phrase in STOPPING):
                    raise
                time.sleep(BREATH)
        return self._update(container, limits)

    def _update(self, container: Container, limits: Values) -> None:
        with translated(f"cannot limit container {container.name}", writing=True):
            # The SDK's own update_container() knows neither NanoCpus nor PidsLimit.
            response = self._api._post_json(self._api._url("/containers/{0}/update", container.key), data=body(container, limits))
            answer = self._api._result(response, json=True)
            warnings = [warning for warning in answer.get("Warnings") or () if "discarded" in warning.lower()]
        if warnings:
            raise TaskFailed(f"cannot limit container {container.name}", why=" ".join(warnings), fix="The host's kernel cannot do this; leave the option out.")


def _from_stats(stats: t.Mapping[str, t.Any]) -> Reading | None:
    """The engine's statistics as a reading; ``None`` where it has none, as for a container that has just stopped."""
    memory, cpu, pids = stats["memory_stats"], stats["cpu_stats"], stats["pids_stats"]
    if stats["read"].startswith("0001-"):
        return None
    detail = memory.get("stats") or {}
    version_1 = "hierarchical_memory_limit" in detail
    prefix = "total_" if version_1 else ""
    cache = detail[f"{prefix}active_file"] + detail[f"{prefix}inactive_file"] if f"{prefix}active_file" in detail else None
    limits = {}
    if "limit" in memory:
        limits["memory"] = bounded(memory["limit"])
    if "current" in pids:
        limits["pids_limit"] = bounded(pids.get("limit") or 0)
    if "hierarchical_memsw_limit" in detail:
        limits["memory_swap"] = bounded(detail["hierarchical_memsw_limit"])
    throttling = cpu.get("throttling_data") or {}
    return Reading(
        witness="stats",
        taken=_seconds(stats["read"]),
        cpu=cpu["cpu_usage"]["total_usage"] / 1e9,
        periods=throttling.get("periods", 0),
        throttled=throttling.get("throttled_periods", 0),
        memory_used=None if "usage" not in memory else max(0, memory["usage"] - (cache or 0)),
        memory_cache=cache,
        pids=pids.get("current"),
        limit_hits=memory.get("failcnt", 0) if version_1 else None,
        limits=limits,
    )


def _seconds(stamp: str) -> float:
    """The engine's time stamp (``2026-01-31T23:59:59.123456789Z``) in seconds, good for differences."""
    whole, _dot, fraction = stamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
