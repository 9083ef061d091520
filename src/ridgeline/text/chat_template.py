"""Conversations to the text that the model was trained on.

Knows: the templates that come with models, and the shape of messages. Does not know: tokens, HTTP.
Jinja is imported with the first rendering: who completes plain text never pays for it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ridgeline.errors import ModelFileError, RequestError, UserError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For models that have ChatML's tokens but no template."""

MAX_TEMPLATE_CHARACTERS = 1 << 20
_RESERVED = frozenset(
    {
        "messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token", "unk_token",
        "pad_token", "range", "dict", "namespace", "raise_exception", "strftime_now", "loop", "self", "super", "caller",
        "varargs", "kwargs", "context", "environment",
    }
)  # fmt: skip
# Marks the place where an unfinished message ends; the space shows whether the template takes spaces away there.
_END_OF_MESSAGE = "\ufdd0END\ufdd1 "


class ChatTemplate:
    """The templates of one model: the default one, and perhaps one for conversations with tools.

    Holds: sources; compiled templates once they were needed. May be used by several threads.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        """Nothing is compiled or run yet.

        Args:
            sources: "default", and others that the model names ("tool_use").
            special_tokens: what templates call `bos_token`, `eos_token`, ...: the tokens' texts.
            cache_folder: where it is remembered that a template was tried and found harmless; None: nowhere.

        Raises:
            ModelFileError: a template is larger than any that is honest.
        """
        for name, source in sources.items():
            if len(source) > MAX_TEMPLATE_CHARACTERS:
                raise ModelFileError(
                    f"the chat template {name[:40]!r} has {len(source)} characters; at most "
                    f"{MAX_TEMPLATE_CHARACTERS} are allowed"
                )
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens or {})
        self._cache_folder = cache_folder
        self._compiled: dict[str, Template] = {}
        self._lock = threading.Lock()

    @property
    def sources(self) -> Mapping[str, str]:
        """The templates' texts: "default", and others that the model names."""
        return MappingProxyType(self._sources)

    @property
    def is_present(self) -> bool:
        """Whether the model can be chatted with."""
        return bool(self._sources)

    def prepare(self) -> None:
        """Compile the default template now instead of at the first rendering; raises what that would."""
        self._template("default")

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as one text.

        Args:
            messages: in order; each has a `role`, and by its kind `content`, `name`, `tool_calls`, `tool_call_id`.
            tools: what the model may call, as JSON schemas.
            add_generation_prompt: end with what comes before an assistant's answer.
            continue_final_message: end inside the last message, so that the model goes on with it.
            extra: further variables for the template.

        Raises:
            RequestError: the template does not accept the conversation, or a name in `extra` is taken.
            ModelFileError: the template is broken or harmful.
            UserError: the model has no template.
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "add_generation_prompt and continue_final_message exclude each other; give one of them",
                field="continue_final_message",
            )
        plain = [_plain_message(index, message) for index, message in enumerate(messages)]
        if continue_final_message:
            plain = _with_open_end(plain)
        variables = {
            **_checked_extra(extra),
            **self._special_tokens,
            "messages": plain,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._render(
            self._template("tool_use" if tools and "tool_use" in self._sources else "default"), variables
        )
        return _cut_at_open_end(text) if continue_final_message else text

    def _template(self, name: str) -> Template:
        source = self._sources.get(name)
        if source is None:
            raise UserError(
                "this model has no chat template, so it cannot be told how a conversation is written",
                hint="send a plain prompt (/v1/completions), or use a model that was made for conversations",
            )
        with self._lock:
            if name not in self._compiled:
                from ridgeline.text.template_probe import probed

                self._compiled[name] = probed(source, self._cache_folder)
            return self._compiled[name]

    @staticmethod
    def _render(template: Template, variables: Mapping[str, Any]) -> str:
        from ridgeline.text.template_run import rendered

        return rendered(template, variables)


def _plain_message(index: int, message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"messages[{index}] has no role; every message is an object with a role", field="messages")
    plain = dict(message)
    calls = plain.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        plain["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    return plain


def _with_parsed_arguments(call: Any) -> Any:
    """The call with its arguments as an object, which templates expect; the OpenAI API sends them as a string."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _checked_extra(extra: Mapping[str, Any] | None) -> Mapping[str, Any]:
    for name in extra or {}:
        if not name.isidentifier() or name.startswith("_") or name in _RESERVED:
            raise RequestError(
                f"chat_template_kwargs has {name[:40]!r}, which the template's own names forbid",
                field="chat_template_kwargs",
                hint="use a name that is a plain word and not one of the template's own",
            )
    return extra or {}


def _with_open_end(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not messages or not isinstance(messages[-1].get("content"), str):
        raise RequestError(
            "continue_final_message needs a last message whose content is text", field="continue_final_message"
        )
    last = messages[-1]
    return [*messages[:-1], {**last, "content": last["content"] + _END_OF_MESSAGE}]


def _cut_at_open_end(text: str) -> str:
    place = text.rfind(_END_OF_MESSAGE.rstrip())
    if place < 0:
        raise RequestError(
            "continue_final_message: the model's chat template leaves out or changes the last message",
            field="continue_final_message",
        )
    text, rest = text[:place], text[place:]
    return text if rest.startswith(_END_OF_MESSAGE) else text.rstrip()
