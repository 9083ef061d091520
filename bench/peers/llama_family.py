"""What llama.cpp and ik_llama.cpp have in common: a C interface with batches of (token, position, sequence).

As in their own benchmark programs, no token is chosen from the logits: the answers are random tokens, too, so that the
time is the model's alone. All sequences are read, then all are written in step, so one run tells both times.
"""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

BATCH_TOKENS = 2048
MAX_TOKEN = 100_000

Entry = tuple[int, int, int, bool]
"""Token, position, sequence, whether its logits are wanted."""


class LlamaAdapter:
    """Holds the model and one context, which is made anew when it is too small.

    Args:
        api: the Python binding's module of C functions.
        model_fields, context_fields: what is set besides sizes, by the names of the C structures.
        forget: empties the keys and values of a context.
    """

    def __init__(
        self,
        api: ModuleType,
        *,
        model_fields: dict[str, Any],
        context_fields: dict[str, Any],
        forget: Callable[[Any], None],
    ) -> None:
        self._api = api
        self._model_fields = model_fields
        self._context_fields = context_fields
        self._forget = forget
        self._context: Any = None
        self._capacity = (0, 0)

    def load(self, *, model: str, num_threads: int, context_tokens: int, num_sequences: int) -> None:
        api = self._api
        api.llama_backend_init()
        parameters = api.llama_model_default_params()
        _set(parameters, self._model_fields)
        self._num_threads = num_threads
        self._model = api.llama_model_load_from_file(model.encode(), parameters)
        if not self._model:
            raise ValueError(f"{model} could not be opened")
        self._num_words = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._batch = api.llama_batch_init(BATCH_TOKENS, 0, 1)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float | None]:
        num_prompts, longest = len(prompts), max(map(len, prompts))
        self._prepare(num_prompts, longest + new_tokens)
        reading = [
            (token, position, number, position == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        draw = random.Random(0).randrange
        begin = time.perf_counter()
        self._run(reading)
        first_seconds = time.perf_counter() - begin
        for step in range(new_tokens - 1):
            self._run([(draw(MAX_TOKEN), longest + step, number, True) for number in range(num_prompts)])
        return time.perf_counter() - begin, first_seconds

    def loss(self, windows: list[list[int]]) -> tuple[float, int]:
        nats, tokens = 0.0, 0
        for window in windows:
            self._prepare(1, len(window))
            half = len(window) // 2
            self._run([(token, at, 0, at >= half - 1) for at, token in enumerate(window)])
            for position in range(half - 1, len(window) - 1):
                pointer = self._api.llama_get_logits_ith(self._context, position)
                logits_V = np.ctypeslib.as_array(pointer, (self._num_words,)).astype(np.float64)
                largest = logits_V.max()
                nats += largest + np.log(np.exp(logits_V - largest).sum()) - logits_V[window[position + 1]]
                tokens += 1
        return float(nats), tokens

    def _prepare(self, num_sequences: int, tokens_each: int) -> None:
        """An empty context with room for the sequences, in which something has run."""
        if num_sequences > self._capacity[0] or tokens_each > self._capacity[1]:
            if self._context:
                self._api.llama_free(self._context)
            parameters = self._api.llama_context_default_params()
            each = -(-tokens_each // 256) * 256
            sizes = {"n_ctx": num_sequences * each, "n_batch": BATCH_TOKENS, "n_ubatch": 512}
            threads = {"n_threads": self._num_threads, "n_threads_batch": self._num_threads}
            _set(parameters, {**sizes, **threads, "n_seq_max": num_sequences, **self._context_fields})
            self._context = self._api.llama_init_from_model(self._model, parameters)
            if not self._context:
                raise ValueError("no context could be made")
            self._capacity = (num_sequences, each)
            self._run([(at, at, 0, at == each - 1) for at in range(min(each, 512))])
        self._forget(self._context)

    def _run(self, entries: Sequence[Entry]) -> None:
        batch = self._batch
        for start in range(0, len(entries), BATCH_TOKENS):
            part = entries[start : start + BATCH_TOKENS]
            batch.n_tokens = len(part)
            for index, (token, position, sequence, wants_logits) in enumerate(part):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = wants_logits
            if self._api.llama_decode(self._context, batch) != 0:
                raise ValueError("llama_decode failed")


def _set(parameters: ctypes.Structure, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if not hasattr(parameters, name):
            raise ValueError(f"this version has no {name}")
        setattr(parameters, name, value)
