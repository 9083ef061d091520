"""Random numbers by counter: the published vectors, and that they look uniform."""

from __future__ import annotations

import numpy as np

from ridgeline.sampling.counter_random import philox, random_bits


def test_known_answers() -> None:
    """Source: the known-answer file of the Random123 library, philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((ones, ones, ones, ones), (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(counter, key) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_uniform_over_positions_and_over_seeds() -> None:
    by_position = np.array([random_bits(7, position) * 2.0**-53 for position in range(4000)])
    by_seed = np.array([random_bits(seed, 7) * 2.0**-53 for seed in range(4000)])
    for numbers in (by_position, by_seed):
        assert (numbers >= 0).all() and (numbers < 1).all()
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        # Chi-squared with 19 degrees of freedom exceeds 50 with probability 1e-4.
        assert ((counts - 200) ** 2 / 200).sum() < 50
    assert abs(np.corrcoef(by_position[:-1], by_position[1:])[0, 1]) < 0.06


def test_all_bits_of_seed_and_position_count() -> None:
    numbers = {random_bits(seed, position) for seed in (0, 1, 1 << 32, 1 << 63) for position in (0, 1, 1 << 33)}
    assert len(numbers) == 12
