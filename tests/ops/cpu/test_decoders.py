"""Whole decoders with everything that some family has: against the reference, and the same bits fused or not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ridgeline.chips.cpu import CpuChip
from ridgeline.chips.reference import ReferenceChip
from ridgeline.model.decoder import DecoderWeights, LayerWeights, decoder_step
from ridgeline.model.spec import DecoderSpec, LayerSpec, RopeSpec
from ridgeline.ops.chip import AnyChip, KvFormat, PageLayout, TensorSource
from ridgeline.ops.conformance.case import source
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.step import StepLimits

WIDTH, VOCABULARY, MLP = 96, 70, 160
TOKENS = np.random.default_rng(9).integers(0, VOCABULARY, 150).tolist()


def layer(**changes: Any) -> LayerSpec:
    plain: dict[str, Any] = {
        "num_query_heads": 4,
        "num_kv_heads": 2,
        "head_width": 32,
        "attention_scale": 0.18,
        "rope": 0,
        "mlp_width": MLP,
    }
    return LayerSpec(**{**plain, **changes})


def ropes(*widths: int) -> tuple[RopeSpec, ...]:
    return tuple(
        RopeSpec(frequencies=tuple(1e4 ** (-np.arange(0, width, 2) / width)), magnitude=1 + 0.1 * number)
        for number, width in enumerate(widths)
    )


def spec(layers: tuple[LayerSpec, ...], **changes: Any) -> DecoderSpec:
    plain: dict[str, Any] = {
        "family": "made up",
        "vocabulary_size": VOCABULARY,
        "width": WIDTH,
        "layers": layers,
        "ropes": ropes(32),
        "norm_epsilon": 1e-6,
        "context_tokens": 256,
    }
    return DecoderSpec(**{**plain, **changes})


GEMMA_LIKE = spec(
    (
        layer(window=20, attention_softcap=9.0, activation="gelu_tanh", has_post_norms=True, has_query_key_norm=True),
        layer(rope=1, activation="gelu_tanh", has_post_norms=True, has_query_key_norm=True),
        layer(window=70, attention_softcap=30.0, activation="gelu_tanh", has_post_norms=True, has_query_key_norm=True),
    ),
    ropes=ropes(32, 16),
    embedding_scale=float(np.sqrt(WIDTH)),
    logits_softcap=12.0,
    is_output_tied=True,
)
PHI_LIKE = spec((layer(), layer(num_query_heads=6, num_kv_heads=1)), ropes=ropes(16))
QWEN_LIKE = spec((layer(), layer(num_kv_heads=4)))
SPECS = {"gemma": GEMMA_LIKE, "phi": PHI_LIKE, "qwen": QWEN_LIKE}
BIASED = ("qwen",)


def sources_of(name: str, format_name: str) -> dict[str, TensorSource]:
    """Random weights under the field names of LayerWeights and DecoderWeights."""
    decoder, rng = SPECS[name], np.random.default_rng(len(name))
    made: dict[str, TensorSource] = {}

    def matrix(key: str, rows: int, width: int) -> None:
        values = (rng.standard_normal((rows, width)) / np.sqrt(width)).astype(np.float32)
        made[key] = source(key, values, format_name)

    def vector(key: str, width: int, centre: float) -> None:
        made[key] = source(key, (centre + 0.2 * rng.standard_normal(width)).astype(np.float32))

    matrix("embedding", VOCABULARY, WIDTH)
    for index, each in enumerate(decoder.layers):
        queries, keys = each.num_query_heads * each.head_width, each.num_kv_heads * each.head_width
        for key, rows, width in (
            ("query", queries, WIDTH),
            ("key", keys, WIDTH),
            ("value", keys, WIDTH),
            ("attention_output", WIDTH, queries),
            ("gate", MLP, WIDTH),
            ("up", MLP, WIDTH),
            ("down", WIDTH, MLP),
        ):
            matrix(f"{index}.{key}", rows, width)
        for key in ("attention_norm", "mlp_norm"):
            vector(f"{index}.{key}", WIDTH, 1)
        if each.has_post_norms:
            vector(f"{index}.attention_post_norm", WIDTH, 1)
            vector(f"{index}.mlp_post_norm", WIDTH, 1)
        if each.has_query_key_norm:
            vector(f"{index}.query_norm", each.head_width, 1)
            vector(f"{index}.key_norm", each.head_width, 1)
        if name in BIASED:
            for key, width in (
                ("query_bias", queries),
                ("key_bias", keys),
                ("value_bias", keys),
                ("attention_output_bias", WIDTH),
            ):
                vector(f"{index}.{key}", width, 0)
    vector("final_norm", WIDTH, 1)
    if not decoder.is_output_tied:
        matrix("output", VOCABULARY, WIDTH)
    for number, rope in enumerate(decoder.ropes):
        made[f"rope.{number}"] = source(f"rope.{number}", np.array(rope.frequencies, np.float32))
    return made


def logits_of(
    chip: AnyChip, name: str, cuts: list[int], *, format_name: str = "F32", kv_format: KvFormat = "f32"
) -> np.ndarray:
    """All logits of TOKENS, fed in these chunks."""
    decoder = SPECS[name]
    w = chip.adopt(sources_of(name, format_name), f"{name} {format_name}")
    weights: DecoderWeights[Any] = DecoderWeights(
        embedding=w["embedding"],
        layers=tuple(
            LayerWeights(**{key.split(".")[1]: value for key, value in w.items() if key.startswith(f"{index}.")})
            for index in range(len(decoder.layers))
        ),
        final_norm=w["final_norm"],
        output=w.get("output", w["embedding"]),
        ropes=tuple(w[f"rope.{number}"] for number in range(len(decoder.ropes))),
    )
    limits = StepLimits(max_tokens=160, max_sequences=2, max_logit_rows=160, max_pages_per_sequence=3)
    layout = PageLayout(layers=tuple((each.num_kv_heads, each.head_width) for each in decoder.layers), format=kv_format)
    pages = chip.allocate_pages(layout, 4, limits)
    compiled = chip.compile(
        lambda ops, arrays, pages: decoder_step(decoder, weights, ops, arrays, pages), pages, limits
    )
    rows = []
    for start, end in pairwise(cuts):
        part = StepPart(
            token_ids=TOKENS[start:end], start=start, page_ids=[2, 0, 3], place=1, num_logit_rows=end - start
        )
        rows.append(np.array(compiled.run(host_step([part]))))
    return np.concatenate(rows)


@pytest.mark.parametrize("name", SPECS)
def test_decoders_agree_with_the_reference(name: str) -> None:
    found = logits_of(CpuChip(num_threads=2), name, [0, 100, 101, 150])
    expected = logits_of(ReferenceChip(), name, [0, 150])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kv_format", ["bf16", "int8"])
def test_decoders_of_quantised_weights_agree_with_the_reference(name: str, kv_format: KvFormat) -> None:
    found = logits_of(CpuChip(num_threads=2), name, [0, 150], format_name="Q8_0", kv_format=kv_format)
    expected = logits_of(ReferenceChip(), name, [0, 150], format_name="Q8_0", kv_format=kv_format)
    error = np.sqrt(np.mean((found - expected) ** 2)) / np.sqrt(np.mean(expected**2))
    assert error < 0.04  # of int8 activations, through three layers of narrow products


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("format_name", ["F32", "Q8_0", "BF16"])
def test_the_same_bits_fused_or_not_and_however_cut(name: str, format_name: str) -> None:
    kv_format: KvFormat = "int8" if format_name == "Q8_0" else "bf16"
    plain, *others = (
        logits_of(CpuChip(num_threads=threads, fuse=fuse), name, cuts, format_name=format_name, kv_format=kv_format)
        for threads, fuse, cuts in (
            (1, False, [0, 150]),
            (1, True, [0, 150]),
            (3, True, [0, 1, 2, 66, 129, 150]),
            (2, False, [0, 128, 149, 150]),
        )
    )
    for other in others:
        assert np.array_equal(plain, other)
