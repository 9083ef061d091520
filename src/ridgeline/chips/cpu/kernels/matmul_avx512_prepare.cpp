// Preparation of int8 activations with AVX-512: sixteen groups at a time, one in each lane.
//
// The definition is prepare_int8_portable. With a group in a lane, every step of it is one instruction for sixteen
// groups, and nothing is searched or summed across a register; the price is that the values are transposed on the way
// in, and the finished groups, of sixteen 32-bit numbers each, on the way out.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "scalar_numbers.h"

namespace ridgeline::avx512 {

namespace {

constexpr int LANES = 16;
constexpr int HALF_VALUES = GROUP_VALUES / 2;
static_assert(sizeof(ActivationGroup) == LANES * sizeof(int32_t));

[[gnu::always_inline]] inline __m512i every(int32_t value) { return _mm512_set1_epi32(value); }
[[gnu::always_inline]] inline __m512i magnitude(__m512i value) { return _mm512_and_si512(value, every(0x7fffffff)); }

// Number c of register r becomes number r of register c.
[[gnu::always_inline]] inline void transpose(__m512i (&r)[LANES]) {
    __m512i t[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512i low01 = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        const __m512i high01 = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        const __m512i low23 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        const __m512i high23 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        t[i] = _mm512_shuffle_i32x4(low01, low23, 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(high01, high23, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) r[i] = t[i];
}

// The low bytes of four numbers side by side, cut to what eight bits hold.
[[gnu::always_inline]] inline __m512i bytes_of(const __m512i (&x)[LINE_VALUES]) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3]));
    return _mm512_shuffle_epi8(packed, order);
}

// Where a line is the first of those with the largest number.
struct FirstLargest {
    __m512i largest;
    __mmask16 is_line[GROUP_LINES];
    __m512i line;
};

// No step waits for the one before it more than needs be: it is latency that this takes its time from.
[[gnu::always_inline]] inline FirstLargest first_largest(const __m512i (&lines)[GROUP_LINES]) {
    FirstLargest found;
    __m512i largest[GROUP_LINES / 2];
    for (int i = 0; i < GROUP_LINES / 2; ++i) largest[i] = _mm512_max_epi32(lines[i], lines[i + GROUP_LINES / 2]);
    found.largest =
        _mm512_max_epi32(_mm512_max_epi32(largest[0], largest[1]), _mm512_max_epi32(largest[2], largest[3]));
    found.line = every(GROUP_LINES - 1);
    for (int i = GROUP_LINES - 2; i >= 0; --i) {
        found.line = _mm512_mask_mov_epi32(found.line, _mm512_cmpeq_epi32_mask(lines[i], found.largest), every(i));
    }
    for (int i = 0; i < GROUP_LINES; ++i) found.is_line[i] = _mm512_cmpeq_epi32_mask(found.line, every(i));
    return found;
}

[[gnu::always_inline]] inline void pick_line(const __m512i* values, const FirstLargest& found,
                                             __m512i (&line)[LINE_VALUES]) {
    for (int j = 0; j < LINE_VALUES; ++j) {
        line[j] = values[j];
        for (int i = 1; i < GROUP_LINES; ++i) {
            line[j] = _mm512_mask_mov_epi32(line[j], found.is_line[i], values[LINE_VALUES * i + j]);
        }
    }
}

// As group_scale, for finite numbers.
struct Scales {
    __m512 scale, inverse;
    __mmask16 is_strange;
};

[[gnu::always_inline]] inline Scales scales_of(__m512i largest, __m512i rest) {
    const __m512 of_rest = _mm512_div_ps(_mm512_castsi512_ps(rest), _mm512_set1_ps(CODE_LIMIT));
    const __m512 of_extended = _mm512_div_ps(_mm512_castsi512_ps(largest), _mm512_set1_ps(EXTENDED_LIMIT));
    __m512i bits = _mm512_max_epi32(_mm512_castps_si512(of_rest), _mm512_castps_si512(of_extended));
    bits = _mm512_andnot_si512(every(SCALE_STEP_BITS - 1), _mm512_add_epi32(bits, every(SCALE_STEP_BITS - 1)));
    const __mmask16 is_nothing =
        _mm512_cmp_ps_mask(_mm512_castsi512_ps(largest), _mm512_set1_ps(SMALLEST_MAGNITUDE), _CMP_LT_OQ);
    const __m512 scale = _mm512_mask_mov_ps(_mm512_castsi512_ps(bits), is_nothing, _mm512_set1_ps(1.0f));
    const auto is_some = static_cast<__mmask16>(~is_nothing);
    return {scale, _mm512_maskz_div_ps(is_some, _mm512_set1_ps(1.0f), scale),
            _mm512_cmpge_epi32_mask(largest, every(INFINITY_BITS))};
}

// Prepares `count` <= LANES groups, of finite values; false, with nothing written, if there are others.
[[gnu::always_inline]] inline bool prepare_groups(const float* x, int64_t count, ActivationGroup* groups) {
    __m512i values[GROUP_VALUES];
    for (int half = 0; half < 2; ++half) {
        __m512i(&part)[LANES] = *reinterpret_cast<__m512i(*)[LANES]>(values + half * HALF_VALUES);
        for (int i = 0; i < LANES; ++i) {
            part[i] =
                i < count ? _mm512_loadu_si512(x + i * GROUP_VALUES + half * HALF_VALUES) : _mm512_setzero_si512();
        }
        transpose(part);
    }

    // The line of the largest magnitude, and that of the largest in other columns.
    __m512i lines[GROUP_LINES];
    for (int i = 0; i < GROUP_LINES; ++i) {
        const __m512i* line = values + LINE_VALUES * i;
        lines[i] = _mm512_max_epi32(_mm512_max_epi32(magnitude(line[0]), magnitude(line[1])),
                                    _mm512_max_epi32(magnitude(line[2]), magnitude(line[3])));
    }
    const FirstLargest first = first_largest(lines);
    __m512i of_first[LINE_VALUES], of_second[LINE_VALUES];
    pick_line(values, first, of_first);
    __m512i column = every(LINE_VALUES - 1);
    for (int j = LINE_VALUES - 2; j >= 0; --j) {
        const __mmask16 is_largest = _mm512_cmpeq_epi32_mask(magnitude(of_first[j]), first.largest);
        column = _mm512_mask_mov_epi32(column, is_largest, every(j));
    }
    __mmask16 is_other[LINE_VALUES];
    for (int j = 0; j < LINE_VALUES; ++j) is_other[j] = _mm512_cmpneq_epi32_mask(column, every(j));
    __m512i others[GROUP_LINES];
    for (int i = 0; i < GROUP_LINES; ++i) {
        __m512i other[LINE_VALUES];
        for (int j = 0; j < LINE_VALUES; ++j) {
            other[j] = _mm512_maskz_mov_epi32(is_other[j], magnitude(values[LINE_VALUES * i + j]));
        }
        others[i] = _mm512_max_epi32(_mm512_max_epi32(other[0], other[1]), _mm512_max_epi32(other[2], other[3]));
        others[i] = _mm512_mask_mov_epi32(others[i], first.is_line[i], every(-1));
    }
    const FirstLargest second = first_largest(others);
    pick_line(values, second, of_second);

    // In each column the larger of the two is extended; the scale is that of the rest.
    __m512i extended[LINE_VALUES], in_second_bytes = _mm512_setzero_si512(), rest = _mm512_setzero_si512();
    for (int j = 0; j < LINE_VALUES; ++j) {
        const __m512i a = magnitude(of_first[j]), b = magnitude(of_second[j]);
        const __mmask16 in_second = _mm512_cmpgt_epi32_mask(b, a);
        extended[j] = _mm512_mask_mov_epi32(of_first[j], in_second, of_second[j]);
        rest = _mm512_max_epi32(rest, _mm512_min_epi32(a, b));
        in_second_bytes = _mm512_mask_or_epi32(in_second_bytes, in_second, in_second_bytes,
                                               every(static_cast<int32_t>(0xffu << (8 * j))));
    }
    for (int i = 0; i < GROUP_LINES; ++i) {
        const auto is_neither = static_cast<__mmask16>(~(first.is_line[i] | second.is_line[i]));
        rest = _mm512_mask_max_epi32(rest, is_neither, rest, lines[i]);
    }
    const Scales scales = scales_of(first.largest, rest);
    if (scales.is_strange != 0) return false;

    // Nothing needs to be cut: the scale is such that codes stay within their limits.
    const auto codes_of = [&](__m512i value) {
        return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(value), scales.inverse));
    };
    __m512i high[LINE_VALUES], low[LINE_VALUES];
    for (int j = 0; j < LINE_VALUES; ++j) {
        const __m512i code = codes_of(extended[j]);
        high[j] = _mm512_srai_epi32(_mm512_add_epi32(code, every(EXTENSION / 2)), 7);
        low[j] = _mm512_sub_epi32(code, _mm512_slli_epi32(high[j], 7));
    }
    const __m512i low_bytes = bytes_of(low), high_bytes = bytes_of(high);
    __m512i out[LANES], sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int i = 0; i < GROUP_LINES; ++i) {
        __m512i codes[LINE_VALUES];
        for (int j = 0; j < LINE_VALUES; ++j) codes[j] = codes_of(values[LINE_VALUES * i + j]);
        __m512i& sum = sums[i / (GROUP_LINES / 2)];
        sum = _mm512_add_epi32(
            sum, _mm512_add_epi32(_mm512_add_epi32(codes[0], codes[1]), _mm512_add_epi32(codes[2], codes[3])));
        // Extended values' bytes of the first line are those that are not the second's (0xb8: b where mask, else a).
        out[i] = bytes_of(codes);
        const __m512i as_first = _mm512_ternarylogic_epi32(in_second_bytes, out[i], low_bytes, 0xca);
        out[i] = _mm512_mask_mov_epi32(out[i], first.is_line[i], as_first);
        const __m512i as_second = _mm512_ternarylogic_epi32(in_second_bytes, low_bytes, out[i], 0xca);
        out[i] = _mm512_mask_mov_epi32(out[i], second.is_line[i], as_second);
    }
    const __m512i zero = _mm512_setzero_si512(), sum = _mm512_add_epi32(sums[0], sums[1]);
    out[8] = _mm512_castps_si512(scales.scale);
    out[9] = _mm512_sub_epi32(zero, sum);
    out[10] = _mm512_castps_si512(_mm512_mul_ps(scales.scale, _mm512_cvtepi32_ps(sum)));
    out[11] = _mm512_sub_epi32(zero, sums[0]);
    out[12] = _mm512_andnot_si512(in_second_bytes, high_bytes);
    out[13] = _mm512_and_si512(in_second_bytes, high_bytes);
    out[14] = _mm512_or_si512(_mm512_slli_epi32(first.line, 6), _mm512_slli_epi32(second.line, 6 + 16));
    const __m512i middle = every(GROUP_LINES / 2);
    out[15] = _mm512_or_si512(
        _mm512_maskz_mov_epi32(_mm512_cmplt_epi32_mask(first.line, middle), every(0xffff)),
        _mm512_maskz_mov_epi32(_mm512_cmplt_epi32_mask(second.line, middle), every(static_cast<int32_t>(0xffff0000))));
    transpose(out);
    for (int i = 0; i < LANES; ++i) {
        if (i < count) _mm512_storeu_si512(groups + i, out[i]);
    }
    return true;
}

}  // namespace

void prepare_int8(const float* x, int64_t width, uint8_t* prepared) {
    auto* groups = reinterpret_cast<ActivationGroup*>(prepared);
    const int64_t num_groups = width / GROUP_VALUES;
    for (int64_t group = 0; group < num_groups; group += LANES) {
        const int64_t count = num_groups - group < LANES ? num_groups - group : LANES;
        const float* from = x + group * GROUP_VALUES;
        const bool is_done =
            count == LANES ? prepare_groups(from, LANES, groups + group) : prepare_groups(from, count, groups + group);
        if (!is_done) {
            prepare_int8_portable(from, count * GROUP_VALUES, reinterpret_cast<uint8_t*>(groups + group));
        }
    }
}

}  // namespace ridgeline::avx512

#endif
