// The products of attention with AVX-512's instructions for bfloat16: scores, weights and weighted values of up to six
// rows at a time. A row's bits do not depend on the rows beside it. Included by attention_rows.h.
#pragma once

#include <immintrin.h>

#include "attention_state.h"
#include "attention_store.h"

namespace ridgeline::RIDGELINE_ISA {

constexpr int TILE = 6;  // rows at a time: with 4 vectors of keys, 24 sums and 4 loads fit 32 registers

// A page as pairs of bfloat16. Codes are exact in bfloat16; their scales are worked into queries and weights.
struct PairPage {
    const uint32_t *keys, *values;  // [C/2][64], [32][S]
    const float *key_scales = nullptr, *key_lows = nullptr, *value_scales = nullptr;
};

// Asks memory for the next page little by little: more at once than it can note would hold up the loads.
struct Ahead {
    const uint8_t *at, *end;
    bool is_hasty;  // four lines a step instead of two

    void step() {
        if (at >= end) return;
        fetch(2);
        if (is_hasty) fetch(2);
    }
    void fetch(int num_lines) {
        for (int line = 0; line < num_lines; ++line, at += 64)
            _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
    }
};

// What the rows of a tile are multiplied by and shrink by on one page.
struct alignas(64) Tile {
    float scores[TILE][PAGE_SLOTS];
    uint32_t weights[TILE][PAGE_SLOTS / 2];
    float peaks[16], lows[16], shrink[16], bases[16];
};

RIDGELINE_INLINE __m512bh pairs_at(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
RIDGELINE_INLINE __m512bh pair_everywhere(uint32_t pair) {
    return (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(pair));
}

// 2^x; exactly 1 at 0 and exactly 0 at minus infinity.
RIDGELINE_INLINE __m512 exp2_fast(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.33335581e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61812911e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55041087e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40226507e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147181e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

// scores[row][slot] = q[row] . key[slot].
template <int N>
static void score_rows(const uint32_t* q, int64_t q_stride, const uint32_t* keys, int64_t num_pairs, Ahead& ahead,
                       Tile& tile) {
    __m512 sums[N][4];
#pragma GCC unroll 6
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sums[row][j] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        const uint32_t* at = keys + pair * PAGE_SLOTS;
        const __m512bh k0 = pairs_at(at), k1 = pairs_at(at + 16), k2 = pairs_at(at + 32), k3 = pairs_at(at + 48);
        ahead.step();
#pragma GCC unroll 6
        for (int row = 0; row < N; ++row) {
            const __m512bh both = pair_everywhere(q[row * q_stride + pair]);
            sums[row][0] = _mm512_dpbf16_ps(sums[row][0], both, k0);
            sums[row][1] = _mm512_dpbf16_ps(sums[row][1], both, k1);
            sums[row][2] = _mm512_dpbf16_ps(sums[row][2], both, k2);
            sums[row][3] = _mm512_dpbf16_ps(sums[row][3], both, k3);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) _mm512_store_ps(tile.scores[row] + 16 * j, sums[row][j]);
}

// weighted[row][c ...] = weighted * shrink + weights[row] . values, for V vectors of channels.
template <int N, int V>
static void weigh_values(const Tile& tile, const uint32_t* values, int64_t stride, int64_t num_pairs, Ahead& ahead,
                         float* weighted) {
    __m512 sums[N][V];
#pragma GCC unroll 6
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j)
            sums[row][j] =
                _mm512_mul_ps(_mm512_loadu_ps(weighted + row * stride + 16 * j), _mm512_set1_ps(tile.shrink[row]));
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        __m512bh v[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) v[j] = pairs_at(values + pair * stride + 16 * j);
        ahead.step();
#pragma GCC unroll 6
        for (int row = 0; row < N; ++row) {
            const __m512bh both = pair_everywhere(tile.weights[row][pair]);
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) sums[row][j] = _mm512_dpbf16_ps(sums[row][j], both, v[j]);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) _mm512_storeu_ps(weighted + row * stride + 16 * j, sums[row][j]);
}

// Which of a page's slots a row sees, 16 at a time.
struct Seen {
    __mmask16 lanes[4];
};

RIDGELINE_INLINE Seen seen_slots(const Rows& rows, int64_t row, int64_t first_position) {
    const __m512i first = _mm512_set1_epi32(static_cast<int32_t>(rows.first[row] - first_position));
    const __m512i last = _mm512_set1_epi32(static_cast<int32_t>(rows.last[row] - first_position));
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    Seen seen;
    for (int j = 0; j < 4; ++j) {
        const __m512i slots = _mm512_add_epi32(lanes, _mm512_set1_epi32(16 * j));
        seen.lanes[j] = _mm512_cmpge_epi32_mask(slots, first) & _mm512_cmple_epi32_mask(slots, last);
    }
    return seen;
}

RIDGELINE_INLINE __m512 capped(const Rows& rows, __m512 score) {
    const __m512 part = (__m512)tanh_of((Floats)_mm512_mul_ps(score, _mm512_set1_ps(rows.scale / rows.softcap)));
    return _mm512_mul_ps(part, _mm512_set1_ps(rows.softcap * LOG2_E));
}

// Scales, caps and masks one row's scores, in place and in powers of two; returns the largest. `sees_all` says that the
// page lies within what all rows of the tile see.
RIDGELINE_INLINE float finish_scores(const Rows& rows, int64_t row, const PairPage& page, int64_t first_position,
                                     bool sees_all, float low, float* scores) {
    __m512 score[4];
    for (int j = 0; j < 4; ++j) {
        score[j] = _mm512_load_ps(scores + 16 * j);
        if (page.key_lows != nullptr) score[j] = _mm512_add_ps(score[j], _mm512_set1_ps(low));
        score[j] =
            rows.softcap > 0 ? capped(rows, score[j]) : _mm512_mul_ps(score[j], _mm512_set1_ps(rows.scale * LOG2_E));
    }
    if (!sees_all) {
        const Seen seen = seen_slots(rows, row, first_position);
        for (int j = 0; j < 4; ++j)
            score[j] = _mm512_mask_mov_ps(_mm512_set1_ps(MINUS_INFINITY), seen.lanes[j], score[j]);
    }
    for (int j = 0; j < 4; ++j) _mm512_store_ps(scores + 16 * j, score[j]);
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(score[0], score[1]), _mm512_max_ps(score[2], score[3])));
}

// The new maxima of a tile's rows, and what their older sums shrink by.
RIDGELINE_INLINE void shrink_rows(int num_rows, float* maxima, Tile& tile) {
    const __mmask16 used = static_cast<__mmask16>((1u << num_rows) - 1);
    const __m512 old = _mm512_maskz_loadu_ps(used, maxima);
    const __m512 largest = _mm512_max_ps(old, _mm512_maskz_loadu_ps(used, tile.peaks));
    const __mmask16 is_empty = _mm512_cmpeq_ps_mask(largest, _mm512_set1_ps(MINUS_INFINITY));
    const __m512 base = _mm512_mask_mov_ps(largest, is_empty, _mm512_setzero_ps());
    _mm512_store_ps(tile.bases, base);
    _mm512_store_ps(tile.shrink, exp2_fast(_mm512_sub_ps(old, base)));
    _mm512_mask_storeu_ps(maxima, used, largest);
}

// One row's weights in bfloat16, and their sum. With codes, the values' scales go into the weights.
RIDGELINE_INLINE void weights_of_row(const PairPage& page, int row, float* sums, Tile& tile) {
    const __m512 base = _mm512_set1_ps(tile.bases[row]);
    __m512 weight[4];
    for (int j = 0; j < 4; ++j) weight[j] = exp2_fast(_mm512_sub_ps(_mm512_load_ps(tile.scores[row] + 16 * j), base));
    __m512 total = _mm512_mul_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(tile.shrink[row]));
    if (page.value_scales != nullptr) {
        for (int j = 0; j < 4; ++j) {
            total = _mm512_add_ps(total, weight[j]);
            weight[j] = _mm512_mul_ps(weight[j], _mm512_loadu_ps(page.value_scales + 16 * j));
        }
    }
    const __m512bh first = _mm512_cvtne2ps_pbh(weight[1], weight[0]);
    const __m512bh second = _mm512_cvtne2ps_pbh(weight[3], weight[2]);
    if (page.value_scales == nullptr) {
        // The sum of the weights as they are rounded, so that rounding cancels.
        const __m512bh ones = pair_everywhere(0x3f803f80u);
        total = _mm512_dpbf16_ps(total, first, ones);
        total = _mm512_dpbf16_ps(total, second, ones);
    }
    _mm512_store_si512(tile.weights[row], (__m512i)first);
    _mm512_store_si512(tile.weights[row] + 16, (__m512i)second);
    _mm512_storeu_ps(sums, total);
}

// q * scale in bfloat16, and q . low: what a row's query is on a page of codes.
RIDGELINE_INLINE float fold_query(const float* q, const PairPage& page, int64_t width, uint16_t* folded) {
    __m512 lows = _mm512_setzero_ps();
    for (int64_t c = 0; c < width; c += 16) {
        const __mmask16 used = width - c >= 16 ? 0xffff : static_cast<__mmask16>((1u << (width - c)) - 1);
        const __m512 value = _mm512_maskz_loadu_ps(used, q + c);
        lows = _mm512_fmadd_ps(value, _mm512_maskz_loadu_ps(used, page.key_lows + c), lows);
        const __m512 scaled = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(used, page.key_scales + c));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(folded + c), (__m256i)_mm512_cvtneps_pbh(scaled));
    }
    return _mm512_reduce_add_ps(lows);
}

template <int N>
static void weigh_all_values(const Rows& rows, const Tile& tile, const PairPage& page, int64_t num_pairs, Ahead& ahead,
                             float* weighted) {
    int64_t c = 0;
    for (; c + 64 <= rows.stride; c += 64)
        weigh_values<N, 4>(tile, page.values + c, rows.stride, num_pairs, ahead, weighted + c);
    switch ((rows.stride - c) / 16) {
        case 1:
            weigh_values<N, 1>(tile, page.values + c, rows.stride, num_pairs, ahead, weighted + c);
            break;
        case 2:
            weigh_values<N, 2>(tile, page.values + c, rows.stride, num_pairs, ahead, weighted + c);
            break;
        case 3:
            weigh_values<N, 3>(tile, page.values + c, rows.stride, num_pairs, ahead, weighted + c);
            break;
        default:
            break;
    }
}

template <int N>
static void attend_tile(const Rows& rows, int64_t row, const PairPage& page, int64_t first_position,
                        int64_t num_value_pairs, Ahead& ahead) {
    Tile tile;
    const uint32_t* q = reinterpret_cast<const uint32_t*>(rows.q_bf16 + row * rows.stride);
    alignas(64) uint16_t folded[TILE * 256];
    if (page.key_scales != nullptr) {
        for (int i = 0; i < N; ++i)
            tile.lows[i] =
                fold_query(rows.q + (row + i) * rows.stride, page, rows.head_width, folded + i * rows.stride);
        q = reinterpret_cast<const uint32_t*>(folded);
    }
    score_rows<N>(q, rows.stride / 2, page.keys, rows.head_width / 2, ahead, tile);
    const bool sees_all =
        rows.first[row + N - 1] <= first_position && rows.last[row] - first_position >= PAGE_SLOTS - 1;
    for (int i = 0; i < N; ++i)
        tile.peaks[i] = finish_scores(rows, row + i, page, first_position, sees_all, tile.lows[i], tile.scores[i]);
    shrink_rows(N, rows.maxima + row, tile);
    for (int i = 0; i < N; ++i) weights_of_row(page, i, rows.sums + (row + i) * 16, tile);
    weigh_all_values<N>(rows, tile, page, num_value_pairs, ahead, rows.weighted + row * rows.stride);
}

// Codes as bfloat16, in the order in which they lie.
RIDGELINE_INLINE void widen(__m512i first, __m512i second, uint32_t* out) {
    const __m512bh pairs = _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(second), _mm512_cvtepi32_ps(first));
    _mm512_store_si512(out, (__m512i)pairs);
}

static PairPage pair_page(const Rows& rows, const Page& page) {
    const int64_t num_keys = rows.head_width * PAGE_SLOTS, num_values = rows.stride * PAGE_SLOTS;
    if (!page.has_codes) {
        const uint32_t* keys = reinterpret_cast<const uint32_t*>(page.block);
        return {keys, keys + num_keys / 2};
    }
    const Codes codes = codes_of(page.block, rows.head_width);
    uint32_t* keys = reinterpret_cast<uint32_t*>(rows.page);
    uint32_t* values = keys + num_keys / 2;
    for (int64_t i = 0; i < num_keys; i += 32) {
        const __m128i* at = reinterpret_cast<const __m128i*>(codes.keys + i);
        widen(_mm512_cvtepu8_epi32(_mm_loadu_si128(at)), _mm512_cvtepu8_epi32(_mm_loadu_si128(at + 1)), keys + i / 2);
    }
    for (int64_t i = 0; i < num_values; i += 32) {
        const __m128i* at = reinterpret_cast<const __m128i*>(codes.values + i);
        widen(_mm512_cvtepi8_epi32(_mm_loadu_si128(at)), _mm512_cvtepi8_epi32(_mm_loadu_si128(at + 1)), values + i / 2);
    }
    return {keys, values, codes.key_scales, codes.key_lows, codes.value_scales};
}

static void attend_page_in_bf16(const Rows& rows, const Page& page) {
    const int64_t num_tiles = (rows.count + TILE - 1) / TILE;
    Ahead ahead{page.next, page.next + page.next_bytes, num_tiles == 1};
    const PairPage pairs = pair_page(rows, page);
    for (int64_t number = 0; number < num_tiles; ++number) {
        const int64_t row = rows.count * number / num_tiles, end = rows.count * (number + 1) / num_tiles;
        // Rows are in order of position.
        const int64_t last = rows.last[end - 1] - page.first_position;
        if (last < 0 || rows.first[row] - page.first_position >= PAGE_SLOTS) continue;
        const int64_t num_value_pairs = (last < PAGE_SLOTS ? last : PAGE_SLOTS - 1) / 2 + 1;
        const auto tile = [&](auto attend_rows) {
            attend_rows(rows, row, pairs, page.first_position, num_value_pairs, ahead);
        };
        switch (end - row) {
            case 1:
                tile(attend_tile<1>);
                break;
            case 2:
                tile(attend_tile<2>);
                break;
            case 3:
                tile(attend_tile<3>);
                break;
            case 4:
                tile(attend_tile<4>);
                break;
            case 5:
                tile(attend_tile<5>);
                break;
            default:
                tile(attend_tile<6>);
                break;
        }
    }
}

}  // namespace ridgeline::RIDGELINE_ISA
