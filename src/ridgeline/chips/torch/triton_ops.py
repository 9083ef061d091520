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
from ridgeline.chips.torch.triton_attention import paged_attention
from ridgeline.chips.torch.triton_products import gated, product_spans, sum_of_spans
from ridgeline.chips.torch.triton_rows import normed_rows, store_rows, turned_heads
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import StepArrays


class TritonOps(TorchOps):
    """What sums is a kernel of ours; sums, products and look-ups of single values are PyTorch's."""

    def embed(self, table: Tensor, token_ids_T: Tensor) -> Tensor:
        """The table's rows."""
        return table[token_ids_T].float()

    def linear(self, x_TD: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x_TD @ weight_FD.T + bias_F."""
        return sum_of_spans(product_spans(x_TD, weight), bias)

    def linears(self, x_TD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """One product where the weights lie one after another."""
        weight, bias = side_by_side(weights), side_by_side(biases)
        if weight is None or (bias is None and any(entry is not None for entry in biases)):
            return super().linears(x_TD, weights, biases)
        return self.linear(x_TD, weight, bias).split([len(entry) for entry in weights], dim=1)  # type: ignore[no-any-return, unused-ignore]

    def gated_mlp(self, x_TD: Tensor, gate: Tensor, up: Tensor, down: Tensor, kind: Activation) -> Tensor:
        """Both halves in one product where they lie one after another."""
        weight = side_by_side((gate, up))
        if weight is None:
            return super().gated_mlp(x_TD, gate, up, down, kind)
        return self.linear(gated(product_spans(x_TD, weight), kind, down.dtype), down)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """X / sqrt(mean(x²) + epsilon) * weight."""
        if x.ndim == 2:
            return normed_rows(x, weight, epsilon)
        return normed_rows(x.reshape(-1, x.shape[-1]), weight, epsilon).view(x.shape)

    def rope(self, x_THC: Tensor, angles: Tensor) -> Tensor:
        """The pairs (x[i], x[i + R/2]), turned."""
        return turned_heads(x_THC, angles)

    def store_kv(
        self, pages: TorchPages, layer: int, k_TKC: Tensor, v_TKC: Tensor, step: StepArrays[Tensor]
    ) -> TorchPages:
        """Written in place; padding tokens have negative slots."""
        store_rows(k_TKC, v_TKC, pages.keys[layer], pages.values[layer], step.slots_T)
        return pages

    def attend(
        self,
        q_THC: Tensor,
        pages: TorchPages,
        layer: int,
        step: StepArrays[Tensor],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """All sequences at once."""
        return paged_attention(
            q_THC, pages.keys[layer], pages.values[layer], step, scale=scale, window=window, softcap=softcap
        )


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
