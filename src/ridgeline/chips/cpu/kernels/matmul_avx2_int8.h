// The text of the int8 products with AVX2, compiled for either way of multiplying bytes.
//
// A way (`Way`) provides:
//   Lines                  the Simd that makes its code lines (record_text.h)
//   extended_first         whether products over records begin with those of the extended lines: that saves additions,
//                          and takes registers
//   max_rows<t>            how many rows its registers hold, with two vectors (16 outputs) of each
//   Sum<t>                 the int32 products of 8 outputs with one row: begin(dot) or nothing, add<line>(codes, x) for
//                          the code lines that share a scale (`line` counts them), then total()
//   begin<t>(minus sum)    what the products of a row begin with, for the zero of the codes
//   product<t>(codes, x)   the product of an extended line: what it counts for once it went through `whole`,
//   whole(product)         and what begins with `begin` goes through it as well
//   extended<t>(begin, first codes, first x, second codes, second x)   both lines and the beginning, whole
//
// The order of the operations on one output is that of the portable kernel, so are the bits.
#pragma once

#include <cstddef>
#include <cstring>

#include "matmul_avx2_simd.h"

namespace ridgeline::avx2 {

// What the loops must know of a format; formats that agree in it share those over records.
struct Traits {
    int code_bits;
    int num_scales;
    bool has_minimum;
    int zero;
};

template <typename Way>
constexpr Traits traits(FormatId format) {
    const TileLayout layout = tile_layout(format);
    if (Way::Lines::fills_bytes) return {8, layout.scales_per_group, layout.has_minimum, layout.has_minimum ? 0 : 128};
    if (layout.zero == 128) return {8, layout.scales_per_group, false, 0};  // signed
    return {layout.code_bits, layout.scales_per_group, layout.has_minimum, layout.zero};
}

constexpr int VECTOR_BYTES = 32;  // of codes: 8 outputs
constexpr int VECTOR_OUTPUTS = 8;
constexpr int TILE_VECTORS = 2;

[[gnu::always_inline]] inline __m256i load_vector(const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

[[gnu::always_inline]] inline __m256i broadcast_four(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof four);
    return _mm256_set1_epi32(four);
}

// Where the groups of several rows lie. Three registers, of which addresses of up to six rows are made.
struct Groups {
    const uint8_t *first, *fourth;
    int64_t stride;

    Groups(const uint8_t* prepared, int64_t row_bytes)
        : first(prepared), fourth(prepared + 3 * row_bytes), stride(row_bytes) {}
    [[gnu::always_inline]] const ActivationGroup& operator[](int row) const {
        return *reinterpret_cast<const ActivationGroup*>(row < 3 ? first + row * stride : fourth + (row - 3) * stride);
    }
    void advance() {
        first += sizeof(ActivationGroup);
        fourth += sizeof(ActivationGroup);
    }
};

constexpr int half_bytes_of(Traits t) { return 512 + LINE_BYTES * t.num_scales * (t.has_minimum ? 2 : 1); }

// Where in a record the codes and the scales (512 bytes further) of the outputs 8 * i lie, i below 4.
constexpr int record_offset(Traits t, int i) { return i / TILE_VECTORS * half_bytes_of(t) + i % TILE_VECTORS * 32; }

constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

// What the extended lines and the zero of the codes add to the products of a group of one row.
template <typename Way, Traits t>
struct RowExtension {
    __m256i begin[t.num_scales], high[2], in_first[2];
    int64_t line_offset[2];

    [[gnu::always_inline]] explicit RowExtension(const ActivationGroup& group) {
        for (int part = 0; part < t.num_scales; ++part) begin[part] = Way::template begin<t>(minus_sum(group, part));
        uint32_t offsets;
        std::memcpy(&offsets, group.line_offset, sizeof offsets);
        for (int line = 0; line < 2; ++line) {
            high[line] = broadcast_four(group.high[line]);
            line_offset[line] = line == 0 ? offsets & 0xffff : offsets >> 16;
            in_first[line] = _mm256_set1_epi16(static_cast<int16_t>(group.in_first[line]));
        }
    }

    // -(sum of the activations that share scale `part`)
    [[gnu::always_inline]] static __m256i minus_sum(const ActivationGroup& group, int part) {
        if (t.num_scales == 1) return _mm256_set1_epi32(group.minus_sum);
        const __m256i first = _mm256_set1_epi32(group.minus_sum_first);
        return part == 0 ? first : _mm256_sub_epi32(_mm256_set1_epi32(group.minus_sum), first);
    }

    // Of 8 outputs, for each scale. `codes` points to their place in the first code line.
    [[gnu::always_inline]] void products(const uint8_t* codes, __m256i dots[t.num_scales]) const {
        const __m256i w0 = load_vector(codes + line_offset[0]), w1 = load_vector(codes + line_offset[1]);
        if constexpr (t.num_scales == 1) {
            dots[0] = Way::template extended<t>(begin[0], w0, high[0], w1, high[1]);
        } else {
            const __m256i first = Way::template product<t>(w0, high[0]), second = Way::template product<t>(w1, high[1]);
            const __m256i half =
                _mm256_add_epi32(_mm256_and_si256(first, in_first[0]), _mm256_and_si256(second, in_first[1]));
            const __m256i rest = _mm256_sub_epi32(_mm256_add_epi32(first, second), half);
            dots[0] = Way::whole(t.zero == 0 ? half : _mm256_add_epi32(half, begin[0]));
            dots[1] = Way::whole(t.zero == 0 ? rest : _mm256_add_epi32(rest, begin[1]));
        }
    }
};

// What a group of one row multiplies the int32 products with.
template <Traits t>
struct RowScales {
    __m256 scale, scaled_sum[t.num_scales];

    [[gnu::always_inline]] explicit RowScales(const ActivationGroup& group) : scale(_mm256_set1_ps(group.scale)) {
        scaled_sum[0] = _mm256_set1_ps(group.scaled_sum);
        if constexpr (t.num_scales == 2) {
            const __m256i first = _mm256_set1_epi32(group.minus_sum_first), all = _mm256_set1_epi32(group.minus_sum);
            scaled_sum[0] = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_setzero_si256(), first)));
            scaled_sum[1] = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(first, all)));
        }
    }
};

// Scales of 8 outputs, from a record. They are loaded before sums are stored: the compiler would load them again.
template <Traits t>
struct OutputScales {
    __m256 scales[t.num_scales], minimums[t.num_scales];

    [[gnu::always_inline]] void load(const uint8_t* record) {
        const auto* floats = reinterpret_cast<const float*>(record + 512);
        for (int part = 0; part < t.num_scales; ++part) {
            scales[part] = _mm256_load_ps(floats + part * TILE_ROWS);
            if (t.has_minimum) minimums[part] = _mm256_load_ps(floats + (t.num_scales + part) * TILE_ROWS);
        }
    }

    // sum + (scale * scale of the activations) * dot [+ minimum * sum of the activations]
    [[gnu::always_inline]] __m256 add_scaled(__m256 sum, const __m256i dots[t.num_scales],
                                             const RowScales<t>& row) const {
        for (int part = 0; part < t.num_scales; ++part) {
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[part]), _mm256_mul_ps(scales[part], row.scale), sum);
            if constexpr (t.has_minimum) sum = _mm256_fmadd_ps(minimums[part], row.scaled_sum[part], sum);
        }
        return sum;
    }
};

// Code lines as they stand in records.
template <Traits t>
struct RecordLines {
    const uint8_t* record;
    template <int line>
    [[gnu::always_inline]] __m256i take(int i) const {
        return load_vector(record + record_offset(t, i) + line * LINE_BYTES);
    }
};

// Code lines from packed planes, which are left in the record: extended lines are taken from there.
template <typename Way, FormatId format>
struct PackedLines {
    const uint8_t* planes;
    uint8_t* record;
    template <int line>
    [[gnu::always_inline]] __m256i take(int i) const {
        using Lines = typename Way::Lines;
        const auto codes = code_line<Lines, format, line>(planes + i * VECTOR_BYTES);
        const __m256i taken = Lines::template recorded<format>(codes);
        Lines::store(record + record_offset(traits<Way>(format), i) + line * LINE_BYTES, taken);
        return taken;
    }
};

// One group of `rows` rows times `vectors` vectors of 8 outputs; lines, record and sums are those of the first vector.
template <typename Way, Traits t, int rows, int vectors, bool extended_first, typename Lines>
[[gnu::always_inline]] inline void multiply_group(const Lines& lines, const uint8_t* record, const Groups& groups,
                                                  float* sums) {
    constexpr int num_lines = GROUP_LINES / t.num_scales;
    __m256i dots[rows][vectors][t.num_scales];
    const auto extend = [&](int r, auto use) __attribute__((always_inline)) {
        const RowExtension<Way, t> row(groups[r]);
#pragma GCC unroll 4
        for (int i = 0; i < vectors; ++i) {
            __m256i products[t.num_scales];
            row.products(record + record_offset(t, i), products);
#pragma GCC unroll 2
            for (int part = 0; part < t.num_scales; ++part) use(dots[r][i][part], products[part]);
        }
    };
    if constexpr (extended_first) {
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) extend(r, [](__m256i& dot, __m256i product) { dot = product; });
    }
    unrolled<t.num_scales>([&](auto part) __attribute__((always_inline)) {
        typename Way::template Sum<t> products[rows][vectors];
        if constexpr (extended_first) {
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
                for (int i = 0; i < vectors; ++i) products[r][i].begin(dots[r][i][part]);
            }
        }
        unrolled<num_lines>([&](auto line) __attribute__((always_inline)) {
            constexpr int number = part * num_lines + line;
            __m256i w[vectors];
#pragma GCC unroll 4
            for (int i = 0; i < vectors; ++i) w[i] = lines.template take<number>(i);
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r) {
                const __m256i x = broadcast_four(groups[r].codes + LINE_VALUES * number);
#pragma GCC unroll 4
                for (int i = 0; i < vectors; ++i) products[r][i].template add<line>(w[i], x);
            }
        });
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
            for (int i = 0; i < vectors; ++i) dots[r][i][part] = products[r][i].total();
        }
    });
    OutputScales<t> scales[vectors];
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) scales[i].load(record + record_offset(t, i));
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r) {
        if constexpr (!extended_first) {
            extend(r, [](__m256i& dot, __m256i product) { dot = _mm256_add_epi32(dot, product); });
        }
        const RowScales<t> row(groups[r]);
        float* to = sums + r * PAIR_ROWS;
        __m256 totals[vectors];
#pragma GCC unroll 4
        for (int i = 0; i < vectors; ++i) {
            totals[i] = scales[i].add_scaled(_mm256_loadu_ps(to + i * VECTOR_OUTPUTS), dots[r][i], row);
        }
#pragma GCC unroll 4
        for (int i = 0; i < vectors; ++i) _mm256_storeu_ps(to + i * VECTOR_OUTPUTS, totals[i]);
    }
}

template <typename Way, Traits t, int rows>
void multiply_rows(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, float* sums,
                   const Ahead& ahead) {
    Groups groups(prepared, row_bytes);
    for (int64_t group = 0; group < num_groups; ++group, groups.advance()) {
        ask_ahead(ahead, group);
        for (int tile = 0; tile < PAIR_TILES; ++tile, records += half_bytes_of(t)) {
            multiply_group<Way, t, rows, TILE_VECTORS, Way::extended_first>(RecordLines<t>{records}, records, groups,
                                                                            sums + tile * TILE_ROWS);
        }
    }
}

// MultiplyFunction.
template <typename Way, Traits t>
void multiply(const uint8_t* records, int64_t num_groups, const uint8_t* prepared, int64_t row_bytes, int num_rows,
              float* sums, const Ahead& ahead) {
    constexpr int most = Way::template max_rows<t>;
    const Ahead nothing{ahead.next, 0};
    for (int row = 0; row < num_rows; row += most) {
        const uint8_t* x = prepared + row * row_bytes;
        float* to = sums + row * PAIR_ROWS;
        const Ahead& asked = row == 0 ? ahead : nothing;
        const int left = num_rows - row < most ? num_rows - row : most;
        with_constant<most>(left, [&](auto rows) __attribute__((always_inline)) {
            multiply_rows<Way, t, rows>(records, num_groups, x, row_bytes, to, asked);
        });
    }
}

template <typename Way, FormatId format, int rows>
void multiply_direct_rows(const uint8_t* planes, uint8_t* records, int64_t num_groups, const uint8_t* prepared,
                          int64_t row_bytes, float* sums, const Ahead& ahead) {
    constexpr Traits t = traits<Way>(format);
    constexpr TileLayout layout = tile_layout(format);
    constexpr int vectors = rows <= 2 ? 4 : 2;  // as registers allow
    Groups groups(prepared, row_bytes);
    for (int64_t group = 0; group < num_groups;
         ++group, groups.advance(), planes += layout.pair_group_bytes(), records += 2 * half_bytes_of(t)) {
        ask_ahead(ahead, group);
        for (int first = 0; first < PAIR_TILES * TILE_VECTORS; first += vectors) {
            uint8_t* record = records + record_offset(t, first);
            const PackedLines<Way, format> lines{planes + first * VECTOR_BYTES, record};
            multiply_group<Way, t, rows, vectors, false>(lines, record, groups, sums + first * VECTOR_OUTPUTS);
        }
    }
}

// MultiplyDirectFunction.
template <typename Way, FormatId format>
void multiply_direct(const uint8_t* planes, uint8_t* records, int64_t num_groups, const uint8_t* prepared,
                     int64_t row_bytes, int num_rows, float* sums, const Ahead& ahead) {
    with_constant<MAX_ROWS_PER_DIRECT_CALL>(num_rows, [&](auto rows) __attribute__((always_inline)) {
        multiply_direct_rows<Way, format, rows>(planes, records, num_groups, prepared, row_bytes, sums, ahead);
    });
}

template <typename Way>
FormatKernels kernels_of(FormatId format) {
    FormatKernels kernels;
    with_quantised_format(format, [&]<FormatId id>() {
        using Lines = typename Way::Lines;
        kernels.unpack = unpack_records<Lines, id>;
        kernels.unpack_scales = unpack_run_scales<Lines, id>;
        kernels.multiply = multiply<Way, traits<Way>(id)>;
        kernels.multiply_direct = multiply_direct<Way, id>;
    });
    return kernels;
}

}  // namespace ridgeline::avx2
