"""Which format each tensor of a file gets: the named mixes, and what takes the place of a format that does not fit.

Knows: GGUF names of tensors, formats. Does not know: values, calibration, files.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ridgeline.errors import UserError
from ridgeline.quant import formats
from ridgeline.quant.formats import Format

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

STAND_INS: Mapping[str, str] = MappingProxyType(
    {
        "Q2_K": "Q3_K", "Q3_K": "IQ4_NL", "Q4_K": "IQ4_NL", "Q5_K": "Q5_0", "Q6_K": "Q8_0",
        **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"), "BF16"),
    }
)  # fmt: skip
"""What is taken where rows are not whole blocks: the next format of smaller blocks that is not worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """A quality that a person can ask for by name."""

    name: str
    body: Format
    """Of the matrices of the layers."""
    sensitive: Format
    """Of those among them that lose most for the bytes that they save: see `SENSITIVE`."""
    output: Format
    """Of the matrix that makes logits, which is also the embedding where the two are tied."""
    embedding: Format
    """Of an embedding that is only looked up: a token reads one row of it."""


SENSITIVE = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_down.weight")
"""How the names of sensitive matrices end. Those of attention are few, and `down` writes straight into the stream that
all later layers read."""


def _mix(name: str, body: Format, sensitive: Format, output: Format, embedding: Format) -> Mix:
    return Mix(name=name, body=body, sensitive=sensitive, output=output, embedding=embedding)


MIXES: tuple[Mix, ...] = (
    _mix("q8", formats.Q8_0, formats.Q8_0, formats.Q8_0, formats.Q8_0),
    _mix("q5", formats.Q5_K, formats.Q5_K, formats.Q5_K, formats.Q6_K),
    _mix("q4-high", formats.Q4_K, formats.Q5_K, formats.Q5_K, formats.Q6_K),
    _mix("q4", formats.Q4_K, formats.Q4_K, formats.Q5_K, formats.Q6_K),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What becomes of one tensor."""

    name: str
    shape: tuple[int, ...]
    source: Format
    wanted: Format
    """What the mix says."""
    chosen: Format
    """What the tensor gets: the wanted format, one that stands in for it, or the source's where that is as small."""

    @property
    def is_changed(self) -> bool:
        """Whether the tensor is rounded again."""
        return self.chosen is not self.source

    @property
    def stands_in(self) -> bool:
        """Whether rows of this width are no whole blocks of the wanted format."""
        return self.is_changed and self.chosen is not self.wanted

    @property
    def chosen_bytes(self) -> int:
        """What the tensor will take."""
        return math.prod(self.shape[:-1]) * self.chosen.row_bytes(self.shape[-1])


def mix_named(name: str) -> Mix:
    """The mix of that name, or one format for every matrix. Raises UserError that lists what there is."""
    for mix in MIXES:
        if mix.name == name.lower():
            return mix
    wanted = formats.BY_NAME.get(name.upper())
    if wanted is not None and wanted is not formats.F32:
        return _mix(wanted.name, wanted, wanted, wanted, wanted)
    known = [*(mix.name for mix in MIXES), *(entry.name for entry in formats.FORMATS if entry is not formats.F32)]
    near = difflib.get_close_matches(name.lower(), [entry.lower() for entry in known], n=1)
    raise UserError(
        f"there is no format {name!r}; there are the mixes {', '.join(mix.name for mix in MIXES)} and the formats "
        f"{', '.join(entry.name for entry in formats.FORMATS if entry is not formats.F32)}",
        hint=f"did you mean {near[0]}?" if near else "",
        field="format",
    )


def choices(mix: Mix, tensors: Iterable[tuple[str, tuple[int, ...], Format]]) -> tuple[Choice, ...]:
    """What becomes of each tensor (name, shape, format) of a file.

    Vectors stay as they are, and so does a matrix that takes no more bits already than it would: rounding it again
    would lose and win nothing.
    """
    listed = tuple(tensors)
    is_tied = all(name != OUTPUT for name, _, _ in listed)
    made = []
    for name, shape, source in listed:
        wanted = source
        if len(shape) > 1:
            wanted = _wanted(mix, name, is_tied)
        chosen = fitting(wanted, shape[-1])
        if len(shape) == 1 or chosen.bits_per_weight >= source.bits_per_weight:
            chosen = source
        made.append(Choice(name=name, shape=shape, source=source, wanted=wanted, chosen=chosen))
    return tuple(made)


def bytes_by_format(chosen: Iterable[Choice]) -> dict[str, int]:
    """What the tensors of each format will take together, the largest sum first."""
    totals: dict[str, int] = {}
    for choice in chosen:
        totals[choice.chosen.name] = totals.get(choice.chosen.name, 0) + choice.chosen_bytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _wanted(mix: Mix, name: str, is_tied: bool) -> Format:
    if name == OUTPUT or (name == EMBEDDING and is_tied):
        return mix.output
    if name == EMBEDDING:
        return mix.embedding
    return mix.sensitive if name.endswith(SENSITIVE) else mix.body


def fitting(wanted: Format, width: int) -> Format:
    """The format itself where its blocks divide the width, else the first that stands in for it and does."""
    while width % wanted.block_values:
        wanted = formats.BY_NAME[STAND_INS[wanted.name]]
    return wanted
