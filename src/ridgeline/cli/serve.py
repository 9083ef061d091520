"""`ridgeline serve`.

The engine process takes the longest to be ready, so it is started first; what is needed here is imported while it
imports its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ridgeline.engine.child import EngineChild
from ridgeline.errors import UserError

if TYPE_CHECKING:
    from ridgeline.engine.remote import RemoteEngine
    from ridgeline.engine.settings import EngineSettings
    from ridgeline.server.front import ChatTokens, Tokens


def run(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    begin = time.monotonic()
    with EngineChild() as child:
        from ridgeline.cli.options import engine_settings
        from ridgeline.engine import messages
        from ridgeline.weights.pull import resolve_model

        settings = engine_settings(options, str(resolve_model(options.model)))
        child.connection.sendall(messages.frame(messages.Open(settings)))
        _serve(options, settings, child, begin)
    return 0


def _serve(options: argparse.Namespace, engine: EngineSettings, child: EngineChild, begin: float) -> None:
    from ridgeline.cli.words import bytes_in_words
    from ridgeline.server.serve import Server, ServeSettings

    path = Path(engine.model)
    keys = tuple(options.api_key) + tuple(filter(None, [os.environ.get("RIDGELINE_API_KEY")]))
    settings = ServeSettings(
        host=options.host,
        port=options.port,
        api_keys=keys,
        may_be_open=options.insecure_no_auth,
        drain_seconds=options.drain_seconds,
    )

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

    name = options.name or path.stem
    Server(settings, engine, lambda: _text_of(path), name, on_notice, on_ready, child).run()


def _text_of(path: Path) -> tuple[Tokens, ChatTokens]:
    from ridgeline.text.chat_prompt import chat_tokens
    from ridgeline.text.open import open_text
    from ridgeline.weights.cache_folder import default_cache_folder
    from ridgeline.weights.open import open_checkpoint

    checkpoint = open_checkpoint(path)
    try:
        tokenizer, template = open_text(checkpoint, default_cache_folder() / "text")
    finally:
        checkpoint.close()
    # So that the first conversation need not wait for it. A broken template hinders conversations alone, which say so.
    with suppress(UserError):
        template.prepare()
    return tokenizer, partial(chat_tokens, tokenizer, template)
