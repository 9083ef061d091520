// Attention for AVX-512 with products of bfloat16.
#define RIDGELINE_ISA avx512bf16
#define RIDGELINE_BF16
#include "attention_rows.h"
