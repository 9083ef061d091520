"""safetensors models: what was written is read, and files that lie are refused by name."""

import json
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.errors import ModelFileError, UserError
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_safetensors
from tests.pure.weights.test_gguf import same, tensor_of

CONFIG = {"model_type": "llama", "hidden_size": 8, "auto_map": {"AutoModel": "evil.Model"}}
TENSORS = [tensor_of(f"w.{name}", (3, 5), name, seed=i) for i, name in enumerate(("F32", "F16", "BF16"))]
SCALAR = tensor_of("scalar", (1,), "F32")


@pytest.mark.parametrize("shards", [[TENSORS], [TENSORS[:1], TENSORS[1:]], [[tensor] for tensor in TENSORS]])
def test_what_was_written_is_read(tmp_path, shards):
    write_safetensors(tmp_path, CONFIG, shards)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.kind == "safetensors" and checkpoint.path == tmp_path
    assert checkpoint.metadata == CONFIG
    assert sorted(checkpoint.names) == sorted(tensor.name for tensor in TENSORS)
    for tensor in TENSORS:
        assert same(checkpoint.tensor(tensor.name), tensor) and checkpoint.shape(tensor.name) == tensor.shape
    first = checkpoint.fingerprint()
    assert first == open_checkpoint(tmp_path).fingerprint()
    write_safetensors(tmp_path, {**CONFIG, "hidden_size": 9}, shards)
    assert open_checkpoint(tmp_path).fingerprint() != first
    with pytest.raises(ModelFileError, match="there is no tensor nowhere"):
        checkpoint.tensor("nowhere")
    checkpoint.close()
    with pytest.raises(ModelFileError):
        checkpoint.tensor("w.F32")


def test_a_single_file_is_opened_with_the_configuration_beside_it(tmp_path):
    write_safetensors(tmp_path, CONFIG, [TENSORS])
    assert len(open_checkpoint(tmp_path / "model.safetensors").names) == 3
    assert len(open_checkpoint(tmp_path / "config.json").names) == 3


def test_formats_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(UserError, match="Q8_0 cannot be written to a safetensors file"):
        write_safetensors(tmp_path, CONFIG, [[tensor_of("q", (2, 32), "Q8_0")]])


def file_bytes(header: object, data_bytes: int = 32, *, claimed_length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if claimed_length is None else claimed_length) + content + bytes(data_bytes)


def entry(dtype: object = "F32", shape: object = (8,), offsets: object = (0, 32), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


HUGE = (1 << 64) - 1

CASES = {
    "too short": (b"\x02\x00\x00", "header: a file of 3 bytes"),
    "header length 2^64-1": (file_bytes({"a": entry()}, claimed_length=HUGE), "header: says it is"),
    "header longer than the file": (file_bytes({"a": entry()}, claimed_length=5000), "header: says it is 5000"),
    "header cut short": (file_bytes({"a": entry()}, claimed_length=20), "header: "),
    "no JSON": (file_bytes(b"{hello}"), "header: "),
    "a list": (file_bytes(b"[1, 2]"), "header: "),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "header: "),
    "deep nesting": (file_bytes(b'{"a":' + b"[" * 100_000), "header|tensor a"),
    "deep nesting, closed": (file_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header|tensor a"),
    "no tensors": (file_bytes({}), "header: names no tensor"),
    "only remarks": (file_bytes({"__metadata__": {"a": "b"}}), "header: names no tensor"),
    "entry a number": (file_bytes({"a": 1}), "tensor a: "),
    "no dtype": (file_bytes({"a": {"shape": [8], "data_offsets": [0, 32]}}), "tensor a: .*dtype"),
    "entry with more": (file_bytes({"a": entry(extra=1)}), "tensor a: .*extra"),
    "dtype a number": (file_bytes({"a": entry(dtype=1)}), "tensor a: "),
    "dtype FP8": (file_bytes({"a": entry("F8_E4M3", (32,))}), "tensor a: is stored as F8_E4M3"),
    "dtype I32": (file_bytes({"a": entry("I32")}), "tensor a: is stored as I32"),
    "negative dimension": (file_bytes({"a": entry(shape=(-8,))}), "tensor a: "),
    "dimension 0": (file_bytes({"a": entry(shape=(0,), offsets=(0, 0))}, 0), "tensor a: has a dimension of 0"),
    "dimension a fraction": (file_bytes({"a": entry(shape=(8.5,))}), "tensor a: "),
    "dimension 2^62": (file_bytes({"a": entry(shape=(1 << 62, 4))}), "tensor a: takes bytes 0 to 32"),
    "dimensions that wrap to 8": (file_bytes({"a": entry(shape=(1 << 61, 8, 8))}), "tensor a: takes bytes"),
    "dimension 2^70": (file_bytes({"a": entry(shape=(1 << 70,))}), "tensor a: "),
    "shape too small": (file_bytes({"a": entry(shape=(7,))}), "tensor a: takes bytes 0 to 32, but F32"),
    "offsets reversed": (file_bytes({"a": entry(offsets=(32, 0))}), "tensor a: takes bytes 32 to 0"),
    "offsets negative": (file_bytes({"a": entry(offsets=(-32, 0))}), "tensor a: "),
    "three offsets": (file_bytes({"a": entry(offsets=(0, 32, 64))}), "tensor a: "),
    "offsets 2^62": (file_bytes({"a": entry(offsets=(1 << 61, (1 << 61) + 32))}), "tensor a: .* leaves a gap"),
    "offsets 2^64": (file_bytes({"a": entry(offsets=(HUGE - 32, HUGE))}), "tensor a: "),
    "gap at the start": (file_bytes({"a": entry(offsets=(4, 36))}, 36), "tensor a: .* leaves a gap"),
    "gap between": (file_bytes({"a": entry(), "b": entry(offsets=(36, 68))}, 68), "tensor b: .* leaves a gap"),
    "overlap": (file_bytes({"a": entry(), "b": entry(offsets=(28, 60))}, 60), "tensor b: .* overlaps"),
    "same name twice": (
        file_bytes(
            b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry(offsets=(32, 64))).encode() + b"}", 64
        ),
        "tensor a: .* leaves a gap",
    ),
    "past the end": (file_bytes({"a": entry()}, 31), "data_offsets: the tensors end at"),
    "bytes left over": (file_bytes({"a": entry()}, 33), "data_offsets: the tensors end at"),
    "empty name": (file_bytes({"": entry()}), "is no name"),
    "name with a terminal escape": (file_bytes({"\x1b[2J": entry()}), "is no name"),
}


def folder_with(tmp_path, content: bytes):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    return tmp_path


def test_the_case_that_all_others_are_made_from_is_right(tmp_path):
    assert open_checkpoint(folder_with(tmp_path, file_bytes({"a": entry()}))).names == ("a",)


@pytest.mark.parametrize("name", CASES)
def test_refused_by_name(tmp_path, name):
    content, message = CASES[name]
    folder = folder_with(tmp_path, content)
    start = time.process_time()
    with pytest.raises(ModelFileError, match=message) as caught:
        open_checkpoint(folder)
    assert time.process_time() - start < 0.1
    assert str(folder / "model.safetensors") in caught.value.message
    assert "0x" not in caught.value.message


def test_refusing_takes_no_memory(tmp_path):
    tracemalloc.start()
    try:
        for content, _ in CASES.values():
            with pytest.raises(ModelFileError):
                open_checkpoint(folder_with(tmp_path, content))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 << 20


CONFIGS = {
    "no JSON": (b"{", "config.json: is no JSON object"),
    "a list": (b"[]", "config.json: is no JSON object"),
    "not UTF-8": (b'{"a": "\xff"}', "config.json: is no JSON object"),
    "deep": (b'{"a":' + b"[" * 100_000, "config.json: is no JSON object"),
    "NaN": (b'{"rope_theta": NaN}', "config.json: is no JSON object"),
    "AWQ": (
        b'{"quantization_config": {"quant_method": "awq"}}',
        r"quantization_config: the weights are quantised \(awq\)",
    ),
    "odd": (b'{"quantization_config": 7}', r"quantization_config: the weights are quantised \(method not named\)"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_refused_by_name(tmp_path, name):
    content, message = CONFIGS[name]
    folder = folder_with(tmp_path, file_bytes({"a": entry()}))
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        open_checkpoint(folder)


INDEXES = {
    "path out": ({"weight_map": {"a": "../evil.safetensors"}}, "weight_map: '../evil.safetensors' is not the name"),
    "absolute path": ({"weight_map": {"a": "/etc/evil.safetensors"}}, "is not the name"),
    "Windows path": ({"weight_map": {"a": "..\\evil.safetensors"}}, "is not the name"),
    "drive": ({"weight_map": {"a": "c:evil.safetensors"}}, "is not the name"),
    "pickle": ({"weight_map": {"a": "model.bin"}}, "is not the name"),
    "number": ({"weight_map": {"a": 7}}, "is not the name"),
    "nothing": ({"weight_map": {}}, "weight_map: is missing or empty"),
    "no map": ({"metadata": {}}, "weight_map: is missing or empty"),
    "a list": ({"weight_map": ["a"]}, "weight_map: is missing or empty"),
    "missing shard": ({"weight_map": {"a": "model-9.safetensors"}}, "1 of 1 shards are missing: model-9"),
    "missing tensor": ({"weight_map": {"zz": "model.safetensors"}}, "lists 1 tensors that no shard holds, such as zz"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_are_refused_by_name(tmp_path, name):
    index, message = INDEXES[name]
    (tmp_path / "evil.safetensors").write_bytes(file_bytes({"a": entry()}))
    folder = tmp_path / "model"
    folder.mkdir()
    folder_with(folder, file_bytes({"a": entry()}))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=message):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_safetensors(tmp_path, CONFIG, [TENSORS[:1], TENSORS[1:]])
    first, second = sorted(tmp_path.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelFileError, match=r"tensor w\.F32: is in another shard already"):
        open_checkpoint(tmp_path)


def test_shards_without_an_index_are_refused(tmp_path):
    write_safetensors(tmp_path, CONFIG, [TENSORS[:1], TENSORS[1:]])
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelFileError, match=r"holds 2 safetensors files .* but no model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_cut_off_anywhere_is_refused(tmp_path):
    write_safetensors(tmp_path, CONFIG, [TENSORS])
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"model\.safetensors"):
            open_checkpoint(tmp_path)


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 6))
def test_mutated_files_are_opened_or_refused(tmp_path_factory, seed, count):
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(file_bytes({"a": entry(), "b": entry(offsets=(32, 64))}, 64))
    random = np.random.default_rng(seed)
    for _ in range(count):
        at = int(random.integers(0, len(content)))
        if random.random() < 0.3:
            del content[at : at + int(random.integers(1, 9))]
        else:
            content[at] = int(random.choice(list(b'{}[]",:0123456789 \xff\x00a')))
    try:
        checkpoint = open_checkpoint(folder_with(folder, bytes(content)))
        assert all(checkpoint.tensor(name).data.size for name in checkpoint.names)
    except ModelFileError as error:
        assert "model.safetensors" in error.message
