// From packed pairs to records, with NEON: what record_text.h asks of it.
#include "matmul_neon.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#include "record_text.h"

namespace ridgeline::neon {

namespace {

// Lines are taken by quarters: 4 rows. The zero of a format is taken from its codes.
struct Simd {
    static constexpr bool fills_bytes = false;
    using Line = uint8x16_t;
    using Sixteen = uint8x16_t;

    static Line load(const uint8_t* p) { return vld1q_u8(p); }
    static Sixteen load_sixteen(const uint8_t* p) { return vld1q_u8(p); }
    static Line masked(Line line, int mask) { return vandq_u8(line, vdupq_n_u8(static_cast<uint8_t>(mask))); }
    static Line either(Line a, Line b) { return vorrq_u8(a, b); }
    template <int shift>
    static Line shifted_up(Line line) {
        return vshlq_n_u8(line, shift);
    }
    template <int shift>
    static Line shifted_down(Line line) {
        return vshrq_n_u8(line, shift);
    }
    static Sixteen shifted_down_by(Sixteen values, int shift) {
        return vshlq_u8(values, vdupq_n_s8(static_cast<int8_t>(-shift)));
    }
    static Sixteen minus(Sixteen values, int value) {
        return vsubq_u8(values, vdupq_n_u8(static_cast<uint8_t>(value)));
    }
    static Line looked_up(const uint8_t book[16], Line indices) { return vqtbl1q_u8(vld1q_u8(book), indices); }
    template <FormatId format>
    static Line recorded(Line line) {
        return minus(line, tile_layout(format).zero);
    }
    static void store(uint8_t* target, Line line) { vst1q_u8(target, line); }

    static void store_products(uint8_t* target, const uint8_t* halves, float factor, Sixteen signed_bytes) {
        const int8x16_t values = vreinterpretq_s8_u8(signed_bytes);
        const int16x8_t words[2] = {vmovl_s8(vget_low_s8(values)), vmovl_s8(vget_high_s8(values))};
        auto* to = reinterpret_cast<float*>(target);
        for (int i = 0; i < 4; ++i) {
            const int16x4_t four = i % 2 == 0 ? vget_low_s16(words[i / 2]) : vget_high_s16(words[i / 2]);
            const float16x4_t half = vreinterpret_f16_u8(vld1_u8(halves + 8 * i));
            const float32x4_t scale = vmulq_n_f32(vcvt_f32_f16(half), factor);
            vst1q_f32(to + 4 * i, vmulq_f32(scale, vcvtq_f32_s32(vmovl_s16(four))));
        }
    }
    static void store_halves(uint8_t* target, const uint8_t* halves, float factor) {
        store_products(target, halves, factor, vdupq_n_u8(1));
    }
    // Half of 2^(e - 127) is e - 1 in the place of a float's exponent; 0 and 1 give subnormal numbers. No factor: codes
    // are not scaled here.
    static void store_powers(uint8_t* target, const uint8_t* exponents, float) {
        auto* to = reinterpret_cast<uint32_t*>(target);
        for (int row = 0; row < TILE_ROWS; ++row) {
            to[row] = exponents[row] < 2 ? 0x00200000u << exponents[row] : (exponents[row] - 1u) << 23;
        }
    }
};

}  // namespace

UnpackFunction unpack_function(FormatId format) {
    UnpackFunction function = nullptr;
    with_quantised_format(format, [&]<FormatId id>() { function = unpack_records<Simd, id>; });
    return function;
}

}  // namespace ridgeline::neon

#endif
