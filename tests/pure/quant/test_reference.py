"""The numpy definition of every weight format, held against the `gguf` package and against itself."""

import numpy as np
import pytest

from ridgeline.errors import UserError
from ridgeline.quant import formats, reference
from ridgeline.quant.formats import FORMATS, Format
from ridgeline.quant.reference import dequantize, quantize

QUANTISED = [entry for entry in FORMATS if entry.is_quantised]

# Share of the signal's root mean square that rounding Gaussian values may lose: about what the bits of each can do.
LOSSES = {
    "F32": 0.0, "F16": 3e-4, "BF16": 2.5e-3, "Q4_0": 0.09, "Q4_1": 0.08, "Q5_0": 0.045, "Q5_1": 0.04, "Q8_0": 0.006,
    "Q2_K": 0.30, "Q3_K": 0.16, "Q4_K": 0.08, "Q5_K": 0.04, "Q6_K": 0.021, "IQ4_NL": 0.08, "MXFP4": 0.13,
}  # fmt: skip


def by_name(entry: Format) -> str:
    return entry.name


def random_blocks(entry: Format, num_blocks: int, seed: int) -> np.ndarray:
    """Random bytes; so scales take every value, NaN and infinity included."""
    return np.random.default_rng(seed).integers(0, 256, (num_blocks, entry.block_bytes), dtype=np.uint8)


@pytest.mark.parametrize("entry", FORMATS, ids=by_name)
def test_dequantize_is_bit_equal_to_the_gguf_package(entry):
    gguf = pytest.importorskip("gguf")
    blocks = random_blocks(entry, 4000, seed=entry.gguf_type)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(entry.gguf_type)).astype(np.float32)
    found = dequantize(blocks, entry, expected.shape)
    assert found.dtype == np.float32
    is_number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), ~is_number)
    np.testing.assert_array_equal(found.view(np.uint32)[is_number], expected.view(np.uint32)[is_number])


@pytest.mark.parametrize("entry", FORMATS, ids=by_name)
def test_size_of_a_block_is_that_of_the_gguf_package(entry):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType(entry.gguf_type)
    assert kind.name == entry.name
    assert gguf.GGML_QUANT_SIZES[kind] == (entry.block_values, entry.block_bytes)


@pytest.mark.parametrize("entry", FORMATS, ids=by_name)
def test_quantised_values_come_back_within_the_loss_of_the_format(entry):
    values = np.random.default_rng(7).standard_normal((64, 512)).astype(np.float32) * 0.02
    data = quantize(values, entry)
    assert data.dtype == np.uint8 and data.shape == (64 * entry.row_bytes(512),)
    back = dequantize(data, entry, values.shape)
    loss = np.sqrt(((back - values) ** 2).mean() / (values**2).mean())
    assert loss <= LOSSES[entry.name], loss


THEY_QUANTISE = [entry for entry in FORMATS if not entry.name.endswith("_K") and entry.name != "IQ4_NL"]


@pytest.mark.parametrize("entry", THEY_QUANTISE, ids=by_name)
def test_quantising_is_no_worse_than_the_gguf_package(entry):
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(8).standard_normal((64, 512)).astype(np.float32)
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType(entry.gguf_type))
    theirs = dequantize(theirs.view(np.uint8), entry, values.shape)
    ours = dequantize(quantize(values, entry), entry, values.shape)
    assert ((ours - values) ** 2).sum() <= ((theirs - values) ** 2).sum() * 1.0001


@pytest.mark.parametrize("entry", FORMATS, ids=by_name)
@pytest.mark.parametrize("level", [0.0, 1.0, -3.0, 1e-30, -1e-7])
def test_constant_values_stay_close(entry, level):
    values = np.full((2, 256), level, dtype=np.float32)
    back = dequantize(quantize(values, entry), entry, values.shape)
    # Sixteen-bit scales cannot tell numbers below 2^-24 from zero.
    np.testing.assert_allclose(back, values, rtol=0.09 if entry.name == "MXFP4" else 0.02, atol=1e-7)


WITH_COARSE_SCALES = ("Q2_K", "Q3_K")
"""Their sub-block scales have so few levels that the search may settle on other ones the second time."""


@pytest.mark.parametrize("entry", [e for e in QUANTISED if e.name not in WITH_COARSE_SCALES], ids=by_name)
def test_what_was_dequantised_is_quantised_without_further_loss(entry):
    """Values that a format can hold exactly lose next to nothing when they are rounded into it again."""
    values = np.random.default_rng(9).standard_normal((8, 512)).astype(np.float32)
    once = dequantize(quantize(values, entry), entry, values.shape)
    twice = dequantize(quantize(once, entry), entry, values.shape)
    assert np.abs(twice - once).max() <= 0.1 * np.abs(values - once).max()


@pytest.mark.parametrize("entry", QUANTISED, ids=by_name)
def test_each_block_stands_alone(entry, monkeypatch):
    """A chunk's size changes nothing, and a block's bytes do not depend on its neighbours."""
    values = np.random.default_rng(10).standard_normal((6, 512)).astype(np.float32)
    whole = quantize(values, entry)
    parts = np.concatenate([quantize(row, entry) for row in values])
    np.testing.assert_array_equal(whole, parts)
    expected = dequantize(whole, entry, values.shape)
    monkeypatch.setattr(reference, "CHUNK_VALUES", 256)
    np.testing.assert_array_equal(dequantize(whole, entry, values.shape), expected)


def test_unaligned_bytes_are_read():
    data = np.frombuffer(b"\x00" + np.arange(5, dtype=np.float32).tobytes(), dtype=np.uint8)[1:]
    np.testing.assert_array_equal(dequantize(data, formats.F32, (5,)), np.arange(5, dtype=np.float32))


def test_what_cannot_be_held_is_refused():
    with pytest.raises(UserError, match="NaN or infinite"):
        quantize(np.array([[np.nan] * 32], dtype=np.float32), formats.Q4_0)
    with pytest.raises(UserError, match="float16"):
        quantize(np.array([[1e9] * 32], dtype=np.float32), formats.Q8_0)
    with pytest.raises(UserError, match="bfloat16"):
        quantize(np.array([[3.4e38]], dtype=np.float32), formats.BF16)
    with pytest.raises(UserError, match="blocks hold 256"):
        quantize(np.zeros((4, 896), dtype=np.float32), formats.Q4_K)
