// Pieces of assembly that the inner loops of the int8 products share. Two tiles (2 x 16 outputs) times R rows:
//   zmm0..11   sums of row r: tile 0 in 2r, tile 1 in 2r + 1
//   zmm12..23  int32 products of a group: 12 + 2r, 13 + 2r
//   zmm24, 25  codes of tile 0 and 1
//   zmm26, 27  four activations broadcast; later scale of the activations times that of the weights
//   zmm28, 29  scales of tile 0 and 1;  zmm30, 31  minimums
// Loops of at most four rows have zmm8..11 and zmm20..23 for other uses. Operands: x0 and x1 point to row 0 and 3 of
// the activations (at the group), stride is that of the rows.
// The order of the operations on one output is that of the portable kernel, so are the bits.
//
// Why assembly: gcc 12 moves the accumulators of _mm512_dpbusd_epi32 to the stack and back at nearly every step, which
// halves the speed.
#pragma once

#include <cstddef>

#include "tile_layout.h"

// The offsets below.
static_assert(sizeof(ridgeline::ActivationGroup) == 64 && offsetof(ridgeline::ActivationGroup, scale) == 32 &&
              offsetof(ridgeline::ActivationGroup, minus_sum) == 36 &&
              offsetof(ridgeline::ActivationGroup, scaled_sum) == 40 &&
              offsetof(ridgeline::ActivationGroup, minus_sum_first) == 44 &&
              offsetof(ridgeline::ActivationGroup, high) == 48 &&
              offsetof(ridgeline::ActivationGroup, line_offset) == 56 &&
              offsetof(ridgeline::ActivationGroup, in_first) == 60 && ridgeline::EXTENSION == 1 << 7);

// clang-format off

// Where row r of the activations lies, and its registers.
#define ROW_0 "(%[x0])"
#define ROW_1 "(%[x0],%[stride])"
#define ROW_2 "(%[x0],%[stride],2)"
#define ROW_3 "(%[x1])"
#define ROW_4 "(%[x1],%[stride])"
#define ROW_5 "(%[x1],%[stride],2)"
#define SUM0_0 "%%zmm0"
#define SUM1_0 "%%zmm1"
#define SUM0_1 "%%zmm2"
#define SUM1_1 "%%zmm3"
#define SUM0_2 "%%zmm4"
#define SUM1_2 "%%zmm5"
#define SUM0_3 "%%zmm6"
#define SUM1_3 "%%zmm7"
#define SUM0_4 "%%zmm8"
#define SUM1_4 "%%zmm9"
#define SUM0_5 "%%zmm10"
#define SUM1_5 "%%zmm11"
#define DOT0_0 "%%zmm12"
#define DOT1_0 "%%zmm13"
#define DOT0_1 "%%zmm14"
#define DOT1_1 "%%zmm15"
#define DOT0_2 "%%zmm16"
#define DOT1_2 "%%zmm17"
#define DOT0_3 "%%zmm18"
#define DOT1_3 "%%zmm19"
#define DOT0_4 "%%zmm20"
#define DOT1_4 "%%zmm21"
#define DOT0_5 "%%zmm22"
#define DOT1_5 "%%zmm23"
#define X_0 "%%zmm26"
#define X_1 "%%zmm27"
#define X_2 "%%zmm26"
#define X_3 "%%zmm27"
#define X_4 "%%zmm26"
#define X_5 "%%zmm27"

// Calls F(r, argument) for the first rows.
#define ROWS_1(F, A) F(0, A)
#define ROWS_2(F, A) ROWS_1(F, A) F(1, A)
#define ROWS_3(F, A) ROWS_2(F, A) F(2, A)
#define ROWS_4(F, A) ROWS_3(F, A) F(3, A)
#define ROWS_5(F, A) ROWS_4(F, A) F(4, A)
#define ROWS_6(F, A) ROWS_5(F, A) F(5, A)

#define LOAD_SUMS(R, _) \
    "vmovups 128*" #R "(%[sums]), " SUM0_##R "\n\t" \
    "vmovups 128*" #R "+64(%[sums]), " SUM1_##R "\n\t"
#define STORE_SUMS(R, _) \
    "vmovups " SUM0_##R ", 128*" #R "(%[sums])\n\t" \
    "vmovups " SUM1_##R ", 128*" #R "+64(%[sums])\n\t"

// What the int32 products begin with, in 1/128 since it is shifted with the products of the high parts: minus the sum
// of the activations (codes are around 128), or zero.
#define BEGIN_ZERO(R, D0, D1) \
    "vpxord " D0 ", " D0 ", " D0 "\n\t" \
    "vpxord " D1 ", " D1 ", " D1 "\n\t"
#define BEGIN_32(R, D0, D1) \
    "vpbroadcastd 36" ROW_##R ", " D0 "\n\t" \
    "vmovdqa64 " D0 ", " D1 "\n\t"
#define BEGIN_16_FIRST(R, D0, D1) \
    "vpbroadcastd 44" ROW_##R ", " D0 "\n\t" \
    "vmovdqa64 " D0 ", " D1 "\n\t"
#define BEGIN_16_SECOND(R, D0, D1) \
    "vpbroadcastd 36" ROW_##R ", " D0 "\n\t" \
    "vpsubd 44" ROW_##R "%{1to16%}, " D0 ", " D0 "\n\t" \
    "vmovdqa64 " D0 ", " D1 "\n\t"

// High parts of an extended line of a row: all, or zero where the line lies in the other half of the group.
#define HIGH_32(R, L, X) "vpbroadcastd 48+4*" #L ROW_##R ", " X "\n\t"
#define HIGH_16_FIRST(R, L, X) \
    "kmovw 60+2*" #L ROW_##R ", %%k1\n\t" \
    "vpbroadcastd 48+4*" #L ROW_##R ", " X "%{%%k1%}%{z%}\n\t"
#define HIGH_16_SECOND(R, L, X) \
    "kmovw 60+2*" #L ROW_##R ", %%k1\n\t" \
    "knotw %%k1, %%k1\n\t" \
    "vpbroadcastd 48+4*" #L ROW_##R ", " X "%{%%k1%}%{z%}\n\t"

// Products of an extended line's high parts: its codes are found in the record at operand w.
#define EXTENDED_LINE(R, L, HIGH, W0, W1, X, D0, D1) \
    "movzwl 56+2*" #L ROW_##R ", %k[line]\n\t" \
    "vmovdqa64 (%[w],%[line]), " W0 "\n\t" \
    "vmovdqa64 %c[half](%[w],%[line]), " W1 "\n\t" \
    HIGH(R, L, X) \
    "vpdpbusd " X ", " W0 ", " D0 "\n\t" \
    "vpdpbusd " X ", " W1 ", " D1 "\n\t"
#define EXTENDED(R, BEGIN, HIGH, W2, W3, D0, D1) \
    BEGIN(R, D0, D1) \
    EXTENDED_LINE(R, 0, HIGH, "%%zmm24", "%%zmm25", "%%zmm26", D0, D1) \
    EXTENDED_LINE(R, 1, HIGH, W2, W3, "%%zmm27", D0, D1) \
    "vpslld $7, " D0 ", " D0 "\n\t" \
    "vpslld $7, " D1 ", " D1 "\n\t"

// Four activations of every row times the codes in zmm24 and zmm25; V counts the code lines.
#define DOT(R, V) \
    "vpbroadcastd 4*" #V ROW_##R ", " X_##R "\n\t" \
    "vpdpbusd " X_##R ", %%zmm24, " DOT0_##R "\n\t" \
    "vpdpbusd " X_##R ", %%zmm25, " DOT1_##R "\n\t"

// sum += product * (scale of the weights * scale of the activations)
#define ADD_SCALED(R, _) \
    "vbroadcastss 32" ROW_##R ", %%zmm27\n\t" \
    "vcvtdq2ps " DOT0_##R ", " DOT0_##R "\n\t" \
    "vcvtdq2ps " DOT1_##R ", " DOT1_##R "\n\t" \
    "vmulps %%zmm27, %%zmm28, %%zmm26\n\t" \
    "vmulps %%zmm27, %%zmm29, %%zmm27\n\t" \
    "vfmadd231ps %%zmm26, " DOT0_##R ", " SUM0_##R "\n\t" \
    "vfmadd231ps %%zmm27, " DOT1_##R ", " SUM1_##R "\n\t"
// sum += minimum * sum of the activations
#define ADD_MINIMUM_32(R, _) \
    "vfmadd231ps 40" ROW_##R "%{1to16%}, %%zmm30, " SUM0_##R "\n\t" \
    "vfmadd231ps 40" ROW_##R "%{1to16%}, %%zmm31, " SUM1_##R "\n\t"
#define ADD_SUM_OF_16(R) \
    "vcvtdq2ps %%zmm26, %%zmm26\n\t" \
    "vmulps 32" ROW_##R "%{1to16%}, %%zmm26, %%zmm26\n\t" \
    "vfmadd231ps %%zmm26, %%zmm30, " SUM0_##R "\n\t" \
    "vfmadd231ps %%zmm26, %%zmm31, " SUM1_##R "\n\t"
#define ADD_MINIMUM_16_FIRST(R, _) \
    "vpbroadcastd 44" ROW_##R ", %%zmm26\n\t" ADD_SUM_OF_16(R)
#define ADD_MINIMUM_16_SECOND(R, _) \
    "vpbroadcastd 36" ROW_##R ", %%zmm26\n\t" \
    "vpsubd 44" ROW_##R "%{1to16%}, %%zmm26, %%zmm26\n\t" ADD_SUM_OF_16(R)

#define ALL_ZMM \
    "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", \
    "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", \
    "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "zmm30", "zmm31"

// clang-format on
