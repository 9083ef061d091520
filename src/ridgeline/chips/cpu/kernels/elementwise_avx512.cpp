// The elementwise kernels for the avx512 instruction set.
#define RIDGELINE_ISA avx512
#include "elementwise_rows.h"
