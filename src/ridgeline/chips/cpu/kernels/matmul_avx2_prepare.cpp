// Prepared int8 activations with AVX2: the definition is in matmul_portable.cpp.
#include "matmul_avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "scalar_numbers.h"

namespace ridgeline::avx2 {

namespace {

constexpr int NUM_VECTORS = GROUP_VALUES / 8;  // of a group

int32_t sum_of(__m256i eight) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// The largest of numbers below 2^31, in all places.
__m256i largest_of(const __m256i values[NUM_VECTORS]) {
    __m256i most = _mm256_max_epi32(_mm256_max_epi32(values[0], values[1]), _mm256_max_epi32(values[2], values[3]));
    most = _mm256_max_epi32(most, _mm256_permute2x128_si256(most, most, 1));
    most = _mm256_max_epi32(most, _mm256_shuffle_epi32(most, 0x4e));
    return _mm256_max_epi32(most, _mm256_shuffle_epi32(most, 0xb1));
}

// One bit for each value that is equal.
uint32_t places_of(__m256i wanted, const __m256i values[NUM_VECTORS]) {
    uint32_t places = 0;
    for (int i = 0; i < NUM_VECTORS; ++i) {
        const __m256 equal = _mm256_castsi256_ps(_mm256_cmpeq_epi32(values[i], wanted));
        places |= static_cast<uint32_t>(_mm256_movemask_ps(equal)) << (8 * i);
    }
    return places;
}

// All bits of the values of vector i whose bit is set.
__m256i chosen(uint32_t places, int i) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(places >> (8 * i))), bits), bits);
}

void without(uint32_t places, const __m256i values[NUM_VECTORS], __m256i rest[NUM_VECTORS]) {
    for (int i = 0; i < NUM_VECTORS; ++i) rest[i] = _mm256_andnot_si256(chosen(places, i), values[i]);
}

float float_of(__m256i bits) { return bits_to_float(static_cast<uint32_t>(_mm256_cvtsi256_si32(bits))); }

// Which values are extended: one bit for each; and the two lines that have them.
uint32_t find_extended(const __m256i magnitudes[NUM_VECTORS], __m256i largest, int lines[2]) {
    const int first = __builtin_ctz(places_of(largest, magnitudes));
    lines[0] = first / LINE_VALUES;
    const uint32_t left_out = 0x11111111u << (first % LINE_VALUES) | 15u << (LINE_VALUES * lines[0]);
    __m256i others[NUM_VECTORS];
    without(left_out, magnitudes, others);
    lines[1] = __builtin_ctz(places_of(largest_of(others), others) & ~left_out) / LINE_VALUES;
    alignas(32) int32_t all[GROUP_VALUES];
    for (int i = 0; i < NUM_VECTORS; ++i) _mm256_store_si256(reinterpret_cast<__m256i*>(all) + i, magnitudes[i]);
    const auto line = [&](int number) {
        return _mm_load_si128(reinterpret_cast<const __m128i*>(all + LINE_VALUES * number));
    };
    const __m128 is_larger = _mm_castsi128_ps(_mm_cmpgt_epi32(line(lines[1]), line(lines[0])));
    const auto from_second = static_cast<uint32_t>(_mm_movemask_ps(is_larger));
    return (~from_second & 15u) << (LINE_VALUES * lines[0]) | from_second << (LINE_VALUES * lines[1]);
}

// 32 numbers of 8 bits, from four times 8 of 32. Packing works on halves of the registers: afterwards words of four
// bytes are out of order.
__m256i packed_bytes_of(const __m256i codes[NUM_VECTORS]) {
    const __m256i mixed =
        _mm256_packs_epi16(_mm256_packs_epi32(codes[0], codes[1]), _mm256_packs_epi32(codes[2], codes[3]));
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

}  // namespace

void prepare_int8(const float* x, int64_t width, uint8_t* prepared) {
    auto* group = reinterpret_cast<ActivationGroup*>(prepared);
    for (int64_t begin = 0; begin < width; begin += GROUP_VALUES, ++group, x += GROUP_VALUES) {
        // Magnitudes are compared as integers, so that a NaN wins and reaches the scale.
        __m256 values[NUM_VECTORS];
        __m256i magnitudes[NUM_VECTORS], rest[NUM_VECTORS];
        for (int i = 0; i < NUM_VECTORS; ++i) {
            values[i] = _mm256_loadu_ps(x + 8 * i);
            magnitudes[i] = _mm256_and_si256(_mm256_castps_si256(values[i]), _mm256_set1_epi32(0x7fffffff));
        }
        const __m256i largest = largest_of(magnitudes);
        int lines[2];
        const uint32_t extended = find_extended(magnitudes, largest, lines);
        without(extended, magnitudes, rest);
        const GroupScale scale = group_scale(float_of(largest), float_of(largest_of(rest)));
        __m256i codes[NUM_VECTORS], parts[NUM_VECTORS], sums[NUM_VECTORS];
        for (int i = 0; i < NUM_VECTORS; ++i) {
            const __m256i is_extended = chosen(extended, i);
            const __m256 limit = _mm256_blendv_ps(_mm256_set1_ps(CODE_LIMIT), _mm256_set1_ps(EXTENDED_LIMIT),
                                                  _mm256_castsi256_ps(is_extended));
            // Not a number: the maximum is its second operand; the scale carries it.
            const __m256 scaled = _mm256_max_ps(_mm256_mul_ps(values[i], _mm256_set1_ps(scale.inverse)),
                                                _mm256_sub_ps(_mm256_setzero_ps(), limit));
            sums[i] = _mm256_cvtps_epi32(_mm256_min_ps(scaled, limit));
            const __m256i high = _mm256_srai_epi32(_mm256_add_epi32(sums[i], _mm256_set1_epi32(EXTENSION / 2)), 7);
            parts[i] = _mm256_and_si256(is_extended, high);
            codes[i] = _mm256_sub_epi32(sums[i], _mm256_slli_epi32(parts[i], 7));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(group->codes), packed_bytes_of(codes));
        alignas(32) int8_t high_parts[GROUP_VALUES];
        _mm256_store_si256(reinterpret_cast<__m256i*>(high_parts), packed_bytes_of(parts));
        for (int i = 0; i < 2; ++i) {
            std::memcpy(group->high[i], high_parts + LINE_VALUES * lines[i], LINE_VALUES);
            group->line_offset[i] = static_cast<uint16_t>(LINE_BYTES * lines[i]);
            group->in_first[i] = lines[i] < GROUP_LINES / 2 ? 0xffff : 0;
        }
        const int32_t sum_first = sum_of(_mm256_add_epi32(sums[0], sums[1]));
        const int32_t sum = sum_first + sum_of(_mm256_add_epi32(sums[2], sums[3]));
        group->scale = scale.scale;
        group->minus_sum = -sum;
        group->scaled_sum = group->scale * static_cast<float>(sum);
        group->minus_sum_first = -sum_first;
    }
}

}  // namespace ridgeline::avx2

#endif
