"""Tokens to text while they come, one at a time.

Knows: bytes of tokens, UTF-8. Does not know: how text became tokens, stop strings.
"""

from __future__ import annotations

import codecs

from ridgeline.text.token_bytes import TokenBytes


class Detokenizer:
    """The text of a growing sequence of tokens, never half a character.

    What `push` and `finish` return, put together, is `TokenBytes.text_of` of all the tokens.
    Holds: the bytes (at most three) of a character that is not whole yet. Changed by: `push`, `finish`.
    """

    def __init__(self, token_bytes: TokenBytes, *, skip_special_tokens: bool = True) -> None:
        self._token_bytes = token_bytes
        self._skips_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_begun = False

    def push(self, token_id: int) -> str:
        """The characters that this token completes.

        A model's head may have more rows than the tokenizer has tokens; such an id has no text.
        """
        if token_id >= len(self._token_bytes):
            return ""
        piece = self._token_bytes.bytes_of(token_id)
        if not piece or (self._skips_special_tokens and self._token_bytes.is_special[token_id]):
            return ""
        if not self._has_begun:
            piece = self._token_bytes.at_start(piece)
            self._has_begun = True
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """What is left: U+FFFD if the last character never became whole."""
        return self._decoder.decode(b"", final=True)
