"""JSON files beside the weights, read with bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ridgeline.errors import ModelFileError

MAX_JSON_BYTES = 1 << 26
"""Above the largest `tokenizer.json` (33 MB, Gemma 3)."""


def read_json_object(path: Path) -> tuple[dict[str, Any], bytes]:
    """The object that a JSON file holds, and the file's bytes; ModelFileError if it holds no object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path}: is larger than {MAX_JSON_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    return parsed_object(content, str(path)), content


def parsed_object(content: bytes, field: str) -> dict[str, Any]:
    """The object that `content` spells; ModelFileError, naming `field`, if it spells none."""
    try:
        value: dict[str, Any] = msgspec.json.decode(content, type=dict[str, Any])
    except UnicodeDecodeError:
        raise ModelFileError(f"{field}: is no JSON object: not UTF-8 text", hint="fetch the file again") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelFileError(f"{field}: is no JSON object: {error}", hint="fetch the file again") from None
    return value
