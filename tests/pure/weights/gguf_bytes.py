"""GGUF files made byte by byte, so that tests can make them lie."""

import struct

U32, STRING, ARRAY, BOOL, U64 = 4, 8, 9, 7, 10


def text(content: bytes, *, claimed_length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if claimed_length is None else claimed_length) + content


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def strings(*items: bytes, count: int | None = None) -> bytes:
    """The value of a pair that is an array of strings."""
    return struct.pack("<IQ", STRING, len(items) if count is None else count) + b"".join(text(item) for item in items)


def tensor(
    name: bytes, dimensions: list[int], kind: int = 0, offset: int = 0, *, num_dimensions: int | None = None
) -> bytes:
    claimed = len(dimensions) if num_dimensions is None else num_dimensions
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", claimed, *dimensions, kind, offset)


ARCHITECTURE = pair(b"general.architecture", STRING, text(b"llama"))


def whole_file(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    num_tensors: int | None = None,
    num_pairs: int | None = None,
    data_bytes: int = 64,
    alignment: int = 32,
) -> bytes:
    """A file of these parts, right unless one that is given lies; by default one F32 tensor of 8 values."""
    pairs = [ARCHITECTURE] if pairs is None else pairs
    tensors = [tensor(b"a", [8])] if tensors is None else tensors
    counts = struct.pack(
        "<QQ",
        len(tensors) if num_tensors is None else num_tensors,
        len(pairs) if num_pairs is None else num_pairs,
    )
    head = magic + version + counts + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment + data_bytes)
