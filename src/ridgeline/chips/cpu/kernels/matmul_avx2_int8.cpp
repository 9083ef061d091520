// Inner loops of the int8 products with AVX2: 8 outputs of up to six rows at a time.
//
// Without AVX-VNNI, vpmaddubsw adds two products in 16 bits, and as many of its results are added there as fit before
// they are widened: all eight code lines of a group for codes of 4 bits (8 * 2 * 15 * 127 < 2^15), four for 5 bits, two
// for 6. For signed codes of 8 bits the factors are exchanged: |code| times the activation with the code's sign.
#include "matmul_avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

namespace ridgeline::avx2 {

namespace {

// What the loop must know of a format; formats that agree in it share a loop.
struct Traits {
    int lines_in_16_bits;
    int num_scales;
    bool has_minimum;
    int zero;  // 128: codes are signed
};

constexpr Traits traits(FormatId format) {
    const TileLayout layout = tile_layout(format);
    const int lines = layout.code_bits <= 4 ? 8 : layout.code_bits == 5 ? 4 : layout.code_bits == 6 ? 2 : 1;
    const int most = 8 / layout.scales_per_group;
    return {lines < most ? lines : most, layout.scales_per_group, layout.has_minimum, layout.zero};
}

inline __m256i load(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

inline __m256i broadcast_four(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof four);
    return _mm256_set1_epi32(four);
}

// As assembly, since the compiler may not be told to use the instruction here, and spills around the intrinsic.
inline __m256i add_dot(__m256i sum, __m256i codes, __m256i x) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
    return sum;
}

// -(sum of the activations that share scale `part`)
template <Traits t>
inline int32_t minus_sum(const ActivationGroup& group, int part) {
    if (t.num_scales == 1) return group.minus_sum;
    return part == 0 ? group.minus_sum_first : group.minus_sum - group.minus_sum_first;
}

// -zero * (that sum), which the int32 products begin with.
template <Traits t, bool vnni>
inline int32_t start(const ActivationGroup& group, int part) {
    if (t.has_minimum || (t.zero == 128 && !vnni)) return 0;
    return t.zero * minus_sum<t>(group, part);
}

template <Traits t>
inline float scaled_sum(const ActivationGroup& group, int part) {
    if (t.num_scales == 1) return group.scaled_sum;
    return group.scale * static_cast<float>(-minus_sum<t>(group, part));
}

// Products of the high parts of a row's extended lines, as far as they share scale `part`.
template <Traits t, bool vnni>
inline __m256i multiply_extended(const uint8_t* codes, const ActivationGroup& group, int part) {
    __m256i dot = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int line = 0; line < EXTENDED_LINES; ++line) {
        __m256i w = load(codes + group.line_offset[line]);
        __m256i x = broadcast_four(group.high[line]);
        if constexpr (t.num_scales == 2) {
            const int in_part = part == 0 ? group.in_first[line] : ~group.in_first[line];
            x = _mm256_and_si256(x, _mm256_set1_epi16(static_cast<int16_t>(in_part)));
        }
        if constexpr (vnni) {
            if constexpr (t.zero == 128) w = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
            dot = add_dot(dot, w, x);
        } else {
            const __m256i magnitude = t.zero == 128 ? _mm256_abs_epi8(w) : w;
            if constexpr (t.zero == 128) x = _mm256_sign_epi8(x, w);
            const __m256i pairs = _mm256_maddubs_epi16(magnitude, x);
            dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
    }
    return _mm256_slli_epi32(dot, 7);
}

// Int32 products of 8 outputs with the activations that share scale `part`. `codes` points to the outputs' half of the
// code lines.
template <Traits t, bool vnni, int rows>
inline void multiply_part(const uint8_t* codes, const ActivationGroup* const groups[rows], int part,
                          __m256i dots[rows]) {
    constexpr int num_lines = 8 / t.num_scales;
    const __m256i ones = _mm256_set1_epi16(1);
    const int first = part * num_lines;
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        const __m256i begin = _mm256_set1_epi32(start<t, vnni>(*groups[r], part));
        dots[r] = _mm256_add_epi32(multiply_extended<t, vnni>(codes, *groups[r], part), begin);
    }
    if constexpr (vnni) {
#pragma GCC unroll 8
        for (int v = first; v < first + num_lines; ++v) {
            __m256i w = load(codes + v * LINE_BYTES);
            if constexpr (t.zero == 128) w = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) dots[r] = add_dot(dots[r], w, broadcast_four(groups[r]->codes + 4 * v));
        }
    } else {
#pragma GCC unroll 8
        for (int begin = first; begin < first + num_lines; begin += t.lines_in_16_bits) {
            __m256i sums[rows];
#pragma GCC unroll 8
            for (int v = begin; v < begin + t.lines_in_16_bits; ++v) {
                const __m256i w = load(codes + v * LINE_BYTES);
                const __m256i magnitude = t.zero == 128 ? _mm256_abs_epi8(w) : w;
#pragma GCC unroll 6
                for (int r = 0; r < rows; ++r) {
                    __m256i x = broadcast_four(groups[r]->codes + 4 * v);
                    if constexpr (t.zero == 128) x = _mm256_sign_epi8(x, w);
                    const __m256i products = _mm256_maddubs_epi16(magnitude, x);
                    sums[r] = v == begin ? products : _mm256_add_epi16(sums[r], products);
                }
            }
            for (int r = 0; r < rows; ++r) dots[r] = _mm256_add_epi32(dots[r], _mm256_madd_epi16(sums[r], ones));
        }
    }
}

template <Traits t, bool vnni, int rows>
void multiply_rows(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, float* sums,
                   const Ahead& ahead) {
    constexpr int half_bytes = 512 + LINE_BYTES * t.num_scales * (t.has_minimum ? 2 : 1);
    const uint8_t* next = ahead.next;
    for (int64_t index = 0; index < num_groups; ++index, records += PAIR_TILES * half_bytes, next += ahead.step_bytes) {
        for (int64_t line = 0; line < ahead.step_bytes; line += LINE_BYTES) _mm_prefetch(next + line, _MM_HINT_T0);
        const ActivationGroup* groups[rows];
        for (int r = 0; r < rows; ++r) {
            groups[r] = reinterpret_cast<const ActivationGroup*>(prepared + r * row_bytes) + index;
        }
        for (int quarter = 0; quarter < 4; ++quarter) {
            const uint8_t* codes = records + quarter / 2 * half_bytes + quarter % 2 * (LINE_BYTES / 2);
            const auto* scales = reinterpret_cast<const float*>(codes + 512);
            const float* minimums = scales + t.num_scales * TILE_ROWS;
#pragma GCC unroll 2
            for (int part = 0; part < t.num_scales; ++part) {
                __m256i dots[rows];
                multiply_part<t, vnni, rows>(codes, groups, part, dots);
                const __m256 scale = _mm256_load_ps(scales + part * TILE_ROWS);
#pragma GCC unroll 6
                for (int r = 0; r < rows; ++r) {
                    float* to = sums + r * PAIR_ROWS + quarter * 8;
                    const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(groups[r]->scale));
                    __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), both, _mm256_loadu_ps(to));
                    if constexpr (t.has_minimum) {
                        sum = _mm256_fmadd_ps(_mm256_load_ps(minimums + part * TILE_ROWS),
                                              _mm256_set1_ps(scaled_sum<t>(*groups[r], part)), sum);
                    }
                    _mm256_storeu_ps(to, sum);
                }
            }
        }
    }
}

template <Traits t, bool vnni>
void multiply(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
              float* sums, const Ahead& ahead) {
    switch (num_rows) {
        case 1:
            return multiply_rows<t, vnni, 1>(records, num_groups, prepared, row_bytes, sums, ahead);
        case 2:
            return multiply_rows<t, vnni, 2>(records, num_groups, prepared, row_bytes, sums, ahead);
        case 3:
            return multiply_rows<t, vnni, 3>(records, num_groups, prepared, row_bytes, sums, ahead);
        case 4:
            return multiply_rows<t, vnni, 4>(records, num_groups, prepared, row_bytes, sums, ahead);
        case 5:
            return multiply_rows<t, vnni, 5>(records, num_groups, prepared, row_bytes, sums, ahead);
        default:
            return multiply_rows<t, vnni, 6>(records, num_groups, prepared, row_bytes, sums, ahead);
    }
}

template <bool vnni>
MultiplyFunction choose(FormatId format) {
    switch (format) {
        case FormatId::Q4_0:
            return multiply<traits(FormatId::Q4_0), vnni>;
        case FormatId::Q4_1:
            return multiply<traits(FormatId::Q4_1), vnni>;
        case FormatId::Q5_0:
            return multiply<traits(FormatId::Q5_0), vnni>;
        case FormatId::Q5_1:
            return multiply<traits(FormatId::Q5_1), vnni>;
        case FormatId::Q8_0:
            return multiply<traits(FormatId::Q8_0), vnni>;
        case FormatId::Q2_K:
            return multiply<traits(FormatId::Q2_K), vnni>;
        case FormatId::Q3_K:
            return multiply<traits(FormatId::Q3_K), vnni>;
        case FormatId::Q4_K:
            return multiply<traits(FormatId::Q4_K), vnni>;
        case FormatId::Q5_K:
            return multiply<traits(FormatId::Q5_K), vnni>;
        case FormatId::Q6_K:
            return multiply<traits(FormatId::Q6_K), vnni>;
        case FormatId::IQ4_NL:
            return multiply<traits(FormatId::IQ4_NL), vnni>;
        case FormatId::MXFP4:
            return multiply<traits(FormatId::MXFP4), vnni>;
        default:
            return nullptr;
    }
}

}  // namespace

MultiplyFunction multiply_function(FormatId format, bool has_vnni) {
    return has_vnni ? choose<true>(format) : choose<false>(format);
}

}  // namespace ridgeline::avx2

#endif
