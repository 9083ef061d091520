// Attention for the avx512 instruction set.
#define RIDGELINE_ISA avx512
#include "attention_rows.h"
