"""Normalizing text before it is split.

Knows: what each normalizer step does. Does not know: tokens, files.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

import regex

from ridgeline.text.patterns import Pattern
from ridgeline.text.spec import Lowercase, NormalizerStep, Prepend, Replace, Strip, UnicodeForm

Normalization = Callable[[str], str]

# Marks in a row from which the standard library's normalization, quadratic in the run, is worth sorting first.
_LONG_RUN_OF_MARKS = 64


def _with_sorted_marks(form: str, text: str) -> str:
    """An equivalent text in which long runs of combining marks are in canonical order already.

    The standard library sorts such a run by insertion, in quadratic time.
    """
    decomposition: Literal["NFD", "NFKD"] = "NFKD" if form.startswith("NFK") else "NFD"

    def in_order(run: regex.Match[str]) -> str:
        marks = "".join(unicodedata.normalize(decomposition, mark) for mark in run.group())
        ordered: list[str] = []
        group: list[str] = []
        for mark in marks:
            if unicodedata.combining(mark):
                group.append(mark)
            else:
                ordered += [*sorted(group, key=unicodedata.combining), mark]
                group = []
        return "".join([*ordered, *sorted(group, key=unicodedata.combining)])

    return regex.sub(rf"\p{{M}}{{{_LONG_RUN_OF_MARKS},}}", in_order, text)


def _to_form(form: UnicodeForm) -> Normalization:
    def normalization(text: str) -> str:
        if text.isascii():
            return text
        return unicodedata.normalize(form.form, _with_sorted_marks(form.form, text))

    return normalization


def _replacement(step: Replace) -> Normalization:
    if not step.is_regex:
        return lambda text: text.replace(step.pattern, step.replacement) if step.pattern else text
    pattern = Pattern(step.pattern, is_regex=True, is_linear=False, where="normalizer")

    def normalization(text: str) -> str:
        kept = []
        position = 0
        for start, end in pattern.spans(text):
            kept += [text[position:start], step.replacement]
            position = end
        return "".join([*kept, text[position:]])

    return normalization


def _normalization(step: NormalizerStep) -> Normalization:
    match step:
        case UnicodeForm():
            return _to_form(step)
        case Lowercase():
            # Character by character: Python would write a final sigma as the word demands, the reference does not.
            return lambda text: "".join([character.lower() for character in text])
        case Prepend():
            return lambda text: step.text + text if text else text
        case Replace():
            return _replacement(step)
        case Strip():
            return lambda text: stripped(text, left=step.left, right=step.right)


def stripped(text: str, *, left: bool, right: bool) -> str:
    """The text without white space (Unicode's property, which Python's `str.strip` exceeds) at these ends."""
    if left:
        text = regex.sub(r"\A\s+", "", text)
    return regex.sub(r"\s+\Z", "", text) if right else text


class Normalizer:
    """Applies normalizer steps in turn. Holds: compiled patterns."""

    def __init__(self, steps: Sequence[NormalizerStep]) -> None:
        self._normalizations = [_normalization(step) for step in steps]

    def normalized(self, text: str) -> str:
        """The text after all steps."""
        for normalization in self._normalizations:
            text = normalization(text)
        return text
