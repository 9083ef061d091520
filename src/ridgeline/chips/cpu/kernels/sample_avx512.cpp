// The sampling kernels for the avx512 instruction set.
#define RIDGELINE_ISA avx512
#include "sample_rows.h"
