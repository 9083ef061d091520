"""Every chip that can be opened here, held against the reference; and the suite held against chips that are wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ridgeline.chips.reference import ReferenceChip, ReferenceOps, ReferencePages
from ridgeline.model.conformance import decoder_cases, decoder_sameness_cases
from ridgeline.ops.chip import AnyChip
from ridgeline.ops.conformance import Case, SamenessCase, check, check_same, conformance_cases, sameness_cases
from tests.ops.chips import ENTRIES, Entry, opened

CASES = (*conformance_cases(), *decoder_cases())
SAMENESS_CASES = (*sameness_cases(), *decoder_sameness_cases())
ALIKE_FORMATS = re.compile(
    r"^(linear|embed|rows alone or together)/(?!F32|Q4_K|BF16)|token by token/.* |^decoder.*/(Q|BF16)"
)
"""Formats that a dequantising chip need not be tried on one by one."""


def ends_of_kinds(cases: Iterable[Case | SamenessCase]) -> set[str]:
    """The first and the last case of each kind, that is op and KV format; formats that are alike aside."""
    kinds: dict[tuple[str, str | None], list[str]] = {}
    for case in cases:
        if not ALIKE_FORMATS.search(case.name):
            kinds.setdefault((case.name.split("/")[0], case.kv_format), []).append(case.name)
    return {name for names in kinds.values() for name in (names[0], names[-1])}


ENDS = ends_of_kinds((*CASES, *SAMENESS_CASES))


@pytest.fixture(scope="module", params=ENTRIES, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chips")


@pytest.fixture
def chip(entry: Entry, folder: Path) -> Iterator[AnyChip]:
    chip = opened(entry.name, folder)
    yield chip
    chip.close()


def skip_what_the_chip_has_not(chip: AnyChip, entry: Entry, case: Case | SamenessCase) -> None:
    if case.kv_format is not None and case.kv_format not in chip.facts().kv_formats:
        pytest.skip(f"the {entry.name} chip does not keep keys and values as {case.kv_format}")
    if entry.is_compiling and case.name not in ENDS:
        pytest.skip("each case takes this chip seconds to compile; others of its kind are tried")
    if entry.is_dequantising and ALIKE_FORMATS.search(case.name):
        pytest.skip("all formats are float32 to this chip; F32, BF16 and Q4_K stand for them")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_chip_agrees_with_the_reference(chip: AnyChip, entry: Entry, case: Case) -> None:
    skip_what_the_chip_has_not(chip, entry, case)
    check(chip, ReferenceChip(), case)


@pytest.mark.parametrize("case", SAMENESS_CASES, ids=lambda case: case.name)
def test_chip_gives_the_same_either_way(chip: AnyChip, entry: Entry, case: SamenessCase) -> None:
    skip_what_the_chip_has_not(chip, entry, case)
    check_same(chip, case, is_bit_exact=entry.is_bit_exact)


def test_names_are_unique() -> None:
    names = [case.name for case in (*CASES, *SAMENESS_CASES)]
    assert len(set(names)) == len(names) > 200


# The suite itself: chips with one small fault each, and where it must show.


class OneFault(ReferenceOps):
    """The reference with one op replaced."""

    def __init__(self, name: str, fault: Any) -> None:
        setattr(self, name, fault(getattr(self, name)))


class FaultyChip(ReferenceChip):
    def __init__(self, name: str, fault: Any) -> None:
        super().__init__()
        self._ops = OneFault(name, fault)


def wrong_window(attend: Any) -> Any:
    def wrong(*args: Any, window: int | None, **rest: Any) -> Any:
        return attend(*args, window=None if window is None else window + 1, **rest)

    return wrong


def wrong_kv_head(attend: Any) -> Any:
    def wrong(q_THC: np.ndarray, pages: ReferencePages, layer: int, *args: Any, **rest: Any) -> Any:
        num_kv_heads = pages.keys[layer].shape[1]
        count = q_THC.shape[1]
        order = np.arange(count).reshape(-1, num_kv_heads).T.reshape(-1)  # head h reads kv head h % K
        return attend(q_THC[:, order], pages, layer, *args, **rest)[:, np.argsort(order)]

    return wrong


def sees_the_next_token(attend: Any) -> Any:
    def wrong(q_THC: Any, pages: Any, layer: int, step: Any, **rest: Any) -> Any:
        y_THC = attend(q_THC, pages, layer, step, **rest)
        if len(y_THC) > 1:
            y_THC[0] = y_THC[1]
        return y_THC

    return wrong


def rounds_with_its_mates(linear: Any) -> Any:
    def wrong(x_TD: np.ndarray, *args: Any) -> Any:
        return linear(x_TD * np.float32(1 + 1e-7 * (len(x_TD) > 4)), *args)

    return wrong


FAULTS = {
    "window one too wide": ("attend", wrong_window, r"attend/f32/4/2x64 window 64$"),
    "wrong kv head": ("attend", wrong_kv_head, r"attend/f32/9/3x64$"),
    "sees the next token": ("attend", sees_the_next_token, r"attend/bf16/1/1x64$"),
    "softcap forgotten": (
        "attend",
        lambda attend: lambda *args, softcap, **rest: attend(*args, softcap=None, **rest),
        r"attend/f32/.* softcap 20$",
    ),
    "rope turned backwards": (
        "rope",
        lambda rope: lambda x, angles: rope(x, angles * np.array([1, -1], dtype=np.float32)[:, None]),
        r"rope/.* turned 64$",
    ),
    "norm over all heads": (
        "rms_norm",
        lambda norm: (
            lambda x, weight, epsilon: (
                norm(x, weight, epsilon) if x.ndim == 2 else norm(x, weight, epsilon) * np.float32(1.001)
            )
        ),
        r"rms_norm of heads/9x64$",
    ),
    "bias forgotten": (
        "linear",
        lambda linear: lambda x, weight, bias=None: linear(x, weight),
        r"linear with bias/F32$",
    ),
    "rows swapped": ("take_rows", lambda take: lambda x, rows: take(x, rows[::-1]), r"take_rows$"),
    "gelu for silu": (
        "activate",
        lambda activate: lambda x, kind: activate(x, "gelu_tanh"),
        r"gated_mlp/silu/F32 F32 F32$",
    ),
    "coarse op without activation": (
        "gated_mlp",
        lambda gated: lambda x, gate, up, down, kind: gated(x, up, gate, down, kind),
        r"gated_mlp/silu/Q4_K Q4_K Q6_K$",
    ),
    "stored in the next slot": (
        "store_kv",
        lambda store: lambda pages, layer, k, v, step: store(pages, layer, np.roll(k, 1, axis=0), v, step),
        r"places/f32$",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_suite_finds_a_fault(fault: str) -> None:
    op, replacement, pattern = FAULTS[fault]
    (case,) = (case for case in CASES if re.search(pattern, case.name))
    check(ReferenceChip(), ReferenceChip(), case)
    with pytest.raises(AssertionError, match="is off by"):
        check(FaultyChip(op, replacement), ReferenceChip(), case)


def test_suite_finds_rows_that_depend_on_their_number() -> None:
    (case,) = (case for case in SAMENESS_CASES if case.name == "rows alone or together/Q4_K")
    check_same(FaultyChip("linear", rounds_with_its_mates), case, is_bit_exact=False)
    with pytest.raises(AssertionError, match="is off by"):
        check_same(FaultyChip("linear", rounds_with_its_mates), case, is_bit_exact=True)


def test_suite_finds_a_page_that_is_quantised_while_it_is_open() -> None:
    class Eager(ReferencePages):
        def as_seen_from_later_pages(self, keys: Any, values: Any) -> Any:
            # Quantises the open page with what it holds so far, which depends on where the prompt was cut.
            return keys, values

        def read(self, layer: int, page_ids: Any, num_tokens: int) -> Any:
            keys, values = super().read(layer, page_ids, num_tokens)
            peak = np.abs(keys).max(axis=0)
            return np.round(keys / peak * 127) * peak / 127, values

    class EagerChip(ReferenceChip):
        def allocate_pages(self, layout: Any, num_pages: int, limits: Any) -> Any:
            return Eager.allocate(layout, num_pages)

    (case,) = (case for case in SAMENESS_CASES if case.name == "whole or in chunks/int8/4/2x64")
    check_same(ReferenceChip(), case, is_bit_exact=True)
    with pytest.raises(AssertionError, match="is off by"):
        check_same(EagerChip(), case, is_bit_exact=True)
