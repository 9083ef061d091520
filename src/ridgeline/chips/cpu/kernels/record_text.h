// From packed pairs to records, written once for the instruction sets that go about it alike (AVX2 and NEON).
//
// What an instruction set provides, as static members of a class `Simd`:
//   Line                 some bytes of a code line, LINE_PART_BYTES of them
//   Sixteen              16 bytes: one scale or minimum, not yet multiplied out, of each row of a tile
//   load, load_sixteen, masked, either, shifted_up<n>, shifted_down<n>   on either; shifts act on every byte, and bits
//                        that come from a neighbour are masked out here
//   fills_bytes          whether codes are scaled up to fill their byte (and scales down by as much): the zero of a
//                        format without minimum becomes 128
//   looked_up(book, indices)                       bytes of a book of 16
//   recorded<format>(line)                         a line as it stands in records
//   store(target, line)
//   store_products(target, halves, factor, bytes)  16 times f16 * factor * signed byte, as floats
//   store_halves(target, halves, factor)           16 times f16 * factor, as floats
//   store_powers(target, exponents, factor)        16 times 2^(e - 128) * factor, as floats
#pragma once

#include <array>

#include "as_constants.h"
#include "matmul_kernels.h"

namespace ridgeline {

template <typename Simd, int shift, typename Value>
[[gnu::always_inline]] inline Value shifted(Value value) {
    if constexpr (shift > 0) return Simd::template shifted_up<shift>(value);
    if constexpr (shift < 0) return Simd::template shifted_down<-shift>(value);
    return value;
}

// By how many bits codes are scaled up, and what undoes it in scales.
template <typename Simd, FormatId format>
constexpr int code_shift() {
    return Simd::fills_bytes ? 8 - tile_layout(format).code_bits : 0;
}
template <typename Simd, FormatId format>
constexpr float scale_factor() {
    return 1.0f / static_cast<float>(1 << code_shift<Simd, format>());
}

// Four low bits of code line v, moved up.
template <typename Simd, int v, int up>
[[gnu::always_inline]] inline typename Simd::Line nibbles(const uint8_t* lines) {
    const auto both = Simd::load(lines + v / 2 * LINE_STRIDE);
    return Simd::masked(shifted<Simd, up - (v % 2 == 0 ? 0 : 4)>(both), 15 << up);
}

template <int up>
constexpr std::array<uint8_t, 16> moved_up(const uint8_t (&book)[16]) {
    std::array<uint8_t, 16> codes{};
    for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(book[i] << up);
    return codes;
}
template <int up>
inline constexpr std::array<uint8_t, 16> IQ4_NL_BOOK = moved_up<up>(IQ4_NL_CODES);
template <int up>
inline constexpr std::array<uint8_t, 16> MXFP4_BOOK = moved_up<up>(MXFP4_CODES);

// A part of code line v: `group` points to that part of the planes.
template <typename Simd, FormatId format, int v>
[[gnu::always_inline]] inline typename Simd::Line code_line(const uint8_t* group) {
    constexpr int up = code_shift<Simd, format>();
    if constexpr (format == FormatId::Q8_0) {
        return Simd::load(group + v * LINE_STRIDE);
    } else if constexpr (format == FormatId::Q5_0 || format == FormatId::Q5_1 || format == FormatId::Q5_K) {
        const auto high = shifted<Simd, up + 4 - v>(Simd::load(group));
        return Simd::either(nibbles<Simd, v, up>(group + LINE_STRIDE), Simd::masked(high, 0x10 << up));
    } else if constexpr (format == FormatId::Q6_K) {
        const auto high = shifted<Simd, up + 4 - 2 * (v % 4)>(Simd::load(group + v / 4 * LINE_STRIDE));
        return Simd::either(nibbles<Simd, v, up>(group + 2 * LINE_STRIDE), Simd::masked(high, 0x30 << up));
    } else if constexpr (format == FormatId::Q3_K) {
        const auto low = shifted<Simd, up - 2 * (v % 4)>(Simd::load(group + LINE_STRIDE + v / 4 * LINE_STRIDE));
        const auto high = shifted<Simd, up + 2 - v>(Simd::load(group));
        return Simd::either(Simd::masked(low, 3 << up), Simd::masked(high, 4 << up));
    } else if constexpr (format == FormatId::Q2_K) {
        const auto both = shifted<Simd, up - 2 * (v % 4)>(Simd::load(group + v / 4 * LINE_STRIDE));
        return Simd::masked(both, 3 << up);
    } else if constexpr (format == FormatId::IQ4_NL) {
        return Simd::looked_up(IQ4_NL_BOOK<up>.data(), nibbles<Simd, v, 0>(group));
    } else if constexpr (format == FormatId::MXFP4) {
        return Simd::looked_up(MXFP4_BOOK<up>.data(), nibbles<Simd, v, 0>(group));
    } else {
        return nibbles<Simd, v, up>(group);
    }
}

// The six bits of Q3_K's scale i of 16 (see ggml's layout): low four from the first eight bytes, high two from the
// rest.
template <typename Simd>
[[gnu::always_inline]] inline typename Simd::Sixteen six_bits_of_16(const uint8_t* scales, int i) {
    const auto low = Simd::load_sixteen(scales + i % 8 * 16);
    const auto high = Simd::load_sixteen(scales + (8 + i % 4) * 16);
    const auto low_four = Simd::masked(i < 8 ? low : Simd::template shifted_down<4>(low), 15);
    const auto high_two = Simd::masked(Simd::shifted_down_by(high, 2 * (i / 4)), 3);
    return Simd::minus(Simd::either(low_four, Simd::template shifted_up<4>(high_two)), 32);
}

// The six-bit scale (`part` 0) or minimum (`part` 1) i of 8 of Q4_K and Q5_K.
template <typename Simd>
[[gnu::always_inline]] inline typename Simd::Sixteen six_bits_of_8(const uint8_t* scales, int part, int i) {
    const auto own = Simd::load_sixteen(scales + (4 * part + i % 4) * 16);
    if (i < 4) return Simd::masked(own, 63);
    const auto both = Simd::load_sixteen(scales + (4 + i) * 16);
    return Simd::either(Simd::masked(part == 0 ? both : Simd::template shifted_down<4>(both), 15),
                        Simd::masked(Simd::template shifted_down<2>(own), 48));
}

// Scales and minimums of one group of a tile, to their place in its half of the record.
template <typename Simd, FormatId format>
[[gnu::always_inline]] inline void unpack_scales(const uint8_t* header, const uint8_t* scales, int group,
                                                 uint8_t* target) {
    constexpr float factor = scale_factor<Simd, format>();
    if constexpr (format == FormatId::MXFP4) {
        Simd::store_powers(target, scales, factor);
    } else if constexpr (format == FormatId::Q4_1 || format == FormatId::Q5_1) {
        Simd::store_halves(target, scales, factor);
        Simd::store_halves(target + LINE_BYTES, scales + 32, 1.0f);
    } else if constexpr (format == FormatId::Q4_K || format == FormatId::Q5_K) {
        Simd::store_products(target, scales, factor, six_bits_of_8<Simd>(scales + 64, 0, group));
        Simd::store_products(target + LINE_BYTES, scales + 32, -1.0f, six_bits_of_8<Simd>(scales + 64, 1, group));
    } else if constexpr (format == FormatId::Q2_K) {
        for (int i = 0; i < 2; ++i) {
            const auto both = Simd::load_sixteen(scales + 64 + (2 * group + i) * 16);
            Simd::store_products(target + i * LINE_BYTES, scales, factor, Simd::masked(both, 15));
            Simd::store_products(target + (2 + i) * LINE_BYTES, scales + 32, -1.0f,
                                 Simd::masked(Simd::template shifted_down<4>(both), 15));
        }
    } else if constexpr (format == FormatId::Q3_K) {
        for (int i = 0; i < 2; ++i) {
            Simd::store_products(target + i * LINE_BYTES, header, factor, six_bits_of_16<Simd>(scales, 2 * group + i));
        }
    } else if constexpr (format == FormatId::Q6_K) {
        for (int i = 0; i < 2; ++i) {
            const auto six_bits = Simd::load_sixteen(scales + (2 * group + i) * 16);
            Simd::store_products(target + i * LINE_BYTES, header, factor, six_bits);
        }
    } else {
        Simd::store_halves(target, scales, factor);
    }
}

// UnpackScalesFunction of a format.
template <typename Simd, FormatId format>
void unpack_run_scales(const uint8_t* pair, int64_t first_group, int64_t num_groups, uint8_t* records) {
    constexpr TileLayout layout = tile_layout(format);
    const uint8_t* run = pair + layout.run_offset(first_group / RUN_GROUPS);
    const int64_t count = groups_in_run(first_group, num_groups);
    for (int group = 0; group < count; ++group) {
        for (int tile = 0; tile < PAIR_TILES; ++tile, records += half_record_bytes(format)) {
            unpack_scales<Simd, format>(run + layout.header_offset(tile), run + layout.scale_offset(tile, group), group,
                                        records + 512);
        }
    }
}

// UnpackFunction of a format.
template <typename Simd, FormatId format>
void unpack_records(const uint8_t* pair, int64_t first_group, int64_t count, int64_t num_groups, uint8_t* records) {
    constexpr TileLayout layout = tile_layout(format);
    for (int64_t begin = first_group; begin < first_group + count; begin += RUN_GROUPS) {
        unpack_run_scales<Simd, format>(pair, begin, num_groups, records);
        const uint8_t* run = pair + layout.run_offset(begin / RUN_GROUPS);
        const int64_t run_groups = groups_in_run(begin, num_groups);
        for (int64_t group = 0; group < run_groups; ++group) {
            for (int tile = 0; tile < PAIR_TILES; ++tile, records += half_record_bytes(format)) {
                const uint8_t* planes = run + layout.group_offset(tile, group, run_groups);
                for (int part = 0; part < LINE_BYTES; part += static_cast<int>(sizeof(typename Simd::Line))) {
                    unrolled<GROUP_LINES>([&](auto v) {
                        const auto line = code_line<Simd, format, v>(planes + part);
                        Simd::store(records + v * LINE_BYTES + part, Simd::template recorded<format>(line));
                    });
                }
            }
        }
    }
}

}  // namespace ridgeline
