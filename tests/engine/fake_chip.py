"""A chip whose logits are a hash of the tokens that its pages hold, and an engine around it.

Any mistake in pages, slots, chunks, places or rows changes what comes out. `expected_output` says what must, without an
engine: the same logits and sampler, one token after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from ridgeline.engine.client import EngineModel
from ridgeline.engine.engine import Engine
from ridgeline.ops.chip import HostStep
from ridgeline.ops.step import PAGE_SLOTS, StepLimits
from ridgeline.request import Request, SamplingParams
from ridgeline.sampling.sampler import Sampler
from ridgeline.sampling.state import SampleState
from ridgeline.schedule.sequence import pages_for

VOCABULARY = 61
END_OF_SEQUENCE = 60


def logits_of(token_ids: Sequence[int]) -> np.ndarray:
    """Random-looking logits after these tokens, spread like a model's."""
    digest = blake2b(np.asarray(token_ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    stream = np.frombuffer(blake2b(digest, digest_size=61).digest(), dtype=np.uint8)
    return stream.astype(np.float32) / np.float32(37.0)


class FakeStep:
    """Stores tokens in pages and hashes them. `fail_steps` and `nan_after` are faults to inject."""

    def __init__(self, num_pages: int, limits: StepLimits) -> None:
        self.limits = limits
        self.slots = np.full(num_pages * PAGE_SLOTS, -1, dtype=np.int64)
        self.open_pages: dict[int, tuple[dict[int, int], dict[int, int]]] = {}
        self.fail_steps: set[int] = set()
        self.nan_tokens: set[int] = set()
        self.num_steps = 0
        self.num_tokens = 0
        self.shapes: list[list[int]] = []
        self.logits = np.zeros((limits.max_logit_rows, VOCABULARY), dtype=np.float32)

    def run(self, step: HostStep) -> np.ndarray:
        self.num_steps += 1
        if self.num_steps in self.fail_steps:
            raise RuntimeError(f"injected at step {self.num_steps}")
        self._check(step)
        self.num_tokens += len(step.token_ids_T)
        self.shapes.append(np.diff(step.query_starts_N1).tolist())
        self.slots[step.slots_T] = step.token_ids_T
        self.logits.fill(np.nan)
        for row, token in enumerate(step.logit_rows_B.tolist()):
            sequence = int(step.sequences_T[token])
            position = int(step.positions_T[token])
            pages = step.page_table_NP[sequence, : position // PAGE_SLOTS + 1].astype(np.int64)
            seen = (pages[:, None] * PAGE_SLOTS + np.arange(PAGE_SLOTS)).ravel()[: position + 1]
            tokens = self.slots[seen]
            assert (tokens >= 0).all(), "a slot was read that nobody wrote"
            if self.nan_tokens & set(tokens.tolist()):
                continue
            self.logits[row] = logits_of(tokens)
        return self.logits[: len(step.logit_rows_B)]

    def seconds(self) -> float:
        return 1e-3

    def _check(self, step: HostStep) -> None:
        starts, contexts, table = step.query_starts_N1, step.context_lengths_N, step.page_table_NP
        limits = self.limits
        num_tokens, num_sequences = len(step.token_ids_T), len(contexts)
        assert 0 < num_tokens <= limits.max_tokens and num_sequences <= limits.max_sequences
        assert len(step.logit_rows_B) <= limits.max_logit_rows and table.shape[1] <= limits.max_pages_per_sequence
        assert starts[0] == 0 and starts[-1] == num_tokens and table.shape[0] == num_sequences
        assert (np.diff(step.logit_rows_B) > 0).all() and len(set(step.slots_T.tolist())) == num_tokens
        places = step.places_N.tolist()
        assert len(set(places)) == num_sequences and all(0 <= place < limits.max_sequences for place in places)
        for array in (step.token_ids_T, step.positions_T, step.slots_T, step.sequences_T, starts, contexts, table):
            assert array.dtype == np.int32 and array.flags.c_contiguous
        for n in range(num_sequences):
            assert (table[n, pages_for(int(contexts[n])) :] == 0).all()
            for t in range(starts[n], starts[n + 1]):
                position = contexts[n] - (starts[n + 1] - t)
                assert step.sequences_T[t] == n and step.positions_T[t] == position
                assert step.slots_T[t] == table[n, position // PAGE_SLOTS] * PAGE_SLOTS + position % PAGE_SLOTS
                # The two newest pages of a sequence must be found at its place, as chips with int8 keys need them: a
                # draft that crosses the end of a page may be followed by other tokens for the page before.
                page = self.open_pages.setdefault(places[n], ({}, {}))[position // PAGE_SLOTS % 2]
                if position % PAGE_SLOTS == 0:
                    page.clear()
                else:
                    assert page.get(position - 1) is not None, "the open page is not at the sequence's place"
                page[position] = int(step.token_ids_T[t])


class LetterStream:
    """Token i is a letter; stop strings are held back by the plainest means."""

    def __init__(self, sampling: SamplingParams) -> None:
        self.sampling = sampling
        self.stopped_by: str | None = None
        self.held = ""

    def push(self, token_id: int) -> str:
        assert self.stopped_by is None
        self.held += chr(ord("a") + token_id % 26)
        hits = [(self.held.find(stop), stop) for stop in self.sampling.stop if stop in self.held]
        if hits:
            where, self.stopped_by = min(hits)
            end = where + (len(self.stopped_by) if self.sampling.include_stop_str_in_output else 0)
            text, self.held = self.held[:end], ""
            return text
        keep = max(
            (n for stop in self.sampling.stop for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0
        )
        text = self.held[: len(self.held) - keep]
        self.held = self.held[len(text) :]
        return text

    def finish(self) -> str:
        text, self.held = self.held, ""
        return text


class LetterText:
    end_of_sequence_ids = frozenset({END_OF_SEQUENCE})

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") if letter != " " else 27 for letter in text]

    def sample_text(self, sampling: SamplingParams) -> LetterStream:
        return LetterStream(sampling)


class Ticks:
    """A clock that moves by a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def fake_engine(
    *,
    num_pages: int = 64,
    context_tokens: int = 1024,
    max_tokens: int = 256,
    max_sequences: int = 8,
    max_logit_rows: int = 16,
    **options: object,
) -> tuple[Engine, FakeStep]:
    context_tokens = min(context_tokens, num_pages * PAGE_SLOTS)
    limits = StepLimits(
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        max_logit_rows=max_logit_rows,
        max_pages_per_sequence=pages_for(context_tokens),
    )
    step = FakeStep(num_pages, limits)
    model = EngineModel(
        name="fake",
        family="fake",
        format_name="F32",
        vocabulary_size=VOCABULARY,
        context_tokens=context_tokens,
        num_pages=num_pages,
        page_slots=PAGE_SLOTS,
        weight_bytes=0,
        kv_format="f32",
        chip="fake",
    )
    options.setdefault("clock", Ticks())
    return Engine(model=model, compiled=step, limits=limits, text=LetterText(), **options), step


def request(request_id: str, prompt: Sequence[int], *, priority: int = 0, salt: str = "", **options: object) -> Request:
    options.setdefault("temperature", 0.0)
    options.setdefault("ignore_eos", True)
    sampling = SamplingParams(**options)
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        seed=sampling.seed or 0,
        priority=priority,
        cache_salt=salt,
    )


def expected_tokens(wanted: Request, index: int = 0, context_tokens: int = 1024) -> list[int]:
    """What sample `index` must be, made one token after another."""
    sampling = wanted.sampling
    token_ids = list(wanted.prompt_token_ids)
    text = LetterText()
    state = SampleState.of(
        sampling,
        seed=(wanted.seed + index) % 2**64,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        end_of_sequence_ids=text.end_of_sequence_ids,
        bad_word_ids=tuple(tuple(text.encode(p + word)) for word in sampling.bad_words for p in ("", " ")),
    )
    stream = text.sample_text(sampling)
    sampler = Sampler(VOCABULARY)
    output: list[int] = []
    while len(output) < (sampling.max_tokens or context_tokens) and len(token_ids) < context_tokens:
        token_id = sampler.sample(logits_of(token_ids), state)
        token_ids.append(token_id)
        output.append(token_id)
        state.note(token_id)
        if token_id in sampling.stop_token_ids or (token_id == END_OF_SEQUENCE and not sampling.ignore_eos):
            break
        stream.push(token_id)
        if stream.stopped_by is not None:
            break
    return output


class Collector:
    """Gathers chunks by sample and asserts that each ends exactly once."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.texts: dict[tuple[str, int], str] = {}
        self.ends: dict[tuple[str, int], object] = {}

    def take(self, chunks: Sequence[object]) -> None:
        for chunk in chunks:
            key = (chunk.request_id, chunk.sample_index)
            assert key not in self.ends, f"{key} speaks after its end"
            self.tokens.setdefault(key, []).extend(chunk.token_ids)
            self.texts[key] = self.texts.get(key, "") + chunk.text
            assert (chunk.timing is not None) == (chunk.finish_reason is not None)
            if chunk.finish_reason is not None:
                self.ends[key] = chunk


def run_all(engine: Engine, requests: Sequence[Request], *, max_steps: int = 100_000) -> Collector:
    collector = Collector()
    for each in requests:
        engine.add(each)
    while engine.has_work():
        assert max_steps > 0, "the engine does not come to an end"
        max_steps -= 1
        collector.take(engine.step())
        engine.check_integrity()
    return collector
