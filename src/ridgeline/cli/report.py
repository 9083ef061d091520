"""Reports that verbs write as JSON: each says which program made it, when, and on what machine."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

from ridgeline.errors import UserError
from ridgeline.version import VERSION


def origin(chip: str) -> dict[str, Any]:
    """What a report begins with; `chip` is the chip's description."""
    return {
        "program": f"ridgeline {VERSION}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"chip": chip, "system": platform.platform(), "python": platform.python_version()},
    }


def write_report(name: str, report: dict[str, Any]) -> None:
    """Write it to the file that --json names. Raises UserError."""
    try:
        Path(name).write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror}", field="json") from None
