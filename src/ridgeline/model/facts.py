"""What a model file says of its model, read with suspicion: every figure has a type and a range.

Knows: GGUF keys (`llama.block_count`) and config.json keys (`num_hidden_layers`) alike, as a mapping with a prefix.
Does not know: which figures a family needs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ridgeline.errors import ModelFileError

MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_HEAD_WIDTH = 8192
MAX_WIDTH = 1 << 20
MAX_VOCABULARY = 1 << 24
MAX_CONTEXT_TOKENS = 1 << 30
"""Ten times and more what any published model has; a figure beyond is a damaged file or an attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Named figures of one file. A key that is absent, or None as JSON's null, has the default or is an error."""

    file: str
    values: Mapping[str, Any]
    prefix: str = ""
    """Put before every key: `llama.` of a GGUF file, `text_config.` of a nested config."""

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise the ModelFileError that says what is wrong with a key."""
        raise ModelFileError(f"{self.file}: {self.prefix}{key}: {problem}")

    def find(self, key: str) -> Any:
        """The value, or None."""
        return self.values.get(self.prefix + key)

    def integer(self, key: str, maximum: int, *, default: int | None = None, minimum: int = 1) -> int:
        """A whole number within minimum .. maximum."""
        value = self.find(key)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"is {str(value)[:60]}, but must be one whole number")
        if not minimum <= value <= maximum:
            self.fail(key, f"is {value}, but must be {minimum} to {maximum}")
        return value

    def number(self, key: str, *, default: float | None = None, positive: bool = True) -> float:
        """A finite number, above zero unless told otherwise."""
        value = self.find(key)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(key, f"is {str(value)[:60]}, but must be a number")
        # A whole number may be longer than a float can say; it is as good as infinite then.
        number = math.inf if abs(value) > sys.float_info.max else float(value)
        if not math.isfinite(number) or (positive and number <= 0):
            self.fail(key, f"is {number:g}, but must be finite{' and above 0' if positive else ''}")
        return number

    def optional_number(self, key: str) -> float | None:
        """A finite number above zero, or None where the key is absent, null or 0."""
        value = self.find(key)
        return None if value is None or value == 0 else self.number(key)

    def optional_integer(self, key: str, maximum: int) -> int | None:
        """A whole number from 1 on, or None where the key is absent, null or 0."""
        value = self.find(key)
        return None if value is None or value == 0 else self.integer(key, maximum)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.find(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, f"is {str(value)[:60]}, but must be true or false")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        """A string."""
        value = self.find(key)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if not isinstance(value, str):
            self.fail(key, f"is {str(value)[:60]}, but must be a text")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of exactly `count` finite numbers above zero."""
        value = self.find(key)
        if not isinstance(value, list) or len(value) != count:
            found = f"a list of {len(value)}" if isinstance(value, list) else str(value)[:60]
            self.fail(key, f"is {found}, but must be a list of {count} numbers")
        entries = Facts(file=self.file, prefix=f"{self.prefix}{key}.", values={})
        items = {f"{entries.prefix}{index}": item for index, item in enumerate(value)}
        entries = replace(entries, values=items)
        return tuple(entries.number(str(index)) for index in range(count))

    def choice(self, key: str, allowed: Mapping[str, Any], *, default: str | None = None) -> Any:
        """What `allowed` gives for the text at this key."""
        value = self.text(key, default=default)
        if value not in allowed:
            self.fail(key, f"is {value[:60]!r}, which is not supported; supported: {', '.join(sorted(allowed))}")
        return allowed[value]

    def nested(self, key: str) -> Facts | None:
        """The figures of an object inside, or None where it is absent or null."""
        value = self.find(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, f"is {str(value)[:60]}, but must be an object")
        prefix = f"{self.prefix}{key}."
        return Facts(file=self.file, prefix=prefix, values={prefix + name: item for name, item in value.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """All that a family reads to make a `DecoderSpec`."""

    facts: Facts
    shapes: Mapping[str, tuple[int, ...]]
    """The file's tensors by the names in the file."""
    vector: Callable[[str], tuple[float, ...]]
    """The values of a small one-dimensional tensor (rope factors)."""
    context_tokens: int | None = None
    """The longest context that will be used, where a person set one; families with factors for long and short
    contexts (Phi-3) choose by it."""

    def has(self, name: str) -> bool:
        """Whether the file has this tensor."""
        return name in self.shapes
