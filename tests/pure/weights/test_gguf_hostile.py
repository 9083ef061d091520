"""GGUF files that lie, are torn or were shot at: each is refused by name, in no time, in no memory."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import ModelFileError
from ridgeline.weights import gguf_header
from ridgeline.weights.gguf import GgufCheckpoint
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf
from tests.pure.weights.gguf_bytes import (
    ARCHITECTURE,
    ARRAY,
    BOOL,
    STRING,
    U32,
    U64,
    pair,
    strings,
    tensor,
    text,
    whole_file,
)
from tests.pure.weights.test_gguf import tensor_of

HUGE = (1 << 64) - 1
NEAR_HUGE = (1 << 64) - 32
MAX_SECONDS = 0.1
MAX_BYTES = 64 << 20


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


GOOD = whole_file()
HEAD_BYTES = 24

CASES = {
    "wrong magic": (whole_file(magic=b"GGUX"), "magic: is b'GGUX'"),
    "old magic": (whole_file(magic=b"tjgg"), "magic: is that of GGJT"),
    "four bytes": (b"GGUF", "version: needs 4 bytes"),
    "one byte": (b"G", "magic: needs 4 bytes"),
    "version 0": (whole_file(version=u32(0)), "version: "),
    "version 1": (whole_file(version=u32(1)), "version: is 1"),
    "version of the future": (whole_file(version=u32(4)), "version: is 4"),
    "big-endian": (whole_file(version=struct.pack(">I", 3)), "version: the file is big-endian"),
    "tensors 2^64-1": (whole_file(num_tensors=HUGE), f"number of tensors: is {HUGE}"),
    "tensors 2^63": (whole_file(num_tensors=1 << 63), "number of tensors"),
    "tensors that just do not fit": (whole_file(num_tensors=6), "number of tensors"),
    "more tensors than follow": (whole_file(num_tensors=2), "tensor"),
    "pairs 2^64-1": (whole_file(num_pairs=HUGE), f"number of key-value pairs: is {HUGE}"),
    "pairs 2^60": (whole_file(num_pairs=1 << 60), "number of key-value pairs"),
    "more pairs than follow": (whole_file(num_pairs=2), "tensor"),
    "key length 2^64-1": (whole_file([text(b"k", claimed_length=HUGE)]), "key 0: says it is"),
    "key length near 2^64": (whole_file([text(b"k", claimed_length=NEAR_HUGE)]), "key 0: says it is"),
    "key longer than the file": (whole_file([text(b"k", claimed_length=5000)]), "key 0: needs 5000 bytes"),
    "empty key": (whole_file([pair(b"", U32, u32(1))]), "key 0: is empty"),
    "key that is no text": (whole_file([pair(b"\xff\xfe", U32, u32(1))]), "key 0: .* not UTF-8"),
    "key with a terminal escape": (whole_file([pair(b"\x1b[2J", U32, u32(1))]), "cannot be printed"),
    "same key twice": (whole_file([ARCHITECTURE, ARCHITECTURE]), "general.architecture: is given twice"),
    "value type 13": (whole_file([pair(b"k", 13, bytes(8))]), "k: has value type 13"),
    "value type 2^32-1": (whole_file([pair(b"k", (1 << 32) - 1, bytes(8))]), "k: has value type"),
    "string length 2^64-1": (whole_file([pair(b"k", STRING, text(b"", claimed_length=HUGE))]), "k: says it is"),
    "string longer than the file": (whole_file([pair(b"k", STRING, text(b"", claimed_length=9999))]), "k: needs 9999"),
    "string that is no text": (whole_file([pair(b"k", STRING, text(b"\xc3("))]), "k: .* not UTF-8"),
    "truth value 2": (whole_file([pair(b"k", BOOL, b"\x02")]), "k: is a truth value of 2"),
    "array of truth values 2": (whole_file([pair(b"k", ARRAY, array(BOOL, 2, b"\x01\x02"))]), "k: has truth values"),
    "array length 2^64-1": (whole_file([pair(b"k", ARRAY, array(U32, HUGE))]), "k: needs"),
    "array bytes that wrap to 0": (whole_file([pair(b"k", ARRAY, array(U64, 1 << 61))]), "k: needs"),
    "array bytes that wrap to 8": (whole_file([pair(b"k", ARRAY, array(U64, (1 << 61) + 1))]), "k: needs"),
    "array of type 13": (whole_file([pair(b"k", ARRAY, array(13, 1, bytes(8)))]), "k: has items of type 13"),
    "array of arrays": (whole_file([pair(b"k", ARRAY, array(ARRAY, 1, array(U32, 0)))]), "k: is an array of arrays"),
    "strings 2^64-1": (whole_file([pair(b"k", ARRAY, strings(b"a", count=HUGE))]), "k: says it has"),
    "strings 2^61": (whole_file([pair(b"k", ARRAY, strings(b"a", count=1 << 61))]), "k: says it has"),
    "more strings than follow": (
        whole_file([pair(b"k", ARRAY, strings(b"a", count=12))], data_bytes=999),
        "k|key|tensor",
    ),
    "item length 2^64-1": (
        whole_file([pair(b"k", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"", claimed_length=HUGE))]),
        r"k\[0\]: says it is",
    ),
    "item length 2^63": (
        whole_file([pair(b"k", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"a") + text(b"", claimed_length=1 << 63))]),
        r"k\[1\]: says it is",
    ),
    "item a little too long": (
        whole_file([], [], num_pairs=1)[:HEAD_BYTES] + pair(b"k", ARRAY, strings(b"a" * 40)[:-1]),
        r"k\[0\]: ",
    ),
    "alignment 0": (whole_file([pair(b"general.alignment", U32, u32(0))]), "general.alignment: is 0"),
    "alignment 3": (whole_file([pair(b"general.alignment", U32, u32(3))]), "general.alignment: is 3"),
    "alignment 2^31": (whole_file([pair(b"general.alignment", U32, u32(1 << 31))]), "general.alignment: is"),
    "alignment of text": (whole_file([pair(b"general.alignment", STRING, text(b"32"))]), "general.alignment: is '32'"),
    "alignment of truth": (whole_file([pair(b"general.alignment", BOOL, b"\x01")]), "general.alignment: is True"),
    "tensor name length 2^64-1": (
        whole_file(None, [text(b"a", claimed_length=HUGE)], num_tensors=1),
        "name of tensor 0",
    ),
    "tensor name of 256": (whole_file(None, [tensor(b"a" * 256, [8])]), "name of tensor 0: says it is 256"),
    "empty tensor name": (whole_file(None, [tensor(b"", [8])]), "name of tensor 0: is empty"),
    "same tensor twice": (
        whole_file(None, [tensor(b"a", [8]), tensor(b"a", [8], offset=32)]),
        "tensor a: is given twice",
    ),
    "no dimensions": (whole_file(None, [tensor(b"a", [])]), "tensor a: has 0 dimensions"),
    "five dimensions": (whole_file(None, [tensor(b"a", [2] * 5)]), "tensor a: has 5 dimensions"),
    "2^32-1 dimensions": (
        whole_file(None, [tensor(b"a", [8], num_dimensions=(1 << 32) - 1)]),
        "tensor a: has 4294967295",
    ),
    "dimension 0": (whole_file(None, [tensor(b"a", [8, 0])]), "tensor a: has a dimension of 0"),
    "inner dimension 0": (whole_file(None, [tensor(b"a", [0, 8])]), "tensor a: has a dimension of 0"),
    "dimension 2^64-1": (whole_file(None, [tensor(b"a", [HUGE])]), "tensor a"),
    "dimension 2^63": (whole_file(None, [tensor(b"a", [1 << 63])]), "tensor a"),
    "values wrap to 0": (whole_file(None, [tensor(b"a", [1 << 32, 1 << 32])]), "tensor a"),
    "values wrap to 1": (whole_file(None, [tensor(b"a", [3, 0xAAAAAAAAAAAAAAAB])]), "tensor a"),
    "bytes wrap to 0": (whole_file(None, [tensor(b"a", [1 << 62])]), "tensor a"),
    "bytes wrap by padding": (whole_file(None, [tensor(b"a", [(1 << 62) - 1])]), "tensor a"),
    "two tensors of 2^63 bytes": (
        whole_file(None, [tensor(b"a", [1 << 61]), tensor(b"b", [1 << 61], offset=1 << 63)]),
        "tensor a",
    ),
    "rows of no whole blocks": (whole_file(None, [tensor(b"a", [31], 2)]), "tensor a: has rows of 31"),
    "type 4, removed": (whole_file(None, [tensor(b"a", [32], 4)]), "tensor a: is stored as type 4"),
    "type IQ2_XXS": (whole_file(None, [tensor(b"a", [256], 16)]), "tensor a: is stored as IQ2_XXS"),
    "type 2^32-1": (whole_file(None, [tensor(b"a", [8], (1 << 32) - 1)]), "tensor a: is stored as type"),
    "offset past the end": (whole_file(None, [tensor(b"a", [8], offset=64)]), "tensor a: .* would end at"),
    "offset near 2^64": (whole_file(None, [tensor(b"a", [8], offset=NEAR_HUGE)]), "tensor a: .* would end at"),
    "offset not aligned": (whole_file(None, [tensor(b"a", [8], offset=4)]), "tensor a: begins at offset 4"),
    "size past the end": (whole_file(None, [tensor(b"a", [17])]), "tensor a: .* would end at"),
    "overlap": (whole_file(None, [tensor(b"a", [9]), tensor(b"b", [8], offset=32)]), "tensor b: overlaps tensor a"),
    "same place": (whole_file(None, [tensor(b"a", [8]), tensor(b"b", [8])]), "overlaps"),
    "no tensors": (whole_file(None, []), "number of tensors: is 0"),
    "no architecture": (whole_file([pair(b"k", U32, u32(1))]), "general.architecture: is None"),
    "architecture a number": (whole_file([pair(b"general.architecture", U32, u32(1))]), "general.architecture: is 1"),
    "adapter": (whole_file([ARCHITECTURE, pair(b"general.type", STRING, text(b"adapter"))]), "LoRA adapter"),
    "projector": (whole_file([pair(b"general.architecture", STRING, text(b"clip"))]), "image projector"),
}


def test_the_case_that_all_others_are_made_from_is_right(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD)
    assert open_checkpoint(path).names == ("a",)


@pytest.mark.parametrize("name", CASES)
def test_refused_by_name(name, tmp_path):
    content, message = CASES[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ModelFileError, match=message) as caught:
        open_checkpoint(path)
    assert time.process_time() - start < MAX_SECONDS
    assert str(path) in caught.value.message
    assert "0x" not in caught.value.message


def test_refusing_takes_no_memory(tmp_path):
    path = tmp_path / "m.gguf"
    tracemalloc.start()
    try:
        for content, _ in CASES.values():
            path.write_bytes(content)
            with pytest.raises(ModelFileError):
                open_checkpoint(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < MAX_BYTES


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A valid file that has one of everything."""
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "general.alignment": 32,
        "tokenizer.ggml.tokens": ["<s>", "</s>", "", "a" * 300, "Ġthe", "你好"] + [f"t{i}" for i in range(20)],
        "tokenizer.ggml.scores": np.zeros(26, dtype=np.float32),
        "flag": True,
        "flags": np.array([True, False]),
        "rate": 0.5,
        "big": 1 << 50,
    }
    tensors = [tensor_of("token_embd.weight", (4, 64), "Q8_0"), tensor_of("output_norm.weight", (64,), "F32")]
    tensors += [tensor_of("blk.0.attn_q.weight", (2, 256), "Q4_K")]
    write_gguf(path, metadata, tensors)
    return path.read_bytes()


def outcome(path, content: bytes) -> str:
    """What opening `content` and touching everything in it comes to; anything but these two is a bug of ours."""
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names:
            checkpoint.tensor(name).data.sum()
        for value in checkpoint.metadata.values():
            list(value) if hasattr(value, "__len__") else value
        checkpoint.fingerprint()
    except ModelFileError as error:
        assert str(path) in error.message
        return "refused"
    return "opened"


def test_cut_off_anywhere_is_refused(small_file, tmp_path):
    path = tmp_path / "m.gguf"
    for length in range(len(small_file)):
        assert outcome(path, small_file[:length]) == "refused", length


LENGTHS = [
    0,
    1,
    7,
    8,
    31,
    255,
    256,
    1 << 16,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 48,
    1 << 61,
    1 << 62,
    1 << 63,
    HUGE,
    NEAR_HUGE,
]


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """A few of: flip a bit, overwrite a number, cut out, double, swap pieces; most of them in the head."""
    data = bytearray(content)
    for _ in range(random.integers(1, 5)):
        limit = len(data) if random.random() < 0.2 else min(len(data), 900)
        at = int(random.integers(0, max(1, limit)))
        match random.integers(0, 6):
            case 0:
                data[at] ^= 1 << int(random.integers(0, 8))
            case 1:
                data[at : at + 8] = struct.pack("<Q", LENGTHS[random.integers(0, len(LENGTHS))])
            case 2:
                data[at : at + 4] = struct.pack("<I", LENGTHS[random.integers(0, len(LENGTHS))] & 0xFFFFFFFF)
            case 3:
                del data[at : at + int(random.integers(1, 64))]
            case 4:
                data[at:at] = data[at : at + int(random.integers(1, 64))]
            case 5:
                data[at] = int(random.integers(0, 256))
        if not data:
            break
    return bytes(data)


def test_mutated_files_are_opened_or_refused(small_file, tmp_path):
    path = tmp_path / "m.gguf"
    outcomes = {"opened": 0, "refused": 0}
    for seed in range(1500):
        start = time.process_time()
        outcomes[outcome(path, mutated(small_file, np.random.default_rng(seed)))] += 1
        assert time.process_time() - start < 1, seed
    # Were one of the two rare, the mutations would not test what they are for.
    assert min(outcomes.values()) > 100, outcomes


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic_are_opened_or_refused(tmp_path_factory, content):
    outcome(tmp_path_factory.getbasetemp() / "any.gguf", b"GGUF\x03\x00\x00\x00" + content)


ITEMS = st.lists(st.binary(max_size=4) | st.just(b"x" * 255) | st.just(b"y" * 256) | st.just(bytes(16)), max_size=400)


@settings(max_examples=150, deadline=None)
@given(items=ITEMS, window_bytes=st.sampled_from([16, 64, 1 << 17]), steps=st.sampled_from([1, 5, 256]))
def test_strings_are_found_whatever_they_hold(tmp_path_factory, items, window_bytes, steps):
    """The vectorised walk and the plain one agree: on empty strings, zeros, long strings and window ends."""
    path = tmp_path_factory.getbasetemp() / "strings.gguf"
    path.write_bytes(whole_file([ARCHITECTURE, pair(b"k", ARRAY, strings(*items))]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ridgeline.weights.lazy_strings.WINDOW_BYTES", window_bytes)
        patch.setattr("ridgeline.weights.lazy_strings.SINGLE_STEPS", steps)
        found = GgufCheckpoint(path).metadata["k"]
    assert len(found) == len(items)
    assert [found.bytes_of(i) for i in range(len(found))] == items
    try:
        expected = [item.decode() for item in items]
    except UnicodeDecodeError:
        with pytest.raises(ModelFileError, match=r"k\[\d+\]: .* not UTF-8"):
            found.to_list()
    else:
        assert found.to_list() == expected == list(found) == found[:] == [found[i] for i in range(-len(items), 0)]
        with pytest.raises(IndexError):
            found[len(items)]


def test_a_vocabulary_made_to_be_slow_is_still_walked_in_bounded_time(tmp_path):
    """Strings that the vectorised walk finds one at a time: an empty one after each run of two."""
    path = tmp_path / "m.gguf"
    path.write_bytes(whole_file([ARCHITECTURE, pair(b"k", ARRAY, strings(*[b"ab", b"cd", b""] * 20_000))]))
    start = time.process_time()
    assert len(GgufCheckpoint(path).metadata["k"]) == 60_000
    assert time.process_time() - start < 1


def test_bounds_on_what_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_header, "MAX_ARRAY_BYTES", 100)
    path = tmp_path / "m.gguf"
    path.write_bytes(
        whole_file([ARCHITECTURE, *(pair(b"k%d" % i, ARRAY, array(U32, 20, bytes(80))) for i in range(2))])
    )
    with pytest.raises(ModelFileError, match="k1: brings the arrays to 160 bytes"):
        open_checkpoint(path)
