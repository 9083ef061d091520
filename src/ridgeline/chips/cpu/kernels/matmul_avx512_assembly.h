// Pieces of assembly that the inner loops of the int8 products share. Two tiles (2 x 16 outputs) times R rows:
//   zmm0..11   sums of row r: tile 0 in 2r, tile 1 in 2r + 1
//   zmm12..23  int32 products of a group: 12 + 2r, 13 + 2r
//   zmm24, 25  codes of tile 0 and 1
//   zmm26, 27  four activations broadcast; later scale of the activations times that of the weights
//   zmm28, 29  scales of tile 0 and 1, then minimums
//   zmm30      FLOAT_BIAS, to begin int32 products with and to make them floats
// Loops of at most four rows have zmm8..11, zmm20..23 and zmm31 for other uses. Operands: x0 and x1 point to row 0 and
// 3 of the activations (at the group), stride is that of the rows. The order of the operations on one output is that of
// the portable kernel, so are the bits.
//
// Why assembly: gcc 12 moves the accumulators of _mm512_dpbusd_epi32 to the stack and back at nearly every step, which
// halves the speed.
#pragma once

#include "tile_layout.h"

static_assert(sizeof(ridgeline::ActivationGroup) == 48, "offsets below: scale 32, biased_sum 36, scaled_sum 40");

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

// Ways to begin the int32 products of a row.
#define START_BIAS(R, _) \
    "vmovdqa64 %%zmm30, " DOT0_##R "\n\t" \
    "vmovdqa64 %%zmm30, " DOT1_##R "\n\t"
#define START_32(R, _) \
    "vpbroadcastd 36" ROW_##R ", " DOT0_##R "\n\t" \
    "vmovdqa64 " DOT0_##R ", " DOT1_##R "\n\t"
#define START_16_FIRST(R, _) \
    "vpaddd 44" ROW_##R "%{1to16%}, %%zmm30, " DOT0_##R "\n\t" \
    "vmovdqa64 " DOT0_##R ", " DOT1_##R "\n\t"
#define START_16_SECOND(R, _) \
    "vpbroadcastd 36" ROW_##R ", " DOT0_##R "\n\t" \
    "vpsubd 44" ROW_##R "%{1to16%}, " DOT0_##R ", " DOT0_##R "\n\t" \
    "vmovdqa64 " DOT0_##R ", " DOT1_##R "\n\t"

// Four activations of every row times the codes in zmm24 and zmm25; V counts the code lines.
#define DOT(R, V) \
    "vpbroadcastd 4*" #V ROW_##R ", " X_##R "\n\t" \
    "vpdpbusd " X_##R ", %%zmm24, " DOT0_##R "\n\t" \
    "vpdpbusd " X_##R ", %%zmm25, " DOT1_##R "\n\t"

// sum += product * (scale of the weights * scale of the activations)
#define ADD_SCALED(R, _) \
    "vbroadcastss 32" ROW_##R ", %%zmm27\n\t" \
    "vsubps %%zmm30, " DOT0_##R ", " DOT0_##R "\n\t" \
    "vsubps %%zmm30, " DOT1_##R ", " DOT1_##R "\n\t" \
    "vmulps %%zmm27, %%zmm28, %%zmm26\n\t" \
    "vmulps %%zmm27, %%zmm29, %%zmm27\n\t" \
    "vfmadd231ps %%zmm26, " DOT0_##R ", " SUM0_##R "\n\t" \
    "vfmadd231ps %%zmm27, " DOT1_##R ", " SUM1_##R "\n\t"
// sum += minimum * sum of the activations
#define ADD_MINIMUM_32(R, _) \
    "vfmadd231ps 40" ROW_##R "%{1to16%}, %%zmm28, " SUM0_##R "\n\t" \
    "vfmadd231ps 40" ROW_##R "%{1to16%}, %%zmm29, " SUM1_##R "\n\t"
#define ADD_SUM_OF_16(R) \
    "vsubps %%zmm30, %%zmm26, %%zmm26\n\t" \
    "vmulps 32" ROW_##R "%{1to16%}, %%zmm26, %%zmm26\n\t" \
    "vfmadd231ps %%zmm26, %%zmm28, " SUM0_##R "\n\t" \
    "vfmadd231ps %%zmm26, %%zmm29, " SUM1_##R "\n\t"
#define ADD_MINIMUM_16_FIRST(R, _) \
    "vpaddd 44" ROW_##R "%{1to16%}, %%zmm30, %%zmm26\n\t" ADD_SUM_OF_16(R)
#define ADD_MINIMUM_16_SECOND(R, _) \
    "vpbroadcastd 36" ROW_##R ", %%zmm26\n\t" \
    "vpsubd 44" ROW_##R "%{1to16%}, %%zmm26, %%zmm26\n\t" ADD_SUM_OF_16(R)

#define ALL_ZMM \
    "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", \
    "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", \
    "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "zmm30", "zmm31"

// clang-format on
