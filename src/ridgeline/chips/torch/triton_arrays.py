"""Values on a GPU that are not computed yet, because the op that reads them computes them better along the way.

A decoder sees them as arrays like any other. A product's spans are added up by the norm, the rope or the store that
comes next; a norm rounds its rows to what the product after it reads. `tensor_of` computes any of them on its own.

Knows: the kernels. Does not know: decoders.

Shape letters: S spans, T tokens, F rows of a weight, D width, H heads, C head width, R turned width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor  # type: ignore[import-not-found, unused-ignore]

from ridgeline.chips.torch.triton_products import sum_of_spans
from ridgeline.chips.torch.triton_rows import normed_rows, turned_heads

Array = Any
"""A Tensor, or one of those below."""


@dataclass(slots=True, kw_only=True)
class Product:
    """stream + sum of spans + bias. Holds: its sum, once it is known."""

    spans_STF: Tensor
    bias_F: Tensor | None = None
    stream_TF: Tensor | None = None
    sum_TF: Tensor | None = None

    def tensor(self) -> Tensor:
        """y_TF."""
        if self.sum_TF is None:
            sum_TF = sum_of_spans(self.spans_STF, self.bias_F)
            self.sum_TF = sum_TF if self.stream_TF is None else self.stream_TF + sum_TF
        return self.sum_TF


@dataclass(slots=True, kw_only=True)
class Heads:
    """Some columns of a product, as heads, turned by angles where there are any."""

    product: Product
    start: int
    end: int
    num_heads: int | None = None
    """None until `heads` has said it."""
    angles: Tensor | None = None

    def tensor(self) -> Tensor:
        """x_TD until it is cut into heads, then x_THC."""
        x_TD = self.product.tensor()[:, self.start : self.end]
        if self.num_heads is None:
            return x_TD
        x_THC = x_TD.unflatten(-1, (self.num_heads, -1))
        return x_THC if self.angles is None else turned_heads(x_THC, self.angles)


@dataclass(slots=True, kw_only=True)
class Normed:
    """The rows of a norm. Holds: them, in each type that they were asked for in."""

    x: Array
    """A Product, or x_TD."""
    weight_D: Tensor
    epsilon: float
    rows_by_type: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def rows(self, dtype: torch.dtype) -> Tensor:
        """y_TD in this type, rounded once."""
        if dtype not in self.rows_by_type:
            x = self.x
            if isinstance(x, Product) and x.sum_TF is None:
                is_sum_wanted = x.stream_TF is not None
                y_TD, sum_TF = normed_rows(
                    x.spans_STF, x.bias_F, x.stream_TF, self.weight_D, self.epsilon, dtype, is_sum_wanted=is_sum_wanted
                )
                if is_sum_wanted:
                    x.sum_TF = sum_TF
            else:
                x_TD = tensor_of(x)
                y_TD, _ = normed_rows(
                    x_TD.contiguous()[None], None, None, self.weight_D, self.epsilon, dtype, is_sum_wanted=False
                )
            self.rows_by_type[dtype] = y_TD
        return self.rows_by_type[dtype]

    def tensor(self) -> Tensor:
        """y_TD in float32."""
        return self.rows(torch.float32)


def tensor_of(x: Array) -> Tensor:
    """The values themselves."""
    return x if isinstance(x, Tensor) else x.tensor()


def rows_of(x: Array, dtype: torch.dtype) -> Tensor:
    """The rows as a product with weights of this type reads them best; it rounds float32 ones itself."""
    return x.rows(dtype) if isinstance(x, Normed) else tensor_of(x)
