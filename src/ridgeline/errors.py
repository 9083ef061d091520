"""The one tree of exceptions.

A `UserError` is a mistake that a person (or a file, or a client) made and can mend: it says what was given, what is
allowed and what to do. Faces print it without a traceback; the server maps it to a 4xx answer. Everything else is a
fault of ours and keeps its traceback.
"""

from __future__ import annotations


class RidgelineError(Exception):
    """Base of every error that Ridgeline raises on purpose."""


class UserError(RidgelineError):
    """Something outside Ridgeline is wrong and can be mended there.

    Args:
        message: what was given and what is allowed, in one sentence that names the file, field or flag.
        hint: what to do about it; printed on a line of its own.
        field: the request field or flag that is at fault, for the `param` of an API error.
    """

    def __init__(self, message: str, *, hint: str = "", field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class ModelFileError(UserError):
    """A model file or folder is truncated, corrupted, lying about itself, or of a kind that is not supported."""


class RequestError(UserError):
    """A request asks for something impossible (parameter out of range, prompt longer than the context, ...)."""


class ContextLengthError(RequestError):
    """A prompt that does not fit into the context; clients tell it from other mistakes, to shorten and try again."""


class CapacityError(UserError):
    """There is not enough memory, disk, or queue space for what was asked; the message says what would fit."""


class DownloadError(UserError):
    """A hub or a package index could not be reached, or refused; what was already there is untouched."""


class OverloadedError(CapacityError):
    """The bounded queue is full; `retry_after_seconds` says when to come back."""

    def __init__(self, message: str, *, retry_after_seconds: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class ChipError(RidgelineError):
    """A chip could not do what it was asked to (missing library, lost device, failed allocation)."""


class EngineDeadError(RidgelineError):
    """The engine process ended while it still owed an answer to this request."""
