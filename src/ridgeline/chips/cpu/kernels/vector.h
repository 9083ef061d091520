// Vectors of float as wide as the instruction set of this translation unit has them, for kernels that are written once.
//
// Everything here lives in a namespace of the instruction set's own (RIDGELINE_ISA, defined by the including file), so
// that the linker never puts one instruction set's copy of a function in place of another's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ridgeline::RIDGELINE_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#define RIDGELINE_INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

RIDGELINE_INLINE Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

RIDGELINE_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

// The first `count` floats; the other lanes are zero.
RIDGELINE_INLINE Floats load_part(const float* p, int64_t count) {
    Floats v = {};
    std::memcpy(&v, p, static_cast<size_t>(count) * 4);
    return v;
}

RIDGELINE_INLINE void store_part(float* p, Floats v, int64_t count) {
    std::memcpy(p, &v, static_cast<size_t>(count) * 4);
}

RIDGELINE_INLINE Floats broadcast(float x) { return Floats{} + x; }

RIDGELINE_INLINE Ints bits(Floats v) { return reinterpret_cast<Ints>(v); }
RIDGELINE_INLINE Floats from_bits(Ints v) { return reinterpret_cast<Floats>(v); }

RIDGELINE_INLINE Floats select(Ints mask, Floats yes, Floats no) {
    return from_bits((mask & bits(yes)) | (~mask & bits(no)));
}

RIDGELINE_INLINE Floats maximum(Floats x, Floats y) { return select(x > y, x, y); }

// Halves are folded onto each other: the order of sums is the lanes' alone.
RIDGELINE_INLINE float sum(Floats v) {
    float lanes[LANES];
    std::memcpy(lanes, &v, sizeof lanes);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

RIDGELINE_INLINE float largest(Floats v) {
    float lanes[LANES];
    std::memcpy(lanes, &v, sizeof lanes);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    return lanes[0];
}

// 2^x to about 2e-7 relative; exactly 1 at 0, exactly 0 below -126 (and at minus infinity), infinity from 128 on.
// The polynomial is the Taylor series of 2^r on |r| <= 1/2.
RIDGELINE_INLINE Floats exp2_of(Floats x) {
    const Floats low = broadcast(-126.0f), high = broadcast(128.0f);
    const Floats clamped = select(x < low, low, select(x > high, high, x));
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats whole = (clamped + magic) - magic;
    const Floats r = clamped - whole;
    Floats p = broadcast(1.54035304e-4f);
    p = p * r + 1.33335581e-3f;
    p = p * r + 9.61812911e-3f;
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + 6.93147181e-1f;
    p = p * r + 1.0f;
    const Ints exponent = __builtin_convertvector(whole, Ints);
    // Two factors, so that 2^128 is an infinity and not a wrapped exponent.
    const Ints half = exponent >> 1;
    const Floats y = p * from_bits((half + 127) << 23) * from_bits((exponent - half + 127) << 23);
    return select(x < low, Floats{}, y);
}

RIDGELINE_INLINE Floats exp_of(Floats x) {
    // x * log2(e) in two parts, so that the error does not grow with x.
    const Floats log2e = broadcast(1.44269502f);
    const Floats low = broadcast(-87.3f), high = broadcast(88.8f);
    const Floats clamped = select(x < low, low, select(x > high, high, x));
    const Floats magic = broadcast(12582912.0f);
    const Floats whole = (clamped * log2e + magic) - magic;
    const Floats r = (clamped - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Floats p = broadcast(1.98412698e-4f);
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Ints exponent = __builtin_convertvector(whole, Ints);
    const Ints half = exponent >> 1;
    const Floats y = p * from_bits((half + 127) << 23) * from_bits((exponent - half + 127) << 23);
    return select(x < low, Floats{}, y);
}

RIDGELINE_INLINE Floats magnitude_of(Floats x) { return from_bits(bits(x) & 0x7fffffff); }

// tanh to a few units in the last place: a series where 1 - 2 / (e^2x + 1) would cancel.
RIDGELINE_INLINE Floats tanh_of(Floats x) {
    const Floats size = magnitude_of(x);
    const Floats square = x * x;
    Floats p = broadcast(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const Floats near = x + x * square * p;
    const Floats far = 1.0f - 2.0f / (exp_of(size + size) + 1.0f);
    const Floats signed_far = from_bits(bits(far) | (bits(x) & INT32_MIN));
    return select(size < broadcast(0.625f), near, signed_far);
}

// bfloat16 is the upper half of a float; rounding is to nearest, ties to even.
RIDGELINE_INLINE uint16_t to_bf16(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

RIDGELINE_INLINE float from_bf16(uint16_t x) {
    const uint32_t u = static_cast<uint32_t>(x) << 16;
    float y;
    std::memcpy(&y, &u, 4);
    return y;
}

}  // namespace ridgeline::RIDGELINE_ISA
