"""GGUF files: what was written is read, and the `gguf` package agrees."""

import numpy as np
import pytest

from ridgeline.errors import ModelFileError
from ridgeline.quant.formats import BY_NAME, FORMATS
from ridgeline.quant.reference import dequantize, quantize
from ridgeline.quant.tensor import HostTensor
from ridgeline.weights.facts import main_format, memory_bytes
from ridgeline.weights.gguf import GgufCheckpoint
from ridgeline.weights.open import open_checkpoint
from ridgeline.weights.write import write_gguf

METADATA = {
    "general.architecture": "llama",
    "text": "Grüße 你好 🙂",
    "empty": "",
    "true": True,
    "false": False,
    "small": 7,
    "negative": -7,
    "large": 1 << 40,
    "fraction": 0.5,
    "exact": np.float64(0.1),
    "byte": np.uint8(200),
    "strings": ["a", "", "Ġ", "x" * 300, "nul\0inside", "🙂"],
    "no strings": [],
    "ids": np.arange(5, dtype=np.int32),
    "scores": np.array([0.5, -1.5], dtype=np.float32),
    "flags": np.array([True, False]),
}


def tensor_of(name: str, shape: tuple[int, ...], format_name: str, seed: int = 0) -> HostTensor:
    entry = BY_NAME[format_name]
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return HostTensor(name=name, shape=shape, format=entry, data=quantize(values, entry))


ALL_FORMATS = [tensor_of(f"w.{entry.name}", (3, 512), entry.name, seed=entry.gguf_type) for entry in FORMATS]


def same(a, b):
    return a.name == b.name and a.shape == b.shape and a.format == b.format and np.array_equal(a.data, b.data)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment_bytes", [32, 64, 8])
def test_what_was_written_is_read(tmp_path, version, alignment_bytes):
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, ALL_FORMATS, version=version, alignment_bytes=alignment_bytes)
    checkpoint = open_checkpoint(path)
    assert checkpoint.kind == "gguf" and checkpoint.path == path
    assert checkpoint.names == tuple(tensor.name for tensor in ALL_FORMATS)
    for tensor in ALL_FORMATS:
        found = checkpoint.tensor(tensor.name)
        assert same(found, tensor) and checkpoint.shape(tensor.name) == tensor.shape
        assert not found.data.flags.writeable
    for key, value in METADATA.items():
        found = checkpoint.metadata[key]
        if isinstance(value, (list, np.ndarray)):
            assert list(found) == list(value)
        else:
            assert found == value and type(found) is type(value.item() if isinstance(value, np.generic) else value)


def test_the_gguf_package_reads_what_was_written(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    write_gguf(path, {key: value for key, value in METADATA.items() if key != "no strings"}, ALL_FORMATS)
    reader = gguf.GGUFReader(path)
    assert {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors} == {
        tensor.name: tensor.shape for tensor in ALL_FORMATS
    }
    for theirs, ours in zip(reader.tensors, ALL_FORMATS):
        assert theirs.tensor_type.name == ours.format.name
        np.testing.assert_array_equal(theirs.data.reshape(-1).view(np.uint8), ours.data)
    for key in ("text", "true", "small", "negative", "large", "fraction", "exact", "byte", "strings"):
        assert reader.get_field(key).contents() == METADATA[key], key


def test_what_the_gguf_package_writes_is_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["<s>", "a", "Ġb"])
    writer.add_array("llama.numbers", [1, 2, 3])
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("plain", values)
    writer.add_tensor("small", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), raw_dtype=8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata["tokenizer.ggml.tokens"].to_list() == ["<s>", "a", "Ġb"]
    assert checkpoint.metadata["llama.numbers"].tolist() == [1, 2, 3]
    for name in ("plain", "small"):
        tensor = checkpoint.tensor(name)
        np.testing.assert_allclose(dequantize(tensor.data, tensor.format, tensor.shape), values, atol=0.3)


def write_parts(folder, *, change=None):
    paths = [folder / f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, path in enumerate(paths):
        facts = {"split.no": number, "split.count": 3, "split.tensors.count": 6}
        metadata = {"general.architecture": "llama", "who": "first"} if number == 0 else {}
        tensors = [tensor_of(f"t{2 * number + i}", (2, 32), "Q8_0", seed=2 * number + i) for i in (0, 1)]
        write_gguf(path, {**metadata, **facts, **((change or {}).get(number, {}))}, tensors)
    return paths


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_parts_are_one_model_whichever_is_named(tmp_path, opened):
    checkpoint = open_checkpoint(write_parts(tmp_path)[opened])
    assert checkpoint.names == ("t0", "t1", "t2", "t3", "t4", "t5")
    assert checkpoint.metadata["who"] == "first"
    assert same(checkpoint.tensor("t5"), tensor_of("t5", (2, 32), "Q8_0", seed=5))
    assert open_checkpoint(tmp_path).names == checkpoint.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: {"split.no": 2}}, r"00002-of-00003\.gguf: split\.no: is 2"),
        ({0: {"split.count": 2}}, r"split\.count: is 2"),
        ({2: {"split.tensors.count": 7}}, r"split\.tensors\.count: is 7"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, change, message):
    paths = write_parts(tmp_path, change=change)
    with pytest.raises(ModelFileError, match=message):
        open_checkpoint(paths[0])


def test_a_missing_part_is_named(tmp_path):
    paths = write_parts(tmp_path)
    paths[1].unlink()
    for path in (paths[0], paths[2], tmp_path):
        with pytest.raises(ModelFileError, match=r"1 are missing: m-00002-of-00003\.gguf"):
            open_checkpoint(path)


def test_a_tensor_in_two_parts_is_refused(tmp_path):
    paths = write_parts(tmp_path)
    metadata = {"split.no": 1, "split.count": 3, "split.tensors.count": 6}
    write_gguf(paths[1], metadata, [tensor_of("t0", (2, 32), "Q8_0")])
    with pytest.raises(ModelFileError, match=r"tensor t0: is in m-00001-of-00003\.gguf already"):
        open_checkpoint(paths[0])


def test_absurd_numbers_of_parts_are_refused(tmp_path):
    path = tmp_path / "m-00001-of-99999.gguf"
    write_gguf(path, METADATA, [])
    with pytest.raises(ModelFileError, match="99999 parts"):
        open_checkpoint(path)


def test_an_unknown_tensor_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, ALL_FORMATS)
    with pytest.raises(ModelFileError, match=r"m\.gguf: there is no tensor nowhere"):
        open_checkpoint(path).tensor("nowhere")


def test_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, ALL_FORMATS)
    first = open_checkpoint(path).fingerprint()
    assert first == open_checkpoint(path).fingerprint()
    write_gguf(path, {**METADATA, "small": 8}, ALL_FORMATS)
    assert open_checkpoint(path).fingerprint() != first


def test_tensors_in_hand_outlive_the_checkpoint(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, ALL_FORMATS)
    checkpoint = open_checkpoint(path)
    tensor, strings = checkpoint.tensor("w.Q4_K"), checkpoint.metadata["strings"]
    checkpoint.close()
    assert same(tensor, next(t for t in ALL_FORMATS if t.name == "w.Q4_K"))
    assert strings.to_list() == METADATA["strings"]
    with pytest.raises(ModelFileError):
        checkpoint.tensor("w.Q4_K")


def test_bytes_are_counted_by_format(tmp_path):
    path = tmp_path / "m.gguf"
    tensors = [tensor_of("a", (4, 256), "Q4_K"), tensor_of("b", (8, 256), "Q4_K"), tensor_of("c", (4,), "F32")]
    write_gguf(path, METADATA, tensors)
    checkpoint = open_checkpoint(path)
    assert memory_bytes(checkpoint) == {"Q4_K": 12 * 144, "F32": 16}
    assert main_format(checkpoint) == "Q4_K"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, ALL_FORMATS)
    before = path.read_bytes()
    broken = HostTensor(name="x", shape=(2,), format=BY_NAME["F32"], data=None)
    with pytest.raises(AttributeError):
        write_gguf(path, METADATA, [broken])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_direct_class_agrees_with_opening_by_content(tmp_path):
    path = tmp_path / "model-without-a-suffix"
    write_gguf(path, METADATA, ALL_FORMATS)
    assert open_checkpoint(path).fingerprint() == GgufCheckpoint(path).fingerprint()
