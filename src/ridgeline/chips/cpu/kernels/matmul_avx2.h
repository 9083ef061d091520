// The parts of the AVX2 kernels that live in files of their own. Internal to them.
#pragma once

#include "matmul_kernels.h"

namespace ridgeline::avx2 {

// The unpackers of a quantised format. Codes are those of the layout, but formats whose zero is 128 have them signed:
// the products of unsigned 8-bit codes would not fit 16 bits.
UnpackFunction unpack_function(FormatId format);

// The product of a quantised format, with vpdpbusd (AVX-VNNI) or with vpmaddubsw.
MultiplyFunction multiply_function(FormatId format, bool has_vnni);

}  // namespace ridgeline::avx2
