"""From an opened checkpoint to a model on a chip.

Three steps: `plan_model` reads figures and names only (milliseconds, whatever the size) and finds every mistake that
can be found without reading weights; `memory_bytes` says what the model will take; `load_model` lets the chip adopt it.
A tensor is read, and repaired, when the chip asks for it.

Knows: checkpoints, families, the chip contract. Does not know: which chip, how it lays weights out.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from ridgeline.errors import ModelFileError
from ridgeline.model.decoder import DecoderWeights, decoder_step
from ridgeline.model.facts import Description, Facts
from ridgeline.model.families import FAMILIES
from ridgeline.model.families.family import Family
from ridgeline.model.origins import REPAIRS_VERSION, NameMap, Origin, f32_tensor, file_shape, repaired, repaired_format
from ridgeline.model.schema import check_spec
from ridgeline.model.spec import DecoderSpec, LayerSpec
from ridgeline.model.tensors import (
    EMBEDDING,
    FINAL_NORM,
    OUTPUT,
    decoder_weights,
    layer_shapes,
    layer_tensor,
    rope_tensor,
)
from ridgeline.ops.chip import AnyChip, KvFormat, PageLayout, StepFunction, TensorSource
from ridgeline.ops.protocol import Ops
from ridgeline.ops.step import StepArrays
from ridgeline.quant.formats import BY_NAME
from ridgeline.quant.reference import dequantize
from ridgeline.quant.tensor import HostTensor
from ridgeline.weights.checkpoint import Checkpoint

GGUF_SWITCHES: Mapping[str, Any] = {
    "expert_count": 0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "use_parallel_residual": False,
    "attention.causal": True,
}
"""Keys that change what a GGUF model computes in ways that few families have, and the values that change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """A model that could be loaded. Its sources read from the checkpoint, which must stay open until it is loaded."""

    spec: DecoderSpec
    sources: Mapping[str, TensorSource]
    """By canonical name; a tied output is not among them."""
    fingerprint: str
    """Changes with the files, with the rules of repair, and with the ropes, which the context can change."""
    file_tensors: Mapping[str, str]
    """Canonical name -> the file's name for the tensor that it is made from; ropes are made from none."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as the files have them."""
        return sum(_source_bytes(source) for source in self.sources.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model whose weights a chip holds."""

    spec: DecoderSpec
    weights: DecoderWeights[Any]
    """Handles of the chip that adopted them."""
    weight_bytes: int

    def page_layout(self, kv_format: KvFormat) -> PageLayout:
        """What a page must hold for this model."""
        return page_layout(self.spec, kv_format)


def page_layout(spec: DecoderSpec, kv_format: KvFormat) -> PageLayout:
    """What a page must hold for a decoder."""
    return PageLayout(layers=tuple((layer.num_kv_heads, layer.head_width) for layer in spec.layers), format=kv_format)


def plan_model(checkpoint: Checkpoint, *, context_tokens: int | None = None) -> ModelPlan:
    """What loading this checkpoint would give; no weight is read.

    Args:
        checkpoint: the opened files.
        context_tokens: the longest context that will be used, where a person set one (see `Description`).

    Raises ModelFileError: the family is not supported, a figure is missing or impossible, a tensor is missing, has
    another shape than the figures imply, or is one that the decoder would ignore.
    """
    family, description, names = _description(checkpoint, context_tokens)
    spec = (family.from_gguf if checkpoint.kind == "gguf" else family.from_config)(description)
    check_spec(spec, description.facts.file)
    prefixes = ("", "") if checkpoint.kind == "gguf" else _prefixes(description)
    origins = {
        name: (_prefixed(origin, prefixes), shape, layer) for name, origin, shape, layer in _origins(spec, names)
    }
    _check_tensors(description, origins, spec, names, prefixes)
    sources = {
        name: _source(checkpoint, name, origin, shape, spec, layer) for name, (origin, shape, layer) in origins.items()
    }
    for index, rope in enumerate(spec.ropes):
        sources[rope_tensor(index)] = _rope_source(rope_tensor(index), rope.frequencies)
    return ModelPlan(
        spec=spec,
        sources=sources,
        fingerprint=_fingerprint(checkpoint, spec),
        file_tensors={name: origin.name for name, (origin, _, _) in origins.items()},
    )


def memory_bytes(plan: ModelPlan, chip: AnyChip, kv_format: KvFormat) -> int:
    """The least memory that the model takes on this chip: its weights as the files have them, and one page."""
    return plan.weight_bytes + chip.page_bytes(page_layout(plan.spec, kv_format))


def load_model(checkpoint: Checkpoint, chip: AnyChip, *, context_tokens: int | None = None) -> LoadedModel:
    """The model of this checkpoint, adopted by the chip. Raises what `plan_model` and the chip raise."""
    return load_plan(plan_model(checkpoint, context_tokens=context_tokens), chip)


def load_plan(plan: ModelPlan, chip: AnyChip) -> LoadedModel:
    """The planned model, adopted by the chip."""
    adopted = chip.adopt(plan.sources, plan.fingerprint)
    return LoadedModel(spec=plan.spec, weights=decoder_weights(plan.spec, adopted), weight_bytes=plan.weight_bytes)


def step_function(model: LoadedModel) -> StepFunction[Any, Any, Any]:
    """The decoder bound to this model's spec and weights: what a chip compiles."""

    def step(ops: Ops[Any, Any, Any], arrays: StepArrays[Any], pages: Any) -> tuple[Any, Any]:
        return decoder_step(model.spec, model.weights, ops, arrays, pages)

    return step


def _description(checkpoint: Checkpoint, context_tokens: int | None) -> tuple[Family, Description, NameMap]:
    """The family of a checkpoint, what it says of its model, and the family's names for this kind of file."""
    is_gguf = checkpoint.kind == "gguf"
    facts = Facts(file=str(checkpoint.path), values=checkpoint.metadata)
    key = "general.architecture" if is_gguf else "model_type"
    wanted = facts.text(key)
    by_name = {
        name: family for family in FAMILIES for name in (family.gguf_architectures if is_gguf else family.config_types)
    }
    if wanted not in by_name:
        raise ModelFileError(
            f"{facts.file}: {key} is {wanted[:60]!r}, which is not supported",
            hint=f"supported: {', '.join(sorted(by_name))}",
        )
    family = by_name[wanted]
    if is_gguf:
        facts = replace(facts, prefix=f"{wanted}.")
        for switch, neutral in GGUF_SWITCHES.items():
            if switch not in family.gguf_switches and facts.find(switch) not in (None, neutral):
                facts.fail(switch, f"is {facts.find(switch)}, which is not supported; supported: {neutral}")

    def vector(name: str) -> tuple[float, ...]:
        tensor = checkpoint.tensor(name)
        return tuple(float(value) for value in dequantize(tensor.data, tensor.format, tensor.shape).reshape(-1))

    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    names = family.gguf_names if is_gguf else family.hugging_face_names
    return family, Description(facts=facts, shapes=shapes, vector=vector, context_tokens=context_tokens), names


Placed = tuple[Origin, tuple[int, ...], LayerSpec | None]
"""(origin, our shape, the layer it belongs to)."""


def _origins(spec: DecoderSpec, names: NameMap) -> Iterator[tuple[str, Origin, tuple[int, ...], LayerSpec | None]]:
    """(canonical name, origin, shape, layer) of every tensor that is read from the file."""
    yield EMBEDDING, names.embedding, (spec.vocabulary_size, spec.width), None
    for index, layer in enumerate(spec.layers):
        for field, shape in layer_shapes(spec, layer).items():
            origin = names.layer[field]
            placed = Origin(name=origin.name.format(layer=index), part=origin.part, repair=origin.repair)
            yield layer_tensor(index, field), placed, shape, layer
    yield FINAL_NORM, names.final_norm, (spec.width,), None
    if not spec.is_output_tied:
        yield OUTPUT, names.output, (spec.vocabulary_size, spec.width), None


def _prefixes(description: Description) -> tuple[str, str]:
    """What stands before "layers.0..." and before "lm_head.weight" in this Hugging Face file.

    A causal language model has `model.`, a multimodal one `language_model.model.` or `model.language_model.`, a file
    without a head nothing.
    """
    tail = "embed_tokens.weight"
    found = [name[: -len(tail)] for name in description.shapes if name.endswith(tail)]
    if len(found) != 1:
        raise ModelFileError(
            f"{description.facts.file}: there must be one tensor *{tail}, but there are {len(found)}: {found[:3]}"
        )
    head = next((name for name in description.shapes if name.endswith("lm_head.weight")), "lm_head.weight")
    return found[0], head[: -len("lm_head.weight")]


def _prefixed(origin: Origin, prefixes: tuple[str, str]) -> Origin:
    return replace(origin, name=_prefixed_name(origin.name, prefixes))


def _prefixed_name(name: str, prefixes: tuple[str, str]) -> str:
    body, head = prefixes
    if name.startswith("model."):
        return body + name[len("model.") :]
    return head + name if name == "lm_head.weight" else name


def _check_tensors(
    description: Description,
    origins: Mapping[str, Placed],
    spec: DecoderSpec,
    names: NameMap,
    prefixes: tuple[str, str],
) -> None:
    """Fail at the first tensor that is missing, has another shape, or would be left unread."""
    file = description.facts.file
    for origin, shape, layer in origins.values():
        expected = file_shape(origin, shape, layer)
        found = description.shapes.get(origin.name)
        if found is None:
            raise ModelFileError(f"{file}: tensor {origin.name} is missing; its shape would be {list(expected)}")
        if found != expected:
            raise ModelFileError(
                f"{file}: tensor {origin.name} has shape {list(found)}, but must have {list(expected)}"
            )
    ignored = [_prefixed_name(pattern, prefixes) for pattern in names.ignored]
    if spec.is_output_tied:
        ignored.append(_prefixed_name(names.output.name, prefixes))
    read = {origin.name for origin, _, _ in origins.values()}
    for name, shape in description.shapes.items():
        if name not in read and not any(fnmatchcase(name, pattern) for pattern in ignored):
            raise ModelFileError(
                f"{file}: tensor {name} of shape {list(shape)} has no place in a {spec.family} decoder "
                f"of {len(spec.layers)} layers",
                hint="the file holds a variant that is not supported, or says less of itself than it should",
            )


def _source(
    checkpoint: Checkpoint,
    name: str,
    origin: Origin,
    shape: tuple[int, ...],
    spec: DecoderSpec,
    layer: LayerSpec | None,
) -> TensorSource:
    def read() -> HostTensor:
        return replace(repaired(checkpoint.tensor(origin.name), origin, spec, layer), name=name)

    file_format = checkpoint.format(origin.name).name
    return TensorSource(name=name, shape=shape, format_name=repaired_format(origin, file_format), read=read)


def _rope_source(name: str, frequencies: tuple[float, ...]) -> TensorSource:
    def read() -> HostTensor:
        return f32_tensor(name, frequencies)

    return TensorSource(name=name, shape=(len(frequencies),), format_name="F32", read=read)


def _source_bytes(source: TensorSource) -> int:
    rows = 1
    for extent in source.shape[:-1]:
        rows *= extent
    return rows * BY_NAME[source.format_name].row_bytes(source.shape[-1])


def _fingerprint(checkpoint: Checkpoint, spec: DecoderSpec) -> str:
    digest = hashlib.sha256(f"{checkpoint.fingerprint()} repairs {REPAIRS_VERSION}".encode())
    for rope in spec.ropes:
        digest.update(struct.pack(f"<{len(rope.frequencies)}d", *rope.frequencies))
    return digest.hexdigest()
