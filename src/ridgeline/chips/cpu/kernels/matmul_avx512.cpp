// The AVX-512 instruction set: its table, its plain formats and its preparation of activations.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "cpu_features.h"
#include "scalar_numbers.h"

namespace ridgeline {

namespace avx512 {

namespace {

__m512 load_halves(const uint8_t* source) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}

void unpack_f16(const uint8_t* pair, int64_t first_group, int64_t count, int64_t, uint8_t* records) {
    const uint8_t* source = pair + first_group * PAIR_TILES * 1024;
    for (int64_t i = 0; i < count * PAIR_TILES * GROUP_VALUES; ++i) {
        _mm512_store_ps(records + i * LINE_BYTES, load_halves(source + i * LINE_BYTES / 2));
    }
}

// 16 weights of one input: of f32 from records, of f16 from the packed pair.
struct F32Weights {
    static constexpr int64_t line_bytes = LINE_BYTES;
    static __m512 load(const uint8_t* source) { return _mm512_load_ps(source); }
};
struct F16Weights {
    static constexpr int64_t line_bytes = LINE_BYTES / 2;
    static __m512 load(const uint8_t* source) { return load_halves(source); }
};

template <int rows, typename Weights>
void multiply_f32_rows(const uint8_t* weights, int64_t count, const uint8_t* x, int64_t row_bytes, float* sums,
                       const Ahead& ahead) {
    constexpr int64_t step = PAIR_TILES * Weights::line_bytes;
    __m512 sums0[rows], sums1[rows];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        sums0[r] = _mm512_loadu_ps(sums + r * PAIR_ROWS);
        sums1[r] = _mm512_loadu_ps(sums + r * PAIR_ROWS + TILE_ROWS);
    }
    for (int64_t i = 0; i < count; ++i, weights += step) {
        for (int64_t line = 0; line < step; line += LINE_BYTES) {
            _mm_prefetch(ahead.next + i * step + line, _MM_HINT_T0);
        }
        const __m512 w0 = Weights::load(weights), w1 = Weights::load(weights + Weights::line_bytes);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            const __m512 broadcast = _mm512_set1_ps(reinterpret_cast<const float*>(x + r * row_bytes)[i]);
            sums0[r] = _mm512_fmadd_ps(w0, broadcast, sums0[r]);
            sums1[r] = _mm512_fmadd_ps(w1, broadcast, sums1[r]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        _mm512_storeu_ps(sums + r * PAIR_ROWS, sums0[r]);
        _mm512_storeu_ps(sums + r * PAIR_ROWS + TILE_ROWS, sums1[r]);
    }
}

template <typename Weights>
void multiply_f32(const uint8_t* weights, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                  float* sums, const Ahead& ahead) {
    const int64_t count = num_groups * GROUP_VALUES;
    switch (num_rows) {
        case 1:
            return multiply_f32_rows<1, Weights>(weights, count, prepared, row_bytes, sums, ahead);
        case 2:
            return multiply_f32_rows<2, Weights>(weights, count, prepared, row_bytes, sums, ahead);
        case 3:
            return multiply_f32_rows<3, Weights>(weights, count, prepared, row_bytes, sums, ahead);
        case 4:
            return multiply_f32_rows<4, Weights>(weights, count, prepared, row_bytes, sums, ahead);
        case 5:
            return multiply_f32_rows<5, Weights>(weights, count, prepared, row_bytes, sums, ahead);
        default:
            return multiply_f32_rows<6, Weights>(weights, count, prepared, row_bytes, sums, ahead);
    }
}

void multiply_f16_direct(const uint8_t* groups, uint8_t*, int64_t num_groups, const uint8_t* prepared,
                         int64_t row_bytes, int num_rows, float* sums, const Ahead& ahead) {
    multiply_f32<F16Weights>(groups, num_groups, prepared, row_bytes, num_rows, sums, ahead);
}

// The largest of every four neighbours, in all four places.
__m512i largest_of_lines(__m512i magnitudes) {
    const __m512i pairs = _mm512_max_epu32(magnitudes, _mm512_shuffle_epi32(magnitudes, _MM_PERM_BADC));
    return _mm512_max_epu32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_CDAB));
}

uint32_t largest_of(__m256i eight) {
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1))));
}

// Codes of 16 values; where `extended` is set they have 16 bits.
__m512i codes_of(__m512 values, float inverse, __mmask16 extended) {
    const __m512 limit = _mm512_mask_mov_ps(_mm512_set1_ps(CODE_LIMIT), extended, _mm512_set1_ps(EXTENDED_LIMIT));
    const __m512 least = _mm512_sub_ps(_mm512_setzero_ps(), limit);
    // Not a number: the maximum is its second operand; the scale carries it.
    const __m512 scaled = _mm512_max_ps(_mm512_mul_ps(values, _mm512_set1_ps(inverse)), least);
    return _mm512_cvtps_epi32(_mm512_min_ps(scaled, limit));
}

__m512i high_part(__m512i codes, __mmask16 extended) {
    return _mm512_maskz_srai_epi32(extended, _mm512_add_epi32(codes, _mm512_set1_epi32(EXTENSION / 2)), 7);
}

// The largest of every line, lines in order.
__m256i lines_of(__m512i low, __m512i high) {
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_castsi512_si256(_mm512_permutex2var_epi32(largest_of_lines(low), firsts, largest_of_lines(high)));
}

// Of eight lines the first that is the largest.
int first_largest(__m256i lines, uint32_t largest) {
    return __builtin_ctz(_mm256_cmpeq_epi32_mask(lines, _mm256_set1_epi32(static_cast<int>(largest))));
}

void prepare_int8(const float* x, int64_t width, uint8_t* prepared) {
    auto* group = reinterpret_cast<ActivationGroup*>(prepared);
    const __m512i magnitude_bits = _mm512_set1_epi32(0x7fffffff);
    for (int64_t begin = 0; begin < width; begin += GROUP_VALUES, ++group, x += GROUP_VALUES) {
        const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
        const __m512i low_magnitudes = _mm512_and_si512(_mm512_castps_si512(low), magnitude_bits);
        const __m512i high_magnitudes = _mm512_and_si512(_mm512_castps_si512(high), magnitude_bits);
        const auto magnitudes_of = [&](int line) {
            const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + LINE_VALUES * line));
            return _mm_and_si128(values, _mm_set1_epi32(0x7fffffff));
        };
        // The line of the largest magnitude, and that of the largest in other columns.
        const __m256i lines = lines_of(low_magnitudes, high_magnitudes);
        const uint32_t largest = largest_of(lines);
        const int first = first_largest(lines, largest);
        const __m128i in_first = magnitudes_of(first);
        const uint32_t is_largest = _mm_cmpeq_epi32_mask(in_first, _mm_set1_epi32(static_cast<int>(largest)));
        const auto others = static_cast<__mmask16>(~(0x1111u * (is_largest & -is_largest)));
        const __m256i other_lines = _mm256_maskz_mov_epi32(
            static_cast<__mmask8>(~(1u << first)),
            lines_of(_mm512_maskz_mov_epi32(others, low_magnitudes), _mm512_maskz_mov_epi32(others, high_magnitudes)));
        uint32_t second_bits =
            _mm256_cmpeq_epi32_mask(other_lines, _mm256_set1_epi32(static_cast<int>(largest_of(other_lines))));
        second_bits &= ~(1u << first);
        const int second = __builtin_ctz(second_bits);
        // One bit for each value: the larger of the two in every column.
        const uint32_t from_second = _mm_cmpgt_epu32_mask(magnitudes_of(second), in_first);
        const uint32_t extended = (~from_second & 15u) << (LINE_VALUES * first) | from_second << (LINE_VALUES * second);
        const auto low_extended = static_cast<__mmask16>(extended),
                   high_extended = static_cast<__mmask16>(extended >> 16);
        const uint32_t rest = _mm512_reduce_max_epu32(
            _mm512_max_epu32(_mm512_maskz_mov_epi32(static_cast<__mmask16>(~low_extended), low_magnitudes),
                             _mm512_maskz_mov_epi32(static_cast<__mmask16>(~high_extended), high_magnitudes)));
        const GroupScale scale = group_scale(bits_to_float(largest), bits_to_float(rest));
        const __m512i low_codes = codes_of(low, scale.inverse, low_extended);
        const __m512i high_codes = codes_of(high, scale.inverse, high_extended);
        const __m512i low_high = high_part(low_codes, low_extended), high_high = high_part(high_codes, high_extended);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(group->codes),
                         _mm512_cvtepi32_epi8(_mm512_sub_epi32(low_codes, _mm512_slli_epi32(low_high, 7))));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(group->codes + 16),
                         _mm512_cvtepi32_epi8(_mm512_sub_epi32(high_codes, _mm512_slli_epi32(high_high, 7))));
        alignas(16) int8_t parts[GROUP_VALUES];
        _mm_store_si128(reinterpret_cast<__m128i*>(parts), _mm512_cvtepi32_epi8(low_high));
        _mm_store_si128(reinterpret_cast<__m128i*>(parts + 16), _mm512_cvtepi32_epi8(high_high));
        const int both[2] = {first, second};
        for (int i = 0; i < 2; ++i) {
            std::memcpy(group->high[i], parts + LINE_VALUES * both[i], LINE_VALUES);
            group->line_offset[i] = static_cast<uint16_t>(LINE_BYTES * both[i]);
            group->in_first[i] = both[i] < GROUP_LINES / 2 ? 0xffff : 0;
        }
        const int32_t sum_first = _mm512_reduce_add_epi32(low_codes);
        const int32_t sum = sum_first + _mm512_reduce_add_epi32(high_codes);
        group->scale = scale.scale;
        group->minus_sum = -sum;
        group->scaled_sum = group->scale * static_cast<float>(sum);
        group->minus_sum_first = -sum_first;
    }
}

double fp32_loop(int64_t repeats) {
    int64_t count = repeats;
    asm volatile(
        "vpxord %%zmm30, %%zmm30, %%zmm30\n\t"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19\n\t"
        "vpxord %%zmm\\i, %%zmm\\i, %%zmm\\i\n\t"
        ".endr\n\t"
        ".p2align 6\n\t"
        "1:\n\t"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19\n\t"
        "vfmadd231ps %%zmm30, %%zmm30, %%zmm\\i\n\t"
        ".endr\n\t"
        "dec %[count]\n\t"
        "jnz 1b\n\t"
        : [count] "+r"(count)
        :
        : "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11",
          "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm30");
    return static_cast<double>(repeats) * 20 * 32;
}

uint64_t read_loop(const uint8_t* const* streams, size_t stream_bytes) {
    constexpr size_t ahead = 1024;
    __m512i sum = _mm512_setzero_si512();
    for (size_t offset = 0; offset < stream_bytes; offset += LINE_BYTES) {
#pragma GCC unroll 8
        for (int stream = 0; stream < NUM_READ_STREAMS; ++stream) {
            _mm_prefetch(streams[stream] + offset + ahead, _MM_HINT_T0);
            sum = _mm512_add_epi64(sum, _mm512_loadu_si512(streams[stream] + offset));
        }
    }
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
}

MultiplyFunction multiply_function(FormatId format) {
    const TileLayout layout = tile_layout(format);
    if (layout.scales_per_group == 1) return layout.has_minimum ? multiply_32_minimum : multiply_32;
    return layout.has_minimum ? multiply_16_minimum : multiply_16;
}

InstructionSet make_set(bool has_bf16) {
    InstructionSet set{};
    set.name = "avx512";
    set.description = has_bf16 ? "avx512-vnni-bf16" : "avx512-vnni";
    for (int i = 0; i < NUM_FORMAT_SLOTS; ++i) {
        const auto format = static_cast<FormatId>(i);
        FormatKernels& kernels = set.formats[i];
        kernels = unpackers(format);
        if (kernels.unpack == nullptr) continue;
        kernels.multiply = multiply_function(format);
        kernels.multiply_direct = direct_function(format);
        kernels.multiply_quad = quad_function(format);
        // Measured: nibbles and bytes cost next to nothing to take apart.
        const bool is_cheap = tile_layout(format).code_bits == 4 || format == FormatId::Q8_0;
        if (is_cheap) kernels.max_direct_rows = 40;
    }
    set.formats[static_cast<int>(FormatId::F32)] = {nullptr, multiply_f32<F32Weights>};
    set.formats[static_cast<int>(FormatId::F16)] = {unpack_f16, multiply_f32<F32Weights>, nullptr, multiply_f16_direct};
    if (has_bf16) set.formats[static_cast<int>(FormatId::BF16)] = {nullptr, multiply_bf16};
    set.prepare_int8 = prepare_int8;
    set.int8_loop = int8_loop;
    set.bf16_loop = has_bf16 ? bf16_loop : fp32_loop;
    set.fp32_loop = fp32_loop;
    set.read_loop = read_loop;
    return set;
}

}  // namespace

}  // namespace avx512

const InstructionSet* avx512_instruction_set() {
    if (!cpu_features().avx512_vnni) return nullptr;
    static const InstructionSet set = [] {
        InstructionSet made = avx512::make_set(cpu_features().avx512_bf16);
        FormatKernels& bf16 = made.formats[static_cast<int>(FormatId::BF16)];
        if (bf16.multiply == nullptr) {
            const InstructionSet* wider = avx2_instruction_set();
            bf16 = (wider != nullptr ? *wider : portable_instruction_set()).formats[static_cast<int>(FormatId::BF16)];
        }
        return made;
    }();
    return &set;
}

}  // namespace ridgeline

#else

namespace ridgeline {

const InstructionSet* avx512_instruction_set() { return nullptr; }

}  // namespace ridgeline

#endif
