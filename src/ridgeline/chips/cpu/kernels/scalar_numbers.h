// Conversions of single numbers, in plain C++. Internal to the kernels; everything here is static, since files that
// include it are compiled for different instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

namespace ridgeline {

// Activations whose largest magnitude in a group is below this count as zero (their inverse would overflow).
constexpr float SMALLEST_MAGNITUDE = 1e-30f;

static inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float half_to_float(const uint8_t* source) {
    uint16_t half;
    std::memcpy(&half, source, sizeof half);
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t rest = half & 0x7fff;
    // Infinities and NaN, ordinary numbers, subnormal ones: each is a shift and a change of the exponent's bias.
    if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000u | ((rest & 0x3ff) << 13));
    if (rest >= 0x0400) return bits_to_float(sign | ((rest << 13) + (112u << 23)));
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;
    return bits_to_float(sign | float_to_bits(magnitude));
}

static inline float bfloat_to_float(const uint8_t* source) {
    uint16_t half;
    std::memcpy(&half, source, sizeof half);
    return bits_to_float(static_cast<uint32_t>(half) << 16);
}

// To nearest, ties to even; NaN stay NaN.
static inline uint16_t float_to_bfloat(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// Makes the compiler believe that the memory is read and changed here.
static inline void keep_alive(void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

}  // namespace ridgeline
