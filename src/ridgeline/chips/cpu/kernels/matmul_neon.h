// The part of the NEON kernels that lives in a file of its own. Internal to them.
#pragma once

#include "matmul_kernels.h"

namespace ridgeline::neon {

// The unpacker of a quantised format. The zero of a format is taken from its codes, which then are signed: the dot
// product instruction wants both sides signed.
UnpackFunction unpack_function(FormatId format);

}  // namespace ridgeline::neon
