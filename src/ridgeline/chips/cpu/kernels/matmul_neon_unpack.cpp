// From packed pairs to records, with NEON.
#include "matmul_neon.h"

#if defined(__aarch64__)

#include <arm_neon.h>

namespace ridgeline::neon {

namespace {

// A quarter of a line: 4 rows.
using Quarter = uint8x16_t;
constexpr int QUARTER_BYTES = 16;

inline Quarter masked(Quarter quarter, uint8_t mask) { return vandq_u8(quarter, vdupq_n_u8(mask)); }

// Bits of every byte moved up, or down if negative.
template <int shift>
inline Quarter shifted(Quarter quarter) {
    if constexpr (shift > 0) return vshlq_n_u8(quarter, shift);
    if constexpr (shift < 0) return vshrq_n_u8(quarter, -shift);
    return quarter;
}

inline Quarter nibbles(const uint8_t* lines, int v) {
    const Quarter both = vld1q_u8(lines + v / 2 * LINE_STRIDE);
    return v % 2 == 0 ? masked(both, 15) : vshrq_n_u8(both, 4);
}

// A quarter of code line v: `group` points to the quarter of the planes.
template <FormatId format, int v>
inline Quarter unsigned_codes(const uint8_t* group) {
    if constexpr (format == FormatId::Q8_0) {
        return vld1q_u8(group + v * LINE_STRIDE);
    } else if constexpr (format == FormatId::Q5_0 || format == FormatId::Q5_1 || format == FormatId::Q5_K) {
        return vorrq_u8(nibbles(group + LINE_STRIDE, v), masked(shifted<4 - v>(vld1q_u8(group)), 0x10));
    } else if constexpr (format == FormatId::Q6_K) {
        const Quarter high = shifted<4 - 2 * (v % 4)>(vld1q_u8(group + v / 4 * LINE_STRIDE));
        return vorrq_u8(nibbles(group + 2 * LINE_STRIDE, v), masked(high, 0x30));
    } else if constexpr (format == FormatId::Q3_K) {
        const Quarter low = shifted<-2 * (v % 4)>(vld1q_u8(group + LINE_STRIDE + v / 4 * LINE_STRIDE));
        return vorrq_u8(masked(low, 3), masked(shifted<2 - v>(vld1q_u8(group)), 4));
    } else if constexpr (format == FormatId::Q2_K) {
        return masked(shifted<-2 * (v % 4)>(vld1q_u8(group + v / 4 * LINE_STRIDE)), 3);
    } else if constexpr (format == FormatId::IQ4_NL) {
        return vqtbl1q_u8(vld1q_u8(IQ4_NL_CODES), nibbles(group, v));
    } else if constexpr (format == FormatId::MXFP4) {
        return vqtbl1q_u8(vld1q_u8(MXFP4_CODES), nibbles(group, v));
    } else {
        return nibbles(group, v);
    }
}

template <FormatId format, int v>
inline void unpack_line(const uint8_t* group, uint8_t* record) {
    const auto zero = vdupq_n_u8(static_cast<uint8_t>(tile_layout(format).zero));
    vst1q_u8(record + v * LINE_BYTES, vsubq_u8(unsigned_codes<format, v>(group), zero));
}

template <FormatId format>
inline void unpack_codes(const uint8_t* group, uint8_t* record) {
    for (int i = 0; i < LINE_BYTES; i += QUARTER_BYTES) {
        unpack_line<format, 0>(group + i, record + i);
        unpack_line<format, 1>(group + i, record + i);
        unpack_line<format, 2>(group + i, record + i);
        unpack_line<format, 3>(group + i, record + i);
        unpack_line<format, 4>(group + i, record + i);
        unpack_line<format, 5>(group + i, record + i);
        unpack_line<format, 6>(group + i, record + i);
        unpack_line<format, 7>(group + i, record + i);
    }
}

// Stores 16 f16, each times `sign` and a signed byte, as floats.
inline void store_products(uint8_t* target, const uint8_t* halves, float sign, uint8x16_t bytes) {
    const int8x16_t values = vreinterpretq_s8_u8(bytes);
    const int16x8_t words[2] = {vmovl_s8(vget_low_s8(values)), vmovl_s8(vget_high_s8(values))};
    auto* to = reinterpret_cast<float*>(target);
    for (int i = 0; i < 4; ++i) {
        const int16x4_t four = i % 2 == 0 ? vget_low_s16(words[i / 2]) : vget_high_s16(words[i / 2]);
        const float16x4_t half = vreinterpret_f16_u8(vld1_u8(halves + 8 * i));
        const float32x4_t factor = vmulq_n_f32(vcvt_f32_f16(half), sign);
        vst1q_f32(to + 4 * i, vmulq_f32(factor, vcvtq_f32_s32(vmovl_s16(four))));
    }
}

inline void store_halves(uint8_t* target, const uint8_t* halves) {
    store_products(target, halves, 1.0f, vdupq_n_u8(1));
}

// The six bits of Q3_K's scale i of 16: low four from the first eight bytes, high two from the rest.
inline Quarter six_bits_of_16(const uint8_t* scales, int i) {
    const Quarter low = vld1q_u8(scales + i % 8 * 16), high = vld1q_u8(scales + (8 + i % 4) * 16);
    const Quarter low_four = i < 8 ? masked(low, 15) : vshrq_n_u8(low, 4);
    const Quarter high_two = masked(vshlq_u8(high, vdupq_n_s8(static_cast<int8_t>(-2 * (i / 4)))), 3);
    return vsubq_u8(vorrq_u8(low_four, vshlq_n_u8(high_two, 4)), vdupq_n_u8(32));
}

// The six-bit scale (`part` 0) or minimum (`part` 1) i of 8 of Q4_K and Q5_K.
inline Quarter six_bits_of_8(const uint8_t* scales, int part, int i) {
    const Quarter own = vld1q_u8(scales + (4 * part + i % 4) * 16);
    if (i < 4) return masked(own, 63);
    const Quarter both = vld1q_u8(scales + (4 + i) * 16);
    return vorrq_u8(part == 0 ? masked(both, 15) : vshrq_n_u8(both, 4), masked(vshrq_n_u8(own, 2), 48));
}

// Scales and minimums of one group of a tile, to its half of the record.
template <FormatId format>
inline void unpack_scales(const uint8_t* header, const uint8_t* scales, int group, uint8_t* half) {
    half += 512;
    if constexpr (format == FormatId::MXFP4) {
        // Half of 2^(e - 127) is e - 1 in the place of a float's exponent; 0 and 1 give subnormal numbers.
        auto* to = reinterpret_cast<uint32_t*>(half);
        for (int row = 0; row < TILE_ROWS; ++row) {
            to[row] = scales[row] < 2 ? 0x00200000u << scales[row] : (scales[row] - 1u) << 23;
        }
    } else if constexpr (format == FormatId::Q4_1 || format == FormatId::Q5_1) {
        store_halves(half, scales);
        store_halves(half + LINE_BYTES, scales + 32);
    } else if constexpr (format == FormatId::Q4_K || format == FormatId::Q5_K) {
        store_products(half, scales, 1.0f, six_bits_of_8(scales + 64, 0, group));
        store_products(half + LINE_BYTES, scales + 32, -1.0f, six_bits_of_8(scales + 64, 1, group));
    } else if constexpr (format == FormatId::Q2_K) {
        for (int i = 0; i < 2; ++i) {
            const Quarter both = vld1q_u8(scales + 64 + (2 * group + i) * 16);
            store_products(half + i * LINE_BYTES, scales, 1.0f, masked(both, 15));
            store_products(half + (2 + i) * LINE_BYTES, scales + 32, -1.0f, vshrq_n_u8(both, 4));
        }
    } else if constexpr (format == FormatId::Q3_K) {
        for (int i = 0; i < 2; ++i) {
            store_products(half + i * LINE_BYTES, header, 1.0f, six_bits_of_16(scales, 2 * group + i));
        }
    } else if constexpr (format == FormatId::Q6_K) {
        for (int i = 0; i < 2; ++i) {
            store_products(half + i * LINE_BYTES, header, 1.0f, vld1q_u8(scales + (2 * group + i) * 16));
        }
    } else {
        store_halves(half, scales);
    }
}

template <FormatId format>
void unpack(const uint8_t* pair, int64_t first_group, int64_t count, int64_t num_groups, uint8_t* records) {
    constexpr TileLayout layout = tile_layout(format);
    for (int64_t group = first_group; group < first_group + count; ++group) {
        const int in_run = static_cast<int>(group % RUN_GROUPS);
        const uint8_t* run = pair + layout.run_offset(group / RUN_GROUPS);
        const int64_t run_groups = groups_in_run(group - in_run, num_groups);
        for (int tile = 0; tile < PAIR_TILES; ++tile, records += half_record_bytes(format)) {
            unpack_codes<format>(run + layout.group_offset(tile, in_run, run_groups), records);
            unpack_scales<format>(run + layout.header_offset(tile), run + layout.scale_offset(tile, in_run), in_run,
                                  records);
        }
    }
}

}  // namespace

UnpackFunction unpack_function(FormatId format) {
    switch (format) {
        case FormatId::Q4_0:
            return unpack<FormatId::Q4_0>;
        case FormatId::Q4_1:
            return unpack<FormatId::Q4_1>;
        case FormatId::Q5_0:
            return unpack<FormatId::Q5_0>;
        case FormatId::Q5_1:
            return unpack<FormatId::Q5_1>;
        case FormatId::Q8_0:
            return unpack<FormatId::Q8_0>;
        case FormatId::Q2_K:
            return unpack<FormatId::Q2_K>;
        case FormatId::Q3_K:
            return unpack<FormatId::Q3_K>;
        case FormatId::Q4_K:
            return unpack<FormatId::Q4_K>;
        case FormatId::Q5_K:
            return unpack<FormatId::Q5_K>;
        case FormatId::Q6_K:
            return unpack<FormatId::Q6_K>;
        case FormatId::IQ4_NL:
            return unpack<FormatId::IQ4_NL>;
        case FormatId::MXFP4:
            return unpack<FormatId::MXFP4>;
        default:
            return nullptr;
    }
}

}  // namespace ridgeline::neon

#endif
