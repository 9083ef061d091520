// Where the parts of a packed tile lie: 16 output rows as one sequential stream of 64-byte lines.
//
// A tile is a sequence of runs of 8 groups of 32 inputs (the last run may be shorter): the scales of the run, then its
// groups. Formats whose scales leave half a line join two runs to a chunk, with a line in front that has the f16 scale
// of each. A group holds the planes of its codes. In a plane one 64-byte line holds, at byte 4 * row + j, something of
// the inputs 4 * v + j, where v = 0..7 counts the eight "code lines" of the group:
//   nibbles    four lines; line z has the low four bits of code line 2z in its low half, of 2z + 1 in its high half
//   one bit    one line; bit v belongs to code line v
//   two bits   two lines; line h has code lines 4h..4h+3, two bits each from the lowest up
//   bytes      eight lines
// Scales stay as the file has them (f16, 6 bits, 4 bits, e8m0), transposed to 16 rows side by side. Codes are unsigned.
// The same bytes serve every instruction set. Internal to the kernels.
#pragma once

#include "matmul.h"

namespace ridgeline {

constexpr int GROUP_VALUES = 32;
constexpr int RUN_GROUPS = 8;
constexpr int LINE_BYTES = 64;

struct TileLayout {
    int block_values;           // of the file
    int block_bytes;            // of the file
    int code_bits;              // 0 for plain formats
    int scales_per_group;       // 0 for plain formats, 2 where 16 values share a scale
    bool has_minimum;           // value = scale * code + minimum, else value = scale * (code - zero)
    int zero;
    int chunk_runs;             // runs in a chunk
    int chunk_header_bytes;
    int group_scale_bytes;      // of the run's scales: for each group,
    int run_scale_bytes;        // or for the whole run, which then is never short
    int group_bytes;

    // Members are inlined by force: this header is compiled for several instruction sets, of whose functions the
    // linker would keep one.
    [[gnu::always_inline]] constexpr int64_t scale_bytes(int64_t run_groups) const {
        const int64_t bytes = run_scale_bytes + run_groups * group_scale_bytes;
        return (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
    }
    [[gnu::always_inline]] constexpr int64_t run_bytes() const {
        return scale_bytes(RUN_GROUPS) + RUN_GROUPS * group_bytes;
    }
    [[gnu::always_inline]] constexpr int64_t chunk_offset(int64_t run) const {
        return run / chunk_runs * (chunk_header_bytes + chunk_runs * run_bytes());
    }
    // Offset in the tile of a run (of its scales).
    [[gnu::always_inline]] constexpr int64_t run_offset(int64_t run) const {
        return chunk_offset(run) + chunk_header_bytes + run % chunk_runs * run_bytes();
    }
    [[gnu::always_inline]] constexpr int64_t tile_bytes(int64_t width) const {
        const int64_t groups = (width + GROUP_VALUES - 1) / GROUP_VALUES;
        const int64_t whole_runs = groups / RUN_GROUPS, rest = groups % RUN_GROUPS;
        if (rest != 0) return run_offset(whole_runs) + scale_bytes(rest) + rest * group_bytes;
        return run_offset(whole_runs - 1) + run_bytes();
    }
};

constexpr int64_t num_groups_of(int64_t width) { return (width + GROUP_VALUES - 1) / GROUP_VALUES; }

// How many groups the run has that begins at `first_group`.
static constexpr int64_t groups_in_run(int64_t first_group, int64_t num_groups) {
    return num_groups - first_group < RUN_GROUPS ? num_groups - first_group : RUN_GROUPS;
}

static constexpr TileLayout tile_layout(FormatId format) {
    switch (format) {
        //                        block     bits scales min  zero chunk  scale    group
        case FormatId::F32:    return {1, 4,     0, 0, false, 0,   1, 0,  0, 0,    2048};
        case FormatId::F16:    return {1, 2,     0, 0, false, 0,   1, 0,  0, 0,    1024};
        case FormatId::BF16:   return {1, 2,     0, 0, false, 0,   1, 0,  0, 0,    1024};
        case FormatId::Q4_0:   return {32, 18,   4, 1, false, 8,   1, 0,  32, 0,   256};
        case FormatId::Q4_1:   return {32, 20,   4, 1, true, 0,    1, 0,  64, 0,   256};
        case FormatId::Q5_0:   return {32, 22,   5, 1, false, 16,  1, 0,  32, 0,   320};
        case FormatId::Q5_1:   return {32, 24,   5, 1, true, 0,    1, 0,  64, 0,   320};
        case FormatId::Q8_0:   return {32, 34,   8, 1, false, 128, 1, 0,  32, 0,   512};
        case FormatId::Q2_K:   return {256, 84,  2, 2, true, 0,    1, 0,  0, 320,  128};
        case FormatId::Q3_K:   return {256, 110, 3, 2, false, 4,   2, 64, 0, 192,  192};
        case FormatId::Q4_K:   return {256, 144, 4, 1, true, 0,    1, 0,  0, 256,  256};
        case FormatId::Q5_K:   return {256, 176, 5, 1, true, 0,    1, 0,  0, 256,  320};
        case FormatId::Q6_K:   return {256, 210, 6, 2, false, 32,  2, 64, 0, 256,  384};
        case FormatId::IQ4_NL: return {32, 18,   8, 1, false, 128, 1, 0,  32, 0,   256};
        case FormatId::MXFP4:  return {32, 17,   5, 1, false, 16,  1, 0,  16, 0,   256};
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
