"""Random numbers by counter: a function of (seed, position), with no state to keep, to lose or to share.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), section 3.3: Philox4x32 with ten rounds.
"""

from __future__ import annotations

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
NUM_ROUNDS = 10


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words of a 128-bit counter under a 64-bit key, given as 32-bit words, low word first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        product0 = _MULTIPLIERS[0] * c0
        product1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & _WORD, (product0 >> 32) ^ c3 ^ k1, product0 & _WORD
        k0 = (k0 + _WEYL[0]) & _WORD
        k1 = (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def random_bits(seed: int, position: int) -> int:
    """53 random bits for the token at `position` of a sample with this 64-bit seed."""
    words = philox((position & _WORD, position >> 32, 0, 0), (seed & _WORD, seed >> 32))
    return (words[1] << 32 | words[0]) >> 11
