"""Types of the native module; what things mean is said in bindings.cpp and in the headers beside it.

Addresses are plain integers: whoever makes an object from one keeps the memory behind it alive.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int32]

PACKED_LAYOUT_VERSION: int
REPEATED_ROWS: int
"""How many rows a thread may prepare in its own memory."""

class ThreadPool:
    def __init__(self, num_threads: int) -> None: ...
    @property
    def num_threads(self) -> int: ...

class Memory:
    """Zeroed memory from the system; raises MemoryError."""

    def __init__(self, bytes: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...
    def array(self) -> _Bytes:
        """The memory itself, which lives as long as the array."""

class Matrix:
    def __init__(self, format: int, rows: int, width: int, address: int) -> None: ...

class Place:
    def __init__(self, offset: int, stride: int) -> None: ...

class PreparedPlace:
    def __init__(self, kind: int, offset_bytes: int, own_offset_bytes: int) -> None: ...

class Part:
    def __init__(
        self, matrix: Matrix, prepared: PreparedPlace, out: Place, bias_address: int = 0, accumulate: bool = False
    ) -> None: ...

class KvLayer:
    def __init__(
        self,
        format: int,
        num_heads: int,
        head_width: int,
        pages_address: int,
        page_stride: int,
        open_address: int,
        place_stride: int,
    ) -> None: ...

class Record:
    def __init__(self, op: int, rows: int) -> None: ...
    index: int
    activation: int
    vector_address: int
    needs_barrier: bool
    may_repeat: bool
    x: Place
    y: Place
    out: Place
    width: int
    num_heads: int
    turned_width: int
    factor: float
    softcap: float
    window: int
    table: Matrix
    prepared: list[PreparedPlace]
    prepares_output: bool
    parts: list[Part]
    layer: KvLayer
    is_joined: bool
    query_chain: list[int]
    key_chain: list[int]
    value_chain: list[int]
    store: int

class BoundStep:
    """A step's arrays, which it keeps alive; ValueError if their lengths do not fit together."""

    def __init__(
        self,
        token_ids: _Indices,
        positions: _Indices,
        slots: _Indices,
        sequences: _Indices,
        query_starts: _Indices,
        context_lengths: _Indices,
        page_table: _Indices,
        places: _Indices,
        logit_rows: _Indices,
        /,
    ) -> None: ...

class Plan:
    def __init__(
        self,
        pool: ThreadPool,
        records: Sequence[Record],
        max_tokens: int,
        max_sequences: int,
        max_logit_rows: int,
        max_pages_per_sequence: int,
        num_pages: int,
        arena_bytes: int,
    ) -> None: ...
    def run(self, step: BoundStep) -> None:
        """Runs a step without the GIL; raises ValueError if it breaks a law, and then nothing has changed."""
    def run_and_choose(self, step: BoundStep, choices: bytes, adjustments: bytes) -> list[int]:
        """The same, and a token from each row of logits; see ops/choice.py for the records."""
    def choose_from(self, logits: Place, width: int) -> None:
        """Says where logits are that tokens may be chosen from."""
    def value(self, place: Place, rows: int, width: int) -> _Floats:
        """A view of the arena, which lives as long as the view; the next `run` writes over it."""
    def seconds(self) -> float: ...
    def memory_bytes(self) -> int: ...
    def set_timing(self, is_on: bool) -> None: ...
    def num_threads(self) -> int: ...
    def busy_seconds(self, thread: int) -> list[float]: ...
    def wait_seconds(self, thread: int) -> list[float]:
        """At the barrier before each record."""

def instruction_set() -> str: ...
def instruction_sets() -> list[str]:
    """Names of those that this CPU can run, the best first."""

def set_instruction_set(name: str) -> bool:
    """Chooses one for what is compiled from then on; false if this CPU has not got it."""

def has_fast_products(format: int) -> bool:
    """Whether the instruction set in use has kernels of its own for a format."""

def activation_kind(format: int) -> int: ...
def activation_row_bytes(kind: int, width: int) -> int: ...
def packed_bytes(format: int, rows: int, width: int) -> int: ...
def pack(pool: ThreadPool, format: int, rows: int, width: int, source: _Bytes, packed: _Bytes) -> None: ...
def unpacked_rows(matrix: Matrix, rows: _Indices) -> _Floats: ...
def product(pool: ThreadPool, matrix: Matrix, x: _Floats) -> _Floats:
    """X @ matrix.T, by itself."""

def checksum(pool: ThreadPool, data: _Bytes) -> int: ...
def measured_rate(pool: ThreadPool, what: str, seconds: float) -> float:
    """Operations a second of a loop ("int8", "bf16", "fp32"), or bytes a second ("read")."""

def block_bytes(format: int, head_width: int) -> int: ...
def plain_block_bytes(head_width: int) -> int: ...
