"""Bodies in and out."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ridgeline.server.errors import CLIENT_GONE, HttpError

T = TypeVar("T")

_PLACE = re.compile(r" - at `\$\.?([^`]*)`")


async def parsed_body(http: Request, kind: type[T]) -> T:
    """The request's JSON body as `kind`. Raises HttpError 400 that names the field."""
    try:
        raw = await http.body()
        return msgspec.json.decode(raw, type=kind)
    except ClientDisconnect:
        raise HttpError(CLIENT_GONE, "the client went before its request was whole") from None
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        param = place.group(1) if place else None
        message = _PLACE.sub("", text)
        raise HttpError(400, f"{param}: {message}" if param else message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from None


def json_answer(value: Any, status: int = 200) -> Response:
    """The value as a JSON answer."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
