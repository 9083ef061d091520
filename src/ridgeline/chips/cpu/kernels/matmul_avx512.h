// The parts of the AVX-512 kernels that live in files of their own. Internal to them.
#pragma once

#include "matmul_kernels.h"

namespace ridgeline::avx512 {

// The unpackers of a quantised format. Codes are scaled up to fill their byte, scales down by as much: the zero of a
// format without minimum is 128.
FormatKernels unpackers(FormatId format);

void prepare_int8(const float* x, int64_t width, uint8_t* prepared);

// Products of int8 records: one scale for 32 or for 16 inputs, without and with minimum.
void multiply_32(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                 float* sums, const Ahead& ahead);
void multiply_32_minimum(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                         int num_rows, float* sums, const Ahead& ahead);
void multiply_16(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                 float* sums, const Ahead& ahead);
// Minimums carry the factor -1, since the prepared sums of 16 do.
void multiply_16_minimum(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                         int num_rows, float* sums, const Ahead& ahead);
// Products of few rows with a quantised format as it lies in memory, of which they leave records.
MultiplyDirectFunction direct_function(FormatId format);
// Products of quads of tiles.
MultiplyQuadFunction quad_function(FormatId format);
double int8_loop(int64_t repeats);

// With AVX512_BF16.
void multiply_bf16(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                   float* sums, const Ahead& ahead);
double bf16_loop(int64_t repeats);

}  // namespace ridgeline::avx512
