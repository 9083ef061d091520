"""The fine ops in PyTorch: what any device of its runs, and all that the CPU runs.

Knows: torch. Does not know: decoders, weight formats (weights arrive as float32).

Shape letters: T tokens, S new tokens of one sequence, P positions that its pages hold, D width, H query heads, K kv
heads, G query heads of a kv head, C head width, R turned width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]
from torch.nn import functional  # type: ignore[import-not-found, unused-ignore]

from ridgeline.ops.composed import ComposedOps
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import PAGE_SLOTS, StepArrays


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchPages:
    """Keys and values of each layer, (slots, K, C). Holds: tensors that `store_kv` writes."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class TorchOps(ComposedOps[Tensor, Tensor, TorchPages]):
    """Every fine op as one or a few calls."""

    def embed(self, table: Tensor, token_ids_T: Tensor) -> Tensor:
        """The table's rows."""
        return table[token_ids_T]

    def linear(self, x_TD: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x_TD @ weight_FD.T + bias_F."""
        return functional.linear(x_TD, weight, bias)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Elementwise sum."""
        return x + y

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        """Elementwise product."""
        return x * y

    def scale(self, x: Tensor, factor: float) -> Tensor:
        """X times a constant."""
        return x * factor

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """X / sqrt(mean(x²) + epsilon) * weight."""
        return functional.rms_norm(x, weight.shape, weight, epsilon)

    def activate(self, x: Tensor, kind: Activation) -> Tensor:
        """SiLU, or GELU in its tanh form."""
        return functional.silu(x) if kind == "silu" else functional.gelu(x, approximate="tanh")

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """Cap * tanh(x / cap)."""
        return cap * torch.tanh(x / cap)

    def heads(self, x_TD: Tensor, num_heads: int) -> Tensor:
        """x_THC."""
        return x_TD.unflatten(-1, (num_heads, -1))

    def merge_heads(self, x_THC: Tensor) -> Tensor:
        """x_TD."""
        return x_THC.flatten(-2)

    def angles(self, positions_T: Tensor, frequencies: Tensor, magnitude: float) -> Tensor:
        """(T, 2, R / 2): cosines, then sines."""
        turned_TR = positions_T[:, None] * frequencies
        return torch.stack((torch.cos(turned_TR), torch.sin(turned_TR)), dim=1) * magnitude

    def rope(self, x_THC: Tensor, angles: Tensor) -> Tensor:
        """The pairs (x[i], x[i + R/2]), turned; then the rest."""
        half = angles.shape[-1]
        cosines_T1R, sines_T1R = angles[:, 0, None], angles[:, 1, None]
        first, second, rest = x_THC.split((half, half, x_THC.shape[-1] - 2 * half), dim=-1)
        turned = (first * cosines_T1R - second * sines_T1R, second * cosines_T1R + first * sines_T1R)
        return torch.cat((*turned, rest), dim=-1)

    def store_kv(
        self, pages: TorchPages, layer: int, k_TKC: Tensor, v_TKC: Tensor, step: StepArrays[Tensor]
    ) -> TorchPages:
        """Written in place."""
        pages.keys[layer][step.slots_T] = k_TKC.to(pages.keys[layer].dtype)
        pages.values[layer][step.slots_T] = v_TKC.to(pages.values[layer].dtype)
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
        """One sequence after another, all of its queries at once."""
        answers = []
        starts = step.query_starts_N1.tolist()
        within_a_page = torch.arange(PAGE_SLOTS)
        for n, context_tokens in enumerate(step.context_lengths_N.tolist()):
            slots_P = (step.page_table_NP[n][:, None] * PAGE_SLOTS + within_a_page).flatten()[:context_tokens]
            k_PKC, v_PKC = pages.keys[layer][slots_P].float(), pages.values[layer][slots_P].float()
            q_SKGC = q_THC[starts[n] : starts[n + 1]].unflatten(1, (k_PKC.shape[1], -1))
            scores_KGSP = torch.einsum("skgc,pkc->kgsp", q_SKGC, k_PKC) * scale
            if softcap is not None:
                scores_KGSP = self.softcap(scores_KGSP, softcap)
            back_SP = step.positions_T[starts[n] : starts[n + 1], None] - torch.arange(context_tokens)
            is_hidden_SP = back_SP < 0 if window is None else (back_SP < 0) | (back_SP >= window)
            weights_KGSP = scores_KGSP.masked_fill(is_hidden_SP, -torch.inf).softmax(dim=-1)
            answers.append(torch.einsum("kgsp,pkc->skgc", weights_KGSP, v_PKC).flatten(1, 2))
        return torch.cat(answers)

    def take_rows(self, x_TD: Tensor, rows_B: Tensor) -> Tensor:
        """x_BD."""
        return x_TD[rows_B]
