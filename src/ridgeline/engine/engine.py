"""The engine: requests in, chunks of tokens out, one step at a time.

A pure synchronous core. It has no thread and no event loop of its own and reads no clock but the one it is given, so
the same history of calls always gives the same answers; those who hold it (`local`, `worker`) add the waiting.

A fault that belongs to one request ends that request, never the loop: a row of logits that is not finite, options that
leave no token, a text that cannot be made. A step that raises ends the requests that were in it; only several in a row
mean that the chip is lost.

Knows: scheduler, runner, chooser, speculation. Does not know: HTTP, which chip it holds, model families.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from itertools import count

import msgspec

from ridgeline.cache.prefix import PrefixIndex
from ridgeline.engine import admission
from ridgeline.engine.choose import Chooser, Chosen
from ridgeline.engine.client import EngineModel, EngineStatistics
from ridgeline.engine.draft_model import DraftModel
from ridgeline.engine.predict import StepPredictor
from ridgeline.engine.runner import Runner, shape_of
from ridgeline.engine.sample import Sample
from ridgeline.engine.speculation import Drafting, Speculation
from ridgeline.engine.text import EngineText
from ridgeline.engine.timing import SampleStopwatch
from ridgeline.errors import EngineDeadError, RequestError, RidgelineError
from ridgeline.ops.chip import CompiledStep
from ridgeline.ops.step import StepLimits
from ridgeline.request.output import FinishReason, RequestTiming, TokenChunk
from ridgeline.request.request import Request
from ridgeline.request.sampling_params import MAX_SEED
from ridgeline.sampling.sampler import SamplingError
from ridgeline.sampling.state import SampleState
from ridgeline.schedule.batch import Batch, BatchEntry
from ridgeline.schedule.scheduler import Scheduler
from ridgeline.schedule.sequence import Sequence

MAX_FAILED_STEPS = 3
"""So many steps that raise, one after another, mean that the chip is lost and not that requests are at fault."""

log = logging.getLogger(__name__)


class Engine:
    """Runs requests on a compiled step.

    Holds: scheduler (with all pages), runner, chooser, speculation, the samples that are not finished, counters.
    Changed by: its own methods, to be called from one thread.

    Args:
        model: what it is told to be; `num_pages` and `context_tokens` bound what it lets in.
        compiled: the decoder, ready to run within `limits`.
        limits: the largest step.
        text: tokens as text.
        predictor: predicted step times; None: steps are as large as the limits allow.
        goal_seconds_per_token: how long decoding samples may wait for a step that also reads prompts.
        drafting: who guesses how samples go on; None: nobody, each step brings one token.
        draft_model: guesses too, where `drafting` does.
        clock: seconds; a virtual one for a simulated chip.
        on_close: gives back what the engine was opened with.
    """

    def __init__(
        self,
        *,
        model: EngineModel,
        compiled: CompiledStep,
        limits: StepLimits,
        text: EngineText,
        predictor: StepPredictor | None = None,
        goal_seconds_per_token: float | None = None,
        drafting: Drafting | None = None,
        draft_model: DraftModel | None = None,
        max_queued_requests: int = 4096,
        max_queued_tokens: int = 1 << 22,
        clock: Callable[[], float] = time.perf_counter,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._runner = Runner(compiled, limits)
        self._text = text
        self._predictor = predictor
        self._clock = clock
        self._on_close = on_close
        self._index = PrefixIndex(model.num_pages)
        self._samples: dict[int, Sample] = {}
        predict = None if predictor is None else predictor.seconds
        self._speculation = (
            None
            if drafting is None
            else Speculation(
                self._samples,
                predict=predict,
                goal_seconds=goal_seconds_per_token,
                drafting=drafting,
                draft_model=draft_model,
            )
        )
        self._scheduler = Scheduler(
            self._index,
            limits,
            predict=predict,
            goal_seconds=goal_seconds_per_token,
            propose=None if self._speculation is None else self._speculation.propose,
            max_queued_sequences=max_queued_requests,
            max_queued_tokens=max_queued_tokens,
        )
        self._chooser = Chooser(model.vocabulary_size)
        self._requests: dict[str, dict[int, Sample]] = {}
        self._sequence_numbers = count()
        self._num_failed_steps = 0
        self._is_closed = False
        self._last_step_ended = clock()
        self._counts: Counter[str] = Counter()
        """Those of `EngineStatistics`, by name."""
        self._is_dead = False

    @property
    def model(self) -> EngineModel:
        """What it holds."""
        return self._model

    def check(self, request: Request) -> None:
        """Raise RequestError if the request is impossible here, as `add` would."""
        admission.check_request(request, self._model)

    def add(self, request: Request) -> None:
        """Take in a request.

        Raises RequestError if it is impossible here, OverloadedError if the queue is full, EngineDeadError if there is
        no engine any more. Nothing changes when it raises.
        """
        if self._is_dead:
            raise EngineDeadError("the engine has ended")
        if request.request_id in self._requests:
            raise RequestError(f"the request id {request.request_id!r} is in use", field="request_id")
        self.check(request)
        bad_words = admission.bad_word_ids(request, self._text, self._model)
        now = self._clock()
        samples = [self._make_sample(request, index, bad_words, now) for index in range(request.sampling.n)]
        self._scheduler.add([sample.sequence for sample in samples])
        self._requests[request.request_id] = {sample.index: sample for sample in samples}
        for sample in samples:
            self._samples[sample.sequence.sequence_id] = sample

    def cancel(self, request_id: str) -> list[TokenChunk]:
        """End a request: its pages are free at once. The last chunks of its samples; none for an unknown id."""
        chunks = self._end_request(request_id, FinishReason.CANCELLED)
        self._counts["num_cancelled"] += bool(chunks)
        return chunks

    def is_running(self, request_id: str) -> bool:
        """Whether the request still owes a chunk."""
        return request_id in self._requests

    def has_work(self) -> bool:
        """Whether `step` would do something."""
        return bool(self._samples)

    def step(self) -> list[TokenChunk]:
        """Run one step and return what it made; an empty list when there is nothing to run.

        Raises EngineDeadError when the chip is lost, or the engine was closed: nothing will be answered any more.
        """
        if self._is_dead:
            raise EngineDeadError("the engine has ended")
        batch = self._scheduler.next_batch()
        if batch is None:
            return []
        self._counts["num_steps"] += 1
        started = self._clock()
        try:
            records = self._chooser.records(batch, self._samples) if self._runner.can_choose else (b"", b"")
            logits_BV, tokens_B = self._runner.run(batch, *records)
        except Exception as error:
            return self._fail_step(batch, error)
        self._num_failed_steps = 0
        chunks: list[TokenChunk] = []
        chosen: dict[int, Chosen] = {}
        row = 0
        for entry in batch.entries:
            rows = slice(row, row + entry.num_logit_rows)
            row += entry.num_logit_rows
            sample = self._samples.get(entry.sequence_id)
            if sample is None:
                continue  # another sample of the same request has just failed
            brought = chosen[entry.sequence_id] = Chosen()
            try:
                self._chooser.choose(sample, entry, logits_BV[rows], tokens_B[rows], brought)
            except Exception as error:
                chunks += brought.chunks
                chunks += self._fail_request(sample, error)
        ended = self._clock()
        self._scheduler.accept(batch, {number: each.token_ids for number, each in chosen.items()}, ended - started)
        self._last_step_ended = ended
        if self._predictor is not None:
            self._predictor.observe(shape_of(batch), self._runner.seconds())
        for entry in batch.entries:
            sample = self._samples.get(entry.sequence_id)
            if sample is not None:
                chunks += self._advance(sample, entry, chosen[entry.sequence_id], started, ended)
        return chunks

    def statistics(self) -> EngineStatistics:
        """How it is, now and so far."""
        scheduler, predictor = self._scheduler, self._predictor
        return EngineStatistics(
            state="dead" if self._is_dead else "ready",
            num_pages=self._model.num_pages,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_free_pages=scheduler.num_available_pages,
            num_preemptions=scheduler.num_preemptions,
            seconds_since_last_step=self._clock() - self._last_step_ended if self._samples else 0.0,
            predicted_step_seconds=0.0 if predictor is None else predictor.predicted_seconds,
            measured_step_seconds=0.0 if predictor is None else predictor.measured_seconds,
            roofline_step_seconds=0.0 if predictor is None else predictor.roofline_seconds,
            roofline_share=0.0 if predictor is None else predictor.roofline_share,
            **self._counts,
        )

    def forget_prefixes(self) -> None:
        """Forget what requests that have ended left: cached prefixes that nobody holds, and texts to copy from."""
        self._index.clear()
        if self._speculation is not None:
            self._speculation.forget()

    def check_integrity(self) -> None:
        """Assert that pages, places, sequences and samples add up."""
        self._scheduler.check_integrity()
        assert sum(len(samples) for samples in self._requests.values()) == len(self._samples)
        assert self._scheduler.num_running + self._scheduler.num_waiting == len(self._samples)

    def close(self) -> None:
        """End everything and give back the chip; harmless the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        self._is_dead = True
        for request_id in list(self._requests):
            self._end_request(request_id, FinishReason.CANCELLED)
        self._on_close()

    def _make_sample(self, request: Request, index: int, bad_words: tuple[tuple[int, ...], ...], now: float) -> Sample:
        sampling = request.sampling
        number = next(self._sequence_numbers)
        # Only the first sample looks at the prompt's logits; the others share its pages.
        wants_prompt = sampling.prompt_logprobs is not None and index == 0
        sequence = Sequence(
            sequence_id=number,
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
            salt=request.cache_salt,
            priority=request.priority,
            arrival=number,
            rows_from=0 if wants_prompt else None,
        )
        ends = self._text.end_of_sequence_ids
        token_ids = list(request.prompt_token_ids)
        return Sample(
            request=request,
            index=index,
            sequence=sequence,
            token_ids=token_ids,
            state=SampleState.of(
                sampling,
                seed=(request.seed + index) & MAX_SEED,
                token_ids=token_ids,
                num_prompt_tokens=sequence.num_prompt_tokens,
                end_of_sequence_ids=ends,
                bad_word_ids=bad_words,
            ),
            text=self._text.sample_text(sampling),
            stopwatch=SampleStopwatch(now),
            max_output_tokens=admission.max_output_tokens(request, self._model),
            end_of_sequence_ids=ends,
            prompt_logprobs=[None] if wants_prompt else None,
        )

    def _advance(
        self, sample: Sample, entry: BatchEntry, chosen: Chosen, started: float, ended: float
    ) -> list[TokenChunk]:
        """Account for what the step brought the sample; the chunks to be told."""
        num_tokens = len(chosen.token_ids)
        is_first = sample.num_output_tokens == num_tokens
        sample.stopwatch.note_step(
            self._counts["num_steps"],
            started,
            ended,
            is_prefill=is_first or entry.end - entry.num_drafted - entry.start > 1,
            has_token=num_tokens > 0,
        )
        sample.num_drafted_tokens += entry.num_drafted
        self._counts["num_drafted_tokens"] += entry.num_drafted
        if not chosen.chunks:
            return []
        if is_first:
            self._counts["num_prompt_tokens"] += sample.sequence.num_prompt_tokens
            self._counts["num_cached_tokens"] += sample.sequence.num_cached_tokens
        self._counts["num_generated_tokens"] += num_tokens
        sample.num_accepted_tokens += num_tokens - 1
        self._counts["num_accepted_tokens"] += num_tokens - 1
        *before, last = chosen.chunks
        if last.finish_reason is None:
            return chosen.chunks
        samples = self._requests[sample.request.request_id]
        self._remove(sample)
        self._counts["num_finished"] += not samples
        return [*before, msgspec.structs.replace(last, timing=self._timing(sample, ended))]

    def _fail_step(self, batch: Batch, error: Exception) -> list[TokenChunk]:
        self._num_failed_steps += 1
        log.error("a step of %d tokens failed", batch.num_tokens, exc_info=error)
        if self._num_failed_steps >= MAX_FAILED_STEPS:
            self._is_dead = True
            raise EngineDeadError(f"{MAX_FAILED_STEPS} steps in a row failed, the last with: {error}") from error
        chunks: list[TokenChunk] = []
        for entry in batch.entries:
            sample = self._samples.get(entry.sequence_id)
            if sample is not None:
                chunks += self._end_request(
                    sample.request.request_id, FinishReason.ERROR, "the chip failed while it ran this request"
                )
                self._counts["num_failed"] += 1
        return chunks

    def _fail_request(self, sample: Sample, error: Exception) -> list[TokenChunk]:
        """End a request for a fault of its own."""
        self._counts["num_failed"] += 1
        is_ours = not isinstance(error, RidgelineError)
        if is_ours:
            log.error("request %s failed", sample.request.request_id, exc_info=error)
        message = f"the engine failed on this request ({type(error).__name__})" if is_ours else str(error)
        is_tainted = isinstance(error, SamplingError) and error.is_tainted
        return self._end_request(sample.request.request_id, FinishReason.ERROR, message, is_tainted=is_tainted)

    def _end_request(
        self, request_id: str, reason: FinishReason, error: str | None = None, *, is_tainted: bool = False
    ) -> list[TokenChunk]:
        """End all samples of a request that still run, from outside."""
        now = self._clock()
        chunks: list[TokenChunk] = []
        for sample in list(self._requests.get(request_id, {}).values()):
            self._remove(sample, is_tainted=is_tainted)
            chunks.append(sample.last_words(reason, error, self._timing(sample, now)))
        return chunks

    def _remove(self, sample: Sample, *, is_tainted: bool = False) -> None:
        del self._samples[sample.sequence.sequence_id]
        if self._speculation is not None:
            self._speculation.note_end(sample)
        samples = self._requests[sample.request.request_id]
        del samples[sample.index]
        if not samples:
            del self._requests[sample.request.request_id]
        self._scheduler.remove(sample.sequence.sequence_id, is_tainted=is_tainted)

    def _timing(self, sample: Sample, now: float) -> RequestTiming:
        return sample.stopwatch.timing(
            now,
            self._counts["num_steps"],
            num_cached_tokens=sample.sequence.num_cached_tokens,
            num_preemptions=sample.sequence.num_preemptions,
            num_drafted_tokens=sample.num_drafted_tokens,
            num_accepted_tokens=sample.num_accepted_tokens,
        )
