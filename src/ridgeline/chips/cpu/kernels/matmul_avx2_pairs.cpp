// Int8 products with vpmaddubsw, which adds two products in 16 bits.
//
// As many of its results are added there as fit before they are widened: all eight code lines of a group for codes of
// 4 bits (8 * 2 * 15 * 127 < 2^15), four for 5 bits, two for 6. For signed codes of 8 bits the factors are exchanged:
// |code| times the activation with the code's sign. Activations are never -128.
#include "matmul_avx2.h"

#if defined(__x86_64__)

#include "matmul_avx2_int8.h"

namespace ridgeline::avx2 {

namespace {

constexpr int lines_in_16_bits(int code_bits) {
    return code_bits <= 4 ? 8 : code_bits == 5 ? 4 : code_bits == 6 ? 2 : 1;
}
static_assert(lines_in_16_bits(4) * 2 * 15 * CODE_LIMIT < 1 << 15 &&
              lines_in_16_bits(5) * 2 * 31 * CODE_LIMIT < 1 << 15);
static_assert(lines_in_16_bits(6) * 2 * 63 * CODE_LIMIT < 1 << 15 && 2 * 128 * CODE_LIMIT < 1 << 15);

// Keeps the compiler from making a tree of a chain of sums, for which there are no registers.
[[gnu::always_inline]] inline void keep_order(__m256i& sum) { asm("" : "+x"(sum)); }

struct Pairs {
    using Lines = Simd<false, true>;
    static constexpr bool extended_first = false;
    // Where lines are widened on the way, pairs and dots share the registers.
    template <Traits t>
    static constexpr int max_rows = lines_in_16_bits(t.code_bits) >= GROUP_LINES / t.num_scales ? 6 : 3;

    template <Traits t>
    [[gnu::always_inline]] static __m256i multiplied(__m256i codes, __m256i x) {
        if constexpr (t.code_bits < 8) return _mm256_maddubs_epi16(codes, x);
        return _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
    }

    template <Traits t>
    struct Sum {
        __m256i pairs, dot;
        template <int line>
        [[gnu::always_inline]] void add(__m256i codes, __m256i x) {
            constexpr int num_lines = GROUP_LINES / t.num_scales, fit = lines_in_16_bits(t.code_bits);
            const __m256i products = multiplied<t>(codes, x);
            pairs = line % fit == 0 ? products : _mm256_add_epi16(pairs, products);
            if constexpr (fit >= num_lines) keep_order(pairs);
            if constexpr (line % fit == fit - 1 || line == num_lines - 1) {
                const __m256i widened = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                dot = line < fit ? widened : _mm256_add_epi32(dot, widened);
            }
        }
        [[gnu::always_inline]] __m256i total() const { return dot; }
    };

    template <Traits t>
    [[gnu::always_inline]] static __m256i begin(__m256i minus_sum) {
        return t.zero == 0 ? _mm256_setzero_si256() : _mm256_slli_epi32(minus_sum, log2_of(t.zero));
    }
    [[gnu::always_inline]] static __m256i whole(__m256i product) { return product; }
    template <Traits t>
    [[gnu::always_inline]] static __m256i product(__m256i codes, __m256i x) {
        return _mm256_madd_epi16(multiplied<t>(codes, x), _mm256_set1_epi16(EXTENSION));
    }
    template <Traits t>
    [[gnu::always_inline]] static __m256i extended(__m256i begin, __m256i w0, __m256i x0, __m256i w1, __m256i x1) {
        // In every column one of the two is zero: their sum fits where one of them does.
        const __m256i pairs = _mm256_add_epi16(multiplied<t>(w0, x0), multiplied<t>(w1, x1));
        const __m256i dot = _mm256_madd_epi16(pairs, _mm256_set1_epi16(EXTENSION));
        return t.zero == 0 ? dot : _mm256_add_epi32(dot, begin);
    }
};

}  // namespace

FormatKernels kernels_with_pairs(FormatId format) { return kernels_of<Pairs>(format); }

}  // namespace ridgeline::avx2

#endif
