// Inner loops of the int8 products, as assembly: gcc 12 moves the accumulators of _mm512_dpbusd_epi32 to the stack and
// back at nearly every step, which halves the speed. Needs AVX512_VNNI.
//
// Two tiles (2 x 16 outputs) times R = 1..6 rows. Registers:
//   zmm0..11   sums of row r: tile 0 in 2r, tile 1 in 2r + 1
//   zmm12..23  int32 products of a group: 12 + 2r, 13 + 2r
//   zmm24, 25  codes of tile 0 and 1
//   zmm26, 27  four activations broadcast; later scale of the activations times that of the weights
//   zmm28, 29  scales of tile 0 and 1;  zmm30, 31  minimums
// The order of the operations on one output is that of the portable kernel, so are the bits.
#include "matmul_avx512.h"

#if defined(__x86_64__)

namespace ridgeline::avx512 {

namespace {

static_assert(sizeof(ActivationGroup) == 48, "offsets below: scale 32, minus_128_sum 36, scaled_sum 40, first 44");

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
#define START_ZERO(R, _) \
    "vpxord " DOT0_##R ", " DOT0_##R ", " DOT0_##R "\n\t" \
    "vpxord " DOT1_##R ", " DOT1_##R ", " DOT1_##R "\n\t"
#define START_32(R, _) \
    "vpbroadcastd 36" ROW_##R ", " DOT0_##R "\n\t" \
    "vmovdqa64 " DOT0_##R ", " DOT1_##R "\n\t"
#define START_16_FIRST(R, _) \
    "vpbroadcastd 44" ROW_##R ", " DOT0_##R "\n\t" \
    "vmovdqa64 " DOT0_##R ", " DOT1_##R "\n\t"
#define START_16_SECOND(R, _) \
    "vpbroadcastd 36" ROW_##R ", " DOT0_##R "\n\t" \
    "vpsubd 44" ROW_##R "%{1to16%}, " DOT0_##R ", " DOT0_##R "\n\t" \
    "vmovdqa64 " DOT0_##R ", " DOT1_##R "\n\t"

// Code line V of both tiles times all rows.
#define DOT(R, V) \
    "vpbroadcastd 4*" #V ROW_##R ", " X_##R "\n\t" \
    "vpdpbusd " X_##R ", %%zmm24, " DOT0_##R "\n\t" \
    "vpdpbusd " X_##R ", %%zmm25, " DOT1_##R "\n\t"
#define LINE(ROWS, V) \
    "vmovdqa64 64*" #V "(%[w]), %%zmm24\n\t" \
    "vmovdqa64 64*" #V "+%c[half](%[w]), %%zmm25\n\t" \
    ROWS(DOT, V)
#define LINES_FIRST(ROWS) LINE(ROWS, 0) LINE(ROWS, 1) LINE(ROWS, 2) LINE(ROWS, 3)
#define LINES_SECOND(ROWS) LINE(ROWS, 4) LINE(ROWS, 5) LINE(ROWS, 6) LINE(ROWS, 7)

#define LOAD_SCALES(OFFSET) \
    "vmovaps " OFFSET "(%[w]), %%zmm28\n\t" \
    "vmovaps " OFFSET "+%c[half](%[w]), %%zmm29\n\t"
#define LOAD_MINIMUMS(OFFSET) \
    "vmovaps " OFFSET "(%[w]), %%zmm30\n\t" \
    "vmovaps " OFFSET "+%c[half](%[w]), %%zmm31\n\t"

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

#define GROUP_32(ROWS) \
    ROWS(START_32, 0) LINES_FIRST(ROWS) LINES_SECOND(ROWS) LOAD_SCALES("512") ROWS(ADD_SCALED, 0)
#define GROUP_32_MINIMUM(ROWS) \
    ROWS(START_ZERO, 0) LINES_FIRST(ROWS) LINES_SECOND(ROWS) \
    LOAD_SCALES("512") LOAD_MINIMUMS("576") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_32, 0)
#define GROUP_16(ROWS) \
    ROWS(START_16_FIRST, 0) LINES_FIRST(ROWS) LOAD_SCALES("512") ROWS(ADD_SCALED, 0) \
    ROWS(START_16_SECOND, 0) LINES_SECOND(ROWS) LOAD_SCALES("576") ROWS(ADD_SCALED, 0)
#define GROUP_16_MINIMUM(ROWS) \
    ROWS(START_ZERO, 0) LINES_FIRST(ROWS) \
    LOAD_SCALES("512") LOAD_MINIMUMS("640") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_16_FIRST, 0) \
    ROWS(START_ZERO, 0) LINES_SECOND(ROWS) \
    LOAD_SCALES("576") LOAD_MINIMUMS("704") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_16_SECOND, 0)

#define ALL_ZMM \
    "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", \
    "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", \
    "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "zmm30", "zmm31"

#define DEFINE_LOOP(NAME, ROWS, GROUP, HALF_BYTES) \
    void NAME(const uint8_t* w, int64_t count, const uint8_t* x0, int64_t stride, float* sums) { \
        const uint8_t* x1 = x0 + 3 * stride; \
        asm volatile( \
            ROWS(LOAD_SUMS, 0) \
            ".p2align 6\n\t" \
            "1:\n\t" \
            GROUP(ROWS) \
            "add $48, %[x0]\n\t" \
            "add $48, %[x1]\n\t" \
            "add $2*%c[half], %[w]\n\t" \
            "dec %[count]\n\t" \
            "jnz 1b\n\t" \
            ROWS(STORE_SUMS, 0) \
            : [w] "+r"(w), [count] "+r"(count), [x0] "+r"(x0), [x1] "+r"(x1) \
            : [stride] "r"(stride), [sums] "r"(sums), [half] "i"(HALF_BYTES) \
            : "memory", "cc", ALL_ZMM); \
    }

using Loop = void (*)(const uint8_t* w, int64_t count, const uint8_t* x0, int64_t stride, float* sums);

#define DEFINE_LOOPS(NAME, GROUP, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_1, ROWS_1, GROUP, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_2, ROWS_2, GROUP, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_3, ROWS_3, GROUP, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_4, ROWS_4, GROUP, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_5, ROWS_5, GROUP, HALF_BYTES) \
    DEFINE_LOOP(NAME##_rows_6, ROWS_6, GROUP, HALF_BYTES) \
    constexpr Loop NAME##_loops[MAX_ROWS_PER_CALL] = { \
        NAME##_rows_1, NAME##_rows_2, NAME##_rows_3, NAME##_rows_4, NAME##_rows_5, NAME##_rows_6};

DEFINE_LOOPS(loop_32, GROUP_32, 576)
DEFINE_LOOPS(loop_32_minimum, GROUP_32_MINIMUM, 640)
DEFINE_LOOPS(loop_16, GROUP_16, 640)
DEFINE_LOOPS(loop_16_minimum, GROUP_16_MINIMUM, 768)

// clang-format on

static_assert(second_tile_offset(FormatId::Q4_0) == 576 && second_tile_offset(FormatId::Q4_1) == 640);
static_assert(second_tile_offset(FormatId::Q6_K) == 640 && second_tile_offset(FormatId::Q2_K) == 768);

}  // namespace

void multiply_32(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                 float* sums) {
    loop_32_loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums);
}

void multiply_32_minimum(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                         int num_rows, float* sums) {
    loop_32_minimum_loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums);
}

void multiply_16(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                 float* sums) {
    loop_16_loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums);
}

void multiply_16_minimum(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                         int num_rows, float* sums) {
    loop_16_minimum_loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums);
}

double int8_loop(int64_t repeats) {
    int64_t count = repeats;
    asm volatile(
        ".p2align 6\n\t"
        "1:\n\t"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19\n\t"
        "vpdpbusd %%zmm31, %%zmm30, %%zmm\\i\n\t"
        ".endr\n\t"
        "dec %[count]\n\t"
        "jnz 1b\n\t"
        : [count] "+r"(count)
        :
        : "cc", ALL_ZMM);
    return static_cast<double>(repeats) * 20 * 128;
}

}  // namespace ridgeline::avx512

#endif
