"""An engine in a process of its own: started, watched, started again.

Knows: the messages, when to start the process again. Does not know: HTTP, chips, models.

A dead engine gives every request that it owed an answer an EngineDeadError; requests that come while it starts again
wait for it. An engine that cannot start because of a mistake of a person is not started again: everyone gets that
mistake told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from ridgeline.engine import messages
from ridgeline.engine.child import EngineChild
from ridgeline.engine.client import EngineModel, EngineStatistics
from ridgeline.engine.settings import EngineSettings
from ridgeline.errors import EngineDeadError, OverloadedError, RequestError, UserError
from ridgeline.request.output import TokenChunk
from ridgeline.request.request import Request

PING_SECONDS = 1.0
HUNG_AFTER_SECONDS = 4.0
"""No sign of life for this long and the engine counts as hung (/livez says so)."""
KILL_AFTER_SECONDS = 30.0
POLL_SECONDS = 0.01
FIRST_RESTART_DELAY_SECONDS = 0.1
LAST_RESTART_DELAY_SECONDS = 10.0
MAX_FAILED_STARTS = 5
"""An engine that never gets as far as loading its model will not the next time either."""

_Inbox = asyncio.Queue[TokenChunk | Exception]


class RemoteEngine:
    """An EngineClient whose engine lives in a child process.

    Holds: the child, the socket to it, an inbox for each request in flight. Changed by: the tasks that `start` makes,
    and `generate`; all on one event loop.
    """

    def __init__(
        self,
        settings: EngineSettings,
        on_notice: Callable[[str], None] | None = None,
        child: EngineChild | None = None,
    ) -> None:
        """`child` is the first process where one was started and told what to open already; None: `start` does it."""
        self._settings = settings
        self._on_notice = on_notice or (lambda text: None)
        self._first_child = child
        self._child: EngineChild | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._inboxes: dict[str, _Inbox] = {}
        self._model: EngineModel | None = None
        self._ready = asyncio.Event()
        self._mistake: UserError | None = None
        self._is_closing = False
        self._last_sign_of_life = time.monotonic()
        self._last_statistics = EngineStatistics(state="starting")
        self._num_asked = 0
        self._answers: dict[int, asyncio.Future[EngineStatistics]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.num_restarts = 0

    async def start(self) -> None:
        """Start the child and its watchers; returns at once, before the model is loaded."""
        self._tasks = [asyncio.create_task(self._keep_running()), asyncio.create_task(self._keep_asking())]

    async def until_ready(self) -> EngineModel:
        """Wait until the model is loaded. Raises the UserError for which it cannot be."""
        await self._ready.wait()
        if self._mistake is not None:
            raise self._mistake
        assert self._model is not None
        return self._model

    @property
    def model(self) -> EngineModel:
        """What the engine holds; after `until_ready`."""
        assert self._model is not None, "the engine is not ready yet"
        return self._model

    @property
    def mistake(self) -> UserError | None:
        """Why the engine cannot start, if a person must mend it."""
        return self._mistake

    @property
    def is_ready(self) -> bool:
        """Whether a request would start at once."""
        return self._ready.is_set() and self._mistake is None and not self._is_closing

    @property
    def seconds_without_life(self) -> float:
        """How long ago the engine process was last heard."""
        return time.monotonic() - self._last_sign_of_life

    @property
    def is_alive(self) -> bool:
        """Whether the engine answers, or is being started."""
        if self._mistake is not None:
            return False
        return not self._ready.is_set() or self.seconds_without_life < HUNG_AFTER_SECONDS

    @property
    def process_id(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.process_id if self._child is not None else None

    async def generate(self, request: Request) -> AsyncIterator[TokenChunk]:
        """See EngineClient."""
        await self.until_ready()
        inbox: _Inbox = asyncio.Queue()
        self._inboxes[request.request_id] = inbox
        num_open = request.sampling.n
        try:
            self._send(messages.Submit(request))
            while num_open:
                item = await inbox.get()
                if isinstance(item, Exception):
                    num_open = 0
                    raise item
                if item.finish_reason is not None:
                    num_open -= 1
                yield item
        finally:
            self._inboxes.pop(request.request_id, None)
            if num_open:
                await self.cancel(request.request_id)

    async def cancel(self, request_id: str) -> None:
        """See EngineClient."""
        with contextlib.suppress(EngineDeadError):
            self._send(messages.Cancel(request_id))

    async def statistics(self) -> EngineStatistics:
        """How the engine is; the last known state when it does not answer within a second."""
        if not self._ready.is_set() or self._mistake is not None:
            return replace(self._last_statistics, state="dead" if self._mistake is not None else "starting")
        self._num_asked += 1
        number = self._num_asked
        future: asyncio.Future[EngineStatistics] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        try:
            self._send(messages.Ask(number))
            self._last_statistics = await asyncio.wait_for(future, 1.0)
        except (TimeoutError, EngineDeadError):
            pass
        finally:
            self._answers.pop(number, None)
        return self._last_statistics

    async def close(self) -> None:
        """End the child: asked first, killed after two seconds."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._child is not None and self._child.exit_status is None:
            with contextlib.suppress(EngineDeadError):
                self._send(messages.Stop())
            await _ended(self._child, within_seconds=2.0)
        if self._writer is not None:
            self._writer.close()
        self._fail_all("the engine was closed")

    def _send(self, message: messages.ToEngine) -> None:
        if self._writer is None or self._writer.is_closing():
            raise EngineDeadError("the engine process is not running")
        self._writer.write(messages.frame(message))

    async def _keep_running(self) -> None:
        delay = FIRST_RESTART_DELAY_SECONDS
        num_failed_starts = 0
        while not self._is_closing:
            was_ready = await self._run_once()
            num_failed_starts = 0 if was_ready else num_failed_starts + 1
            self._ready.clear()
            status = self._child.exit_status if self._child is not None else None
            self._fail_all(f"the engine process ended unexpectedly (exit status {status}); it is being started again")
            if num_failed_starts >= MAX_FAILED_STARTS and self._mistake is None:
                self._mistake = UserError(
                    f"the engine process failed to start {num_failed_starts} times in a row (exit status {status})",
                    hint="what it said stands above; ridgeline doctor checks the machine",
                )
            if self._mistake is not None:
                self._ready.set()
                return
            delay = FIRST_RESTART_DELAY_SECONDS if was_ready else min(2 * delay, LAST_RESTART_DELAY_SECONDS)
            self.num_restarts += 1
            self._on_notice(f"the engine process ended (exit status {status}); starting it again")
            await asyncio.sleep(delay)

    async def _run_once(self) -> bool:
        """Start the child and read what it says until it ends; return whether it ever became ready."""
        if self._first_child is not None:
            self._child, self._first_child = self._first_child, None
        else:
            self._child = EngineChild()
            self._child.connection.sendall(messages.frame(messages.Open(self._settings)))
        reader, self._writer = await asyncio.open_connection(sock=self._child.connection)
        try:
            while True:
                head = await reader.readexactly(messages.LENGTH_BYTES)
                body = await reader.readexactly(int.from_bytes(head, "big"))
                self._last_sign_of_life = time.monotonic()
                self._take(messages.parse_from_engine(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writer.close()
        was_ready = self._ready.is_set()
        await _ended(self._child, within_seconds=5.0)
        return was_ready

    def _take(self, message: messages.FromEngine) -> None:
        match message:
            case messages.Chunks(chunks):
                for chunk in chunks:
                    self._deliver(chunk.request_id, chunk)
            case messages.Answer(number, statistics):
                future = self._answers.get(number)
                if future is not None and not future.done():
                    future.set_result(statistics)
            case messages.Refused():
                self._deliver(message.request_id, _refusal(message))
            case messages.Ready(model, notices):
                self._model = model
                for notice in notices:
                    self._on_notice(notice)
                self._ready.set()
            case messages.CannotStart(text, hint):
                self._mistake = UserError(text, hint=hint)

    def _deliver(self, request_id: str, item: TokenChunk | Exception) -> None:
        inbox = self._inboxes.get(request_id)
        if inbox is not None:
            inbox.put_nowait(item)

    def _fail_all(self, reason: str) -> None:
        for inbox in self._inboxes.values():
            inbox.put_nowait(EngineDeadError(reason))

    async def _keep_asking(self) -> None:
        """Ask for signs of life; kill a child that has given none for long, so that it is started again."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            if not self._ready.is_set():
                self._last_sign_of_life = time.monotonic()
                continue
            await self.statistics()
            if self.seconds_without_life > KILL_AFTER_SECONDS and self._child is not None:
                self._on_notice("the engine process gave no sign of life; killing it")
                self._child.kill()


async def _ended(child: EngineChild, within_seconds: float) -> None:
    """Wait for the child's end, and kill it if that does not come in time."""
    deadline = time.monotonic() + within_seconds
    while child.exit_status is None:
        if time.monotonic() > deadline:
            child.kill()
        await asyncio.sleep(POLL_SECONDS)


def _refusal(message: messages.Refused) -> UserError:
    if message.retry_after_seconds is not None:
        return OverloadedError(message.message, retry_after_seconds=message.retry_after_seconds, hint=message.hint)
    return RequestError(message.message, hint=message.hint, field=message.field)
