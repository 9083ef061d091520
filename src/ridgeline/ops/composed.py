"""Coarse ops made of fine ones: what they mean, and what a chip has until it overrides them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from ridgeline.ops.protocol import Activation, FineOps
from ridgeline.ops.step import StepArrays

A = TypeVar("A")
W = TypeVar("W")
P = TypeVar("P")


class ComposedOps(FineOps[A, W, P], Generic[A, W, P]):
    """Inherit from this, implement the fine ops, override the coarse ones that the chip does better at once."""

    def linears(self, x_TD: A, weights: Sequence[W], biases: Sequence[W | None]) -> tuple[A, ...]:
        """One product after another."""
        return tuple(self.linear(x_TD, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def gated_mlp(self, x_TD: A, gate: W, up: W, down: W, kind: Activation) -> A:
        """down(activate(gate(x)) * up(x))."""
        gate_TF, up_TF = self.linears(x_TD, (gate, up), (None, None))
        return self.linear(self.multiply(self.activate(gate_TF, kind), up_TF), down)

    def store_and_attend(
        self,
        q_THC: A,
        k_TKC: A,
        v_TKC: A,
        pages: P,
        layer: int,
        step: StepArrays[A],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> tuple[A, P]:
        """Store, then attend."""
        pages = self.store_kv(pages, layer, k_TKC, v_TKC, step)
        y_THC = self.attend(q_THC, pages, layer, step, scale=scale, window=window, softcap=softcap)
        return y_THC, pages
