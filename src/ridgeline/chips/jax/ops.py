"""The fine ops in JAX: pure, traceable, every shape known when traced.

Knows: JAX. Does not know: decoders, weight formats (weights arrive as float32).

Shape letters: T tokens, N sequences, P positions of all sequences' pages one after another, D width, H query heads, K
kv heads, G query heads of a kv head, C head width, R turned width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax  # type: ignore[import-not-found, unused-ignore]
import jax.numpy as jnp  # type: ignore[import-not-found, unused-ignore]
from jax import Array  # type: ignore[import-not-found, unused-ignore]

from ridgeline.ops.composed import ComposedOps
from ridgeline.ops.protocol import Activation
from ridgeline.ops.step import PAGE_SLOTS, StepArrays

JaxPages = tuple[tuple[Array, Array], ...]
"""(keys, values) of each layer, (slots, K, C)."""


@dataclass(frozen=True, slots=True)
class JaxWeight:
    """A weight's place among the arguments of the compiled function; closed over, it would become a constant of it."""

    key: str


class JaxOps(ComposedOps[Array, JaxWeight, JaxPages]):
    """Every fine op as a few calls. Holds: the weights as they are while a trace lasts."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._weights = weights

    def embed(self, table: JaxWeight, token_ids_T: Array) -> Array:
        """The table's rows."""
        return self._weights[table.key][token_ids_T]

    def linear(self, x_TD: Array, weight: JaxWeight, bias: JaxWeight | None = None) -> Array:
        """x_TD @ weight_FD.T + bias_F."""
        y_TF = x_TD @ self._weights[weight.key].T
        return y_TF if bias is None else y_TF + self._weights[bias.key]

    def add(self, x: Array, y: Array) -> Array:
        """Elementwise sum."""
        return x + y

    def multiply(self, x: Array, y: Array) -> Array:
        """Elementwise product."""
        return x * y

    def scale(self, x: Array, factor: float) -> Array:
        """X times a constant."""
        return x * factor

    def rms_norm(self, x: Array, weight: JaxWeight, epsilon: float) -> Array:
        """X / sqrt(mean(x²) + epsilon) * weight."""
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + epsilon) * self._weights[weight.key]

    def activate(self, x: Array, kind: Activation) -> Array:
        """SiLU, or GELU in its tanh form."""
        return jax.nn.silu(x) if kind == "silu" else jax.nn.gelu(x, approximate=True)

    def softcap(self, x: Array, cap: float) -> Array:
        """Cap * tanh(x / cap)."""
        return cap * jnp.tanh(x / cap)

    def heads(self, x_TD: Array, num_heads: int) -> Array:
        """x_THC."""
        return x_TD.reshape(x_TD.shape[0], num_heads, -1)

    def merge_heads(self, x_THC: Array) -> Array:
        """x_TD."""
        return x_THC.reshape(x_THC.shape[0], -1)

    def angles(self, positions_T: Array, frequencies: JaxWeight, magnitude: float) -> Array:
        """(2, T, 1, R / 2): cosines, then sines."""
        turned = positions_T[:, None, None] * self._weights[frequencies.key]
        return magnitude * jnp.stack((jnp.cos(turned), jnp.sin(turned)))

    def rope(self, x_THC: Array, angles: Array) -> Array:
        """Turned pairs (x[i], x[i + R/2]), then the rest."""
        cosines, sines = angles
        half = cosines.shape[-1]
        first, second = x_THC[..., :half], x_THC[..., half : 2 * half]
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        return jnp.concatenate((*turned, x_THC[..., 2 * half :]), axis=-1)

    def store_kv(self, pages: JaxPages, layer: int, k_TKC: Array, v_TKC: Array, step: StepArrays[Array]) -> JaxPages:
        """New pages; XLA updates in place what was donated. Slots past the end are those of padding: dropped."""
        stored = tuple(
            old.at[step.slots_T].set(new.astype(old.dtype), mode="drop")
            for old, new in zip(pages[layer], (k_TKC, v_TKC), strict=True)
        )
        return (*pages[:layer], stored, *pages[layer + 1 :])

    def attend(
        self,
        q_THC: Array,
        pages: JaxPages,
        layer: int,
        step: StepArrays[Array],
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Array:
        """All queries against the pages of all sequences, what is not theirs masked: wasteful, but of one shape."""
        num_pages = step.page_table_NP.shape[1]
        page_keys, page_values = (part.reshape(-1, PAGE_SLOTS, *part.shape[1:]) for part in pages[layer])
        k_PKC = page_keys[step.page_table_NP].reshape(-1, *page_keys.shape[2:]).astype(jnp.float32)
        v_PKC = page_values[step.page_table_NP].reshape(-1, *page_values.shape[2:]).astype(jnp.float32)
        sequence_P, position_P = jnp.divmod(jnp.arange(len(k_PKC)), num_pages * PAGE_SLOTS)
        back_TP = step.positions_T[:, None] - position_P
        is_seen_TP = (step.sequences_T[:, None] == sequence_P) & (back_TP >= 0)
        if window is not None:
            is_seen_TP &= back_TP < window
        q_TKGC = q_THC.reshape(q_THC.shape[0], k_PKC.shape[1], -1, q_THC.shape[2])
        scores_KGTP = jnp.einsum("tkgc,pkc->kgtp", q_TKGC, k_PKC) * scale
        if softcap is not None:
            scores_KGTP = self.softcap(scores_KGTP, softcap)
        weights_KGTP = jax.nn.softmax(jnp.where(is_seen_TP, scores_KGTP, -1e30), axis=-1)
        return jnp.einsum("kgtp,pkc->tkgc", weights_KGTP, v_PKC).reshape(q_THC.shape)

    def take_rows(self, x_TD: Array, rows_B: Array) -> Array:
        """x_BD."""
        return x_TD[rows_B]
