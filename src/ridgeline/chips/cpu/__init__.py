"""The CPU chip: Python that records and lays out a step, C++ that runs it."""

from ridgeline.chips.cpu.chip import CpuChip

__all__ = ["CpuChip"]
