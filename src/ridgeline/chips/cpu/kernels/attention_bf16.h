// The products of attention with AVX-512's instructions for bfloat16: scores, weights and weighted values of up to
// seven rows at a time. A row's bits do not depend on the rows beside it. Included by attention_rows.h.
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
    float lows[16], shrink[16], bases[16];
};

RIDGELINE_INLINE __m512bh pairs_at(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }

RIDGELINE_INLINE __m512bh pair_everywhere(const uint32_t* pair) {
    return (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(*pair));
}

// sums += x . y for pairs. Written out, so that the compiler keeps to the registers that there are.
RIDGELINE_INLINE void add_pairs(__m512& sums, __m512bh x, __m512bh y) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
}
RIDGELINE_INLINE void add_pairs(__m512& sums, __m512bh x, const uint32_t* y) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(x), "m"(*reinterpret_cast<const __m512i_u*>(y)));
}

// sums[row][j] += pair of the row . vector j of pairs at `at`. The last vector is read anew for each row.
template <int N, int V>
RIDGELINE_INLINE void add_tile(__m512 (&sums)[N][V], const uint32_t* row_pairs, int64_t row_stride,
                               const uint32_t* at) {
    __m512bh vectors[V];
#pragma GCC unroll 4
    for (int j = 0; j < V - 1; ++j) vectors[j] = pairs_at(at + 16 * j);
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row) {
        const __m512bh both = pair_everywhere(row_pairs + row * row_stride);
#pragma GCC unroll 4
        for (int j = 0; j < V - 1; ++j) add_pairs(sums[row][j], both, vectors[j]);
        add_pairs(sums[row][V - 1], both, at + 16 * (V - 1));
    }
}

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

// scores[row][slot] = q[row] . key[slot], for the first 16 * V slots.
template <int N, int V>
RIDGELINE_APART void score_rows(const uint32_t* q, int64_t q_stride, const uint32_t* keys, int64_t num_pairs,
                                Ahead& ahead, Tile& tile) {
    __m512 sums[N][V];
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) sums[row][j] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        ahead.step();
        add_tile<N, V>(sums, q + pair, q_stride, keys + pair * PAGE_SLOTS);
    }
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) _mm512_store_ps(tile.scores[row] + 16 * j, sums[row][j]);
}

// weighted[row][c ...] = weighted * shrink + weights[row] . values, for V vectors of channels.
template <int N, int V>
RIDGELINE_APART void weigh_values(const Tile& tile, const uint32_t* values, int64_t stride, int64_t num_pairs,
                                  Ahead& ahead, float* weighted) {
    __m512 sums[N][V];
#pragma GCC unroll 7
    for (int row = 0; row < N; ++row)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j)
            sums[row][j] =
                _mm512_mul_ps(_mm512_loadu_ps(weighted + row * stride + 16 * j), _mm512_set1_ps(tile.shrink[row]));
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        ahead.step();
        add_tile<N, V>(sums, tile.weights[0] + pair, PAGE_SLOTS / 2, values + pair * stride);
    }
#pragma GCC unroll 7
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
    return _mm512_mul_ps((__m512)tanh_of((Floats)score), _mm512_set1_ps(rows.softcap * LOG2_E));
}

// Adds `low`, caps and masks one row's scores in place.
template <int V>
RIDGELINE_APART void change_scores(const Rows& rows, int64_t row, int64_t first_position, float low, float* scores) {
    const Seen seen = seen_slots(rows, row, first_position);
    for (int j = 0; j < V; ++j) {
        __m512 score = _mm512_add_ps(_mm512_load_ps(scores + 16 * j), _mm512_set1_ps(low));
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

// The largest of both halves of two vectors, side by side in pairs of 1, 2, 4 and 8 lanes.
RIDGELINE_INLINE __m512 larger_pairs(__m512 x, __m512 y) {
    return _mm512_max_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
}
RIDGELINE_INLINE __m512 larger_fours(__m512 x, __m512 y) {
    const __m512d low = _mm512_castps_pd(x), high = _mm512_castps_pd(y);
    return _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
}

// Lane i: the largest of vector i, for up to 8 vectors; what the other lanes hold means nothing.
template <int N>
RIDGELINE_INLINE __m512 peaks_of(const __m512 (&largest)[N]) {
    const auto at = [&](int i) { return largest[i < N ? i : N - 1]; };
    // Each quarter of a vector has the vectors of one four, in order.
    const __m512 low = larger_fours(larger_pairs(at(0), at(1)), larger_pairs(at(2), at(3)));
    const __m512 high = N > 4 ? larger_fours(larger_pairs(at(4), at(5)), larger_pairs(at(6), at(7))) : low;
    // Quarters 0, 1 of low and of high, against quarters 2, 3.
    const __m512 both = _mm512_max_ps(_mm512_shuffle_f32x4(low, high, 0x44), _mm512_shuffle_f32x4(low, high, 0xee));
    return _mm512_max_ps(_mm512_shuffle_f32x4(both, both, 0x08), _mm512_shuffle_f32x4(both, both, 0x0d));
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

// One row's weights in bfloat16, and their sum. With codes, the values' scales go into the weights.
template <int V>
RIDGELINE_INLINE void weights_of_row(const PairPage& page, int row, float* sums, Tile& tile) {
    const __m512 base = _mm512_set1_ps(tile.bases[row]);
    __m512 weight[V];
    for (int j = 0; j < V; ++j) weight[j] = exp2_fast(_mm512_sub_ps(_mm512_load_ps(tile.scores[row] + 16 * j), base));
    __m512 total = _mm512_mul_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(tile.shrink[row]));
    if (page.value_scales != nullptr) {
        for (int j = 0; j < V; ++j) {
            total = _mm512_add_ps(total, weight[j]);
            weight[j] = _mm512_mul_ps(weight[j], _mm512_loadu_ps(page.value_scales + 16 * j));
        }
    }
    const uint32_t ones = 0x3f803f80u;  // a pair of 1.0
    for (int j = 0; j < V; j += 2) {
        const __m512bh pairs = _mm512_cvtne2ps_pbh(weight[j + 1], weight[j]);
        // The sum of the weights as they are rounded, so that rounding cancels.
        if (page.value_scales == nullptr) add_pairs(total, pair_everywhere(&ones), pairs);
        _mm512_store_si512(tile.weights[row] + 8 * j, (__m512i)pairs);
    }
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

// V: 4, or 2 where no row sees more than the first half of the page; the rest would weigh nothing.
template <int N, int V>
static void attend_tile(const Rows& rows, int64_t row, const PairPage& page, int64_t first_position,
                        int64_t num_value_pairs, Ahead& ahead) {
    static_assert(sizeof(Tile) <= TILE_SCRATCH_BYTES);
    Tile& tile = *reinterpret_cast<Tile*>(rows.tile);
    const uint32_t* q = reinterpret_cast<const uint32_t*>(rows.q_bf16 + row * rows.stride);
    alignas(64) uint16_t folded[TILE * 256];
    if (page.key_scales != nullptr) {
        for (int i = 0; i < N; ++i)
            tile.lows[i] =
                fold_query(rows.q + (row + i) * rows.stride, page, rows.head_width, folded + i * rows.stride);
        q = reinterpret_cast<const uint32_t*>(folded);
    }
    score_rows<N, V>(q, rows.stride / 2, page.keys, rows.head_width / 2, ahead, tile);
    const bool sees_all =
        rows.first[row + N - 1] <= first_position && rows.last[row] - first_position >= PAGE_SLOTS - 1;
    if (!sees_all || page.key_lows != nullptr || rows.softcap > 0) {
        for (int i = 0; i < N; ++i)
            change_scores<V>(rows, row + i, first_position, page.key_lows == nullptr ? 0.0f : tile.lows[i],
                             tile.scores[i]);
    }
    __m512 largest[N];
#pragma GCC unroll 7
    for (int i = 0; i < N; ++i) largest[i] = largest_of<V>(tile.scores[i]);
    shrink_rows(N, peaks_of<N>(largest), rows.maxima + row, tile);
#pragma GCC unroll 7
    for (int i = 0; i < N; ++i) weights_of_row<V>(page, i, rows.sums + (row + i) * 16, tile);
    weigh_all_values<N>(rows, tile, page, num_value_pairs, ahead, rows.weighted + row * rows.stride);
}

using AttendTile = void (*)(const Rows&, int64_t, const PairPage&, int64_t, int64_t, Ahead&);
template <int V>
constexpr AttendTile ATTEND_TILES[TILE] = {attend_tile<1, V>, attend_tile<2, V>, attend_tile<3, V>, attend_tile<4, V>,
                                           attend_tile<5, V>, attend_tile<6, V>, attend_tile<7, V>};

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
        const bool is_half = num_value_pairs <= PAGE_SLOTS / 4;
        const AttendTile attend_rows = (is_half ? ATTEND_TILES<2> : ATTEND_TILES<4>)[end - row - 1];
        attend_rows(rows, row, pairs, page.first_position, num_value_pairs, ahead);
    }
}

}  // namespace ridgeline::RIDGELINE_ISA
