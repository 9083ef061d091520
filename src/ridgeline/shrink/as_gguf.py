"""A folder with safetensors as a checkpoint of the GGUF kind: the same model under GGUF's names, keys and layouts.

What is made is read back before anything is written: a decoder or a tokenizer that would not come out the same is
refused, not written.

Knows: families' maps of names, the keys of GGUF files. Does not know: what the result is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.errors import ModelFileError
from ridgeline.model.families import FAMILIES
from ridgeline.model.families.family import Family
from ridgeline.model.load import ModelPlan, plan_model
from ridgeline.model.origins import Origin, f32_tensor, repaired
from ridgeline.model.rope import plain_frequencies
from ridgeline.model.spec import DecoderSpec, LayerSpec
from ridgeline.model.tensors import EMBEDDING, FINAL_NORM, OUTPUT, layer_shapes, layer_tensor
from ridgeline.quant.formats import BY_NAME, F32, Format
from ridgeline.quant.reference import dequantize
from ridgeline.quant.tensor import HostTensor
from ridgeline.shrink.tokenizer_keys import tokenizer_keys
from ridgeline.weights.checkpoint import Checkpoint

ROPE_FACTORS = "rope_freqs.weight"
_TOLERANCE = 1e-5
"""Figures are float32 in a GGUF file."""


class AsGguf:
    """A checkpoint of safetensors under GGUF's names. Holds: the checkpoint, which `close` closes."""

    kind = "gguf"

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises ModelFileError where the model cannot be told in GGUF's words."""
        self._checkpoint = checkpoint
        self._plan = plan_model(checkpoint)
        spec = self._plan.spec
        self._family = next(family for family in FAMILIES if family.name == spec.family)
        if not self._family.gguf_architectures:
            self._refuse(f"GGUF files of {spec.family} are not written yet")
        self._origins = dict(_origins(spec, self._family))
        for origin, _ in self._origins.values():
            if origin.part != "whole":
                self._refuse(f"{origin.name} holds several matrices in GGUF files, which is not written yet")
        self.metadata: Mapping[str, Any] = MappingProxyType(
            {**_decoder_keys(self._plan, self._family, checkpoint), **tokenizer_keys(checkpoint)}
        )
        self._factors = _rope_factors(spec, float(self.metadata[f"{self._architecture}.rope.freq_base"]))
        differing = _difference(spec, plan_model(self).spec, "")
        if differing:
            self._refuse(f"{differing} would not come out the same from a GGUF file")

    def _refuse(self, what: str) -> None:
        raise ModelFileError(
            f"{self._checkpoint.path}: {what}", hint="convert the model to GGUF with another program first"
        )

    @property
    def _architecture(self) -> str:
        return self._family.gguf_architectures[0]

    @property
    def path(self) -> Path:
        """The folder."""
        return self._checkpoint.path

    @property
    def names(self) -> tuple[str, ...]:
        """GGUF's names."""
        factors = () if self._factors is None else (ROPE_FACTORS,)
        return (*self._origins, *factors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        if name == ROPE_FACTORS and self._factors is not None:
            return self._factors.shape
        return self._plan.sources[self._found(name)[1]].shape

    def format(self, name: str) -> Format:
        """Its format: that of the folder for a matrix, F32 for a vector."""
        if len(self.shape(name)) == 1:
            return F32
        return BY_NAME[self._plan.sources[self._found(name)[1]].format_name]

    def tensor(self, name: str) -> HostTensor:
        """The tensor in GGUF's layout: rows in its order, vectors as float32."""
        if name == ROPE_FACTORS and self._factors is not None:
            return f32_tensor(name, self._factors)
        origin, canonical = self._found(name)
        tensor = replace(self._plan.sources[canonical].read(), name=name)
        if len(tensor.shape) == 1:
            tensor = f32_tensor(name, dequantize(tensor.data, tensor.format, tensor.shape))
        if origin.repair == "none":
            return tensor
        order = self._order(origin, canonical, tensor.shape[0])
        if len(tensor.shape) > 1:
            return tensor.take_rows(order)
        return f32_tensor(name, dequantize(tensor.data, tensor.format, tensor.shape)[order])

    def _found(self, name: str) -> tuple[Origin, str]:
        try:
            return self._origins[name]
        except KeyError:
            raise ModelFileError(f"{self.path}: there is no tensor {name}") from None

    def _order(self, origin: Origin, canonical: str, num_rows: int) -> npt.NDArray[np.intp]:
        """The order of rows that the repair takes back, found by repairing the rows' numbers."""
        numbers = f32_tensor("numbers", np.arange(num_rows).reshape(num_rows, 1))
        layer: LayerSpec = self._plan.spec.layers[int(canonical.split(".")[1])]
        repaired_numbers = repaired(numbers, origin, self._plan.spec, layer)
        return np.argsort(repaired_numbers.data.view("<f4").astype(np.intp))

    def fingerprint(self) -> str:
        """That of the folder."""
        return self._checkpoint.fingerprint()

    def release(self) -> None:
        """Give back the memory of what was read."""
        self._checkpoint.release()

    def close(self) -> None:
        """Close the folder."""
        self._checkpoint.close()


def _origins(spec: DecoderSpec, family: Family) -> list[tuple[str, tuple[Origin, str]]]:
    """(GGUF's name, (its origin, our name)) of each tensor."""
    names = family.gguf_names
    listed = [(names.embedding.name, (names.embedding, EMBEDDING))]
    for index, layer in enumerate(spec.layers):
        for field in layer_shapes(spec, layer):
            origin = names.layer[field]
            listed.append((origin.name.format(layer=index), (origin, layer_tensor(index, field))))
    listed.append((names.final_norm.name, (names.final_norm, FINAL_NORM)))
    if not spec.is_output_tied:
        listed.append((names.output.name, (names.output, OUTPUT)))
    return listed


def _decoder_keys(plan: ModelPlan, family: Family, checkpoint: Checkpoint) -> dict[str, Any]:
    """What GGUF files say of a decoder. Source: the GGUF specification, section "Standardized key-value pairs"."""
    spec, architecture = plan.spec, family.gguf_architectures[0]
    layer = spec.layers[0]
    config = checkpoint.metadata
    rope = config.get("rope_parameters") or {}
    base = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    figures = {
        "block_count": len(spec.layers),
        "context_length": spec.context_tokens,
        "embedding_length": spec.width,
        "feed_forward_length": layer.mlp_width,
        "attention.head_count": layer.num_query_heads,
        "attention.head_count_kv": layer.num_kv_heads,
        "attention.key_length": layer.head_width,
        "attention.value_length": layer.head_width,
        "attention.layer_norm_rms_epsilon": float(spec.norm_epsilon),
        "rope.freq_base": float(base),
        "rope.dimension_count": 2 * len(spec.ropes[0].frequencies),
        "vocab_size": spec.vocabulary_size,
    }
    named = {"general.architecture": architecture, "general.type": "model", "general.name": checkpoint.path.name}
    return named | {f"{architecture}.{key}": value for key, value in figures.items()}


def _rope_factors(spec: DecoderSpec, base: float) -> npt.NDArray[np.float32] | None:
    """What the plain frequencies are divided by; None where they are plain."""
    frequencies = spec.ropes[0].frequencies
    plain = plain_frequencies(base, 2 * len(frequencies))
    factors = np.array([before / after for before, after in zip(plain, frequencies, strict=True)], dtype=np.float32)
    return None if np.allclose(factors, 1, rtol=_TOLERANCE) else factors


def _difference(first: Any, second: Any, place: str) -> str:
    """The first figure in which two specs differ by more than float32 rounds; "" if there is none."""
    if is_dataclass(first) and not isinstance(first, type):
        pairs = [(field.name, getattr(first, field.name), getattr(second, field.name)) for field in fields(first)]
    elif isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(first, second, strict=True))]
    elif isinstance(first, float) and isinstance(second, float):
        return "" if math.isclose(first, second, rel_tol=_TOLERANCE) else f"{place} ({first}, then {second})"
    else:
        return "" if first == second else f"{place} ({first}, then {second})"
    return next(filter(None, (_difference(one, other, f"{place}.{name}".strip(".")) for name, one, other in pairs)), "")
