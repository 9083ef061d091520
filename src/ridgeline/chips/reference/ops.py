"""The fine ops in plain numpy: their definition. The coarse ones are those of `ComposedOps`.

Knows: numpy, pages. Does not know: decoders, families, where weights came from.

Every op takes and gives float32. Products with weights add up in float32, row by row; norms and attention work in
float64 and are rounded once. A row of a result never depends on how many rows there are, bit for bit.

Shape letters: T tokens, N sequences, B logit rows, D width, F rows of a weight, H query heads, K kv heads, G query
heads of a kv head, C head width, R turned width, P positions that a query sees.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ridgeline.chips.reference.pages import ReferencePages
from ridgeline.ops.chip import TensorSource
from ridgeline.ops.composed import ComposedOps
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import PAGE_SLOTS, StepArrays
from ridgeline.quant.reference import dequantize

Array = npt.NDArray[Any]
"""float32, or int32 where an op's text says indices; a type for each would split the protocol's A in two."""
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

WEIGHTS_OF_A_PRODUCT = 9000
"""Weights of one call into numpy's BLAS: OpenBLAS takes threads from 9216 on, which wait for one another where others
are at work, a thousand times longer than the product takes, and could split a sum."""
WEIGHTS_AT_ONCE = 1 << 19
"""Weights that are multiplied by all tokens before the next ones: they stay in the cache meanwhile."""


class ReferenceWeight:
    """A weight, read and dequantised when it is first used. Holds: its values as float32 from then on."""

    def __init__(self, source: TensorSource) -> None:
        self.source = source

    @cached_property
    def values(self) -> Floats:
        """The weights, in the shape of the source."""
        tensor = self.source.read()
        assert tensor.shape == self.source.shape, (self.source.name, tensor.shape, self.source.shape)
        return dequantize(tensor.data, tensor.format, tensor.shape)


class ReferenceOps(ComposedOps[Array, ReferenceWeight, ReferencePages]):
    """Every op as its text says it."""

    def embed(self, table: ReferenceWeight, token_ids_T: Array) -> Array:
        """x_TD: the table's rows."""
        values_VD = table.values
        assert token_ids_T.size == 0 or 0 <= token_ids_T.min() <= token_ids_T.max() < len(values_VD)
        return values_VD[token_ids_T.astype(np.intp)]

    def linear(self, x_TD: Array, weight: ReferenceWeight, bias: ReferenceWeight | None = None) -> Array:
        """y_TF = x_TD @ weight_FD.T + bias_F, as one product of matrix and vector per token."""
        weight_FD = weight.values
        num_rows, width = weight_FD.shape
        columns_T1D1 = np.ascontiguousarray(x_TD, dtype=np.float32)[:, None, :, None]
        y_TF = np.empty((len(x_TD), num_rows), dtype=np.float32)
        few = max(1, WEIGHTS_OF_A_PRODUCT // width)
        many = max(1, WEIGHTS_AT_ONCE // (few * width)) * few
        whole = num_rows // few * few
        for start in range(0, whole, many):
            rows = weight_FD[start : min(start + many, whole)].reshape(-1, few, width)
            num_found = len(rows) * few
            y_TF[:, start : start + num_found] = np.matmul(rows, columns_T1D1).reshape(len(x_TD), num_found)
        if whole < num_rows:
            y_TF[:, whole:] = np.matmul(weight_FD[None, whole:], columns_T1D1)[:, 0, :, 0]
        return y_TF if bias is None else y_TF + bias.values

    def add(self, x: Array, y: Array) -> Array:
        """Elementwise sum."""
        return np.add(x, y)

    def multiply(self, x: Array, y: Array) -> Array:
        """Elementwise product."""
        return np.multiply(x, y)

    def scale(self, x: Array, factor: float) -> Array:
        """X times a constant, which is rounded to float32 first."""
        return np.multiply(x, np.float32(factor), dtype=np.float32)

    def rms_norm(self, x: Array, weight: ReferenceWeight, epsilon: float) -> Array:
        """X / sqrt(mean(x²) + epsilon) * weight over the last axis."""
        wide = x.astype(np.float64)
        mean_square = np.mean(wide * wide, axis=-1, keepdims=True)
        normed: Array = wide / np.sqrt(mean_square + epsilon) * weight.values
        return normed.astype(np.float32)

    def activate(self, x: Array, kind: Activation) -> Array:
        """X * sigmoid(x), or 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) (GELU, arXiv 1606.08415, section 2)."""
        wide = x.astype(np.float64)
        if kind == "silu":
            # exp of a large number is infinity, and x over infinity the right 0.
            with np.errstate(over="ignore"):
                activated: Array = wide / (1 + np.exp(-wide))
                return activated.astype(np.float32)
        inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
        gelu: Array = 0.5 * wide * (1 + np.tanh(inner))
        return gelu.astype(np.float32)

    def softcap(self, x: Array, cap: float) -> Array:
        """Cap * tanh(x / cap)."""
        return (cap * np.tanh(x.astype(np.float64) / cap)).astype(np.float32)

    def heads(self, x_TD: Array, num_heads: int) -> Array:
        """The same values as x_THC."""
        return x_TD.reshape(len(x_TD), num_heads, x_TD.shape[1] // num_heads)

    def merge_heads(self, x_THC: Array) -> Array:
        """The same values as x_TD."""
        return x_THC.reshape(len(x_THC), x_THC.shape[1] * x_THC.shape[2])

    def angles(self, positions_T: Array, frequencies: ReferenceWeight, magnitude: float) -> Array:
        """(T, 2, R / 2): cosines and sines, times magnitude, of position * frequency rounded to float32.

        The angle is rounded as the models were trained with it: at position 4000 that rounding is worth up to 1e-4.
        """
        turned_TR = (positions_T.astype(np.float32)[:, None] * frequencies.values).astype(np.float64)
        return (np.stack([np.cos(turned_TR), np.sin(turned_TR)], axis=1) * magnitude).astype(np.float32)

    def rope(self, x_THC: Array, angles: Array) -> Array:
        """Turn the pairs (x[i], x[i + R/2]) by their angle; values from R on pass unchanged."""
        half = angles.shape[-1]
        cosines_T1R, sines_T1R = angles[:, 0][:, None], angles[:, 1][:, None]
        first, second = x_THC[..., :half], x_THC[..., half : 2 * half]
        turned = (first * cosines_T1R - second * sines_T1R, second * cosines_T1R + first * sines_T1R)
        return np.concatenate([*turned, x_THC[..., 2 * half :]], axis=-1)

    def store_kv(
        self, pages: ReferencePages, layer: int, k_TKC: Array, v_TKC: Array, step: StepArrays[Array]
    ) -> ReferencePages:
        """The pages with this step's keys and values at `step.slots_T`."""
        pages.store(layer, step.slots_T.astype(np.int32), k_TKC.astype(np.float32), v_TKC.astype(np.float32))
        return pages

    def attend(
        self,
        q_THC: Array,
        pages: ReferencePages,
        layer: int,
        step: StepArrays[Array],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Array:
        """y_THC: plain softmax attention, one query after another."""
        y_THC = np.empty(q_THC.shape, dtype=np.float32)
        starts_N1 = step.query_starts_N1.astype(np.int64)
        for n, context_tokens in enumerate(step.context_lengths_N.astype(np.int64)):
            num_pages = -(-context_tokens // PAGE_SLOTS)
            own = pages.read(layer, step.page_table_NP[n, :num_pages].astype(np.int32), int(context_tokens))
            earlier = pages.as_seen_from_later_pages(*own)
            own_k, own_v = (part.astype(np.float64) for part in own)
            earlier_k, earlier_v = (part.astype(np.float64) for part in earlier)
            for t in range(starts_N1[n], starts_N1[n + 1]):
                position = int(step.positions_T[t])
                first = 0 if window is None else max(0, position - window + 1)
                page_start = max(first, position // PAGE_SLOTS * PAGE_SLOTS)
                k_PKC = np.concatenate([earlier_k[first:page_start], own_k[page_start : position + 1]])
                v_PKC = np.concatenate([earlier_v[first:page_start], own_v[page_start : position + 1]])
                y_THC[t] = attention_of_one_query(q_THC[t].astype(np.float64), k_PKC, v_PKC, scale, softcap)
        return y_THC

    def take_rows(self, x_TD: Array, rows_B: Array) -> Array:
        """x_BD: the rows of x at these indices."""
        return x_TD[rows_B.astype(np.intp)]


def attention_of_one_query(
    q_HC: Doubles, k_PKC: Doubles, v_PKC: Doubles, scale: float, softcap: float | None
) -> Floats:
    """y_HC = softmax(scale * q·k) · v over all P; query head h reads kv head h // (H / K).

    Source: Attention Is All You Need, arXiv 1706.03762, section 3.2.1; softcap: Gemma 2, arXiv 2408.00118, section 2.
    """
    num_kv_heads, width = k_PKC.shape[1:]
    q_KGC = q_HC.reshape(num_kv_heads, -1, width)
    scores_KGP = scale * (q_KGC @ k_PKC.transpose(1, 2, 0))
    if softcap is not None:
        scores_KGP = softcap * np.tanh(scores_KGP / softcap)
    weights_KGP = np.exp(scores_KGP - scores_KGP.max(axis=-1, keepdims=True))
    weights_KGP /= weights_KGP.sum(axis=-1, keepdims=True)
    y_KGC: Doubles = weights_KGP @ v_PKC.transpose(1, 0, 2)
    return y_KGC.reshape(q_HC.shape).astype(np.float32)
