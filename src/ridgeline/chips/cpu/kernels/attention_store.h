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

// Two bfloat16 values that lie side by side, for LANES of them.
struct Pairs {
    Floats first, second;
};

RIDGELINE_INLINE Pairs load_pairs(const uint16_t* p) {
    Ints words;
    std::memcpy(&words, p, sizeof words);
    return {from_bits(words << 16), from_bits(words & static_cast<int32_t>(0xffff0000))};
}

// Codes of pairs, each in a byte.
RIDGELINE_INLINE void store_codes(uint8_t* p, Floats first, Floats second, float least, float most) {
    const Ints low = __builtin_convertvector(clamped(rounded(first), least, most), Ints) & 0xff;
    const Ints high = __builtin_convertvector(clamped(rounded(second), least, most), Ints) & 0xff;
    const Shorts pairs = __builtin_convertvector(low | high << 8, Shorts);
    std::memcpy(p, &pairs, sizeof pairs);
}

static void quantise_keys(int64_t head_width, const uint16_t* keys, uint8_t* codes, float* scales, float* lows) {
    for (int64_t c = 0; c < head_width; c += 2, keys += 2 * PAGE_SLOTS, codes += 2 * PAGE_SLOTS) {
        Pairs low = load_pairs(keys), high = low;
        for (int64_t slot = LANES; slot < PAGE_SLOTS; slot += LANES) {
            const Pairs key = load_pairs(keys + slot * 2);
            low = {-maximum(-low.first, -key.first), -maximum(-low.second, -key.second)};
            high = {maximum(high.first, key.first), maximum(high.second, key.second)};
        }
        lows[c] = smallest(low.first);
        lows[c + 1] = smallest(low.second);
        const float span = largest(high.first) - lows[c], next_span = largest(high.second) - lows[c + 1];
        scales[c] = span / 255.0f;
        scales[c + 1] = next_span / 255.0f;
        const float inverse = span > 0 ? 255.0f / span : 0.0f, next_inverse = next_span > 0 ? 255.0f / next_span : 0.0f;
        for (int64_t slot = 0; slot < PAGE_SLOTS; slot += LANES) {
            const Pairs key = load_pairs(keys + slot * 2);
            store_codes(codes + slot * 2, (key.first - lows[c]) * inverse, (key.second - lows[c + 1]) * next_inverse,
                        0.0f, 255.0f);
        }
    }
}

// Values are padded to whole vectors with zeros.
static void quantise_values(int64_t head_width, const uint16_t* values, int8_t* codes, float* scales) {
    const int64_t stride = value_stride(head_width);
    for (int64_t slot = 0; slot < PAGE_SLOTS; slot += 2, values += 2 * stride, codes += 2 * stride) {
        Pairs peak = {};
        for (int64_t c = 0; c < stride; c += LANES) {
            const Pairs value = load_pairs(values + c * 2);
            peak.first = maximum(peak.first, magnitude_of(value.first));
            peak.second = maximum(peak.second, magnitude_of(value.second));
        }
        const float first = largest(peak.first), second = largest(peak.second);
        scales[slot] = first / 127.0f;
        scales[slot + 1] = second / 127.0f;
        const float inverse = first > 0 ? 127.0f / first : 0.0f, next_inverse = second > 0 ? 127.0f / second : 0.0f;
        for (int64_t c = 0; c < stride; c += LANES) {
            const Pairs value = load_pairs(values + c * 2);
            store_codes(reinterpret_cast<uint8_t*>(codes) + c * 2, value.first * inverse, value.second * next_inverse,
                        -127.0f, 127.0f);
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
