// The parts of the AVX-512 kernels that live in files of their own. Internal to them.
#pragma once

#include "matmul_kernels.h"

namespace ridgeline::avx512 {

// The unpacker of a quantised format. Its codes are scaled so that the zero of a format without minimum is 128.
UnpackFunction unpack_function(FormatId format);

// Products of int8 records: one scale for 32 or for 16 inputs, without and with minimum.
void multiply_32(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                 float* sums);
void multiply_32_minimum(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                         int num_rows, float* sums);
void multiply_16(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                 float* sums);
// Minimums carry the factor -1/128, since the prepared sums of 16 do.
void multiply_16_minimum(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                         int num_rows, float* sums);
double int8_loop(int64_t repeats);

// With AVX512_BF16.
void multiply_bf16(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                   float* sums);
double bf16_loop(int64_t repeats);

}  // namespace ridgeline::avx512
