// The records of a plan that store keys and values and attend: blocks of queries, and who takes which.
#include <algorithm>

#include "plan.h"

namespace ridgeline {

namespace {

void set_queries(AttendRequest& request, const FloatRows& rows) {
    request.q = rows.first;
    request.q_stride = rows.stride;
}

}  // namespace

// Blocks are aligned by position, so that none crosses a page, and the longest contexts come first, so that the last
// work to be handed out is small.
void Plan::list_blocks() {
    blocks_.clear();
    int64_t block_tokens = MAX_BLOCK_TOKENS;
    while (block_tokens > 8 && step_.num_tokens / block_tokens < 4 * pool_->num_threads()) block_tokens /= 2;
    for (int32_t n = 0; n < step_.num_sequences; ++n) {
        const int32_t end = step_.query_starts[n + 1];
        for (int32_t t = step_.query_starts[n]; t < end;) {
            const auto rest = static_cast<int32_t>(block_tokens - step_.positions[t] % block_tokens);
            const int32_t block_end = std::min(end, t + rest);
            blocks_.push_back({n, t, block_end});
            t = block_end;
        }
    }
    const auto cost = [this](const QueryBlock& block) {
        const int64_t tokens = block.token_end - block.token_begin;
        return (tokens + 4) * (step_.positions[block.token_end - 1] / PAGE_SLOTS + 1);
    };
    std::sort(blocks_.begin(), blocks_.end(), [&](const QueryBlock& a, const QueryBlock& b) {
        const int64_t cost_a = cost(a), cost_b = cost(b);
        return cost_a != cost_b ? cost_a > cost_b : a.token_begin < b.token_begin;
    });
}

// With few blocks and long contexts, the spans of a block are shared out among the threads.
void Plan::list_pieces() {
    constexpr int64_t span_slots = SPAN_PAGES * PAGE_SLOTS;
    pieces_.clear();
    first_piece_.clear();
    is_split_ = false;
    if (pool_->num_threads() == 1 || static_cast<int64_t>(blocks_.size()) > 2 * pool_->num_threads()) return;
    int64_t rows = 0, most_spans = 0;
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const QueryBlock& block = blocks_[i];
        first_piece_.push_back(static_cast<int32_t>(pieces_.size()));
        const int64_t num_spans = step_.positions[block.token_end - 1] / span_slots + 1;
        most_spans = std::max(most_spans, num_spans);
        for (int64_t span = 0; span < num_spans; ++span) {
            pieces_.push_back({static_cast<int32_t>(i), static_cast<int32_t>(span), rows});
            rows += block.token_end - block.token_begin;
        }
    }
    int64_t row_bytes = 0;
    for (const Record& record : records_)
        if (record.op == Op::Attend)
            row_bytes = std::max(row_bytes, record.num_heads * partial_floats(record.layer.head_width) * 4);
    is_split_ = most_spans > 1 && rows * row_bytes <= MOST_PARTIAL_BYTES;
}

void Plan::store_codes(const Record& record, int thread) {
    const int64_t count = step_.num_sequences * record.layer.num_heads;
    for (int64_t i = thread; i < count; i += pool_->num_threads())
        store_sequence(attention_, record.layer, staging(), step_, rows_of(record.x), rows_of(record.y),
                       i / record.layer.num_heads, i % record.layer.num_heads);
}

// Rows of heads after the records of a chain: those of `count` heads from `head` on, of the tokens of a block. Where
// there is a chain they lie in the thread's own memory, placed as if all rows and heads lay there.
FloatRows Plan::turned(const std::vector<int32_t>& chain, const Place& place, const QueryBlock& block, int64_t head,
                       int64_t count, int64_t head_width, float* memory) const {
    if (chain.empty()) return rows_of(place);
    const int64_t width = count * head_width;
    for (int64_t t = block.token_begin; t < block.token_end; ++t) {
        float* out = memory + (t - block.token_begin) * width;
        const float* x = row(records_[static_cast<size_t>(chain[0])].x, t) + head * head_width;
        for (const int32_t number : chain) {
            execute_heads(records_[static_cast<size_t>(number)], t, count, x, out);
            x = out;
        }
    }
    return {memory - block.token_begin * width - head * head_width, width};
}

// The queries of a block; in a joined step they are turned here, and with the last span the new key is stored.
FloatRows Plan::begin_block(const Record& record, const QueryBlock& block, int64_t kv_head, bool is_last, int thread) {
    if (!joins_ || record.store < 0) return rows_of(record.x);
    const int64_t width = record.layer.head_width, group = record.num_heads / record.layer.num_heads;
    float* memory = reinterpret_cast<float*>(scratch(thread) + heads_offset_);
    const FloatRows q = turned(record.query_chain, record.x, block, kv_head * group, group, width, memory);
    if (!is_last) return q;
    const Record& stored = records_[static_cast<size_t>(record.store)];
    memory += group * width * MAX_BLOCK_TOKENS;
    const FloatRows k = turned(record.key_chain, stored.x, block, kv_head, 1, width, memory);
    memory += width * MAX_BLOCK_TOKENS;
    const FloatRows v = turned(record.value_chain, stored.y, block, kv_head, 1, width, memory);
    if (stored.op == Op::StoreCodes)
        store_sequence(attention_, record.layer, staging(), step_, k, v, block.sequence, kv_head);
    else
        store_tokens(attention_, record.layer, step_, k, v, block.token_begin, block.token_end, kv_head, kv_head + 1);
    return q;
}

// What the heads of one kv head have written, prepared for the products that follow.
void Plan::prepare_heads(const Record& record, const QueryBlock& block, int64_t kv_head) {
    const int64_t width = record.width / record.layer.num_heads, first = kv_head * width;
    for (const PreparedPlace& place : record.prepared) {
        const auto row_bytes = static_cast<int64_t>(activation_row_bytes(place.kind, record.width));
        uint8_t* out = arena_.data() + place.offset_bytes + activation_offset_bytes(place.kind, first);
        for (int64_t t = block.token_begin; t < block.token_end; ++t)
            prepare_activations(place.kind, row(record.out, t) + first, 0, 1, width, out + t * row_bytes, 0, 1);
    }
}

void Plan::attend(size_t index, const Record& record, int thread) {
    AttendRequest request;
    request.step = &step_;
    request.layer = record.layer;
    request.staging = staging();
    request.y = row(record.out, 0);
    request.y_stride = record.out.stride;
    request.num_query_heads = record.num_heads;
    request.scale = record.factor;
    request.window = record.window;
    request.softcap = record.softcap;
    if (is_split_) return attend_pieces(index, record, request, thread);
    const int64_t num_heads = record.layer.num_heads, count = static_cast<int64_t>(blocks_.size()) * num_heads;
    std::atomic<int64_t>& next = counters_[index * static_cast<size_t>(pool_->num_threads())].next;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        const QueryBlock& block = blocks_[static_cast<size_t>(i / num_heads)];
        set_queries(request, begin_block(record, block, i % num_heads, true, thread));
        attention_.attend(request, block, i % num_heads, spans_of(request, block), nullptr,
                          scratch(thread) + attend_offset_);
        prepare_heads(record, block, i % num_heads);
    }
}

void Plan::attend_pieces(size_t index, const Record& record, AttendRequest request, int thread) {
    const int64_t num_heads = request.layer.num_heads, group = request.num_query_heads / num_heads;
    const int64_t floats = partial_floats(request.layer.head_width);
    float* partials = reinterpret_cast<float*>(partials_.data());
    const auto place = [&](const Piece& piece, int64_t kv_head) {
        const QueryBlock& block = blocks_[static_cast<size_t>(piece.block)];
        const int64_t head_rows = kv_head * group * (block.token_end - block.token_begin);
        return partials + (piece.first_row * request.num_query_heads + head_rows) * floats;
    };
    const int64_t count = static_cast<int64_t>(pieces_.size()) * num_heads;
    std::atomic<int64_t>& next = counters_[index * static_cast<size_t>(pool_->num_threads())].next;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        const Piece& piece = pieces_[static_cast<size_t>(i / num_heads)];
        const QueryBlock& block = blocks_[static_cast<size_t>(piece.block)];
        const SpanRange spans = spans_of(request, block);
        if (piece.span < spans.begin) continue;
        set_queries(request, begin_block(record, block, i % num_heads, piece.span + 1 == spans.end, thread));
        attention_.attend(request, block, i % num_heads, {piece.span, piece.span + 1}, place(piece, i % num_heads),
                          scratch(thread) + attend_offset_);
    }
    pool_->barrier(thread);
    const int64_t num_merges = static_cast<int64_t>(blocks_.size()) * num_heads;
    for (int64_t i = thread; i < num_merges; i += pool_->num_threads()) {
        const auto number = static_cast<size_t>(i / num_heads);
        const QueryBlock& block = blocks_[number];
        const SpanRange spans = spans_of(request, block);
        const Piece& first = pieces_[static_cast<size_t>(first_piece_[number] + spans.begin)];
        const int64_t stride = request.num_query_heads * (block.token_end - block.token_begin) * floats;
        attention_.merge(request, block, i % num_heads, spans.end - spans.begin, place(first, i % num_heads), stride);
        prepare_heads(record, block, i % num_heads);
    }
}

}  // namespace ridgeline
