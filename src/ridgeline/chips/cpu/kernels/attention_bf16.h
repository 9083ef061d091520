// The products of attention with AVX-512's instructions for bfloat16: scores, weights and weighted values of up to
// seven rows at a time. A row's bits do not depend on the rows beside it. Included by attention_rows.h.
#pragma once

#include <immintrin.h>

#include "attention_codes.h"
#include "attention_tile.h"

namespace ridgeline::RIDGELINE_ISA {

// A page as pairs of bfloat16.
struct PairPage {
    const uint32_t *keys, *values;  // [C/2][64], [32][S]
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

// One row's weights in bfloat16, and the sum of the weights as they are rounded, so that rounding cancels.
template <int V>
RIDGELINE_INLINE void weights_of_row(int row, float* sums, Tile& tile) {
    const __m512 base = _mm512_set1_ps(tile.bases[row]);
    __m512 weight[V];
    for (int j = 0; j < V; ++j) weight[j] = exp2_fast(_mm512_sub_ps(_mm512_load_ps(tile.scores[row] + 16 * j), base));
    __m512 total = _mm512_mul_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(tile.shrink[row]));
    const uint32_t ones = 0x3f803f80u;  // a pair of 1.0
    for (int j = 0; j < V; j += 2) {
        const __m512bh pairs = _mm512_cvtne2ps_pbh(weight[j + 1], weight[j]);
        add_pairs(total, pair_everywhere(&ones), pairs);
        _mm512_store_si512(tile.weights[row] + 8 * j, (__m512i)pairs);
    }
    _mm512_storeu_ps(sums, total);
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
    Tile& tile = *reinterpret_cast<Tile*>(rows.tile);
    const uint32_t* q = reinterpret_cast<const uint32_t*>(rows.q_bf16 + row * rows.stride);
    score_rows<N, V>(q, rows.stride / 2, page.keys, rows.head_width / 2, ahead, tile);
    find_weights<N, V>(rows, row, first_position, tile);
#pragma GCC unroll 7
    for (int i = 0; i < N; ++i) weights_of_row<V>(i, rows.sums + (row + i) * 16, tile);
    weigh_all_values<N>(rows, tile, page, num_value_pairs, ahead, rows.weighted + row * rows.stride);
}

using AttendTile = void (*)(const Rows&, int64_t, const PairPage&, int64_t, int64_t, Ahead&);
template <int V>
constexpr AttendTile ATTEND_TILES[TILE] = {attend_tile<1, V>, attend_tile<2, V>, attend_tile<3, V>, attend_tile<4, V>,
                                           attend_tile<5, V>, attend_tile<6, V>, attend_tile<7, V>};

static void attend_page_in_bf16(const Rows& rows, const Page& page) {
    const int64_t num_tiles = (rows.count + TILE - 1) / TILE;
    Ahead ahead{page.next, page.next + page.next_bytes, num_tiles == 1};
    const uint32_t* keys = reinterpret_cast<const uint32_t*>(page.block);
    const PairPage pairs{keys, keys + rows.head_width * PAGE_SLOTS / 2};
    const Codes codes = codes_of(page.block, rows.head_width);
    for (int64_t number = 0; number < num_tiles; ++number) {
        const int64_t row = rows.count * number / num_tiles, end = rows.count * (number + 1) / num_tiles;
        // Rows are in order of position.
        const int64_t last = rows.last[end - 1] - page.first_position;
        if (last < 0 || rows.first[row] - page.first_position >= PAGE_SLOTS) continue;
        if (page.has_codes) {
            ATTEND_CODE_TILES[end - row - 1](rows, row, codes, page.first_position, ahead);
            continue;
        }
        const int64_t num_value_pairs = (last < PAGE_SLOTS ? last : PAGE_SLOTS - 1) / 2 + 1;
        const bool is_half = num_value_pairs <= PAGE_SLOTS / 4;
        const AttendTile attend_rows = (is_half ? ATTEND_TILES<2> : ATTEND_TILES<4>)[end - row - 1];
        attend_rows(rows, row, pairs, page.first_position, num_value_pairs, ahead);
    }
}

}  // namespace ridgeline::RIDGELINE_ISA
