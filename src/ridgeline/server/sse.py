"""Server-sent events: how an answer is streamed, kept alive, and ended when something goes wrong under way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ridgeline.server.errors import CLIENT_GONE, HttpError, http_error_of

KEEP_ALIVE_SECONDS = 15.0
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Any) -> bytes:
    """One event that carries a JSON value."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def stream(events: AsyncIterator[bytes]) -> Response:
    """An event stream whose first event is there, or late.

    An error before the first event is an ordinary HTTP error; later ones are an `error` event, after which the stream
    ends. While nothing comes, a comment keeps the connection alive.
    """
    iterator = events.__aiter__()
    first: asyncio.Future[bytes] = asyncio.ensure_future(_next(iterator))
    try:
        done, _ = await asyncio.wait({first}, timeout=KEEP_ALIVE_SECONDS)
    except asyncio.CancelledError:
        await _end(first, events)
        raise
    if done and first.exception() is not None and not isinstance(first.exception(), StopAsyncIteration):
        error = first.exception()
        assert isinstance(error, Exception)
        raise error
    return StreamingResponse(_body(iterator, first, events), media_type="text/event-stream", headers=HEADERS)


async def _next(iterator: AsyncIterator[bytes]) -> bytes:
    return await iterator.__anext__()


async def _end(pending: asyncio.Future[bytes], events: AsyncIterator[bytes]) -> None:
    pending.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await pending
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()


async def _body(
    iterator: AsyncIterator[bytes], pending: asyncio.Future[bytes], events: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield b": ping\n\n"
                continue
            try:
                piece = pending.result()
            except StopAsyncIteration:
                break
            except Exception as error:
                yield event(http_error_of(error).body())
                return
            yield piece
            pending = asyncio.ensure_future(_next(iterator))
        yield b"data: [DONE]\n\n"
    finally:
        await _end(pending, events)


async def while_connected(request: Request, work: Any) -> Any:
    """Await `work`, but cancel it when the client goes away: HttpError then, which nobody reads."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HttpError(CLIENT_GONE, "the client has gone")
        return task.result()
    finally:
        for waiting in (task, gone):
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await waiting


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
