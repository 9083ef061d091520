"""Whole tiny decoders as cases of the conformance suite: the ops put together as families put them together.

Knows: the decoder, the suite. Does not know: chips, files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ridgeline.model.decoder import decoder_step
from ridgeline.model.spec import DecoderSpec, LayerSpec, RopeSpec
from ridgeline.model.tensors import decoder_weights, tensor_shapes
from ridgeline.ops.chip import KvFormat, StepFunction
from ridgeline.ops.conformance import Case, Problem, SamenessCase
from ridgeline.ops.conformance.attention import MIXED, NUM_PAGES, VOCABULARY, Chunk, steps_of_chunks
from ridgeline.ops.conformance.case import source

TOLERANCES: Mapping[str, float] = {"F32": 5e-5, "BF16": 3e-2, "Q8_0": 6e-2, "Q4_0": 6e-2, "Q5_1": 6e-2}
"""Of logits, after a dozen products one after another; int8 activations in groups of 32 measure 0.02 to 0.05."""
KV_TOLERANCE: Mapping[KvFormat, float] = {"f32": 0.0, "bf16": 1e-2, "int8": 2e-2}


def _rope(width: int, base: float) -> RopeSpec:
    return RopeSpec(frequencies=tuple(base ** -(2 * index / width) for index in range(width // 2)))


PLAIN = LayerSpec(num_query_heads=4, num_kv_heads=2, head_width=32, attention_scale=32**-0.5, rope=0, mlp_width=160)
"""As Llama."""
BIASED = replace(PLAIN, has_attention_bias=True, has_attention_output_bias=True, num_kv_heads=1)
"""As Qwen2."""
NORMED = replace(PLAIN, has_query_key_norm=True, head_width=48)
"""As Qwen3: heads wider than width / heads."""
WINDOWED = replace(
    PLAIN,
    has_query_key_norm=True,
    has_post_norms=True,
    rope=1,
    window=70,
    activation="gelu_tanh",
    attention_softcap=30.0,
)
"""As Gemma's local layers."""
GLOBAL = replace(WINDOWED, rope=0, window=None)


def _spec(*layers: LayerSpec, **more: Any) -> DecoderSpec:
    width = layers[0].head_width
    return DecoderSpec(
        family="tiny",
        vocabulary_size=VOCABULARY,
        width=96,
        layers=layers,
        ropes=(_rope(width, 10000.0), replace(_rope(width // 2, 100.0), magnitude=1.1)),
        norm_epsilon=1e-5,
        context_tokens=512,
        **more,
    )


SPECS: Mapping[str, DecoderSpec] = {
    "plain": _spec(PLAIN, PLAIN),
    "biased, tied": _spec(BIASED, BIASED, is_output_tied=True),
    "normed heads": _spec(NORMED, NORMED),
    "windows, post norms, two ropes, softcaps": _spec(
        WINDOWED, WINDOWED, GLOBAL, embedding_scale=96**0.5, logits_softcap=20.0, is_output_tied=True
    ),
}


def decoder_cases() -> Iterator[Case]:
    """Sequences in chunks, mixed with others, through every kind of decoder."""
    for name, spec in SPECS.items():
        for format_name, tolerance in TOLERANCES.items():
            yield Case(
                name=f"decoder/{name}/{format_name}",
                build=partial(decoder_problem, spec, format_name, MIXED),
                tolerance=tolerance + (0.0 if format_name == "F32" else KV_TOLERANCE["bf16"]),
                kv_format="f32" if format_name == "F32" else "bf16",
            )
        yield Case(
            name=f"decoder/{name}/int8 keys and values",
            build=partial(decoder_problem, spec, "F32", MIXED),
            tolerance=TOLERANCES["F32"] + KV_TOLERANCE["int8"],
            kv_format="int8",
        )


def decoder_sameness_cases() -> Iterator[SamenessCase]:
    """A prompt whole, in chunks, and decoded at its end among others."""
    whole: tuple[tuple[Chunk, ...], ...] = (((0, 0, 150),),)
    cut = (
        ((0, 0, 50),),
        ((1, 0, 20), (0, 50, 140)),
        *(((0, end - 1, end), (1, end - 121, end - 120)) for end in range(141, 151)),
    )
    rows = (*((0, row) for row in range(50)), *((1, 20 + row) for row in range(90)), *((2 + k, 0) for k in range(10)))
    formats: tuple[tuple[str, KvFormat], ...] = (("F32", "f32"), ("Q4_0", "bf16"), ("Q8_0", "int8"))
    for name, spec in SPECS.items():
        for format_name, kv_format in formats:
            yield SamenessCase(
                name=f"decoder whole or cut/{name}/{format_name}/{kv_format}",
                first=partial(decoder_problem, spec, format_name, whole),
                first_rows=tuple((0, row) for row in range(150)),
                second=partial(decoder_problem, spec, format_name, cut, page_seed=3),
                second_rows=rows,
                tolerance=TOLERANCES[format_name] + KV_TOLERANCE[kv_format],
                kv_format=kv_format,
            )


def decoder_problem(
    spec: DecoderSpec, format_name: str, plan: Sequence[Sequence[Chunk]], *, page_seed: int = 0
) -> Problem:
    """A decoder with random weights: matrices in the format, everything else in F32."""
    weights = {}
    for index, (name, shape) in enumerate(tensor_shapes(spec).items()):
        generator = np.random.default_rng((5, index))
        if name.startswith("ropes."):
            values = np.array(spec.ropes[int(name.removeprefix("ropes."))].frequencies)
        elif len(shape) == 2:
            values = generator.standard_normal(shape) * shape[1] ** -0.5
        else:
            values = generator.standard_normal(shape) * 0.2 + (0.0 if name.endswith("bias") else 1.0)
        weights[name] = source(name, values.astype(np.float32), format_name if len(shape) == 2 else "F32")

    def bind(adopted: Mapping[str, Any]) -> StepFunction[Any, Any, Any]:
        return partial(decoder_step, spec, decoder_weights(spec, adopted))

    return Problem(
        weights=weights,
        bind=bind,
        steps=steps_of_chunks(plan, page_seed=page_seed),
        kv_layers=tuple((layer.num_kv_heads, layer.head_width) for layer in spec.layers),
        num_pages=NUM_PAGES,
    )
