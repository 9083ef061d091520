// What an instruction set provides for the products, and the form in which weights reach its inner loops.
//
// The inner loops work on a pair of tiles (32 outputs) at a time. For few rows they read the packed pair; for many, a
// slab of its inputs is first unpacked into records, one for each group of 32 inputs, in first-level cache:
//   int8 formats   of tile 0, then of tile 1: codes (8 lines of 16 rows x 4 inputs), for each scale of the group a
//                  line of 16 floats, then the minimums in the same way
//   f16            for each input 16 floats of tile 0 and 16 of tile 1
//   bf16, f32      the packed pair itself is of this form
// Codes may carry a factor that the scales undo (a power of two, so no bit of the result changes).
#pragma once

#include "matmul.h"
#include "tile_layout.h"

namespace ridgeline {

constexpr int MAX_ROWS_PER_CALL = 6;

static constexpr int record_bytes(FormatId format) {
    const TileLayout layout = tile_layout(format);
    if (format == FormatId::BF16) return PAIR_TILES * 1024;
    if (layout.scales_per_group == 0) return PAIR_TILES * 2048;
    return PAIR_TILES * (512 + LINE_BYTES * layout.scales_per_group * (layout.has_minimum ? 2 : 1));
}
static constexpr int half_record_bytes(FormatId format) { return record_bytes(format) / PAIR_TILES; }
// Bytes of a group of 32 prepared activations.
static constexpr int64_t activation_group_bytes(ActivationKind kind) {
    if (kind == ActivationKind::Int8) return sizeof(ActivationGroup);
    return (kind == ActivationKind::Bf16 ? 2 : 4) * GROUP_VALUES;
}
constexpr int MAX_RECORD_BYTES = PAIR_TILES * 2048;

// What to ask memory for while computing: from `next` on, `step_bytes` more with every group.
struct Ahead {
    const uint8_t* next;
    int64_t step_bytes;
};
[[gnu::always_inline]] static inline void ask_ahead(const Ahead& ahead, int64_t group) {
    const uint8_t* next = ahead.next + group * ahead.step_bytes;
    for (int64_t line = 0; line < ahead.step_bytes; line += LINE_BYTES) __builtin_prefetch(next + line);
}

// Unpacks `count` groups of a pair from `first_group`, the first of a run, into records. `num_groups` is that of the
// whole pair.
using UnpackFunction = void (*)(const uint8_t* pair, int64_t first_group, int64_t count, int64_t num_groups,
                                uint8_t* records);
// sums[row * PAIR_ROWS + output] += products of `num_rows` (1..MAX_ROWS_PER_CALL) prepared rows with the records.
using MultiplyFunction = void (*)(const uint8_t* records, int64_t num_groups, const uint8_t* prepared,
                                  int64_t row_bytes, int num_rows, float* sums, const Ahead& ahead);

// Unpacks the scales of the run that begins at `first_group` to their places in the records of its groups.
using UnpackScalesFunction = void (*)(const uint8_t* pair, int64_t first_group, int64_t num_groups, uint8_t* records);
// As MultiplyFunction, for 1..MAX_ROWS_PER_DIRECT_CALL rows, with the groups of one run as they lie in memory. Codes
// are unpacked on the way and left in the records, which have the scales: further rows go on with those.
using MultiplyDirectFunction = void (*)(const uint8_t* groups, uint8_t* records, int64_t num_groups,
                                        const uint8_t* prepared, int64_t row_bytes, int num_rows, float* sums,
                                        const Ahead& ahead);
constexpr int MAX_ROWS_PER_DIRECT_CALL = 4;

// For many rows an instruction set may take four tiles, two pairs, at a time, which halves how often activations are
// loaded. Records of such quads have a quarter for each tile: its codes (as above); for each scale of the group, times
// 1, 1.25, 1.5 and 1.75, a line of 16 floats in the form of QuadScales; the minimums. Scales of activations have
// three significant bits (group_scale): with the one of the four that has its fraction in, what is left of the
// multiplication is an addition of exponents. A float's bits, as an integer, are
//   bits(weight scale * fraction) - bits(1 * fraction) + bits(activation scale)
// and the first two are what a line holds. That holds while nothing overflows or vanishes, so a run of weights with
// scales out of bounds, and rows of activations with scales that are not finite, go by pairs.
constexpr int QUAD_TILES = 4;
constexpr int QUAD_FRACTIONS = 4;
constexpr int MAX_ROWS_PER_QUAD_CALL = 3;
constexpr int PAIR_SUM_BYTES = static_cast<int>(BLOCK_ROWS) * PAIR_ROWS * 4;  // from a pair's sums to those of the next

static constexpr int quad_record_bytes(FormatId format) {
    const TileLayout layout = tile_layout(format);
    const int lines = layout.scales_per_group * (QUAD_FRACTIONS + (layout.has_minimum ? 1 : 0));
    return QUAD_TILES * (512 + LINE_BYTES * lines);
}
constexpr int MAX_QUAD_RUN_BYTES = RUN_GROUPS * QUAD_TILES * (512 + 10 * LINE_BYTES);

// What to ask memory for with every group: `lines` (at least one) from `next` on.
struct QuadAhead {
    const uint8_t* next;
    int64_t lines;
};

// Unpacks the run that begins at `first_group` of a pair into its half of a quad's records. False if scales are out of
// bounds; records are then of no use.
using UnpackQuadFunction = bool (*)(const uint8_t* pair, int64_t first_group, int64_t num_groups, int pair_of_quad,
                                    uint8_t* records);
// As MultiplyFunction, for 1..MAX_ROWS_PER_QUAD_CALL rows and the sums of two pairs. False if scales of the activations
// are not finite; nothing is added then. The rows at `rows_ahead` are needed next.
using MultiplyQuadFunction = bool (*)(const uint8_t* records, int64_t num_groups, const uint8_t* prepared,
                                      int64_t row_bytes, int num_rows, float* sums, const uint8_t* rows_ahead,
                                      const QuadAhead& ahead);

using PrepareFunction = void (*)(const float* x, int64_t width, uint8_t* prepared);
using MeasureReadFunction = uint64_t (*)(const uint8_t* const* streams, size_t stream_bytes);
using MeasureFunction = double (*)(int64_t repeats);

constexpr int NUM_FORMAT_SLOTS = 40;  // FormatId as index

struct FormatKernels {
    UnpackFunction unpack = nullptr;  // null where the packed pair is of the form of records
    MultiplyFunction multiply = nullptr;
    // For few rows, or null.
    UnpackScalesFunction unpack_scales = nullptr;  // null for plain formats
    MultiplyDirectFunction multiply_direct = nullptr;
    int64_t max_direct_rows = 16;  // from how many on unpacking pays: it depends on the work of taking codes apart
    // For many rows, or null.
    UnpackQuadFunction unpack_quad = nullptr;
    MultiplyQuadFunction multiply_quad = nullptr;
    int64_t min_quad_rows = 36;  // with fewer, memory is read more evenly by pairs
};

struct InstructionSet {
    const char* name;         // what set_instruction_set takes
    const char* description;  // what instruction_set says
    FormatKernels formats[NUM_FORMAT_SLOTS];
    PrepareFunction prepare_int8;
    // Loops for the roofline: each does a fixed number of operations per repeat and returns how many it did.
    MeasureFunction int8_loop, bf16_loop, fp32_loop;
    // Reads NUM_READ_STREAMS streams side by side.
    MeasureReadFunction read_loop;
};

constexpr int NUM_READ_STREAMS = 4;

const InstructionSet& portable_instruction_set();
// The definition of the prepared form, for sets that have nothing faster.
void prepare_int8_portable(const float* x, int64_t width, uint8_t* prepared);
// Null where the machine or the build does not have them.
const InstructionSet* avx512_instruction_set();
const InstructionSet* avx2_instruction_set();
const InstructionSet* avx2_vnni_instruction_set();
const InstructionSet* neon_instruction_set();
// The one in use.
const InstructionSet& active_instruction_set();

}  // namespace ridgeline
