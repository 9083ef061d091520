// From packed tiles to records, with AVX-512: see matmul_kernels.h for the two forms.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "as_constants.h"

namespace ridgeline::avx512 {

namespace {

using Line = __m512i;

inline Line load_line(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Line bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

// Bits of every byte moved up (or down, if negative); bits that cross into a neighbour are the caller's to mask.
template <int shift>
inline Line shifted(Line line) {
    if constexpr (shift > 0) return _mm512_slli_epi16(line, shift);
    if constexpr (shift < 0) return _mm512_srli_epi16(line, -shift);
    return line;
}

// (low where `low_mask` is set, high elsewhere), cut to `mask`.
inline Line join(Line low, Line high, int low_mask, int mask) {
    return _mm512_and_si512(_mm512_ternarylogic_epi32(bytes(low_mask), low, high, 0xca), bytes(mask));
}

// By how much codes are scaled up, to fill the byte: the zero of a format without minimum becomes 128.
template <FormatId format>
constexpr int code_shift() {
    return 8 - tile_layout(format).code_bits;
}

template <FormatId format>
constexpr float scale_factor() {
    return 1.0f / static_cast<float>(1 << code_shift<format>());
}

inline Line code_book(const uint8_t codes[16], int shift) {
    alignas(16) uint8_t shifted_codes[16];
    for (int i = 0; i < 16; ++i) shifted_codes[i] = static_cast<uint8_t>(codes[i] << shift);
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(shifted_codes)));
}

// Code line v of a group.
template <FormatId format, int v>
inline Line codes(const uint8_t* group) {
    constexpr int up = code_shift<format>();
    constexpr int nibble_up = up - (v % 2 == 0 ? 0 : 4);
    if constexpr (format == FormatId::Q8_0) {
        return load_line(group + v * LINE_STRIDE);
    } else if constexpr (format == FormatId::Q5_0 || format == FormatId::Q5_1 || format == FormatId::Q5_K) {
        const Line low = shifted<nibble_up>(load_line(group + LINE_STRIDE + v / 2 * LINE_STRIDE));
        const Line high = shifted<up + 4 - v>(load_line(group));
        return join(low, high, 0x0f << up, 0x1f << up);
    } else if constexpr (format == FormatId::Q6_K) {
        const Line low = shifted<nibble_up>(load_line(group + 2 * LINE_STRIDE + v / 2 * LINE_STRIDE));
        const Line high = shifted<up + 4 - 2 * (v % 4)>(load_line(group + v / 4 * LINE_STRIDE));
        return join(low, high, 0x0f << up, 0x3f << up);
    } else if constexpr (format == FormatId::Q3_K) {
        const Line low = shifted<up - 2 * (v % 4)>(load_line(group + LINE_STRIDE + v / 4 * LINE_STRIDE));
        const Line high = shifted<up + 2 - v>(load_line(group));
        return join(low, high, 0x03 << up, 0x07 << up);
    } else if constexpr (format == FormatId::Q2_K) {
        return _mm512_and_si512(shifted<up - 2 * (v % 4)>(load_line(group + v / 4 * LINE_STRIDE)), bytes(3 << up));
    } else if constexpr (format == FormatId::IQ4_NL || format == FormatId::MXFP4) {
        const Line book = code_book(format == FormatId::IQ4_NL ? IQ4_NL_CODES : MXFP4_CODES, up);
        const Line index = shifted<v % 2 == 0 ? 0 : -4>(load_line(group + v / 2 * LINE_STRIDE));
        return _mm512_shuffle_epi8(book, _mm512_and_si512(index, bytes(15)));
    } else {
        return _mm512_and_si512(shifted<nibble_up>(load_line(group + v / 2 * LINE_STRIDE)), bytes(0x0f << up));
    }
}

template <FormatId format>
inline void unpack_codes(const uint8_t* group, uint8_t* record) {
    _mm512_store_si512(record + 0 * LINE_BYTES, codes<format, 0>(group));
    _mm512_store_si512(record + 1 * LINE_BYTES, codes<format, 1>(group));
    _mm512_store_si512(record + 2 * LINE_BYTES, codes<format, 2>(group));
    _mm512_store_si512(record + 3 * LINE_BYTES, codes<format, 3>(group));
    _mm512_store_si512(record + 4 * LINE_BYTES, codes<format, 4>(group));
    _mm512_store_si512(record + 5 * LINE_BYTES, codes<format, 5>(group));
    _mm512_store_si512(record + 6 * LINE_BYTES, codes<format, 6>(group));
    _mm512_store_si512(record + 7 * LINE_BYTES, codes<format, 7>(group));
}

inline __m512 halves(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline __m512 signed_bytes(__m128i values) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(values)); }

// Where scales and minimums go: put(group of the run, which of the group's, 16 floats). As they are, to records of
// pairs.
struct PairScales {
    uint8_t* scales;
    int64_t stride;  // from group to group

    void operator()(int64_t group, int index, __m512 values) const {
        _mm512_store_ps(scales + group * stride + index * LINE_BYTES, values);
    }
};

// To records of quads, see matmul_kernels.h. A scale of zero becomes one, of codes that are made zero.
template <FormatId format>
struct QuadScales {
    static constexpr int num_scales = tile_layout(format).scales_per_group;
    // Magnitudes of scales within these bounds: with those of activations, nothing overflows or vanishes.
    static constexpr uint32_t least = (127 - 40) << 23, range = 80 << 23;

    uint8_t* scales;
    int64_t stride;
    __mmask16 is_strange = 0, is_any_zero = 0;
    __mmask16 is_zero[RUN_GROUPS][num_scales] = {};

    void operator()(int64_t group, int index, __m512 values) {
        uint8_t* to = scales + group * stride;
        if (index >= num_scales) {
            _mm512_store_ps(to + (num_scales * (QUAD_FRACTIONS - 1) + index) * LINE_BYTES, values);
            return;
        }
        to += index * QUAD_FRACTIONS * LINE_BYTES;
        const __m512i magnitudes = _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(0x7fffffff));
        const __mmask16 zero = _mm512_testn_epi32_mask(magnitudes, magnitudes);
        is_any_zero |= is_zero[group][index] = zero;
        is_strange |= _mm512_mask_cmpge_epu32_mask(static_cast<__mmask16>(~zero),
                                                   _mm512_sub_epi32(magnitudes, _mm512_set1_epi32(least)),
                                                   _mm512_set1_epi32(range));
        values = _mm512_mask_mov_ps(values, zero, _mm512_set1_ps(1.0f));
        for (int i = 0; i < QUAD_FRACTIONS; ++i) {
            const float fraction = 1.0f + 0.25f * static_cast<float>(i);
            const __m512 product = _mm512_mul_ps(values, _mm512_set1_ps(fraction));
            const auto one = static_cast<int>(float_to_bits(fraction));
            _mm512_store_si512(to + i * LINE_BYTES,
                               _mm512_sub_epi32(_mm512_castps_si512(product), _mm512_set1_epi32(one)));
        }
    }

    // `codes` are those of the run's first group.
    void clear_codes(uint8_t* codes, int64_t count) const {
        const Line zero = bytes(tile_layout(format).has_minimum ? 0 : 128);
        constexpr int lines = GROUP_LINES / num_scales;
        for (int64_t group = 0; group < count; ++group) {
            for (int line = 0; line < GROUP_LINES; ++line) {
                _mm512_mask_store_epi32(codes + group * stride + line * LINE_BYTES, is_zero[group][line / lines], zero);
            }
        }
    }
};

// Four times 16 bytes, each times `factor`: the `index` of four groups from `group` on (or two of two groups each).
template <int per_group, typename Put>
inline void put_four(Line values, __m512 factor, Put& put, int64_t group, int index) {
    const auto put_one = [&](int i, __m128i sixteen) {
        put(group + i / per_group, index + i % per_group, _mm512_mul_ps(factor, signed_bytes(sixteen)));
    };
    put_one(0, _mm512_castsi512_si128(values));
    put_one(1, _mm512_extracti32x4_epi32(values, 1));
    put_one(2, _mm512_extracti32x4_epi32(values, 2));
    put_one(3, _mm512_extracti32x4_epi32(values, 3));
}

// Scales of a whole run of a K format.
template <FormatId format, typename Put>
inline void unpack_k_scales(const uint8_t* header, const uint8_t* run, Put& put) {
    const __m512 factor = _mm512_set1_ps(scale_factor<format>());
    if constexpr (format == FormatId::Q4_K || format == FormatId::Q5_K) {
        const __m512 scale = _mm512_mul_ps(halves(run), factor);
        const __m512 minimum = _mm512_sub_ps(_mm512_setzero_ps(), halves(run + 32));
        const Line a = load_line(run + 64), b = load_line(run + 128), c = load_line(run + 192);
        const Line six = bytes(63), nibble = bytes(15), top = bytes(48);
        put_four<1>(_mm512_and_si512(a, six), scale, put, 0, 0);
        put_four<1>(_mm512_and_si512(b, six), minimum, put, 0, 1);
        const Line a_top = _mm512_and_si512(shifted<-2>(a), top), b_top = _mm512_and_si512(shifted<-2>(b), top);
        put_four<1>(_mm512_or_si512(_mm512_and_si512(c, nibble), a_top), scale, put, 4, 0);
        put_four<1>(_mm512_or_si512(_mm512_and_si512(shifted<-4>(c), nibble), b_top), minimum, put, 4, 1);
    } else if constexpr (format == FormatId::Q6_K) {
        const __m512 scale = _mm512_mul_ps(halves(header), factor);
        for (int i = 0; i < 4; ++i) put_four<2>(load_line(run + i * LINE_BYTES), scale, put, 2 * i, 0);
    } else if constexpr (format == FormatId::Q3_K) {
        const __m512 scale = _mm512_mul_ps(halves(header), factor);
        const Line a = load_line(run), b = load_line(run + 64), c = load_line(run + 128);
        const auto joined = [&](Line low, Line high) {
            const Line all = _mm512_or_si512(_mm512_and_si512(low, bytes(15)), _mm512_and_si512(high, bytes(48)));
            return _mm512_sub_epi8(all, bytes(32));
        };
        put_four<2>(joined(a, shifted<4>(c)), scale, put, 0, 0);
        put_four<2>(joined(b, shifted<2>(c)), scale, put, 2, 0);
        put_four<2>(joined(shifted<-4>(a), c), scale, put, 4, 0);
        put_four<2>(joined(shifted<-4>(b), shifted<-2>(c)), scale, put, 6, 0);
    } else {
        const __m512 scale = _mm512_mul_ps(halves(run), factor);
        const __m512 minimum = halves(run + 32);
        for (int i = 0; i < 4; ++i) {
            const Line both = load_line(run + 64 + i * LINE_BYTES);
            put_four<2>(_mm512_and_si512(both, bytes(15)), scale, put, 2 * i, 0);
            put_four<2>(_mm512_and_si512(shifted<-4>(both), bytes(15)), minimum, put, 2 * i, 2);
        }
    }
}

// Scales of one group of the other formats.
template <FormatId format, typename Put>
inline void unpack_scale(const uint8_t* source, Put& put, int64_t group) {
    const __m512 factor = _mm512_set1_ps(scale_factor<format>());
    if constexpr (format == FormatId::MXFP4) {
        // 2^(e - 127) is e in the place of a float's exponent, but for e = 0, which is a subnormal number.
        const __m512i exponent = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
        const __mmask16 zero = _mm512_testn_epi32_mask(exponent, exponent);
        const __m512i power = _mm512_mask_mov_epi32(_mm512_slli_epi32(exponent, 23), zero, _mm512_set1_epi32(1 << 22));
        put(group, 0, _mm512_mul_ps(_mm512_castsi512_ps(power), _mm512_mul_ps(factor, _mm512_set1_ps(0.5f))));
    } else {
        put(group, 0, _mm512_mul_ps(halves(source), factor));
        if constexpr (tile_layout(format).has_minimum) put(group, 1, halves(source + 32));
    }
}

// Scales of a run of one tile.
template <FormatId format, typename Put>
inline void unpack_run_scales(const uint8_t* run, int tile, int64_t count, Put& put) {
    constexpr TileLayout layout = tile_layout(format);
    if constexpr (layout.run_scale_bytes != 0) {
        unpack_k_scales<format>(run + layout.header_offset(tile), run + layout.scale_offset(tile, 0), put);
    } else {
        for (int64_t i = 0; i < count; ++i) unpack_scale<format>(run + layout.scale_offset(tile, i), put, i);
    }
}

// Of both tiles, to records of pairs.
template <FormatId format>
inline void unpack_pair_scales(const uint8_t* run, int64_t count, uint8_t* records) {
    for (int tile = 0; tile < PAIR_TILES; ++tile) {
        PairScales put{records + tile * half_record_bytes(format) + 512, record_bytes(format)};
        unpack_run_scales<format>(run, tile, count, put);
    }
}

template <FormatId format>
void unpack_scales(const uint8_t* pair, int64_t first_group, int64_t num_groups, uint8_t* records) {
    unpack_pair_scales<format>(pair + tile_layout(format).run_offset(first_group / RUN_GROUPS),
                               groups_in_run(first_group, num_groups), records);
}

template <FormatId format>
void unpack(const uint8_t* pair, int64_t first_group, int64_t count, int64_t num_groups, uint8_t* records) {
    constexpr TileLayout layout = tile_layout(format);
    for (int64_t group = first_group; group < first_group + count; group += RUN_GROUPS) {
        const int64_t in_run = groups_in_run(group, num_groups);
        const uint8_t* source = pair + layout.run_offset(group / RUN_GROUPS);
        unpack_pair_scales<format>(source, in_run, records);
        source += layout.pair_scale_bytes(in_run);
        for (int64_t i = 0; i < in_run; ++i, source += layout.pair_group_bytes(), records += record_bytes(format)) {
            unpack_codes<format>(source, records);
            unpack_codes<format>(source + LINE_BYTES, records + half_record_bytes(format));
        }
    }
}

template <FormatId format>
bool unpack_quad(const uint8_t* pair, int64_t first_group, int64_t num_groups, int pair_of_quad, uint8_t* records) {
    constexpr TileLayout layout = tile_layout(format);
    constexpr int64_t stride = quad_record_bytes(format), tile_stride = stride / QUAD_TILES;
    const int64_t in_run = groups_in_run(first_group, num_groups);
    const uint8_t* source = pair + layout.run_offset(first_group / RUN_GROUPS);
    records += pair_of_quad * PAIR_TILES * tile_stride;
    QuadScales<format> scales[PAIR_TILES] = {{records + 512, stride}, {records + tile_stride + 512, stride}};
    for (int tile = 0; tile < PAIR_TILES; ++tile) {
        unpack_run_scales<format>(source, tile, in_run, scales[tile]);
        if (scales[tile].is_strange != 0) return false;
    }
    source += layout.pair_scale_bytes(in_run);
    for (int64_t i = 0; i < in_run; ++i, source += layout.pair_group_bytes()) {
        unpack_codes<format>(source, records + i * stride);
        unpack_codes<format>(source + LINE_BYTES, records + i * stride + tile_stride);
    }
    for (int tile = 0; tile < PAIR_TILES; ++tile) {
        if (scales[tile].is_any_zero != 0) scales[tile].clear_codes(records + tile * tile_stride, in_run);
    }
    return true;
}

}  // namespace

FormatKernels unpackers(FormatId format) {
    FormatKernels kernels;
    with_quantised_format(format, [&]<FormatId id>() {
        kernels.unpack = unpack<id>;
        kernels.unpack_scales = unpack_scales<id>;
        kernels.unpack_quad = unpack_quad<id>;
    });
    return kernels;
}

}  // namespace ridgeline::avx512

#endif
