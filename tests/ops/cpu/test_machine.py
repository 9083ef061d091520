"""What the process may use, read from files as the kernel writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from ridgeline.chips.cpu import CpuChip, machine, roofline
from ridgeline.errors import UserError

ALL_CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000\n", ALL_CPUS), ("100000 100000\n", 1), ("50000 100000\n", 1), ("6400000 100000\n", ALL_CPUS)],
)
def test_the_quota_of_a_container_cuts_the_cpus(content: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert machine.usable_cpus(tmp_path) == expected


def test_the_quota_of_version_one(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.usable_cpus(tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert machine.usable_cpus(tmp_path) == ALL_CPUS


def test_groups_within_groups_each_set_a_limit(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/elsewhere\n0::/user.slice/job.scope\n")
    inner = tmp_path / "user.slice/job.scope"
    inner.mkdir(parents=True)
    (inner.parent / "cpu.max").write_text("100000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cpus(tmp_path, own) == 1
    (inner / "memory.max").write_text("5000000\n")
    (inner / "memory.current").write_text("4000000\n")
    assert machine.available_memory_bytes(tmp_path, own_cgroup=own) == 1_000_000
    own.write_text("0::/../../outside\n")
    assert machine.usable_cpus(tmp_path, own) == ALL_CPUS


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_a_process_that_may_use_one_cpu_computes_with_one_thread() -> None:
    text = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from ridgeline.chips.cpu import CpuChip; print(CpuChip().num_threads)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_no_files_mean_no_limit(tmp_path: Path) -> None:
    assert machine.usable_cpus(tmp_path) == ALL_CPUS
    assert machine.available_memory_bytes(tmp_path, tmp_path / "none") > 0


def test_memory_is_the_less_of_system_and_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:       1000 kB\n")
    assert machine.available_memory_bytes(tmp_path, meminfo) == 1_024_000
    (tmp_path / "memory.max").write_text("900000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert machine.available_memory_bytes(tmp_path, meminfo) == 300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory_bytes(tmp_path, meminfo) == 1_024_000


def test_the_model_of_the_processor(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nmodel name\t: Some CPU 9000\n")
    assert machine.cpu_model(path) == "Some CPU 9000"
    assert machine.cpu_model(tmp_path / "none")


@pytest.mark.parametrize("num_threads", [0, -1, 100_000, 1 << 40])
def test_a_chip_takes_a_sensible_number_of_threads(num_threads: int) -> None:
    with pytest.raises(UserError, match="1 to 1024"):
        CpuChip(num_threads=num_threads)


@pytest.fixture
def is_quiet(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Measurements take no time here, and the machine is as quiet as the last entry says."""
    monkeypatch.setattr(roofline, "SECONDS_EACH", 0.003)
    monkeypatch.setattr(roofline, "BRIEF_SECONDS_EACH", 0.001)
    monkeypatch.setattr(roofline, "OVERHEAD_STEPS", 5)
    answers = [True]
    monkeypatch.setattr(roofline, "is_quiet", lambda: answers[-1])
    return answers


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds of each measurement from now on."""
    rounds_of: list[int] = []
    plain = roofline.measured

    def measured(*arguments, rounds: int, **more):
        rounds_of.append(rounds)
        return plain(*arguments, rounds=rounds, **more)

    monkeypatch.setattr(roofline, "measured", measured)
    return rounds_of


def test_facts_are_measured_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quiet: list[bool]
) -> None:
    rounds_of = counted(monkeypatch)
    first = CpuChip(cache_folder=tmp_path, num_threads=2).facts()
    assert first.source == "measured" and first.bandwidth_bytes_per_second > 1e8
    assert first.operations_per_second["fp32"] > 1e9 and 0 < first.step_overhead_seconds < 0.1
    assert first.arithmetic["Q4_K"] == "int8" and set(first.kv_formats) == {"f32", "bf16", "int8"}
    again = CpuChip(cache_folder=tmp_path, num_threads=2).facts()
    assert rounds_of == [roofline.ROUNDS]
    assert again.bandwidth_bytes_per_second == first.bandwidth_bytes_per_second
    assert again.step_overhead_seconds == first.step_overhead_seconds
    CpuChip(cache_folder=tmp_path, num_threads=1).facts()
    assert rounds_of == [roofline.ROUNDS] * 2


def test_what_was_measured_on_a_busy_machine_only_gets_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_quiet: list[bool]
) -> None:
    rounds_of = counted(monkeypatch)
    seen = []
    for quiet in (False, False, True, True):
        is_quiet.append(quiet)
        seen.append(CpuChip(cache_folder=tmp_path, num_threads=1).facts())
    assert rounds_of == [roofline.ROUNDS, 1]  # at the first start, and at the first quiet one
    for before, after in pairwise(seen):
        assert after.bandwidth_bytes_per_second >= before.bandwidth_bytes_per_second
        assert after.operations_per_second["int8"] >= before.operations_per_second["int8"]
        assert after.step_overhead_seconds <= before.step_overhead_seconds


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_damaged_facts_are_measured_again(content: str, tmp_path: Path, is_quiet: list[bool]) -> None:
    (tmp_path / "roofline.json").write_text(content)
    assert CpuChip(cache_folder=tmp_path, num_threads=1).facts().bandwidth_bytes_per_second > 0
