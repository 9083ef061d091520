// The products of attention in float, for any format of keys and values. Included by attention_rows.h.
#pragma once

#include "attention_state.h"
#include "attention_store.h"

namespace ridgeline::RIDGELINE_ISA {

constexpr int KEY_VECTORS = static_cast<int>(PAGE_SLOTS) / LANES;

// A page as float keys [C][64] and values [64][S], whatever it is kept as.
static void unpack_page(const Rows& rows, KvFormat format, const Page& page, float* keys, float* values) {
    const int64_t width = rows.head_width, stride = rows.stride;
    if (page.has_codes) {
        const Codes codes = codes_of(page.block, width);
        for (int64_t c = 0; c < width; ++c)
            for (int64_t slot = 0; slot < PAGE_SLOTS; ++slot)
                keys[c * PAGE_SLOTS + slot] =
                    codes.key_lows[c] + codes.key_scales[c] * codes.keys[c / 2 * 2 * PAGE_SLOTS + slot * 2 + c % 2];
        for (int64_t slot = 0; slot < PAGE_SLOTS; ++slot)
            for (int64_t c = 0; c < stride; ++c)
                values[slot * stride + c] =
                    codes.value_scales[slot] * codes.values[slot / 2 * 2 * stride + c * 2 + slot % 2];
        return;
    }
    if (format == KvFormat::F32) {
        std::memcpy(keys, page.block, static_cast<size_t>((width + stride) * PAGE_SLOTS) * 4);
        return;
    }
    const uint16_t* source = reinterpret_cast<const uint16_t*>(page.block);
    for (int64_t c = 0; c < width; c += 2)
        for (int64_t slot = 0; slot < PAGE_SLOTS; ++slot) {
            keys[c * PAGE_SLOTS + slot] = from_bf16(source[c * PAGE_SLOTS + slot * 2]);
            keys[(c + 1) * PAGE_SLOTS + slot] = from_bf16(source[c * PAGE_SLOTS + slot * 2 + 1]);
        }
    source += width * PAGE_SLOTS;
    for (int64_t slot = 0; slot < PAGE_SLOTS; slot += 2)
        for (int64_t c = 0; c < stride; ++c) {
            values[slot * stride + c] = from_bf16(source[slot * stride + c * 2]);
            values[(slot + 1) * stride + c] = from_bf16(source[slot * stride + c * 2 + 1]);
        }
}

// The weights of one row's 64 keys, not yet divided by their sum, in `weights`; returns what older sums shrink by.
static float weigh(const Rows& rows, int64_t row, const float* keys, int64_t first, int64_t last, float* weights) {
    Floats scores[KEY_VECTORS] = {};
    const float* q = rows.q + row * rows.stride;
    for (int64_t c = 0; c < rows.head_width; ++c)
        for (int j = 0; j < KEY_VECTORS; ++j) scores[j] += load(keys + c * PAGE_SLOTS + j * LANES) * q[c];
    Floats peak = broadcast(MINUS_INFINITY);
    for (int j = 0; j < KEY_VECTORS; ++j) {
        Floats score = scores[j] * rows.scale;
        if (rows.softcap > 0) score = tanh_of(score / rows.softcap) * rows.softcap;
        score = score * LOG2_E;
        Ints slot;
        for (int lane = 0; lane < LANES; ++lane) slot[lane] = j * LANES + lane;
        const Ints seen = (slot >= static_cast<int32_t>(first)) & (slot <= static_cast<int32_t>(last));
        scores[j] = select(seen, score, broadcast(MINUS_INFINITY));
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
        for (int64_t c = 0; c < rows.stride; c += LANES) {
            Floats y = load(weighted + c) * shrink;
            for (int64_t slot = 0; slot < num_slots; ++slot) y += load(values + slot * rows.stride + c) * weights[slot];
            store(weighted + c, y);
        }
    }
}

}  // namespace ridgeline::RIDGELINE_ISA
