// The rows of a block of queries while it walks its pages. A row is one query head of one token.
#pragma once

#include "attention.h"
#include "vector.h"

namespace ridgeline::RIDGELINE_ISA {

constexpr float MINUS_INFINITY = -__builtin_inff();
constexpr float LOG2_E = 1.44269504f;

constexpr int64_t TILE_SCRATCH_BYTES = 4096;

struct Rows {
    int64_t count, head_width, stride;
    float scale, softcap;
    float* q;          // [row][stride]
    uint16_t* q_bf16;  // [row][stride]
    float* weighted;   // [row][stride], of the span that is being walked
    float* total;      // [row][stride], of the spans before it
    float* maxima;     // [row], in powers of two
    float* sums;       // [row][16]
    float* total_maxima;
    float* total_sums;
    int32_t* first;  // [row] first position that is seen
    int32_t* last;   // [row] the row's own position
    uint8_t* page;   // room for a dequantised page, or for queries in whole numbers
    uint8_t* tile;   // room for what is kept of some rows on one page
};

struct Page {
    const uint8_t* block;
    bool has_codes;
    int64_t first_position;
    const uint8_t* next;  // the block that will be read after this one, or null
    int64_t next_bytes;
};

}  // namespace ridgeline::RIDGELINE_ISA
