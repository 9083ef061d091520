"""Where Ridgeline keeps what it can fetch or make again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ridgeline.errors import UserError
from ridgeline.weights.disk import disk_errors

CACHE_HINT = "set RIDGELINE_CACHE to a folder that may be written and has room"


def default_cache_folder() -> Path:
    """The cache folder: RIDGELINE_CACHE, else ridgeline in XDG_CACHE_HOME, else ~/.cache/ridgeline. It may not exist.

    Raises UserError if there is no home folder to put it into.
    """
    if named := os.environ.get("RIDGELINE_CACHE"):
        return Path(named).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "ridgeline"
    try:
        return Path.home() / ".cache" / "ridgeline"
    except RuntimeError:
        raise UserError("there is no home folder to keep models in", hint=CACHE_HINT) from None


def made_folder(folder: Path) -> Path:
    """`folder`, which exists and may be written when this returns; CapacityError or UserError, naming it, otherwise."""
    with disk_errors(folder, hint=CACHE_HINT):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder
