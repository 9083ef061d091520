"""The patterns that come with a tokenizer, run over text that may be hostile.

The patterns of the known families take linear time on any text; one that does not is stopped by a time limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

import regex

from ridgeline.errors import ModelFileError

# Five million characters a second are usual; a hundredth of that means that the pattern backtracks without end.
_MIN_CHARACTERS_PER_SECOND = 50_000
_MIN_SECONDS = 5.0
# Patterns of well-known models that take quadratic time as they are written, and the same matches in linear time: a
# run of spaces that ends no line is looked at once, not from each of its spaces again.
_LINEAR_FORMS = MappingProxyType({r"\s+$": r"(?<!\s)\s+$"})


def compiled_pattern(pattern: str, is_regex: bool, where: str) -> regex.Pattern[str]:
    """The pattern, ready; `^` and `$` match at lines, as in Oniguruma's Ruby syntax, which `tokenizer.json` uses.

    Raises:
        ModelFileError: it is not a regular expression; names `where`.
    """
    flags = regex.MULTILINE
    if is_regex and "&&" in pattern:
        flags |= regex.VERSION1  # set operations
    try:
        return regex.compile(_LINEAR_FORMS.get(pattern, pattern) if is_regex else regex.escape(pattern), flags)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ModelFileError(
            f"{where}: {pattern[:80]!r} is not a regular expression that works here: {error}"
        ) from error


def matches(pattern: regex.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Where the pattern matches: (start, end), from left to right.

    Raises:
        ModelFileError: it takes too long.
    """
    try:
        for match in pattern.finditer(text, timeout=_time_limit_seconds(text)):
            yield match.span()
    except TimeoutError as error:
        raise _too_slow(pattern, text) from error


def _too_slow(pattern: regex.Pattern[str], text: str) -> ModelFileError:
    return ModelFileError(
        f"the tokenizer's pattern {pattern.pattern[:80]!r} takes too long on a text of {len(text)} characters",
        hint="the pattern backtracks without bound; it is the model file's, and must be mended there",
    )


def matched_strings(pattern: regex.Pattern[str], text: str) -> list[str]:
    """What the pattern, which has no groups, matches; quicker than `matches`.

    Raises:
        ModelFileError: it takes too long.
    """
    try:
        found: list[str] = pattern.findall(text, timeout=_time_limit_seconds(text))
    except TimeoutError as error:
        raise _too_slow(pattern, text) from error
    return found


def _time_limit_seconds(text: str) -> float:
    return _MIN_SECONDS + len(text) / _MIN_CHARACTERS_PER_SECOND
