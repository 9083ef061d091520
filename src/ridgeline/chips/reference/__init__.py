"""The reference chip: every op in plain numpy, which is the op's definition and the oracle of all other chips."""

from ridgeline.chips.reference.chip import ReferenceChip
from ridgeline.chips.reference.ops import ReferenceOps, ReferenceWeight
from ridgeline.chips.reference.pages import ReferencePages

__all__ = ["ReferenceChip", "ReferenceOps", "ReferencePages", "ReferenceWeight"]
