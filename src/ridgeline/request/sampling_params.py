"""How a request wants its tokens chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ridgeline.errors import RequestError

MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARACTERS = 1024
MAX_LIST_TOKENS = 8192
MAX_SAMPLES = 64
MAX_LOGPROBS = 64
MAX_SEED = 2**64 - 1
# Far above any context; a bound so that no arithmetic downstream can overflow.
MAX_TOKENS_BOUND = 1 << 24


def _refuse(field_name: str, given: object, allowed: str) -> RequestError:
    shown = repr(given)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return RequestError(f"{field_name} is {shown}; it must be {allowed}", field=field_name)


def _number(name: str, value: object, low: float, high: float, allowed: str, *, low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _refuse(name, value, allowed)
    if value < low or value > high or (low_open and value == low):
        raise _refuse(name, value, allowed)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refuse(name, value, f"a whole number between {low} and {high}")


def _as_tuple(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise _refuse(name, value, "a list")
    return tuple(value)


def _token_ids(name: str, value: tuple[int, ...]) -> None:
    if len(value) > MAX_LIST_TOKENS:
        raise _refuse(name, f"{len(value)} tokens", f"at most {MAX_LIST_TOKENS} tokens")
    for token in value:
        _integer(name, token, 0, 2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop; the names are those that vLLM's and OpenAI's users know.

    Every field is checked when the value is made, so nothing below this room checks again. Token ids are checked
    against the vocabulary when the request meets its model (`Request` admission), since only then is it known.

    Raises:
        RequestError: a field is out of its range; the message names the field, the value and the range.
    """

    n: int = 1
    """How many samples of the same prompt; sample i draws with the seed `seed + i`."""
    temperature: float = 1.0
    """0 is greedy; otherwise logits are divided by it."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 (or -1) keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Above 1 makes every token of prompt and output less likely to come again (divides positive logits)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """token id -> added to its logit, in [-100, 100]."""
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    """Strings whose last token may not be produced after the tokens before it."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens cannot be produced before this many."""
    max_tokens: int | None = 256
    """None: up to the end of the context."""
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these; it is cut from the text unless `include_stop_str_in_output`."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    """None: a fresh one is drawn when the request is made, and told in the output."""
    logprobs: int | None = None
    """None: none. k: the chosen token's and the k likeliest tokens' log-probabilities (before temperature)."""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids", "bad_words"):
            value = getattr(self, name)
            if isinstance(value, str):
                value = (value,)
            object.__setattr__(self, name, _as_tuple(name, () if value is None else value))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", _as_tuple("allowed_token_ids", self.allowed_token_ids))
        self._check_numbers()
        self._check_lists()
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)

    def _check_numbers(self) -> None:
        _integer("n", self.n, 1, MAX_SAMPLES)
        _number("temperature", self.temperature, 0.0, 100.0, "a number between 0 and 100")
        _integer("top_k", self.top_k, -1, 2**31 - 1)
        _number("top_p", self.top_p, 0.0, 1.0, "a number above 0 and at most 1", low_open=True)
        _number("min_p", self.min_p, 0.0, 1.0, "a number between 0 and 1")
        _number(
            "repetition_penalty", self.repetition_penalty, 0.0, 100.0, "a number above 0, at most 100", low_open=True
        )
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0, "a number between -2 and 2")
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "a number between -2 and 2")
        _integer("min_tokens", self.min_tokens, 0, MAX_TOKENS_BOUND)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, MAX_TOKENS_BOUND)
            if self.min_tokens > self.max_tokens:
                raise _refuse("min_tokens", self.min_tokens, f"at most max_tokens ({self.max_tokens})")
        if self.seed is not None:
            _integer("seed", self.seed, 0, MAX_SEED)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0, MAX_LOGPROBS)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise _refuse(name, getattr(self, name), "true or false")

    def _check_lists(self) -> None:
        for name in ("stop", "bad_words"):
            strings = getattr(self, name)
            if len(strings) > MAX_STOP_STRINGS:
                raise _refuse(name, f"{len(strings)} strings", f"at most {MAX_STOP_STRINGS} strings")
            for string in strings:
                if not isinstance(string, str) or not 1 <= len(string) <= MAX_STOP_STRING_CHARACTERS:
                    raise _refuse(name, string, f"strings of 1 to {MAX_STOP_STRING_CHARACTERS} characters")
        _token_ids("stop_token_ids", self.stop_token_ids)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise _refuse("allowed_token_ids", (), "null or at least one token id")
            _token_ids("allowed_token_ids", self.allowed_token_ids)
        if not isinstance(self.logit_bias, Mapping) or len(self.logit_bias) > MAX_LIST_TOKENS:
            raise _refuse("logit_bias", self.logit_bias, f"a map of at most {MAX_LIST_TOKENS} token ids to numbers")
        for token, bias in self.logit_bias.items():
            _integer("logit_bias", token, 0, 2**31 - 1)
            _number("logit_bias", bias, -100.0, 100.0, "numbers between -100 and 100")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0
