"""The file of packed weights: written once, mapped later, made anew when it is not what it should be."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ridgeline.chips.cpu import CpuChip, _native, packed_weights
from ridgeline.chips.cpu.weights import CpuMatrix, CpuVector
from ridgeline.ops.chip import TensorSource
from ridgeline.ops.conformance.case import source
from ridgeline.quant import formats
from ridgeline.quant.reference import dequantize

VALUES = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)


def sources(reads: list[str] | None = None, seed: int = 0) -> dict[str, TensorSource]:
    rng = np.random.default_rng(seed)
    made = {
        "matrix": source("matrix", rng.standard_normal((40, 64)).astype(np.float32), "Q8_0"),
        "other": source("other", rng.standard_normal((17, 32)).astype(np.float32), "Q5_0"),
        "norm": source("norm", rng.standard_normal(64).astype(np.float32)),
        "half": source("half", rng.standard_normal(24).astype(np.float32), "BF16"),
    }

    def counted(entry: TensorSource) -> TensorSource:
        def read():
            if reads is not None:
                reads.append(entry.name)
            return entry.read()

        return TensorSource(name=entry.name, shape=entry.shape, format_name=entry.format_name, read=read)

    return {name: counted(entry) for name, entry in made.items()}


def contents(weights: dict) -> dict[str, np.ndarray]:
    """What the kernels read of each weight."""
    found = {}
    for name, weight in weights.items():
        if isinstance(weight, CpuMatrix):
            found[name] = _native.unpacked_rows(weight.native, np.arange(weight.rows, dtype=np.int32))
        else:
            assert isinstance(weight, CpuVector)
            found[name] = np.array((ctypes.c_float * weight.width).from_address(weight.address))
    return found


def truth(wanted: dict[str, TensorSource]) -> dict[str, np.ndarray]:
    found = {}
    for name, entry in wanted.items():
        tensor = entry.read()
        found[name] = dequantize(tensor.data, tensor.format, tensor.shape)
    return found


def assert_right(weights: dict, seed: int = 0) -> None:
    expected = truth(sources(seed=seed))
    for name, values in contents(weights).items():
        assert np.array_equal(values, expected[name]), name


def packed_file(folder: Path) -> Path:
    [path] = (folder / "packed").glob("*.packed")
    return path


def reopened(folder: Path, reads: list[str]) -> tuple[CpuChip, dict]:
    chip = CpuChip(cache_folder=folder, num_threads=2)
    return chip, dict(chip.adopt(sources(reads), "print"))


def test_weights_are_read_once_and_mapped_later(tmp_path: Path) -> None:
    reads: list[str] = []
    chip, weights = reopened(tmp_path, reads)
    assert_right(weights)
    assert sorted(reads) == ["half", "matrix", "norm", "other"] and chip.notices == []
    again, weights = reopened(tmp_path, reads)
    assert_right(weights)
    assert len(reads) == 4 and again.notices == []


def test_other_weights_have_another_file(tmp_path: Path) -> None:
    chip = CpuChip(cache_folder=tmp_path, num_threads=1)
    first = dict(chip.adopt(sources(), "one"))
    second = dict(chip.adopt(sources(seed=1), "two"))
    fewer = dict(chip.adopt({"norm": sources()["norm"]}, "one"))
    assert_right(first)
    assert_right(second, seed=1)
    assert set(fewer) == {"norm"}
    assert len(list((tmp_path / "packed").glob("*.packed"))) == 3


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 16]))
    # A clock that has not ticked since the write would hide the change; real damage comes later than a moment.
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))


def damage_end(path: Path) -> None:
    flip(path, path.stat().st_size - 3)


def damage_middle(path: Path) -> None:
    flip(path, 2 * 4096 + 100)  # the directory is in the first page, the smallest tensor in the second


def damage_directory(path: Path) -> None:
    flip(path, 40)


def damage_magic(path: Path) -> None:
    flip(path, 0)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5000)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 3)


def replace_by_text(path: Path) -> None:
    path.write_text("this was never a file of weights" * 400)


@pytest.mark.parametrize(
    "damage",
    [damage_end, damage_middle, damage_directory, damage_magic, truncate, cut_to_nothing, replace_by_text],
    ids=lambda function: function.__name__,
)
def test_a_damaged_file_is_made_anew_and_said_so(damage: Callable[[Path], None], tmp_path: Path) -> None:
    reopened(tmp_path, [])
    damage(packed_file(tmp_path))
    reads: list[str] = []
    chip, weights = reopened(tmp_path, reads)
    assert_right(weights)
    (notice,) = chip.notices
    assert len(reads) == 4 and "made anew" in notice and "\n" not in notice
    _, weights = reopened(tmp_path, reads)
    assert_right(weights)
    assert len(reads) == 4


def test_a_file_of_another_layout_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packed_weights, "LAYOUT_VERSION", "0.1")
        reopened(tmp_path, [])
        older = packed_file(tmp_path)
    reads: list[str] = []
    chip, weights = reopened(tmp_path, reads)
    assert_right(weights)
    assert len(reads) == 4 and chip.notices == []  # its name is another: that is what an update looks like
    newer = packed_file(tmp_path)
    assert newer != older and not older.exists()
    newer.write_bytes(newer.read_bytes().replace(f'"{packed_weights.LAYOUT_VERSION}"'.encode(), b'"0.1"'))
    chip, weights = reopened(tmp_path, reads)
    assert_right(weights)
    assert len(reads) == 8 and "made anew" in chip.notices[0]


def test_a_file_from_another_machine_is_verified_before_it_is_used(tmp_path: Path) -> None:
    """Copied, it has other times and another inode; its weights serve every instruction set."""
    reopened(tmp_path / "there", [])
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    file = packed_file(tmp_path / "here")
    reads: list[str] = []
    for name in reversed(_native.instruction_sets()):
        assert _native.set_instruction_set(name)
        chip, weights = reopened(tmp_path / "here", reads)
        assert_right(weights)
        assert reads == [] and chip.notices == []
    damage_middle(file)
    shutil.copytree(tmp_path / "here", tmp_path / "damaged")
    chip, weights = reopened(tmp_path / "damaged", reads)
    assert_right(weights)
    assert len(reads) == 4 and "damaged" in chip.notices[0]


def test_every_damaged_byte_of_the_weights_is_seen(tmp_path: Path) -> None:
    pool = _native.ThreadPool(1)
    data = np.random.default_rng(1).integers(0, 256, 1000).astype(np.uint8)
    whole = _native.checksum(pool, data)
    for place in range(len(data)):
        data[place] ^= 1
        assert _native.checksum(pool, data) != whole, place
        data[place] ^= 1
    assert _native.checksum(pool, data) == whole
    assert _native.checksum(pool, data[:-1]) != whole


def test_the_checksum_does_not_depend_on_threads() -> None:
    data = np.arange(5_000_000, dtype=np.uint32).view(np.uint8)
    sums = {_native.checksum(_native.ThreadPool(threads), data) for threads in (1, 2, 5)}
    assert len(sums) == 1


def test_an_older_layout_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reopened(tmp_path, [])
    old = packed_file(tmp_path)
    version = packed_weights.LAYOUT_VERSION
    monkeypatch.setattr(packed_weights, "LAYOUT_VERSION", "newer")
    old.rename(old.with_name(old.name.replace(f"-v{version}.", "-vnewer.")))
    chip, weights = reopened(tmp_path, [])
    assert_right(weights)
    assert ["it is of layout" in notice for notice in chip.notices] == [True]


def test_files_of_older_layouts_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, old_weights = reopened(tmp_path, [])
    CpuChip(cache_folder=tmp_path, num_threads=1).adopt(sources(), "another model")
    monkeypatch.setattr(packed_weights, "LAYOUT_VERSION", "newer")
    reopened(tmp_path, [])
    kept = sorted(path.name.rsplit("-", 1)[1] for path in (tmp_path / "packed").glob("*.packed"))
    assert len(kept) == 2 and "vnewer.packed" in kept
    assert_right(old_weights)


def test_files_are_verified_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reopened(tmp_path, [])
    sums: list[str] = []
    plain = packed_weights._checksum

    def counted(data, region, pool):
        sums.append(region.name)
        return plain(data, region, pool)

    monkeypatch.setattr(packed_weights, "_checksum", counted)
    reopened(tmp_path, [])
    assert sums == []
    path = packed_file(tmp_path)
    os.utime(path)
    reopened(tmp_path, [])
    assert len(sums) == 4
    reopened(tmp_path, [])
    assert len(sums) == 4


def fails(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_weights_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", fails)
    chip, weights = reopened(tmp_path, [])
    assert_right(weights)
    assert ["No space left" in notice for notice in chip.notices] == [True]
    assert [path.suffix for path in (tmp_path / "packed").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_keeps_weights_in_memory(tmp_path: Path) -> None:
    (tmp_path / "packed").write_text("a file where the folder should be")
    chip, weights = reopened(tmp_path, [])
    assert_right(weights)
    assert ["stay in memory" in notice for notice in chip.notices] == [True]


def test_without_a_folder_nothing_is_written_and_nothing_said() -> None:
    chip = CpuChip(num_threads=2)
    assert_right(dict(chip.adopt(sources(), "print")))
    assert chip.notices == []


def adopt_and_count(folder: Path, results: multiprocessing.Queue) -> None:
    reads: list[str] = []
    _, weights = reopened(folder, reads)
    assert_right(weights)
    results.put(len(reads))


def test_of_several_processes_one_packs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=adopt_and_count, args=(tmp_path, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(results.get() for _ in workers) == [0, 0, 4]


def test_every_format_is_packed_without_loss() -> None:
    chip = CpuChip(num_threads=2)
    made = {
        entry.name: source(
            entry.name, np.random.default_rng(3).standard_normal((35, 512)).astype(np.float32), entry.name
        )
        for entry in formats.FORMATS
    }
    expected = truth(made)
    for name, values in contents(dict(chip.adopt(made, "formats"))).items():
        assert np.array_equal(values, expected[name]), name
