// The text of the elementwise kernels, compiled once for each instruction set (see vector.h).
#pragma once

#include "elementwise.h"
#include "vector.h"

namespace ridgeline::RIDGELINE_ISA {

// Calls body(vector of x, vector of y) along two rows and stores what it returns, the last vector in part.
template <class Body>
RIDGELINE_INLINE void map2(const float* x, const float* y, int64_t width, float* out, Body body) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(out + i, body(load(x + i), load(y + i)));
    if (i < width) store_part(out + i, body(load_part(x + i, width - i), load_part(y + i, width - i)), width - i);
}

template <class Body>
RIDGELINE_INLINE void map1(const float* x, int64_t width, float* out, Body body) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) store(out + i, body(load(x + i)));
    if (i < width) store_part(out + i, body(load_part(x + i, width - i)), width - i);
}

// The sum of squares in four accumulators of LANES lanes, whatever the width.
RIDGELINE_INLINE float sum_of_squares(const float* x, int64_t width) {
    Floats sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES)
        for (int part = 0; part < 4; ++part) {
            const Floats v = load(x + i + part * LANES);
            sums[part] += v * v;
        }
    for (; i + LANES <= width; i += LANES) {
        const Floats v = load(x + i);
        sums[0] += v * v;
    }
    if (i < width) {
        const Floats v = load_part(x + i, width - i);
        sums[1] += v * v;
    }
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

static void rms_norm(const float* x, const float* weight, float epsilon, int64_t width, float* y) {
    const float mean = sum_of_squares(x, width) / static_cast<float>(width);
    const Floats factor = broadcast(1.0f / std::sqrt(mean + epsilon));
    map2(x, weight, width, y, [&](Floats value, Floats w) { return value * factor * w; });
}

static void add(const float* x, const float* y, int64_t width, float* out) {
    map2(x, y, width, out, [](Floats a, Floats b) { return a + b; });
}

static void multiply(const float* x, const float* y, int64_t width, float* out) {
    map2(x, y, width, out, [](Floats a, Floats b) { return a * b; });
}

static void scale(const float* x, float factor, int64_t width, float* out) {
    map1(x, width, out, [&](Floats a) { return a * factor; });
}

RIDGELINE_INLINE Floats silu(Floats x) { return x / (1.0f + exp_of(-x)); }

// 0.5 x (1 + tanh u) = x / (1 + e^-2u).
RIDGELINE_INLINE Floats gelu_tanh(Floats x) {
    const Floats inner = x * (1.0f + x * x * 0.044715f);
    return x / (1.0f + exp_of(inner * -1.59576912f));
}

static void activate(const float* x, Activation kind, int64_t width, float* out) {
    if (kind == Activation::Silu)
        map1(x, width, out, [](Floats a) { return silu(a); });
    else
        map1(x, width, out, [](Floats a) { return gelu_tanh(a); });
}

static void activate_multiply(const float* gate, const float* up, Activation kind, int64_t width, float* out) {
    if (kind == Activation::Silu)
        map2(gate, up, width, out, [](Floats a, Floats b) { return silu(a) * b; });
    else
        map2(gate, up, width, out, [](Floats a, Floats b) { return gelu_tanh(a) * b; });
}

static void softcap(const float* x, float cap, int64_t width, float* out) {
    map1(x, width, out, [&](Floats a) { return cap * tanh_of(a / cap); });
}

static void rope(const float* x, const float* angles, int64_t num_heads, int64_t head_width, int64_t turned_width,
                 float* out) {
    const int64_t half = turned_width / 2;
    const float *cosines = angles, *sines = angles + half;
    for (int64_t head = 0; head < num_heads; ++head, x += head_width, out += head_width) {
        int64_t i = 0;
        for (; i + LANES <= half; i += LANES) {
            const Floats first = load(x + i), second = load(x + half + i), c = load(cosines + i), s = load(sines + i);
            store(out + i, first * c - second * s);
            store(out + half + i, second * c + first * s);
        }
        if (i < half) {
            const int64_t count = half - i;
            const Floats first = load_part(x + i, count), second = load_part(x + half + i, count);
            const Floats c = load_part(cosines + i, count), s = load_part(sines + i, count);
            store_part(out + i, first * c - second * s, count);
            store_part(out + half + i, second * c + first * s, count);
        }
        if (out != x)
            for (i = turned_width; i < head_width; ++i) out[i] = x[i];
    }
}

extern const ElementwiseKernels ELEMENTWISE = {rms_norm,          add,     multiply, scale, activate,
                                               activate_multiply, softcap, rope};

}  // namespace ridgeline::RIDGELINE_ISA
