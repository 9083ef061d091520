"""What every request passes before any route sees it: who may ask, from where, and how much may be sent.

Deny by default: with a key set, every path but those in OPEN_PATHS needs it, compared whole, however it is spelt.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ridgeline.server.errors import HttpError

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
MAX_BODY_BYTES = 32 << 20
MAX_BODY_PIECES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRules:
    """What the guard holds everyone to."""

    key_digests: tuple[bytes, ...] = ()
    """SHA-256 of each accepted key; none: no key is asked for."""
    is_loopback_only: bool = True
    """Refuse foreign Host headers when no key is set, so that no web page can reach the server by DNS rebinding."""
    max_body_bytes: int = MAX_BODY_BYTES


def key_digest(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, rules: GuardRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except HttpError as error:
            await error.response()(scope, receive, send)
            return
        num_bytes = num_pieces = 0

        async def bounded_receive() -> Message:
            nonlocal num_bytes, num_pieces
            message = await receive()
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                num_pieces += 1
                if num_bytes > self._rules.max_body_bytes or num_pieces > MAX_BODY_PIECES:
                    raise HttpError(413, f"the body is over {self._rules.max_body_bytes} bytes")
            return message

        await self._app(scope, bounded_receive, send)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise HttpError(400, "a request may not have both Content-Length and Transfer-Encoding")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._rules.max_body_bytes:
            raise HttpError(413, f"the body is over {self._rules.max_body_bytes} bytes")
        if self._rules.key_digests:
            if scope["path"] not in OPEN_PATHS:
                self._check_key(headers)
        elif self._rules.is_loopback_only:
            host = headers.get(b"host", b"localhost").decode("latin-1")
            name = host if host.endswith("]") else host.rsplit(":", 1)[0] if ":" in host else host
            if name.lower() not in LOOPBACK_HOSTS:
                raise HttpError(
                    421, "this server answers to localhost only; start it with --api-key to be reached by name"
                )

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        digest = hashlib.sha256(given).digest()
        # Every key is compared, in constant time, so that the answer's timing tells nothing.
        matches = [hmac.compare_digest(digest, accepted) for accepted in self._rules.key_digests]
        if not any(matches):
            raise HttpError(401, "no valid API key was given (Authorization: Bearer KEY)", code="invalid_api_key")
