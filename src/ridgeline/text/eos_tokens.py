"""Which control tokens end an answer, judged by their names.

A file names one such token; models that were trained on conversations use several, and often the file names the other.
Source: the families' chat templates and `generation_config.json` files.
"""

from __future__ import annotations

from collections.abc import Mapping

EOS_NAMES = frozenset(
    {
        "</s>", "<eos>", "[EOS]", "<|eos|>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>",
        "<|eom_id|>", "<|eot|>", "<|eom|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<turn|>",
        "<|end_of_turn|>", "<|endofturn|>", "<|END_OF_TURN_TOKEN|>", "<EOT>", "_<EOT>", "[EOT]", "[e~[",
        "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>",
    }
)  # fmt: skip


def eos_ids_by_name(controls: Mapping[str, int]) -> set[int]:
    """The ids of those control tokens (name -> id) that end an answer."""
    names = EOS_NAMES & controls.keys()
    if {"<|return|>", "<|call|>"} <= names:
        names -= {"<|end|>"}  # Harmony: a message ends, the answer goes on
    return {controls[name] for name in names}
