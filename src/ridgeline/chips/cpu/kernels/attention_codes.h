// The products of attention with pages of codes, on AVX-512's products of whole numbers. Queries, with the keys' scales
// worked in, and weights, with the values', become whole numbers of 14 and 16 bits, in two parts of a byte each: the
// error is far below that of bfloat16, and no code is ever widened. Included by attention_bf16.h.
#pragma once

#include "attention_tile.h"

namespace ridgeline::RIDGELINE_ISA {

// A query is high * 64 + low: sums over 576 channels of codes up to 255 stay below 2^31.
constexpr int QUERY_SHIFT = 6;
constexpr float QUERY_LIMIT = 127.0f * 64.0f;
// A weight is high * 256 + low, without a sign.
constexpr int WEIGHT_SHIFT = 8;
constexpr float WEIGHT_LIMIT = 65535.0f;

// The rows' queries on one page: with the keys' scales worked in, and as [high, low][row][channel].
struct alignas(64) CodedQueries {
    float scaled[TILE][value_stride(MAX_HEAD_WIDTH)];
    int8_t parts[2][TILE][value_stride(MAX_HEAD_WIDTH)];
    float factors[16], lows[16];  // score = factor * product + low
};

// What brings numbers up to `largest` to whole numbers up to `limit`; none where all are zero.
RIDGELINE_INLINE __m512 inverses_of(__m512 largest, float limit) {
    const __mmask16 is_any = _mm512_cmpneq_ps_mask(largest, _mm512_setzero_ps());
    return _mm512_maskz_div_ps(is_any, _mm512_set1_ps(limit), largest);
}

// sums += unsigned bytes . signed bytes, by fours. Written out: see add_pairs.
RIDGELINE_INLINE void add_key_codes(__m512i& sums, __m512i keys, const int8_t* query) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(keys), "m"(*reinterpret_cast<const int32_t*>(query)));
}
RIDGELINE_INLINE void add_value_codes(__m512i& sums, __m512i weights, __m512i values) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(values));
}
RIDGELINE_INLINE void add_value_codes(__m512i& sums, __m512i weights, const int8_t* values) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "m"(*reinterpret_cast<const __m512i_u*>(values)));
}

// scores[row][slot] = factor * (query . codes of key[slot]) + low.
template <int N>
RIDGELINE_APART void score_codes(const CodedQueries& queries, const uint8_t* keys, int64_t num_words, Ahead& ahead,
                                 Tile& tile) {
    __m512i sums[N][4];
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sums[row][j] = _mm512_setzero_si512();
    for (int part = 0; part < 2; ++part) {
        if (part == 1)
#pragma GCC unroll 7
            for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) sums[row][j] = _mm512_slli_epi32(sums[row][j], QUERY_SHIFT);
        const int8_t* query = queries.parts[part][0];
        for (int64_t word = 0; word < num_words; ++word) {
            const uint8_t* at = keys + word * 4 * PAGE_SLOTS;
            const __m512i k0 = _mm512_loadu_si512(at), k1 = _mm512_loadu_si512(at + 64);
            const __m512i k2 = _mm512_loadu_si512(at + 128), k3 = _mm512_loadu_si512(at + 192);
            ahead.step();
#pragma GCC unroll 7
            for (int row = 0; row < N; ++row) {
                const int8_t* own = query + row * value_stride(MAX_HEAD_WIDTH) + word * 4;
                add_key_codes(sums[row][0], k0, own);
                add_key_codes(sums[row][1], k1, own);
                add_key_codes(sums[row][2], k2, own);
                add_key_codes(sums[row][3], k3, own);
            }
        }
    }
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row) {
        const __m512 factor = _mm512_set1_ps(queries.factors[row]), low = _mm512_set1_ps(queries.lows[row]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
            _mm512_store_ps(tile.scores[row] + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[row][j]), factor, low));
    }
}

// weighted[row][c ...] = weighted * shrink + weights[row] . codes of values, for V vectors of channels.
template <int N, int V>
RIDGELINE_APART void weigh_codes(const Tile& tile, const int8_t* values, int64_t stride, Ahead& ahead,
                                 float* weighted) {
    __m512i sums[N][V];
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) sums[row][j] = _mm512_setzero_si512();
    for (int part = 0; part < 2; ++part) {
        if (part == 1)
#pragma GCC unroll 7
            for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
                for (int j = 0; j < V; ++j) sums[row][j] = _mm512_slli_epi32(sums[row][j], WEIGHT_SHIFT);
        for (int64_t word = 0; word < PAGE_SLOTS / 4; ++word) {
            const int8_t* at = values + word * 4 * stride;
            __m512i vectors[V];
#pragma GCC unroll 4
            for (int j = 0; j < V - 1; ++j) vectors[j] = _mm512_loadu_si512(at + 64 * j);
            ahead.step();
#pragma GCC unroll 7
            for (int row = 0; row < N; ++row) {
                const uint32_t four = tile.weights[row][part * PAGE_SLOTS / 4 + word];
                const __m512i both = _mm512_set1_epi32(static_cast<int32_t>(four));
#pragma GCC unroll 4
                for (int j = 0; j < V - 1; ++j) add_value_codes(sums[row][j], both, vectors[j]);
                add_value_codes(sums[row][V - 1], both, at + 64 * (V - 1));
            }
        }
    }
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row) {
        const __m512 factor = _mm512_set1_ps(tile.factors[row]), shrink = _mm512_set1_ps(tile.shrink[row]);
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) {
            float* at = weighted + row * stride + 16 * j;
            const __m512 older = _mm512_mul_ps(_mm512_loadu_ps(at), shrink);
            _mm512_storeu_ps(at, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[row][j]), factor, older));
        }
    }
}

template <int N>
static void weigh_all_codes(const Rows& rows, const Tile& tile, const Codes& page, Ahead& ahead, float* weighted) {
    int64_t c = 0;
    for (; c + 64 <= rows.stride; c += 64)
        weigh_codes<N, 4>(tile, page.values + 4 * c, rows.stride, ahead, weighted + c);
    switch ((rows.stride - c) / 16) {
        case 1:
            weigh_codes<N, 1>(tile, page.values + 4 * c, rows.stride, ahead, weighted + c);
            break;
        case 2:
            weigh_codes<N, 2>(tile, page.values + 4 * c, rows.stride, ahead, weighted + c);
            break;
        case 3:
            weigh_codes<N, 3>(tile, page.values + 4 * c, rows.stride, ahead, weighted + c);
            break;
        default:
            break;
    }
}

RIDGELINE_INLINE __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
}

// What the rows' queries are on a page of codes: q * scales in whole numbers, and q . lows.
template <int N>
RIDGELINE_APART void code_queries(const float* q, int64_t stride, const Codes& page, int64_t width,
                                  CodedQueries& queries) {
    __m512 lows[N], peaks[N];
    for (int row = 0; row < N; ++row) lows[row] = peaks[row] = _mm512_setzero_ps();
    for (int64_t c = 0; c < width; c += 16) {
        const __mmask16 used = first_lanes(width - c);
        const __m512 scale = _mm512_maskz_loadu_ps(used, page.key_scales + c);
        const __m512 low = _mm512_maskz_loadu_ps(used, page.key_lows + c);
#pragma GCC unroll 7
        for (int row = 0; row < N; ++row) {
            const __m512 value = _mm512_maskz_loadu_ps(used, q + row * stride + c);
            const __m512 scaled_value = _mm512_mul_ps(value, scale);
            lows[row] = _mm512_fmadd_ps(value, low, lows[row]);
            peaks[row] = _mm512_max_ps(peaks[row], _mm512_abs_ps(scaled_value));
            _mm512_store_ps(queries.scaled[row] + c, scaled_value);
        }
    }
    const __m512 largest = peaks_of<N>(peaks);
    alignas(64) float inverses[16];
    _mm512_store_ps(inverses, inverses_of(largest, QUERY_LIMIT));
    _mm512_store_ps(queries.factors, _mm512_mul_ps(largest, _mm512_set1_ps(1.0f / QUERY_LIMIT)));
    _mm512_store_ps(queries.lows, sums_of<N>(lows));
    const __m512i half = _mm512_set1_epi32(1 << (QUERY_SHIFT - 1));
    for (int row = 0; row < N; ++row) {
        const __m512 inverse = _mm512_set1_ps(inverses[row]);
        for (int64_t c = 0; c < width; c += 16) {
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(queries.scaled[row] + c), inverse));
            const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, half), QUERY_SHIFT);
            const __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, QUERY_SHIFT));
            _mm_store_si128(reinterpret_cast<__m128i*>(queries.parts[0][row] + c), _mm512_cvtepi32_epi8(high));
            _mm_store_si128(reinterpret_cast<__m128i*>(queries.parts[1][row] + c), _mm512_cvtepi32_epi8(low));
        }
    }
}

// The rows' weights, with the values' scales worked in, in whole numbers; and the sums of the weights alone.
template <int N>
RIDGELINE_INLINE void code_weights(const Codes& page, float* sums, Tile& tile) {
    __m512 peaks[N];
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row) {
        const __m512 base = _mm512_set1_ps(tile.bases[row]);
        __m512 total = _mm512_mul_ps(_mm512_loadu_ps(sums + row * 16), _mm512_set1_ps(tile.shrink[row]));
        peaks[row] = _mm512_setzero_ps();
        for (int j = 0; j < 4; ++j) {
            float* at = tile.scores[row] + 16 * j;
            const __m512 weight = exp2_fast(_mm512_sub_ps(_mm512_load_ps(at), base));
            const __m512 scaled_weight = _mm512_mul_ps(weight, _mm512_loadu_ps(page.value_scales + 16 * j));
            total = _mm512_add_ps(total, weight);
            peaks[row] = _mm512_max_ps(peaks[row], scaled_weight);
            _mm512_store_ps(at, scaled_weight);
        }
        _mm512_storeu_ps(sums + row * 16, total);
    }
    const __m512 largest = peaks_of<N>(peaks);
    _mm512_store_ps(tile.bases, inverses_of(largest, WEIGHT_LIMIT));
    _mm512_store_ps(tile.factors, _mm512_mul_ps(largest, _mm512_set1_ps(1.0f / WEIGHT_LIMIT)));
    // Whole numbers of 32 bits side by side in 16.
    const __m512i halves = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                                            24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row) {
        const __m512 inverse = _mm512_set1_ps(tile.bases[row]);
        __m512i whole[4];
        for (int j = 0; j < 4; ++j)
            whole[j] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(tile.scores[row] + 16 * j), inverse));
        __m256i* at = reinterpret_cast<__m256i*>(tile.weights[row]);
        for (int j = 0; j < 2; ++j) {
            const __m512i both = _mm512_permutex2var_epi16(whole[2 * j], halves, whole[2 * j + 1]);
            _mm256_store_si256(at + j, _mm512_cvtepi16_epi8(_mm512_srli_epi16(both, WEIGHT_SHIFT)));
            _mm256_store_si256(at + 2 + j, _mm512_cvtepi16_epi8(both));
        }
    }
}

static_assert(sizeof(CodedQueries) <= page_scratch_bytes(1));

template <int N>
static void attend_code_tile(const Rows& rows, int64_t row, const Codes& page, int64_t first_position, Ahead& ahead) {
    Tile& tile = *reinterpret_cast<Tile*>(rows.tile);
    CodedQueries& queries = *reinterpret_cast<CodedQueries*>(rows.page);
    code_queries<N>(rows.q + row * rows.stride, rows.stride, page, rows.head_width, queries);
    score_codes<N>(queries, page.keys, key_code_width(rows.head_width) / 4, ahead, tile);
    find_weights<N, 4>(rows, row, first_position, tile);
    code_weights<N>(page, rows.sums + row * 16, tile);
    weigh_all_codes<N>(rows, tile, page, ahead, rows.weighted + row * rows.stride);
}

using AttendCodeTile = void (*)(const Rows&, int64_t, const Codes&, int64_t, Ahead&);
constexpr AttendCodeTile ATTEND_CODE_TILES[TILE] = {attend_code_tile<1>, attend_code_tile<2>, attend_code_tile<3>,
                                                    attend_code_tile<4>, attend_code_tile<5>, attend_code_tile<6>,
                                                    attend_code_tile<7>};

}  // namespace ridgeline::RIDGELINE_ISA
