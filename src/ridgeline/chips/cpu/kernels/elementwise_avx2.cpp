// The elementwise kernels for the avx2 instruction set.
#define RIDGELINE_ISA avx2
#include "elementwise_rows.h"
