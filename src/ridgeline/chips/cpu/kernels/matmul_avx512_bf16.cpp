// Products of bf16 weights and activations. Needs AVX512_BF16.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "as_constants.h"

namespace ridgeline::avx512 {

namespace {

template <int rows>
void multiply_rows(const uint8_t* records, int64_t num_pairs, const uint8_t* x, int64_t row_bytes, float* sums,
                   const Ahead& ahead) {
    __m512 sums0[rows], sums1[rows];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        sums0[r] = _mm512_loadu_ps(sums + r * PAIR_ROWS);
        sums1[r] = _mm512_loadu_ps(sums + r * PAIR_ROWS + TILE_ROWS);
    }
    for (int64_t i = 0; i < num_pairs; ++i, records += 2 * LINE_BYTES) {
        _mm_prefetch(ahead.next + 2 * LINE_BYTES * i, _MM_HINT_T0);
        _mm_prefetch(ahead.next + 2 * LINE_BYTES * i + LINE_BYTES, _MM_HINT_T0);
        const auto w0 = reinterpret_cast<__m512bh>(_mm512_load_si512(records));
        const auto w1 = reinterpret_cast<__m512bh>(_mm512_load_si512(records + LINE_BYTES));
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            int32_t pair;
            std::memcpy(&pair, x + r * row_bytes + 4 * i, sizeof pair);
            const auto broadcast = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            sums0[r] = _mm512_dpbf16_ps(sums0[r], w0, broadcast);
            sums1[r] = _mm512_dpbf16_ps(sums1[r], w1, broadcast);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        _mm512_storeu_ps(sums + r * PAIR_ROWS, sums0[r]);
        _mm512_storeu_ps(sums + r * PAIR_ROWS + TILE_ROWS, sums1[r]);
    }
}

}  // namespace

void multiply_bf16(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                   float* sums, const Ahead& ahead) {
    const int64_t num_pairs = num_groups * GROUP_VALUES / 2;
    with_constant<MAX_ROWS_PER_CALL>(
        num_rows, [&](auto rows) { multiply_rows<rows>(records, num_pairs, prepared, row_bytes, sums, ahead); });
}

double bf16_loop(int64_t repeats) {
    int64_t count = repeats;
    asm volatile(
        "vpxord %%zmm30, %%zmm30, %%zmm30\n\t"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19\n\t"
        "vpxord %%zmm\\i, %%zmm\\i, %%zmm\\i\n\t"
        ".endr\n\t"
        ".p2align 6\n\t"
        "1:\n\t"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19\n\t"
        "vdpbf16ps %%zmm30, %%zmm30, %%zmm\\i\n\t"
        ".endr\n\t"
        "dec %[count]\n\t"
        "jnz 1b\n\t"
        : [count] "+r"(count)
        :
        : "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11",
          "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm30");
    return static_cast<double>(repeats) * 20 * 64;
}

}  // namespace ridgeline::avx512

#endif
