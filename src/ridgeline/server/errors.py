"""The one place where errors become HTTP answers.

Every answer of status 400 and above, on every route, has the OpenAI error object as its body. Texts never carry
addresses, file paths of the program, or tracebacks: unexpected errors are told by a number that is also in the log.
"""

from __future__ import annotations

import logging
import math
import uuid

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ridgeline.errors import CapacityError, ContextLengthError, EngineDeadError, OverloadedError, UserError
from ridgeline.server.wire import ErrorAnswer, ErrorBody

_log = logging.getLogger("ridgeline.server")

CLIENT_GONE = 499
"""nginx's status for an answer that nobody waits for."""

_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class HttpError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> ErrorAnswer:
        """The error object."""
        kind = _TYPE_OF_STATUS.get(self.status, "server_error")
        return ErrorAnswer(ErrorBody(message=self.message, type=kind, param=self.param, code=self.code))

    def response(self) -> Response:
        """The whole answer."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_seconds)))
            headers["retry-after-ms"] = str(max(1, math.ceil(1000 * self.retry_after_seconds)))
        return Response(
            msgspec.json.encode(self.body()), status_code=self.status, media_type="application/json", headers=headers
        )


def http_error_of(error: Exception) -> HttpError:
    """The answer that tells of an error raised anywhere below."""
    match error:
        case HttpError():
            return error
        case OverloadedError():
            return HttpError(
                503, error.message, code="server_overloaded", retry_after_seconds=error.retry_after_seconds
            )
        case ContextLengthError():
            return HttpError(400, _told(error), param=error.field, code="context_length_exceeded")
        case CapacityError():
            return HttpError(503, _told(error), retry_after_seconds=5.0)
        case UserError():
            return HttpError(400, _told(error), param=error.field)
        case EngineDeadError():
            return HttpError(503, str(error), code="engine_restarted", retry_after_seconds=1.0)
        case HTTPException():
            return HttpError(error.status_code, error.detail)
    number = uuid.uuid4().hex[:12]
    _log.error("unexpected error %s", number, exc_info=error)
    return HttpError(500, f"internal error {number}; the server's log tells more", code="internal_error")


def _told(error: UserError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for everything."""
    return http_error_of(error).response()
