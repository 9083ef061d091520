// Where the parts of a packed tile lie: 16 output rows as one sequential stream of 64-byte lines.
//
// A tile is a sequence of chunks; a chunk is a header and parts; a part is a header and groups of 32 inputs. A group
// holds the planes of its codes. In a plane one 64-byte line holds, at byte 4 * row + j, something of the inputs
// 4 * v + j, where v = 0..7 counts the eight "code lines" of the group:
//   nibbles    four lines; line z has the low four bits of code line 2z in its low half, of 2z + 1 in its high half
//   one bit    one line; bit v belongs to code line v
//   two bits   two lines; line h has code lines 4h..4h+3, two bits each from the lowest up
//   bytes      eight lines
// Scales stay as the file has them (f16, 6 bits, 4 bits, e8m0), transposed to 16 rows side by side. Codes are unsigned.
//
// The last chunk ends with its last part. The same bytes serve every instruction set. Internal to the kernels.
#pragma once

#include "matmul.h"

namespace ridgeline {

constexpr int GROUP_VALUES = 32;
constexpr int LINE_BYTES = 64;

struct TileLayout {
    int chunk_parts;         // parts in a chunk
    int chunk_header_bytes;  // f16 or e8m0 scales of the parts, 16 rows each
    int part_groups;         // groups in a part
    int part_header_bytes;
    int group_bytes;
    int block_values;     // of the file
    int block_bytes;      // of the file
    int scales_per_group; // 0 for plain formats, 2 where 16 values share a scale
    bool has_minimum;     // value = scale * code + minimum, else value = scale * (code - zero)
    int zero;

    // Inlined by force: this header is compiled for several instruction sets, and the linker keeps one of its functions.
    [[gnu::always_inline]] constexpr int part_bytes() const { return part_header_bytes + part_groups * group_bytes; }
    [[gnu::always_inline]] constexpr int chunk_bytes() const { return chunk_header_bytes + chunk_parts * part_bytes(); }

    [[gnu::always_inline]] constexpr int64_t tile_bytes(int64_t width) const {
        const int64_t groups = (width + GROUP_VALUES - 1) / GROUP_VALUES;
        const int64_t parts = (groups + part_groups - 1) / part_groups;
        const int64_t chunks = (parts + chunk_parts - 1) / chunk_parts;
        return chunks * chunk_header_bytes + parts * part_bytes();
    }
    // Offset in the tile of the part that holds `group`.
    [[gnu::always_inline]] constexpr int64_t part_offset(int64_t group) const {
        const int64_t part = group / part_groups;
        return (part / chunk_parts) * chunk_bytes() + chunk_header_bytes + (part % chunk_parts) * part_bytes();
    }
    [[gnu::always_inline]] constexpr int64_t group_offset(int64_t group) const {
        return part_offset(group) + part_header_bytes + (group % part_groups) * group_bytes;
    }
    // Offset of the scales in the chunk's header that belong to the part of `group`, `scale_bytes` to a row.
    [[gnu::always_inline]] constexpr int64_t header_offset(int64_t group, int scale_bytes) const {
        const int64_t part = group / part_groups;
        return (part / chunk_parts) * chunk_bytes() + (part % chunk_parts) * scale_bytes * TILE_ROWS;
    }
};

static constexpr TileLayout tile_layout(FormatId format) {
    switch (format) {
        //                        chunk    part    group  block   scales min zero
        case FormatId::F32:    return {1, 0,  1, 0,   2048, 1, 4,     0, false, 0};
        case FormatId::F16:    return {1, 0,  1, 0,   1024, 1, 2,     0, false, 0};
        case FormatId::BF16:   return {1, 0,  1, 0,   1024, 1, 2,     0, false, 0};
        case FormatId::Q4_0:   return {2, 64, 1, 0,   256,  32, 18,   1, false, 8};
        case FormatId::Q4_1:   return {1, 0,  1, 64,  256,  32, 20,   1, true, 0};
        case FormatId::Q5_0:   return {2, 64, 1, 0,   320,  32, 22,   1, false, 16};
        case FormatId::Q5_1:   return {1, 0,  1, 64,  320,  32, 24,   1, true, 0};
        case FormatId::Q8_0:   return {2, 64, 1, 0,   512,  32, 34,   1, false, 128};
        case FormatId::Q2_K:   return {1, 0,  8, 320, 128,  256, 84,  2, true, 0};
        case FormatId::Q3_K:   return {2, 64, 8, 192, 192,  256, 110, 2, false, 4};
        case FormatId::Q4_K:   return {1, 0,  8, 256, 256,  256, 144, 1, true, 0};
        case FormatId::Q5_K:   return {1, 0,  8, 256, 320,  256, 176, 1, true, 0};
        case FormatId::Q6_K:   return {2, 64, 8, 256, 384,  256, 210, 2, false, 32};
        case FormatId::IQ4_NL: return {2, 64, 1, 0,   256,  32, 18,   1, false, 128};
        case FormatId::MXFP4:  return {4, 64, 1, 0,   256,  32, 17,   1, false, 16};
    }
    return {};
}

// Code books, as unsigned codes around the zero of the layout (128 and 16). Source: ggml-common.h (kvalues_iq4nl,
// kvalues_mxfp4: twice the e2m1 values, so that the scale is half of the block's power of two).
constexpr uint8_t IQ4_NL_CODES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
constexpr uint8_t MXFP4_CODES[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

// One group of 32 activations.
struct ActivationGroup {
    int8_t codes[GROUP_VALUES];
    float scale;                // largest magnitude / 127
    int32_t minus_128_sum;      // -128 * sum of the codes
    float scaled_sum;           // scale * sum of the codes
    int32_t minus_128_sum_first;  // the same of the first 16
};
static_assert(sizeof(ActivationGroup) == 48);

}  // namespace ridgeline
