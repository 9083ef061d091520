// The sampling kernels for the avx2 instruction set.
#define RIDGELINE_ISA avx2
#include "sample_rows.h"
