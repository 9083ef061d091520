// From packed tiles to records, with AVX-512: see matmul_kernels.h for the two forms.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

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

// By how much codes are scaled up so that the format's zero becomes 128.
template <FormatId format>
constexpr int code_shift() {
    constexpr TileLayout layout = tile_layout(format);
    if (layout.has_minimum) return 0;
    int shift = 0;
    while ((layout.zero << shift) < 128) ++shift;
    return shift;
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
        return load_line(group + v * LINE_BYTES);
    } else if constexpr (format == FormatId::Q5_0 || format == FormatId::Q5_1 || format == FormatId::Q5_K) {
        const Line low = shifted<nibble_up>(load_line(group + LINE_BYTES + v / 2 * LINE_BYTES));
        const Line high = shifted<up + 4 - v>(load_line(group));
        return join(low, high, 0x0f << up, 0x1f << up);
    } else if constexpr (format == FormatId::Q6_K) {
        const Line low = shifted<nibble_up>(load_line(group + 2 * LINE_BYTES + v / 2 * LINE_BYTES));
        const Line high = shifted<up + 4 - 2 * (v % 4)>(load_line(group + v / 4 * LINE_BYTES));
        return join(low, high, 0x0f << up, 0x3f << up);
    } else if constexpr (format == FormatId::Q3_K) {
        const Line low = shifted<up - 2 * (v % 4)>(load_line(group + LINE_BYTES + v / 4 * LINE_BYTES));
        const Line high = shifted<up + 2 - v>(load_line(group));
        return join(low, high, 0x03 << up, 0x07 << up);
    } else if constexpr (format == FormatId::Q2_K) {
        return _mm512_and_si512(shifted<-2 * (v % 4)>(load_line(group + v / 4 * LINE_BYTES)), bytes(3));
    } else if constexpr (format == FormatId::IQ4_NL || format == FormatId::MXFP4) {
        const Line book = code_book(format == FormatId::IQ4_NL ? IQ4_NL_CODES : MXFP4_CODES, up);
        const Line index = shifted<v % 2 == 0 ? 0 : -4>(load_line(group + v / 2 * LINE_BYTES));
        return _mm512_shuffle_epi8(book, _mm512_and_si512(index, bytes(15)));
    } else {
        return _mm512_and_si512(shifted<nibble_up>(load_line(group + v / 2 * LINE_BYTES)), bytes(0x0f << up));
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

inline void store_scale(uint8_t* record, int index, __m512 values) {
    _mm512_store_ps(record + 512 + index * LINE_BYTES, values);
}

inline __m512 signed_bytes(__m128i values) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(values)); }

// Four times 16 bytes, each times `factor`: to the scale places `index` of four records (or two places of two).
template <FormatId format, int per_record>
inline void store_four(Line values, __m512 factor, uint8_t* records, int index) {
    constexpr int64_t stride = record_bytes(format);
    const auto put = [&](int i, __m128i sixteen) {
        store_scale(records + i / per_record * stride, index + i % per_record,
                    _mm512_mul_ps(factor, signed_bytes(sixteen)));
    };
    put(0, _mm512_extracti32x4_epi32(values, 0));
    put(1, _mm512_extracti32x4_epi32(values, 1));
    put(2, _mm512_extracti32x4_epi32(values, 2));
    put(3, _mm512_extracti32x4_epi32(values, 3));
}

// Scales of a part of eight groups.
template <FormatId format>
inline void unpack_k_scales(const uint8_t* header, const uint8_t* part, uint8_t* records) {
    constexpr int64_t stride = record_bytes(format);
    constexpr float factor = 1.0f / static_cast<float>(1 << code_shift<format>());
    if constexpr (format == FormatId::Q4_K || format == FormatId::Q5_K) {
        const __m512 scale = halves(part);
        const __m512 minimum = _mm512_sub_ps(_mm512_setzero_ps(), halves(part + 32));
        const Line a = load_line(part + 64), b = load_line(part + 128), c = load_line(part + 192);
        const Line six = bytes(63), nibble = bytes(15), top = bytes(48);
        store_four<format, 1>(_mm512_and_si512(a, six), scale, records, 0);
        store_four<format, 1>(_mm512_and_si512(b, six), minimum, records, 1);
        const Line a_top = _mm512_and_si512(shifted<-2>(a), top), b_top = _mm512_and_si512(shifted<-2>(b), top);
        store_four<format, 1>(_mm512_or_si512(_mm512_and_si512(c, nibble), a_top), scale, records + 4 * stride, 0);
        store_four<format, 1>(_mm512_or_si512(_mm512_and_si512(shifted<-4>(c), nibble), b_top), minimum,
                              records + 4 * stride, 1);
    } else if constexpr (format == FormatId::Q6_K) {
        const __m512 scale = _mm512_mul_ps(halves(header), _mm512_set1_ps(factor));
        for (int i = 0; i < 4; ++i) {
            store_four<format, 2>(load_line(part + i * LINE_BYTES), scale, records + 2 * i * stride, 0);
        }
    } else if constexpr (format == FormatId::Q3_K) {
        const __m512 scale = _mm512_mul_ps(halves(header), _mm512_set1_ps(factor));
        const Line a = load_line(part), b = load_line(part + 64), c = load_line(part + 128);
        const auto joined = [&](Line low, Line high) {
            const Line all = _mm512_or_si512(_mm512_and_si512(low, bytes(15)), _mm512_and_si512(high, bytes(48)));
            return _mm512_sub_epi8(all, bytes(32));
        };
        store_four<format, 2>(joined(a, shifted<4>(c)), scale, records, 0);
        store_four<format, 2>(joined(b, shifted<2>(c)), scale, records + 2 * stride, 0);
        store_four<format, 2>(joined(shifted<-4>(a), c), scale, records + 4 * stride, 0);
        store_four<format, 2>(joined(shifted<-4>(b), shifted<-2>(c)), scale, records + 6 * stride, 0);
    } else {
        const __m512 scale = halves(part);
        const __m512 minimum = _mm512_mul_ps(halves(part + 32), _mm512_set1_ps(1.0f / 128));
        for (int i = 0; i < 4; ++i) {
            const Line both = load_line(part + 64 + i * LINE_BYTES);
            store_four<format, 2>(_mm512_and_si512(both, bytes(15)), scale, records + 2 * i * stride, 0);
            store_four<format, 2>(_mm512_and_si512(shifted<-4>(both), bytes(15)), minimum, records + 2 * i * stride, 2);
        }
    }
}

// Scales of a part that is one group.
template <FormatId format>
inline void unpack_scale(const uint8_t* header, const uint8_t* part, uint8_t* record) {
    constexpr float factor = 1.0f / static_cast<float>(1 << code_shift<format>());
    if constexpr (format == FormatId::MXFP4) {
        // 2^(e - 127) is e in the place of a float's exponent, but for e = 0, which is a subnormal number.
        const __m512i exponent = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(header)));
        const __mmask16 zero = _mm512_testn_epi32_mask(exponent, exponent);
        const __m512i power = _mm512_mask_mov_epi32(_mm512_slli_epi32(exponent, 23), zero, _mm512_set1_epi32(1 << 22));
        store_scale(record, 0, _mm512_mul_ps(_mm512_castsi512_ps(power), _mm512_set1_ps(0.5f * factor)));
    } else if constexpr (tile_layout(format).has_minimum) {
        store_scale(record, 0, halves(part));
        store_scale(record, 1, halves(part + 32));
    } else {
        store_scale(record, 0, _mm512_mul_ps(halves(header), _mm512_set1_ps(factor)));
    }
}

template <int num_bytes>
inline void ask_for(const uint8_t* p) {
    for (int i = 0; i < num_bytes; i += LINE_BYTES) _mm_prefetch(p + i, _MM_HINT_T0);
}

// `count` groups of one part, whose scales lie at `header` and `part`.
template <FormatId format>
inline void unpack_part(const uint8_t* header, const uint8_t* part, int64_t ahead_bytes, uint8_t* records) {
    constexpr TileLayout layout = tile_layout(format);
    ask_for<layout.part_header_bytes>(part + ahead_bytes);
    if constexpr (layout.part_groups == 1) {
        unpack_scale<format>(header, part, records);
    } else {
        unpack_k_scales<format>(header, part, records);
    }
    const uint8_t* group = part + layout.part_header_bytes;
    for (int i = 0; i < layout.part_groups; ++i) {
        ask_for<layout.group_bytes>(group + ahead_bytes);
        unpack_codes<format>(group, records);
        group += layout.group_bytes;
        records += record_bytes(format);
    }
}

template <FormatId format>
void unpack(const uint8_t* tile, int64_t first_group, int64_t num_groups, uint8_t* records, int64_t ahead_bytes) {
    constexpr TileLayout layout = tile_layout(format);
    constexpr int header_stride = (format == FormatId::MXFP4 ? 1 : 2) * static_cast<int>(TILE_ROWS);
    int64_t part = first_group / layout.part_groups;
    const int64_t end = part + num_groups / layout.part_groups;
    while (part < end) {
        const int64_t in_chunk = part % layout.chunk_parts;
        const uint8_t* chunk = tile + part / layout.chunk_parts * layout.chunk_bytes();
        if constexpr (layout.chunk_header_bytes != 0) _mm_prefetch(chunk + ahead_bytes, _MM_HINT_T0);
        const uint8_t* parts = chunk + layout.chunk_header_bytes;
        for (int64_t i = in_chunk; i < layout.chunk_parts && part < end; ++i, ++part) {
            unpack_part<format>(chunk + i * header_stride, parts + i * layout.part_bytes(), ahead_bytes, records);
            records += record_bytes(format) * layout.part_groups;
        }
    }
}

}  // namespace

UnpackFunction unpack_function(FormatId format) {
    switch (format) {
        case FormatId::Q4_0: return unpack<FormatId::Q4_0>;
        case FormatId::Q4_1: return unpack<FormatId::Q4_1>;
        case FormatId::Q5_0: return unpack<FormatId::Q5_0>;
        case FormatId::Q5_1: return unpack<FormatId::Q5_1>;
        case FormatId::Q8_0: return unpack<FormatId::Q8_0>;
        case FormatId::Q2_K: return unpack<FormatId::Q2_K>;
        case FormatId::Q3_K: return unpack<FormatId::Q3_K>;
        case FormatId::Q4_K: return unpack<FormatId::Q4_K>;
        case FormatId::Q5_K: return unpack<FormatId::Q5_K>;
        case FormatId::Q6_K: return unpack<FormatId::Q6_K>;
        case FormatId::IQ4_NL: return unpack<FormatId::IQ4_NL>;
        case FormatId::MXFP4: return unpack<FormatId::MXFP4>;
        default: return nullptr;
    }
}

}  // namespace ridgeline::avx512

#endif
