"""What a reader sees of an answer while it is made: text, up to a stop string.

Knows: tokens' bytes, stop strings. Does not know: why a token was chosen, or which tokens end an answer.
"""

from __future__ import annotations

from ridgeline.text.detokenizer import Detokenizer
from ridgeline.text.stop_strings import StopAutomaton, StopFinder
from ridgeline.text.token_bytes import TokenBytes


class TextStream:
    """The text of one sample, token by token.

    What `push` and `finish` return, put together, is the text of all tokens, cut where the first stop string begins
    (or ends, if `include_stop_str_in_output`). Stop strings may straddle tokens; text that may be the beginning of one
    is held back until that is known.
    Holds: a detokenizer, and text held back. Changed by: `push`, `finish`.
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        *,
        stop: tuple[str, ...] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        """Stop strings are not looked for in the text of the first `min_tokens` tokens."""
        self._detokenizer = Detokenizer(token_bytes, skip_special_tokens=skip_special_tokens)
        self._finder = StopFinder(StopAutomaton(stop), keeps_stop=include_stop_str_in_output) if stop else None
        self._num_tokens_before_stop = min_tokens

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text, if one did; nothing may be pushed from then on."""
        return None if self._finder is None else self._finder.stopped_by

    def push(self, token_id: int) -> str:
        """The text that is certain now."""
        return self._watched(self._detokenizer.push(token_id), is_token=True)

    def finish(self) -> str:
        """What was still held back; "" if a stop string ended the text."""
        if self.stopped_by is not None:
            return ""
        text = self._watched(self._detokenizer.finish(), is_token=False)
        if self._finder is None or self._finder.stopped_by is not None:
            return text
        return text + self._finder.finish()

    def _watched(self, text: str, *, is_token: bool) -> str:
        if self._num_tokens_before_stop > 0:
            self._num_tokens_before_stop -= is_token
            return text
        return text if self._finder is None else self._finder.push(text)
