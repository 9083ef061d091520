// The products of attention in float, for any format of keys and values. Included by attention_rows.h.
#pragma once

#include "attention_state.h"
#include "attention_store.h"

namespace ridgeline::RIDGELINE_ISA {

constexpr int KEY_VECTORS = static_cast<int>(PAGE_SLOTS) / LANES;

constexpr int AT_ONCE = 8;  // sums of one row that are kept in registers

// The codes at one place of every word, as floats.
RIDGELINE_INLINE Floats codes_at(Ints words, int place, bool is_signed) {
    const Ints first = words << (24 - 8 * place);
    if (is_signed) return __builtin_convertvector(first >> 24, Floats);
    return __builtin_convertvector(first >> 24 & 0xff, Floats);
}

RIDGELINE_INLINE Ints load_words(const void* p) {
    Ints words;
    std::memcpy(&words, p, sizeof words);
    return words;
}

static void unpack_codes(const Rows& rows, const uint8_t* block, float* keys, float* values) {
    const Codes codes = codes_of(block, rows.head_width);
    const int64_t stride = rows.stride;
    for (int64_t c = 0; c < rows.head_width; c += 4)
        for (int64_t slot = 0; slot < PAGE_SLOTS; slot += LANES) {
            const Ints words = load_words(codes.keys + c * PAGE_SLOTS + slot * 4);
            for (int i = 0; i < 4 && c + i < rows.head_width; ++i)
                store(keys + (c + i) * PAGE_SLOTS + slot,
                      codes.key_lows[c + i] + codes.key_scales[c + i] * codes_at(words, i, false));
        }
    for (int64_t slot = 0; slot < PAGE_SLOTS; slot += 4)
        for (int64_t c = 0; c < stride; c += LANES) {
            const Ints words = load_words(codes.values + slot * stride + c * 4);
            for (int i = 0; i < 4; ++i)
                store(values + (slot + i) * stride + c, codes.value_scales[slot + i] * codes_at(words, i, true));
        }
}

// A page as float keys [C][64] and values [64][S], whatever it is kept as.
static void unpack_page(const Rows& rows, KvFormat format, const Page& page, float* keys, float* values) {
    const int64_t width = rows.head_width, stride = rows.stride;
    if (page.has_codes) return unpack_codes(rows, page.block, keys, values);
    if (format == KvFormat::F32) {
        std::memcpy(keys, page.block, static_cast<size_t>((width + stride) * PAGE_SLOTS) * 4);
        return;
    }
    const uint16_t* source = reinterpret_cast<const uint16_t*>(page.block);
    for (int64_t c = 0; c < width; c += 2)
        for (int64_t slot = 0; slot < PAGE_SLOTS; slot += LANES) {
            const Pairs key = load_pairs(source + c * PAGE_SLOTS + slot * 2);
            store(keys + c * PAGE_SLOTS + slot, key.first);
            store(keys + (c + 1) * PAGE_SLOTS + slot, key.second);
        }
    source += width * PAGE_SLOTS;
    for (int64_t slot = 0; slot < PAGE_SLOTS; slot += 2)
        for (int64_t c = 0; c < stride; c += LANES) {
            const Pairs value = load_pairs(source + slot * stride + c * 2);
            store(values + slot * stride + c, value.first);
            store(values + (slot + 1) * stride + c, value.second);
        }
}

// q . key for the keys of a page.
RIDGELINE_INLINE void score(const Rows& rows, int64_t row, const float* keys, Floats* scores) {
    constexpr int count = KEY_VECTORS < AT_ONCE ? KEY_VECTORS : AT_ONCE;
    const float* q = rows.q + row * rows.stride;
    for (int first = 0; first < KEY_VECTORS; first += count) {
        Floats sums[count] = {};
        for (int64_t c = 0; c < rows.head_width; ++c)
            for (int j = 0; j < count; ++j) sums[j] += load(keys + c * PAGE_SLOTS + (first + j) * LANES) * q[c];
        for (int j = 0; j < count; ++j) scores[first + j] = sums[j];
    }
}

// weighted = weighted * shrink + weights . values, for V vectors of channels.
template <int V>
RIDGELINE_INLINE void add_values(const float* values, int64_t stride, int64_t num_slots, const float* weights,
                                 float shrink, float* weighted) {
    Floats sums[V];
    for (int j = 0; j < V; ++j) sums[j] = load(weighted + j * LANES) * shrink;
    for (int64_t slot = 0; slot < num_slots; ++slot)
        for (int j = 0; j < V; ++j) sums[j] += load(values + slot * stride + j * LANES) * weights[slot];
    for (int j = 0; j < V; ++j) store(weighted + j * LANES, sums[j]);
}

// The weights of one row's 64 keys, not yet divided by their sum, in `weights`; returns what older sums shrink by.
static float weigh(const Rows& rows, int64_t row, const float* keys, int64_t first, int64_t last, float* weights) {
    Floats scores[KEY_VECTORS];
    score(rows, row, keys, scores);
    Floats peak = broadcast(MINUS_INFINITY);
    for (int j = 0; j < KEY_VECTORS; ++j) {
        Floats scaled_score = scores[j] * rows.scale;
        if (rows.softcap > 0) scaled_score = tanh_of(scaled_score / rows.softcap) * rows.softcap;
        scaled_score = scaled_score * LOG2_E;
        Ints slot;
        for (int lane = 0; lane < LANES; ++lane) slot[lane] = j * LANES + lane;
        const Ints seen = (slot >= static_cast<int32_t>(first)) & (slot <= static_cast<int32_t>(last));
        scores[j] = select(seen, scaled_score, broadcast(MINUS_INFINITY));
        peak = maximum(peak, scores[j]);
    }
    const float old_maximum = rows.maxima[row], new_peak = largest(peak);
    const float maximum = new_peak > old_maximum ? new_peak : old_maximum;
    const float base = maximum == MINUS_INFINITY ? 0.0f : maximum;
    float* sums = rows.sums + row * 16;
    const Floats shrink = exp2_of(broadcast(old_maximum - base));
    Floats total = load(sums) * shrink;
    for (int j = 0; j < KEY_VECTORS; ++j) {
        const Floats weight = exp2_of(scores[j] - base);
        store(weights + j * LANES, weight);
        total += weight;
    }
    store(sums, total);
    rows.maxima[row] = maximum;
    return shrink[0];
}

static void attend_page_in_floats(const Rows& rows, KvFormat format, const Page& page) {
    float* keys = reinterpret_cast<float*>(rows.page);
    float* values = keys + rows.head_width * PAGE_SLOTS;
    unpack_page(rows, format, page, keys, values);
    for (int64_t row = 0; row < rows.count; ++row) {
        const int64_t first = rows.first[row] - page.first_position, last = rows.last[row] - page.first_position;
        if (last < 0 || first >= PAGE_SLOTS) continue;
        float weights[PAGE_SLOTS];
        const float shrink = weigh(rows, row, keys, first, last, weights);
        const int64_t num_slots = last < PAGE_SLOTS - 1 ? last + 1 : PAGE_SLOTS;
        float* weighted = rows.weighted + row * rows.stride;
        int64_t c = 0;
        for (; c + AT_ONCE * LANES <= rows.stride; c += AT_ONCE * LANES)
            add_values<AT_ONCE>(values + c, rows.stride, num_slots, weights, shrink, weighted + c);
        for (; c + 2 * LANES <= rows.stride; c += 2 * LANES)
            add_values<2>(values + c, rows.stride, num_slots, weights, shrink, weighted + c);
        for (; c < rows.stride; c += LANES)
            add_values<1>(values + c, rows.stride, num_slots, weights, shrink, weighted + c);
    }
}

}  // namespace ridgeline::RIDGELINE_ISA
