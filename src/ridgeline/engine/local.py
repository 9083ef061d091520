"""An engine in this process, driven by a thread of its own, for callers on an event loop.

Knows: the engine, threads, asyncio. Does not know: HTTP, processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable

from ridgeline.engine.client import EngineModel, EngineStatistics
from ridgeline.engine.engine import Engine
from ridgeline.errors import EngineDeadError
from ridgeline.request.output import TokenChunk
from ridgeline.request.request import Request

_Item = TokenChunk | Exception


class LocalEngine:
    """An EngineClient around an engine of this process.

    Holds: the engine, which only the thread touches; calls that wait for the thread; where each request's chunks go.
    Changed by: the thread, and by calls put into its queue.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._deliver: dict[str, Callable[[_Item], None]] = {}
        self._is_dead = False
        self._lock = threading.Lock()
        """Guards `_is_dead`: a call is either made by the thread or refused, never forgotten."""
        self._thread = threading.Thread(target=self._run, name="ridgeline engine", daemon=True)
        self._thread.start()

    @property
    def model(self) -> EngineModel:
        """What the engine holds."""
        return self._engine.model

    async def generate(self, request: Request) -> AsyncIterator[TokenChunk]:
        """See EngineClient."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[_Item] = asyncio.Queue()

        def deliver(item: _Item) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
                loop.call_soon_threadsafe(inbox.put_nowait, item)

        self._call(lambda: self._add(request, deliver))
        num_open = request.sampling.n
        try:
            while num_open:
                item = await inbox.get()
                if isinstance(item, Exception):
                    num_open = 0
                    raise item
                if item.finish_reason is not None:
                    num_open -= 1
                yield item
        finally:
            if num_open:
                self._call(lambda: self._cancel(request.request_id, deliver))

    async def cancel(self, request_id: str) -> None:
        """See EngineClient."""
        self._call(lambda: self._cancel(request_id, None))

    async def statistics(self) -> EngineStatistics:
        """How the engine is, as of the end of the step that is running."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[EngineStatistics] = loop.create_future()

        def tell() -> None:
            statistics = self._engine.statistics()
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(statistics))

        self._call(tell)
        return await future

    async def close(self) -> None:
        """End every request as cancelled, then the thread and the engine."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    def _call(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._is_dead:
                raise EngineDeadError("the engine has ended")
            self._calls.put(call)

    def _add(self, request: Request, deliver: Callable[[_Item], None]) -> None:
        try:
            self._engine.add(request)
        except Exception as error:
            deliver(error)
        else:
            self._deliver[request.request_id] = deliver

    def _cancel(self, request_id: str, only_if: Callable[[_Item], None] | None) -> None:
        """Cancel; `only_if` says whose request it must be, for one that was refused may share its id with another."""
        if only_if is None or self._deliver.get(request_id) is only_if:
            self._hand_out(self._engine.cancel(request_id))

    def _hand_out(self, chunks: list[TokenChunk]) -> None:
        for chunk in chunks:
            deliver = self._deliver.get(chunk.request_id)
            if deliver is not None:
                deliver(chunk)
        for chunk in chunks:
            if chunk.finish_reason is not None and not self._engine.is_running(chunk.request_id):
                self._deliver.pop(chunk.request_id, None)

    def _run(self) -> None:
        try:
            while self._take_calls():
                self._hand_out(self._engine.step())
        except Exception as error:
            self._fail_all(
                error if isinstance(error, EngineDeadError) else EngineDeadError(f"the engine failed: {error}")
            )
        finally:
            with self._lock:
                self._is_dead = True
            for request_id in list(self._deliver):
                self._hand_out(self._engine.cancel(request_id))
            self._engine.close()
            with contextlib.suppress(queue.Empty):
                while True:
                    call = self._calls.get(block=False)
                    if call is not None:
                        call()

    def _take_calls(self) -> bool:
        """Make the calls that wait, and wait for one when there is nothing else to do; False to end."""
        while True:
            try:
                call = self._calls.get(block=not self._engine.has_work())
            except queue.Empty:
                return True
            if call is None:
                return False
            call()

    def _fail_all(self, error: EngineDeadError) -> None:
        for deliver in self._deliver.values():
            deliver(error)
        self._deliver.clear()
