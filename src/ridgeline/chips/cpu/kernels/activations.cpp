// Activations in the forms that the products read. A row's form depends on the row alone, and is the same in every
// instruction set.
#include <cstring>

#include "matmul_kernels.h"
#include "scalar_numbers.h"

namespace ridgeline {

namespace {

int64_t padded_width(int64_t width) { return (width + GROUP_VALUES - 1) / GROUP_VALUES * GROUP_VALUES; }

}  // namespace

ActivationKind activation_kind(FormatId format) {
    switch (format) {
        case FormatId::F32:
        case FormatId::F16:
            return ActivationKind::F32;
        case FormatId::BF16:
            return ActivationKind::Bf16;
        default:
            return ActivationKind::Int8;
    }
}

size_t activation_row_bytes(ActivationKind kind, int64_t width) {
    const int64_t bytes = num_groups_of(width) * activation_group_bytes(kind);
    // An odd number of lines, so that the same place of several rows does not fall into one set of the cache.
    return static_cast<size_t>(((bytes + LINE_BYTES - 1) / LINE_BYTES | 1) * LINE_BYTES);
}

size_t activation_offset_bytes(ActivationKind kind, int64_t column) {
    return static_cast<size_t>(column / GROUP_VALUES * activation_group_bytes(kind));
}

void prepare_activations(ActivationKind kind, const float* x, int64_t x_stride, int64_t, int64_t width,
                         uint8_t* prepared, int64_t row_begin, int64_t row_end) {
    const auto row_bytes = static_cast<int64_t>(activation_row_bytes(kind, width));
    const PrepareFunction prepare_int8 = active_instruction_set().prepare_int8;
    for (int64_t row = row_begin; row < row_end; ++row) {
        const float* from = x + row * x_stride;
        uint8_t* to = prepared + row * row_bytes;
        if (kind == ActivationKind::Int8) {
            prepare_int8(from, width, to);
        } else if (kind == ActivationKind::Bf16) {
            auto* values = reinterpret_cast<uint16_t*>(to);
            for (int64_t i = 0; i < width; ++i) values[i] = float_to_bfloat(from[i]);
            std::memset(values + width, 0, static_cast<size_t>(padded_width(width) - width) * 2);
        } else {
            std::memcpy(to, from, static_cast<size_t>(width) * 4);
            std::memset(to + width * 4, 0, static_cast<size_t>(padded_width(width) - width) * 4);
        }
    }
}

}  // namespace ridgeline
