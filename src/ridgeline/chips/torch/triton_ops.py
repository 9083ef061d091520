"""The ops on a GPU: Triton kernels where sums are taken or launches would cost, PyTorch for the rest.

Activations are float32. A product with a bfloat16 weight rounds them to bfloat16 and adds up in float32; attention over
bfloat16 pages likewise. Every sum has one order, so an answer does not depend on what runs beside it.

Knows: torch, the kernels. Does not know: decoders, weight formats.

Shape letters: T tokens, D width, F rows of weights, H query heads, K kv heads, C head width, R turned width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]

from ridgeline.chips.torch.ops import TorchOps, TorchPages
from ridgeline.chips.torch.triton_arrays import Array, Heads, Normed, Product, rows_of, tensor_of
from ridgeline.chips.torch.triton_attention import paged_attention
from ridgeline.chips.torch.triton_products import gated_product, product_spans
from ridgeline.chips.torch.triton_rows import store_rows, turned_and_stored, turned_heads
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import StepArrays


class TritonOps(TorchOps):
    """What sums is a kernel of ours; sums, products and look-ups of single values are PyTorch's."""

    def embed(self, table: Tensor, token_ids_T: Tensor) -> Array:
        """The table's rows."""
        return table[token_ids_T].float()

    def linear(self, x_TD: Array, weight: Tensor, bias: Tensor | None = None) -> Array:
        """x_TD @ weight_FD.T + bias_F, spans not yet added up."""
        return Product(spans_STF=product_spans(rows_of(x_TD, weight.dtype), weight), bias_F=bias)

    def linears(self, x_TD: Array, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Array, ...]:
        """One product where the weights lie one after another."""
        weight, bias = side_by_side(weights), side_by_side(biases)
        if weight is None or (bias is None and any(entry is not None for entry in biases)):
            return super().linears(x_TD, weights, biases)
        product = self.linear(x_TD, weight, bias)
        parts, start = [], 0
        for entry in weights:
            parts.append(Heads(product=product, start=start, end=start + len(entry)))
            start += len(entry)
        return tuple(parts)

    def gated_mlp(self, x_TD: Array, gate: Tensor, up: Tensor, down: Tensor, kind: Activation) -> Array:
        """Both halves in one product where they lie one after another."""
        weight = side_by_side((gate, up))
        if weight is None:
            return super().gated_mlp(x_TD, gate, up, down, kind)
        return self.linear(gated_product(rows_of(x_TD, weight.dtype), weight, kind, down.dtype), down)

    def add(self, x: Array, y: Array) -> Array:
        """Elementwise sum; that of the stream and a product is left to the norm that comes next."""
        if isinstance(y, Product) and y.sum_TF is None and y.stream_TF is None:
            return Product(spans_STF=y.spans_STF, bias_F=y.bias_F, stream_TF=tensor_of(x).contiguous())
        return tensor_of(x) + tensor_of(y)

    def multiply(self, x: Array, y: Array) -> Array:
        """Elementwise product."""
        return tensor_of(x) * tensor_of(y)

    def scale(self, x: Array, factor: float) -> Array:
        """X times a constant."""
        return tensor_of(x) * factor

    def rms_norm(self, x: Array, weight: Tensor, epsilon: float) -> Array:
        """X / sqrt(mean(x²) + epsilon) * weight."""
        if isinstance(x, Product):
            return Normed(x=x, weight_D=weight, epsilon=epsilon)
        x = tensor_of(x)
        if x.ndim == 2:
            return Normed(x=x, weight_D=weight, epsilon=epsilon)
        return Normed(x=x.reshape(-1, x.shape[-1]), weight_D=weight, epsilon=epsilon).tensor().view(x.shape)

    def activate(self, x: Array, kind: Activation) -> Array:
        """SiLU, or GELU in its tanh form."""
        return super().activate(tensor_of(x), kind)

    def softcap(self, x: Array, cap: float) -> Array:
        """Cap * tanh(x / cap)."""
        return super().softcap(tensor_of(x), cap)

    def heads(self, x_TD: Array, num_heads: int) -> Array:
        """x_THC."""
        if isinstance(x_TD, Heads):
            return Heads(product=x_TD.product, start=x_TD.start, end=x_TD.end, num_heads=num_heads)
        return super().heads(tensor_of(x_TD), num_heads)

    def merge_heads(self, x_THC: Array) -> Array:
        """x_TD."""
        return super().merge_heads(tensor_of(x_THC))

    def rope(self, x_THC: Array, angles: Tensor) -> Array:
        """The pairs (x[i], x[i + R/2]), turned."""
        if isinstance(x_THC, Heads):
            return Heads(
                product=x_THC.product, start=x_THC.start, end=x_THC.end, num_heads=x_THC.num_heads, angles=angles
            )
        return turned_heads(tensor_of(x_THC), angles)

    def store_kv(
        self, pages: TorchPages, layer: int, k_TKC: Array, v_TKC: Array, step: StepArrays[Tensor]
    ) -> TorchPages:
        """Written in place; padding tokens have negative slots."""
        store_rows(tensor_of(k_TKC), tensor_of(v_TKC), pages.keys[layer], pages.values[layer], step.slots_T)
        return pages

    def attend(
        self,
        q_THC: Array,
        pages: TorchPages,
        layer: int,
        step: StepArrays[Tensor],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Array:
        """All sequences at once."""
        keys, values = pages.keys[layer], pages.values[layer]
        return paged_attention(tensor_of(q_THC), keys, values, step, scale=scale, window=window, softcap=softcap)

    def store_and_attend(
        self,
        q_THC: Array,
        k_TKC: Array,
        v_TKC: Array,
        pages: TorchPages,
        layer: int,
        step: StepArrays[Tensor],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Array, TorchPages]:
        """Bias, rope and store in one kernel where queries, keys and values are of one product."""
        if is_one_product(q_THC, k_TKC, v_TKC):
            product = q_THC.product
            q_THC = turned_and_stored(
                product.spans_STF,
                product.bias_F,
                q_THC.angles,
                q_THC.num_heads,
                pages.keys[layer],
                pages.values[layer],
                step.slots_T,
            )
        else:
            pages = self.store_kv(pages, layer, k_TKC, v_TKC, step)
        return self.attend(q_THC, pages, layer, step, scale=scale, window=window, softcap=softcap), pages

    def take_rows(self, x_TD: Array, rows_B: Tensor) -> Array:
        """x_BD."""
        return tensor_of(x_TD)[rows_B]


def is_one_product(q: Array, k: Array, v: Array) -> bool:
    """Whether these are all columns of one product, in this order, queries and keys turned alike and values not."""
    if not (isinstance(q, Heads) and isinstance(k, Heads) and isinstance(v, Heads)):
        return False
    is_together = q.product is k.product is v.product and q.start == 0 and q.end == k.start and k.end == v.start
    return is_together and q.angles is not None and q.angles is k.angles and v.angles is None


def side_by_side(weights: Sequence[Tensor | None]) -> Tensor | None:
    """The weights as one tensor, without a copy; None where they are not of one kind, one after another in memory."""
    first = weights[0]
    if first is None:
        return None
    end = first.data_ptr()
    num_rows = 0
    for weight in weights:
        if weight is None or weight.dtype != first.dtype or weight.shape[1:] != first.shape[1:]:
            return None
        if weight.data_ptr() != end or weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += weight.numel() * weight.element_size()
        num_rows += len(weight)
    return torch.as_strided(first, (num_rows, *first.shape[1:]), first.stride(), first.storage_offset())
