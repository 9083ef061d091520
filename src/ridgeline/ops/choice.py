"""What a step is told about each row of logits, so that a chip may choose the row's token itself.

Numbers as the kernels read them; what they mean to a row is defined, bit for bit, by `ridgeline.sampling.draw`. A chip
that cannot choose ignores all this, and the host chooses from the logits by that definition.

Knows: layouts of records. Does not know: requests, how a token is chosen.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

NO_TOKEN = -1
"""Where no token was chosen: none was asked for, or there is none; the host then looks at the logits."""


class ChoiceMode(IntEnum):
    """How a row's token is chosen."""

    HOST = 0
    """Not by the chip."""
    BEST = 1
    """The likeliest; of equals the lowest id."""
    DRAW = 2


CHOICE = np.dtype(
    [
        ("seed", np.uint64),  # the sample's; with the next token's position it gives the random number
        ("min_weight", np.int64),  # lesser weights count as none
        ("top_share", np.int64),  # of all weights, in units of 2^-53: the nucleus
        ("scale", np.float32),  # logits to powers of two: log2(e) / temperature
        ("top_k", np.int32),  # 0: all
        ("mode", np.int16),  # ChoiceMode
        ("only_listed", np.int16),  # no token but those in the row's adjustments
        ("num_adjustments", np.int32),
    ]
)
"""One row's choice. A row is that of the token before the one to be chosen, whose position is one higher."""

ADJUSTMENT = np.dtype(
    [("token_id", np.int32), ("bias", np.float32), ("penalty", np.float32), ("reduction", np.float32)]
)
"""What options do to one token's logit: plus the bias, then divided (where positive) or multiplied by the penalty, then
less the reduction, each rounded to float32. A row's adjustments name each token once."""

NO_CHOICE = bytes(CHOICE.itemsize)
"""A record of mode HOST."""

assert (CHOICE.itemsize, ADJUSTMENT.itemsize) == (40, 16), "the structs in kernels/sample.h"

Records: TypeAlias = npt.NDArray[Any]
"""An array of one of these layouts."""
