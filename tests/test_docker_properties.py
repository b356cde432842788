"""Any limits, on a real engine: check mode foretells the run, a second run has nothing to do, and the undo puts back what it promises."""

from __future__ import annotations

import json
import time
import typing as t

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ansible_collections.homelab.healer.plugins.module_utils._containers import LIMITS
from ansible_collections.homelab.healer.plugins.modules import docker_limits, docker_usage_info
from tests.lab.engine import Engine
from tests.lab.modules import call, read

MIB = 1 << 20
SAMPLE, ALL = 30, 1000
SIZES = st.one_of(st.integers(6, 256).map(lambda number: number * MIB), st.integers(6 * MIB, 256 * MIB))


def maybe(strategy: st.SearchStrategy[t.Any]) -> st.SearchStrategy[t.Any]:
    return st.one_of(st.none(), strategy)


@st.composite
def presents(draw: st.DrawFn, cpus: int) -> dict[str, t.Any]:
    """A host configuration that the engine takes for a new container."""
    config: dict[str, t.Any] = {}
    kind = draw(st.sampled_from(["free", "nano", "quota", "period"]))
    if kind == "nano":
        config["NanoCpus"] = draw(st.integers(10_000_000, cpus * 10**9))
    elif kind == "quota":
        config["CpuQuota"] = draw(st.integers(1000, 400_000))
    elif kind == "period":
        config["CpuPeriod"] = draw(st.integers(10_000, 200_000))
        config["CpuQuota"] = draw(maybe(st.integers(1000, 200_000))) or 0
    memory = draw(maybe(SIZES))
    if memory:
        config["Memory"] = memory
        config["MemorySwap"] = draw(st.one_of(st.just(0), st.just(-1), st.integers(memory, 3 * memory)))
    reservation = draw(maybe(SIZES))
    if reservation and not (memory and reservation > memory):
        config["MemoryReservation"] = reservation
    config["CpuShares"] = draw(maybe(st.integers(2, 4096))) or 0
    config["CpusetCpus"] = draw(st.sampled_from(["", "0", f"0-{cpus - 1}"]))
    config["PidsLimit"] = draw(maybe(st.one_of(st.just(-1), st.integers(10, 5000))))
    return config


@st.composite
def wanteds(draw: st.DrawFn, cpus: int, present: dict[str, t.Any]) -> dict[str, str]:
    """Options of the module: mostly such as a person means, sometimes any."""
    sensible = draw(st.integers(0, 4)) > 0
    relative = st.sampled_from(["+10%", "-10%", "+100%"])
    lift = st.sampled_from(["default", "unlimited"])
    size = st.one_of(SIZES.map(str), st.integers(6, 512).map(lambda number: f"{number}m"))
    options = {
        "cpus": st.one_of(st.integers(1, cpus * 100).map(lambda number: str(number / 100)), st.floats(0.1, cpus).map(str), lift),
        "memory": st.one_of(size, lift),
        "cpu_shares": st.one_of(st.integers(2, 4096).map(str), st.just("default")),
        "cpuset_cpus": st.sampled_from(["0", f"0-{cpus - 1}", "default"]),
        "pids_limit": st.one_of(st.integers(10, 5000).map(str), lift),
    }
    if not sensible:
        options.update(dict.fromkeys(("memory", "memory_swap", "memory_reservation"), st.one_of(size, relative, lift)))
        options["cpus"] = st.one_of(options["cpus"], relative, st.floats(0.001, 4 * cpus).map(str))
    wanted = draw(st.fixed_dictionaries({}, optional=options).filter(bool))
    if sensible and wanted.get("memory", "d")[0] not in "du":
        if present.get("MemoryReservation"):
            wanted["memory_reservation"] = "6m"
        if draw(st.booleans()):
            wanted["memory_swap"] = draw(st.sampled_from(["1g", "unlimited", wanted["memory"]]))
    return wanted


@st.composite
def pairs(draw: st.DrawFn, cpus: int) -> tuple[dict[str, t.Any], dict[str, str]]:
    present = draw(presents(cpus))
    return present, draw(wanteds(cpus, present))


def test_check_equals_apply_and_undo_restores(docker: Engine, whole: bool) -> None:
    cpus = docker.api.info()["NCPU"]
    seen = dict.fromkeys(("refused", "unchanged", "exact", "equivalent", "none"), 0)

    @settings(
        max_examples=ALL if whole else SAMPLE,
        deadline=None,
        derandomize=not whole,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(pair=pairs(cpus))
    def holds(pair: tuple[dict[str, t.Any], dict[str, str]]) -> None:
        present, wanted = pair
        docker.remove_containers()
        docker.run("app", **present)
        seen[_one_pair(docker, wanted)] += 1

    holds()
    print(f"pairs: {seen}")
    assert sum(seen.values()) >= (ALL if whole else SAMPLE)
    assert all(seen[kind] for kind in ("refused", "exact", "equivalent"))


def _one_pair(docker: Engine, wanted: dict[str, t.Any]) -> str:
    before = _state(docker)
    began = time.time()
    foretold, refusal = call(docker_limits, True, docker_host=docker.docker_host, containers=["app"], **wanted)
    assert docker.events(began) == []
    done, error = call(docker_limits, docker_host=docker.docker_host, containers=["app"], **wanted)
    assert str(refusal) == str(error)
    for key in ("changed", "before", "after", "steps", "diff", "undo", "reversibility"):
        assert foretold[key] == done[key], key
    assert docker.events(began) == (["update"] if done["changed"] else [])
    if error:
        assert _state(docker) == before
        return "refused"
    if not done["changed"]:
        assert _state(docker) == before
        return "unchanged"
    assert set(done["results"][0]["verified"]) == set(done["results"][0]["after"])
    absolute = {limit: str(value) if isinstance(value, (str, float)) else str(int(value)) for limit, value in done["results"][0]["after"].items()}
    again, error = call(docker_limits, docker_host=docker.docker_host, containers=["app"], **t.cast("dict[str, t.Any]", absolute))
    assert (again["changed"], error) == (False, None)
    for options in json.loads(json.dumps(done["undo"])):
        _answer, error = call(docker_limits, docker_host=docker.docker_host, **options)
        assert error is None, error
    left = [limit for limit in done["results"][0]["before"] if not any(limit in options for options in done["undo"])]
    assert bool(left) == (done["reversibility"] == "none")
    after = _state(docker)
    for side in ("limits", "live"):
        for limit in set(LIMITS).difference(left):
            assert after[side].get(limit) == before[side].get(limit), (side, limit)
    return str(done["reversibility"])


def _state(docker: Engine) -> dict[str, t.Any]:
    facts = read(docker_usage_info, docker_host=docker.docker_host, containers=["app"])["containers"][0]
    return {"limits": facts["limits"], "live": facts["live"], "started": facts["started_at"]}
