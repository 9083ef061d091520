"""`LLM`: the engine in a script or a notebook, in the shape that vLLM's users know.

    from ridgeline import LLM, SamplingParams
    with LLM("model.gguf") as llm:
        for answer in llm.generate(["Once upon a time"], SamplingParams(max_tokens=32)):
            print(answer.outputs[0].text)

Knows: prompts as text, tokens or messages. Does not know: how any of it is run.
"""

from __future__ import annotations

import difflib
import secrets
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from ridgeline.engine.answer import Answer
from ridgeline.engine.client import EngineModel, EngineStatistics
from ridgeline.engine.open import open_engine
from ridgeline.engine.settings import EngineSettings
from ridgeline.engine.shared import Inbox, SharedEngine
from ridgeline.errors import OverloadedError, RequestError, RidgelineError, UserError
from ridgeline.ops.chip import KvFormat
from ridgeline.request.output import RequestOutput, TokenChunk
from ridgeline.request.request import Request
from ridgeline.request.sampling_params import SamplingParams
from ridgeline.text.chat_prompt import chat_tokens
from ridgeline.text.open import open_text
from ridgeline.weights.cache_folder import default_cache_folder
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.pull import resolve_model

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or {"prompt": text} or {"prompt_token_ids": ids}."""
Message = Mapping[str, Any]
"""{"role": ..., "content": ...}."""

WINDOW = 2048
"""Requests of one call that are under way or wait to be handed out in order: enough to fill any step, and bounded."""

OPTIONS = (
    "chip", "num_threads", "context_tokens", "memory_bytes", "kv_format", "goal_seconds_per_token", "cache_folder",
    "draft_model", "speculation",
)  # fmt: skip
_OTHER_NAMES = {
    "max_model_len": "context_tokens",
    "n_ctx": "context_tokens",
    "max_seq_len": "context_tokens",
    "kv_cache_dtype": "kv_format",
    "gpu_memory_utilization": "memory_bytes",
    "kv_cache_memory_bytes": "memory_bytes",
    "n_threads": "num_threads",
    "device": "chip",
    "download_dir": "cache_folder",
    "speculative_model": "draft_model",
    "speculative_config": "draft_model",
}
"""What others call our options."""


class LLM:
    """A model, opened, in this process.

    Holds: the engine, tokenizer and chat template. Several threads may call it, and streams may be
    read in turns: whoever waits drives the engine for all.

    Args:
        model: a file, a folder, `hf:org/name`, `modelscope:org/name`; None: the small default model.
        chip: which chip to run on.
        num_threads: CPU threads; None: as many as this process may use.
        context_tokens: the longest prompt plus output; None: the model's own, or what fits in memory.
        memory_bytes: for weights and pages; None: a share of what is free.
        kv_format: how keys and values are kept.
        goal_seconds_per_token: how long running samples may wait while prompts are read; None: throughput first.
        cache_folder: where repacked weights are kept.
        draft_model: a small model of the same vocabulary, named like `model`, that guesses next tokens.
        speculation: False guesses no tokens; answers are the same, so this is for measurements alone.

    Raises UserError for what is wrong with the files or the options, CapacityError if memory does not suffice.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        chip: str = "cpu",
        num_threads: int | None = None,
        context_tokens: int | None = None,
        memory_bytes: int | None = None,
        kv_format: KvFormat = "bf16",
        goal_seconds_per_token: float | None = None,
        cache_folder: str | None = None,
        draft_model: str | None = None,
        speculation: bool = True,
        **unknown: Any,
    ) -> None:
        if unknown:
            _refuse_option(next(iter(unknown)))
        path = resolve_model(model)
        settings = EngineSettings(
            model=str(path),
            chip=chip,
            num_threads=num_threads,
            context_tokens=context_tokens,
            memory_bytes=memory_bytes,
            kv_format=kv_format,
            goal_seconds_per_token=float("inf") if goal_seconds_per_token is None else goal_seconds_per_token,
            cache_folder=cache_folder,
            draft_model=None if draft_model is None else str(resolve_model(draft_model)),
            speculation=speculation,
        )
        folder = default_cache_folder() if cache_folder is None else Path(cache_folder)
        with ExitStack() as stack:
            # Opened once for text and weights: walking over a vocabulary takes a tenth of a start.
            checkpoint = open_checkpoint(path)
            stack.callback(checkpoint.close)
            self._tokenizer, self._template = open_text(checkpoint, folder / "text")
            self._engine = open_engine(
                settings, on_notice=warnings.warn, checkpoint=checkpoint, tokenizer=self._tokenizer
            )
            stack.pop_all()
        self._shared = SharedEngine(self._engine)
        self._numbers = count()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Answers to all prompts, in their order.

        Args:
            prompts: one or several.
            sampling_params: one for all, or one for each; None: the defaults.
            use_tqdm: draw a progress bar on standard error.
            priority: one for all, or one for each; lower runs first.

        Raises RequestError, naming the prompt's number, before anything is run if one is impossible.
        """
        several: Sequence[Prompt] = [prompts] if _is_one(prompts) else list(prompts)  # type: ignore[arg-type, list-item]
        requests = self._requests(several, sampling_params, priority)
        texts = [_text_of(prompt) for prompt in several]
        answers = [Answer(request, text) for request, text in zip(requests, texts, strict=True)]
        with _progress(len(answers), use_tqdm) as bar:
            outputs = []
            for answer in self._answered(answers):
                assert isinstance(answer, Answer)
                outputs.append(answer.output())
                bar.update()
        return outputs

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to conversations: one (a list of messages) or several (a list of lists). See `generate`."""
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if is_one else messages
        prompts: list[Prompt] = []
        for number, conversation in enumerate(conversations):
            if not conversation:
                raise RequestError(f"conversation {number} is empty; give at least one message", field="messages")
            prompt = self._chat_prompt(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                extra=chat_template_kwargs,
            )
            prompts.append(prompt)
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[TokenChunk]:
        """The chunks of one answer as they are made; closing the iterator cancels the rest.

        Raises RequestError if the request is impossible, RidgelineError if it fails while it runs.
        """
        (request,) = self._requests([prompt], sampling_params, 0)
        inbox: Inbox = deque()
        num_open = request.sampling.n
        self._shared.add(request, inbox)
        try:
            while num_open:
                for chunk in self._shared.chunks(inbox):
                    if chunk.error is not None:
                        raise RidgelineError(chunk.error)
                    num_open -= chunk.finish_reason is not None
                    yield chunk
        finally:
            self._shared.cancel([request.request_id])

    def stream_chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Iterator[TokenChunk]:
        """The chunks of the answer to a conversation; see `stream`."""
        if not messages:
            raise RequestError("messages is empty; give at least one message", field="messages")
        return self.stream(self._chat_prompt(messages), sampling_params)

    def map(
        self, jobs: Iterable[tuple[Prompt | Sequence[Message], SamplingParams]]
    ) -> Iterator[RequestOutput | UserError]:
        """Answers to any number of jobs, in their order, with as many side by side as the engine takes.

        A job is a prompt, or a conversation (a list of messages), with its sampling. Jobs are read as there is room for
        them, so a list of millions needs no memory. One that is impossible gives its error in its place.
        """
        for entry in self._answered(self._prepared(*job) for job in jobs):
            yield entry if isinstance(entry, UserError) else entry.output()

    def _prepared(self, prompt: Prompt | Sequence[Message], sampling: SamplingParams) -> Answer | UserError:
        """One job as a request that the engine will take, or why it is none."""
        try:
            if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
                prompt = self._chat_prompt(prompt)  # type: ignore[arg-type]
            (request,) = self._requests([prompt], sampling, 0)  # type: ignore[list-item]
        except UserError as error:
            return error
        return Answer(request, _text_of(prompt))  # type: ignore[arg-type]

    def _answered(self, entries: Iterable[Answer | UserError]) -> Iterator[Answer | UserError]:
        """The entries in their order, each when it is whole; errors pass through. Closing it cancels what runs."""
        source = iter(entries)
        inbox: Inbox = deque()
        window: deque[Answer | UserError] = deque()
        by_id: dict[str, Answer] = {}
        entry = next(source, None)
        try:
            while window or entry is not None:
                while entry is not None and len(window) < WINDOW:
                    if isinstance(entry, Answer):
                        try:
                            self._shared.add(entry.request, inbox)
                        except OverloadedError:
                            break  # there will be room after a step
                        by_id[entry.request.request_id] = entry
                    window.append(entry)
                    entry = next(source, None)
                while window and (isinstance(window[0], UserError) or not window[0].num_open):
                    yield window.popleft()
                if window or entry is not None:
                    for chunk in self._shared.chunks(inbox):
                        by_id[chunk.request_id].take(chunk)
                        if not by_id[chunk.request_id].num_open:
                            del by_id[chunk.request_id]
        finally:
            self._shared.cancel(by_id)

    @property
    def model(self) -> EngineModel:
        """What was opened."""
        return self._engine.model

    def statistics(self) -> EngineStatistics:
        """How the engine is, now and so far."""
        return self._engine.statistics()

    def get_tokenizer(self) -> Any:
        """The model's tokenizer: `encode`, `decode`."""
        return self._tokenizer

    def close(self) -> None:
        """Give back memory, threads and files; harmless the second time."""
        self._shared.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Prompt:
        token_ids = chat_tokens(
            self._tokenizer,
            self._template,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            extra=extra,
        )
        text = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return {"prompt": text, "prompt_token_ids": token_ids}

    def _requests(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int],
    ) -> list[Request]:
        samplings = _for_each(sampling_params or SamplingParams(), SamplingParams, len(prompts), "sampling_params")
        priorities = _for_each(priority, int, len(prompts), "priority")
        requests = []
        for number, (prompt, sampling, urgency) in enumerate(zip(prompts, samplings, priorities, strict=True)):
            request = Request(
                request_id=f"llm-{next(self._numbers)}",
                prompt_token_ids=self._token_ids(prompt, number),
                sampling=sampling,
                seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
                priority=urgency,
            )
            try:
                self._engine.check(request)
            except RequestError as error:
                if len(prompts) == 1:
                    raise
                raise RequestError(f"prompt {number}: {error.message}", hint=error.hint, field=error.field) from None
            requests.append(request)
        return requests

    def _token_ids(self, prompt: Prompt, number: int) -> tuple[int, ...]:
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" in prompt:
                prompt = prompt["prompt_token_ids"]
            elif isinstance(prompt.get("prompt"), str):
                prompt = prompt["prompt"]
        if isinstance(prompt, str):
            return tuple(self._tokenizer.encode(prompt, add_special_tokens=True))
        if isinstance(prompt, Sequence) and all(type(token_id) is int for token_id in prompt):
            return tuple(int(token_id) for token_id in prompt)
        raise RequestError(
            f"prompt {number} is {type(prompt).__name__}; a prompt is a text, a list of token ids, "
            'or {"prompt": text} or {"prompt_token_ids": ids}',
            field="prompts",
        )


def _refuse_option(name: str) -> NoReturn:
    near = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else difflib.get_close_matches(name, OPTIONS, n=1)
    raise UserError(
        f"LLM has no option {name!r}; there are {', '.join(OPTIONS)}",
        hint=f"did you mean {near[0]}?" if near else "everything else is decided from the model and the machine",
        field=name,
    )


def _is_one(prompts: object) -> bool:
    """Whether this is one prompt: a text, a mapping, or token ids."""
    if isinstance(prompts, (str, Mapping)):
        return True
    return isinstance(prompts, Sequence) and bool(prompts) and all(type(each) is int for each in prompts)


def _text_of(prompt: Prompt) -> str | None:
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt", ())
    return prompt if isinstance(prompt, str) else None


def _for_each(given: Any, kind: type, num_prompts: int, name: str) -> list[Any]:
    if isinstance(given, kind):
        return [given] * num_prompts
    if not isinstance(given, Sequence) or not all(isinstance(each, kind) for each in given):
        raise RequestError(f"{name} is {type(given).__name__}; give one {kind.__name__} or a list of them", field=name)
    if len(given) != num_prompts:
        raise RequestError(f"{name} has {len(given)} entries for {num_prompts} prompts", field=name)
    return list(given)


def _progress(total: int, may_show: bool) -> Any:
    # Any: tqdm has no types of its own. Imported here because most callers draw no bar.
    from tqdm import tqdm

    return tqdm(total=total, disable=not may_show, file=sys.stderr, unit="request")
