"""`ridgeline serve`: HTTP in this process, the engine in another, until told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette

from ridgeline.engine.child import EngineChild
from ridgeline.engine.remote import RemoteEngine
from ridgeline.engine.settings import EngineSettings
from ridgeline.errors import EngineDeadError, UserError
from ridgeline.observe.metrics import ServerMetrics
from ridgeline.server.app import make_app
from ridgeline.server.front import ChatTokens, Front, Tokens
from ridgeline.server.guard import GuardRules, key_digest

MAX_HEADER_BYTES = 64 << 10
MAX_PORT = (1 << 16) - 1
_LOOPBACK_BINDS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What a person may say about a server."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    may_be_open: bool = False
    """Listen beyond this machine without a key."""
    drain_seconds: float = 30.0
    """After SIGTERM, running requests have this long to finish."""


class _Uvicorn(uvicorn.Server):
    """uvicorn, which would die of the signal that ended it; ours has drained, and that is a good end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Server:
    """One HTTP server over one engine process.

    Holds: the listening socket, the engine's holder. Changed by: `run`.
    """

    def __init__(
        self,
        settings: ServeSettings,
        engine_settings: EngineSettings,
        load_text: Callable[[], tuple[Tokens, ChatTokens]],
        model_name: str,
        on_notice: Callable[[str], None],
        on_ready: Callable[[RemoteEngine, str], None],
        child: EngineChild | None = None,
    ) -> None:
        """`child` is the engine process, if it was started already."""
        self._settings = settings
        self._engine = RemoteEngine(engine_settings, on_notice, child)
        self._load_text = load_text
        self._model_name = model_name
        self._on_ready = on_ready
        self._socket = _listen(settings)
        self._uvicorn: uvicorn.Server | None = None
        self._failure: Exception | None = None
        """Why it ended by itself."""

    @property
    def url(self) -> str:
        """Where the server listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until a signal says to end. Raises why the model cannot be opened: a UserError if it can be mended."""
        rules = GuardRules(
            key_digests=tuple(key_digest(key) for key in self._settings.api_keys),
            is_loopback_only=self._settings.host in _LOOPBACK_BINDS,
        )
        config = uvicorn.Config(
            make_app(rules, self._lifespan),
            http="h11",
            loop="asyncio",
            lifespan="on",
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=max(1, round(self._settings.drain_seconds)),
        )
        self._uvicorn = _Uvicorn(config)
        self._uvicorn.run(sockets=[self._socket])
        if self._failure is not None:
            raise self._failure

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Answer at once; whoever needs the model waits until it is there."""
        opening: asyncio.Future[Front] = asyncio.get_running_loop().create_future()
        app.state.opening = opening
        app.state.health = self._engine
        app.state.is_draining = lambda: self._uvicorn is not None and self._uvicorn.should_exit
        await self._engine.start()
        watching = asyncio.create_task(self._open(app, opening))
        yield
        watching.cancel()
        await self._engine.close()

    async def _open(self, app: Starlette, opening: asyncio.Future[Front]) -> None:
        """Load the text side while the engine loads its weights; end the server when either cannot be."""
        # The tokenizer is read here while the engine process reads the weights.
        loading = asyncio.create_task(asyncio.to_thread(self._load_text))
        try:
            await self._engine.until_ready()
            tokens, chat_tokens = await loading
            metrics = ServerMetrics(self._model_name, self._engine)
            app.state.metrics = metrics
            front = Front(
                engine=self._engine,
                tokens=tokens,
                chat_tokens=chat_tokens,
                model_name=self._model_name,
                recorder=metrics,
                created=int(time.time()),
            )
            opening.set_result(front)
            self._on_ready(self._engine, self.url)
            while self._engine.mistake is None:  # an engine that is started again may meet one
                await asyncio.sleep(0.5)
            raise self._engine.mistake
        except Exception as error:  # whatever it is, a server without a model does not go on
            self._failure = error
            if not opening.done():
                opening.set_exception(EngineDeadError("the model cannot be loaded; the server is ending"))
                opening.exception()  # looked at, so that asyncio does not complain where nobody waits
            assert self._uvicorn is not None
            self._uvicorn.should_exit = True


def _listen(settings: ServeSettings) -> socket.socket:
    if any(not key.strip() or key != key.strip() for key in settings.api_keys):
        raise UserError(
            "an --api-key is empty, or has spaces around it",
            hint="is the variable that holds it set? An empty key would let everyone in",
            field="api_key",
        )
    if not 0 <= settings.port <= MAX_PORT:
        raise UserError(f"--port is {settings.port}; it must be between 0 and {MAX_PORT}", field="port")
    if settings.host not in _LOOPBACK_BINDS and not settings.api_keys and not settings.may_be_open:
        raise UserError(
            f"--host {settings.host} would open the server to other machines without a key",
            hint="give --api-key KEY, or --insecure-no-auth if that is really meant",
            field="host",
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}",
            hint="another program may have the port; choose another with --port, or 0 for any free one",
            field="port",
        ) from None
    listening.listen(2048)
    return listening
