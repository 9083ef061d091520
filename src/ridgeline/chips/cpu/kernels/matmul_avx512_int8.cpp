// Inner loops of the int8 products over records. Needs AVX512_VNNI.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include "matmul_avx512_assembly.h"

namespace ridgeline::avx512 {

namespace {

// clang-format off

// Code line V of both tiles times all rows.
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

// The products of a row begin with those of its extended lines.
#define START_32(R, _) EXTENDED(R, BEGIN_32, HIGH_32, "%%zmm28", "%%zmm29", DOT0_##R, DOT1_##R)
#define START_32_MINIMUM(R, _) EXTENDED(R, BEGIN_ZERO, HIGH_32, "%%zmm28", "%%zmm29", DOT0_##R, DOT1_##R)
#define START_16_FIRST(R, _) EXTENDED(R, BEGIN_16_FIRST, HIGH_16_FIRST, "%%zmm28", "%%zmm29", DOT0_##R, DOT1_##R)
#define START_16_SECOND(R, _) EXTENDED(R, BEGIN_16_SECOND, HIGH_16_SECOND, "%%zmm28", "%%zmm29", DOT0_##R, DOT1_##R)
#define START_16_MINIMUM_FIRST(R, _) EXTENDED(R, BEGIN_ZERO, HIGH_16_FIRST, "%%zmm28", "%%zmm29", DOT0_##R, DOT1_##R)
#define START_16_MINIMUM_SECOND(R, _) EXTENDED(R, BEGIN_ZERO, HIGH_16_SECOND, "%%zmm28", "%%zmm29", DOT0_##R, DOT1_##R)

#define GROUP_32(ROWS) \
    ROWS(START_32, 0) LINES_FIRST(ROWS) LINES_SECOND(ROWS) LOAD_SCALES("512") ROWS(ADD_SCALED, 0)
#define GROUP_32_MINIMUM(ROWS) \
    ROWS(START_32_MINIMUM, 0) LINES_FIRST(ROWS) LINES_SECOND(ROWS) \
    LOAD_SCALES("512") LOAD_MINIMUMS("576") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_32, 0)
#define GROUP_16(ROWS) \
    ROWS(START_16_FIRST, 0) LINES_FIRST(ROWS) LOAD_SCALES("512") ROWS(ADD_SCALED, 0) \
    ROWS(START_16_SECOND, 0) LINES_SECOND(ROWS) LOAD_SCALES("576") ROWS(ADD_SCALED, 0)
#define GROUP_16_MINIMUM(ROWS) \
    ROWS(START_16_MINIMUM_FIRST, 0) LINES_FIRST(ROWS) \
    LOAD_SCALES("512") LOAD_MINIMUMS("640") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_16_FIRST, 0) \
    ROWS(START_16_MINIMUM_SECOND, 0) LINES_SECOND(ROWS) \
    LOAD_SCALES("576") LOAD_MINIMUMS("704") ROWS(ADD_SCALED, 0) ROWS(ADD_MINIMUM_16_SECOND, 0)

// Rows that need records come in at least three calls, so six lines with a group ask for all of it.
#define ASK_AHEAD \
    "prefetcht0 (%[next])\n\tprefetcht0 64(%[next])\n\tprefetcht0 128(%[next])\n\t" \
    "prefetcht0 192(%[next])\n\tprefetcht0 256(%[next])\n\tprefetcht0 320(%[next])\n\t" \
    "add %[step], %[next]\n\t"

#define DEFINE_LOOP(NAME, ROWS, GROUP, HALF_BYTES) \
    void NAME(const uint8_t* w, int64_t count, const uint8_t* x0, int64_t stride, float* sums, \
              const Ahead& ahead) { \
        const uint8_t* x1 = x0 + 3 * stride; \
        const uint8_t* next = ahead.next; \
        int64_t line; \
        asm volatile( \
            ROWS(LOAD_SUMS, 0) \
            ".p2align 6\n\t" \
            "1:\n\t" \
            ASK_AHEAD \
            GROUP(ROWS) \
            "add $64, %[x0]\n\t" \
            "add $64, %[x1]\n\t" \
            "add $2*%c[half], %[w]\n\t" \
            "dec %[count]\n\t" \
            "jnz 1b\n\t" \
            ROWS(STORE_SUMS, 0) \
            : [w] "+r"(w), [count] "+r"(count), [x0] "+r"(x0), [x1] "+r"(x1), \
              [next] "+r"(next), [line] "=&r"(line) \
            : [stride] "r"(stride), [sums] "r"(sums), [step] "r"(ahead.step_bytes), [half] "i"(HALF_BYTES) \
            : "memory", "cc", "k1", ALL_ZMM); \
    }

using Loop = void (*)(const uint8_t* w, int64_t count, const uint8_t* x0, int64_t stride, float* sums,
                      const Ahead& ahead);

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

static_assert(half_record_bytes(FormatId::Q4_0) == 576 && half_record_bytes(FormatId::Q4_1) == 640);
static_assert(half_record_bytes(FormatId::Q6_K) == 640 && half_record_bytes(FormatId::Q2_K) == 768);

}  // namespace

void multiply_32(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                 float* sums, const Ahead& ahead) {
    loop_32_loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums, ahead);
}

void multiply_32_minimum(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                         int num_rows, float* sums, const Ahead& ahead) {
    loop_32_minimum_loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums, ahead);
}

void multiply_16(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                 float* sums, const Ahead& ahead) {
    loop_16_loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums, ahead);
}

void multiply_16_minimum(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes,
                         int num_rows, float* sums, const Ahead& ahead) {
    loop_16_minimum_loops[num_rows - 1](records, num_groups, prepared, row_bytes, sums, ahead);
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
