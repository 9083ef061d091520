// Attention for the portable instruction set.
#define RIDGELINE_ISA portable
#include "attention_rows.h"
