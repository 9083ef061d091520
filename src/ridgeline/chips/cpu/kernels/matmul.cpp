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

// Up to this many rows, codes are taken straight from the packed tiles in passes of a few rows; above, they are first
// unpacked, a slab that fits first-level cache, and all rows of a block use the slab.
constexpr int64_t MAX_DIRECT_ROWS = 12;
constexpr int64_t SLAB_RECORD_BYTES = 40 * 1024;
constexpr int64_t BLOCK_ROWS = 192;
constexpr int64_t MAX_RUN_SCALE_BYTES = RUN_GROUPS * PAIR_TILES * 4 * LINE_BYTES;

int64_t ceil_divide(int64_t value, int64_t by) { return (value + by - 1) / by; }

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
    TileLayout layout;
    int64_t tile_bytes;
    int64_t num_groups;
    int64_t row_bytes;
    int64_t activation_bytes;  // of a group

    explicit Product(const PackedMatrix& packed)
        : matrix(packed),
          kernels(active_instruction_set().formats[static_cast<int>(packed.format)]),
          layout(tile_layout(packed.format)),
          tile_bytes(layout.tile_bytes(packed.width)),
          num_groups(num_groups_of(packed.width)) {
        const ActivationKind kind = activation_kind(packed.format);
        row_bytes = static_cast<int64_t>(activation_row_bytes(kind, packed.width));
        activation_bytes = activation_group_bytes(kind);
    }

    // sums[num_rows][PAIR_ROWS] += the product of a pair of tiles with the rows. `next` is the tile that will be read
    // after them.
    void add_direct(const uint8_t* const tiles[PAIR_TILES], const uint8_t* next, const uint8_t* prepared,
                    int64_t num_rows, float* sums) const;
    void add_by_slabs(const uint8_t* const tiles[PAIR_TILES], const uint8_t* next, const uint8_t* prepared,
                      int64_t num_rows, float* sums) const;

    // Where the run after those before `group` begins: in these tiles, or in the ones that follow.
    const uint8_t* start_of(int64_t group, const uint8_t* tile, const uint8_t* next) const {
        if (group >= num_groups) return next;
        const int64_t run = group / RUN_GROUPS;
        return tile + (run % layout.chunk_runs == 0 ? layout.chunk_offset(run) : layout.run_offset(run));
    }
};

void Product::add_direct(const uint8_t* const tiles[PAIR_TILES], const uint8_t* next, const uint8_t* prepared,
                         int64_t num_rows, float* sums) const {
    alignas(64) uint8_t scales[MAX_RUN_SCALE_BYTES];
    for (int64_t group = 0; group < num_groups; group += RUN_GROUPS) {
        const int64_t count = groups_in_run(group, num_groups);
        const int64_t offset = layout.run_offset(group / RUN_GROUPS);
        if (kernels.unpack_scales != nullptr) {
            for (int i = 0; i < PAIR_TILES; ++i) {
                const int64_t half = second_tile_offset(matrix.format) - 512;
                kernels.unpack_scales(tiles[i], group, num_groups, scales + i * half);
            }
        }
        const int64_t groups_offset = offset + layout.scale_bytes(count);
        const PackedRun run{{tiles[0] + groups_offset, tiles[1] + groups_offset},
                            scales,
                            count,
                            start_of(group + RUN_GROUPS, tiles[0], next),
                            ceil_divide(layout.run_bytes(), RUN_GROUPS)};
        const uint8_t* rows = prepared + group * activation_bytes;
        for (int64_t row = 0; row < num_rows;) {
            // Rows are split evenly over the passes: 6 as 3 and 3.
            const int64_t passes = ceil_divide(num_rows - row, MAX_ROWS_PER_DIRECT_CALL);
            const int64_t rows_now = ceil_divide(num_rows - row, passes);
            kernels.multiply_direct(run, rows + row * row_bytes, row_bytes, static_cast<int>(rows_now),
                                    sums + row * PAIR_ROWS);
            row += rows_now;
        }
    }
}

void Product::add_by_slabs(const uint8_t* const tiles[PAIR_TILES], const uint8_t* next, const uint8_t* prepared,
                           int64_t num_rows, float* sums) const {
    alignas(64) uint8_t records[SLAB_RECORD_BYTES];
    const int64_t slab_groups = SLAB_RECORD_BYTES / record_bytes(matrix.format) / RUN_GROUPS * RUN_GROUPS;
    const int64_t calls = ceil_divide(num_rows, MAX_ROWS_PER_CALL);
    for (int64_t group = 0; group < num_groups; group += slab_groups) {
        const int64_t count = num_groups - group < slab_groups ? num_groups - group : slab_groups;
        for (int i = 0; i < PAIR_TILES; ++i) {
            kernels.unpack(tiles[i], group, count, num_groups, records + i * second_tile_offset(matrix.format));
        }
        // While the rows use this slab, memory is asked for the next one, a share with every call.
        const uint8_t* ahead = start_of(group + slab_groups, tiles[0], next);
        const int64_t share = ceil_divide(layout.run_bytes() * count, RUN_GROUPS * calls);
        const uint8_t* rows = prepared + group * activation_bytes;
        for (int64_t row = 0; row < num_rows; ahead += share) {
            const int64_t calls_left = ceil_divide(num_rows - row, MAX_ROWS_PER_CALL);
            const int64_t rows_now = ceil_divide(num_rows - row, calls_left);
            kernels.multiply(records, count, rows + row * row_bytes, row_bytes, static_cast<int>(rows_now),
                             sums + row * PAIR_ROWS, {{ahead, ahead + tile_bytes}, ceil_divide(share, count)});
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
    alignas(64) float sums[BLOCK_ROWS * PAIR_ROWS];
    const Product product(matrix);
    const bool direct = product.kernels.multiply_direct != nullptr && num_rows <= MAX_DIRECT_ROWS;
    for (int64_t first_row = 0; first_row < num_rows; first_row += BLOCK_ROWS) {
        const int64_t rows_now = num_rows - first_row < BLOCK_ROWS ? num_rows - first_row : BLOCK_ROWS;
        const uint8_t* rows = prepared + first_row * product.row_bytes;
        for (int64_t tile = tile_begin; tile < tile_end; tile += PAIR_TILES) {
            const uint8_t* first = matrix.data + tile * product.tile_bytes;
            // A last tile without a partner is its own partner; what comes of it is not written.
            const bool alone = tile + 1 == tile_end;
            const uint8_t* const tiles[PAIR_TILES] = {first, alone ? first : first + product.tile_bytes};
            const uint8_t* next = tile + PAIR_TILES < tile_end ? first + PAIR_TILES * product.tile_bytes : first;
            std::memset(sums, 0, static_cast<size_t>(rows_now * PAIR_ROWS) * sizeof(float));
            if (direct) {
                product.add_direct(tiles, next, rows, rows_now, sums);
            } else {
                product.add_by_slabs(tiles, next, rows, rows_now, sums);
            }
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
    const int64_t num_groups = num_groups_of(matrix.width);
    alignas(64) uint8_t record[MAX_RECORD_BYTES];
    for (int64_t i = 0; i < num_rows; ++i) {
        const uint8_t* tile = matrix.data + row_ids[i] / TILE_ROWS * tile_bytes;
        const int64_t row = row_ids[i] % TILE_ROWS;
        float* values = out + i * out_stride;
        for (int64_t group = 0; group < num_groups; ++group) {
            unpack(tile, group, 1, num_groups, record);
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
