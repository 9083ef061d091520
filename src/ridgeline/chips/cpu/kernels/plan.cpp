// Running a plan: the step's laws, who does what, and the records that are shared out their own way.
#include "plan.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

namespace ridgeline {

namespace {

// Tiles are handed out in pairs, as matmul takes them.
constexpr int64_t TILE_UNIT = 2;
// With few rows, this part of a product's tiles is handed out at the end to whichever thread is free, and the rest are
// ranges that are read without a break. With many rows a tile takes long, and all are handed out as threads come.
constexpr int64_t SHARED_PART = 5;
constexpr int64_t MANY_ROWS = 32;
// Rows that matmul takes at a time, and floats of a strip of gate (and of up) for so many: they stay in a thread's
// second-level cache beside the rows.
constexpr int64_t STRIP_ROWS = 192;
constexpr int64_t STRIP_FLOATS = STRIP_ROWS * 10 * TILE_ROWS;
// Most memory for partial results of attention; a step that would need more is not split by spans.
constexpr int64_t MOST_PARTIAL_BYTES = 64 << 20;

int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

double now_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Plan::Plan(std::shared_ptr<ThreadPool> pool, std::vector<Record> records, PlanLimits limits, int64_t arena_bytes)
    : pool_(std::move(pool)),
      records_(std::move(records)),
      limits_(limits),
      elementwise_(elementwise_kernels()),
      attention_(attention_kernels()),
      arena_(static_cast<size_t>(arena_bytes)),
      counters_(new Counter[records_.size()]) {
    int64_t own_bytes = 0, norm_floats = 0, attend_bytes = 0, staged_bytes = 0, partial_bytes = 0, strip_bytes = 0;
    for (const Record& record : records_) {
        for (const PreparedPlace& place : record.prepared) {
            if (record.op != Op::Prepare) continue;
            const auto bytes = static_cast<int64_t>(activation_row_bytes(place.kind, record.width)) * REPEATED_ROWS;
            own_bytes = std::max(own_bytes, place.own_offset_bytes + bytes);
            norm_floats = std::max(norm_floats, record.width);
        }
        if (record.op == Op::Gated) strip_bytes = 2 * STRIP_FLOATS * 4;
        const KvLayer& layer = record.layer;
        if (record.op == Op::StoreCodes) {
            const int64_t bytes = plain_block_bytes(false, layer.head_width);
            staged_bytes = std::max(staged_bytes, limits.max_tokens / PAGE_SLOTS * layer.num_heads * bytes);
        }
        if (record.op != Op::Attend) continue;
        const int64_t group = record.num_heads / layer.num_heads;
        attend_bytes = std::max<int64_t>(attend_bytes, attend_scratch_bytes(group, layer.head_width));
        partial_bytes = std::max(partial_bytes, record.num_heads * partial_floats(layer.head_width) * 4);
    }
    own_prepared_offset_ = rounded_up(norm_floats * 4, 64);
    strip_offset_ = own_prepared_offset_ + rounded_up(own_bytes, 64);
    attend_offset_ = strip_offset_ + strip_bytes;
    scratch_bytes_ = rounded_up(attend_offset_ + attend_bytes, 4096);
    scratch_ = Memory(static_cast<size_t>(scratch_bytes_ * pool_->num_threads()));
    partials_ = Memory(static_cast<size_t>(partial_bytes > 0 ? MOST_PARTIAL_BYTES : 0));
    staged_ = Memory(static_cast<size_t>(staged_bytes));
    blocks_.reserve(static_cast<size_t>(limits.max_tokens));
    first_piece_.reserve(static_cast<size_t>(limits.max_tokens) + 1);
    first_staged_.resize(static_cast<size_t>(limits.max_sequences));
    clocks_.resize(static_cast<size_t>(pool_->num_threads()));
    set_timing(false);
}

void Plan::set_timing(bool is_on) {
    is_timing_ = is_on;
    for (Clock& clock : clocks_) {
        clock.busy.assign(records_.size(), 0.0);
        clock.wait.assign(records_.size(), 0.0);
    }
}

int64_t Plan::num_rows(StepArray rows) const {
    switch (rows) {
        case StepArray::QueryStarts:
            return step_.num_sequences + 1;
        case StepArray::ContextLengths:
        case StepArray::Places:
            return step_.num_sequences;
        case StepArray::LogitRows:
            return step_.num_logit_rows;
        default:
            return step_.num_tokens;
    }
}

const int32_t* Plan::indices(StepArray array) const {
    switch (array) {
        case StepArray::TokenIds:
            return step_.token_ids;
        case StepArray::Positions:
            return step_.positions;
        case StepArray::Slots:
            return step_.slots;
        case StepArray::Sequences:
            return step_.sequences;
        case StepArray::QueryStarts:
            return step_.query_starts;
        case StepArray::ContextLengths:
            return step_.context_lengths;
        case StepArray::Places:
            return step_.places;
        case StepArray::LogitRows:
            return step_.logit_rows;
    }
    return nullptr;
}

// ---- the laws of a step: what the kernels rely on without looking ----

namespace {

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("the step breaks a law: ") + what);
}

}  // namespace

void Plan::check(const StepView& step) const {
    require(step.num_tokens >= 0 && step.num_tokens <= limits_.max_tokens, "more tokens than max_tokens");
    require(step.num_sequences <= limits_.max_sequences, "more sequences than max_sequences");
    require(step.num_logit_rows <= limits_.max_logit_rows, "more logit rows than max_logit_rows");
    require(step.table_stride <= limits_.max_pages_per_sequence, "more pages than max_pages_per_sequence");
    require(step.query_starts[0] == 0 && step.query_starts[step.num_sequences] == step.num_tokens,
            "query_starts must begin at 0 and end at the number of tokens");
    for (int64_t n = 0; n < step.num_sequences; ++n) {
        const int64_t begin = step.query_starts[n], end = step.query_starts[n + 1], length = step.context_lengths[n];
        require(begin < end && end <= step.num_tokens, "every sequence has tokens");
        require(length >= end - begin && length <= step.table_stride * PAGE_SLOTS, "a context is within its pages");
        require(step.places[n] >= 0 && step.places[n] < limits_.max_sequences, "places are below max_sequences");
        for (int64_t index = 0; index * PAGE_SLOTS < length; ++index)
            require(step.page(n, index) >= 0 && step.page(n, index) < limits_.num_pages, "pages are those allocated");
        for (int64_t t = begin; t < end; ++t) {
            const int64_t position = length - (end - t);
            require(step.sequences[t] == n && step.positions[t] == position, "positions continue the context");
            require(step.slots[t] == step.page(n, position / PAGE_SLOTS) * PAGE_SLOTS + position % PAGE_SLOTS,
                    "slots are those of the page table");
        }
    }
    for (int64_t b = 0; b < step.num_logit_rows; ++b)
        require(step.logit_rows[b] >= 0 && step.logit_rows[b] < step.num_tokens, "logit rows are tokens of the step");
    for (const Record& record : records_) {
        if (record.op != Op::Embed || record.index != StepArray::TokenIds) continue;
        for (int64_t t = 0; t < step.num_tokens; ++t)
            require(step.token_ids[t] >= 0 && step.token_ids[t] < record.table.rows, "token ids are rows of the table");
    }
}

// ---- a step ----

void Plan::run(const StepView& step) {
    check(step);
    const double start = now_seconds();
    prepare_step(step);
    pool_->run([this](int thread) { work(thread); });
    seconds_ = now_seconds() - start;
}

void Plan::prepare_step(const StepView& step) {
    step_ = step;
    for (size_t i = 0; i < records_.size(); ++i) counters_[i].next.store(0, std::memory_order_relaxed);
    int32_t staged = 0;
    for (int64_t n = 0; n < step.num_sequences; ++n) {
        first_staged_[static_cast<size_t>(n)] = staged;
        staged += static_cast<int32_t>(num_staged_pages(step, n));
    }
    list_blocks();
    list_pieces();
}

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

void Plan::work(int thread) {
    if (is_timing_) return work_timed(thread);
    bool skips_barrier = false;
    for (size_t i = 0; i < records_.size(); ++i) {
        const Record& record = records_[i];
        if (record.needs_barrier && !skips_barrier) pool_->barrier(thread);
        execute(i, record, thread);
        skips_barrier = repeats(record);
    }
}

void Plan::work_timed(int thread) {
    Clock& clock = clocks_[static_cast<size_t>(thread)];
    bool skips_barrier = false;
    double last = now_seconds();
    const auto lap = [&last] {
        const double before = last;
        last = now_seconds();
        return last - before;
    };
    for (size_t i = 0; i < records_.size(); ++i) {
        const Record& record = records_[i];
        if (record.needs_barrier && !skips_barrier) pool_->barrier(thread);
        clock.wait[i] += lap();
        execute(i, record, thread);
        clock.busy[i] += lap();
        skips_barrier = repeats(record);
    }
}

void Plan::execute(size_t index, const Record& record, int thread) {
    switch (record.op) {
        case Op::Linears:
            return linears(index, record, thread);
        case Op::Gated:
            return gated(index, record, thread);
        case Op::Attend:
            return attend(index, record, thread);
        case Op::StoreCodes:
            return store_codes(record, thread);
        default:
            break;
    }
    const int64_t rows = num_rows(record.rows);
    if (record.op == Op::Prepare && repeats(record)) return prepare(record, 0, rows, thread, true);
    const Range range = static_range(rows, 1, thread, pool_->num_threads());
    if (range.begin < range.end) execute_rows(record, range.begin, range.end, thread);
}

// ---- products ----

template <class Body>
void Plan::share_tiles(size_t index, int64_t count, int64_t rows, int64_t most_at_once, int thread, Body body) {
    const int num_threads = pool_->num_threads();
    const int64_t part = rounded_up(count / SHARED_PART, TILE_UNIT);
    const int64_t shared = num_threads == 1 ? 0 : rows > MANY_ROWS ? count : part;
    const int64_t fixed = count - shared;
    const Range range = static_range(fixed, TILE_UNIT, thread, num_threads);
    for (int64_t begin = range.begin; begin < range.end; begin += most_at_once)
        body(begin, std::min(range.end, begin + most_at_once));
    // Pieces get smaller towards the end, so that the threads end together.
    std::atomic<int64_t>& next = counters_[index].next;
    int64_t taken = next.load(std::memory_order_relaxed);
    while (taken < shared) {
        const int64_t fair = (shared - taken) / (3 * num_threads) / TILE_UNIT * TILE_UNIT;
        const int64_t piece = std::min(most_at_once, std::max(TILE_UNIT, fair));
        if (!next.compare_exchange_weak(taken, taken + piece, std::memory_order_relaxed)) continue;
        body(fixed + taken, std::min(count, fixed + taken + piece));
        taken = next.load(std::memory_order_relaxed);
    }
}

const uint8_t* Plan::prepared(const Part& part, bool is_own, int thread) const {
    if (is_own) return scratch(thread) + own_prepared_offset_ + part.prepared.own_offset_bytes;
    return arena_.data() + part.prepared.offset_bytes;
}

void Plan::linears(size_t index, const Record& record, int thread) {
    const int64_t rows = num_rows(record.rows);
    if (rows == 0) return;
    const bool is_own = index > 0 && repeats(records_[index - 1]);
    int64_t count = 0;
    for (const Part& part : record.parts) count += rounded_up(num_tiles(part.matrix), TILE_UNIT);
    share_tiles(index, count, rows, count, thread, [&](int64_t begin, int64_t end) {
        int64_t first = 0;
        for (const Part& part : record.parts) {
            const int64_t tiles = num_tiles(part.matrix), next = first + rounded_up(tiles, TILE_UNIT);
            const int64_t from = std::max(begin, first) - first, to = std::min(std::min(end, next) - first, tiles);
            if (from < to)
                matmul(part.matrix, prepared(part, is_own, thread), rows, row(part.out, 0), part.out.stride,
                       {part.bias, part.accumulate}, from, to);
            first = next;
        }
    });
}

void Plan::gated(size_t index, const Record& record, int thread) {
    const int64_t rows = num_rows(record.rows);
    if (rows == 0) return;
    const bool is_own = index > 0 && repeats(records_[index - 1]);
    const Part &gate = record.parts[0], &up = record.parts[1];
    float* gate_strip = reinterpret_cast<float*>(scratch(thread) + strip_offset_);
    float* up_strip = gate_strip + STRIP_FLOATS;
    const int64_t fit = STRIP_FLOATS / (std::min(rows, STRIP_ROWS) * TILE_ROWS) / TILE_UNIT * TILE_UNIT;
    share_tiles(index, num_tiles(gate.matrix), rows, fit, thread, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * TILE_ROWS, width = std::min(end * TILE_ROWS, gate.matrix.rows) - first;
        const int64_t stride = (end - begin) * TILE_ROWS;
        for (int64_t t = 0; t < rows; t += STRIP_ROWS) {
            const int64_t count = std::min(STRIP_ROWS, rows - t);
            // matmul writes column f at y + f: the strips begin at the column `first`.
            for (const auto& [part, strip] : {std::pair{&gate, gate_strip}, std::pair{&up, up_strip}}) {
                const int64_t row_bytes = activation_row_bytes(part->prepared.kind, part->matrix.width);
                matmul(part->matrix, prepared(*part, is_own, thread) + t * row_bytes, count, strip - first, stride, {},
                       begin, end);
            }
            for (int64_t i = 0; i < count; ++i)
                write_gated(record, t + i, gate_strip + i * stride, up_strip + i * stride, first, width);
        }
    });
}

// A piece of a row from the column `first` on: a multiple of 32, since tiles are handed out in pairs.
void Plan::write_gated(const Record& record, int64_t row_index, float* gate, const float* up, int64_t first,
                       int64_t width) {
    if (!record.prepares_output) {
        float* out = row(record.parts[0].out, row_index) + first;
        elementwise_.activate_multiply(gate, up, record.activation, width, out);
        return;
    }
    elementwise_.activate_multiply(gate, up, record.activation, width, gate);
    for (const PreparedPlace& place : record.prepared) {
        const auto row_bytes = static_cast<int64_t>(activation_row_bytes(place.kind, record.width));
        uint8_t* out =
            arena_.data() + place.offset_bytes + row_index * row_bytes + activation_offset_bytes(place.kind, first);
        prepare_activations(place.kind, gate, 0, 1, width, out, 0, 1);
    }
}

// ---- attention ----

void Plan::store_codes(const Record& record, int thread) {
    const Staging staging{staged_.data(), first_staged_.data()};
    const int64_t count = step_.num_sequences * record.layer.num_heads;
    for (int64_t i = thread; i < count; i += pool_->num_threads())
        store_sequence(attention_, record.layer, staging, step_, row(record.x, 0), record.x.stride, row(record.y, 0),
                       record.y.stride, i / record.layer.num_heads, i % record.layer.num_heads);
}

void Plan::attend(size_t index, const Record& record, int thread) {
    AttendRequest request;
    request.step = &step_;
    request.layer = record.layer;
    request.staging = {staged_.data(), first_staged_.data()};
    request.q = row(record.x, 0);
    request.q_stride = record.x.stride;
    request.y = row(record.out, 0);
    request.y_stride = record.out.stride;
    request.num_query_heads = record.num_heads;
    request.scale = record.factor;
    request.window = record.window;
    request.softcap = record.softcap;
    if (is_split_) return attend_pieces(index, request, thread);
    const int64_t num_heads = record.layer.num_heads, count = static_cast<int64_t>(blocks_.size()) * num_heads;
    for (;;) {
        const int64_t i = counters_[index].next.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) return;
        const QueryBlock& block = blocks_[static_cast<size_t>(i / num_heads)];
        attention_.attend(request, block, i % num_heads, spans_of(request, block), nullptr,
                          scratch(thread) + attend_offset_);
    }
}

void Plan::attend_pieces(size_t index, const AttendRequest& request, int thread) {
    const int64_t num_heads = request.layer.num_heads, group = request.num_query_heads / num_heads;
    const int64_t floats = partial_floats(request.layer.head_width);
    float* partials = reinterpret_cast<float*>(partials_.data());
    const auto place = [&](const Piece& piece, int64_t kv_head) {
        const QueryBlock& block = blocks_[static_cast<size_t>(piece.block)];
        const int64_t head_rows = kv_head * group * (block.token_end - block.token_begin);
        return partials + (piece.first_row * request.num_query_heads + head_rows) * floats;
    };
    const int64_t count = static_cast<int64_t>(pieces_.size()) * num_heads;
    for (;;) {
        const int64_t i = counters_[index].next.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) break;
        const Piece& piece = pieces_[static_cast<size_t>(i / num_heads)];
        const QueryBlock& block = blocks_[static_cast<size_t>(piece.block)];
        if (piece.span < spans_of(request, block).begin) continue;
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
    }
}

}  // namespace ridgeline
