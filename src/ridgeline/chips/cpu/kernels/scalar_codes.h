// Codes and scales of packed tiles one by one, in plain C++: the definition of what a format's planes mean.
#pragma once

#include "scalar_numbers.h"
#include "tile_layout.h"

namespace ridgeline {

static inline uint8_t line_code(const uint8_t* nibbles, int v, int byte) {
    const uint8_t both = nibbles[(v / 2) * LINE_STRIDE + byte];
    return v % 2 == 0 ? both & 15 : both >> 4;
}

// The code at byte `byte` of code line `v`.
template <FormatId format>
static inline uint8_t read_code(const uint8_t* group, int v, int byte) {
    const auto bit = [&](const uint8_t* line) { return (line[byte] >> v) & 1; };
    const auto pair = [&](const uint8_t* lines) { return (lines[(v / 4) * LINE_STRIDE + byte] >> (2 * (v % 4))) & 3; };
    if constexpr (format == FormatId::Q8_0) {
        return group[v * LINE_STRIDE + byte];
    } else if constexpr (format == FormatId::Q5_0 || format == FormatId::Q5_1 || format == FormatId::Q5_K) {
        return static_cast<uint8_t>(line_code(group + LINE_STRIDE, v, byte) | (bit(group) << 4));
    } else if constexpr (format == FormatId::Q6_K) {
        return static_cast<uint8_t>(line_code(group + 2 * LINE_STRIDE, v, byte) | (pair(group) << 4));
    } else if constexpr (format == FormatId::Q3_K) {
        return static_cast<uint8_t>(pair(group + LINE_STRIDE) | (bit(group) << 2));
    } else if constexpr (format == FormatId::Q2_K) {
        return static_cast<uint8_t>(pair(group));
    } else if constexpr (format == FormatId::IQ4_NL) {
        return IQ4_NL_CODES[line_code(group, v, byte)];
    } else if constexpr (format == FormatId::MXFP4) {
        return MXFP4_CODES[line_code(group, v, byte)];
    } else {
        return line_code(group, v, byte);
    }
}

struct Scale {
    float scale, minimum;
};

static inline uint8_t scale_byte(const uint8_t* bytes, int i, int row) { return bytes[i * TILE_ROWS + row]; }

// Half of 2^(exponent - 127); the exponents 0 and 1 give subnormal numbers.
static inline float half_power(uint8_t exponent) {
    return exponent < 2 ? bits_to_float(0x00200000u << exponent) : bits_to_float((exponent - 1u) << 23);
}

// Scale `index` (of the run: one or two for each group) of a row of a tile, from where the layout has those of the
// group.
template <FormatId format>
static inline Scale read_scale(const uint8_t* header, const uint8_t* scales, int index, int row) {
    const auto half = [row](const uint8_t* halves) { return half_to_float(halves + 2 * row); };
    if constexpr (format == FormatId::MXFP4) {
        return {half_power(scales[row]), 0.0f};
    } else if constexpr (format == FormatId::Q4_1 || format == FormatId::Q5_1) {
        return {half(scales), half(scales + 32)};
    } else if constexpr (format == FormatId::Q2_K) {
        const uint8_t both = scale_byte(scales + 64, index, row);
        return {half(scales) * static_cast<float>(both & 15), -half(scales + 32) * static_cast<float>(both >> 4)};
    } else if constexpr (format == FormatId::Q3_K) {
        const int low = scale_byte(scales, index % 8, row) >> (index < 8 ? 0 : 4);
        const int high = scale_byte(scales, 8 + index % 4, row) >> (2 * (index / 4));
        return {half(header) * static_cast<float>(((low & 15) | ((high & 3) << 4)) - 32), 0.0f};
    } else if constexpr (format == FormatId::Q4_K || format == FormatId::Q5_K) {
        const uint8_t* bytes = scales + 64;
        int scale, minimum;
        if (index < 4) {
            scale = scale_byte(bytes, index, row) & 63;
            minimum = scale_byte(bytes, index + 4, row) & 63;
        } else {
            const int both = scale_byte(bytes, index + 4, row);
            scale = (both & 15) | ((scale_byte(bytes, index - 4, row) >> 6) << 4);
            minimum = (both >> 4) | ((scale_byte(bytes, index, row) >> 6) << 4);
        }
        return {half(scales) * static_cast<float>(scale), -half(scales + 32) * static_cast<float>(minimum)};
    } else if constexpr (format == FormatId::Q6_K) {
        const auto scale = static_cast<int8_t>(scale_byte(scales, index, row));
        return {half(header) * static_cast<float>(scale), 0.0f};
    } else {
        return {half(scales), 0.0f};
    }
}

}  // namespace ridgeline
