"""What a person may say about an engine: goals and limits, no mechanisms."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.ops.chip import KvFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Everything that `open_engine` is told; what is None is decided from the model and the machine."""

    model: str
    """A local file or folder (already resolved by `ridgeline.weights`)."""
    name: str | None = None
    """What the model is called in answers; None: the file's or folder's name."""
    chip: str = "cpu"
    num_threads: int | None = None
    """None: as many as the process may use."""
    context_tokens: int | None = None
    """The longest prompt plus output; None: the model's own, or what fits in memory."""
    memory_bytes: int | None = None
    """For weights and pages together; None: what the machine has free, less a margin."""
    kv_format: KvFormat = "bf16"
    max_queued_requests: int = 4096
    max_queued_tokens: int = 1 << 22
    goal_seconds_per_token: float = 0.1
    """How long a running answer may wait for its next token while prompts are being read beside it."""
    draft_model: str | None = None
    """A small model of the same vocabulary, a file or folder like `model`, that guesses next tokens; answers are the
    same, only sooner. None: guesses are copied from texts."""
    speculation: bool = True
    """Whether steps may run guesses beside next tokens, where that pays; answers are the same. For measurements."""
    cache_folder: str | None = None
    """Where repacked weights and measurements are kept; None: `ridgeline.weights` decides."""
