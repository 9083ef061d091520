// Products of bf16 weights and activations. Needs AVX512_BF16.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

namespace ridgeline::avx512 {

namespace {

// Weights of two inputs, from records or from the packed tiles.
struct Records {
    const uint8_t* lines;
    __m512bh load(int tile, int64_t i) const {
        return reinterpret_cast<__m512bh>(_mm512_load_si512(lines + (2 * i + tile) * LINE_BYTES));
    }
    void ask_ahead(int64_t) const {}
};
struct Packed {
    const PackedRun& run;
    __m512bh load(int tile, int64_t i) const {
        return reinterpret_cast<__m512bh>(_mm512_loadu_si512(run.groups[tile] + i * LINE_BYTES));
    }
    void ask_ahead(int64_t i) const {
        _mm_prefetch(run.ahead + i * LINE_BYTES, _MM_HINT_T0);
        _mm_prefetch(run.ahead + (run.groups[1] - run.groups[0]) + i * LINE_BYTES, _MM_HINT_T0);
    }
};

template <int rows, typename Weights>
void multiply_rows(const Weights weights, int64_t num_pairs, const uint8_t* x, int64_t row_bytes, float* sums) {
    __m512 sums0[rows], sums1[rows];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        sums0[r] = _mm512_loadu_ps(sums + r * PAIR_ROWS);
        sums1[r] = _mm512_loadu_ps(sums + r * PAIR_ROWS + TILE_ROWS);
    }
    for (int64_t i = 0; i < num_pairs; ++i) {
        weights.ask_ahead(i);
        const auto w0 = weights.load(0, i), w1 = weights.load(1, i);
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
                   float* sums, const Ahead&) {
    const int64_t num_pairs = num_groups * GROUP_VALUES / 2;
    const Records weights{records};
    switch (num_rows) {
        case 1: return multiply_rows<1>(weights, num_pairs, prepared, row_bytes, sums);
        case 2: return multiply_rows<2>(weights, num_pairs, prepared, row_bytes, sums);
        case 3: return multiply_rows<3>(weights, num_pairs, prepared, row_bytes, sums);
        case 4: return multiply_rows<4>(weights, num_pairs, prepared, row_bytes, sums);
        case 5: return multiply_rows<5>(weights, num_pairs, prepared, row_bytes, sums);
        default: return multiply_rows<6>(weights, num_pairs, prepared, row_bytes, sums);
    }
}

void multiply_bf16_direct(const PackedRun& run, const uint8_t* prepared, int64_t row_bytes, int num_rows, float* sums) {
    const int64_t num_pairs = run.num_groups * GROUP_VALUES / 2;
    const Packed weights{run};
    switch (num_rows) {
        case 1: return multiply_rows<1>(weights, num_pairs, prepared, row_bytes, sums);
        case 2: return multiply_rows<2>(weights, num_pairs, prepared, row_bytes, sums);
        case 3: return multiply_rows<3>(weights, num_pairs, prepared, row_bytes, sums);
        default: return multiply_rows<4>(weights, num_pairs, prepared, row_bytes, sums);
    }
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
