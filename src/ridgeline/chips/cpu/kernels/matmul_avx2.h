// The parts of the AVX2 kernels that live in files of their own. Internal to them.
//
// Codes in records are those of the layout. Without AVX-VNNI, formats whose zero is 128 have them signed, since the
// products of unsigned 8-bit codes would not fit 16 bits.
#pragma once

#include "matmul_kernels.h"

namespace ridgeline::avx2 {

// Unpackers, products of records and, for few rows, of what lies in memory; none of them for plain formats.
FormatKernels kernels_with_vnni(FormatId format);   // vpdpbusd
FormatKernels kernels_with_pairs(FormatId format);  // vpmaddubsw

// PrepareFunction.
void prepare_int8(const float* x, int64_t width, uint8_t* prepared);

}  // namespace ridgeline::avx2
