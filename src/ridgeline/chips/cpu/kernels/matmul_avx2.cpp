// The AVX2 instruction sets (with and without AVX-VNNI): their tables and plain formats.
#include "matmul_avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu_features.h"
#include "matmul_plain.h"
#include "scalar_numbers.h"

namespace ridgeline {

namespace avx2 {

namespace {

void unpack_f16(const uint8_t* pair, int64_t first_group, int64_t count, int64_t, uint8_t* records) {
    const uint8_t* source = pair + first_group * PAIR_TILES * 1024;
    for (int64_t i = 0; i < count * PAIR_TILES * 64; ++i) {
        const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i * 16));
        _mm256_store_ps(reinterpret_cast<float*>(records + i * 32), _mm256_cvtph_ps(eight));
    }
}

// Weights of eight outputs and their inputs: one of f32; two of bf16, which share 32 bits.
struct F32 {
    static constexpr int inputs = 1;
    static __m256 load(const uint8_t* weights, int) { return _mm256_load_ps(reinterpret_cast<const float*>(weights)); }
    static __m256 broadcast(const uint8_t* x, int64_t i, int) {
        return _mm256_broadcast_ss(reinterpret_cast<const float*>(x) + i);
    }
};
struct Bf16 {
    static constexpr int inputs = 2;
    static __m256 part(__m256i both, int index) {
        return _mm256_castsi256_ps(index == 0
                                       ? _mm256_slli_epi32(both, 16)
                                       : _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
    }
    static __m256 load(const uint8_t* weights, int index) {
        return part(_mm256_load_si256(reinterpret_cast<const __m256i*>(weights)), index);
    }
    static __m256 broadcast(const uint8_t* x, int64_t i, int index) {
        return part(_mm256_set1_epi32(reinterpret_cast<const int32_t*>(x)[i]), index);
    }
};

// What matmul_plain.h asks for.
template <typename Weights>
struct Tile {
    static constexpr int inputs = Weights::inputs;

    template <int rows>
    static void multiply(const uint8_t* weights, int64_t count, const uint8_t* x, int64_t row_bytes, float* sums) {
        __m256 low[rows], high[rows];
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            low[r] = _mm256_loadu_ps(sums + r * PAIR_ROWS);
            high[r] = _mm256_loadu_ps(sums + r * PAIR_ROWS + 8);
        }
        for (int64_t i = 0; i < count; ++i, weights += LINE_STRIDE) {
#pragma GCC unroll 2
            for (int index = 0; index < Weights::inputs; ++index) {
                const __m256 w_low = Weights::load(weights, index), w_high = Weights::load(weights + 32, index);
#pragma GCC unroll 6
                for (int r = 0; r < rows; ++r) {
                    const __m256 broadcast = Weights::broadcast(x + r * row_bytes, i, index);
                    low[r] = _mm256_fmadd_ps(w_low, broadcast, low[r]);
                    high[r] = _mm256_fmadd_ps(w_high, broadcast, high[r]);
                }
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            _mm256_storeu_ps(sums + r * PAIR_ROWS, low[r]);
            _mm256_storeu_ps(sums + r * PAIR_ROWS + 8, high[r]);
        }
    }
};

#define ALL_YMM \
    "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm14", "ymm15"

// Multiply, widen, add: what AVX2 has for four products of bytes.
double int8_loop(int64_t repeats) {
    int64_t count = repeats;
    asm volatile(
        ".p2align 6\n\t"
        "1:\n\t"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n\t"
        "vpmaddubsw %%ymm15, %%ymm14, %%ymm13\n\t"
        "vpaddw %%ymm13, %%ymm\\i, %%ymm\\i\n\t"
        ".endr\n\t"
        "dec %[count]\n\t"
        "jnz 1b\n\t"
        : [count] "+r"(count)
        :
        : "cc", "ymm13", ALL_YMM);
    return static_cast<double>(repeats) * 12 * 64;
}

double int8_vnni_loop(int64_t repeats) {
    int64_t count = repeats;
    asm volatile(
        ".p2align 6\n\t"
        "1:\n\t"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n\t"
        "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm\\i\n\t"
        ".endr\n\t"
        "dec %[count]\n\t"
        "jnz 1b\n\t"
        : [count] "+r"(count)
        :
        : "cc", ALL_YMM);
    return static_cast<double>(repeats) * 12 * 64;
}

double fp32_loop(int64_t repeats) {
    int64_t count = repeats;
    asm volatile(
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15\n\t"
        "vxorps %%ymm\\i, %%ymm\\i, %%ymm\\i\n\t"
        ".endr\n\t"
        ".p2align 6\n\t"
        "1:\n\t"
        ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n\t"
        "vfmadd231ps %%ymm15, %%ymm15, %%ymm\\i\n\t"
        ".endr\n\t"
        "dec %[count]\n\t"
        "jnz 1b\n\t"
        : [count] "+r"(count)
        :
        : "cc", ALL_YMM);
    return static_cast<double>(repeats) * 12 * 16;
}

uint64_t read_loop(const uint8_t* const* streams, size_t stream_bytes) {
    constexpr size_t ahead = 1024;
    __m256i sum = _mm256_setzero_si256();
    for (size_t offset = 0; offset < stream_bytes; offset += LINE_BYTES) {
#pragma GCC unroll 8
        for (int stream = 0; stream < NUM_READ_STREAMS; ++stream) {
            const auto* line = reinterpret_cast<const __m256i*>(streams[stream] + offset);
            _mm_prefetch(streams[stream] + offset + ahead, _MM_HINT_T0);
            sum = _mm256_add_epi64(sum, _mm256_add_epi64(_mm256_loadu_si256(line), _mm256_loadu_si256(line + 1)));
        }
    }
    alignas(32) uint64_t parts[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(parts), sum);
    return parts[0] + parts[1] + parts[2] + parts[3];
}

InstructionSet make_set(bool has_vnni) {
    InstructionSet set{};
    set.name = set.description = has_vnni ? "avx2-vnni" : "avx2";
    for (int i = 0; i < NUM_FORMAT_SLOTS; ++i) {
        const auto format = static_cast<FormatId>(i);
        set.formats[i] = has_vnni ? kernels_with_vnni(format) : kernels_with_pairs(format);
    }
    set.formats[static_cast<int>(FormatId::F32)] = {nullptr, multiply_plain<Tile<F32>>};
    set.formats[static_cast<int>(FormatId::F16)] = {unpack_f16, multiply_plain<Tile<F32>>};
    set.formats[static_cast<int>(FormatId::BF16)] = {nullptr, multiply_plain<Tile<Bf16>>};
    set.prepare_int8 = prepare_int8;
    set.int8_loop = has_vnni ? int8_vnni_loop : int8_loop;
    set.bf16_loop = fp32_loop;
    set.fp32_loop = fp32_loop;
    set.read_loop = read_loop;
    return set;
}

}  // namespace

}  // namespace avx2

const InstructionSet* avx2_instruction_set() {
    if (!cpu_features().avx2) return nullptr;
    static const InstructionSet set = avx2::make_set(false);
    return &set;
}

const InstructionSet* avx2_vnni_instruction_set() {
    if (!cpu_features().avx_vnni) return nullptr;
    static const InstructionSet set = avx2::make_set(true);
    return &set;
}

}  // namespace ridgeline

#else

namespace ridgeline {

const InstructionSet* avx2_instruction_set() { return nullptr; }
const InstructionSet* avx2_vnni_instruction_set() { return nullptr; }

}  // namespace ridgeline

#endif
