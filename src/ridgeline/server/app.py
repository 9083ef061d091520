"""The application: routes over a Front, behind the guard."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from ridgeline.errors import RidgelineError
from ridgeline.server import health, tokens
from ridgeline.server.chat import chat_completions
from ridgeline.server.completions import completions
from ridgeline.server.errors import HttpError, answer_error
from ridgeline.server.guard import Guard, GuardRules

ROUTES = (
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", health.models, methods=["GET"]),
    Route("/v1/models/{name:path}", health.model, methods=["GET"]),
    Route("/tokenize", tokens.tokenize, methods=["POST"]),
    Route("/detokenize", tokens.detokenize, methods=["POST"]),
    Route("/health", health.health, methods=["GET"]),
    Route("/livez", health.livez, methods=["GET"]),
    Route("/readyz", health.readyz, methods=["GET"]),
    Route("/metrics", health.metrics, methods=["GET"]),
    Route("/version", health.version, methods=["GET"]),
)


def make_app(rules: GuardRules, lifespan: Callable[[Starlette], AbstractAsyncContextManager[Any]]) -> ASGIApp:
    """The ASGI application; `lifespan` puts `front`, `health`, `metrics` and `is_draining` into `app.state`."""
    handlers: dict[Any, Any] = dict.fromkeys((HTTPException, HttpError, RidgelineError, Exception), answer_error)
    app = Starlette(routes=list(ROUTES), exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return Guard(app, rules)
