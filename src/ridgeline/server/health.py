"""/health, /livez, /readyz, /metrics, /version, /v1/models: what the outside asks of a server besides answers."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from ridgeline.server.body import json_answer
from ridgeline.server.errors import HttpError
from ridgeline.server.front import Front, front_of
from ridgeline.server.wire import ModelCard, ModelList
from ridgeline.version import VERSION


class EngineHealth(Protocol):
    """The part of an engine's holder that health routes ask."""

    @property
    def is_ready(self) -> bool:
        """Whether a request would start at once."""

    @property
    def is_alive(self) -> bool:
        """Whether the engine answers, or is being started."""


class MetricsPage(Protocol):
    """Who makes the /metrics page."""

    async def page(self) -> bytes:
        """The page in Prometheus' text format."""


async def livez(http: HttpRequest) -> Response:
    """200 while the engine makes progress or has nothing to do; 503 when it hangs or cannot start."""
    health: EngineHealth = http.app.state.health
    if health.is_alive:
        return PlainTextResponse("ok\n")
    return PlainTextResponse("the engine does not answer\n", status_code=503)


async def readyz(http: HttpRequest) -> Response:
    """200 when a request would start at once; 503 while loading, draining, or restarting."""
    health: EngineHealth = http.app.state.health
    if health.is_ready and health.is_alive and not http.app.state.is_draining():
        return PlainTextResponse("ok\n")
    return PlainTextResponse("not ready\n", status_code=503, headers={"retry-after": "1"})


async def health(http: HttpRequest) -> Response:
    """Ready and alive both, as one answer."""
    alive = await livez(http)
    return alive if alive.status_code != 200 else await readyz(http)


async def metrics(http: HttpRequest) -> Response:
    """Prometheus' page; the names are vLLM's, so that existing dashboards work."""
    await front_of(http)
    page: MetricsPage = http.app.state.metrics
    return Response(await page.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def version(http: HttpRequest) -> Response:
    """Which Ridgeline this is."""
    return json_answer({"version": VERSION})


async def models(http: HttpRequest) -> Response:
    """The one model that is served."""
    return json_answer(ModelList([_card(await front_of(http))]))


async def model(http: HttpRequest) -> Response:
    """The card of one model; ids may have slashes."""
    front = await front_of(http)
    front.check_model(http.path_params["name"])
    return json_answer(_card(front))


def _card(front: Front) -> ModelCard:
    return ModelCard(
        id=front.model_name,
        created=front.created,
        max_model_len=front.engine.model.context_tokens,
        root=front.model_name,
    )


async def not_found(http: HttpRequest) -> Response:
    """Any path that there is not."""
    raise HttpError(404, f"there is no route {http.method} {http.url.path[:200]}", code="route_not_found")
