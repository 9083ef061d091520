// Where keys and values lie, and storing them; the kernels themselves are in attention_rows.h and attention_bf16.h.
#include "attention.h"

#include <algorithm>
#include <cstring>

#include "matmul.h"

namespace ridgeline {

const AttentionKernels& attention_kernels() {
#if defined(__x86_64__)
    const char* name = instruction_set();
    if (std::strncmp(name, "avx512", 6) == 0)
        return __builtin_cpu_supports("avx512bf16") ? avx512bf16::ATTENTION : avx512::ATTENTION;
    if (std::strncmp(name, "avx2", 4) == 0) return avx2::ATTENTION;
#endif
    return portable::ATTENTION;
}

size_t attend_scratch_bytes(int64_t group_heads, int64_t head_width) {
    const int64_t rows = MAX_BLOCK_TOKENS * group_heads, stride = value_stride(head_width);
    // Queries as floats and as bf16, two sets of weighted values, sums and maxima and limits of rows.
    const int64_t row_bytes = rows * (4 * stride + 2 * stride + 2 * 4 * stride + 256);
    // A dequantised page of float keys and values, or queries in whole numbers.
    const int64_t page = page_scratch_bytes(head_width);
    return static_cast<size_t>(row_bytes + page + 16384);
}

SpanRange spans_of(const AttendRequest& request, const QueryBlock& block) {
    const int64_t first_position = request.step->positions[block.token_begin];
    const int64_t last_position = request.step->positions[block.token_end - 1];
    const int64_t first = request.window > 0 ? std::max<int64_t>(0, first_position - request.window + 1) : 0;
    constexpr int64_t span_slots = SPAN_PAGES * PAGE_SLOTS;
    return {first / span_slots, last_position / span_slots + 1};
}

namespace {

struct TouchedPages {
    int64_t first, last;
};

TouchedPages touched_pages(const StepView& step, int64_t sequence) {
    const int64_t first_token = step.query_starts[sequence];
    return {step.positions[first_token] / PAGE_SLOTS, (step.context_lengths[sequence] - 1) / PAGE_SLOTS};
}

// Whether the next slot is stored in this step as well.
bool next_is_stored(const StepView& step, int64_t token) {
    return token + 1 < step.num_tokens && step.sequences[token + 1] == step.sequences[token];
}

}  // namespace

int64_t num_staged_pages(const StepView& step, int64_t sequence) {
    const TouchedPages touched = touched_pages(step, sequence);
    return std::max<int64_t>(0, touched.last - touched.first - 1);
}

uint8_t* plain_block(const KvLayer& layer, const Staging& staging, const StepView& step, int64_t sequence,
                     int64_t page_index, int64_t kv_head) {
    if (layer.format != KvFormat::Int8) {
        return layer.block(step.page(sequence, page_index), kv_head);
    }
    const TouchedPages touched = touched_pages(step, sequence);
    if (page_index < touched.first) return nullptr;
    if (page_index + 2 <= touched.last) {
        const int64_t number = staging.first_staged[sequence] + page_index - touched.first;
        return staging.blocks + (number * layer.num_heads + kv_head) * plain_block_bytes(false, layer.head_width);
    }
    return layer.open_block(step.places[sequence], page_index & 1, kv_head);
}

void store_tokens(const AttentionKernels& kernels, const KvLayer& layer, const StepView& step, const FloatRows& k,
                  const FloatRows& v, int64_t token_begin, int64_t token_end, int64_t head_begin, int64_t head_end) {
    const bool is_f32 = layer.format == KvFormat::F32;
    for (int64_t head = head_begin; head < head_end; ++head)
        for (int64_t t = token_begin; t < token_end; ++t) {
            const int64_t slot = step.slots[t];
            kernels.store(is_f32, layer.head_width, k.first + t * k.stride + head * layer.head_width,
                          v.first + t * v.stride + head * layer.head_width, slot % PAGE_SLOTS, !next_is_stored(step, t),
                          layer.block(slot / PAGE_SLOTS, head));
        }
}

void store_sequence(const AttentionKernels& kernels, const KvLayer& layer, const Staging& staging, const StepView& step,
                    const FloatRows& k, const FloatRows& v, int64_t sequence, int64_t kv_head) {
    const TouchedPages touched = touched_pages(step, sequence);
    const int64_t token_begin = step.query_starts[sequence], token_end = step.query_starts[sequence + 1];
    if (num_staged_pages(step, sequence) > 0 && step.positions[token_begin] % PAGE_SLOTS > 0) {
        // The first page goes on from what its place holds, which the last pages of this step will overwrite.
        const uint8_t* open = layer.open_block(step.places[sequence], touched.first & 1, kv_head);
        std::memcpy(plain_block(layer, staging, step, sequence, touched.first, kv_head), open,
                    plain_block_bytes(false, layer.head_width));
    }
    for (int64_t t = token_begin; t < token_end; ++t) {
        const int64_t position = step.positions[t], slot = position % PAGE_SLOTS;
        uint8_t* plain = plain_block(layer, staging, step, sequence, position / PAGE_SLOTS, kv_head);
        kernels.store(false, layer.head_width, k.first + t * k.stride + kv_head * layer.head_width,
                      v.first + t * v.stride + kv_head * layer.head_width, slot, !next_is_stored(step, t), plain);
        if (slot == PAGE_SLOTS - 1) {
            const int64_t page = step.page(sequence, position / PAGE_SLOTS);
            kernels.quantise(layer.head_width, plain, layer.block(page, kv_head));
        }
    }
}

}  // namespace ridgeline
