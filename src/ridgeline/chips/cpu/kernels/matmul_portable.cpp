// The kernels in plain C++: the definition of what the others compute, and what runs where nothing better does.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "as_constants.h"
#include "matmul_kernels.h"
#include "scalar_codes.h"
#include "scalar_numbers.h"

namespace ridgeline {

namespace {

// One group of a tile to its half of a record.
template <FormatId format>
void unpack_group(const uint8_t* run, int tile, int group, int64_t run_groups, uint8_t* half) {
    constexpr TileLayout layout = tile_layout(format);
    const uint8_t* source = run + layout.group_offset(tile, group, run_groups);
    for (int v = 0; v < 8; ++v) {
        for (int byte = 0; byte < LINE_BYTES; ++byte) {
            half[v * LINE_BYTES + byte] = read_code<format>(source, v, byte);
        }
    }
    auto* scales = reinterpret_cast<float*>(half + 512);
    float* minimums = scales + TILE_ROWS * layout.scales_per_group;
    for (int i = 0; i < layout.scales_per_group; ++i) {
        for (int row = 0; row < TILE_ROWS; ++row) {
            const Scale scale =
                read_scale<format>(run + layout.header_offset(tile), run + layout.scale_offset(tile, group),
                                   group * layout.scales_per_group + i, row);
            scales[i * TILE_ROWS + row] = scale.scale;
            if (layout.has_minimum) minimums[i * TILE_ROWS + row] = scale.minimum;
        }
    }
}

template <FormatId format>
void unpack(const uint8_t* pair, int64_t first_group, int64_t count, int64_t num_groups, uint8_t* records) {
    constexpr TileLayout layout = tile_layout(format);
    for (int64_t group = first_group; group < first_group + count; ++group, records += record_bytes(format)) {
        const int64_t run = group / RUN_GROUPS;
        for (int tile = 0; tile < PAIR_TILES; ++tile) {
            unpack_group<format>(pair + layout.run_offset(run), tile, static_cast<int>(group % RUN_GROUPS),
                                 groups_in_run(run * RUN_GROUPS, num_groups),
                                 records + tile * half_record_bytes(format));
        }
    }
}

// Adds the products of code lines with their activations, for the outputs of a tile.
template <int num_lines>
void add_lines(const uint8_t* lines, const int32_t* x, int32_t* products) {
    for (int v = 0; v < num_lines; ++v, lines += LINE_BYTES, x += LINE_VALUES) {
        for (int output = 0; output < TILE_ROWS; ++output) {
            for (int j = 0; j < LINE_VALUES; ++j) products[output] += lines[LINE_VALUES * output + j] * x[j];
        }
    }
}

// Adds the product of one group of activations with one tile's half of a record.
template <FormatId format>
void add_group(const uint8_t* half, const ActivationGroup& group, float* sums) {
    constexpr TileLayout layout = tile_layout(format);
    constexpr int num_scales = layout.scales_per_group;
    constexpr int lines_per_scale = 8 / num_scales;
    const auto* scales = reinterpret_cast<const float*>(half + 512);
    const float* minimums = scales + TILE_ROWS * num_scales;
    int32_t x[GROUP_VALUES];
    for (int i = 0; i < GROUP_VALUES; ++i) x[i] = group.codes[i];
    for (int line = 0; line < 2; ++line) {
        int32_t* extended = x + group.line_offset[line] / LINE_BYTES * LINE_VALUES;
        for (int j = 0; j < LINE_VALUES; ++j) extended[j] += EXTENSION * group.high[line][j];
    }
    for (int part = 0; part < num_scales; ++part) {
        int32_t products[TILE_ROWS] = {};
        int32_t code_sum = 0;
        const int first = part * lines_per_scale;
        for (int i = 0; i < lines_per_scale * LINE_VALUES; ++i) code_sum += x[LINE_VALUES * first + i];
        add_lines<lines_per_scale>(half + first * LINE_BYTES, x + LINE_VALUES * first, products);
        const float scaled_sum = group.scale * static_cast<float>(code_sum);
        for (int output = 0; output < TILE_ROWS; ++output) {
            const auto product = static_cast<float>(products[output] - layout.zero * code_sum);
            const float scale = scales[part * TILE_ROWS + output] * group.scale;
            sums[output] = std::fma(product, scale, sums[output]);
            if (layout.has_minimum) {
                sums[output] = std::fma(minimums[part * TILE_ROWS + output], scaled_sum, sums[output]);
            }
        }
    }
}

template <FormatId format>
void multiply_int8(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                   float* sums, const Ahead&) {
    for (int64_t index = 0; index < num_groups; ++index, records += record_bytes(format)) {
        for (int row = 0; row < num_rows; ++row) {
            const auto& group = reinterpret_cast<const ActivationGroup*>(prepared + row * row_bytes)[index];
            for (int tile = 0; tile < PAIR_TILES; ++tile) {
                add_group<format>(records + tile * half_record_bytes(format), group,
                                  sums + row * PAIR_ROWS + tile * TILE_ROWS);
            }
        }
    }
}

void unpack_f16(const uint8_t* pair, int64_t first_group, int64_t count, int64_t, uint8_t* records) {
    const uint8_t* source = pair + first_group * PAIR_TILES * 1024;
    auto* values = reinterpret_cast<float*>(records);
    for (int64_t i = 0; i < count * GROUP_VALUES * PAIR_ROWS; ++i) values[i] = half_to_float(source + 2 * i);
}

void multiply_f32(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                  float* sums, const Ahead&) {
    const auto* weights = reinterpret_cast<const float*>(records);
    for (int64_t i = 0; i < num_groups * GROUP_VALUES; ++i, weights += PAIR_ROWS) {
        for (int row = 0; row < num_rows; ++row) {
            const float x = reinterpret_cast<const float*>(prepared + row * row_bytes)[i];
            for (int output = 0; output < PAIR_ROWS; ++output) {
                float& sum = sums[row * PAIR_ROWS + output];
                sum = std::fma(weights[output], x, sum);
            }
        }
    }
}

void multiply_bf16(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
                   float* sums, const Ahead&) {
    for (int64_t i = 0; i < num_groups * GROUP_VALUES / 2; ++i, records += 2 * LINE_BYTES) {
        for (int row = 0; row < num_rows; ++row) {
            const uint8_t* x = prepared + row * row_bytes + 4 * i;
            const float x0 = bfloat_to_float(x), x1 = bfloat_to_float(x + 2);
            for (int output = 0; output < PAIR_ROWS; ++output) {
                float& sum = sums[row * PAIR_ROWS + output];
                const uint8_t* w = records + 4 * output;
                sum = std::fma(bfloat_to_float(w), x0, sum);
                sum = std::fma(bfloat_to_float(w + 2), x1, sum);
            }
        }
    }
}

uint32_t magnitude_bits(float value) { return float_to_bits(value) & 0x7fffffffu; }

// Which values of a group are extended: in each column the larger of two lines, that of the largest magnitude and that
// of the largest in other columns; of equals the first. Magnitudes are compared as integers, so that a NaN wins and
// reaches the scale.
struct ExtendedValues {
    int lines[2];
    bool in_second[LINE_VALUES];  // which of the two a column's value lies in
    float largest;                // magnitude in the group
    float largest_rest;           // of the values that are not extended
};

ExtendedValues find_extended(const float* x) {
    uint32_t magnitudes[GROUP_VALUES];
    std::transform(x, x + GROUP_VALUES, magnitudes, magnitude_bits);
    const auto first = static_cast<int>(std::max_element(magnitudes, magnitudes + GROUP_VALUES) - magnitudes);
    ExtendedValues found{};
    found.largest = bits_to_float(magnitudes[first]);
    found.lines[0] = first / LINE_VALUES;
    int second = -1;
    for (int i = 0; i < GROUP_VALUES; ++i) {
        if (i / LINE_VALUES == found.lines[0] || i % LINE_VALUES == first % LINE_VALUES) continue;
        if (second < 0 || magnitudes[i] > magnitudes[second]) second = i;
    }
    found.lines[1] = second / LINE_VALUES;
    for (int column = 0; column < LINE_VALUES; ++column) {
        uint32_t& in_first = magnitudes[LINE_VALUES * found.lines[0] + column];
        uint32_t& in_second = magnitudes[LINE_VALUES * found.lines[1] + column];
        found.in_second[column] = in_second > in_first;
        (found.in_second[column] ? in_second : in_first) = 0;
    }
    found.largest_rest = bits_to_float(*std::max_element(magnitudes, magnitudes + GROUP_VALUES));
    return found;
}

// What the products spend most of their time with, and nothing else: they cannot be faster.
double int8_loop(int64_t repeats) {
    uint8_t lines[GROUP_LINES * LINE_BYTES] = {};
    int32_t x[GROUP_VALUES] = {};
    int32_t products[TILE_ROWS] = {};
    keep_alive(lines);
    keep_alive(x);
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        add_lines<GROUP_LINES>(lines, x, products);
        keep_alive(products);
    }
    return static_cast<double>(repeats) * GROUP_VALUES * TILE_ROWS * 2;
}

double fp32_loop(int64_t repeats) {
    float sums[64] = {};
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        for (float& sum : sums) sum = sum * 0.5f + 1.0f;
        keep_alive(sums);
    }
    return static_cast<double>(repeats) * 128;
}

uint64_t read_loop(const uint8_t* const* streams, size_t stream_bytes) {
    uint64_t sum = 0;
    for (size_t offset = 0; offset < stream_bytes; offset += 64) {
        for (int stream = 0; stream < NUM_READ_STREAMS; ++stream) {
            for (size_t i = 0; i < 64; i += 8) {
                uint64_t word;
                std::memcpy(&word, streams[stream] + offset + i, sizeof word);
                sum += word;
            }
        }
    }
    return sum;
}

InstructionSet make_set() {
    InstructionSet set{};
    set.name = "portable";
    set.description = "portable";
    for (int i = 0; i < NUM_FORMAT_SLOTS; ++i) {
        with_quantised_format(static_cast<FormatId>(i),
                              [&]<FormatId id>() { set.formats[i] = {unpack<id>, multiply_int8<id>}; });
    }
    set.formats[static_cast<int>(FormatId::F32)] = {nullptr, multiply_f32};
    set.formats[static_cast<int>(FormatId::F16)] = {unpack_f16, multiply_f32};
    set.formats[static_cast<int>(FormatId::BF16)] = {nullptr, multiply_bf16};
    set.prepare_int8 = prepare_int8_portable;
    set.int8_loop = int8_loop;
    set.bf16_loop = fp32_loop;
    set.fp32_loop = fp32_loop;
    set.read_loop = read_loop;
    return set;
}

}  // namespace

void prepare_int8_portable(const float* x, int64_t width, uint8_t* prepared) {
    auto* group = reinterpret_cast<ActivationGroup*>(prepared);
    for (int64_t begin = 0; begin < width; begin += GROUP_VALUES, ++group, x += GROUP_VALUES) {
        const ExtendedValues extended = find_extended(x);
        const GroupScale scale = group_scale(extended.largest, extended.largest_rest);
        *group = {};
        for (int i = 0; i < 2; ++i) {
            group->line_offset[i] = static_cast<uint16_t>(LINE_BYTES * extended.lines[i]);
            group->in_first[i] = extended.lines[i] < GROUP_LINES / 2 ? 0xffff : 0;
        }
        int32_t sum_first = 0, sum = 0;
        for (int i = 0; i < GROUP_VALUES; ++i) {
            const int column = i % LINE_VALUES, line = extended.in_second[column] ? 1 : 0;
            const bool is_extended = i / LINE_VALUES == extended.lines[line];
            const float limit = is_extended ? EXTENDED_LIMIT : CODE_LIMIT;
            float value = x[i] * scale.inverse;
            // Not a number: any code will do, the scale carries it.
            value = value > -limit ? value : -limit;
            value = value < limit ? value : limit;
            int32_t code = static_cast<int32_t>(std::lrint(value));
            sum += code;
            if (i < GROUP_VALUES / 2) sum_first += code;
            if (is_extended) {
                const int32_t high = (code + EXTENSION / 2) >> 7;
                group->high[line][column] = static_cast<int8_t>(high);
                code -= EXTENSION * high;
            }
            group->codes[i] = static_cast<int8_t>(code);
        }
        group->scale = scale.scale;
        group->minus_sum = -sum;
        group->scaled_sum = group->scale * static_cast<float>(sum);
        group->minus_sum_first = -sum_first;
    }
}

const InstructionSet& portable_instruction_set() {
    static const InstructionSet set = make_set();
    return set;
}

}  // namespace ridgeline
