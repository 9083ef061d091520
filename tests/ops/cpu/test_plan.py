"""Plans: fusing changes no bit, what is not fused works too, memory is shared only by what may, laws are checked."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ridgeline.chips.cpu import CpuChip
from ridgeline.chips.cpu.fusion import prepared
from ridgeline.chips.cpu.joining import joined_nodes
from ridgeline.chips.cpu.plan import RecordWriter, lay_out
from ridgeline.chips.cpu.recorder import OpKind, RecordingOps, StepArray, step_symbols
from ridgeline.chips.reference import ReferenceChip
from ridgeline.errors import CapacityError, ChipError
from ridgeline.model.load import load_model, step_function
from ridgeline.model.trial import Trial
from ridgeline.ops.chip import KvFormat, PageLayout
from ridgeline.ops.conformance.case import source
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import StepLimits
from ridgeline.quant import formats
from ridgeline.weights.open import open_checkpoint
from tests.tiny_models import write_tiny_gguf

LIMITS = StepLimits(max_tokens=8, max_sequences=2, max_logit_rows=8, max_pages_per_sequence=2)
LAYOUT = PageLayout(layers=((1, 16),), format="f32")
STEP = host_step([StepPart(token_ids=[3, 1, 4, 1], start=0, page_ids=[1], place=0, num_logit_rows=2)])


def run_both(weights: dict[str, np.ndarray], step: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the CPU chip and the reference make of a step function that is given ops, arrays, pages and weights."""
    results = []
    for chip in (CpuChip(num_threads=2), ReferenceChip()):
        adopted = chip.adopt({name: source(name, values) for name, values in weights.items()}, "plan")
        pages = chip.allocate_pages(LAYOUT, 2, LIMITS)
        compiled = chip.compile(
            lambda ops, arrays, pages, adopted=adopted: (step(ops, arrays, adopted), pages), pages, LIMITS
        )
        results.append(np.array(compiled.run(STEP)))
    return results[0], results[1]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "table": normal(9, 32),
    "w": normal(32, 32, seed=1),
    "up": normal(48, 32, seed=2),
    "norm": normal(32),
    "half": normal(16),
}


def test_a_sum_keeps_the_old_value_where_it_is_used_again() -> None:
    def step(ops, arrays, w):
        x = ops.embed(w["table"], arrays.token_ids_T)
        y = ops.add(x, ops.linear(x, w["w"]))
        return ops.multiply(ops.add(y, ops.linear(y, w["w"])), x)

    found, expected = run_both(WEIGHTS, step)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_norm_that_is_used_as_it_is_and_in_a_product() -> None:
    def step(ops, arrays, w):
        h = ops.rms_norm(ops.embed(w["table"], arrays.token_ids_T), w["norm"], 1e-6)
        return ops.add(ops.linear(h, w["w"]), h)

    found, expected = run_both(WEIGHTS, step)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_the_same_product_twice_and_both_ways_around() -> None:
    def step(ops, arrays, w):
        x = ops.embed(w["table"], arrays.token_ids_T)
        a, b = ops.linear(x, w["w"]), ops.linear(ops.scale(x, 0.5), w["w"])
        return ops.add(ops.add(a, b), ops.add(b, a))

    found, expected = run_both(WEIGHTS, step)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_rows_that_are_taken_by_any_array_of_the_step() -> None:
    def step(ops, arrays, w):
        x = ops.scale(ops.embed(w["table"], arrays.token_ids_T), 2.0)
        taken = ops.take_rows(x, arrays.positions_T)
        return ops.add(taken, ops.linear(ops.take_rows(x, arrays.sequences_T), w["w"]))

    found, expected = run_both(WEIGHTS, step)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_mlp_by_hand_is_the_coarse_one() -> None:
    def by_hand(ops, arrays, w):
        x = ops.embed(w["table"], arrays.token_ids_T)
        gate, up = ops.linear(x, w["up"]), ops.linear(x, w["up"])
        return ops.multiply(ops.activate(gate, "gelu_tanh"), up)

    found, expected = run_both(WEIGHTS, by_hand)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("entry", [formats.F32, formats.BF16, formats.Q8_0, formats.Q5_0], ids=lambda entry: entry.name)
def test_fusing_changes_no_bit(entry: formats.Format, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", entry=entry)
    rows = []
    for fuse in (True, False):
        chip = CpuChip(num_threads=2, fuse=fuse)
        trial = Trial(chip, load_model(open_checkpoint(path), chip), max_tokens=128, kv_format="bf16")
        tokens = np.random.default_rng(0).integers(0, 256, 90).tolist()
        rows.append(np.concatenate([trial.feed({0: part})[0] for part in (tokens[:85], tokens[85:86], tokens[86:])]))
    assert np.array_equal(rows[0], rows[1])


@pytest.mark.parametrize("kv_format", ["f32", "bf16", "int8"])
def test_a_decoder_gives_the_same_bits_however_it_is_run(kv_format: Any, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", entry=formats.Q8_0)
    tokens = np.random.default_rng(1).integers(0, 256, 150).tolist()
    ways = []
    for num_threads, cuts in ((1, [0, 150]), (2, [0, 1, 2, 70, 129, 150]), (3, [0, 64, 128, 149, 150])):
        chip = CpuChip(num_threads=num_threads)
        trial = Trial(chip, load_model(open_checkpoint(path), chip), num_sequences=3, max_tokens=192, page_seed=4)
        rows = []
        for start, end in pairwise(cuts):
            mates = {} if num_threads == 1 else {0: tokens[: 1 + start % 3]}
            rows.append(trial.feed({**mates, 1: tokens[start:end]})[1])
        ways.append(np.concatenate(rows))
    assert np.array_equal(ways[0], ways[1])
    assert np.array_equal(ways[0], ways[2])


def test_the_tiny_decoder_agrees_with_the_reference(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", entry=formats.F32)
    tokens = np.random.default_rng(2).integers(0, 256, 40).tolist()
    rows = []
    for chip in (CpuChip(num_threads=2), ReferenceChip()):
        trial = Trial(chip, load_model(open_checkpoint(path), chip), max_tokens=64, kv_format="f32")
        rows.append(trial.feed({0: tokens})[0])
    assert np.abs(rows[0] - rows[1]).max() < 1e-4 * np.abs(rows[1]).max()


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"token_ids_T": np.array([3, 1, 9, 1], np.int32)}, "token ids"),
        ({"token_ids_T": np.array([3, 1, -1, 1], np.int32)}, "token ids"),
        ({"slots_T": np.array([64, 65, 66, 68], np.int32)}, "slots"),
        ({"positions_T": np.array([0, 1, 2, 4], np.int32)}, "positions"),
        ({"page_table_NP": np.array([[7]], np.int32)}, "pages"),
        ({"places_N": np.array([2], np.int32)}, "places"),
        ({"logit_rows_B": np.array([4], np.int32)}, "logit rows"),
        ({"context_lengths_N": np.array([3], np.int32)}, "context"),
        ({"sequences_T": np.zeros(3, np.int32)}, "lengths"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lawless_step_is_refused(change: dict[str, np.ndarray], law: str) -> None:
    chip = CpuChip(num_threads=1)
    table = chip.adopt({"table": source("table", WEIGHTS["table"])}, "laws")["table"]
    pages = chip.allocate_pages(LAYOUT, 2, LIMITS)
    compiled = chip.compile(lambda ops, arrays, pages: (ops.embed(table, arrays.token_ids_T), pages), pages, LIMITS)
    before = compiled.run(STEP).copy()
    with pytest.raises(ChipError, match=law):
        compiled.run(replace(STEP, **change))
    assert np.array_equal(compiled.run(STEP), before)


def test_a_step_of_no_logit_rows_gives_none() -> None:
    chip = CpuChip(num_threads=2)
    weights = chip.adopt({name: source(name, values) for name, values in WEIGHTS.items()}, "none")
    pages = chip.allocate_pages(LAYOUT, 2, LIMITS)

    def step(ops, arrays, pages):
        x = ops.take_rows(ops.embed(weights["table"], arrays.token_ids_T), arrays.logit_rows_B)
        return ops.linear(ops.rms_norm(x, weights["norm"], 1e-6), weights["up"]), pages

    compiled = chip.compile(step, pages, LIMITS)
    assert compiled.run(replace(STEP, logit_rows_B=np.zeros(0, np.int32))).shape == (0, 48)


@pytest.mark.parametrize(("kv_format", "at_many_tokens"), [("bf16", 8), ("int8", 9)])
def test_a_llama_layer_needs_five_barriers_at_one_token(
    kv_format: KvFormat, at_many_tokens: int, tmp_path: Path
) -> None:
    chip = CpuChip(num_threads=1)
    model = load_model(open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf", entry=formats.Q8_0)), chip)
    ops = RecordingOps()
    pages = chip.allocate_pages(model.page_layout(kv_format), 1, LIMITS)
    result, _ = step_function(model)(ops, step_symbols(), pages)
    nodes = prepared(ops.nodes, result.floats())
    layout = lay_out(nodes, result.floats(), LIMITS)
    num_layers = len(model.spec.layers)
    records = RecordWriter(layout, pages).records(nodes)
    assert sum(record.needs_barrier for record in records) <= at_many_tokens * num_layers + 3
    # One token is prepared by every thread, and its heads are turned and stored by those that attend.
    after_repeated = [False, *(record.may_repeat for record in records)]
    at_one_token = [
        record.needs_barrier and not record.is_joined and not skips
        for record, skips in zip(records, after_repeated, strict=False)
    ]
    assert sum(at_one_token) <= 5 * num_layers + 3
    kinds = [node.kind for node in nodes]
    assert OpKind.ADD not in kinds and OpKind.RMS_NORM not in kinds


@pytest.mark.parametrize(("is_by_head", "num_joined"), [(True, 1), (False, 0)])
def test_attention_turns_its_own_heads_unless_a_norm_is_over_all_of_them(is_by_head: bool, num_joined: int) -> None:
    chip = CpuChip(num_threads=1)
    weights = chip.adopt({name: source(name, values) for name, values in WEIGHTS.items()}, "joined")
    ops, arrays = RecordingOps(), step_symbols()
    pages = chip.allocate_pages(PageLayout(layers=((2, 16),), format="f32"), 2, LIMITS)
    x = ops.embed(weights["table"], arrays.token_ids_T)
    q, k, v = ops.linears(x, (weights["w"],) * 3, (None,) * 3)
    q = ops.rms_norm(ops.heads(q, 2) if is_by_head else q, weights["half" if is_by_head else "norm"], 1e-6)
    q, k, v = (ops.heads(heads, 2) for heads in (q, k, v))
    ops.store_and_attend(q, k, v, pages, 0, arrays, scale=1.0, window=None, softcap=None)
    assert len(joined_nodes(ops.nodes)) == num_joined


def test_values_that_live_at_the_same_time_have_places_of_their_own(tmp_path: Path) -> None:
    chip = CpuChip(num_threads=1)
    model = load_model(open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf", entry=formats.Q8_0)), chip)
    pages = chip.allocate_pages(model.page_layout("bf16"), 1, LIMITS)
    ops = RecordingOps()
    result, _ = step_function(model)(ops, step_symbols(), pages)
    layout = lay_out(prepared(ops.nodes, result.floats()), result.floats(), LIMITS)
    regions = list(layout.regions.values())
    for number, one in enumerate(regions):
        for other in regions[number + 1 :]:
            do_meet = one.first_phase <= other.last_phase and other.first_phase <= one.last_phase
            is_apart = (
                one.offset_bytes + one.size_bytes <= other.offset_bytes
                or other.offset_bytes + other.size_bytes <= one.offset_bytes
            )
            assert is_apart or not do_meet
    # Far less than all values side by side.
    assert layout.arena_bytes < sum(region.size_bytes for region in regions) / 2


def test_step_arrays_of_one_length_are_one_kind_of_rows() -> None:
    assert StepArray.POSITIONS.rows is StepArray.TOKEN_IDS.rows
    assert StepArray.PLACES.rows is StepArray.CONTEXT_LENGTHS
    assert StepArray.LOGIT_ROWS.rows is StepArray.LOGIT_ROWS


def test_more_pages_than_memory_says_what_would_fit() -> None:
    with pytest.raises(CapacityError, match="pages of 8192 bytes") as caught:
        CpuChip(num_threads=1).allocate_pages(LAYOUT, 1 << 40, LIMITS)
    assert "at most" in caught.value.hint


def test_what_only_some_rows_are_wanted_of_is_computed_for_those(tmp_path: Path) -> None:
    chip = CpuChip(num_threads=1)
    model = load_model(open_checkpoint(write_tiny_gguf(tmp_path / "tiny.gguf", entry=formats.Q8_0)), chip)
    pages = chip.allocate_pages(model.page_layout("bf16"), 1, LIMITS)
    ops = RecordingOps()
    result, _ = step_function(model)(ops, step_symbols(), pages)
    nodes = prepared(ops.nodes, result.floats())
    last_attention = max(number for number, node in enumerate(nodes) if node.kind is OpKind.ATTEND)
    after = [node for node in nodes[last_attention + 1 :] if node.kind is not OpKind.TAKE_ROWS]
    assert {node.rows for node in after} == {StepArray.LOGIT_ROWS}
    assert {node.kind for node in after} == {OpKind.PREPARE, OpKind.LINEARS, OpKind.GATED}
