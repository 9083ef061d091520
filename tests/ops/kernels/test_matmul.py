"""The CPU chip's matrix products by themselves: every format, every instruction set that this machine can run.

The oracle of a product is float64 arithmetic on the weights that the formats' reference gives and on the activations as
they were prepared; how far prepared activations are from the given ones is tested for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from ridgeline.quant import formats, reference
from ridgeline.quant.formats import FORMATS, Format

native = pytest.importorskip("ridgeline.chips.cpu._native", reason="the CPU chip's native module is not built")
products = native.products

INT8, BF16, F32 = 0, 1, 2
GROUP_VALUES = 32
GROUP_BYTES = 64
"""A prepared group: 32 codes, the scale, -sum, scale * sum, -sum of the first half; of the two lines with extended
values 2 x 4 high parts, their offsets (64 * line) and whether they lie in the first half."""
SETS = ("avx512", "avx2-vnni", "avx2", "neon", "portable")
ROUNDING = 1e-6
"""Of a float32 sum of a few dozen terms, relative to the sum of their magnitudes."""
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,),
}  # fmt: skip
"""Where a block has its f16 scales."""

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
every_format = pytest.mark.parametrize("entry", FORMATS, ids=lambda entry: entry.name)


@pytest.fixture(autouse=True)
def best_instruction_set() -> Iterator[None]:
    best = next(name for name in SETS if products.set_instruction_set(name))
    yield
    products.set_instruction_set(best)


def available_sets() -> list[str]:
    return [name for name in SETS if products.set_instruction_set(name)]


def random_blocks(entry: Format, rows: int, width: int, seed: int = 0) -> Bytes:
    """File bytes of a matrix in which every bit pattern of codes and inner scales may occur."""
    rng = np.random.default_rng(seed)
    if not entry.is_quantised:
        values = rng.standard_normal((rows, width)).astype(np.float32)
        return reference.quantize(values, entry).reshape(-1)
    count = rows * width // entry.block_values
    blocks = rng.integers(0, 256, (count, entry.block_bytes), dtype=np.uint8)
    for start in HALVES.get(entry.name, ()):
        scales = (rng.standard_normal(count) * 0.01).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(count, 2)
    if entry is formats.MXFP4:
        blocks[:, 0] = rng.integers(118, 130, count)
    return blocks.reshape(-1)


def activations(rows: int, width: int, seed: int = 1) -> Floats:
    """Rows of different sizes, with outliers and a group of zeros."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)).astype(np.float32) * rng.uniform(0.01, 10, (rows, 1)).astype(np.float32)
    x[:, 5] *= 50
    x[:, GROUP_VALUES : 2 * GROUP_VALUES] = 0
    return x


def whole_codes(groups: Bytes) -> Doubles:
    """Codes of prepared groups [..., GROUP_BYTES], those of extended lines with their high parts."""
    codes = np.ascontiguousarray(groups[..., :GROUP_VALUES]).view(np.int8).astype(np.float64)
    high = np.ascontiguousarray(groups[..., 48:56]).view(np.int8).astype(np.float64)
    offsets = np.ascontiguousarray(groups[..., 56:60]).view(np.uint16)
    for extended in range(2):
        columns = offsets[..., extended, None] // 16 + np.arange(4)
        added = np.take_along_axis(codes, columns, -1) + 128 * high[..., 4 * extended : 4 * extended + 4]
        np.put_along_axis(codes, columns, added, -1)
    return codes


class Matrix:
    def __init__(self, entry: Format, rows: int, width: int) -> None:
        self.entry, self.rows, self.width = entry, rows, width
        blocks = random_blocks(entry, rows, width)
        self.weights: Floats = reference.dequantize(blocks, entry, (rows, width))
        self.packed: Bytes = products.pack(entry.gguf_type, rows, width, blocks)
        self.kind: int = products.activation_kind(entry.gguf_type)
        self.num_tiles = (rows + 15) // 16

    def prepare(self, x: Floats) -> Bytes:
        return products.prepare(self.kind, x)  # type: ignore[no-any-return]

    def add(
        self, x: Floats, y: Floats, begin: int = 0, end: int | None = None, bias: Floats | None = None, *, keep: bool
    ) -> None:
        products.matmul(
            self.entry.gguf_type, self.rows, self.width, self.packed, self.prepare(x), y, bias, keep, begin,
            self.num_tiles if end is None else end,
        )  # fmt: skip

    def times(self, x: Floats) -> Floats:
        y = np.full((len(x), self.rows), np.nan, np.float32)
        self.add(x, y, keep=False)
        return y

    def prepared_values(self, x: Floats) -> Doubles:
        """What the activations are once prepared."""
        if self.kind == F32:
            return x.astype(np.float64)
        row_bytes = products.activation_row_bytes(self.kind, self.width)
        rows = self.prepare(x).reshape(len(x), row_bytes)
        if self.kind == BF16:
            halves = np.ascontiguousarray(rows[:, : 2 * self.width]).view(np.uint16)
            return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        groups = rows[:, : self.width // GROUP_VALUES * GROUP_BYTES].reshape(len(x), -1, GROUP_BYTES)
        scales = np.ascontiguousarray(groups[..., GROUP_VALUES : GROUP_VALUES + 4]).view(np.float32)
        return (whole_codes(groups) * scales).reshape(len(x), self.width)


@every_format
def test_packed_rows_unpack_to_the_reference(entry: Format) -> None:
    matrix = Matrix(entry, rows=57, width=768)
    ids = np.array([0, 56, 15, 16, 31, 32, 40, 0], np.int32)
    unpacked = products.unpack_rows(entry.gguf_type, matrix.rows, matrix.width, matrix.packed, ids)
    np.testing.assert_array_equal(unpacked, matrix.weights[ids])


@every_format
def test_packing_keeps_the_bytes_of_the_file(entry: Format) -> None:
    rows, width = 256, 4096
    packed = products.pack(entry.gguf_type, rows, width, random_blocks(entry, rows, width))
    assert packed.size == rows * entry.row_bytes(width)


@every_format
@pytest.mark.parametrize("width", [256, 768, 1792])
def test_product_is_that_of_the_prepared_activations(entry: Format, width: int) -> None:
    matrix = Matrix(entry, rows=57, width=width)
    x = activations(23, width)
    expected = matrix.prepared_values(x) @ matrix.weights.T.astype(np.float64)
    magnitudes = np.abs(matrix.prepared_values(x)) @ np.abs(matrix.weights.T).astype(np.float64)
    for name in available_sets():
        error = np.abs(matrix.times(x) - expected) / magnitudes
        assert error.max() < ROUNDING, name


@pytest.mark.parametrize("width", [32, 96, 576, 896, 1056])
@pytest.mark.parametrize("entry", [entry for entry in FORMATS if entry.block_values <= GROUP_VALUES], ids=str)
def test_widths_that_do_not_fill_a_run(entry: Format, width: int) -> None:
    matrix = Matrix(entry, rows=33, width=width)
    x = activations(14, width)
    expected = matrix.prepared_values(x) @ matrix.weights.T.astype(np.float64)
    magnitudes = np.abs(matrix.prepared_values(x)) @ np.abs(matrix.weights.T).astype(np.float64)
    for name in available_sets():
        assert (np.abs(matrix.times(x) - expected) / magnitudes).max() < ROUNDING, name


@pytest.mark.parametrize("entry", [formats.F32, formats.F16, formats.BF16], ids=str)
@pytest.mark.parametrize("width", [1, 7, 100])
def test_plain_formats_take_any_width(entry: Format, width: int) -> None:
    matrix = Matrix(entry, rows=5, width=width)
    x = np.random.default_rng(3).standard_normal((3, width)).astype(np.float32)
    expected = matrix.prepared_values(x) @ matrix.weights.T.astype(np.float64)
    for name in available_sets():
        np.testing.assert_allclose(matrix.times(x), expected, rtol=0, atol=1e-5, err_msg=name)
    ids = np.arange(5, dtype=np.int32)
    unpacked = products.unpack_rows(entry.gguf_type, 5, width, matrix.packed, ids)
    np.testing.assert_array_equal(unpacked, matrix.weights)


@every_format
@pytest.mark.parametrize("width", [256, 1792])
def test_bits_of_a_row_do_not_depend_on_how_many_rows_there_are(entry: Format, width: int) -> None:
    matrix = Matrix(entry, rows=48, width=width)
    x = activations(512, width)
    for name in available_sets():
        if name == "portable":
            continue  # one loop for every number of rows, and slow: the case of 70 rows below covers it
        whole = matrix.times(x)
        for num_rows in (*range(1, 71), 193, 200, 385):
            start = (37 * num_rows) % (512 - num_rows)
            np.testing.assert_array_equal(
                matrix.times(x[start : start + num_rows]), whole[start : start + num_rows], f"{name} {num_rows}"
            )


@every_format
def test_bits_do_not_depend_on_the_range_of_tiles(entry: Format) -> None:
    matrix = Matrix(entry, rows=150, width=512)
    for name in available_sets():
        for num_rows in (1, 5, 14, 70):
            x = activations(num_rows, matrix.width)
            whole = matrix.times(x)
            for cuts in ((0, 1, 2, 3, 10), (0, 4, 7, 10), (0, 9, 10)):
                parts = np.full_like(whole, np.nan)
                for begin, end in pairwise(cuts):
                    matrix.add(x, parts, begin, end, keep=False)
                np.testing.assert_array_equal(parts, whole, f"{name} {num_rows} {cuts}")


@every_format
def test_instruction_sets_agree_to_the_bit(entry: Format) -> None:
    matrix = Matrix(entry, rows=40, width=768)
    x = activations(7, matrix.width)
    answers = {name: (matrix.prepare(x).tobytes(), matrix.times(x)) for name in available_sets()}
    prepared, y = answers["portable"]
    for name, (other_prepared, other_y) in answers.items():
        assert other_prepared == prepared, name
        if entry is formats.BF16 and name == "avx512":
            continue  # the bf16 instructions round in their own way
        np.testing.assert_array_equal(other_y, y, name)


def test_scales_at_the_ends_of_their_range() -> None:
    """Subnormal and large f16 scales, and every exponent that a block of MXFP4 may have but the very smallest."""
    for entry, start in ((formats.Q4_0, 0), (formats.Q6_K, 208), (formats.Q4_K, 0)):
        blocks = random_blocks(entry, 16, 256).reshape(-1, entry.block_bytes)
        scales = np.resize(np.array([6e-8, 5e-6, 6.1e-5, 1.0, 6e4, -6e4], np.float16), len(blocks))
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(-1, 2)
        check_against_reference(entry, blocks)
    blocks = random_blocks(formats.MXFP4, 16, 256).reshape(-1, formats.MXFP4.block_bytes)
    blocks[:, 0] = np.resize(np.array([0, 1, 2, 3, 100, 200, 235], np.uint8), len(blocks))
    check_against_reference(formats.MXFP4, blocks)


def check_against_reference(entry: Format, blocks: Bytes) -> None:
    weights = reference.dequantize(blocks.reshape(-1), entry, (16, 256))
    packed = products.pack(entry.gguf_type, 16, 256, blocks.reshape(-1))
    ids = np.arange(16, dtype=np.int32)
    np.testing.assert_array_equal(products.unpack_rows(entry.gguf_type, 16, 256, packed, ids), weights)
    x = np.full((1, 256), 127, np.float32)  # codes are exact
    expected = 127 * weights.astype(np.float64).sum(axis=1)
    magnitudes = 127 * np.abs(weights).astype(np.float64).sum(axis=1)
    for name in available_sets():
        y = np.zeros((1, 16), np.float32)
        products.matmul(entry.gguf_type, 16, 256, packed, products.prepare(INT8, x), y, None, False, 0, 1)
        assert (np.abs(y[0] - expected) <= ROUNDING * magnitudes + 1e-37).all(), (entry.name, name)


@pytest.mark.parametrize("num_rows", [1, 9, 30])
def test_epilogue_adds_bias_then_to_what_was_there(num_rows: int) -> None:
    matrix = Matrix(formats.Q4_K, rows=57, width=512)
    x = activations(num_rows, matrix.width)
    rng = np.random.default_rng(5)
    bias = rng.standard_normal(matrix.rows).astype(np.float32)
    before = rng.standard_normal((num_rows, matrix.rows)).astype(np.float32)
    plain = matrix.times(x)
    with_bias, added = np.zeros_like(plain), before.copy()
    matrix.add(x, with_bias, bias=bias, keep=False)
    matrix.add(x, added, bias=bias, keep=True)
    np.testing.assert_array_equal(with_bias, plain + bias)
    np.testing.assert_array_equal(added, before + (plain + bias))


def test_int8_activations_are_near_and_their_sums_true() -> None:
    x = activations(9, 640)
    matrix = Matrix(formats.Q4_0, rows=16, width=640)
    groups = x.reshape(9, -1, GROUP_VALUES)
    sizes = np.sort(np.abs(groups), axis=2)
    # The largest is extended, and one of the two next to it; the scale may be rounded up by a quarter.
    steps = 1.25 * np.maximum(sizes[..., -2:-1] / 127, sizes[..., -1:] / (127 * 128))
    for name in available_sets():
        near = matrix.prepared_values(x).reshape(groups.shape)
        assert (np.abs(near - groups) <= 0.5001 * steps + 1e-30).all(), name
        row_bytes = products.activation_row_bytes(INT8, 640)
        records = matrix.prepare(x).reshape(9, row_bytes)[:, : 20 * GROUP_BYTES].reshape(9, 20, GROUP_BYTES)
        codes = whole_codes(records).astype(np.int32)
        numbers = np.ascontiguousarray(records[..., 32:48])
        assert (numbers.view(np.int32)[..., 1] == -codes.sum(axis=2)).all()
        assert (numbers.view(np.int32)[..., 3] == -codes[..., :16].sum(axis=2)).all()
        scales, scaled_sums = numbers.view(np.float32)[..., 0], numbers.view(np.float32)[..., 2]
        assert (scaled_sums == scales * codes.sum(axis=2).astype(np.float32)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_numbers_stay_so(bad: float) -> None:
    for entry in (formats.Q4_K, formats.Q8_0, formats.BF16, formats.F16):
        matrix = Matrix(entry, rows=32, width=256)
        x = activations(2, 256)
        x[1, 40] = bad
        for name in available_sets():
            y = matrix.times(x)
            assert np.isfinite(y[0]).all(), (entry.name, name)
            assert not np.isfinite(y[1]).any(), (entry.name, name)


@pytest.mark.parametrize("entry", [formats.Q4_K, formats.Q6_K, formats.Q8_0], ids=str)
def test_a_row_that_is_not_a_number_leaves_its_neighbours_alone(entry: Format) -> None:
    matrix = Matrix(entry, rows=64, width=768)
    x = activations(13, 768)
    before = {name: matrix.times(x) for name in available_sets()}
    x[7, 600] = np.nan
    for name in available_sets():
        y = matrix.times(x)
        assert np.isnan(y[7]).all(), name
        np.testing.assert_array_equal(np.delete(y, 7, 0), np.delete(before[name], 7, 0), name)


def test_an_instruction_set_that_is_not_there() -> None:
    before = products.instruction_set()
    assert not products.set_instruction_set("z80")
    assert products.instruction_set() == before


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_barriers_of_the_thread_pool(num_threads: int) -> None:
    assert products.check_threads(num_threads, 50, 20) == 0
