"""What a tokenizer is, whichever file it came from: one frozen description.

Knows: the steps that text goes through on its way to tokens and back, and their parameters.
Does not know: file formats (`hf_tokenizer` and `gguf_tokenizer` read those) or how a step is done (`normalization`,
`pre_tokenization`, `tokenizer`).

The way there: added tokens are cut out of the text; what is left is normalized, split into pieces, and each piece is
segmented by the model (merges or log-probabilities). The way back: tokens' bytes, one after the other.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

SPACE_MARK = "\u2581"
"""What SentencePiece writes for a space."""

NO_TOKEN = 0xFFFFFFFF
"""In tables of ids: there is none."""

Behavior = Literal["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
"""What becomes of a match when text is split: dropped, a piece of its own, joined to a neighbour, joined to matches."""


class Step(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One step of the way; a value that can be written to a file."""


class UnicodeForm(Step, frozen=True, kw_only=True):
    """Unicode normalization."""

    form: Literal["NFC", "NFD", "NFKC", "NFKD"]


class Lowercase(Step, frozen=True, kw_only=True):
    """Unicode lower case."""


class Prepend(Step, frozen=True, kw_only=True):
    """Put `text` before any text that is not empty."""

    text: str


class Replace(Step, frozen=True, kw_only=True):
    """Write `replacement` wherever `pattern` matches."""

    pattern: str
    is_regex: bool
    replacement: str


class Strip(Step, frozen=True, kw_only=True):
    """Drop white space at the ends."""

    left: bool
    right: bool


class ByteLevel(Step, frozen=True, kw_only=True):
    """From here on the text is bytes, written in GPT-2's byte alphabet; perhaps split by GPT-2's pattern before."""

    adds_prefix_space: bool
    splits: bool


class Split(Step, frozen=True, kw_only=True):
    """Split at the matches of a pattern, or between them if `inverted`."""

    pattern: str
    is_regex: bool
    behavior: Behavior
    inverted: bool = False


class Digits(Step, frozen=True, kw_only=True):
    """Split numbers from the rest, perhaps into single digits."""

    single: bool


class Punctuation(Step, frozen=True, kw_only=True):
    """Split at punctuation."""

    behavior: Behavior


class Metaspace(Step, frozen=True, kw_only=True):
    """Write spaces as `mark`, put one before the text, and perhaps split before each."""

    mark: str
    prepends: Literal["always", "first", "never"]
    splits: bool


class FixedLength(Step, frozen=True, kw_only=True):
    """Split into pieces of `num_characters`."""

    num_characters: int


NormalizerStep = UnicodeForm | Lowercase | Prepend | Replace | Strip
PreTokenizerStep = ByteLevel | Split | Digits | Punctuation | Metaspace | FixedLength


class LeadingSpace(enum.IntEnum):
    """What becomes of the space that decoded text begins with."""

    KEEP = 0
    DROP_ONE = 1
    """The first character of the text, if it is a space."""
    DROP_OF_FIRST_TOKEN = 2
    """Every space of the first token."""


class TokenKind(enum.IntEnum):
    """What a token is for; the values are those of `tokenizer.ggml.token_type`, with 0 for an id without a token."""

    ABSENT = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    """Not text: skipped in answers, and never made from plain text."""
    ADDED = 4
    """Text that is always one token ("user defined")."""
    UNUSED = 5
    BYTE = 6


class AddedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that is cut out of the text before anything else happens to it."""

    id: int
    text: str
    is_control: bool
    is_normalized: bool = False
    """Look for it in the normalized text."""
    strips_left: bool = False
    """Swallows white space before it."""
    strips_right: bool = False
    is_single_word: bool = False
    """Only where no letter or digit touches it."""


class TokenizerTraits(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the tokens themselves: small, and written into the compiled vocabulary as it is."""

    model: Literal["bpe", "unigram"]
    is_byte_level: bool
    """Tokens are written in GPT-2's byte alphabet."""
    has_byte_fallback: bool = False
    fuses_unknown: bool = False
    ignores_merges: bool = False
    normalizer: tuple[NormalizerStep, ...] = ()
    pre_tokenizer: tuple[PreTokenizerStep, ...] = ()
    space_mark: str | None = None
    """What is read back as a space in decoding."""
    leading_space: LeadingSpace = LeadingSpace.KEEP
    added_tokens: tuple[AddedToken, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    """Put before the text when special tokens are asked for."""
    suffix_ids: tuple[int, ...] = ()
    unknown_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    """The one that templates call `eos_token`."""
    eos_ids: tuple[int, ...] = ()
    """All that end an answer."""
    pad_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """A tokenizer, whole.

    `tokens[i]` is the text of token i, "" where `kinds[i]` is ABSENT. A "bpe" model has `merges`, earliest first, each
    "left right" or a pair; or none, and then `scores` say which merge comes first (SentencePiece). A "unigram" model
    has `scores`, the pieces' log-probabilities.
    """

    traits: TokenizerTraits
    tokens: Sequence[str]
    kinds: npt.NDArray[np.uint8]
    merges: Sequence[str | tuple[str, str]] | None = None
    scores: npt.NDArray[np.float64] | None = None


def padded(spec: TokenizerSpec, num_tokens: int) -> TokenizerSpec:
    """The tokenizer with ids up to `num_tokens` that stand for nothing: a head may have more rows than tokens."""
    num_missing = num_tokens - len(spec.tokens)
    if num_missing <= 0:
        return spec
    return replace(
        spec,
        tokens=[*spec.tokens, *[""] * num_missing],
        kinds=np.concatenate([spec.kinds, np.full(num_missing, TokenKind.ABSENT, dtype=np.uint8)]),
        scores=None if spec.scores is None else np.concatenate([spec.scores, np.zeros(num_missing)]),
    )
