// The NEON instruction set of 64-bit Arm, with the dot product of bytes (Armv8.2 and later).
#include "matmul_neon.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>

#include "cpu_features.h"
#include "matmul_plain.h"
#include "scalar_numbers.h"

namespace ridgeline {

namespace neon {

namespace {

// The sum of the activations that share scale `part`, times their scale.
template <int num_scales>
inline float scaled_sum(const ActivationGroup& group, int part) {
    if constexpr (num_scales == 1) return group.scaled_sum;
    const int32_t minus_sum = part == 0 ? group.minus_sum_first : group.minus_sum - group.minus_sum_first;
    return group.scale * static_cast<float>(-minus_sum);
}

// Products of the high parts of a row's extended lines, as far as they share scale `part`, for 4 of the 16 outputs.
template <int num_scales>
inline int32x4_t multiply_extended(const int8_t* codes, const ActivationGroup& group, int part) {
    int32x4_t dot = vdupq_n_s32(0);
    for (int line = 0; line < 2; ++line) {
        int32_t high;
        std::memcpy(&high, group.high[line], sizeof high);
        if (num_scales == 2 && (part == 0) != (group.in_first[line] != 0)) high = 0;
        dot = vdotq_s32(dot, vld1q_s8(codes + group.line_offset[line]), vreinterpretq_s8_s32(vdupq_n_s32(high)));
    }
    return vshlq_n_s32(dot, 7);
}

// One group of a tile with `rows` rows: 16 outputs are four vectors.
template <int num_scales, bool has_minimum, int rows>
inline void multiply_group(const uint8_t* half, const ActivationGroup* const groups[rows], float* sums) {
    constexpr int num_lines = 8 / num_scales;
    const auto* codes = reinterpret_cast<const int8_t*>(half);
    const auto* scales = reinterpret_cast<const float*>(half + 512);
    const float* minimums = scales + num_scales * TILE_ROWS;
    for (int part = 0; part < num_scales; ++part) {
        int32x4_t dots[rows][4];
        for (int r = 0; r < rows; ++r) {
            for (int q = 0; q < 4; ++q) dots[r][q] = multiply_extended<num_scales>(codes + q * 16, *groups[r], part);
        }
        for (int v = part * num_lines; v < (part + 1) * num_lines; v += 4) {
            int8x16_t x[rows];
            for (int r = 0; r < rows; ++r) x[r] = vld1q_s8(groups[r]->codes + 4 * v);
            for (int q = 0; q < 4; ++q) {
                const int8_t* line = codes + v * LINE_BYTES + q * 16;
                const int8x16_t w0 = vld1q_s8(line), w1 = vld1q_s8(line + LINE_BYTES);
                const int8x16_t w2 = vld1q_s8(line + 2 * LINE_BYTES), w3 = vld1q_s8(line + 3 * LINE_BYTES);
                for (int r = 0; r < rows; ++r) {
                    dots[r][q] = vdotq_laneq_s32(dots[r][q], w0, x[r], 0);
                    dots[r][q] = vdotq_laneq_s32(dots[r][q], w1, x[r], 1);
                    dots[r][q] = vdotq_laneq_s32(dots[r][q], w2, x[r], 2);
                    dots[r][q] = vdotq_laneq_s32(dots[r][q], w3, x[r], 3);
                }
            }
        }
        for (int q = 0; q < 4; ++q) {
            const float32x4_t scale = vld1q_f32(scales + part * TILE_ROWS + 4 * q);
            for (int r = 0; r < rows; ++r) {
                float* to = sums + r * PAIR_ROWS + 4 * q;
                const float32x4_t both = vmulq_n_f32(scale, groups[r]->scale);
                float32x4_t sum = vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(dots[r][q]), both);
                if constexpr (has_minimum) {
                    const float32x4_t minimum = vld1q_f32(minimums + part * TILE_ROWS + 4 * q);
                    sum = vfmaq_n_f32(sum, minimum, scaled_sum<num_scales>(*groups[r], part));
                }
                vst1q_f32(to, sum);
            }
        }
    }
}

template <int num_scales, bool has_minimum, int rows>
void multiply_rows(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, float* sums,
                   const Ahead& ahead) {
    constexpr int half_bytes = 512 + LINE_BYTES * num_scales * (has_minimum ? 2 : 1);
    for (int64_t index = 0; index < num_groups; ++index, records += PAIR_TILES * half_bytes) {
        ask_ahead(ahead, index);
        const ActivationGroup* groups[rows];
        for (int r = 0; r < rows; ++r) {
            groups[r] = reinterpret_cast<const ActivationGroup*>(prepared + r * row_bytes) + index;
        }
        multiply_group<num_scales, has_minimum, rows>(records, groups, sums);
        multiply_group<num_scales, has_minimum, rows>(records + half_bytes, groups, sums + TILE_ROWS);
    }
}

template <int num_scales, bool has_minimum>
void multiply_int8(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                   float* sums, const Ahead& ahead) {
    with_constant<MAX_ROWS_PER_CALL>(num_rows, [&](auto rows) {
        multiply_rows<num_scales, has_minimum, rows>(records, num_groups, prepared, row_bytes, sums, ahead);
    });
}

void unpack_f16(const uint8_t* pair, int64_t first_group, int64_t count, int64_t, uint8_t* records) {
    const uint8_t* source = pair + first_group * PAIR_TILES * 1024;
    auto* values = reinterpret_cast<float*>(records);
    for (int64_t i = 0; i < count * GROUP_VALUES * PAIR_ROWS; i += 4) {
        vst1q_f32(values + i, vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(source + 2 * i))));
    }
}

// Weights of four outputs and their inputs: one of f32; two of bf16, which share 32 bits.
struct F32 {
    static constexpr int inputs = 1;
    static float32x4_t load(const uint8_t* weights, int) { return vld1q_f32(reinterpret_cast<const float*>(weights)); }
    static float input(const uint8_t* x, int64_t i, int) { return reinterpret_cast<const float*>(x)[i]; }
};
struct Bf16 {
    static constexpr int inputs = 2;
    static float32x4_t load(const uint8_t* weights, int index) {
        const uint32x4_t both = vreinterpretq_u32_u8(vld1q_u8(weights));
        return vreinterpretq_f32_u32(index == 0 ? vshlq_n_u32(both, 16) : vandq_u32(both, vdupq_n_u32(0xffff0000u)));
    }
    static float input(const uint8_t* x, int64_t i, int index) { return bfloat_to_float(x + 4 * i + 2 * index); }
};

// What matmul_plain.h asks for.
template <typename Weights>
struct Tile {
    static constexpr int inputs = Weights::inputs;

    template <int rows>
    static void multiply(const uint8_t* weights, int64_t count, const uint8_t* x, int64_t row_bytes, float* sums) {
        float32x4_t totals[rows][4];
        for (int r = 0; r < rows; ++r) {
            for (int q = 0; q < 4; ++q) totals[r][q] = vld1q_f32(sums + r * PAIR_ROWS + 4 * q);
        }
        for (int64_t i = 0; i < count; ++i, weights += LINE_STRIDE) {
            for (int index = 0; index < Weights::inputs; ++index) {
                for (int q = 0; q < 4; ++q) {
                    const float32x4_t w = Weights::load(weights + 16 * q, index);
                    for (int r = 0; r < rows; ++r) {
                        totals[r][q] = vfmaq_n_f32(totals[r][q], w, Weights::input(x + r * row_bytes, i, index));
                    }
                }
            }
        }
        for (int r = 0; r < rows; ++r) {
            for (int q = 0; q < 4; ++q) vst1q_f32(sums + r * PAIR_ROWS + 4 * q, totals[r][q]);
        }
    }
};

double int8_loop(int64_t repeats) {
    int64_t count = repeats;
    asm volatile(
        "1:\n\t"
        "sdot v0.4s, v30.16b, v31.4b[0]\n\tsdot v1.4s, v30.16b, v31.4b[0]\n\t"
        "sdot v2.4s, v30.16b, v31.4b[0]\n\tsdot v3.4s, v30.16b, v31.4b[0]\n\t"
        "sdot v4.4s, v30.16b, v31.4b[0]\n\tsdot v5.4s, v30.16b, v31.4b[0]\n\t"
        "sdot v6.4s, v30.16b, v31.4b[0]\n\tsdot v7.4s, v30.16b, v31.4b[0]\n\t"
        "sdot v16.4s, v30.16b, v31.4b[0]\n\tsdot v17.4s, v30.16b, v31.4b[0]\n\t"
        "sdot v18.4s, v30.16b, v31.4b[0]\n\tsdot v19.4s, v30.16b, v31.4b[0]\n\t"
        "sdot v20.4s, v30.16b, v31.4b[0]\n\tsdot v21.4s, v30.16b, v31.4b[0]\n\t"
        "sdot v22.4s, v30.16b, v31.4b[0]\n\tsdot v23.4s, v30.16b, v31.4b[0]\n\t"
        "subs %[count], %[count], #1\n\t"
        "b.ne 1b\n\t"
        : [count] "+r"(count)
        :
        : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23");
    return static_cast<double>(repeats) * 16 * 32;
}

double fp32_loop(int64_t repeats) {
    float32x4_t sums[16] = {};
    const float32x4_t half = vdupq_n_f32(0.5f);
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        for (float32x4_t& sum : sums) {
            sum = vfmaq_f32(half, sum, half);
            asm volatile("" : "+w"(sum));
        }
    }
    return static_cast<double>(repeats) * 16 * 8;
}

InstructionSet make_set() {
    InstructionSet set = portable_instruction_set();
    set.name = set.description = "neon";
    for (int i = 0; i < NUM_FORMAT_SLOTS; ++i) {
        const auto format = static_cast<FormatId>(i);
        with_quantised_format(format, [&]<FormatId id>() {
            constexpr TileLayout layout = tile_layout(id);
            set.formats[i] = {unpack_function(id), multiply_int8<layout.scales_per_group, layout.has_minimum>};
        });
    }
    set.formats[static_cast<int>(FormatId::F32)] = {nullptr, multiply_plain<Tile<F32>>};
    set.formats[static_cast<int>(FormatId::F16)] = {unpack_f16, multiply_plain<Tile<F32>>};
    set.formats[static_cast<int>(FormatId::BF16)] = {nullptr, multiply_plain<Tile<Bf16>>};
    set.int8_loop = int8_loop;
    set.bf16_loop = fp32_loop;
    set.fp32_loop = fp32_loop;
    return set;
}

}  // namespace

}  // namespace neon

const InstructionSet* neon_instruction_set() {
    if (!cpu_features().neon_dot_product) return nullptr;
    static const InstructionSet set = neon::make_set();
    return &set;
}

}  // namespace ridgeline

#else

namespace ridgeline {

const InstructionSet* neon_instruction_set() { return nullptr; }

}  // namespace ridgeline

#endif
