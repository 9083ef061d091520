// The elementwise kernels for the portable instruction set.
#define RIDGELINE_ISA portable
#include "elementwise_rows.h"
