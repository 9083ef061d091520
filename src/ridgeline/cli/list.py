"""`ridgeline list`."""

from __future__ import annotations

import argparse
import sys

from ridgeline.cli.words import bytes_in_words, table
from ridgeline.weights.stored_models import list_models


def run(options: argparse.Namespace) -> int:
    """Print the models that were pulled."""
    models = list_models()
    if not models:
        print("no models are here yet; `ridgeline pull` brings the default one", file=sys.stderr)
        return 0
    rows = [
        (
            model.name,
            model.format,
            bytes_in_words(model.size_bytes),
            f"{model.modified:%Y-%m-%d %H:%M}",
        )
        for model in models
    ]
    print(table(("NAME", "FORMAT", "SIZE", "MODIFIED"), rows))
    return 0
