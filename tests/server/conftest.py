import asyncio
import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from ridgeline.observe.metrics import ServerMetrics
from ridgeline.server.app import make_app
from ridgeline.server.front import Front
from ridgeline.server.guard import GuardRules, key_digest
from tests.server.fake import ByteTokens, EchoEngine, plain_chat_tokens


class Running:
    def __init__(self, url: str, engine: EchoEngine) -> None:
        self.url = url
        self.engine = engine


@contextlib.contextmanager
def running_server(rules: GuardRules):
    engine = EchoEngine()

    @contextlib.asynccontextmanager
    async def lifespan(app):
        metrics = ServerMetrics("echo", engine)
        opening = asyncio.get_running_loop().create_future()
        opening.set_result(
            Front(
                engine=engine,
                tokens=ByteTokens(),
                chat_tokens=plain_chat_tokens,
                model_name="echo",
                recorder=metrics,
                created=1,
            )
        )
        app.state.opening, app.state.health, app.state.metrics = opening, engine, metrics
        app.state.is_draining = lambda: False
        yield

    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(rules, lifespan), http="h11", log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", engine)
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def server():
    with running_server(GuardRules(max_body_bytes=1 << 20)) as running:
        yield running


@pytest.fixture(scope="module")
def keyed_server():
    with running_server(GuardRules(key_digests=(key_digest("secret-1"), key_digest("secret-2")))) as running:
        yield running
