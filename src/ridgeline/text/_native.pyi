from typing import Any

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint32]

class BpeVocabulary:
    def __init__(
        self,
        *,
        blob: _Bytes,
        offsets: _Words,
        token_slots: _Words,
        merge_slots: _Words,
        may_merge: _Bytes,
        byte_ids: _Words,
        unknown_id: int,
        is_byte_level: bool,
        has_byte_fallback: bool,
        fuses_unknown: bool,
        ignores_merges: bool,
    ) -> None: ...
    def encode(self, pieces: list[str] | list[bytes]) -> list[int]: ...

class StringSet:
    def __init__(self, blob: _Bytes, offsets: _Words, ids: _Words) -> None: ...
    def find_in(self, text: str) -> list[tuple[int, int, int]]: ...

class UnigramVocabulary:
    def __init__(
        self,
        *,
        pieces: StringSet,
        scores: npt.NDArray[np.float64],
        byte_ids: _Words,
        unknown_id: int,
        unknown_score: float,
        has_byte_fallback: bool,
    ) -> None: ...
    def encode(self, pieces: list[str] | list[bytes]) -> list[int]: ...

class TokenLookup:
    def __init__(self, blob: _Bytes, offsets: _Words, slots: _Words) -> None: ...
    def find(self, text: str) -> int: ...

def checksum(data: _Bytes) -> int: ...
def token_slots(blob: _Bytes, offsets: _Words, is_present: _Bytes) -> _Words: ...
def merge_slots(blob: _Bytes, offsets: _Words, slots: _Words, may_merge: _Bytes, merges: list[Any]) -> _Words: ...
def score_merge_slots(
    blob: _Bytes, offsets: _Words, slots: _Words, may_merge: _Bytes, scores: npt.NDArray[np.float64]
) -> _Words: ...
def bytes_of_alphabet(blob: _Bytes, offsets: _Words, is_literal: _Bytes) -> tuple[bytes, npt.NDArray[np.int32]]: ...
