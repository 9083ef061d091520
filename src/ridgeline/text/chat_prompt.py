"""A conversation's tokens, in which no message can pass for more than a message.

A template writes control tokens between the messages as text. Whoever writes the same text into a message could end
his turn and begin another's; here such text stays text. Where no message holds any, the tokens are those of the
rendered text.

Knows: messages, control tokens. Does not know: templates' insides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ridgeline.errors import RequestError
from ridgeline.text.chat_template import ChatTemplate, Message
from ridgeline.text.tokenizer import Tokenizer

# Unicode keeps these free for a program's own use: they are no characters and mean nothing in a text.
_MARKS = tuple(map(chr, range(0xFDD2, 0xFDF0)))


def chat_tokens(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a conversation; what is given means what it means to `ChatTemplate.render`, which says what fails.

    Control tokens come from the template alone.
    """
    try:
        used = set().union(*(each for each in _texts([messages, tools, extra])))
    except RecursionError as error:
        raise RequestError("messages are nested too deeply", field="messages") from error
    mark = next((mark for mark in _MARKS if mark not in used), None)
    if mark is None:
        raise RequestError("messages hold all of Unicode's noncharacters, which are not text", field="messages")
    rendered = template.render(
        _broken(tokenizer, messages, mark),
        tools=_broken(tokenizer, tools, mark),
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        extra=_broken(tokenizer, extra, mark),
    )
    return tokenizer.encode(rendered, add_special_tokens=False, plain_mark=mark)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value))
        yield from _texts(list(value.values()))
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _broken(tokenizer: Tokenizer, value: Any, mark: str) -> Any:
    """The same value, with the mark inside everything that would be read as a control token."""
    if isinstance(value, str):
        return tokenizer.with_marks(value, mark)
    if isinstance(value, Mapping):
        return {_broken(tokenizer, key, mark): _broken(tokenizer, each, mark) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_broken(tokenizer, each, mark) for each in value]
    return value
