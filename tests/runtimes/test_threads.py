"""Thread counts on machines laid out in a folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgellm.runtimes import threads
from tests.boards import machine, write


def test_a_machine_that_tells_nothing_has_its_cpus(tmp_path: Path) -> None:
    assert threads.threads_for(range(6), tmp_path) == 6


def test_two_hardware_threads_of_a_core_count_once(tmp_path: Path) -> None:
    machine(tmp_path, siblings=["0,4", "1,5", "2,6", "3,7"] * 2)
    assert threads.threads_for(range(8), tmp_path) == 4
    assert threads.threads_for([0, 4], tmp_path) == 1


def test_affinity_limits(tmp_path: Path) -> None:
    machine(tmp_path, siblings=["0", "1", "2", "3"])
    assert threads.threads_for([1, 3], tmp_path) == 2


def test_little_cores_are_left_out(tmp_path: Path) -> None:
    machine(tmp_path, siblings=list("01234567"), capacity=[405] * 4 + [871] * 3 + [1024])
    assert threads.big_cpus(range(8), tmp_path) == {4, 5, 6, 7}
    assert threads.threads_for(range(8), tmp_path) == 4
    assert threads.threads_for([0, 1, 2], tmp_path) == 3, "only little ones allowed: all of them"


def test_capacities_known_in_part_change_nothing(tmp_path: Path) -> None:
    machine(tmp_path, siblings=["0", "1"], capacity=[1024])
    assert threads.threads_for([0, 1], tmp_path) == 2


@pytest.mark.parametrize(
    ("cpu_max", "wanted"), [("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", 8)]
)
def test_quota_of_version_2(tmp_path: Path, cpu_max: str, wanted: int) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", cpu_max + "\n")
    assert threads.threads_for(range(8), tmp_path) == wanted


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/user/app\n")
    write(tmp_path, "sys/fs/cgroup/user/app/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/user/cpu.max", "300000 100000\n")
    assert threads.cpu_quota(tmp_path) == 3.0


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("group", ["", "docker/4f2a"])
def test_quota_of_version_1(tmp_path: Path, mount: str, group: str) -> None:
    """A container sees its own group at the top of the mount, under the host's path in /proc/self/cgroup."""
    write(tmp_path, "proc/self/cgroup", "3:memory:/docker/4f2a\n2:cpu,cpuacct:/docker/4f2a\n")
    folder = f"sys/fs/cgroup/{mount}/{group}"
    write(tmp_path, f"{folder}/cpu.cfs_quota_us", "250000\n")
    write(tmp_path, f"{folder}/cpu.cfs_period_us", "100000\n")
    assert threads.cpu_quota(tmp_path) == 2.5
    assert threads.threads_for(range(8), tmp_path) == 2


def test_no_quota_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "2:cpu:/\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert threads.cpu_quota(tmp_path) is None


@pytest.mark.parametrize("text", ["", "nonsense", "100000 0", "\udcff"])
def test_a_file_that_makes_no_sense_is_no_limit(tmp_path: Path, text: str) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/../..\n0::/\nbroken\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert threads.threads_for(range(3), tmp_path) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_this_process_with_one_cpu_uses_one_thread() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert threads.default_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= threads.default_threads() <= len(before)


def test_topology_is_all_that_the_kernel_tells(tmp_path: Path) -> None:
    machine(tmp_path, siblings=["0", "1", "2-3", "2-3"], capacity=[300, 300, 1024, 1024])
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    found = threads.topology([3, 2, 1], tmp_path)
    assert found == threads.Topology({1: "1", 2: "2-3", 3: "2-3"}, {1: 300, 2: 1024, 3: 1024}, 1.5, 1)
    assert list(found.cores) == [1, 2, 3], "in order: it is part of a file's name"
    assert threads.topology().cores.keys() == threads.allowed_cpus()


linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")


def affinity_of_a_new_thread() -> set[int]:
    found: list[set[int]] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    return found[0]


@linux
def test_pinned_is_for_the_threads_that_are_made_in_it() -> None:
    before = os.sched_getaffinity(0)
    one = {max(before)}
    with threads.pinned(one):
        assert affinity_of_a_new_thread() == one
    assert os.sched_getaffinity(0) == affinity_of_a_new_thread() == before
    with pytest.raises(KeyError), threads.pinned(one):
        raise KeyError
    assert os.sched_getaffinity(0) == before


@linux
@pytest.mark.parametrize("cpus", [(), (100_000,)])
def test_no_cpus_or_impossible_ones_pin_nothing(cpus: tuple[int, ...]) -> None:
    before = os.sched_getaffinity(0)
    with threads.pinned(cpus):
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before
