// Single rows of packed matrices as floats: embeddings, and what tests compare with.
#include "as_constants.h"
#include "matmul.h"
#include "scalar_codes.h"

namespace ridgeline {

namespace {

// Row `row` (0..31) of a pair of tiles.
template <FormatId format>
void unpack_quantised(const uint8_t* pair, int row, int64_t width, float* out) {
    constexpr TileLayout layout = tile_layout(format);
    constexpr int values_per_scale = GROUP_VALUES / layout.scales_per_group;
    const int64_t num_groups = num_groups_of(width);
    const int tile = row / static_cast<int>(TILE_ROWS);
    row %= static_cast<int>(TILE_ROWS);
    for (int64_t group = 0; group < num_groups; ++group, out += GROUP_VALUES) {
        const int in_run = static_cast<int>(group % RUN_GROUPS);
        const uint8_t* run = pair + layout.run_offset(group / RUN_GROUPS);
        const uint8_t* planes = run + layout.group_offset(tile, in_run, groups_in_run(group - in_run, num_groups));
        for (int i = 0; i < layout.scales_per_group; ++i) {
            const Scale scale =
                read_scale<format>(run + layout.header_offset(tile), run + layout.scale_offset(tile, in_run),
                                   in_run * layout.scales_per_group + i, row);
            for (int k = i * values_per_scale; k < (i + 1) * values_per_scale; ++k) {
                const int code = read_code<format>(planes, k / 4, 4 * row + k % 4);
                out[k] = scale.scale * static_cast<float>(code - layout.zero);
                if (layout.has_minimum) out[k] += scale.minimum;
            }
        }
    }
}

// `values_together` as in pack.cpp.
template <FormatId format>
void unpack_plain(const uint8_t* pair, int row, int64_t width, float* out) {
    constexpr int value_bytes = tile_layout(format).block_bytes;
    constexpr int values_together = format == FormatId::BF16 ? 2 : 1;
    for (int64_t k = 0; k < width; ++k) {
        const int64_t piece = k / values_together * PAIR_ROWS + row;
        const uint8_t* value = pair + (piece * values_together + k % values_together) * value_bytes;
        if constexpr (format == FormatId::F16) {
            out[k] = half_to_float(value);
        } else if constexpr (format == FormatId::BF16) {
            out[k] = bfloat_to_float(value);
        } else {
            std::memcpy(out + k, value, sizeof(float));
        }
    }
}

using UnpackRow = void (*)(const uint8_t* pair, int row, int64_t width, float* out);

UnpackRow unpack_row_function(FormatId format) {
    switch (format) {
        case FormatId::F32:
            return unpack_plain<FormatId::F32>;
        case FormatId::F16:
            return unpack_plain<FormatId::F16>;
        case FormatId::BF16:
            return unpack_plain<FormatId::BF16>;
        default:
            break;
    }
    UnpackRow function = nullptr;
    with_quantised_format(format, [&]<FormatId id>() { function = unpack_quantised<id>; });
    return function;
}

}  // namespace

void unpack_rows(const PackedMatrix& matrix, const int32_t* row_ids, int64_t num_rows, float* out, int64_t out_stride) {
    const UnpackRow unpack_row = unpack_row_function(matrix.format);
    const int64_t pair_bytes = tile_layout(matrix.format).pair_bytes(num_groups_of(matrix.width));
    for (int64_t i = 0; i < num_rows; ++i) {
        unpack_row(matrix.data + row_ids[i] / PAIR_ROWS * pair_bytes, row_ids[i] % PAIR_ROWS, matrix.width,
                   out + i * out_stride);
    }
}

}  // namespace ridgeline
