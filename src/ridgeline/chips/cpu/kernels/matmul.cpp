// The order of a product: blocks of rows, pairs of tiles, slabs of inputs; the choice of instruction set.
#include "matmul.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu_features.h"
#include "matmul_kernels.h"

namespace ridgeline {

namespace {

// Those that this CPU can run, the best first.
std::vector<const InstructionSet*> available_sets() {
    std::vector<const InstructionSet*> available;
    for (const InstructionSet* set : {avx512_instruction_set(), avx2_vnni_instruction_set(), avx2_instruction_set(),
                                      neon_instruction_set(), &portable_instruction_set()}) {
        if (set != nullptr) available.push_back(set);
    }
    return available;
}

// The one piece of state of the kernels: which instruction set they use. Tests change it.
std::atomic<const InstructionSet*>& chosen_set() {
    static std::atomic<const InstructionSet*> set{available_sets().front()};
    return set;
}

// With few rows, the first take codes straight from the packed pairs, run by run, and leave records for the others;
// with many, codes are first unpacked, a slab at a time, and all rows of a block use the slab. Slabs leave room for
// activations in first-level cache. Measured on Zen 5.
constexpr int64_t SLAB_RECORD_BYTES = 20 * 1024;
constexpr int64_t MAX_SLAB_BYTES = RUN_GROUPS * MAX_RECORD_BYTES;  // a slab is at least a run
static_assert(MAX_SLAB_BYTES >= SLAB_RECORD_BYTES);
constexpr int64_t MAX_RUN_RECORD_BYTES = RUN_GROUPS * PAIR_TILES * (512 + 4 * LINE_BYTES);  // of int8 formats

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
    FormatId format;
    FormatKernels kernels;
    TileLayout layout;
    int64_t num_groups;
    int64_t pair_bytes;
    int64_t row_bytes;
    int64_t activation_bytes;  // of a group

    explicit Product(const PackedMatrix& matrix)
        : format(matrix.format),
          kernels(active_instruction_set().formats[static_cast<int>(format)]),
          layout(tile_layout(format)),
          num_groups(num_groups_of(matrix.width)),
          pair_bytes(layout.pair_bytes(num_groups)),
          row_bytes(static_cast<int64_t>(activation_row_bytes(activation_kind(format), matrix.width))),
          activation_bytes(activation_group_bytes(activation_kind(format))) {}

    // sums[num_rows][PAIR_ROWS] += the product of a pair of tiles with the rows.
    void add_direct(const uint8_t* pair, const uint8_t* prepared, int64_t num_rows, float* sums) const;
    void add_by_slabs(const uint8_t* pair, const uint8_t* prepared, int64_t num_rows, float* sums, const float* y,
                      int64_t y_stride) const;
    // The product of two pairs; sums of the second begin PAIR_SUM_BYTES after those of the first.
    void add_quad(const uint8_t* pairs, const uint8_t* prepared, int64_t num_rows, float* sums, const float* y,
                  int64_t y_stride) const;
    void add_run(const uint8_t* pairs, int64_t group, const uint8_t* rows, int64_t num_rows, float* sums) const;
};

// Calls function(first row, how many) for pieces of at most `most` rows, as even as can be: 8 as 4 and 4.
template <typename Function>
void in_pieces(int64_t num_rows, int64_t most, Function function) {
    for (int64_t row = 0; row < num_rows;) {
        const int64_t pieces = ceil_divide(num_rows - row, most);
        const int64_t rows_now = ceil_divide(num_rows - row, pieces);
        function(row, static_cast<int>(rows_now));
        row += rows_now;
    }
}

void Product::add_direct(const uint8_t* pair, const uint8_t* prepared, int64_t num_rows, float* sums) const {
    alignas(64) uint8_t records[MAX_RUN_RECORD_BYTES];
    for (int64_t group = 0; group < num_groups; group += RUN_GROUPS) {
        const int64_t count = groups_in_run(group, num_groups);
        const uint8_t* run = pair + layout.run_offset(group / RUN_GROUPS);
        const uint8_t* rows = prepared + group * activation_bytes;
        const Ahead ahead{run + AHEAD_BYTES, ceil_divide(layout.pair_run_bytes(RUN_GROUPS), RUN_GROUPS)};
        if (kernels.unpack_scales != nullptr) kernels.unpack_scales(pair, group, num_groups, records);
        in_pieces(num_rows, MAX_ROWS_PER_DIRECT_CALL, [&](int64_t row, int rows_now) {
            const uint8_t* x = rows + row * row_bytes;
            if (row == 0 || kernels.unpack_scales == nullptr) {
                kernels.multiply_direct(run + layout.pair_scale_bytes(count), records, count, x, row_bytes, rows_now,
                                        sums + row * PAIR_ROWS, ahead);
            } else {
                kernels.multiply(records, count, x, row_bytes, rows_now, sums + row * PAIR_ROWS, ahead);
            }
        });
    }
}

void Product::add_by_slabs(const uint8_t* pair, const uint8_t* prepared, int64_t num_rows, float* sums, const float* y,
                           int64_t y_stride) const {
    alignas(64) uint8_t records[MAX_SLAB_BYTES];
    const int64_t fit = SLAB_RECORD_BYTES / record_bytes(format) / RUN_GROUPS * RUN_GROUPS;
    // Where few rows come this way, they go by runs: what memory is asked for meanwhile must not crowd out the slab.
    const int64_t slab_groups = num_rows <= kernels.max_direct_rows || fit == 0 ? RUN_GROUPS : fit;
    const int64_t calls = ceil_divide(num_rows, MAX_ROWS_PER_CALL);
    for (int64_t group = 0; group < num_groups; group += slab_groups) {
        const int64_t count = num_groups - group < slab_groups ? num_groups - group : slab_groups;
        const uint8_t* slab = pair + layout.run_offset(group / RUN_GROUPS);
        const int64_t slab_bytes = layout.run_offset(count / RUN_GROUPS) + layout.pair_run_bytes(count % RUN_GROUPS);
        if (kernels.unpack != nullptr) kernels.unpack(pair, group, count, num_groups, records);
        // While the rows use this slab, memory is asked for what follows, a share with every call.
        const int64_t share = ceil_divide(slab_bytes, calls);
        Ahead ahead{slab + slab_bytes, ceil_divide(share, count)};
        const uint8_t* rows = prepared + group * activation_bytes;
        in_pieces(num_rows, MAX_ROWS_PER_CALL, [&](int64_t row, int rows_now) {
            kernels.multiply(kernels.unpack != nullptr ? records : slab, count, rows + row * row_bytes, row_bytes,
                             rows_now, sums + row * PAIR_ROWS, ahead);
            ahead.next += share;
            if (group + slab_groups < num_groups) return;
            for (int64_t i = row; i < row + rows_now; ++i) {
                for (int64_t j = 0; j <= PAIR_ROWS; j += 16) __builtin_prefetch(y + i * y_stride + j, 1);
            }
        });
    }
}

void Product::add_quad(const uint8_t* pairs, const uint8_t* prepared, int64_t num_rows, float* sums, const float* y,
                       int64_t y_stride) const {
    alignas(64) uint8_t records[MAX_QUAD_RUN_BYTES];
    const int64_t calls = ceil_divide(num_rows, MAX_ROWS_PER_QUAD_CALL);
    const int64_t rows_of_call = num_rows / calls, longer_calls = num_rows % calls;
    // While the rows use a run, memory is asked for the next (or the first of the next quad), for the two pairs one
    // after the other.
    const int64_t calls_of_pair[2] = {ceil_divide(calls, 2), std::max<int64_t>(calls / 2, 1)};
    const int64_t run_lines = layout.pair_run_bytes(RUN_GROUPS) / LINE_BYTES;
    const int64_t lines_of_call[2] = {ceil_divide(run_lines, calls_of_pair[0] * RUN_GROUPS),
                                      ceil_divide(run_lines, calls_of_pair[1] * RUN_GROUPS)};
    for (int64_t group = 0; group < num_groups; group += RUN_GROUPS) {
        const int64_t count = groups_in_run(group, num_groups);
        const uint8_t* rows = prepared + group * activation_bytes;
        bool is_ordinary = true;
        for (int i = 0; i < 2; ++i) {
            is_ordinary &= kernels.unpack_quad(pairs + i * pair_bytes, group, num_groups, i, records);
        }
        if (!is_ordinary) {
            add_run(pairs, group, rows, num_rows, sums);
            continue;
        }
        const bool is_last = group + RUN_GROUPS >= num_groups;
        const uint8_t* next_run = pairs + (is_last ? 2 * pair_bytes : layout.run_offset(group / RUN_GROUPS + 1));
        const uint8_t* next = next_run;
        int64_t row = 0;
        for (int64_t call = 0; call < calls; ++call) {
            const int pair = call < calls_of_pair[0] ? 0 : 1;
            if (call == calls_of_pair[0]) next = next_run + pair_bytes;
            const int rows_now = static_cast<int>(rows_of_call + (call < longer_calls ? 1 : 0));
            const uint8_t* x = rows + row * row_bytes;
            const uint8_t* next_x = call + 1 < calls ? x + rows_now * row_bytes : rows + RUN_GROUPS * activation_bytes;
            float* to = sums + row * PAIR_ROWS;
            if (!kernels.multiply_quad(records, count, x, row_bytes, rows_now, to, next_x,
                                       {next, lines_of_call[pair]})) {
                add_run(pairs, group, x, rows_now, to);
            }
            next += lines_of_call[pair] * RUN_GROUPS * LINE_BYTES;
            row += rows_now;
            if (!is_last) continue;
            for (int64_t i = row - rows_now; i < row; ++i) {
                for (int64_t j = 0; j <= 2 * PAIR_ROWS; j += 16) __builtin_prefetch(y + i * y_stride + j, 1);
            }
        }
    }
}

void Product::add_run(const uint8_t* pairs, int64_t group, const uint8_t* rows, int64_t num_rows, float* sums) const {
    alignas(64) uint8_t records[MAX_RUN_RECORD_BYTES];
    const int64_t count = groups_in_run(group, num_groups);
    for (int pair = 0; pair < 2; ++pair, pairs += pair_bytes, sums += PAIR_SUM_BYTES / sizeof(float)) {
        kernels.unpack(pairs, group, count, num_groups, records);
        in_pieces(num_rows, MAX_ROWS_PER_CALL, [&](int64_t row, int rows_now) {
            kernels.multiply(records, count, rows + row * row_bytes, row_bytes, rows_now, sums + row * PAIR_ROWS,
                             Ahead{pairs, 0});
        });
    }
}

}  // namespace

const InstructionSet& active_instruction_set() { return *chosen_set().load(std::memory_order_relaxed); }

const char* instruction_set() { return active_instruction_set().description; }

bool set_instruction_set(const char* name) {
    for (const InstructionSet* set : available_sets()) {
        if (std::strcmp(set->name, name) != 0) continue;
        chosen_set().store(set, std::memory_order_relaxed);
        return true;
    }
    return false;
}

std::vector<const char*> instruction_sets() {
    std::vector<const char*> names;
    for (const InstructionSet* set : available_sets()) names.push_back(set->name);
    return names;
}

bool has_fast_products(FormatId format) {
    const auto index = static_cast<size_t>(format);
    return active_instruction_set().formats[index].multiply != portable_instruction_set().formats[index].multiply;
}

void matmul(const PackedMatrix& matrix, const uint8_t* prepared, int64_t num_rows, float* y, int64_t y_stride,
            const Epilogue& epilogue, int64_t tile_begin, int64_t tile_end) {
    alignas(64) float sums[2 * BLOCK_ROWS * PAIR_ROWS];
    const Product product(matrix);
    const FormatKernels& kernels = product.kernels;
    const bool by_quads = kernels.multiply_quad != nullptr && num_rows >= kernels.min_quad_rows;
    const bool direct = kernels.multiply_direct != nullptr && num_rows <= kernels.max_direct_rows;
    for (int64_t first_row = 0; first_row < num_rows; first_row += BLOCK_ROWS) {
        const int64_t rows_now = num_rows - first_row < BLOCK_ROWS ? num_rows - first_row : BLOCK_ROWS;
        const uint8_t* rows = prepared + first_row * product.row_bytes;
        float* block = y + first_row * y_stride;
        // A range that begins or ends in the middle of a pair computes both of its tiles and writes one.
        for (int64_t tile = tile_begin / PAIR_TILES * PAIR_TILES; tile < tile_end;) {
            const uint8_t* pair = matrix.data + tile / PAIR_TILES * product.pair_bytes;
            float* place = block + tile * TILE_ROWS;
            const bool is_quad = by_quads && tile + PAIR_TILES < tile_end;
            for (int i = 0; i < (is_quad ? 2 : 1); ++i) {
                std::memset(sums + i * BLOCK_ROWS * PAIR_ROWS, 0,
                            static_cast<size_t>(rows_now * PAIR_ROWS) * sizeof(float));
            }
            if (is_quad) {
                product.add_quad(pair, rows, rows_now, sums, place, y_stride);
            } else if (direct) {
                product.add_direct(pair, rows, rows_now, sums);
            } else {
                product.add_by_slabs(pair, rows, rows_now, sums, place, y_stride);
            }
            for (int i = 0; i < (is_quad ? 2 : 1); ++i, tile += PAIR_TILES) {
                const int64_t first = std::max(tile, tile_begin) * TILE_ROWS;
                const int64_t last = std::min({(tile + PAIR_TILES) * TILE_ROWS, tile_end * TILE_ROWS, matrix.rows});
                write_sums(sums + i * BLOCK_ROWS * PAIR_ROWS + (first - tile * TILE_ROWS), rows_now, block, y_stride,
                           first, last - first, epilogue);
            }
        }
    }
}

}  // namespace ridgeline
