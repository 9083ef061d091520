// The text of attention, compiled once for each instruction set (see vector.h). With RIDGELINE_BF16 defined, products
// of bf16 and int8 keys and values run on the processor's bfloat16 instructions, else in float.
#pragma once

#include "attention_float.h"
#include "attention_state.h"
#include "attention_store.h"
#if defined(RIDGELINE_BF16)
#include "attention_bf16.h"
#endif

namespace ridgeline::RIDGELINE_ISA {

// What queries are multiplied by before they are rounded, so that their scores are powers of two, or what is capped.
static float query_factor(const AttendRequest& request) {
#if defined(RIDGELINE_BF16)
    if (request.layer.format != KvFormat::F32)
        return request.softcap > 0 ? request.scale / request.softcap : request.scale * LOG2_E;
#endif
    static_cast<void>(request);
    return 1.0f;
}

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
    rows.page = take(page_scratch_bytes(rows.head_width));
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
    rows.tile = take(TILE_SCRATCH_BYTES);
    int64_t row = 0;
    const float factor = query_factor(request);
    for (int64_t t = block.token_begin; t < block.token_end; ++t)
        for (int64_t g = 0; g < group; ++g, ++row) {
            const int32_t position = request.step->positions[t];
            const int32_t window = static_cast<int32_t>(request.window);
            rows.last[row] = position;
            rows.first[row] = window > 0 && position >= window ? position - window + 1 : 0;
            const float* q = request.q + t * request.q_stride + (kv_head * group + g) * rows.head_width;
            float* own = rows.q + row * rows.stride;
            for (int64_t c = 0; c < rows.head_width; ++c) own[c] = q[c] * factor;
            for (int64_t c = 0; c < rows.head_width; ++c) rows.q_bf16[row * rows.stride + c] = to_bf16(own[c]);
        }
    return rows;
}

static void begin_span(const Rows& rows) {
    for (int64_t row = 0; row < rows.count; ++row) rows.maxima[row] = MINUS_INFINITY;
    std::memset(rows.sums, 0, static_cast<size_t>(rows.count) * 64);
    std::memset(rows.weighted, 0, static_cast<size_t>(rows.count * rows.stride) * 4);
}

static void attend_page(const Rows& rows, KvFormat format, const Page& page) {
#if defined(RIDGELINE_BF16)
    if (format != KvFormat::F32) return attend_page_in_bf16(rows, page);
#endif
    attend_page_in_floats(rows, format, page);
}

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
    const auto block_at = [&](int64_t index) -> const uint8_t* {
        if (layer.format != KvFormat::Int8 || index == own_page)
            return plain_block(layer, request.staging, step, block.sequence, index, kv_head);
        return layer.block(step.page(block.sequence, index), kv_head);
    };
    for (int64_t span = spans.begin; span < spans.end; ++span) {
        begin_span(rows);
        for (int64_t index = span * SPAN_PAGES; index < (span + 1) * SPAN_PAGES; ++index) {
            if (index < first_page || index > own_page) continue;
            const bool has_codes = layer.format == KvFormat::Int8 && index < own_page;
            const bool has_next = index < own_page;
            const uint8_t* next = has_next ? block_at(index + 1) : nullptr;
            const int64_t next_bytes = has_next ? block_bytes(layer.format, layer.head_width) : 0;
            attend_page(rows, layer.format, {block_at(index), has_codes, index * PAGE_SLOTS, next, next_bytes});
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
    float total[value_stride(MAX_HEAD_WIDTH)];
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
