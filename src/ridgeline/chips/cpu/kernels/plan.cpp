// Running a plan: the step's laws, and who does what.
#include "plan.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

namespace ridgeline {

namespace {

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
      counters_(new Counter[records_.size() * static_cast<size_t>(pool_->num_threads())]) {
    int64_t own_bytes = 0, norm_floats = 0, attend_bytes = 0, staged_bytes = 0, partial_bytes = 0, strip_bytes = 0,
            heads_bytes = 0;
    for (const Record& record : records_) {
        for (const PreparedPlace& place : record.prepared) {
            if (record.op != Op::Prepare) continue;
            const auto bytes = static_cast<int64_t>(activation_row_bytes(place.kind, record.width)) * REPEATED_ROWS;
            own_bytes = std::max(own_bytes, place.own_offset_bytes + bytes);
            norm_floats = std::max(norm_floats, record.width);
        }
        if (record.op == Op::Gated) strip_bytes = strip_scratch_bytes();
        const KvLayer& layer = record.layer;
        if (record.op == Op::StoreCodes) {
            const int64_t bytes = plain_block_bytes(false, layer.head_width);
            staged_bytes = std::max(staged_bytes, limits.max_tokens / PAGE_SLOTS * layer.num_heads * bytes);
        }
        if (record.op != Op::Attend) continue;
        const int64_t group = record.num_heads / layer.num_heads;
        attend_bytes = std::max<int64_t>(attend_bytes, attend_scratch_bytes(group, layer.head_width));
        // Heads that are turned on the way: queries of the group, and a key.
        heads_bytes = std::max(heads_bytes, (group + 2) * layer.head_width * MAX_BLOCK_TOKENS * 4);
        partial_bytes = std::max(partial_bytes, record.num_heads * partial_floats(layer.head_width) * 4);
    }
    own_prepared_offset_ = rounded_up(norm_floats * 4, 64);
    strip_offset_ = own_prepared_offset_ + rounded_up(own_bytes, 64);
    attend_offset_ = strip_offset_ + strip_bytes;
    heads_offset_ = attend_offset_ + rounded_up(attend_bytes, 64);
    scratch_bytes_ = rounded_up(heads_offset_ + heads_bytes, 4096);
    scratch_ = Memory(static_cast<size_t>(scratch_bytes_ * pool_->num_threads()));
    partials_ = Memory(static_cast<size_t>(partial_bytes > 0 ? MOST_PARTIAL_BYTES : 0));
    staged_ = Memory(static_cast<size_t>(staged_bytes));
    blocks_.reserve(static_cast<size_t>(limits.max_tokens));
    first_piece_.reserve(static_cast<size_t>(limits.max_tokens) + 1);
    first_staged_.resize(static_cast<size_t>(limits.max_sequences));
    clocks_.resize(static_cast<size_t>(pool_->num_threads()));
    set_timing(false);
    find_first_bytes();
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

void Plan::choose_from(const Place& logits, int64_t width) {
    logits_ = logits;
    chooser_ = std::make_unique<Chooser>(pool_, limits_.max_logit_rows, width);
}

void Plan::run(const StepView& step, const ChoiceRequest* request) {
    check(step);
    is_choosing_ = request != nullptr && step.num_logit_rows > 0;
    if (is_choosing_) {
        if (chooser_ == nullptr) throw std::invalid_argument("the plan has no logits to choose from");
        ChoiceRequest own = *request;
        own.logits = floats(logits_.offset);
        own.stride = logits_.stride;
        own.num_rows = step.num_logit_rows;
        own.positions = step.positions;
        own.position_of = step.logit_rows;
        chooser_->begin(own);
    }
    const double start = now_seconds();
    prepare_step(step);
    pool_->run([this](int thread) {
        work(thread);
        if (!is_choosing_) return;
        pool_->barrier(thread);
        chooser_->work(thread);
    });
    seconds_ = now_seconds() - start;
}

void Plan::prepare_step(const StepView& step) {
    step_ = step;
    const size_t num_counters = records_.size() * static_cast<size_t>(pool_->num_threads());
    for (size_t i = 0; i < num_counters; ++i) counters_[i].next.store(0, std::memory_order_relaxed);
    int32_t staged = 0;
    for (int64_t n = 0; n < step.num_sequences; ++n) {
        first_staged_[static_cast<size_t>(n)] = staged;
        staged += static_cast<int32_t>(num_staged_pages(step, n));
    }
    list_blocks();
    list_pieces();
    joins_ = static_cast<int64_t>(blocks_.size()) == step_.num_sequences;
}

void Plan::work(int thread) {
    if (is_timing_) return work_timed(thread);
    bool skips_barrier = false;
    for (size_t i = 0; i < records_.size(); ++i) {
        const Record& record = records_[i];
        if (record.is_joined && joins_) continue;
        if (record.needs_barrier && !skips_barrier) wait_before(i, thread);
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
        if (record.is_joined && joins_) continue;
        if (record.needs_barrier && !skips_barrier) wait_before(i, thread);
        clock.wait[i] += lap();
        execute(i, record, thread);
        clock.busy[i] += lap();
        skips_barrier = repeats(record);
    }
}

// Memory is asked for what this thread will read first, so that it works while threads wait for one another.
void Plan::wait_before(size_t index, int thread) {
    if (records_[index].op == Op::Prepare) ++index;  // a product follows
    if (index < records_.size() && num_rows(records_[index].rows) <= MANY_ROWS)
        ask_ahead(first_bytes_[index * static_cast<size_t>(pool_->num_threads()) + static_cast<size_t>(thread)]);
    pool_->barrier(thread);
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

}  // namespace ridgeline
