// The text of attention, compiled once for each instruction set (see vector.h), and its products in float.
//
// A row is one query head of one token. attention_bf16.h has the products for processors that multiply bfloat16; it
// defines RIDGELINE_BF16 and includes this file for the rest.
#pragma once

#include "attention.h"
#include "vector.h"

namespace ridgeline::RIDGELINE_ISA {

constexpr float MINUS_INFINITY = -__builtin_inff();
constexpr float LOG2_E = 1.44269504f;
constexpr int KEY_VECTORS = static_cast<int>(PAGE_SLOTS) / LANES;

// ---- storing ----

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

// ---- the rows of a block of queries ----

struct Rows {
    int64_t count, head_width, stride;
    float scale, softcap;
    float* q;            // [row][stride]
    uint16_t* q_bf16;    // [row][stride]
    float* weighted;     // [row][stride], of the span that is being walked
    float* total;        // [row][stride], of the spans before it
    float* maxima;       // [row], in powers of two
    float* sums;         // [row][16]
    float* total_maxima;
    float* total_sums;
    int32_t* first;      // [row] first position that is seen
    int32_t* last;       // [row] the row's own position
    uint8_t* page;       // room for a dequantised page
};

struct Page {
    const uint8_t* block;
    bool has_codes;
    int64_t first_position;
};

static Rows rows_of(const AttendRequest& request, const QueryBlock& block, int64_t kv_head, uint8_t* scratch) {
    const int64_t group = request.num_query_heads / request.layer.num_heads;
    Rows rows{};
    rows.head_width = request.layer.head_width;
    rows.stride = value_stride(rows.head_width);
    rows.scale = request.scale;
    rows.softcap = request.softcap;
    rows.count = (block.token_end - block.token_begin) * group;
    const auto take = [&](int64_t bytes) {
        uint8_t* memory = scratch;
        scratch += (bytes + 63) / 64 * 64;
        return memory;
    };
    rows.page = take(2 * 4 * rows.stride * PAGE_SLOTS);
    rows.q = reinterpret_cast<float*>(take(rows.count * rows.stride * 4));
    rows.q_bf16 = reinterpret_cast<uint16_t*>(take(rows.count * rows.stride * 2));
    rows.weighted = reinterpret_cast<float*>(take(rows.count * rows.stride * 4));
    rows.total = reinterpret_cast<float*>(take(rows.count * rows.stride * 4));
    rows.sums = reinterpret_cast<float*>(take(rows.count * 64));
    rows.maxima = reinterpret_cast<float*>(take(rows.count * 4));
    rows.total_maxima = reinterpret_cast<float*>(take(rows.count * 4));
    rows.total_sums = reinterpret_cast<float*>(take(rows.count * 4));
    rows.first = reinterpret_cast<int32_t*>(take(rows.count * 4));
    rows.last = reinterpret_cast<int32_t*>(take(rows.count * 4));
    int64_t row = 0;
    for (int64_t t = block.token_begin; t < block.token_end; ++t)
        for (int64_t g = 0; g < group; ++g, ++row) {
            const int32_t position = request.step->positions[t];
            const int32_t window = static_cast<int32_t>(request.window);
            rows.last[row] = position;
            rows.first[row] = window > 0 && position >= window ? position - window + 1 : 0;
            const float* q = request.q + t * request.q_stride + (kv_head * group + g) * rows.head_width;
            std::memcpy(rows.q + row * rows.stride, q, static_cast<size_t>(rows.head_width) * 4);
            for (int64_t c = 0; c < rows.head_width; ++c) rows.q_bf16[row * rows.stride + c] = to_bf16(q[c]);
        }
    return rows;
}

static void begin_span(const Rows& rows) {
    for (int64_t row = 0; row < rows.count; ++row) rows.maxima[row] = MINUS_INFINITY;
    std::memset(rows.sums, 0, static_cast<size_t>(rows.count) * 64);
    std::memset(rows.weighted, 0, static_cast<size_t>(rows.count * rows.stride) * 4);
}

// ---- products in float ----

#if !defined(RIDGELINE_BF16)

// A page as float keys [C][64] and values [64][S], whatever it is kept as.
static void unpack_page(const Rows& rows, const KvFormat format, const Page& page, float* keys, float* values) {
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

static void attend_page(const Rows& rows, const KvFormat format, const Page& page) {
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

#else

static void attend_page(const Rows& rows, KvFormat format, const Page& page);

#endif

// ---- spans, in order ----

// (maximum, sum, weighted) of earlier spans and of the next one become one: folded in order of position.
RIDGELINE_INLINE void fold(float* maximum, float* sum_of_weights, float* weighted, float next_maximum, float next_sum,
                           const float* next_weighted, int64_t stride) {
    const float largest_of_both = next_maximum > *maximum ? next_maximum : *maximum;
    const float base = largest_of_both == MINUS_INFINITY ? 0.0f : largest_of_both;
    const float old_factor = exp2_of(broadcast(*maximum - base))[0];
    const float next_factor = exp2_of(broadcast(next_maximum - base))[0];
    *maximum = largest_of_both;
    *sum_of_weights = *sum_of_weights * old_factor + next_sum * next_factor;
    for (int64_t c = 0; c < stride; c += LANES)
        store(weighted + c, load(weighted + c) * old_factor + load(next_weighted + c) * next_factor);
}

static float sum_of_row(const float* sums) {
    float lanes[16];
    std::memcpy(lanes, sums, sizeof lanes);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

static void fold_span(const Rows& rows, bool is_first) {
    for (int64_t row = 0; row < rows.count; ++row) {
        float* total = rows.total + row * rows.stride;
        const float* weighted = rows.weighted + row * rows.stride;
        const float row_sum = sum_of_row(rows.sums + row * 16);
        if (is_first) {
            rows.total_maxima[row] = rows.maxima[row];
            rows.total_sums[row] = row_sum;
            std::memcpy(total, weighted, static_cast<size_t>(rows.stride) * 4);
        } else {
            fold(rows.total_maxima + row, rows.total_sums + row, total, rows.maxima[row], row_sum, weighted,
                 rows.stride);
        }
    }
}

static void write_result(const AttendRequest& request, const QueryBlock& block, int64_t kv_head, int64_t row,
                         float row_sum, const float* weighted) {
    const int64_t group = request.num_query_heads / request.layer.num_heads, width = request.layer.head_width;
    const int64_t token = block.token_begin + row / group;
    float* y = request.y + token * request.y_stride + (kv_head * group + row % group) * width;
    const float inverse = 1.0f / row_sum;
    for (int64_t c = 0; c < width; ++c) y[c] = weighted[c] * inverse;
}

static void write_partial(const Rows& rows, float* partial) {
    const int64_t floats = partial_floats(rows.head_width);
    for (int64_t row = 0; row < rows.count; ++row, partial += floats) {
        partial[0] = rows.maxima[row];
        partial[1] = sum_of_row(rows.sums + row * 16);
        std::memcpy(partial + 16, rows.weighted + row * rows.stride, static_cast<size_t>(rows.stride) * 4);
    }
}

static void attend(const AttendRequest& request, const QueryBlock& block, int64_t kv_head, SpanRange spans,
                   float* partial, uint8_t* scratch) {
    const KvLayer& layer = request.layer;
    const StepView& step = *request.step;
    const Rows rows = rows_of(request, block, kv_head, scratch);
    const int64_t first_page = rows.first[0] / PAGE_SLOTS, own_page = rows.last[0] / PAGE_SLOTS;
    for (int64_t span = spans.begin; span < spans.end; ++span) {
        begin_span(rows);
        for (int64_t index = span * SPAN_PAGES; index < (span + 1) * SPAN_PAGES; ++index) {
            if (index < first_page || index > own_page) continue;
            Page page{nullptr, false, index * PAGE_SLOTS};
            if (layer.format == KvFormat::Int8 && index < own_page) {
                page.has_codes = true;
                page.block = layer.pages + (step.page(block.sequence, index) * layer.num_heads + kv_head) *
                                               block_bytes(layer.format, layer.head_width);
            } else {
                page.block = plain_block(layer, request.staging, step, block.sequence, index, kv_head);
            }
            attend_page(rows, layer.format, page);
        }
        if (partial != nullptr)
            write_partial(rows, partial);
        else
            fold_span(rows, span == spans.begin);
    }
    if (partial != nullptr) return;
    for (int64_t row = 0; row < rows.count; ++row)
        write_result(request, block, kv_head, row, rows.total_sums[row], rows.total + row * rows.stride);
}

static void merge(const AttendRequest& request, const QueryBlock& block, int64_t kv_head, int64_t num_spans,
                  const float* partials, int64_t partial_stride) {
    const int64_t group = request.num_query_heads / request.layer.num_heads;
    const int64_t stride = value_stride(request.layer.head_width), floats = partial_floats(request.layer.head_width);
    const int64_t num_rows = (block.token_end - block.token_begin) * group;
    float total[256];
    for (int64_t row = 0; row < num_rows; ++row) {
        const float* first = partials + row * floats;
        float maximum = first[0], row_sum = first[1];
        std::memcpy(total, first + 16, static_cast<size_t>(stride) * 4);
        for (int64_t span = 1; span < num_spans; ++span) {
            const float* next = partials + span * partial_stride + row * floats;
            fold(&maximum, &row_sum, total, next[0], next[1], next + 16, stride);
        }
        write_result(request, block, kv_head, row, row_sum, total);
    }
}

extern const AttentionKernels ATTENTION = {store_key_value, quantise_block, attend, merge};

}  // namespace ridgeline::RIDGELINE_ISA
