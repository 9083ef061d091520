"""The suite that any chip is held against: named cases, each a small decoder whose logits the reference chip knows.

    for case in conformance_cases():
        check(my_chip, ReferenceChip(), case)
    for case in sameness_cases():
        check_same(my_chip, case, is_bit_exact=True)

It needs numpy and the chip, nothing else; `ridgeline.model.conformance` adds whole decoders.
"""

from ridgeline.ops.conformance.attention import attention_cases, attention_sameness_cases
from ridgeline.ops.conformance.case import Case, Problem, SamenessCase, check, check_same
from ridgeline.ops.conformance.coarse import coarse_cases
from ridgeline.ops.conformance.fine import elementwise_cases, weight_cases, weight_sameness_cases

__all__ = ["Case", "Problem", "SamenessCase", "check", "check_same", "conformance_cases", "sameness_cases"]


def conformance_cases() -> tuple[Case, ...]:
    """Every op, alone: what it computes."""
    return (*weight_cases(), *elementwise_cases(), *attention_cases(), *coarse_cases())


def sameness_cases() -> tuple[SamenessCase, ...]:
    """Two ways to run the same tokens: whole or in chunks, alone or among others, on these pages or on those."""
    return (*weight_sameness_cases(), *attention_sameness_cases())
