"""The ops: about fifteen fine ones make a chip correct, a few coarse ones make it fast.

A decoder is a function over these ops and nothing else. Arrays are opaque: the decoder never looks at a value, never
asks a shape, never changes anything in place; state (the pages) is passed in and returned. So the same text runs
eagerly (numpy, torch), traced (JAX), recorded once and replayed natively (CPU), counted, or written out as a graph.

Each fine op is defined by its numpy text in `ridgeline.chips.reference`; each coarse op by its default in
`ridgeline.ops.composed`, made of fine ones, which is at once its documentation, its oracle and its fallback.

Types: A an array of this chip, W a weight adopted by it, P its pages of keys and values.
Shape letters: T tokens, N sequences, B logit rows, D width of x, H query heads, K kv heads, C head width, F rows of a
weight, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

from ridgeline.ops.step import StepArrays

A = TypeVar("A")
W = TypeVar("W", contravariant=True)
P = TypeVar("P")

Activation = Literal["silu", "gelu_tanh"]


class FineOps(Protocol[A, W, P]):
    """What a chip must implement to be complete and correct."""

    def embed(self, table: W, token_ids_T: A) -> A:
        """x_TD: the table's rows, dequantised."""

    def linear(self, x_TD: A, weight: W, bias: W | None = None) -> A:
        """y_TF = x_TD @ weight_FD.T + bias_F.

        A row of y depends on the same row of x alone, bit for bit, however many rows there are.
        """

    def add(self, x: A, y: A) -> A:
        """Elementwise sum."""

    def multiply(self, x: A, y: A) -> A:
        """Elementwise product."""

    def scale(self, x: A, factor: float) -> A:
        """X times a constant."""

    def rms_norm(self, x: A, weight: W, epsilon: float) -> A:
        """X / sqrt(mean(x²) + epsilon) * weight over the last axis; x is TD or THC (then weight_C).

        Source: Root Mean Square Layer Normalization, arXiv 1910.07467, equation 4.
        """

    def activate(self, x: A, kind: Activation) -> A:
        """X * sigmoid(x), or GELU in its tanh form."""

    def softcap(self, x: A, cap: float) -> A:
        """Cap * tanh(x / cap)."""

    def heads(self, x_TD: A, num_heads: int) -> A:
        """The same values as x_THC, D = H * C."""

    def merge_heads(self, x_THC: A) -> A:
        """The same values as x_TD."""

    def angles(self, positions_T: A, frequencies: W, magnitude: float) -> A:
        """Magnitude * (cos, sin) of position * frequency: what `rope` turns by; the layout is the chip's own.

        `frequencies` is a vector of R / 2 values, R <= C the width that is turned.
        """

    def rope(self, x_THC: A, angles: A) -> A:
        """Turn the pairs (x[i], x[i + R/2]) by their angle; values from R on pass unchanged.

        Source: RoFormer, arXiv 2104.09864, section 3.4.2, in the half-split order of GPT-NeoX.
        """

    def store_kv(self, pages: P, layer: int, k_TKC: A, v_TKC: A, step: StepArrays[A]) -> P:
        """The pages with this step's keys and values at `step.slots_T`."""

    def attend(
        self,
        q_THC: A,
        pages: P,
        layer: int,
        step: StepArrays[A],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> A:
        """y_THC: for each query, softmax(scale * q·k) over the positions p with query - window < p <= query, times v.

        Query head h reads kv head h // (H / K). The order of sums depends on the query's position alone.
        """

    def take_rows(self, x_TD: A, rows_B: A) -> A:
        """x_BD: the rows of x at these indices."""


class Ops(FineOps[A, W, P], Protocol[A, W, P]):
    """The whole vocabulary; decoders call these. `ComposedOps` gives the coarse ones their defaults."""

    def linears(self, x_TD: A, weights: Sequence[W], biases: Sequence[W | None]) -> tuple[A, ...]:
        """Several products with the same x: queries, keys and values; gate and up."""

    def gated_mlp(self, x_TD: A, gate: W, up: W, down: W, kind: Activation) -> A:
        """down(activate(gate(x)) * up(x))."""

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
        """(y_THC, pages): `store_kv`, then `attend`."""
