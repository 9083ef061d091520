// Storing keys and values in the formats of attention.h, and quantising full pages. Included by attention_rows.h.
#pragma once

#include "attention.h"
#include "vector.h"

namespace ridgeline::RIDGELINE_ISA {

static void store_key_value(bool is_f32, int64_t head_width, const float* key, const float* value, int64_t slot,
                            bool clear_next, uint8_t* block) {
    const int64_t stride = value_stride(head_width);
    if (is_f32) {
        float* keys = reinterpret_cast<float*>(block);
        float* values = keys + head_width * PAGE_SLOTS + slot * stride;
        for (int64_t c = 0; c < head_width; ++c) keys[c * PAGE_SLOTS + slot] = key[c];
        for (int64_t c = 0; c < head_width; ++c) values[c] = value[c];
        for (int64_t c = head_width; c < stride; ++c) values[c] = 0.0f;
        return;
    }
    uint16_t* keys = reinterpret_cast<uint16_t*>(block);
    uint16_t* values = keys + head_width * PAGE_SLOTS + slot / 2 * 2 * stride + slot % 2;
    for (int64_t c = 0; c < head_width; c += 2) {
        const uint32_t pair = to_bf16(key[c]) | static_cast<uint32_t>(to_bf16(key[c + 1])) << 16;
        std::memcpy(keys + c * PAGE_SLOTS + slot * 2, &pair, 4);
    }
    if (slot % 2 == 0 && clear_next) {
        for (int64_t c = 0; c < head_width; ++c) {
            const uint32_t pair = to_bf16(value[c]);
            std::memcpy(values + c * 2, &pair, 4);
        }
    } else {
        for (int64_t c = 0; c < head_width; ++c) values[c * 2] = to_bf16(value[c]);
    }
    for (int64_t c = head_width; c < stride; ++c) values[c * 2] = 0;
}

// An int8 block: codes of keys, codes of values, key scales, key lows, value scales.
struct Codes {
    const uint8_t* keys;
    const int8_t* values;
    const float *key_scales, *key_lows, *value_scales;
};

RIDGELINE_INLINE Codes codes_of(const uint8_t* block, int64_t head_width) {
    const int64_t stride = value_stride(head_width);
    const float* scales = reinterpret_cast<const float*>(block + (head_width + stride) * PAGE_SLOTS);
    return {block, reinterpret_cast<const int8_t*>(block + head_width * PAGE_SLOTS), scales, scales + head_width,
            scales + 2 * head_width};
}

static void quantise_keys(int64_t head_width, const uint16_t* keys, uint8_t* codes, float* scales, float* lows) {
    for (int64_t c = 0; c < head_width; ++c) {
        const int64_t first = c / 2 * 2 * PAGE_SLOTS + c % 2;
        float low = from_bf16(keys[first]), high = low;
        for (int64_t slot = 1; slot < PAGE_SLOTS; ++slot) {
            const float key = from_bf16(keys[first + slot * 2]);
            low = key < low ? key : low;
            high = key > high ? key : high;
        }
        const float span = high - low, inverse = span > 0 ? 255.0f / span : 0.0f;
        scales[c] = span / 255.0f;
        lows[c] = low;
        for (int64_t slot = 0; slot < PAGE_SLOTS; ++slot) {
            const float code = std::nearbyint((from_bf16(keys[first + slot * 2]) - low) * inverse);
            codes[first + slot * 2] = static_cast<uint8_t>(code < 0 ? 0 : code > 255 ? 255 : code);
        }
    }
}

static void quantise_values(int64_t head_width, const uint16_t* values, int8_t* codes, float* scales) {
    const int64_t stride = value_stride(head_width);
    for (int64_t slot = 0; slot < PAGE_SLOTS; ++slot) {
        const int64_t first = slot / 2 * 2 * stride + slot % 2;
        float peak = 0.0f;
        for (int64_t c = 0; c < head_width; ++c) {
            const float size = std::fabs(from_bf16(values[first + c * 2]));
            peak = size > peak ? size : peak;
        }
        const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
        scales[slot] = peak / 127.0f;
        for (int64_t c = 0; c < stride; ++c) {
            const float code = c < head_width ? std::nearbyint(from_bf16(values[first + c * 2]) * inverse) : 0.0f;
            codes[first + c * 2] = static_cast<int8_t>(code < -127 ? -127 : code > 127 ? 127 : code);
        }
    }
}

static void quantise_block(int64_t head_width, const uint8_t* plain, uint8_t* block) {
    const uint16_t* keys = reinterpret_cast<const uint16_t*>(plain);
    const Codes codes = codes_of(block, head_width);
    quantise_keys(head_width, keys, block, const_cast<float*>(codes.key_scales), const_cast<float*>(codes.key_lows));
    quantise_values(head_width, keys + head_width * PAGE_SLOTS, const_cast<int8_t*>(codes.values),
                    const_cast<float*>(codes.value_scales));
}

}  // namespace ridgeline::RIDGELINE_ISA
