// Int8 products with vpdpbusd on 256 bits (AVX-VNNI).
#include "matmul_avx2.h"

#if defined(__x86_64__)

#include "matmul_avx2_int8.h"

namespace ridgeline::avx2 {

namespace {

// As assembly, since the compiler may not be told to use the instruction here, and spills around the intrinsic.
[[gnu::always_inline]] inline __m256i add_dot(__m256i sum, __m256i codes, __m256i x) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(x));
    return sum;
}

struct Vnni {
    using Lines = Simd<true, false>;
    static constexpr bool extended_first = true;
    template <Traits t>
    static constexpr int max_rows = MAX_ROWS_PER_CALL;

    template <Traits t>
    struct Sum {
        __m256i dot = _mm256_setzero_si256();
        [[gnu::always_inline]] void begin(__m256i first) { dot = first; }
        template <int line>
        [[gnu::always_inline]] void add(__m256i codes, __m256i x) {
            dot = add_dot(dot, codes, x);
        }
        [[gnu::always_inline]] __m256i total() const { return dot; }
    };

    // Codes are around 128, and the products of extended lines are taken 128 times.
    template <Traits t>
    [[gnu::always_inline]] static __m256i begin(__m256i minus_sum) {
        static_assert(t.zero == 0 || t.zero == EXTENSION);
        return t.zero == 0 ? _mm256_setzero_si256() : minus_sum;
    }
    [[gnu::always_inline]] static __m256i whole(__m256i product) {
        return _mm256_slli_epi32(product, log2_of(EXTENSION));
    }
    template <Traits t>
    [[gnu::always_inline]] static __m256i product(__m256i codes, __m256i x) {
        return add_dot(_mm256_setzero_si256(), codes, x);
    }
    template <Traits t>
    [[gnu::always_inline]] static __m256i extended(__m256i begin, __m256i w0, __m256i x0, __m256i w1, __m256i x1) {
        return whole(add_dot(add_dot(begin, w0, x0), w1, x1));
    }
};

}  // namespace

FormatKernels kernels_with_vnni(FormatId format) { return kernels_of<Vnni>(format); }

}  // namespace ridgeline::avx2

#endif
