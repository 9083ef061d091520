"""`ridgeline serve`."""

from __future__ import annotations

import argparse
import os
import sys
import time

from ridgeline.cli.options import engine_settings
from ridgeline.cli.words import bytes_in_words
from ridgeline.engine.remote import RemoteEngine
from ridgeline.server.front import Template, Tokens
from ridgeline.server.serve import Server, ServeSettings
from ridgeline.text.open import open_text
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.pull import resolve_model


def run(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    begin = time.monotonic()
    path = resolve_model(options.model)
    name = options.name or path.stem
    keys = tuple(options.api_key) + tuple(filter(None, [os.environ.get("RIDGELINE_API_KEY")]))
    settings = ServeSettings(
        host=options.host,
        port=options.port,
        api_keys=keys,
        may_be_open=options.insecure_no_auth,
        drain_seconds=options.drain_seconds,
    )

    def load_text() -> tuple[Tokens, Template]:
        checkpoint = open_checkpoint(path)
        try:
            return open_text(checkpoint)
        finally:
            checkpoint.close()

    def on_ready(engine: RemoteEngine, url: str) -> None:
        model = engine.model
        print(f"model    {model.name}: {model.family}, {model.format_name}, "
              f"{bytes_in_words(model.weight_bytes)} of weights", file=sys.stderr)  # fmt: skip
        print(f"chip     {model.chip}", file=sys.stderr)
        print(f"context  {model.context_tokens} tokens a request; {model.num_pages * model.page_slots} tokens of "
              f"{model.kv_format} pages", file=sys.stderr)  # fmt: skip
        print(f"keys     {len(keys) or 'none: anyone on this machine may ask'}", file=sys.stderr)
        print(f"ready    {url}/v1 after {time.monotonic() - begin:.2f} s\n", file=sys.stderr)
        print(f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
              f"""    -d '{{"messages": [{{"role": "user", "content": "Hello!"}}]}}'\n""", file=sys.stderr)  # fmt: skip

    def on_notice(text: str) -> None:
        print(f"note: {text}", file=sys.stderr)

    Server(settings, engine_settings(options, str(path)), load_text, name, on_notice, on_ready).run()
    return 0
