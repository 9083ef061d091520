// The order of a product: blocks of rows, pairs of tiles, slabs of inputs; the choice of instruction set.
#include "matmul.h"

#include <atomic>
#include <cstring>

#include "cpu_features.h"
#include "matmul_kernels.h"
#include "scalar_numbers.h"

namespace ridgeline {

namespace {

const InstructionSet* find_instruction_set(const char* name) {
    const InstructionSet* const sets[] = {avx512_instruction_set(), avx2_instruction_set(), neon_instruction_set(),
                                          &portable_instruction_set()};
    for (const InstructionSet* set : sets) {
        if (set != nullptr && (name == nullptr || std::strcmp(set->name, name) == 0)) return set;
    }
    return nullptr;
}

// The one piece of state of the kernels: which instruction set they use. Tests change it.
std::atomic<const InstructionSet*>& chosen_set() {
    static std::atomic<const InstructionSet*> set{find_instruction_set(nullptr)};
    return set;
}

// Slabs: what one round of unpacking leaves in first-level cache. With few rows the unpacked slab is used once or
// twice and its packed form comes from memory; with many it is used by all rows of a block.
constexpr int64_t SLAB_RECORD_BYTES = 40 * 1024;
constexpr int64_t SLAB_GROUPS_FEW_ROWS = 16;
constexpr int64_t FEW_ROWS = 2 * MAX_ROWS_PER_CALL;
constexpr int64_t BLOCK_ROWS = 192;
constexpr int64_t GROUPS_ALIGNMENT = 8;  // a slab begins at a part

int64_t slab_groups(FormatId format, int64_t num_rows) {
    const int64_t fit = SLAB_RECORD_BYTES / record_bytes(format) / GROUPS_ALIGNMENT * GROUPS_ALIGNMENT;
    return num_rows <= FEW_ROWS && fit > SLAB_GROUPS_FEW_ROWS ? SLAB_GROUPS_FEW_ROWS : fit;
}

// Sums of a block of rows to their place, with the epilogue.
void write_sums(const float* sums, int64_t num_rows, float* y, int64_t y_stride, int64_t first_output,
                int64_t num_outputs, const Epilogue& epilogue) {
    const float* bias = epilogue.bias == nullptr ? nullptr : epilogue.bias + first_output;
    for (int64_t row = 0; row < num_rows; ++row) {
        const float* from = sums + row * PAIR_ROWS;
        float* to = y + row * y_stride + first_output;
        for (int64_t i = 0; i < num_outputs; ++i) {
            const float sum = bias == nullptr ? from[i] : from[i] + bias[i];
            to[i] = epilogue.accumulate ? to[i] + sum : sum;
        }
    }
}

struct Product {
    const PackedMatrix& matrix;
    FormatKernels kernels;
    int64_t tile_bytes;
    int64_t num_groups;
    int64_t groups_per_slab;
    int64_t row_bytes;

    // sums[num_rows][PAIR_ROWS] of a pair of tiles; `next` is the tile that will be read after them.
    void multiply_pair(const uint8_t* const tiles[PAIR_TILES], const uint8_t* next, const uint8_t* prepared,
                       int64_t num_rows, uint8_t* records, float* sums) const;
};

void Product::multiply_pair(const uint8_t* const tiles[PAIR_TILES], const uint8_t* next, const uint8_t* prepared,
                            int64_t num_rows, uint8_t* records, float* sums) const {
    const TileLayout layout = tile_layout(matrix.format);
    const ActivationKind kind = activation_kind(matrix.format);
    const int64_t group_bytes =
        kind == ActivationKind::Int8 ? static_cast<int64_t>(sizeof(ActivationGroup))
                                     : (kind == ActivationKind::Bf16 ? 2 : 4) * static_cast<int64_t>(GROUP_VALUES);
    const int64_t half_record = second_tile_offset(matrix.format);
    std::memset(sums, 0, static_cast<size_t>(num_rows * PAIR_ROWS) * sizeof(float));
    for (int64_t group = 0; group < num_groups; group += groups_per_slab) {
        const int64_t groups_left = num_groups - group;
        const int64_t count = groups_left < groups_per_slab ? groups_left : groups_per_slab;
        // While a slab is unpacked, the next one is asked for: of these tiles, or of the next ones.
        const bool last = groups_left <= groups_per_slab;
        for (int i = 0; i < PAIR_TILES; ++i) {
            const int64_t ahead = last ? next - tiles[0] - layout.group_offset(group) + layout.group_offset(0)
                                       : layout.group_offset(group + groups_per_slab) - layout.group_offset(group);
            kernels.unpack(tiles[i], group, count, records + i * half_record, ahead);
        }
        const uint8_t* rows = prepared + group * group_bytes;
        for (int64_t row = 0; row < num_rows;) {
            // Rows are split evenly over the calls: 8 as 4 and 4.
            const int64_t calls = (num_rows - row + MAX_ROWS_PER_CALL - 1) / MAX_ROWS_PER_CALL;
            const int64_t rows_now = (num_rows - row + calls - 1) / calls;
            kernels.multiply(records, count, rows + row * row_bytes, row_bytes, static_cast<int>(rows_now),
                             sums + row * PAIR_ROWS);
            row += rows_now;
        }
    }
}

}  // namespace

const InstructionSet& active_instruction_set() { return *chosen_set().load(std::memory_order_relaxed); }

const char* instruction_set() { return active_instruction_set().description; }

bool set_instruction_set(const char* name) {
    const InstructionSet* set = find_instruction_set(name);
    if (set == nullptr) return false;
    chosen_set().store(set, std::memory_order_relaxed);
    return true;
}

void matmul(const PackedMatrix& matrix, const uint8_t* prepared, int64_t num_rows, float* y, int64_t y_stride,
            const Epilogue& epilogue, int64_t tile_begin, int64_t tile_end) {
    alignas(64) uint8_t records[SLAB_RECORD_BYTES];
    alignas(64) float sums[BLOCK_ROWS * PAIR_ROWS];
    const Product product{
        matrix,
        active_instruction_set().formats[static_cast<int>(matrix.format)],
        tile_layout(matrix.format).tile_bytes(matrix.width),
        (matrix.width + GROUP_VALUES - 1) / GROUP_VALUES,
        slab_groups(matrix.format, num_rows),
        static_cast<int64_t>(activation_row_bytes(activation_kind(matrix.format), matrix.width)),
    };
    for (int64_t first_row = 0; first_row < num_rows; first_row += BLOCK_ROWS) {
        const int64_t rows_left = num_rows - first_row;
        const int64_t rows_now = rows_left < BLOCK_ROWS ? rows_left : BLOCK_ROWS;
        for (int64_t tile = tile_begin; tile < tile_end; tile += PAIR_TILES) {
            const uint8_t* first = matrix.data + tile * product.tile_bytes;
            // A last tile without a partner is its own partner; what comes of it is not written.
            const bool alone = tile + 1 == tile_end;
            const uint8_t* const tiles[PAIR_TILES] = {first, alone ? first : first + product.tile_bytes};
            const uint8_t* next = tile + PAIR_TILES < tile_end ? first + PAIR_TILES * product.tile_bytes : first;
            product.multiply_pair(tiles, next, prepared + first_row * product.row_bytes, rows_now, records, sums);
            const int64_t first_output = tile * TILE_ROWS;
            const int64_t outputs_left = matrix.rows - first_output;
            const int64_t outputs_here = alone ? TILE_ROWS : PAIR_ROWS;
            write_sums(sums, rows_now, y + first_row * y_stride, y_stride, first_output,
                       outputs_left < outputs_here ? outputs_left : outputs_here, epilogue);
        }
    }
}

void unpack_rows(const PackedMatrix& matrix, const int32_t* row_ids, int64_t num_rows, float* out, int64_t out_stride) {
    // With the portable unpacker codes are those of the layout, without a factor; one row of 16 is kept.
    const TileLayout layout = tile_layout(matrix.format);
    const auto unpack = portable_instruction_set().formats[static_cast<int>(matrix.format)].unpack;
    const int64_t tile_bytes = layout.tile_bytes(matrix.width);
    const int64_t num_groups = (matrix.width + GROUP_VALUES - 1) / GROUP_VALUES;
    alignas(64) uint8_t record[MAX_RECORD_BYTES];
    for (int64_t i = 0; i < num_rows; ++i) {
        const uint8_t* tile = matrix.data + row_ids[i] / TILE_ROWS * tile_bytes;
        const int64_t row = row_ids[i] % TILE_ROWS;
        float* values = out + i * out_stride;
        for (int64_t group = 0; group < num_groups; ++group) {
            unpack(tile, group, 1, record, 0);
            const int64_t left = matrix.width - group * GROUP_VALUES;
            for (int64_t k = 0; k < GROUP_VALUES && k < left; ++k) {
                float value;
                if (matrix.format == FormatId::BF16) {
                    value = bfloat_to_float(record + k / 2 * 128 + row * 4 + k % 2 * 2);
                } else if (layout.scales_per_group == 0) {
                    value = reinterpret_cast<const float*>(record + k * 128)[row];
                } else {
                    const int code = record[k / 4 * LINE_BYTES + row * 4 + k % 4];
                    const auto* scales = reinterpret_cast<const float*>(record + 512);
                    const int64_t part = k * layout.scales_per_group / GROUP_VALUES;
                    value = scales[part * TILE_ROWS + row] * static_cast<float>(code - layout.zero);
                    if (layout.has_minimum) value += scales[(layout.scales_per_group + part) * TILE_ROWS + row];
                }
                values[group * GROUP_VALUES + k] = value;
            }
        }
    }
}

}  // namespace ridgeline
