"""The arithmetic of int8 products with extended lines, to the bit, against numpy that computes it in the same order.

A group of 32 activations is eight lines of four. Four values, one in each column (place in a line) and all in two
lines, hold 16-bit codes, as 128 * high + low; the scale of the group comes from the other 28, rounded up to three
significant bits. Letters: T rows of activations, G groups of a row, L lines of a group, C columns, P parts of a group
(halves where 16 weights share a scale), F outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from ridgeline.quant import formats, reference
from ridgeline.quant.formats import FORMATS, Format
from tests.ops.kernels.test_matmul import GROUP_BYTES, INT8, SETS, Matrix, available_sets, products, random_blocks

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
quantised = pytest.mark.parametrize("entry", [entry for entry in FORMATS if entry.is_quantised], ids=lambda e: e.name)


@pytest.fixture(autouse=True)
def best_instruction_set() -> Iterator[None]:
    best = next(name for name in SETS if products.set_instruction_set(name))
    yield
    products.set_instruction_set(best)


def hard_activations(rows: int, width: int, seed: int = 2) -> Floats:
    """Groups with outliers of every size, equal magnitudes, zeros and numbers near the smallest."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)) * np.exp(2 * rng.standard_normal((rows, width)))
    x = (x * rng.uniform(0.01, 10, (rows, 1))).astype(np.float32)
    groups = x.reshape(rows, -1, 32)
    kind = np.arange(groups[..., 0].size).reshape(groups.shape[:2]) % 11
    groups[kind == 1] = 0
    groups[kind == 2] = 1
    groups[kind == 3, 9] = 1e6
    groups[kind == 4] *= np.float32(1e-30)
    groups[kind == 5] = np.sign(groups[kind == 5]) * (np.arange(32, dtype=np.float32) // 8)
    groups[kind == 6, 1:] = 0
    groups[kind == 7, 3::4] *= 100  # the largest are in one column, of which one is extended
    return x


def find_extended(magnitudes_TGLC: Floats) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The two lines (T, G, 2), and whether the extended value of a column is that of the second (T, G, C)."""
    by_place = magnitudes_TGLC.reshape(*magnitudes_TGLC.shape[:2], 32)
    first_line, column = np.divmod(by_place.argmax(-1), 4)
    elsewhere = magnitudes_TGLC.copy()
    np.put_along_axis(elsewhere, first_line[..., None, None], -1, 2)
    np.put_along_axis(elsewhere, column[..., None, None], -1, 3)
    lines = np.stack([first_line, elsewhere.max(-1).argmax(-1)], -1)
    picked = np.take_along_axis(magnitudes_TGLC, lines[..., None], 2)
    return lines, picked[:, :, 1] > picked[:, :, 0]


def quantise(x_TD: Floats) -> tuple[Ints, Floats, Ints, Ints]:
    """Codes of 16 bits (T, G, 32), scales (T, G), lines of extended values (T, G, 2) with high parts (T, G, 2, 4)."""
    groups = x_TD.reshape(len(x_TD), -1, 32)
    lined = groups.reshape(*groups.shape[:2], 8, 4)
    lines, in_second = find_extended(np.abs(lined))
    chosen = np.stack([~in_second, in_second], 2)
    is_extended = np.zeros(lined.shape, bool)
    np.put_along_axis(is_extended, lines[..., None], chosen, 2)
    is_extended = is_extended.reshape(groups.shape)
    largest = np.abs(groups).max(-1)
    rest = np.where(is_extended, 0, np.abs(groups)).max(-1)
    scale = np.maximum(rest / np.float32(127), largest / np.float32(127 * 128))
    scale = ((scale.view(np.uint32) + np.uint32(0x1FFFFF)) & np.uint32(0xFFE00000)).view(np.float32)
    is_nothing = largest < np.float32(1e-30)
    scale[is_nothing] = 1
    inverse = np.where(is_nothing, np.float32(0), np.float32(1) / scale)
    limit = np.where(is_extended, np.float32(127 * 128), np.float32(127))
    codes = np.clip(np.rint(groups * inverse[..., None]), -limit, limit).astype(np.int64)
    high = np.where(is_extended, (codes + 64) >> 7, 0).reshape(lined.shape)
    return codes, scale, lines, np.take_along_axis(high, lines[..., None], 2)


def weight_parts(entry: Format, blocks: npt.NDArray[np.uint8], rows: int) -> tuple[Ints, Floats, Floats | None]:
    """Codes about zero (F, G, 32), scales and minimums (F, G, P) of file bytes."""
    b = blocks.reshape(-1, entry.block_bytes)
    half, nibbles = reference._half, reference._nibbles
    minimums = None
    name = entry.name
    if name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        start = 2 if name.endswith("0") else 4
        codes = nibbles(b[:, -16:]).astype(np.int64)
        if name.startswith("Q5"):
            codes |= reference._bits(b[:, start : start + 4]).astype(np.int64) << 4
        codes -= {"Q4_0": 8, "Q5_0": 16}.get(name, 0)
        scales = half(b, 0)
        minimums = half(b, 2) if name.endswith("1") else None
    elif name == "Q8_0":
        codes, scales = b[:, 2:].view(np.int8).astype(np.int64), half(b, 0)
    elif name == "IQ4_NL":
        codes, scales = np.array(formats.IQ4_NL_LEVELS, np.int64)[nibbles(b[:, 2:])], half(b, 0)
    elif name == "MXFP4":
        codes = np.array(formats.MXFP4_LEVELS, np.int64)[nibbles(b[:, 1:])]
        scales = np.ldexp(np.float32(1), b[:, :1].astype(np.int32) - 128).astype(np.float32)
    elif name in ("Q4_K", "Q5_K"):
        scale_codes, minimum_codes = reference._six_bit_pairs(b[:, 4:16])
        scales, minimums = half(b, 0) * scale_codes, -half(b, 2) * minimum_codes
        codes = reference._four_bit_runs(b[:, -128:]).astype(np.int64)
        if name == "Q5_K":
            fifth = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
            codes |= fifth.reshape(-1, 256).astype(np.int64) << 4
    elif name == "Q6_K":
        low = nibbles(b[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
        codes = (low | (reference._crumbs(b[:, 128:192]) << 4)).astype(np.int64) - 32
        scales = half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    elif name == "Q2_K":
        codes = reference._crumbs(b[:, 16:80]).astype(np.int64)
        scales = half(b, 80) * (b[:, :16] & 15).astype(np.float32)
        minimums = -half(b, 82) * (b[:, :16] >> 4).astype(np.float32)
    else:
        assert name == "Q3_K"
        third = ((b[:, None, :32] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1).reshape(-1, 256)
        codes = reference._crumbs(b[:, 32:96]).astype(np.int64) + (third.astype(np.int64) << 2) - 4
        shifts = np.array([0, 2, 4, 6], np.uint8)[None, :, None]
        high = ((b[:, None, 104:108] >> shifts) & 3).reshape(-1, 16)
        scales = half(b, 108) * ((nibbles(b[:, 96:104]) | (high << 4)).astype(np.float32) - 32)
    num_parts = 32 // (entry.block_values // scales.shape[1])
    shaped = None if minimums is None else minimums.reshape(rows, -1, num_parts)
    return codes.reshape(rows, -1, 32), scales.reshape(rows, -1, num_parts), shaped


def fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """float32(a * b + c), rounded once: the sum in float64, rounded to odd, cannot be rounded twice."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    is_even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & is_even, odd, total).astype(np.float32)


def product(entry: Format, blocks: npt.NDArray[np.uint8], rows: int, x_TD: Floats) -> Floats:
    """What every kernel must give, one group and part after the other."""
    weights_FGI, scales_FGP, minimums_FGP = weight_parts(entry, blocks, rows)
    codes_TGI, scales_TG, _, _ = quantise(x_TD)
    sums_TF = np.zeros((len(x_TD), rows), np.float32)
    num_parts = scales_FGP.shape[2]
    size = 32 // num_parts
    for group in range(codes_TGI.shape[1]):
        x_scale = scales_TG[:, group, None]
        for part in range(num_parts):
            inside = slice(part * size, (part + 1) * size)
            x_TI = codes_TGI[:, group, inside]
            dots_TF = (x_TI @ weights_FGI[:, group, inside].T).astype(np.float32)
            sums_TF = fused(dots_TF, scales_FGP[None, :, group, part] * x_scale, sums_TF)
            if minimums_FGP is not None:
                scaled_sum = x_scale * x_TI.sum(-1, keepdims=True).astype(np.float32)
                sums_TF = fused(np.broadcast_to(minimums_FGP[:, group, part], sums_TF.shape), scaled_sum, sums_TF)
    return sums_TF


@quantised
def test_the_oracle_reads_weights_as_the_reference_does(entry: Format) -> None:
    blocks = random_blocks(entry, 6, 512)
    codes, scales, minimums = weight_parts(entry, blocks, 6)
    values = codes.reshape(6, -1, scales.shape[2], 32 // scales.shape[2]).astype(np.float32) * scales[..., None]
    if minimums is not None:
        values = values + minimums[..., None]
    np.testing.assert_array_equal(values.reshape(6, 512), reference.dequantize(blocks, entry, (6, 512)))


def test_activations_are_prepared_by_the_definition() -> None:
    x = hard_activations(40, 1056)
    codes, scale, lines, high = quantise(x)
    low = codes.reshape(*codes.shape[:2], 8, 4).copy()
    np.put_along_axis(low, lines[..., None], np.take_along_axis(low, lines[..., None], 2) - 128 * high, 2)
    row_bytes = products.activation_row_bytes(INT8, 1056)
    for name in available_sets():
        groups = products.prepare(INT8, x).reshape(40, row_bytes)[:, : 33 * GROUP_BYTES].reshape(40, 33, GROUP_BYTES)

        def field(start: int, end: int, kind: type, groups: npt.NDArray[np.uint8] = groups) -> npt.NDArray[np.generic]:
            return np.ascontiguousarray(groups[..., start:end]).view(kind)

        np.testing.assert_array_equal(field(0, 32, np.int8), low.reshape(codes.shape), name)
        np.testing.assert_array_equal(field(32, 36, np.float32)[..., 0], scale, name)
        np.testing.assert_array_equal(field(36, 40, np.int32)[..., 0], -codes.sum(-1), name)
        scaled_sum = scale * codes.sum(-1).astype(np.float32)
        np.testing.assert_array_equal(field(40, 44, np.float32)[..., 0], scaled_sum, name)
        np.testing.assert_array_equal(field(44, 48, np.int32)[..., 0], -codes[..., :16].sum(-1), name)
        np.testing.assert_array_equal(field(48, 56, np.int8).reshape(high.shape), high, name)
        np.testing.assert_array_equal(field(56, 60, np.uint16), 64 * lines, name)
        np.testing.assert_array_equal(field(60, 64, np.uint16), np.where(lines < 4, 0xFFFF, 0), name)


@quantised
def test_products_are_those_of_the_definition_to_the_bit(entry: Format) -> None:
    rows, width = 104, 768
    matrix = Matrix(entry, rows=rows, width=width)
    x = hard_activations(512, width)
    expected = product(entry, random_blocks(entry, rows, width), rows, x)
    for name in available_sets():
        # The portable kernel has one loop for every number of rows, and is slow.
        for num_rows in (1, 9, 70) if name == "portable" else (*range(1, 71), 512):
            np.testing.assert_array_equal(matrix.times(x[:num_rows]), expected[:num_rows], f"{name} {num_rows}")


@pytest.mark.parametrize("entry", [formats.Q4_0, formats.Q6_K, formats.MXFP4, formats.Q4_1], ids=str)
def test_scales_of_weights_that_vanish_or_are_huge(entry: Format) -> None:
    """Kernels that add exponents where others multiply have to look for these."""
    rows, width = 64, 512
    blocks = random_blocks(entry, rows, width).reshape(-1, entry.block_bytes)
    if entry is formats.MXFP4:
        blocks[:: 4 * 16, 0] = np.resize(np.array([0, 1, 2, 60, 180, 200], np.uint8), len(blocks[:: 4 * 16]))
    else:
        start = 208 if entry is formats.Q6_K else 0
        scales = np.array([0, -0.0, 6e-8, 6e4], np.float16).view(np.uint8).reshape(4, 2)
        blocks[::3, start : start + 2] = np.resize(scales, (len(blocks[::3]), 2))
    if entry is formats.Q6_K:
        blocks[::5, 192:200] = 0
    packed = products.pack(entry.gguf_type, rows, width, blocks.reshape(-1))
    x = hard_activations(70, width)
    expected = product(entry, blocks.reshape(-1), rows, x)
    for name in available_sets():
        for num_rows in (1, 3, 8, 70):
            y = np.zeros((num_rows, rows), np.float32)
            prepared = products.prepare(INT8, x[:num_rows])
            products.matmul(entry.gguf_type, rows, width, packed, prepared, y, None, False, 0, rows // 16)
            np.testing.assert_array_equal(y, expected[:num_rows], f"{name} {num_rows}")


def test_one_large_value_costs_the_others_nothing() -> None:
    x = np.full((1, 256), 0.01, np.float32) * np.linspace(0.5, 1, 256, dtype=np.float32)
    x[0, 40], x[0, 61] = 1.2, -0.9
    matrix = Matrix(formats.Q8_0, rows=16, width=256)
    near = matrix.prepared_values(x)
    assert np.abs(near - x).max() <= 1.25 * 0.51 * 0.01 / 127
