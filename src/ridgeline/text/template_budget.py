"""What a chat template may cost, and how much a thing would cost before it is made.

Knows: sizes of Python's strings and containers, and which methods make much of little. Does not know: Jinja's syntax.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import SecurityError

MAX_OUTPUT_CHARACTERS = 1 << 24
"""Four times what a context of a million tokens holds."""
MAX_WORK_CHARACTERS = 1 << 27
"""All text and all list entries that one render may make, most of which it throws away."""
MAX_SECONDS = 2.0
"""Of processor time, for one render; real conversations take milliseconds."""
MAX_STEPS = 2_000_000
"""Blocks entered, calls, filters, operators."""
MAX_WIDTH = 1000
"""Of padding and indentation."""

ENTRY_WEIGHT = 32
MAX_INTEGER_BITS = 1 << 14
MAX_JSON_INDENT = 32
_TICKS_PER_CLOCK = 16
_WIDE_FIELD = re.compile(r"%[-+ #0]*(?:\(\w*\))?[-+ #0]*\.?(?:\d{4,}|\d*\.\d{4,}|\d*\.?\*)|\{[^{}]*(?:\d{4,}|\{)")

_WIDE = frozenset({"center", "indent", "batch", "slice", "truncate", "round", "tojson", "ljust", "rjust",
                   "zfill", "expandtabs", "to_bytes"})  # fmt: skip


_LISTING = frozenset({"list", "sort", "unique", "groupby", "slice", "batch", "split", "rsplit", "splitlines"})
_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


class TemplateLimitError(SecurityError):
    """A template wanted more than a render may have, or something that is not text."""


def _weight(value: Any, limit: int) -> int:
    """About how many characters `value` has when it is printed; raises TemplateLimitError above the limit."""
    total = 0
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, (str, bytes)):
            total += len(each)
        elif isinstance(each, Mapping):
            total += len(each) * ENTRY_WEIGHT
            if total <= limit:
                waiting += each.keys()
                waiting += each.values()
        elif isinstance(each, (list, tuple, set, frozenset)) or _is_view(each):
            total += len(each) * ENTRY_WEIGHT
            if total <= limit:
                waiting += each
        elif isinstance(each, int):
            total += 1 + each.bit_length() // 3
        elif each is not None and not isinstance(each, (float, range, Undefined)):
            raise TemplateLimitError(f"a {type(each).__name__.strip('_')} is not text")
        if total > limit:
            raise TemplateLimitError(f"it makes more than {limit} characters")
    return total


def _is_view(value: Any) -> bool:
    return type(value).__name__ in ("dict_keys", "dict_values", "dict_items")


def structure_weight(value: Any) -> int:
    """Like `_weight`, for a value that need not be printable."""
    total = 0
    waiting = [value]
    while waiting and total <= MAX_OUTPUT_CHARACTERS:
        each = waiting.pop()
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, Mapping):
            total += len(each) * ENTRY_WEIGHT
            waiting += each.values()
        elif isinstance(each, (list, tuple, set)):
            total += len(each) * ENTRY_WEIGHT
            waiting += each
    return total


class Budget:
    """What one render has left. Holds: counts. Changed by: `tick`, `spend`."""

    __slots__ = ("_deadline", "_num_ticks", "_work_characters")

    def __init__(self) -> None:
        self._deadline = time.thread_time() + MAX_SECONDS
        self._num_ticks = 0
        self._work_characters = 0

    def tick(self) -> bool:
        """Count a step; False, so that it can stand before any expression."""
        self._num_ticks += 1
        if self._num_ticks > MAX_STEPS:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS} steps")
        if self._num_ticks % _TICKS_PER_CLOCK == 0 and time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it runs for more than {MAX_SECONDS:g} seconds")
        return False

    def spend(self, num_characters: int) -> None:
        """Count what is made, before it is."""
        if num_characters > MAX_OUTPUT_CHARACTERS:
            raise TemplateLimitError(f"it makes a text of more than {MAX_OUTPUT_CHARACTERS} characters")
        self._work_characters += num_characters
        if self._work_characters > MAX_WORK_CHARACTERS:
            raise TemplateLimitError(f"it makes more than {MAX_WORK_CHARACTERS} characters on the way")
        self.tick()

    def weighed(self, value: Any) -> int:
        """The weight of a value, counted as work."""
        weight = _weight(value, MAX_OUTPUT_CHARACTERS)
        self.spend(weight)
        return weight


def bounded_text(pieces: Iterable[str]) -> str:
    """The pieces as one text; TemplateLimitError if it is longer than any prompt can be."""
    kept = []
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > MAX_OUTPUT_CHARACTERS:
            raise TemplateLimitError(f"it makes a text of more than {MAX_OUTPUT_CHARACTERS} characters")
        kept.append(piece)
    return "".join(kept)


def check_format(budget: Budget, pattern: str, *values: Any) -> None:
    """Refuse widths that make much of little, in both of Python's ways of formatting."""
    if _WIDE_FIELD.search(pattern.replace("{{", "")):
        raise TemplateLimitError(f"a format has a computed field, or one wider than {MAX_WIDTH}")
    num_fields = pattern.count("%") + pattern.count("{")
    weight = sum(_weight(value, MAX_OUTPUT_CHARACTERS) for value in values)
    budget.spend(len(pattern) + num_fields * (weight + MAX_WIDTH if re.search(r"\d", pattern) else weight))


def check_growth(budget: Budget, name: str, subject: Any, arguments: tuple[Any, ...]) -> None:
    """Refuse a method or filter that would make much of little."""
    if name in _LISTING and isinstance(subject, str):
        budget.spend(_num_parts(name, subject, arguments) * ENTRY_WEIGHT)
    if name == "sum":
        if not all(isinstance(argument, (int, float, str)) for argument in arguments if argument is not None):
            raise TemplateLimitError("sum adds numbers")
    elif name in _WIDE:
        widest_allowed = MAX_JSON_INDENT if name == "tojson" else MAX_WIDTH
        for argument in arguments:
            if isinstance(argument, (int, float)) and abs(argument) > widest_allowed:
                raise TemplateLimitError(f"{name} of {argument:g} is wider than {widest_allowed}")
        widest = max([1, *(abs(int(each)) for each in arguments if isinstance(each, (int, float)))])
        longest = max([1, *(len(each) for each in arguments if isinstance(each, str))])
        budget.spend(_lines_or_entries(subject) * widest * longest)
    elif name == "replace" and isinstance(subject, str) and len(arguments) >= 2:
        old, new = str(arguments[0]), str(arguments[1])
        budget.spend(len(subject) + (subject.count(old) if old else len(subject) + 1) * len(new))
    elif name == "join":
        entries = subject if isinstance(subject, (list, tuple)) else arguments[0] if arguments else ()
        separator = arguments[0] if isinstance(subject, (list, tuple)) and arguments else subject
        separator_length = len(separator) if isinstance(separator, str) else 0
        count = len(entries) if isinstance(entries, (list, tuple, str, dict)) else 0
        budget.spend(structure_weight(entries) + count * separator_length)
    elif name in ("format", "format_map") and isinstance(subject, str):
        check_format(budget, subject, *arguments)


def _num_parts(name: str, text: str, arguments: tuple[Any, ...]) -> int:
    """At most how many parts a text falls into."""
    if name in ("split", "rsplit") and arguments and isinstance(arguments[0], str) and arguments[0]:
        return text.count(arguments[0]) + 1
    if name == "splitlines":
        return sum(map(text.count, _LINE_ENDS)) + 1
    return len(text) // 2 + 1 if name in ("split", "rsplit") else len(text)


def _lines_or_entries(subject: Any) -> int:
    if isinstance(subject, str):
        return 1 + subject.count("\n") + subject.count("\t")
    return structure_weight(subject) + 1
