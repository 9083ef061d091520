"""What goes over HTTP: the OpenAI API's requests and answers as msgspec structs.

Source of the fields: the types of the official `openai` Python client; the sampling extras carry vLLM's names. A field
that is not listed is ignored, as OpenAI-compatible servers do; one that is listed and cannot be honoured is refused.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

JsonObject = dict[str, Any]


class StreamOptions(msgspec.Struct):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingFields(msgspec.Struct, kw_only=True):
    """What both kinds of completion share; the meaning is that of `SamplingParams`."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    seed: int | None = None
    prompt_logprobs: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    cache_salt: str | None = None
    user: str | None = None
    return_token_ids: bool | None = None


class ContentPart(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[JsonObject] | None = None
    tool_call_id: str | None = None


class ChatRequest(SamplingFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    response_format: JsonObject | None = None
    chat_template: str | None = None
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    audio: Any = None
    functions: Any = None
    web_search_options: Any = None


class CompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class ErrorBody(msgspec.Struct):
    """What went wrong, in the shape that OpenAI's clients read."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(msgspec.Struct):
    """Every answer with a status of 400 or more."""

    error: ErrorBody


class PromptTokensDetails(msgspec.Struct):
    """Where prompt tokens came from."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    """Where output tokens came from: guesses that were run beside next tokens, and stood or did not."""

    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct):
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = msgspec.field(default_factory=PromptTokensDetails)
    completion_tokens_details: CompletionTokensDetails = msgspec.field(default_factory=CompletionTokensDetails)


class Timing(msgspec.Struct):
    """Where the request's time went; queue, prefill, decode and stall add up to the wall time. Ours, not OpenAI's."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    stall_seconds: float
    time_to_first_token_seconds: float | None = None
    num_preemptions: int = 0


class TopLogprob(msgspec.Struct):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct):
    """A chosen token and the likeliest."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a chat answer."""

    content: list[ContentLogprob]
    refusal: None = None


class PromptToken(msgspec.Struct):
    """A token that the prompt has, or might have had, at a place. vLLM's, not OpenAI's."""

    logprob: float
    decoded_token: str


PromptLogprobs = list[dict[int, PromptToken] | None]
"""For each token of the prompt: itself and the likeliest by id; None for the first."""


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a plain completion."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class AnswerMessage(msgspec.Struct):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: str | None = None


class Delta(msgspec.Struct, omit_defaults=True):
    """What the model said since the last chunk."""

    role: str | None = None
    content: str | None = None


class ChatChoice(msgspec.Struct):
    """One sample of a chat answer."""

    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatChunkChoice(msgspec.Struct):
    """A piece of one sample."""

    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | None = None


class CompletionChoice(msgspec.Struct):
    """One sample of a plain completion, or a piece of it."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatAnswer(msgspec.Struct):
    """The answer to a chat request."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"
    system_fingerprint: str | None = None
    timing: Timing | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatChunk(msgspec.Struct):
    """A piece of the answer to a chat request."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    object: str = "chat.completion.chunk"
    system_fingerprint: str | None = None
    timing: Timing | None = None


class CompletionAnswer(msgspec.Struct):
    """The answer to a plain completion, or a piece of it."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    object: str = "text_completion"
    system_fingerprint: str | None = None
    timing: Timing | None = None


class ModelCard(msgspec.Struct):
    """A model that is served."""

    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "ridgeline"
    root: str | None = None
    parent: str | None = None


class ModelList(msgspec.Struct):
    """GET /v1/models."""

    data: list[ModelCard]
    object: str = "list"
