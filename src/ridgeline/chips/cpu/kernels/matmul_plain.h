// Products of plain formats over records, for the instruction sets that take one tile of a pair at a time (AVX2, NEON).
//
// What an instruction set provides, as static members of a class `Tile`:
//   inputs                 of a line of records: one of f32; two of bf16, which share 32 bits
//   multiply<rows>(weights, count, x, row_bytes, sums)   adds the products of `count` lines of one tile
#pragma once

#include "as_constants.h"
#include "matmul_kernels.h"

namespace ridgeline {

// MultiplyFunction.
template <typename Tile>
void multiply_plain(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                    int num_rows, float* sums, const Ahead& ahead) {
    constexpr int64_t lines = GROUP_VALUES / Tile::inputs;
    with_constant<MAX_ROWS_PER_CALL>(num_rows, [&](auto rows) {
        for (int64_t group = 0; group < num_groups; ++group) {
            ask_ahead(ahead, group);
            for (int tile = 0; tile < PAIR_TILES; ++tile) {
                Tile::template multiply<rows>(records + group * lines * LINE_STRIDE + tile * LINE_BYTES, lines,
                                              prepared + group * lines * 4, row_bytes, sums + tile * TILE_ROWS);
            }
        }
    });
}

}  // namespace ridgeline
