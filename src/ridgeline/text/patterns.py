"""The patterns that come with a tokenizer, run over text that may be hostile.

The patterns of the known families take linear time on any text, which tests hold; any other has a time limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import regex

from ridgeline.errors import ModelFileError

# Five million characters a second are usual; a hundredth of that means that the pattern backtracks without end.
_MIN_CHARACTERS_PER_SECOND = 50_000
_MIN_SECONDS = 5.0
# From this length on it is worth letting other threads run meanwhile.
_LONG_CHARACTERS = 10_000
# Patterns of well-known models that take quadratic time as they are written, and the same matches in linear time: a
# run of spaces that ends no line is looked at once, not from each of its spaces again.
_LINEAR_FORMS = MappingProxyType({r"\s+$": r"(?<!\s)\s+$"})


class Pattern:
    """A pattern, ready to run."""

    def __init__(self, pattern: str, *, is_regex: bool, is_linear: bool, where: str) -> None:
        """`^` and `$` match at lines, as in Oniguruma's Ruby syntax, which `tokenizer.json` is written in.

        Args:
            pattern: a regular expression, or a string that stands for itself.
            is_regex: which of the two.
            is_linear: known to take linear time, so that it needs no time limit (which costs more than the match).
            where: named in the error.

        Raises:
            ModelFileError: it is not a regular expression.
        """
        flags = regex.MULTILINE
        if is_regex and "&&" in pattern:
            flags |= regex.VERSION1  # set operations
        try:
            written = _LINEAR_FORMS.get(pattern, pattern) if is_regex else regex.escape(pattern)
            self._compiled = regex.compile(written, flags)
        except (regex.error, OverflowError, RecursionError) as error:
            raise ModelFileError(
                f"{where}: {pattern[:80]!r} is not a regular expression that works here: {error}"
            ) from error
        self._is_linear = is_linear or not is_regex

    @property
    def has_groups(self) -> bool:
        """Whether parts of it are captured."""
        return self._compiled.groups > 0

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where it matches: (start, end), from left to right; ModelFileError if that takes too long."""
        try:
            for match in self._compiled.finditer(text, **self._how(text)):
                yield match.span()
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def strings(self, text: str) -> list[str]:
        """What it matches, if it has no groups; quicker than `spans`. ModelFileError if that takes too long."""
        try:
            found: list[str] = self._compiled.findall(text, **self._how(text))
        except TimeoutError as error:
            raise self._too_slow(text) from error
        return found

    def _how(self, text: str) -> dict[str, Any]:
        how: dict[str, Any] = {}
        if not self._is_linear:
            how["timeout"] = _MIN_SECONDS + len(text) / _MIN_CHARACTERS_PER_SECOND
        if len(text) > _LONG_CHARACTERS:
            how["concurrent"] = True
        return how

    def _too_slow(self, text: str) -> ModelFileError:
        return ModelFileError(
            f"the tokenizer's pattern {self._compiled.pattern[:80]!r} takes too long on {len(text)} characters",
            hint="the pattern backtracks without bound; it is the model file's, and must be mended there",
        )
