// The text of the sampling kernels, compiled once for each instruction set (see vector.h). No product here may be made
// one operation with a sum: the files are compiled without contraction.
#pragma once

#include <cmath>
#include <limits>

#include "sample.h"
#include "vector.h"

namespace ridgeline::RIDGELINE_ISA {

constexpr float FARTHEST = 48.0f;
constexpr int WEIGHT_SHIFT = 40 - 24;  // 24 bits of a power of two are kept
constexpr int HALF = LANES / 2;

typedef int32_t HalfInts __attribute__((vector_size(HALF * 4)));
typedef int64_t Longs __attribute__((vector_size(HALF * 8)));
typedef uint64_t UnsignedLongs __attribute__((vector_size(HALF * 8)));

// The integers of the first or the second half of the lanes, as longs.
template <int SECOND>
RIDGELINE_INLINE UnsignedLongs half_of(Ints v) {
    constexpr int s = SECOND * HALF;
#if defined(__AVX512F__)
    const HalfInts half = __builtin_shufflevector(v, v, s, s + 1, s + 2, s + 3, s + 4, s + 5, s + 6, s + 7);
#elif defined(__AVX2__)
    const HalfInts half = __builtin_shufflevector(v, v, s, s + 1, s + 2, s + 3);
#else
    const HalfInts half = __builtin_shufflevector(v, v, s, s + 1);
#endif
    return (UnsignedLongs) __builtin_convertvector(half, Longs);
}

struct Weights {
    Longs low, high;  // lanes of the first half, and of the second
};

RIDGELINE_INLINE Floats distances_of(Floats x, float best, float scale) {
    return clamped((best - x) * scale, 0.0f, FARTHEST);
}

// As `weights` in sampling/draw.py.
RIDGELINE_INLINE Weights weights_of(Floats distances) {
    const Floats whole = rounded(distances);
    const Floats r = whole - distances;
    Floats p = broadcast(1.5353362e-4f);
    p = p * r + 1.3398875e-3f;
    p = p * r + 9.618437e-3f;
    p = p * r + 5.5503324e-2f;
    p = p * r + 2.4022648e-1f;
    p = p * r + 6.931472e-1f;
    p = p * r + 1.0f;
    const Ints power = __builtin_convertvector(p * 16777216.0f, Ints);
    const Ints shift = __builtin_convertvector(whole, Ints);
    return {(Longs)(half_of<0>(power) << WEIGHT_SHIFT >> half_of<0>(shift)),
            (Longs)(half_of<1>(power) << WEIGHT_SHIFT >> half_of<1>(shift))};
}

RIDGELINE_INLINE void store(int64_t* p, Weights w) {
    std::memcpy(p, &w.low, sizeof w.low);
    std::memcpy(p + HALF, &w.high, sizeof w.high);
}

RIDGELINE_INLINE void store(int32_t* p, Ints v) { std::memcpy(p, &v, sizeof v); }

// The last values of a row; the other lanes are of no weight.
RIDGELINE_INLINE Floats load_last(const float* p, int64_t count) {
    Floats v = broadcast(-std::numeric_limits<float>::infinity());
    std::memcpy(&v, p, static_cast<size_t>(count) * 4);
    return v;
}

template <class Body>
RIDGELINE_INLINE void along(const float* x, int64_t count, Body body) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) body(i, load(x + i));
    if (i < count) body(i, load_last(x + i, count - i));
}

RIDGELINE_INLINE int64_t sum(Longs v) {
    int64_t total = 0;
    for (int i = 0; i < HALF; ++i) total += v[i];
    return total;
}

// ---- the greatest ----

RIDGELINE_INLINE Floats greater(Floats x, Floats y) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)x, (__m512)y);
#else
    return maximum(x, y);
#endif
}

// Whether any lane was NaN so far.
struct NanWatch {
#if defined(__AVX512F__)
    __mmask16 seen = 0;
    RIDGELINE_INLINE void look(NanWatch& watch, Floats v) {
        watch.seen |= _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    }
    bool any() const { return seen != 0; }
#else
    Ints seen = {};
    RIDGELINE_INLINE void look(NanWatch& watch, Floats v) { watch.seen |= v != v; }
    bool any() const {
        int32_t bits_seen = 0;
        for (int i = 0; i < LANES; ++i) bits_seen |= seen[i];
        return bits_seen != 0;
    }
#endif
};

RIDGELINE_INLINE float largest_of(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    return largest(v);
#endif
}

template <int64_t BLOCK>
RIDGELINE_INLINE Best best_of(const float* x, int64_t count, float* maxima) {
    const Floats lowest = broadcast(-std::numeric_limits<float>::infinity());
    Best found{-std::numeric_limits<float>::infinity(), 0};
    int64_t found_block = 0;
    NanWatch watch;
    for (int64_t block = 0; block < count; block += BLOCK) {
        const int64_t end = block + BLOCK < count ? block + BLOCK : count;
        Floats highest[4] = {lowest, lowest, lowest, lowest};
        int64_t i = block;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            for (int part = 0; part < 4; ++part) {
                const Floats v = load(x + i + part * LANES);
                highest[part] = greater(highest[part], v);
                NanWatch::look(watch, v);
            }
        along(x + i, end - i, [&](int64_t, Floats v) {
            highest[0] = greater(highest[0], v);
            NanWatch::look(watch, v);
        });
        const float value = largest_of(greater(greater(highest[0], highest[1]), greater(highest[2], highest[3])));
        if (maxima != nullptr) maxima[block / BLOCK] = value;
        if (value > found.value) {
            found.value = value;
            found_block = block;
        }
    }
    if (watch.any()) return {std::numeric_limits<float>::quiet_NaN(), 0};
    for (int64_t i = found_block; i < count; ++i)
        if (x[i] == found.value) return {found.value, i};
    return found;
}

static Best best(const float* x, int64_t count, float* maxima) {
    return maxima == nullptr ? best_of<SAMPLE_BLOCK>(x, count, nullptr) : best_of<NEAR_BLOCK>(x, count, maxima);
}

// ---- weights ----

static void weigh(const float* x, int64_t count, float best_value, float scale, int32_t* keys, int64_t* weights) {
    along(x, count, [&](int64_t i, Floats v) {
        const Floats distances = distances_of(v, best_value, scale);
        store(keys + i, bits(distances));
        store(weights + i, weights_of(distances));
    });
}

static void weights_of_keys(const int32_t* keys, int64_t count, int64_t* weights) {
    for (int64_t i = 0; i < count; i += LANES) {
        Ints v = {};
        std::memcpy(&v, keys + i, static_cast<size_t>(count - i < LANES ? count - i : LANES) * 4);
        store(weights + i, weights_of(from_bits(v)));
    }
}

template <bool HAS_MIN>
RIDGELINE_INLINE Weights without_least(Weights w, int64_t min_weight) {
    if constexpr (HAS_MIN) {
        w.low &= w.low >= min_weight;
        w.high &= w.high >= min_weight;
    }
    return w;
}

template <bool HAS_MIN>
RIDGELINE_INLINE int64_t sum_of(const float* x, int64_t count, float best_value, float scale, int64_t min_weight) {
    Longs total = {};
    along(x, count, [&](int64_t, Floats v) {
        const Weights w = without_least<HAS_MIN>(weights_of(distances_of(v, best_value, scale)), min_weight);
        total += w.low + w.high;
    });
    return sum(total);
}

static int64_t sum(const float* x, int64_t count, float best_value, float scale, int64_t min_weight) {
    return min_weight > 0 ? sum_of<true>(x, count, best_value, scale, min_weight)
                          : sum_of<false>(x, count, best_value, scale, 0);
}

template <bool HAS_MIN>
RIDGELINE_INLINE int64_t sum_below_of(const float* x, int64_t count, float best_value, float scale, int64_t min_weight,
                                      int32_t cut, int64_t* num_equal) {
    Longs total = {};
    Ints equal = {};
    along(x, count, [&](int64_t, Floats v) {
        const Floats distances = distances_of(v, best_value, scale);
        const Ints keys = bits(distances);
        // What is cut is moved to where there is no weight.
        const Floats kept = select(keys < cut, distances, broadcast(FARTHEST));
        const Weights w = without_least<HAS_MIN>(weights_of(kept), min_weight);
        total += w.low + w.high;
        equal -= keys == cut;
    });
    for (int i = 0; i < LANES; ++i) *num_equal += equal[i];
    return sum(total);
}

static int64_t sum_below(const float* x, int64_t count, float best_value, float scale, int64_t min_weight, int32_t cut,
                         int64_t* num_equal) {
    return min_weight > 0 ? sum_below_of<true>(x, count, best_value, scale, min_weight, cut, num_equal)
                          : sum_below_of<false>(x, count, best_value, scale, 0, cut, num_equal);
}

static int64_t gather(const float* x, int64_t count, float best_value, float scale, int32_t low, int32_t high,
                      int32_t* gathered) {
    int64_t num_gathered = 0;
    along(x, count, [&](int64_t, Floats v) {
        const Ints keys = bits(distances_of(v, best_value, scale));
#if defined(__AVX512F__)
        const __m512i lanes = (__m512i)keys;
        const __mmask16 inside = _mm512_cmpge_epi32_mask(lanes, _mm512_set1_epi32(low)) &
                                 _mm512_cmplt_epi32_mask(lanes, _mm512_set1_epi32(high));
        _mm512_storeu_si512(gathered + num_gathered, _mm512_maskz_compress_epi32(inside, lanes));
        num_gathered += __builtin_popcount(inside);
#else
        for (int i = 0; i < LANES; ++i) {
            gathered[num_gathered] = keys[i];
            num_gathered += keys[i] >= low && keys[i] < high;
        }
#endif
    });
    return num_gathered;
}

static int64_t gather_near(const float* x, int64_t count, float best_value, float scale, int32_t highest,
                           int32_t* gathered, int32_t* indices) {
    int64_t num_gathered = 0;
    along(x, count, [&](int64_t first, Floats v) {
        const Ints keys = bits(distances_of(v, best_value, scale));
        const int64_t num_lanes = count - first < LANES ? count - first : LANES;
#if defined(__AVX512F__)
        uint32_t near = _mm512_cmple_epi32_mask((__m512i)keys, _mm512_set1_epi32(highest));
        near &= (1u << num_lanes) - 1;
        for (; near != 0; near &= near - 1) {
            const int i = __builtin_ctz(near);
            gathered[num_gathered] = keys[i];
            indices[num_gathered++] = static_cast<int32_t>(first + i);
        }
#else
        for (int i = 0; i < num_lanes; ++i) {
            gathered[num_gathered] = keys[i];
            indices[num_gathered] = static_cast<int32_t>(first + i);
            num_gathered += keys[i] <= highest;
        }
#endif
    });
    return num_gathered;
}

extern const SampleKernels SAMPLE = {best, weigh, weights_of_keys, sum, sum_below, gather, gather_near};

}  // namespace ridgeline::RIDGELINE_ISA
