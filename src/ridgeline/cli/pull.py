"""`ridgeline pull`."""

from __future__ import annotations

import argparse

from ridgeline.weights.pull import resolve_model


def run(options: argparse.Namespace) -> int:
    """Bring a model here and say where it is."""
    print(resolve_model(options.model, refresh=True))
    return 0
