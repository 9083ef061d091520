"""A vocabulary's strings as they lie in a GGUF file: found at once, made into Python strings when asked for.

A vocabulary of 150,000 tokens and as many merges takes pure Python a tenth of a second to walk and to decode, most of
what opening a model may cost; and who only wants the hyper-parameters, or hands the bytes to a native tokenizer, never
needs one of them as a `str`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from ridgeline.errors import ModelFileError

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

LENGTH_BYTES = 8
WINDOW_BYTES = 1 << 17
"""Bytes that the vectorised walk looks at together; fits the L2 cache."""

SINGLE_STEPS = 256
"""Strings that are walked one by one after a window that gave few: bounds what a file made for the purpose can cost."""

MAX_STRING_BYTES = 1 << 20
"""No token or merge is longer than this; a longer one is a damaged or hostile length."""


class LazyStrings(Sequence[str]):
    """The strings of one array of a GGUF file.

    Holds: `data`, the bytes of the array: for each string its length as 8 bytes, little-endian, then that many bytes;
    and `headers`, where in `data` each string's length begins, with the end of the last string as one more entry. Both
    stay valid while this object lives.
    """

    __slots__ = ("data", "field", "headers")

    def __init__(self, *, data: Bytes, headers: Offsets, field: str) -> None:
        self.data = data
        self.headers = headers
        self.field = field

    def __len__(self) -> int:
        return len(self.headers) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._decoded(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.field}[{index}]: there are {len(self)} strings")
        return self._decoded(index % len(self))

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_list())

    def __repr__(self) -> str:
        return f"<{len(self)} strings of {self.field}>"

    def bytes_of(self, index: int) -> bytes:
        """The bytes of one string; `index` counts from 0."""
        return self.data[self.headers[index] + LENGTH_BYTES : self.headers[index + 1]].tobytes()

    def to_list(self) -> list[str]:
        """All strings; ModelFileError if one is not UTF-8.

        Every length is cut down to one zero, so that the whole array is one text which is decoded and split in two
        calls. That cannot be done where strings hold zeros themselves: they are then taken singly.
        """
        lengths = np.diff(self.headers) - LENGTH_BYTES
        text_bytes = self.data.copy()
        text_bytes[self.headers[:-1]] = 0
        text_bytes[self.headers[:-1][lengths >= 256, None] + np.arange(1, LENGTH_BYTES)] = 0
        is_kept = text_bytes != 0
        if np.count_nonzero(is_kept) != lengths.sum():
            return [self._decoded(i) for i in range(len(self))]
        is_kept[self.headers[:-1]] = True
        try:
            # No code point reaches over a zero, so the text is valid if and only if each string is.
            return str(text_bytes[is_kept].data, "utf-8").split("\0")[1:]
        except UnicodeDecodeError:
            return [self._decoded(i) for i in range(len(self))]

    def _decoded(self, index: int) -> str:
        try:
            return self.bytes_of(index).decode()
        except UnicodeDecodeError:
            raise ModelFileError(f"{self.field}[{index}]: {self.bytes_of(index)[:32]!r} is not UTF-8 text") from None


def find_strings(data: Bytes, start: int, count: int, field: str) -> LazyStrings:
    """The `count` strings whose first length is at byte `start` of `data`.

    Raises ModelFileError if they do not fit into `data`. Memory: 8 bytes a string; the caller bounds `count`.

    Where each string begins depends on the length before it, a chain that one would have to walk link by link. But a
    length below 256 is one byte and seven zeros, and text holds no such run; so all runs of seven zeros in a window
    are found at once, and then *checked* to form the chain. As far as they do, they are the lengths by induction,
    whatever the bytes mean; where they do not (a long string, an empty one, zeros in the text), single steps go on.
    """
    headers = np.empty(count + 1, dtype=np.int64)
    position, done = start, 0
    while done < count:
        run = _leading_run(data[position : position + WINDOW_BYTES])[: count - done]
        if len(run):
            headers[done : done + len(run)] = run + position
            done += len(run)
            last = position + int(run[-1])
            position = last + LENGTH_BYTES + int(data[last])
        if len(run) < SINGLE_STEPS:
            for _ in range(min(SINGLE_STEPS, count - done)):
                headers[done] = position
                position = _end_of_string(data, position, f"{field}[{done}]")
                done += 1
    if position > len(data):
        raise ModelFileError(f"{field}[{count - 1}]: the string runs past the end of the file")
    headers[count] = position
    headers -= start
    return LazyStrings(data=data[start:position], headers=headers, field=field)


def _end_of_string(data: Bytes, position: int, field: str) -> int:
    """Where the string ends whose length is at `position`."""
    if position + LENGTH_BYTES > len(data):
        raise ModelFileError(f"{field}: the file ends before it", hint="the file is truncated: fetch it again")
    (length,) = struct.unpack_from("<Q", data[position : position + LENGTH_BYTES].data)
    end = position + LENGTH_BYTES + int(length)
    if length > MAX_STRING_BYTES or end > len(data):
        raise ModelFileError(
            f"{field}: says it is {length} bytes long; at most {MAX_STRING_BYTES} are allowed, and "
            f"{len(data) - position - LENGTH_BYTES} are left in the file",
            hint="the file is truncated or damaged: fetch it again",
        )
    return end


def _leading_run(window: Bytes) -> Offsets:
    """Offsets of the lengths of as many strings from the start of `window` as have lengths below 256."""
    if len(window) < LENGTH_BYTES:
        return np.empty(0, dtype=np.int64)
    is_zero = window[1:] == 0
    two = is_zero[:-1] & is_zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    offsets = np.flatnonzero(seven)
    if not len(offsets) or offsets[0] != 0:
        return np.empty(0, dtype=np.int64)
    does_follow = offsets[:-1] + window[offsets[:-1]] + LENGTH_BYTES == offsets[1:]
    length = len(offsets) if does_follow.all() else int(does_follow.argmin()) + 1
    return offsets[:length].astype(np.int64, copy=False)
