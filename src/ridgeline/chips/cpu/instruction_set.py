"""Which instruction set the kernels use: the best that this CPU has, or the one that a person asks for.

Knows: the names that the kernels have. Does not know: what any of them does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ridgeline.chips.cpu import _native
from ridgeline.errors import UserError

VARIABLE = "RIDGELINE_INSTRUCTION_SET"
"""The environment variable by which a person asks for one, to compare or to find out where a fault lies."""
PORTABLE = "portable"


def use_wanted(environment: Mapping[str, str] = os.environ) -> str | None:
    """Make the kernels use what the environment asks for, if it does; a line for the person about anything unusual.

    Raises UserError for what this CPU cannot run.
    """
    allowed = _native.instruction_sets()
    best = allowed[0]
    wanted = environment.get(VARIABLE)
    if wanted and (wanted not in allowed or not _native.set_instruction_set(wanted)):
        raise UserError(
            f"{VARIABLE} asks for {wanted!r}, which this CPU or this build does not have",
            hint=f"allowed here are {', '.join(allowed)}; unset it to use the first of them",
            field=VARIABLE,
        )
    if wanted and wanted != best:
        return f"the kernels use {wanted}, as {VARIABLE} asks; the best of this CPU is {best}"
    if best == PORTABLE:
        return "this CPU has none of AVX2, AVX-512 or NEON dot products: portable kernels run, right but slow"
    return None


def slow_format_notice(format_name: str) -> str:
    """What to say of weights in a format whose products have no kernels of the instruction set in use."""
    return f"{format_name} has no fast kernels with {_native.instruction_set()}: its products are right but slow"
