// Products of activations with packed weight matrices: y[t][f] = sum_d x[t][d] * w[f][d].
//
// Weights are packed once into tiles of 16 output rows (TILE_ROWS) in which 64 bytes hold 16 rows x 4 consecutive d, so
// that no kernel needs a horizontal sum; bytes per weight are those of the file's format. Activations are prepared once
// per product (int8 in groups of 32 with float scales and sums, bf16, or float), then shared by all tiles.
//
// The law: the bits of y[t][f] depend on x[t], w[f] alone: not on how many rows t there are, not on the range of tiles
// that a call is given, not on the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ridgeline {

// Numbers are those of GGUF files (quant/formats.py).
enum class FormatId : int32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    BF16 = 30,
    MXFP4 = 39,
};

enum class ActivationKind : int32_t { Int8 = 0, Bf16 = 1, F32 = 2 };

constexpr int64_t TILE_ROWS = 16;

struct PackedMatrix {
    FormatId format;
    int64_t rows;         // outputs; tiles lie in pairs, and what the rows do not fill of the last pair is zero weights
    int64_t width;        // inputs; a multiple of the format's block
    const uint8_t* data;  // 64-byte aligned
};

// Raised whenever the packed bytes of any format change: packed weights are kept in files.
constexpr int PACKED_LAYOUT_VERSION = 4;

int64_t num_tiles(const PackedMatrix& matrix);
// Bytes of the packed form, a multiple of 64.
size_t packed_bytes(FormatId format, int64_t rows, int64_t width);
// Packs tiles [tile_begin, tile_end) of a matrix whose file bytes (rows after one another) are `source`. A pair of
// tiles (2i, 2i + 1) is written by the call whose range has the first of them.
void pack_tiles(FormatId format, int64_t rows, int64_t width, const uint8_t* source, uint8_t* packed,
                int64_t tile_begin, int64_t tile_end);
// Dequantises packed rows to float: the embedding lookup, and the oracle of the tests. out[i] is row_ids[i].
void unpack_rows(const PackedMatrix& matrix, const int32_t* row_ids, int64_t num_rows, float* out, int64_t out_stride);

// Which form of activations the products of a format read.
ActivationKind activation_kind(FormatId format);
// Bytes of one prepared row; a multiple of 64.
size_t activation_row_bytes(ActivationKind kind, int64_t width);
// Prepares rows [row_begin, row_end) of x (row stride in floats) into `prepared`. A row's bytes depend on it alone.
// Prepared rows lie one after another.
void prepare_activations(ActivationKind kind, const float* x, int64_t x_stride, int64_t num_rows, int64_t width,
                         uint8_t* prepared, int64_t row_begin, int64_t row_end);
// A prepared row is its groups of 32 values, one after another: here begin those from `column` (a multiple of 32) on,
// and they may be prepared by themselves, as a narrower row.
size_t activation_offset_bytes(ActivationKind kind, int64_t column);

struct Epilogue {
    const float* bias = nullptr;  // [rows] added, or null
    bool accumulate = false;      // y += instead of y = (the residual stream); the addition is the last operation
};

// Rows that matmul takes at a time.
constexpr int64_t BLOCK_ROWS = 192;
// How far ahead it asks memory for packed weights of few rows. Measured on Zen 5: with less, the loops wait; with much
// more, what came is gone from first-level cache again.
constexpr int64_t AHEAD_BYTES = 12288;

// y[t * y_stride + f] for all num_rows t and the f of tiles [tile_begin, tile_end). Called by each thread on its range.
void matmul(const PackedMatrix& matrix, const uint8_t* prepared, int64_t num_rows, float* y, int64_t y_stride,
            const Epilogue& epilogue, int64_t tile_begin, int64_t tile_end);

// Which instruction set was chosen at load, such as "avx512-vnni"; settable for tests (returns false if this CPU
// cannot run it). Names: "avx512", "avx2-vnni", "avx2", "portable" (on Arm: "neon", "portable").
const char* instruction_set();
bool set_instruction_set(const char* name);
// Those that this CPU can run, the best first.
std::vector<const char*> instruction_sets();
// Whether the one in use has kernels of its own for a format's products.
bool has_fast_products(FormatId format);

// Loops that measure the chip's roofline, run on `thread` of a pool; each returns operations or bytes done in
// `seconds`.
double measure_read_bytes(const uint8_t* buffer, size_t bytes, double seconds, int thread_index, int num_threads);
double measure_int8_operations(double seconds);
double measure_bf16_operations(double seconds);
double measure_fp32_operations(double seconds);

}  // namespace ridgeline
