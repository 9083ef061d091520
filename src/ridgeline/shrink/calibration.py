"""The quantiser is a chip: its `linear` rounds the weight that it meets for the inputs that it meets, then uses it.

The decoder runs once, over all tokens of the calibration text in one step. Each product of weights sees the inputs as
the layers before it leave them, rounded already; from their Gram matrix its own rounding follows, and the layers behind
it see what that left. So one layer's weights and one activation are in memory at a time.

Knows: the ops, Gram matrices, which format a tensor gets. Does not know: decoders, families, texts.

Shape letters: T tokens, D width, F rows of a weight, H query heads, K kv heads, G query heads of a kv head, C head
width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.chips.reference.ops import ReferenceOps
from ridgeline.model.decoder import DecoderWeights, decoder_step
from ridgeline.model.load import plan_model
from ridgeline.model.tensors import EMBEDDING, OUTPUT, decoder_weights
from ridgeline.ops.chip import TensorSource
from ridgeline.ops.composed import ComposedOps
from ridgeline.ops.host_step import StepPart, host_step
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import PAGE_SLOTS, StepArrays
from ridgeline.quant.compensation import Inputs, compensated, inputs_of
from ridgeline.quant.formats import Format
from ridgeline.quant.grids import GRIDS
from ridgeline.quant.reference import dequantize
from ridgeline.quant.tensor import HostTensor
from ridgeline.shrink.recipe import Choice
from ridgeline.shrink.rewrite import rounded
from ridgeline.weights.checkpoint import Checkpoint

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

TOKENS_AT_ONCE = 2048
"""Tokens of a product or an elementwise op at a time; bounds the temporaries."""


class Replaced:
    """A checkpoint some of whose tensors are other ones. Holds: those tensors, which `replace` adds to."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.tensors: dict[str, HostTensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def tensor(self, name: str) -> HostTensor:
        """The tensor of that name, as it was replaced last."""
        found = self.tensors.get(name)
        return self._checkpoint.tensor(name) if found is None else found

    def format(self, name: str) -> Format:
        """The format of that tensor."""
        found = self.tensors.get(name)
        return self._checkpoint.format(name) if found is None else found.format


class Weight:
    """A weight as a source that is read each time it is used. Holds nothing else."""

    def __init__(self, source: TensorSource, rounded_source: TensorSource) -> None:
        self.source = source
        self.rounded_source = rounded_source

    @property
    def name(self) -> str:
        """Our name for it."""
        return self.source.name

    @property
    def values(self) -> Floats:
        """The weights of the source file, as float32."""
        return _values(self.source.read())

    @property
    def rounded_values(self) -> Floats:
        """The weights as they were rounded, those of the source until then."""
        return _values(self.rounded_source.read())


def _values(tensor: HostTensor) -> Floats:
    return dequantize(tensor.data, tensor.format, tensor.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An activation twice: as the source file makes it, and as the rounded weights do."""

    source: Array
    rounded: Array


def both(op: Callable[..., Any], *arguments: Any) -> Pair:
    """An op on pairs, done on either side, once if the sides are one; arguments that are no pairs serve both."""
    rounded = op(*(argument.rounded if isinstance(argument, Pair) else argument for argument in arguments))
    if all(argument.source is argument.rounded for argument in arguments if isinstance(argument, Pair)):
        return Pair(source=rounded, rounded=rounded)
    source = op(*(argument.source if isinstance(argument, Pair) else argument for argument in arguments))
    return Pair(source=source, rounded=rounded)


class CalibratingOps(ComposedOps[Any, Any, Any]):
    """The reference ops on pairs, but that products round their weights first.

    Holds: the tensors that were rounded (in `replaced`); each product adds its own.

    Args:
        replaced: the source, where rounded tensors take their places.
        file_tensors: our names of weights -> the file's.
        choices: by the file's name.
        unused: our name of the weight whose products nobody looks at.
        keeps_source: whether the activations of the source are followed too, so that what layers before have changed
            can be made up for; twice the work.
        on_progress: told of each tensor that was rounded.
    """

    def __init__(
        self,
        replaced: Replaced,
        file_tensors: Mapping[str, str],
        choices: Mapping[str, Choice],
        unused: str,
        keeps_source: bool,
        on_progress: Callable[[], None],
    ) -> None:
        self._replaced = replaced
        self._file_tensors = file_tensors
        self._choices = choices
        self._unused = unused
        self._keeps_source = keeps_source
        self._on_progress = on_progress
        self._plain = ReferenceOps()

    def embed(self, table: Weight, token_ids_T: Array) -> Pair:
        """x_TD: the table's rows; only those are dequantised."""
        rows, places = np.unique(token_ids_T, return_inverse=True)

        def looked_up(source: TensorSource) -> Array:
            x_TD: Array = _values(source.read().take_rows(rows.astype(np.intp)))[places]
            return x_TD

        return self._paired(lambda: looked_up(table.source), lambda: looked_up(table.rounded_source))

    def _paired(self, of_source: Callable[[], Array], of_rounded: Callable[[], Array]) -> Pair:
        rounded = of_rounded()
        return Pair(source=of_source() if self._keeps_source else rounded, rounded=rounded)

    def linear(self, x_TD: Pair, weight: Weight, bias: Weight | None = None) -> Pair:
        """One product; see `linears`."""
        return self.linears(x_TD, (weight,), (bias,))[0]

    def linears(self, x_TD: Pair, weights: Sequence[Weight], biases: Sequence[Weight | None]) -> tuple[Pair, ...]:
        """Round each weight for these inputs, unless that was done; then the products."""
        self._round_all(x_TD, weights)
        return tuple(self._product(x_TD, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def _round_all(self, x_TD: Pair, weights: Sequence[Weight]) -> None:
        names = dict.fromkeys(self._file_tensors[weight.name] for weight in weights)
        waiting = [name for name in names if self._is_waiting(name)]
        if waiting:
            cross_DD = gram(x_TD.source, x_TD.rounded) if self._keeps_source else None
            inputs = inputs_of(gram(x_TD.rounded, x_TD.rounded), cross_DD)
            for name in waiting:
                self._round(name, inputs)

    def _is_waiting(self, name: str) -> bool:
        choice = self._choices[name]
        return choice.is_changed and choice.chosen.name in GRIDS and name not in self._replaced.tensors

    def _round(self, name: str, inputs: Inputs) -> None:
        choice, tensor = self._choices[name], self._replaced.tensor(name)
        data = compensated(_values(tensor), choice.chosen, inputs)
        self._replaced.tensors[name] = replace(tensor, format=choice.chosen, data=data)
        self._on_progress()

    def _product(self, x_TD: Pair, weight: Weight, bias: Weight | None) -> Pair:
        if weight.name == self._unused:
            nothing = np.zeros((len(x_TD.source), 1), dtype=np.float32)
            return Pair(source=nothing, rounded=nothing)
        y_TF = self._paired(lambda: x_TD.source @ weight.values.T, lambda: x_TD.rounded @ weight.rounded_values.T)
        return y_TF if bias is None else both(lambda y: y + bias.values, y_TF)

    def gated_mlp(self, x_TD: Pair, gate: Weight, up: Weight, down: Weight, kind: Activation) -> Pair:
        """down(activate(gate(x)) * up(x)), some tokens at a time: what is in between is several times as wide."""
        self._round_all(x_TD, (gate, up))

        def gated(x: Array, gate_values: Floats, up_values: Floats) -> Array:
            def of_piece(piece: Array) -> Array:
                activated = activate(piece @ gate_values.T, kind)
                activated *= piece @ up_values.T
                return activated

            return in_pieces(of_piece, x)

        h_TF = self._paired(
            lambda: gated(x_TD.source, gate.values, up.values),
            lambda: gated(x_TD.rounded, gate.rounded_values, up.rounded_values),
        )
        return self.linear(h_TF, down)

    def add(self, x: Pair, y: Pair) -> Pair:
        """Elementwise sum."""
        return both(self._plain.add, x, y)

    def multiply(self, x: Pair, y: Pair) -> Pair:
        """Elementwise product."""
        return both(self._plain.multiply, x, y)

    def scale(self, x: Pair, factor: float) -> Pair:
        """X times a constant."""
        return both(self._plain.scale, x, factor)

    def rms_norm(self, x: Pair, weight: Weight, epsilon: float) -> Pair:
        """As the reference says."""
        return both(self._plain.rms_norm, x, weight, epsilon)

    def activate(self, x: Pair, kind: Activation) -> Pair:
        """In float32, some tokens at a time."""
        return both(lambda side: in_pieces(lambda piece: activate(piece, kind), side), x)

    def softcap(self, x: Pair, cap: float) -> Pair:
        """As the reference says."""
        return both(self._plain.softcap, x, cap)

    def heads(self, x_TD: Pair, num_heads: int) -> Pair:
        """The same values as x_THC."""
        return both(self._plain.heads, x_TD, num_heads)

    def merge_heads(self, x_THC: Pair) -> Pair:
        """The same values as x_TD."""
        return both(self._plain.merge_heads, x_THC)

    def angles(self, positions_T: Array, frequencies: Weight, magnitude: float) -> Any:
        """The same for both sides."""
        return self._plain.angles(positions_T, frequencies, magnitude)  # type: ignore[arg-type]

    def rope(self, x_THC: Pair, angles: Any) -> Pair:
        """As the reference says."""
        return both(self._plain.rope, x_THC, angles)

    def store_and_attend(
        self,
        q_THC: Pair,
        k_TKC: Pair,
        v_TKC: Pair,
        pages: Any,
        layer: int,
        step: StepArrays[Any],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Pair, Any]:
        """Attention within each sequence, all of which begin in this step: nothing is stored."""

        def attended(q: Array, k: Array, v: Array) -> Array:
            parts = [slice(*ends) for ends in pairwise(step.query_starts_N1.tolist())]
            return np.concatenate(
                [causal_attention(q[part], k[part], v[part], scale, window, softcap) for part in parts]
            )

        return both(attended, q_THC, k_TKC, v_TKC), pages

    def store_kv(self, pages: Any, layer: int, k_TKC: Pair, v_TKC: Pair, step: StepArrays[Any]) -> Any:
        """Never asked for: `store_and_attend` does without."""
        raise NotImplementedError

    def attend(
        self,
        q_THC: Pair,
        pages: Any,
        layer: int,
        step: StepArrays[Any],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Pair:
        """Never asked for: `store_and_attend` does without."""
        raise NotImplementedError

    def take_rows(self, x_TD: Pair, rows_B: Array) -> Pair:
        """x_BD: the rows of x at these indices."""
        return both(self._plain.take_rows, x_TD, rows_B)


def in_pieces(op: Callable[[Array], Array], x: Array) -> Array:
    """An elementwise op, some tokens at a time."""
    return np.concatenate([op(x[start : start + TOKENS_AT_ONCE]) for start in range(0, len(x), TOKENS_AT_ONCE)])


def activate(x: Array, kind: Activation) -> Array:
    """The activation in float32: the reference's float64 takes three times as long and changes no code."""
    if kind == "silu":
        with np.errstate(over="ignore"):
            activated: Array = x / (np.float32(1) + np.exp(-x))
            return activated
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    gelu: Array = np.float32(0.5) * x * (1 + np.tanh(inner))
    return gelu


def gram(x_TD: Array, y_TD: Array) -> Floats:
    """x^T y, some tokens at a time."""
    total = np.zeros((x_TD.shape[1], y_TD.shape[1]), dtype=np.float32)
    for start in range(0, len(x_TD), TOKENS_AT_ONCE):
        x, y = x_TD[start : start + TOKENS_AT_ONCE], y_TD[start : start + TOKENS_AT_ONCE]
        total += x.T @ y
    return total


def causal_attention(
    q_THC: Array, k_TKC: Array, v_TKC: Array, scale: float, window: int | None, softcap: float | None
) -> Array:
    """Softmax attention of one sequence from its first token on, in float32."""
    num_tokens, num_heads, width = q_THC.shape
    num_kv_heads = k_TKC.shape[1]
    q_KGTC = q_THC.reshape(num_tokens, num_kv_heads, -1, width).transpose(1, 2, 0, 3)
    scores = np.float32(scale) * (q_KGTC @ k_TKC.transpose(1, 2, 0)[:, None])
    if softcap is not None:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    distance = np.arange(num_tokens)[:, None] - np.arange(num_tokens)[None, :]
    is_hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores[..., is_hidden] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    y_KGTC = scores @ v_TKC.transpose(1, 0, 2)[:, None]
    return np.ascontiguousarray(y_KGTC.transpose(2, 0, 1, 3)).reshape(num_tokens, num_heads, width)


def calibrated_tensors(
    checkpoint: Checkpoint,
    choices: Sequence[Choice],
    sequences: Sequence[Sequence[int]],
    on_progress: Callable[[], None],
    *,
    keeps_source: bool = False,
) -> list[HostTensor]:
    """All tensors of the smaller file, in the order of the source, each rounded for the inputs that it meets.

    Args:
        checkpoint: the source.
        choices: what becomes of each tensor, in the same order.
        sequences: tokens of the calibration text, each a context of its own.
        on_progress: told once a tensor.
        keeps_source: see `CalibratingOps`.
    """
    replaced = Replaced(checkpoint)
    plan = plan_model(replaced)
    by_name = {choice.name: choice for choice in choices}
    output = EMBEDDING if plan.spec.is_output_tied else OUTPUT
    ops = CalibratingOps(replaced, plan.file_tensors, by_name, output, keeps_source, on_progress)
    before = plan_model(checkpoint).sources
    weights: DecoderWeights[Any] = decoder_weights(
        plan.spec, {name: Weight(before[name], source) for name, source in plan.sources.items()}
    )
    num_pages = [-(-len(tokens) // PAGE_SLOTS) for tokens in sequences]
    parts = [
        StepPart(token_ids=tokens, start=0, page_ids=range(count), place=0, num_logit_rows=len(tokens))
        for tokens, count in zip(sequences, num_pages, strict=True)
    ]
    decoder_step(plan.spec, weights, ops, host_step(parts), None)
    tensors = []
    for choice in choices:
        found = replaced.tensors.get(choice.name)
        if found is None:
            found = rounded(checkpoint.tensor(choice.name), choice)
            on_progress()
        tensors.append(found)
    return tensors
