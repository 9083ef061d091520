// The AVX-512 instruction set: its table and its plain formats.
#include "matmul_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "as_constants.h"
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
    with_constant<MAX_ROWS_PER_CALL>(num_rows, [&](auto rows) {
        multiply_f32_rows<rows, Weights>(weights, count, prepared, row_bytes, sums, ahead);
    });
}

void multiply_f16_direct(const uint8_t* groups, uint8_t*, int64_t num_groups, const uint8_t* prepared,
                         int64_t row_bytes, int num_rows, float* sums, const Ahead& ahead) {
    multiply_f32<F16Weights>(groups, num_groups, prepared, row_bytes, num_rows, sums, ahead);
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
