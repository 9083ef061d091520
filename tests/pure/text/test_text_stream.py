"""Text while it comes: however it is cut, the same text."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import RequestError
from ridgeline.text.detokenizer import Detokenizer
from ridgeline.text.spec import LeadingSpace
from ridgeline.text.stop_strings import StopAutomaton, StopFinder
from ridgeline.text.text_stream import TextStream
from ridgeline.text.token_bytes import TokenBytes

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [
    b" the",
    b"ab",
    "é".encode(),
    "你好".encode(),
    "😀".encode(),
    "😀".encode()[:2],
    "😀".encode()[2:],
    b"",
    b"  a",
]
TABLE_ENTRIES = [*BYTES, *WORDS, b"<end>"]
END = len(TABLE_ENTRIES) - 1


def table(leading_space: LeadingSpace = LeadingSpace.KEEP) -> TokenBytes:
    offsets = np.cumsum([0, *map(len, TABLE_ENTRIES)]).astype(np.int32)
    is_special = np.zeros(len(TABLE_ENTRIES), dtype=np.bool_)
    is_special[END] = True
    blob = np.frombuffer(b"".join(TABLE_ENTRIES), dtype=np.uint8)
    return TokenBytes(blob=blob, offsets=offsets, is_special=is_special, leading_space=leading_space)


IDS = st.lists(st.one_of(st.integers(0, END), st.integers(0x60, 0x64), st.integers(256, END)), max_size=30)


@given(ids=IDS, skips=st.booleans(), leading_space=st.sampled_from(LeadingSpace))
def test_pieces_make_the_whole(ids: list[int], skips: bool, leading_space: LeadingSpace) -> None:
    tokens = table(leading_space)
    detokenizer = Detokenizer(tokens, skip_special_tokens=skips)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    text = "".join([*pieces, detokenizer.finish()])
    assert text == tokens.text_of(ids, skip_special_tokens=skips)
    if leading_space is LeadingSpace.KEEP:
        kept = [TABLE_ENTRIES[token_id] for token_id in ids if not (skips and token_id == END)]
        assert text == b"".join(kept).decode("utf-8", errors="replace")


def test_never_half_a_character() -> None:
    detokenizer = Detokenizer(table())
    assert [detokenizer.push(byte) for byte in "a😀é".encode()] == ["a", "", "", "", "😀", "", "é"]
    assert detokenizer.push(0xF0) == "" and detokenizer.finish() == "\ufffd"


def test_invalid_bytes_come_at_once() -> None:
    detokenizer = Detokenizer(table())
    assert [detokenizer.push(byte) for byte in (0xFF, 0xE4, 0x41)] == ["\ufffd", "", "\ufffdA"]


def test_table_travels() -> None:
    tokens = pickle.loads(pickle.dumps(table()))
    assert tokens.text_of([256, 257, END]) == " theab" and len(tokens) == END + 1
    for token_id in (-1, END + 1):
        with pytest.raises(RequestError, match="vocabulary"):
            tokens.bytes_of(token_id)


def cut_plainly(text: str, stops: list[str], keeps: bool) -> tuple[str, str | None]:
    """The definition: read on character by character until the text ends with a stop string; the longest counts."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return (text[:end] if keeps else text[: end - len(stop)]), stop
    return text, None


LETTERS = st.text(st.sampled_from("aab你"), max_size=30)
STOPS = st.lists(st.text(st.sampled_from("ab你"), min_size=1, max_size=5), min_size=1, max_size=4)


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 30), max_size=8), keeps=st.booleans())
def test_cuts_make_no_difference(text: str, stops: list[str], cuts: list[int], keeps: bool) -> None:
    finder = StopFinder(StopAutomaton(stops), keeps_stop=keeps)
    places = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    shown = ""
    for start, end in itertools.pairwise(places):
        shown += finder.push(text[start:end])
        _, stopped_by = cut_plainly(text[:end], stops, keeps)
        assert finder.stopped_by == stopped_by
        if stopped_by is not None:
            break
        # What is held back is exactly what may still become a stop string.
        held = text[len(shown) : end]
        longest = max(
            (size for stop in stops for size in range(len(stop)) if text[:end].endswith(stop[:size])), default=0
        )
        assert len(held) == longest
    shown += finder.finish() if finder.stopped_by is None else ""
    assert (shown, finder.stopped_by) == cut_plainly(text, stops, keeps)


@given(ids=IDS, stops=st.lists(st.sampled_from(["ab", "b", "the a", "é", "你", "\ufffd", "😀a", "<end>"]), max_size=3),
       keeps=st.booleans(), skips=st.booleans())  # fmt: skip
def test_stream_is_the_whole_cut_at_the_stop(ids: list[int], stops: list[str], keeps: bool, skips: bool) -> None:
    tokens = table()
    stream = TextStream(tokens, stop=tuple(stops), include_stop_str_in_output=keeps, skip_special_tokens=skips)
    shown = ""
    for token_id in ids:
        shown += stream.push(token_id)
        if stream.stopped_by is not None:
            break
    shown += stream.finish()
    whole, stopped_by = cut_plainly(tokens.text_of(ids, skip_special_tokens=skips), stops, keeps)
    assert (shown, stream.stopped_by) == (whole, stopped_by)


def test_no_stop_in_the_first_tokens() -> None:
    stream = TextStream(table(), stop=("ab",), min_tokens=2)
    assert [stream.push(257), stream.push(0x61), stream.push(0x62), stream.push(257)] == ["ab", "a", "b", ""]
    assert stream.stopped_by == "ab" and stream.finish() == ""


def test_long_stop_strings_are_linear() -> None:
    automaton = StopAutomaton(["a" * 1024 + "b", "a" * 512 + "c"])
    finder = StopFinder(automaton)
    shown = finder.push("a" * 100_000)
    assert len(shown) == 100_000 - 1024 and finder.push("b") == "" and finder.stopped_by == "a" * 1024 + "b"
