"""What the engine process and its holder say to one another: msgpack frames on a socket pair, never pickle.

A frame is four bytes of length, big-endian, then one tagged message.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import msgspec

from ridgeline.engine.client import EngineModel, EngineStatistics
from ridgeline.engine.settings import EngineSettings
from ridgeline.request.output import TokenChunk
from ridgeline.request.request import Request

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 1 << 30


class Open(msgspec.Struct, tag=True, frozen=True):
    """To the engine, before all else: what to be."""

    settings: EngineSettings


class Submit(msgspec.Struct, tag=True, frozen=True):
    """To the engine: run this request."""

    request: Request


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """To the engine: end this request if it still runs."""

    request_id: str


class Ask(msgspec.Struct, tag=True, frozen=True):
    """To the engine: how are you? The answer carries the same number."""

    number: int


class Stop(msgspec.Struct, tag=True, frozen=True):
    """To the engine: end."""


class Ready(msgspec.Struct, tag=True, frozen=True):
    """From the engine: the model is loaded."""

    model: EngineModel
    notices: tuple[str, ...] = ()


class CannotStart(msgspec.Struct, tag=True, frozen=True):
    """From the engine: it ends, because of a mistake that a person can mend."""

    message: str
    hint: str


class Chunks(msgspec.Struct, tag=True, frozen=True):
    """From the engine: what a step made."""

    chunks: tuple[TokenChunk, ...]


class Refused(msgspec.Struct, tag=True, frozen=True):
    """From the engine: this request was not taken in."""

    request_id: str
    message: str
    hint: str = ""
    field: str | None = None
    retry_after_seconds: float | None = None
    """Set when the reason is overload."""


class Answer(msgspec.Struct, tag=True, frozen=True):
    """From the engine: how it is."""

    number: int
    statistics: EngineStatistics


ToEngine = Open | Submit | Cancel | Ask | Stop
FromEngine = Ready | CannotStart | Chunks | Refused | Answer


def _plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise NotImplementedError(f"{type(value)} does not go over the wire")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def frame(message: ToEngine | FromEngine) -> bytes:
    """The message as bytes, length first."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def parse_to_engine(body: bytes) -> ToEngine:
    """The message that a frame's body holds."""
    return _to_engine.decode(body)


def parse_from_engine(body: bytes) -> FromEngine:
    """The message that a frame's body holds."""
    return _from_engine.decode(body)
