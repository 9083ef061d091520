"""The table of published chips: every entry complete, plausible and usable as a roofline."""

from __future__ import annotations

import pytest

from ridgeline.chips.published import PublishedChip, published_chip, published_chips
from ridgeline.errors import UserError
from ridgeline.ops.cost import peak
from ridgeline.quant.formats import FORMATS


def test_names_are_unique_and_found_in_any_case() -> None:
    names = [chip.name for chip in published_chips()]
    assert len(set(names)) == len(names) >= 25
    assert published_chip("H100") is published_chip("h100")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="h100"):
        published_chip("h1000")


@pytest.mark.parametrize("chip", published_chips(), ids=lambda chip: chip.name)
def test_entry_is_plausible(chip: PublishedChip) -> None:
    facts = chip.facts()
    assert len(chip.source) > 20
    # A slip of a power of ten shows in the ridge: between 5 and 800 operations a byte for all of these.
    widest = max(facts.operations_per_second.values())
    assert 5 < widest / facts.bandwidth_bytes_per_second < 3000
    assert 10e9 <= facts.memory_bytes < 1e12
    # A whole read of the memory takes between 10 ms and 3 s.
    assert 0.01 < facts.memory_bytes / facts.bandwidth_bytes_per_second < 3
    peaks = facts.operations_per_second
    if "int8" in peaks:
        assert peaks["int8"] >= peaks["bf16"]
    if "fp32" in peaks:
        assert peaks["bf16"] >= peaks["fp32"]


def test_every_format_has_a_peak_on_every_chip() -> None:
    for chip in published_chips():
        for format_name in [*(entry.name for entry in FORMATS), "f32", "bf16", "int8"]:
            assert peak(chip.facts(), format_name) > 1e12


def test_known_figures() -> None:
    facts = published_chip("h100").facts()
    assert facts.memory_bytes == 80 * 10**9
    assert facts.bandwidth_bytes_per_second == 3.35e12
    assert peak(facts, "Q4_K") == 989.5e12
    assert peak(published_chip("epyc-9654").facts(), "Q4_K") == pytest.approx(96 * 2.4e9 * 128)
