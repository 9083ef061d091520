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
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.chips.reference.ops import ReferenceOps, ReferenceWeight
from ridgeline.model.decoder import DecoderWeights, decoder_step
from ridgeline.model.load import plan_model
from ridgeline.model.tensors import EMBEDDING, OUTPUT, decoder_weights
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


class Weight(ReferenceWeight):
    """A weight that is read each time it is used, so that it is seen as it was rounded. Holds its source alone."""

    @property
    def values(self) -> Floats:
        """The weights as they were rounded, those of the source until then."""
        return _values(self.source.read())


def _values(tensor: HostTensor) -> Floats:
    return dequantize(tensor.data, tensor.format, tensor.shape)


class CalibratingOps(ReferenceOps):
    """The reference ops, but that products round their weights first.

    Holds: the tensors that were rounded (in `replaced`); each product adds its own.

    Args:
        replaced: the source, where rounded tensors take their places.
        file_tensors: our names of weights -> the file's.
        choices: by the file's name.
        unused: our name of the weight whose products nobody looks at.
        on_progress: told of each tensor that was rounded.
    """

    def __init__(
        self,
        replaced: Replaced,
        file_tensors: Mapping[str, str],
        choices: Mapping[str, Choice],
        unused: str,
        on_progress: Callable[[], None],
    ) -> None:
        self._replaced = replaced
        self._file_tensors = file_tensors
        self._choices = choices
        self._unused = unused
        self._on_progress = on_progress

    def embed(self, table: ReferenceWeight, token_ids_T: Array) -> Array:
        """x_TD: the table's rows; only those are dequantised."""
        rows, places = np.unique(token_ids_T, return_inverse=True)
        x_TD: Array = _values(table.source.read().take_rows(rows.astype(np.intp)))[places]
        return x_TD

    def linear(self, x_TD: Array, weight: ReferenceWeight, bias: ReferenceWeight | None = None) -> Array:
        """One product; see `linears`."""
        return self.linears(x_TD, (weight,), (bias,))[0]

    def linears(
        self, x_TD: Array, weights: Sequence[ReferenceWeight], biases: Sequence[ReferenceWeight | None]
    ) -> tuple[Array, ...]:
        """Round each weight for these inputs, unless that was done; then the products."""
        self._round_all(x_TD, weights)
        return tuple(self._product(x_TD, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def _round_all(self, x_TD: Array, weights: Sequence[ReferenceWeight]) -> None:
        names = dict.fromkeys(self._file_tensors[weight.source.name] for weight in weights)
        waiting = [name for name in names if self._is_waiting(name)]
        if waiting:
            inputs = inputs_of(gram(x_TD))
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

    def _product(self, x_TD: Array, weight: ReferenceWeight, bias: ReferenceWeight | None) -> Array:
        if weight.source.name == self._unused:
            return np.zeros((len(x_TD), 1), dtype=np.float32)
        y_TF: Array = x_TD @ weight.values.T
        return y_TF if bias is None else y_TF + bias.values

    def gated_mlp(
        self, x_TD: Array, gate: ReferenceWeight, up: ReferenceWeight, down: ReferenceWeight, kind: Activation
    ) -> Array:
        """down(activate(gate(x)) * up(x)), some tokens at a time: what is in between is several times as wide."""
        self._round_all(x_TD, (gate, up))
        return self.linear(gated(x_TD, gate.values, up.values, kind), down)

    def activate(self, x: Array, kind: Activation) -> Array:
        """In float32, some tokens at a time."""
        return in_pieces(lambda piece: activate(piece, kind), x)

    def store_and_attend(
        self,
        q_THC: Array,
        k_TKC: Array,
        v_TKC: Array,
        pages: Any,
        layer: int,
        step: StepArrays[Array],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Array, Any]:
        """Attention within each sequence, all of which begin in this step: nothing is stored."""
        parts = [slice(*ends) for ends in pairwise(step.query_starts_N1.tolist())]
        attended = [causal_attention(q_THC[part], k_TKC[part], v_TKC[part], scale, window, softcap) for part in parts]
        return np.concatenate(attended), pages


def in_pieces(op: Callable[[Array], Array], x: Array) -> Array:
    """An elementwise op, some tokens at a time."""
    return np.concatenate([op(x[start : start + TOKENS_AT_ONCE]) for start in range(0, len(x), TOKENS_AT_ONCE)])


def gated(x_TD: Array, gate_FD: Floats, up_FD: Floats, kind: Activation) -> Array:
    """activate(gate(x)) * up(x), some tokens at a time."""

    def of_piece(piece: Array) -> Array:
        activated = activate(piece @ gate_FD.T, kind)
        activated *= piece @ up_FD.T
        return activated

    return in_pieces(of_piece, x_TD)


def activate(x: Array, kind: Activation) -> Array:
    """The activation in float32: the reference's float64 takes three times as long and changes no code."""
    if kind == "silu":
        with np.errstate(over="ignore"):
            activated: Array = x / (np.float32(1) + np.exp(-x))
            return activated
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    gelu: Array = np.float32(0.5) * x * (1 + np.tanh(inner))
    return gelu


def gram(x_TD: Array) -> Floats:
    """x^T x, some tokens at a time."""
    total = np.zeros((x_TD.shape[1], x_TD.shape[1]), dtype=np.float32)
    for start in range(0, len(x_TD), TOKENS_AT_ONCE):
        x = x_TD[start : start + TOKENS_AT_ONCE]
        total += x.T @ x
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
) -> list[HostTensor]:
    """All tensors of the smaller file, in the order of the source, each rounded for the inputs that it meets.

    Args:
        checkpoint: the source.
        choices: what becomes of each tensor, in the same order.
        sequences: tokens of the calibration text, each a context of its own.
        on_progress: told once a tensor.
    """
    replaced = Replaced(checkpoint)
    plan = plan_model(replaced)
    by_name = {choice.name: choice for choice in choices}
    output = EMBEDDING if plan.spec.is_output_tied else OUTPUT
    ops = CalibratingOps(replaced, plan.file_tensors, by_name, output, on_progress)
    weights: DecoderWeights[Any] = decoder_weights(
        plan.spec, {name: Weight(source) for name, source in plan.sources.items()}
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
