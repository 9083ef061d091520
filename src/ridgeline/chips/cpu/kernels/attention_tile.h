// What all products of attention with AVX-512 share: tiles of up to seven rows on one page, from scores to what the
// rows weigh by. A row's bits do not depend on the rows beside it. Included by attention_bf16.h and attention_codes.h.
#pragma once

#include <immintrin.h>

#include "attention_state.h"
#include "attention_store.h"

namespace ridgeline::RIDGELINE_ISA {

// A function of its own: loops that fill the registers would share them with what stands around the call.
#define RIDGELINE_APART static __attribute__((noinline))

// Rows at a time: with 4 vectors of keys, 28 sums, 3 of the vectors and a row's pair fill 32 registers.
constexpr int TILE = 7;

// 2^r - 1 = r (c0 + r (c1 + ...)), fitted here: of least relative error of 2^r, 2.9e-6.
constexpr float EXP2_COEFFICIENTS[4] = {0.69304484f, 0.24128020f, 0.052242474f, 0.013426684f};

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
    uint32_t weights[TILE][PAGE_SLOTS / 2];  // pairs of bfloat16; with codes, bytes: high parts, then low parts
    float shrink[16], bases[16];
    float factors[16];  // with codes: what products of the whole numbers are multiplied by
};
static_assert(sizeof(Tile) <= TILE_SCRATCH_BYTES);

// 2^x to about 3e-6 relative; exactly 1 at 0 and exactly 0 at minus infinity. The polynomial is the best one of degree
// 4 for 2^r - 1 on 0 <= r < 1 in relative error of 2^r that is 0 at 0; scalef multiplies by 2 to the whole part.
RIDGELINE_INLINE __m512 exp2_fast(__m512 x) {
    const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(EXP2_COEFFICIENTS[3]);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2_COEFFICIENTS[2]));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2_COEFFICIENTS[1]));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP2_COEFFICIENTS[0]));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);
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
    return _mm512_mul_ps((__m512)tanh_of((Floats)score), _mm512_set1_ps(rows.softcap * LOG2_E));
}

// Caps and masks one row's scores in place.
template <int V>
RIDGELINE_APART void change_scores(const Rows& rows, int64_t row, int64_t first_position, float* scores) {
    const Seen seen = seen_slots(rows, row, first_position);
    for (int j = 0; j < V; ++j) {
        __m512 score = _mm512_load_ps(scores + 16 * j);
        if (rows.softcap > 0) score = capped(rows, score);
        score = _mm512_mask_mov_ps(_mm512_set1_ps(MINUS_INFINITY), seen.lanes[j], score);
        _mm512_store_ps(scores + 16 * j, score);
    }
}

template <int V>
RIDGELINE_INLINE __m512 largest_of(const float* scores) {
    __m512 largest = _mm512_load_ps(scores);
    for (int j = 1; j < V; ++j) largest = _mm512_max_ps(largest, _mm512_load_ps(scores + 16 * j));
    return largest;
}

// Lane i: vector i folded into one number, for up to 8 vectors; what the other lanes hold means nothing. The numbers of
// a vector are folded in the same order wherever it stands.
template <int N, class Fold>
RIDGELINE_INLINE __m512 folded(const __m512 (&vectors)[N], Fold fold) {
    const auto at = [&](int i) { return vectors[i < N ? i : N - 1]; };
    const auto by_pairs = [&](__m512 x, __m512 y) { return fold(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y)); };
    const auto by_fours = [&](__m512 x, __m512 y) {
        const __m512d first = _mm512_castps_pd(x), second = _mm512_castps_pd(y);
        return fold(_mm512_castpd_ps(_mm512_unpacklo_pd(first, second)),
                    _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
    };
    // Each quarter of a vector then has the vectors of one four, in order.
    const __m512 low = by_fours(by_pairs(at(0), at(1)), by_pairs(at(2), at(3)));
    const __m512 high = N > 4 ? by_fours(by_pairs(at(4), at(5)), by_pairs(at(6), at(7))) : low;
    const __m512 both = fold(_mm512_shuffle_f32x4(low, high, 0x44), _mm512_shuffle_f32x4(low, high, 0xee));
    return fold(_mm512_shuffle_f32x4(both, both, 0x08), _mm512_shuffle_f32x4(both, both, 0x0d));
}

template <int N>
RIDGELINE_INLINE __m512 peaks_of(const __m512 (&vectors)[N]) {
    return folded<N>(vectors, [](__m512 x, __m512 y) { return _mm512_max_ps(x, y); });
}
template <int N>
RIDGELINE_INLINE __m512 sums_of(const __m512 (&vectors)[N]) {
    return folded<N>(vectors, [](__m512 x, __m512 y) { return _mm512_add_ps(x, y); });
}

// The new maxima of a tile's rows, and what their older sums shrink by.
RIDGELINE_INLINE void shrink_rows(int num_rows, __m512 peaks, float* maxima, Tile& tile) {
    const __mmask16 used = static_cast<__mmask16>((1u << num_rows) - 1);
    const __m512 old = _mm512_maskz_loadu_ps(used, maxima);
    const __m512 largest = _mm512_max_ps(old, peaks);
    const __mmask16 is_empty = _mm512_cmpeq_ps_mask(largest, _mm512_set1_ps(MINUS_INFINITY));
    const __m512 base = _mm512_mask_mov_ps(largest, is_empty, _mm512_setzero_ps());
    _mm512_store_ps(tile.bases, base);
    _mm512_store_ps(tile.shrink, exp2_fast(_mm512_sub_ps(old, base)));
    _mm512_mask_storeu_ps(maxima, used, largest);
}

// From the scores of a tile: what its older sums shrink by, and what its scores are taken relative to.
template <int N, int V>
RIDGELINE_INLINE void find_weights(const Rows& rows, int64_t row, int64_t first_position, Tile& tile) {
    const bool sees_all =
        rows.first[row + N - 1] <= first_position && rows.last[row] - first_position >= PAGE_SLOTS - 1;
    if (!sees_all || rows.softcap > 0) {
        for (int i = 0; i < N; ++i) change_scores<V>(rows, row + i, first_position, tile.scores[i]);
    }
    __m512 largest[N];
#pragma GCC unroll 7
    for (int i = 0; i < N; ++i) largest[i] = largest_of<V>(tile.scores[i]);
    shrink_rows(N, peaks_of<N>(largest), rows.maxima + row, tile);
}

}  // namespace ridgeline::RIDGELINE_ISA
