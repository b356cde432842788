# Copyright (c) 2026, the homelab.healer authors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel's files as trees on disk: both versions, both drivers, and what is not ours to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.homelab.healer.plugins.module_utils._cgroup import read_cgroup

ID = "3f" * 32
V2 = {
    "cpu.max": "50000 100000",
    "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 9",
    "cpuset.cpus": "",
    "memory.current": "50000000",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1",
    "memory.low": "0",
    "memory.max": "67108864",
    "memory.stat": "anon 30000000\nfile 20000000\nshmem 5000000\nactive_file 5000000\ninactive_file 10000000",
    "memory.swap.max": "33554432",
    "pids.current": "7",
    "pids.max": "max",
}
V1 = {
    "cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "cpu.shares": "1024", "cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0"},
    "cpuacct": {"cpuacct.usage": "2500000000"},
    "cpuset": {"cpuset.cpus": "0-3"},
    "memory": {
        "memory.failcnt": "2",
        "memory.limit_in_bytes": "67108864",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5",
        "memory.soft_limit_in_bytes": "9223372036854771712",
        "memory.stat": "cache 20000000\ntotal_active_file 5000000\ntotal_inactive_file 10000000",
        "memory.usage_in_bytes": "50000000",
    },
    "pids": {"pids.current": "7", "pids.max": "100"},
}


def tree(root: Path, mounts: list[str], groups: list[str], files: dict[str, dict[str, str]]) -> str:
    """Lay out /proc and /sys/fs/cgroup of a machine; ``files`` by folder."""
    for path, text in (("proc/self/mountinfo", "\n".join(mounts)), ("proc/42/cgroup", "\n".join(groups))):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    for folder, content in files.items():
        (root / folder).mkdir(parents=True)
        for name, text in content.items():
            (root / folder / name).write_text(text + "\n")
    return str(root)


UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"


@pytest.mark.parametrize("path", [f"/system.slice/docker-{ID}.scope", f"/docker/{ID}", f"/system.slice/docker-{ID}.scope/init.scope"])
def test_version_2_with_either_driver_and_with_an_init_in_a_group_below(tmp_path: Path, path: str) -> None:
    folder = "sys/fs/cgroup" + path.removesuffix("/init.scope")
    above = {folder.rpartition("/")[0]: {"cpuset.cpus.effective": "5,11"}}
    reading = read_cgroup(42, ID, tree(tmp_path, [UNIFIED], [f"0::{path}"], {**above, folder: V2}))
    assert reading is not None
    assert reading.cpus_allowed == "5,11"
    assert (reading.cpu, reading.periods, reading.throttled, reading.pids) == (2.5, 10, 4, 7)
    assert (reading.memory_used, reading.memory_cache) == (35_000_000, 15_000_000)
    assert (reading.limit_hits, reading.oom_kills) == (3, 1)
    assert reading.limits == {
        "cpus": (50_000, 100_000),
        "memory": 64 << 20,
        "memory_swap": 96 << 20,
        "memory_reservation": None,
        "pids_limit": None,
        "cpuset_cpus": "",
    }


@pytest.mark.parametrize(
    ("memory", "swap", "both"),
    [("max", "max", None), ("67108864", "max", None), ("67108864", "0", 64 << 20), ("4611686018427387904", "4611686018427383808", None)],
)
def test_version_2_counts_swap_apart(tmp_path: Path, memory: str, swap: str, both: int | None) -> None:
    files = {f"sys/fs/cgroup/docker/{ID}": {**V2, "memory.max": memory, "memory.swap.max": swap, "cpu.max": "max 100000"}}
    reading = read_cgroup(42, ID, tree(tmp_path, [UNIFIED], [f"0::/docker/{ID}"], files))
    assert reading is not None
    assert (reading.limits["memory_swap"], reading.limits["cpus"]) == (both, (-1, 100_000))


def test_version_2_without_a_controller_for_cpu_sets(tmp_path: Path) -> None:
    files = {f"sys/fs/cgroup/docker/{ID}": {name: text for name, text in V2.items() if name not in ("cpuset.cpus", "memory.swap.max")}}
    reading = read_cgroup(42, ID, tree(tmp_path, [UNIFIED], [f"0::/docker/{ID}"], files))
    assert reading is not None
    assert reading.cpus_allowed == ""
    assert not {"cpuset_cpus", "memory_swap"} & set(reading.limits)


def test_version_1_with_joined_controllers_beside_an_empty_unified_hierarchy(tmp_path: Path) -> None:
    mounts = [UNIFIED.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")]
    mounts += ["31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"]
    mounts += [f"3{number} 23 0:3{number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}" for number, name in enumerate(("cpuset", "memory", "pids"), 2)]
    groups = ["0::/", f"4:cpu,cpuacct:/docker/{ID}", *(f"{number}:{name}:/docker/{ID}" for number, name in enumerate(("cpuset", "memory", "pids"), 5))]
    files = {f"sys/fs/cgroup/{name}/docker/{ID}": V1[name] for name in ("cpuset", "memory", "pids")}
    files[f"sys/fs/cgroup/cpu,cpuacct/docker/{ID}"] = {**V1["cpu"], **V1["cpuacct"]}
    reading = read_cgroup(42, ID, tree(tmp_path, mounts, groups, files))
    assert reading is not None
    assert (reading.cpu, reading.memory_used, reading.limit_hits, reading.oom_kills) == (2.5, 35_000_000, 2, 5)
    assert reading.limits == {
        "cpus": (-1, 100_000),
        "cpu_shares": 1024,
        "cpuset_cpus": "0-3",
        "memory": 64 << 20,
        "memory_reservation": None,
        "memory_swap": None,
        "pids_limit": 100,
    }


def test_a_process_of_another_container_or_machine_is_not_ours(tmp_path: Path) -> None:
    root = tree(tmp_path, [UNIFIED], [f"0::/docker/{'ab' * 32}"], {f"sys/fs/cgroup/docker/{ID}": V2})
    assert read_cgroup(42, ID, root) is None
    assert read_cgroup(43, ID, root) is None


def test_a_group_that_goes_away_while_it_is_read(tmp_path: Path) -> None:
    files = {f"sys/fs/cgroup/docker/{ID}": {name: text for name, text in V2.items() if name != "memory.events"}}
    assert read_cgroup(42, ID, tree(tmp_path, [UNIFIED], [f"0::/docker/{ID}"], files)) is None
