// Attention for the avx2 instruction set.
#define RIDGELINE_ISA avx2
#include "attention_rows.h"
