// Vectors of float as wide as the instruction set of this translation unit has them, for kernels that are written once.
//
// Everything here lives in a namespace of the instruction set's own (RIDGELINE_ISA, defined by the including file), so
// that the linker never puts one instruction set's copy of a function in place of another's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

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
typedef uint16_t Shorts __attribute__((vector_size(LANES * 2)));

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

// Keeps the product that x may be from being made one operation with the sum that follows.
RIDGELINE_INLINE void keep_apart(Floats& x) {
#if defined(__x86_64__)
    asm("" : "+x"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
}

// Rounds to a whole number; |x| is below 2^22.
RIDGELINE_INLINE Floats rounded(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const Floats magic = broadcast(12582912.0f);  // 1.5 * 2^23: no bits are left behind the point
    keep_apart(x);
    return (x + magic) - magic;
#endif
}

// x * 2^n for whole n from -126 to 128: infinity where that is too large.
RIDGELINE_INLINE Floats scaled(Floats x, Floats n) {
#if defined(__AVX512F__)
    return (Floats)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    // Two factors, so that 2^128 is an infinity and not a wrapped exponent.
    const Ints exponent = __builtin_convertvector(n, Ints);
    const Ints half = exponent >> 1;
    return x * from_bits((half + 127) << 23) * from_bits((exponent - half + 127) << 23);
#endif
}

RIDGELINE_INLINE Floats clamped(Floats x, float low, float high) {
#if defined(__AVX512F__)
    // The second operand is what comes back where one is NaN.
    return (Floats)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#else
    return select(x < broadcast(low), broadcast(low), select(x > broadcast(high), broadcast(high), x));
#endif
}

RIDGELINE_INLINE float smallest(Floats v) { return -largest(-v); }

// 2^x to about 2e-7 relative; exactly 1 at 0, exactly 0 below -126 (and at minus infinity), infinity from 128 on.
// The polynomial is the Taylor series of 2^r on |r| <= 1/2.
RIDGELINE_INLINE Floats exp2_of(Floats x) {
    const Floats near = clamped(x, -126.0f, 128.0f);
    const Floats whole = rounded(near);
    const Floats r = near - whole;
    Floats p = broadcast(1.54035304e-4f);
    p = p * r + 1.33335581e-3f;
    p = p * r + 9.61812911e-3f;
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + 6.93147181e-1f;
    p = p * r + 1.0f;
    return select(x < broadcast(-126.0f), Floats{}, scaled(p, whole));
}

RIDGELINE_INLINE Floats exp_of(Floats x) {
    const Floats near = clamped(x, -87.3f, 88.8f);
    const Floats whole = rounded(near * 1.44269502f);
    // whole * ln 2 in two parts, so that the error does not grow with x.
    const Floats r = (near - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Floats p = broadcast(1.38888889e-3f);
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return select(x < broadcast(-87.3f), Floats{}, scaled(p, whole));
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
