// Where the parts of a packed matrix lie. Tiles of 16 output rows go in pairs (a matrix of an odd number of tiles has
// an empty one at its end), and a pair is one sequential stream of 64-byte lines, since that is what memory gives
// fastest.
//
// A pair is a sequence of runs of 8 groups of 32 inputs (the last run may be shorter): the scales of the run, then its
// groups. A group holds the planes of its codes, by lines of tile 0 and tile 1 in turn. In a plane one 64-byte line
// holds, at byte 4 * row + j, something of the inputs 4 * v + j, where v = 0..7 counts the eight "code lines" of the
// group:
//   nibbles    four lines; line z has the low four bits of code line 2z in its low half, of 2z + 1 in its high half
//   one bit    one line; bit v belongs to code line v
//   two bits   two lines; line h has code lines 4h..4h+3, two bits each from the lowest up
//   bytes      eight lines
// Scales stay as the file has them (f16, 6 bits, 4 bits, e8m0), transposed to 16 rows side by side. Codes are unsigned.
// Plain formats alternate the tiles by one input (bf16: two inputs, side by side).
// The same bytes serve every instruction set. Internal to the kernels.
#pragma once

#include "matmul.h"
#include "scalar_numbers.h"

namespace ridgeline {

constexpr int GROUP_VALUES = 32;
constexpr int RUN_GROUPS = 8;
constexpr int LINE_BYTES = 64;
constexpr int LINE_STRIDE = 2 * LINE_BYTES;  // from a line of a tile to its next
constexpr int PAIR_TILES = 2;
constexpr int PAIR_ROWS = PAIR_TILES * static_cast<int>(TILE_ROWS);

// Sizes are those of one tile, where nothing else is said.
struct TileLayout {
    int block_values;      // of the file
    int block_bytes;       // of the file
    int code_bits;         // 0 for plain formats
    int scales_per_group;  // 0 for plain formats, 2 where 16 values share a scale
    bool has_minimum;      // value = scale * code + minimum, else value = scale * (code - zero)
    int zero;
    int group_scale_bytes;  // scales of a run: for each group, the tiles in turn,
    int run_scale_bytes;    // or for the whole run (which then is never short), one tile after the other;
    int run_header_bytes;   // before them, an f16 scale of each row, if half a line
    int group_bytes;

    // Members are inlined by force: this header is compiled for several instruction sets, of whose functions the
    // linker would keep one.
    [[gnu::always_inline]] constexpr int64_t pair_scale_bytes(int64_t run_groups) const {
        const int64_t bytes = PAIR_TILES * (run_header_bytes + run_scale_bytes + run_groups * group_scale_bytes);
        return (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
    }
    [[gnu::always_inline]] constexpr int64_t pair_group_bytes() const { return PAIR_TILES * group_bytes; }
    [[gnu::always_inline]] constexpr int64_t pair_run_bytes(int64_t run_groups) const {
        return pair_scale_bytes(run_groups) + run_groups * pair_group_bytes();
    }
    // Offset of a run in the pair.
    [[gnu::always_inline]] constexpr int64_t run_offset(int64_t run) const { return run * pair_run_bytes(RUN_GROUPS); }
    [[gnu::always_inline]] constexpr int64_t pair_bytes(int64_t num_groups) const {
        const int64_t rest = num_groups % RUN_GROUPS;
        return run_offset(num_groups / RUN_GROUPS) + (rest == 0 ? 0 : pair_run_bytes(rest));
    }
    // Offset in a run: of the f16 scales in front, of the scales of a tile, of the planes of a group.
    [[gnu::always_inline]] constexpr int64_t header_offset(int tile) const { return tile * run_header_bytes; }
    [[gnu::always_inline]] constexpr int64_t scale_offset(int tile, int64_t group) const {
        return PAIR_TILES * run_header_bytes + tile * run_scale_bytes + (PAIR_TILES * group + tile) * group_scale_bytes;
    }
    [[gnu::always_inline]] constexpr int64_t group_offset(int tile, int64_t group, int64_t run_groups) const {
        return pair_scale_bytes(run_groups) + group * pair_group_bytes() + tile * LINE_BYTES;
    }
};

constexpr int64_t num_groups_of(int64_t width) { return (width + GROUP_VALUES - 1) / GROUP_VALUES; }

// How many groups the run has that begins at `first_group`.
static constexpr int64_t groups_in_run(int64_t first_group, int64_t num_groups) {
    return num_groups - first_group < RUN_GROUPS ? num_groups - first_group : RUN_GROUPS;
}

static constexpr TileLayout tile_layout(FormatId format) {
    switch (format) {
            // clang-format off
        //                        block     bits scales min  zero  scale    run  group
        case FormatId::F32:    return {1, 4,     0, 0, false, 0,   0, 0,    0,   2048};
        case FormatId::F16:    return {1, 2,     0, 0, false, 0,   0, 0,    0,   1024};
        case FormatId::BF16:   return {1, 2,     0, 0, false, 0,   0, 0,    0,   1024};
        case FormatId::Q4_0:   return {32, 18,   4, 1, false, 8,   32, 0,   0,   256};
        case FormatId::Q4_1:   return {32, 20,   4, 1, true, 0,    64, 0,   0,   256};
        case FormatId::Q5_0:   return {32, 22,   5, 1, false, 16,  32, 0,   0,   320};
        case FormatId::Q5_1:   return {32, 24,   5, 1, true, 0,    64, 0,   0,   320};
        case FormatId::Q8_0:   return {32, 34,   8, 1, false, 128, 32, 0,   0,   512};
        case FormatId::Q2_K:   return {256, 84,  2, 2, true, 0,    0, 320,  0,   128};
        case FormatId::Q3_K:   return {256, 110, 3, 2, false, 4,   0, 192,  32,  192};
        case FormatId::Q4_K:   return {256, 144, 4, 1, true, 0,    0, 256,  0,   256};
        case FormatId::Q5_K:   return {256, 176, 5, 1, true, 0,    0, 256,  0,   320};
        case FormatId::Q6_K:   return {256, 210, 6, 2, false, 32,  0, 256,  32,  384};
        case FormatId::IQ4_NL: return {32, 18,   8, 1, false, 128, 32, 0,   0,   256};
        case FormatId::MXFP4:  return {32, 17,   5, 1, false, 16,  16, 0,   0,   256};
            // clang-format on
    }
    return {};
}

// Code books, as unsigned codes around the zero of the layout (128 and 16). Source: ggml-common.h (kvalues_iq4nl,
// kvalues_mxfp4: twice the e2m1 values, so that the scale is half of the block's power of two).
constexpr uint8_t IQ4_NL_CODES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
constexpr uint8_t MXFP4_CODES[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

constexpr int EXTENDED_LINES = 2;
constexpr int LINE_VALUES = 4;
constexpr int GROUP_LINES = GROUP_VALUES / LINE_VALUES;
// An extended code is EXTENSION * high + code, where the others reach +-CODE_LIMIT.
constexpr int EXTENSION = 128;
constexpr int CODE_LIMIT = 127;
constexpr int EXTENDED_LIMIT = CODE_LIMIT * EXTENSION;

// One group of 32 activations: value = scale * (code, with its high part). A line is four neighbours, what one code
// line of the weights is multiplied with. Four of the largest values are extended (16 bits), so that they do not set
// the step of the others: one in each column (place in a line), all of them in two lines. So the lines of weights that
// they meet can be blended into one, and multiplied at once.
struct ActivationGroup {
    int8_t codes[GROUP_VALUES];
    float scale;
    int32_t minus_sum;            // -sum of the codes with their high parts
    float scaled_sum;             // scale * that sum
    int32_t minus_sum_first;      // -sum of the first 16
    int8_t high[2][LINE_VALUES];  // of the extended values in either line; in each column one of the two is zero
    uint16_t line_offset[2];      // which lines they are: 64 * (0..7), the place of the line in a record
    uint16_t in_first[2];         // all bits set where the line is one of the first 16 values, else zero
};
static_assert(sizeof(ActivationGroup) == 64);

struct GroupScale {
    float scale, inverse;
};
constexpr uint32_t INFINITY_BITS = 0x7f800000;  // of a float; those of NaN are above
constexpr uint32_t SCALE_STEP_BITS = 1u << 21;  // floats with three significant bits are multiples of this

// From the largest magnitude of a group and that of the values that are not extended. Rounded up to three significant
// bits, which makes the product with a scale of the weights exact. A NaN or an infinity reaches the scale: magnitudes
// are compared as integers.
static inline GroupScale group_scale(float largest, float largest_rest) {
    if (largest < SMALLEST_MAGNITUDE) return {1.0f, 0.0f};
    const uint32_t of_rest = float_to_bits(largest_rest / CODE_LIMIT),
                   of_extended = float_to_bits(largest / EXTENDED_LIMIT);
    uint32_t bits = of_rest > of_extended ? of_rest : of_extended;
    if (bits < INFINITY_BITS) bits = (bits + SCALE_STEP_BITS - 1) & ~(SCALE_STEP_BITS - 1);
    return {bits_to_float(bits), 1.0f / bits_to_float(bits)};
}

}  // namespace ridgeline
