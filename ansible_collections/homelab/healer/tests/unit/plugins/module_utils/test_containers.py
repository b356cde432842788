# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of limits on hosts that few have at hand: cgroup v2, no accounting for swap."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._change import DEFAULT
from ansible_collections.homelab.healer.plugins.module_utils._containers import Container, Host, attainable, body, configured, cpuset, rates, way_back
from ansible_collections.homelab.healer.plugins.module_utils._docker import _from_stats
from ansible_collections.homelab.healer.plugins.module_utils._errors import Refused
from ansible_collections.homelab.healer.plugins.module_utils._sizes import Size

MIB = 1 << 20
CONFIG = {
    "NanoCpus": 0,
    "CpuQuota": 0,
    "CpuPeriod": 0,
    "Memory": 0,
    "MemorySwap": 0,
    "MemoryReservation": 0,
    "CpuShares": 0,
    "CpusetCpus": "",
    "PidsLimit": None,
}


def container(version: str = "2", swap_limit: bool = True, **config: t.Any) -> Container:
    host = Host(4, 8 << 30, version, swap_limit, "29.0.0")
    full = {**CONFIG, **config}
    return Container(
        key="3f" * 32,
        limits=configured(full, host, "0-3"),
        everything="0-3",
        live={},
        name="app",
        status="running",
        host=host,
        nano_cpus=bool(full["NanoCpus"]),
        contradictory=False,
        period=full["CpuPeriod"] or 100_000,
        details={"Config": {"Labels": None}},
        reading=None,
    )


def test_without_swap_accounting_swap_is_left_alone_or_refused() -> None:
    now = container(swap_limit=False, Memory=64 * MIB, MemorySwap=-1)
    assert attainable({"memory": Size(128 * MIB)}, now) == {"memory": 128 * MIB}
    assert body(now, {"memory": Size(128 * MIB)}) == {"Memory": 128 * MIB, "MemorySwap": -1}
    with pytest.raises(Refused, match="does not account for swap"):
        attainable({"memory_swap": Size(128 * MIB)}, now)


def test_on_version_2_shares_that_were_not_set_cannot_be_put_back() -> None:
    assert way_back({"cpu_shares": DEFAULT}, container()) == ({}, "none")
    assert way_back({"cpu_shares": DEFAULT}, container("1")) == ({"cpu_shares": DEFAULT}, "equivalent")
    assert way_back({"cpu_shares": 512}, container()) == ({"cpu_shares": 512}, "exact")
    with pytest.raises(Refused, match="cannot lift cpu_shares"):
        attainable({"cpu_shares": DEFAULT}, container(CpuShares=512))


@pytest.mark.parametrize(("value", "read"), [(None, DEFAULT), (0, DEFAULT), (-1, DEFAULT), (50, 50)])
def test_t5_11_one_spelling_of_no_limit(value: int | None, read: t.Any) -> None:
    assert container(PidsLimit=value).limits["pids_limit"] == read


@pytest.mark.parametrize(("text", "read"), [("", DEFAULT), ("0-3", DEFAULT), ("0,1,2,3", DEFAULT), ("2,0", "0,2"), ("0-2", "0-2"), ("1,2,3", "1-3")])
def test_one_spelling_of_a_set_of_cpus(text: str, read: str) -> None:
    assert cpuset(text, "0-3") == read


STATS_V2: dict[str, t.Any] = {
    "read": "2026-01-31T23:59:59.12345Z",
    "pids_stats": {"current": 3, "limit": 18446744073709551615},
    "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}, "throttling_data": {"periods": 1, "throttled_periods": 1}},
    "memory_stats": {"usage": 50_000_000, "limit": 67_108_864, "stats": {"active_file": 5_000_000, "inactive_file": 10_000_000}},
}


def test_statistics_of_version_2() -> None:
    reading = _from_stats(STATS_V2)
    assert reading is not None
    assert (reading.cpu, reading.memory_used, reading.pids, reading.witness) == (2.5, 35_000_000, 3, "stats")
    assert reading.limits == {"memory": 64 * MIB, "pids_limit": None}
    bare = _from_stats({**STATS_V2, "memory_stats": {}, "pids_stats": {}})
    assert bare is not None
    assert (bare.cpu, bare.memory_used, bare.memory_cache, bare.pids, bare.limits) == (2.5, None, None, None, {})
    assert _from_stats({**STATS_V2, "read": "0001-01-01T00:00:00Z"}) is None


def test_in_an_lxc_the_cpus_need_not_begin_with_0() -> None:
    assert cpuset("5,11", "5,11") == DEFAULT
    assert cpuset("5", "5,11") == "5"
    with pytest.raises(ValueError, match="no machine has"):
        cpuset("0-99999999999", "0-3")


def test_two_readings_of_different_lives_give_no_rate() -> None:
    first = _from_stats(STATS_V2)
    assert first is not None
    later = replace(first, taken=first.taken + 2, cpu=4.5, periods=21, throttled=11)
    assert rates(first, later) == {"cpu_rate": 1.0, "throttled": 0.5}
    nothing = {"cpu_rate": None, "throttled": None}
    for other in (None, replace(later, witness="cgroup"), replace(later, cpu=0.1), replace(later, taken=first.taken)):
        assert rates(first, other) == nothing


@pytest.mark.parametrize("before", [{"memory": Size(4 * MIB)}, {"cpu_shares": 1}, {"pids_limit": 1 << 23}, {"memory_reservation": Size(128 * MIB)}])
def test_what_an_update_would_refuse_is_not_promised_as_an_undo(before: dict[str, t.Any]) -> None:
    assert way_back(before, container(Memory=64 * MIB, MemorySwap=64 * MIB)) == ({}, "none")


def test_a_limit_of_more_cpus_than_are_left_is_not_promised_as_an_undo() -> None:
    assert way_back({"cpus": 8.0}, container(NanoCpus=8_000_000_000)) == ({}, "none")
    assert way_back({"cpus": 8.0}, container(CpuQuota=800_000)) == ({"cpus": 8.0}, "exact")
