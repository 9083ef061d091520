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
    const int64_t width = key_code_width(head_width), stride = value_stride(head_width);
    const float* scales = reinterpret_cast<const float*>(block + (width + stride) * PAGE_SLOTS);
    return {block, reinterpret_cast<const int8_t*>(block + width * PAGE_SLOTS), scales, scales + head_width,
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

RIDGELINE_INLINE Ints codes_in_bytes(Floats x, float least, float most) {
    return __builtin_convertvector(clamped(rounded(x), least, most), Ints) & 0xff;
}

RIDGELINE_INLINE void store_words(uint8_t* p, Ints words) { std::memcpy(p, &words, sizeof words); }

// The channels of a pair: their lows, and what brings them to codes.
static void fit_keys(const uint16_t* keys, float* scales, float* lows, float* inverses) {
    Pairs low = load_pairs(keys), high = low;
    for (int64_t slot = LANES; slot < PAGE_SLOTS; slot += LANES) {
        const Pairs key = load_pairs(keys + slot * 2);
        low = {-maximum(-low.first, -key.first), -maximum(-low.second, -key.second)};
        high = {maximum(high.first, key.first), maximum(high.second, key.second)};
    }
    lows[0] = smallest(low.first);
    lows[1] = smallest(low.second);
    const float span[2] = {largest(high.first) - lows[0], largest(high.second) - lows[1]};
    for (int i = 0; i < 2; ++i) {
        scales[i] = span[i] / 255.0f;
        inverses[i] = span[i] > 0 ? 255.0f / span[i] : 0.0f;
    }
}

static void quantise_keys(int64_t head_width, const uint16_t* keys, uint8_t* codes, float* scales, float* lows) {
    for (int64_t c = 0; c < head_width; c += 4, codes += 4 * PAGE_SLOTS) {
        float inverses[4];
        const int num_pairs = head_width - c >= 4 ? 2 : 1;
        for (int pair = 0; pair < num_pairs; ++pair)
            fit_keys(keys + (c + 2 * pair) * PAGE_SLOTS, scales + c + 2 * pair, lows + c + 2 * pair,
                     inverses + 2 * pair);
        for (int64_t slot = 0; slot < PAGE_SLOTS; slot += LANES) {
            Ints words = {};
            for (int pair = 0; pair < num_pairs; ++pair) {
                const int64_t channel = c + 2 * pair;
                const Pairs key = load_pairs(keys + channel * PAGE_SLOTS + slot * 2);
                const Floats first = (key.first - lows[channel]) * inverses[2 * pair];
                const Floats second = (key.second - lows[channel + 1]) * inverses[2 * pair + 1];
                const Ints codes_of_pair = codes_in_bytes(first, 0.0f, 255.0f) | codes_in_bytes(second, 0.0f, 255.0f)
                                                                                     << 8;
                words |= codes_of_pair << (16 * pair);
            }
            store_words(codes + slot * 4, words);
        }
    }
}

// Values are padded to whole vectors with zeros.
static void quantise_values(int64_t head_width, const uint16_t* values, int8_t* codes, float* scales) {
    const int64_t stride = value_stride(head_width);
    for (int64_t slot = 0; slot < PAGE_SLOTS; slot += 4, values += 4 * stride, codes += 4 * stride) {
        float inverses[4];
        for (int pair = 0; pair < 2; ++pair) {
            Pairs peak = {};
            for (int64_t c = 0; c < stride; c += LANES) {
                const Pairs value = load_pairs(values + pair * 2 * stride + c * 2);
                peak.first = maximum(peak.first, magnitude_of(value.first));
                peak.second = maximum(peak.second, magnitude_of(value.second));
            }
            const float largest_of_slots[2] = {largest(peak.first), largest(peak.second)};
            for (int i = 0; i < 2; ++i) {
                scales[slot + 2 * pair + i] = largest_of_slots[i] / 127.0f;
                inverses[2 * pair + i] = largest_of_slots[i] > 0 ? 127.0f / largest_of_slots[i] : 0.0f;
            }
        }
        for (int64_t c = 0; c < stride; c += LANES) {
            Ints words = {};
            for (int pair = 0; pair < 2; ++pair) {
                const Pairs value = load_pairs(values + pair * 2 * stride + c * 2);
                const Ints first = codes_in_bytes(value.first * inverses[2 * pair], -127.0f, 127.0f);
                const Ints second = codes_in_bytes(value.second * inverses[2 * pair + 1], -127.0f, 127.0f);
                words |= (first | second << 8) << (16 * pair);
            }
            store_words(reinterpret_cast<uint8_t*>(codes) + c * 4, words);
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
