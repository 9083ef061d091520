// From the bytes of a file to packed tiles. Source of the file layouts: ggml's ggml-common.h and ggml-quants.c.
//
// Every format is read as words: words[v] holds the unsigned codes of the inputs 4v..4v+3 of a group of 32, a byte
// each.
#include <bit>
#include <cstring>

#include "as_constants.h"
#include "matmul.h"
#include "tile_layout.h"

static_assert(std::endian::native == std::endian::little, "files and tiles are little-endian");

namespace ridgeline {

namespace {

uint32_t load_word(const uint8_t* source) {
    uint32_t word;
    std::memcpy(&word, source, sizeof word);
    return word;
}

void store_word(uint8_t* target, uint32_t word) { std::memcpy(target, &word, sizeof word); }

constexpr uint32_t LOW_NIBBLES = 0x0f0f0f0f;
constexpr uint32_t LOW_PAIRS = 0x03030303;
constexpr uint32_t LOW_BITS = 0x01010101;

// Four bits to the lowest bit of four bytes.
uint32_t spread_bits(uint32_t four_bits) { return (four_bits * 0x00204081u) & LOW_BITS; }

void read_nibbles(const uint8_t* source, uint32_t words[8]) {
    for (int i = 0; i < 4; ++i) {
        const uint32_t word = load_word(source + 4 * i);
        words[i] = word & LOW_NIBBLES;
        words[4 + i] = (word >> 4) & LOW_NIBBLES;
    }
}

void add_fifth_bits(const uint8_t* source, uint32_t words[8]) {
    const uint32_t bits = load_word(source);
    for (int v = 0; v < 8; ++v) words[v] |= spread_bits((bits >> (4 * v)) & 15) << 4;
}

// Codes of group `group` (of 32) within a block of the file.
template <FormatId format>
void read_group(const uint8_t* block, int group, uint32_t words[8]) {
    if constexpr (format == FormatId::Q4_0 || format == FormatId::IQ4_NL) {
        read_nibbles(block + 2, words);
    } else if constexpr (format == FormatId::Q4_1) {
        read_nibbles(block + 4, words);
    } else if constexpr (format == FormatId::MXFP4) {
        read_nibbles(block + 1, words);
    } else if constexpr (format == FormatId::Q5_0) {
        read_nibbles(block + 6, words);
        add_fifth_bits(block + 2, words);
    } else if constexpr (format == FormatId::Q5_1) {
        read_nibbles(block + 8, words);
        add_fifth_bits(block + 4, words);
    } else if constexpr (format == FormatId::Q8_0) {
        for (int v = 0; v < 8; ++v) words[v] = load_word(block + 2 + 4 * v) ^ 0x80808080u;
    } else if constexpr (format == FormatId::Q2_K) {
        const uint8_t* codes = block + 16 + 32 * (group / 4);
        for (int v = 0; v < 8; ++v) words[v] = (load_word(codes + 4 * v) >> (2 * (group % 4))) & LOW_PAIRS;
    } else if constexpr (format == FormatId::Q3_K) {
        const uint8_t* codes = block + 32 + 32 * (group / 4);
        for (int v = 0; v < 8; ++v) {
            const uint32_t high = (load_word(block + 4 * v) >> group) & LOW_BITS;
            words[v] = ((load_word(codes + 4 * v) >> (2 * (group % 4))) & LOW_PAIRS) | (high << 2);
        }
    } else if constexpr (format == FormatId::Q4_K || format == FormatId::Q5_K) {
        const uint8_t* codes = block + (format == FormatId::Q4_K ? 16 : 48) + 32 * (group / 2);
        for (int v = 0; v < 8; ++v) {
            words[v] = (load_word(codes + 4 * v) >> (4 * (group % 2))) & LOW_NIBBLES;
            if constexpr (format == FormatId::Q5_K) {
                words[v] |= ((load_word(block + 16 + 4 * v) >> group) & LOW_BITS) << 4;
            }
        }
    } else if constexpr (format == FormatId::Q6_K) {
        const int half = group / 4, quarter = group % 4;
        const uint8_t* low = block + 64 * half + 32 * (quarter % 2);
        const uint8_t* high = block + 128 + 32 * half;
        for (int v = 0; v < 8; ++v) {
            words[v] = ((load_word(low + 4 * v) >> (4 * (quarter / 2))) & LOW_NIBBLES) |
                       (((load_word(high + 4 * v) >> (2 * quarter)) & LOW_PAIRS) << 4);
        }
    }
}

// The planes of a format, with the lowest bit of the codes that each holds.
void write_nibbles(const uint32_t words[8], uint8_t* lines) {
    for (int z = 0; z < 4; ++z) {
        store_word(lines + z * LINE_STRIDE, (words[2 * z] & LOW_NIBBLES) | ((words[2 * z + 1] & LOW_NIBBLES) << 4));
    }
}

void write_bits(const uint32_t words[8], int shift, uint8_t* line) {
    uint32_t word = 0;
    for (int v = 0; v < 8; ++v) word |= ((words[v] >> shift) & LOW_BITS) << v;
    store_word(line, word);
}

void write_pairs(const uint32_t words[8], int shift, uint8_t* lines) {
    for (int h = 0; h < 2; ++h) {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= ((words[4 * h + i] >> shift) & LOW_PAIRS) << (2 * i);
        store_word(lines + h * LINE_STRIDE, word);
    }
}

template <FormatId format>
void write_group(const uint32_t words[8], uint8_t* target) {
    if constexpr (format == FormatId::Q8_0) {
        for (int v = 0; v < 8; ++v) store_word(target + v * LINE_STRIDE, words[v]);
    } else if constexpr (format == FormatId::Q5_0 || format == FormatId::Q5_1 || format == FormatId::Q5_K) {
        write_bits(words, 4, target);
        write_nibbles(words, target + LINE_STRIDE);
    } else if constexpr (format == FormatId::Q6_K) {
        write_pairs(words, 4, target);
        write_nibbles(words, target + 2 * LINE_STRIDE);
    } else if constexpr (format == FormatId::Q3_K) {
        write_bits(words, 2, target);
        write_pairs(words, 0, target + LINE_STRIDE);
    } else if constexpr (format == FormatId::Q2_K) {
        write_pairs(words, 0, target);
    } else {
        write_nibbles(words, target);
    }
}

// Scales of a block of row `row`; `header` are the f16 scales in front of those of the run.
template <FormatId format>
void write_scales(const uint8_t* block, int64_t row, uint8_t* header, uint8_t* scales) {
    const auto transpose = [row](const uint8_t* source, int count, uint8_t* target) {
        for (int i = 0; i < count; ++i) target[i * TILE_ROWS + row] = source[i];
    };
    const auto copy_half = [row](const uint8_t* source, uint8_t* target) { std::memcpy(target + 2 * row, source, 2); };
    if constexpr (format == FormatId::MXFP4) {
        scales[row] = block[0];
    } else if constexpr (format == FormatId::Q4_1 || format == FormatId::Q5_1) {
        copy_half(block, scales);
        copy_half(block + 2, scales + 32);
    } else if constexpr (format == FormatId::Q4_K || format == FormatId::Q5_K) {
        copy_half(block, scales);
        copy_half(block + 2, scales + 32);
        transpose(block + 4, 12, scales + 64);
    } else if constexpr (format == FormatId::Q2_K) {
        copy_half(block + 80, scales);
        copy_half(block + 82, scales + 32);
        transpose(block, 16, scales + 64);
    } else if constexpr (format == FormatId::Q3_K) {
        copy_half(block + 108, header);
        transpose(block + 96, 12, scales);
    } else if constexpr (format == FormatId::Q6_K) {
        copy_half(block + 208, header);
        transpose(block + 192, 16, scales);
    } else {
        copy_half(block, scales);
    }
}

struct Source {
    const uint8_t* bytes;  // of the tile's rows
    int64_t num_rows;      // 0..16
    int64_t width;
};

template <FormatId format>
void pack_quantised_tile(const Source& source, uint8_t* pair, int tile) {
    constexpr TileLayout layout = tile_layout(format);
    constexpr int block_groups = layout.block_values / GROUP_VALUES;
    const int64_t num_blocks = source.width / layout.block_values;
    const int64_t num_groups = num_groups_of(source.width);
    for (int64_t block_index = 0; block_index < num_blocks; ++block_index) {
        const int64_t run_index = block_index * block_groups / RUN_GROUPS;
        const int64_t first = block_index * block_groups % RUN_GROUPS;
        const int64_t run_groups = groups_in_run(run_index * RUN_GROUPS, num_groups);
        uint8_t* run = pair + layout.run_offset(run_index);
        for (int64_t row = 0; row < source.num_rows; ++row) {
            const uint8_t* block = source.bytes + (row * num_blocks + block_index) * layout.block_bytes;
            write_scales<format>(block, row, run + layout.header_offset(tile), run + layout.scale_offset(tile, first));
            for (int group = 0; group < block_groups; ++group) {
                uint32_t words[8];
                read_group<format>(block, group, words);
                write_group<format>(words, run + layout.group_offset(tile, first + group, run_groups) + 4 * row);
            }
        }
    }
}

// `values_together`: inputs of a row that lie side by side.
void pack_plain_tile(const Source& source, int64_t value_bytes, int64_t values_together, uint8_t* pair, int tile) {
    const int64_t piece_bytes = value_bytes * values_together;
    const int64_t row_bytes = source.width * value_bytes;
    for (int64_t row = 0; row < source.num_rows; ++row) {
        const uint8_t* values = source.bytes + row * row_bytes;
        for (int64_t offset = 0, piece = 0; offset < row_bytes; offset += piece_bytes, ++piece) {
            const int64_t left = row_bytes - offset;
            std::memcpy(pair + ((PAIR_TILES * piece + tile) * TILE_ROWS + row) * piece_bytes, values + offset,
                        static_cast<size_t>(left < piece_bytes ? left : piece_bytes));
        }
    }
}

void pack_tile(FormatId format, const Source& source, uint8_t* pair, int tile) {
    switch (format) {
        case FormatId::F32:
            return pack_plain_tile(source, 4, 1, pair, tile);
        case FormatId::F16:
            return pack_plain_tile(source, 2, 1, pair, tile);
        case FormatId::BF16:
            return pack_plain_tile(source, 2, 2, pair, tile);
        default:
            with_quantised_format(format, [&]<FormatId id>() { pack_quantised_tile<id>(source, pair, tile); });
    }
}

}  // namespace

int64_t num_tiles(const PackedMatrix& matrix) { return (matrix.rows + TILE_ROWS - 1) / TILE_ROWS; }

size_t packed_bytes(FormatId format, int64_t rows, int64_t width) {
    const int64_t pairs = (rows + PAIR_ROWS - 1) / PAIR_ROWS;
    return static_cast<size_t>(pairs * tile_layout(format).pair_bytes(num_groups_of(width)));
}

void pack_tiles(FormatId format, int64_t rows, int64_t width, const uint8_t* source, uint8_t* packed,
                int64_t tile_begin, int64_t tile_end) {
    const TileLayout layout = tile_layout(format);
    const int64_t pair_bytes = layout.pair_bytes(num_groups_of(width));
    const int64_t row_bytes = width / layout.block_values * layout.block_bytes;
    // A pair is written by whoever has its first tile.
    for (int64_t tile = (tile_begin + 1) / PAIR_TILES * PAIR_TILES; tile < tile_end; tile += PAIR_TILES) {
        uint8_t* pair = packed + tile / PAIR_TILES * pair_bytes;
        // What the rows do not fill counts as zero weights: all scales there are zero.
        std::memset(pair, 0, static_cast<size_t>(pair_bytes));
        for (int i = 0; i < PAIR_TILES; ++i) {
            const int64_t first_row = (tile + i) * TILE_ROWS;
            const int64_t rows_left = rows - first_row;
            if (rows_left <= 0) break;
            pack_tile(format, {source + first_row * row_bytes, rows_left < TILE_ROWS ? rows_left : TILE_ROWS, width},
                      pair, i);
        }
    }
}

}  // namespace ridgeline
