"""The simulated chip by itself: its clock, its tokens, its faults, its speed."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from ridgeline.chips.published import published_chip
from ridgeline.chips.simulated import Faults, SimulatedChip, SimulatedStep, VirtualClock, next_token, step_shape
from ridgeline.errors import CapacityError, ChipError
from ridgeline.model.decoder import decoder_step
from ridgeline.model.spec import DecoderSpec, LayerSpec, RopeSpec
from ridgeline.model.tensors import decoder_weights, tensor_shapes
from ridgeline.ops.chip import PageLayout, TensorSource
from ridgeline.ops.conformance.attention import MIXED, NUM_PAGES, steps_of_chunks, tokens_of
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import StepLimits, StepShape

LIMITS = StepLimits(max_tokens=2048, max_sequences=64, max_logit_rows=2048, max_pages_per_sequence=64)
LAYER = LayerSpec(
    num_query_heads=28, num_kv_heads=4, head_width=128, attention_scale=128**-0.5, rope=0, mlp_width=18944
)
# The shape of Qwen2.5-7B: published in its config.json.
SEVEN_BILLION = DecoderSpec(
    family="qwen2",
    vocabulary_size=152064,
    width=3584,
    layers=(LAYER,) * 28,
    ropes=(RopeSpec(frequencies=(1.0,) * 64),),
    norm_epsilon=1e-6,
    context_tokens=32768,
)


SMALL = replace(SEVEN_BILLION, vocabulary_size=1000)


def sources_of(spec: DecoderSpec) -> dict[str, TensorSource]:
    def unread() -> Any:
        raise AssertionError("a simulated chip must not read weights")

    return {
        name: TensorSource(name=name, shape=shape, format_name="Q4_K" if len(shape) == 2 else "F32", read=unread)
        for name, shape in tensor_shapes(spec).items()
    }


def layout_of(spec: DecoderSpec) -> PageLayout:
    return PageLayout(layers=tuple((layer.num_kv_heads, layer.head_width) for layer in spec.layers), format="bf16")


def opened(
    *, spec: DecoderSpec = SEVEN_BILLION, faults: Faults | None = None, num_pages: int = 512, chip_name: str = "h100"
) -> tuple[SimulatedChip, SimulatedStep]:
    chip = SimulatedChip(published_chip(chip_name).facts(), faults=faults)
    weights = decoder_weights(spec, chip.adopt(sources_of(spec), "none"))
    pages = chip.allocate_pages(layout_of(spec), num_pages, LIMITS)
    return chip, chip.compile(partial(decoder_step, spec, weights), pages, LIMITS)


def test_clock_advances_by_what_was_predicted() -> None:
    chip, compiled = opened()
    (step, *_) = steps_of_chunks(MIXED)
    compiled.run(step)
    expected = compiled.cost.seconds(step_shape(step), chip.facts())
    assert compiled.seconds() == chip.clock.now() == expected > 0
    # 4.3 GB of weights at 3.35 TB/s, and 135 tokens of 13 Gflop each at 990 Tflop/s.
    assert 1.3e-3 < expected < 1.3e-3 + 2e-3
    compiled.run(step)
    assert chip.clock.now() == 2 * expected


def test_step_shape_of_a_step() -> None:
    shape = step_shape(steps_of_chunks(MIXED)[3])
    assert isinstance(shape, StepShape)
    assert [(span.num_tokens, span.context_tokens) for span in shape.spans] == [(128, 200), (1, 67), (1, 134)]
    assert shape.num_logit_rows == 130


def test_every_row_asks_for_the_token_that_follows_from_its_whole_sequence() -> None:
    _, compiled = opened()
    for step, chunks in zip(steps_of_chunks(MIXED), MIXED, strict=True):
        logits_BV = compiled.run(step)
        expected = [
            next_token(tokens_of(sequence, position + 1), SEVEN_BILLION.vocabulary_size)
            for sequence, start, end in chunks
            for position in range(start, end)
        ]
        assert logits_BV.argmax(axis=1).tolist() == expected
        assert (logits_BV != 0).sum() == len(expected), "what the last step wrote must be gone"
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("page", range(3))
def test_a_page_that_was_overwritten_changes_the_token(page: int) -> None:
    _, compiled = opened()
    tokens = tokens_of(1, 150)
    own = [7, 3, 11]
    prefill = StepPart(token_ids=tokens, start=0, page_ids=own, place=0, num_logit_rows=1)
    decode = StepPart(token_ids=[5], start=150, page_ids=own, place=0, num_logit_rows=1)
    intruder = StepPart(token_ids=[9] * 3, start=0, page_ids=[own[page]], place=1, num_logit_rows=1)
    compiled.run(host_step([prefill]))
    right = compiled.run(host_step([decode])).argmax()
    assert right == next_token([*tokens, 5], SEVEN_BILLION.vocabulary_size)
    compiled.run(host_step([intruder]))
    assert compiled.run(host_step([decode])).argmax() != right
    compiled.run(host_step([prefill]))
    assert compiled.run(host_step([decode])).argmax() == right


def outcomes(faults: Faults, num_steps: int = 300) -> list[Any]:
    chip, compiled = opened(faults=faults, spec=SMALL)
    steps = steps_of_chunks(MIXED)
    found: list[Any] = []
    for number in range(num_steps):
        try:
            logits_BV = compiled.run(steps[number % len(steps)])
            found.append((compiled.seconds(), np.flatnonzero(np.isnan(logits_BV).any(axis=1)).tolist()))
        except ChipError as error:
            found.append(str(error))
    assert chip.clock.now() > 0
    return found


def test_faults_follow_from_the_seed_and_come_as_often_as_asked() -> None:
    faults = Faults(seed=3, error_share=0.1, slow_share=0.2, slow_factor=50.0, nan_share=0.3)
    first, again = outcomes(faults), outcomes(faults)
    assert first == again
    assert first != outcomes(replace(faults, seed=4))
    errors = [found for found in first if isinstance(found, str)]
    assert 15 < len(errors) < 50
    assert "injected fault at step" in errors[0]
    ran = [found for found in first if not isinstance(found, str)]
    assert 0.2 < sum(bool(rows) for _, rows in ran) / len(ran) < 0.4
    assert all(len(rows) <= 1 for _, rows in ran)
    plain = outcomes(Faults())
    slow = [a[0] / b[0] for a, b in zip(first, plain, strict=True) if not isinstance(a, str)]
    assert set(np.round(slow, 6)) == {1.0, 50.0}
    assert all(rows == [] for _, rows in plain)


def test_error_steps_are_exact() -> None:
    found = outcomes(Faults(error_steps=frozenset({2, 17})), num_steps=30)
    assert [number for number, each in enumerate(found) if isinstance(each, str)] == [2, 17]


def test_a_row_that_was_nan_is_clean_in_the_next_step() -> None:
    _, compiled = opened(faults=Faults(seed=1, nan_share=0.5), spec=SMALL)
    (step, *_) = steps_of_chunks(MIXED)
    was_nan, was_clean = False, False
    for _ in range(20):
        logits_BV = compiled.run(step)
        rows = int(np.isnan(logits_BV).any(axis=1).sum())
        assert rows in (0, 1)
        assert (np.nan_to_num(logits_BV) != 0).sum() == len(logits_BV) - rows
        was_nan, was_clean = was_nan or rows == 1, was_clean or (was_nan and rows == 0)
    assert was_clean


def test_memory_of_the_chip_is_the_limit() -> None:
    with pytest.raises(CapacityError, match="pages take"):
        opened(num_pages=NUM_PAGES * 1_000_000)
    with pytest.raises(CapacityError, match="the weights take"):
        opened(spec=replace(SEVEN_BILLION, layers=(LAYER,) * 1200))


def test_virtual_clock() -> None:
    clock = VirtualClock(5.0)
    clock.advance(1.5)
    clock.advance_to(3.0)
    assert clock.now() == 6.5
    clock.advance_to(8.0)
    assert clock.now() == 8.0


def test_speed() -> None:
    _, compiled = opened(num_pages=4096)
    parts = [
        StepPart(token_ids=[n], start=1000 + n, page_ids=range(32 * n, 32 * n + 32), place=n, num_logit_rows=1)
        for n in range(32)
    ]
    step = host_step(parts)
    best = float("inf")
    for _ in range(10):
        start = time.process_time()
        for _ in range(50):
            compiled.run(step)
        best = min(best, (time.process_time() - start) / 50)
    print(f"simulated step of 32 sequences: {best * 1e6:.0f} us")
    assert best < 500e-6
