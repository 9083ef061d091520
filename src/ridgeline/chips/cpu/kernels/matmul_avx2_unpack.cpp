// From packed pairs to records, with AVX2.
#include "matmul_avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace ridgeline::avx2 {

namespace {

// Half a line: 8 rows.
using Half = __m256i;

inline Half load_half(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Half bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
inline Half masked(Half half, int mask) { return _mm256_and_si256(half, bytes(mask)); }

// Bits of every byte moved up (or down, if negative); bits that cross into a neighbour are the caller's to mask.
template <int shift>
inline Half shifted(Half half) {
    if constexpr (shift > 0) return _mm256_slli_epi16(half, shift);
    if constexpr (shift < 0) return _mm256_srli_epi16(half, -shift);
    return half;
}

inline Half nibbles(const uint8_t* lines, int v) {
    const Half both = load_half(lines + v / 2 * LINE_STRIDE);
    return masked(v % 2 == 0 ? both : shifted<-4>(both), 15);
}

inline Half look_up(const uint8_t codes[16], int minus, Half index) {
    alignas(16) uint8_t book[16];
    for (int i = 0; i < 16; ++i) book[i] = static_cast<uint8_t>(codes[i] - minus);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(book))),
                               index);
}

// Half a code line: `group` points to the half of the planes.
template <FormatId format, int v>
inline Half codes(const uint8_t* group) {
    if constexpr (format == FormatId::Q8_0) {
        return _mm256_xor_si256(load_half(group + v * LINE_STRIDE), bytes(0x80));
    } else if constexpr (format == FormatId::Q5_0 || format == FormatId::Q5_1 || format == FormatId::Q5_K) {
        return _mm256_or_si256(nibbles(group + LINE_STRIDE, v), masked(shifted<4 - v>(load_half(group)), 0x10));
    } else if constexpr (format == FormatId::Q6_K) {
        const Half high = shifted<4 - 2 * (v % 4)>(load_half(group + v / 4 * LINE_STRIDE));
        return _mm256_or_si256(nibbles(group + 2 * LINE_STRIDE, v), masked(high, 0x30));
    } else if constexpr (format == FormatId::Q3_K) {
        const Half low = shifted<-2 * (v % 4)>(load_half(group + LINE_STRIDE + v / 4 * LINE_STRIDE));
        return _mm256_or_si256(masked(low, 3), masked(shifted<2 - v>(load_half(group)), 4));
    } else if constexpr (format == FormatId::Q2_K) {
        return masked(shifted<-2 * (v % 4)>(load_half(group + v / 4 * LINE_STRIDE)), 3);
    } else if constexpr (format == FormatId::IQ4_NL) {
        return look_up(IQ4_NL_CODES, 128, nibbles(group, v));
    } else if constexpr (format == FormatId::MXFP4) {
        return look_up(MXFP4_CODES, 0, nibbles(group, v));
    } else {
        return nibbles(group, v);
    }
}

inline void store_half(uint8_t* p, Half half) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), half); }

template <FormatId format>
inline void unpack_codes(const uint8_t* group, uint8_t* record) {
    for (int half = 0; half < LINE_BYTES; half += LINE_BYTES / 2) {
        store_half(record + half + 0 * LINE_BYTES, codes<format, 0>(group + half));
        store_half(record + half + 1 * LINE_BYTES, codes<format, 1>(group + half));
        store_half(record + half + 2 * LINE_BYTES, codes<format, 2>(group + half));
        store_half(record + half + 3 * LINE_BYTES, codes<format, 3>(group + half));
        store_half(record + half + 4 * LINE_BYTES, codes<format, 4>(group + half));
        store_half(record + half + 5 * LINE_BYTES, codes<format, 5>(group + half));
        store_half(record + half + 6 * LINE_BYTES, codes<format, 6>(group + half));
        store_half(record + half + 7 * LINE_BYTES, codes<format, 7>(group + half));
    }
}

// 16 values: one of each row of a tile.
struct Line {
    __m256 low, high;
};

inline Line halves(const uint8_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}

inline Line times(Line line, __m128i signed_bytes) {
    const __m128i high = _mm_srli_si128(signed_bytes, 8);
    return {_mm256_mul_ps(line.low, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(signed_bytes))),
            _mm256_mul_ps(line.high, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)))};
}

inline Line negative(Line line) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(line.low, sign), _mm256_xor_ps(line.high, sign)};
}

inline void store_line(uint8_t* p, Line line) {
    _mm256_store_ps(reinterpret_cast<float*>(p), line.low);
    _mm256_store_ps(reinterpret_cast<float*>(p) + 8, line.high);
}

inline __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline __m128i low_bits(__m128i values, int mask) {
    return _mm_and_si128(values, _mm_set1_epi8(static_cast<char>(mask)));
}

// The six bits of Q3_K's scale i of 16 (see ggml's layout): low four from the first eight bytes, high two from the
// rest.
inline __m128i six_bits_of_16(const uint8_t* scales, int i) {
    const __m128i low = load_16(scales + i % 8 * 16), high = load_16(scales + (8 + i % 4) * 16);
    const __m128i low_four = low_bits(i < 8 ? low : _mm_srli_epi16(low, 4), 15);
    const __m128i high_two = low_bits(_mm_srl_epi16(high, _mm_cvtsi32_si128(2 * (i / 4))), 3);
    return _mm_sub_epi8(_mm_or_si128(low_four, _mm_slli_epi16(high_two, 4)), _mm_set1_epi8(32));
}

// The six-bit scale (`part` 0) or minimum (`part` 1) i of 8 of Q4_K and Q5_K.
inline __m128i six_bits_of_8(const uint8_t* scales, int part, int i) {
    const __m128i own = load_16(scales + (4 * part + i % 4) * 16);
    if (i < 4) return low_bits(own, 63);
    const __m128i both = load_16(scales + (4 + i) * 16);
    return _mm_or_si128(low_bits(part == 0 ? both : _mm_srli_epi16(both, 4), 15), low_bits(_mm_srli_epi16(own, 2), 48));
}

// Scales and minimums of one group of a tile, to its half of the record.
template <FormatId format>
inline void unpack_scales(const uint8_t* header, const uint8_t* scales, int group, uint8_t* half) {
    half += 512;
    if constexpr (format == FormatId::MXFP4) {
        // Half of 2^(e - 127) is e - 1 in the place of a float's exponent; 0 and 1 give subnormal numbers.
        const auto powers = [](__m128i eight) {
            const __m256i e = _mm256_cvtepu8_epi32(eight);
            const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
            const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
            const __m256i is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
            return _mm256_castsi256_ps(_mm256_blendv_epi8(subnormal, normal, is_normal));
        };
        const __m128i exponents = load_16(scales);
        store_line(half, {powers(exponents), powers(_mm_srli_si128(exponents, 8))});
    } else if constexpr (format == FormatId::Q4_1 || format == FormatId::Q5_1) {
        store_line(half, halves(scales));
        store_line(half + LINE_BYTES, halves(scales + 32));
    } else if constexpr (format == FormatId::Q4_K || format == FormatId::Q5_K) {
        store_line(half, times(halves(scales), six_bits_of_8(scales + 64, 0, group)));
        store_line(half + LINE_BYTES, times(negative(halves(scales + 32)), six_bits_of_8(scales + 64, 1, group)));
    } else if constexpr (format == FormatId::Q2_K) {
        for (int i = 0; i < 2; ++i) {
            const __m128i both = load_16(scales + 64 + (2 * group + i) * 16);
            store_line(half + i * LINE_BYTES, times(halves(scales), low_bits(both, 15)));
            store_line(half + (2 + i) * LINE_BYTES,
                       times(negative(halves(scales + 32)), low_bits(_mm_srli_epi16(both, 4), 15)));
        }
    } else if constexpr (format == FormatId::Q3_K) {
        for (int i = 0; i < 2; ++i) {
            store_line(half + i * LINE_BYTES, times(halves(header), six_bits_of_16(scales, 2 * group + i)));
        }
    } else if constexpr (format == FormatId::Q6_K) {
        for (int i = 0; i < 2; ++i) {
            store_line(half + i * LINE_BYTES, times(halves(header), load_16(scales + (2 * group + i) * 16)));
        }
    } else {
        store_line(half, halves(scales));
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

}  // namespace ridgeline::avx2

#endif
