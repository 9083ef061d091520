"""The bytes of every token: all that is needed to turn tokens into text, in whichever process that happens.

Knows: ids and bytes. Does not know: how text becomes tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ridgeline.errors import RequestError
from ridgeline.text.spec import LeadingSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    """A table of tokens' bytes: arrays of its own, or views of a mapped file."""

    blob: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int32]
    """One more than there are tokens: token i is blob[offsets[i] : offsets[i + 1]]."""
    is_special: npt.NDArray[np.bool_]
    """Whether the token is no text (control tokens): left out of answers unless asked for."""
    leading_space: LeadingSpace = LeadingSpace.KEEP

    def __len__(self) -> int:
        return len(self.is_special)

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes, which may be part of a character.

        Raises:
            RequestError: there is no such token.
        """
        self.check(token_id)
        return self.blob[self.offsets[token_id] : self.offsets[token_id + 1]].tobytes()

    def check(self, token_id: int) -> None:
        """Raises RequestError if there is no such token."""
        if not 0 <= token_id < len(self):
            raise RequestError(f"token id {token_id} is not in the vocabulary; ids go from 0 to {len(self) - 1}")

    def text_of(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The tokens' text; bytes that are not UTF-8 become U+FFFD."""
        pieces: list[bytes] = []
        for token_id in token_ids:
            piece = self.bytes_of(token_id)
            if not piece or (skip_special_tokens and self.is_special[token_id]):
                continue
            pieces.append(self.at_start(piece) if not pieces else piece)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def at_start(self, first: bytes) -> bytes:
        """The bytes of a token with which a text begins."""
        if self.leading_space is LeadingSpace.DROP_OF_FIRST_TOKEN:
            return first.replace(b" ", b"")
        if self.leading_space is LeadingSpace.DROP_ONE:
            return first.removeprefix(b" ")
        return first
