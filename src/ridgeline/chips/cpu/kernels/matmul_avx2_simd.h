// What record_text.h asks of AVX2. Lines are taken by halves: 8 rows.
#pragma once

#include <immintrin.h>

#include "record_text.h"

namespace ridgeline::avx2 {

// `signs`: whether codes around 128 are made signed.
template <bool fills, bool signs>
struct Simd {
    static constexpr bool fills_bytes = fills;
    using Line = __m256i;
    using Sixteen = __m128i;

    static Line load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Sixteen load_sixteen(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

    static Line masked(Line line, int mask) { return _mm256_and_si256(line, bytes(mask)); }
    static Sixteen masked(Sixteen values, int mask) {
        return _mm_and_si128(values, _mm_set1_epi8(static_cast<char>(mask)));
    }
    static Line either(Line a, Line b) { return _mm256_or_si256(a, b); }
    static Sixteen either(Sixteen a, Sixteen b) { return _mm_or_si128(a, b); }
    template <int shift>
    static Line shifted_up(Line line) {
        return _mm256_slli_epi16(line, shift);
    }
    template <int shift>
    static Line shifted_down(Line line) {
        return _mm256_srli_epi16(line, shift);
    }
    template <int shift>
    static Sixteen shifted_up(Sixteen values) {
        return _mm_slli_epi16(values, shift);
    }
    template <int shift>
    static Sixteen shifted_down(Sixteen values) {
        return _mm_srli_epi16(values, shift);
    }
    static Sixteen shifted_down_by(Sixteen values, int shift) {
        return _mm_srl_epi16(values, _mm_cvtsi32_si128(shift));
    }
    static Sixteen minus(Sixteen values, int value) {
        return _mm_sub_epi8(values, _mm_set1_epi8(static_cast<char>(value)));
    }
    static Line looked_up(const uint8_t book[16], Line indices) {
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_sixteen(book)), indices);
    }
    template <FormatId format>
    static Line recorded(Line line) {
        return signs && tile_layout(format).zero == 128 ? _mm256_xor_si256(line, bytes(0x80)) : line;
    }
    static void store(uint8_t* target, Line line) { _mm256_store_si256(reinterpret_cast<__m256i*>(target), line); }

    static void store_products(uint8_t* target, const uint8_t* halves, float factor, Sixteen signed_bytes) {
        auto* to = reinterpret_cast<float*>(target);
        for (int i = 0; i < 2; ++i) {
            const __m128i eight = i == 0 ? signed_bytes : _mm_srli_si128(signed_bytes, 8);
            const __m256 scale = _mm256_mul_ps(_mm256_cvtph_ps(load_sixteen(halves + 16 * i)), _mm256_set1_ps(factor));
            _mm256_store_ps(to + 8 * i, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight))));
        }
    }
    static void store_halves(uint8_t* target, const uint8_t* halves, float factor) {
        auto* to = reinterpret_cast<float*>(target);
        for (int i = 0; i < 2; ++i) {
            const __m256 scales = _mm256_cvtph_ps(load_sixteen(halves + 16 * i));
            _mm256_store_ps(to + 8 * i, _mm256_mul_ps(scales, _mm256_set1_ps(factor)));
        }
    }
    // Half of 2^(e - 127) is e - 1 in the place of a float's exponent; 0 and 1 give subnormal numbers.
    static void store_powers(uint8_t* target, const uint8_t* exponents, float factor) {
        auto* to = reinterpret_cast<float*>(target);
        for (int i = 0; i < 2; ++i) {
            const __m256i e =
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(exponents + 8 * i)));
            const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
            const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
            const __m256i is_normal = _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1));
            const __m256 powers = _mm256_castsi256_ps(_mm256_blendv_epi8(subnormal, normal, is_normal));
            _mm256_store_ps(to + 8 * i, _mm256_mul_ps(powers, _mm256_set1_ps(factor)));
        }
    }

  private:
    static __m256i bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
};

}  // namespace ridgeline::avx2
