"""The reference chip for all tests of the model room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ridgeline.chips.reference import ReferenceChip


@pytest.fixture
def chip() -> Iterator[ReferenceChip]:
    opened = ReferenceChip()
    yield opened
    opened.close()
