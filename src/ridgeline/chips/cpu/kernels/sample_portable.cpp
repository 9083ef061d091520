// The sampling kernels for the portable instruction set.
#define RIDGELINE_ISA portable
#include "sample_rows.h"
