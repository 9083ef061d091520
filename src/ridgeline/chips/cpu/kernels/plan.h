// A compiled step: a flat list of records that all threads of a pool walk together.
//
// A record is one op with its weights, and with its operands as places in one arena. Records that work row by row share
// out the rows the same way, so that one may follow another without a barrier; elsewhere a record waits for all threads
// (`needs_barrier`, set by whoever makes the plan). Within a product, tiles are shared out by ranges, of which other
// threads take the last part when they are done with theirs. Nothing is allocated in a step.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention.h"
#include "elementwise.h"
#include "matmul.h"
#include "memory.h"
#include "sample.h"
#include "step_view.h"
#include "threads.h"

namespace ridgeline {

enum class Op : int32_t {
    Embed,
    Add,
    Multiply,
    Scale,
    RmsNorm,
    Activate,
    Softcap,
    Angles,
    Rope,
    TakeRows,  // row by row
    Prepare,
    StoreKv,  // row by row
    StoreCodes,
    Linears,
    Gated,
    Attend,  // shared out their own way
};

// Which arrays of a step count the rows of a value, or hold indices.
enum class StepArray : int32_t {
    TokenIds,
    Positions,
    Slots,
    Sequences,
    QueryStarts,
    ContextLengths,
    Places,
    LogitRows,
};

// A value's place: floats from the start of the arena, and from one row to the next.
struct Place {
    int64_t offset = 0, stride = 0;
};

// Activations prepared for a product: bytes from the start of the arena, or, when every thread prepares its own (few
// rows), from the start of the thread's own memory.
struct PreparedPlace {
    ActivationKind kind = ActivationKind::Int8;
    int64_t offset_bytes = 0, own_offset_bytes = 0;
};

// One matrix of a record. Gated: first the gate, then up, and `out` of the gate is that of both.
struct Part {
    PackedMatrix matrix{};
    PreparedPlace prepared;
    Place out;
    const float* bias = nullptr;
    bool accumulate = false;
};

struct Record {
    Op op = Op::Add;
    StepArray rows = StepArray::TokenIds;   // as many rows as this array has elements
    StepArray index = StepArray::TokenIds;  // Embed, TakeRows: which rows; Angles: positions
    bool needs_barrier = true;
    bool may_repeat = false;  // Prepare: with few rows each thread prepares all, and the next barrier falls away
    Place x, y, out;          // Attend: x are queries; StoreKv: keys and values; Rope: y are angles
    int64_t width = 0;        // floats of a row of `out`, or of x where there is no out; of a head for RmsNorm
    int64_t num_heads = 1;    // RmsNorm: norms of a row; Rope, Attend: heads
    int64_t turned_width = 0;
    const float* vector = nullptr;  // weights of a norm (Prepare: or null), frequencies
    float factor = 1.0f;            // Scale, Softcap, epsilon of a norm, magnitude of Angles, scale of Attend
    float softcap = 0.0f;
    int64_t window = 0;
    Activation activation = Activation::Silu;
    PackedMatrix table{};
    std::vector<PreparedPlace> prepared;
    bool prepares_output = false;  // Gated: writes `prepared`, in pieces, and no floats; Attend: both
    std::vector<Part> parts;
    KvLayer layer;
    // What lies between the products and attention (norms of heads, rope, storing) is done by attention itself, head by
    // head, in a step in which each sequence has one block of queries: there no other thread waits for it. `is_joined`
    // marks those records; the chains are theirs, in order, and `store` is the one that stores, or -1.
    bool is_joined = false;
    std::vector<int32_t> query_chain, key_chain, value_chain;
    int32_t store = -1;
};

struct PlanLimits {
    int64_t max_tokens = 0, max_sequences = 0, max_logit_rows = 0, max_pages_per_sequence = 0, num_pages = 0;
};

class Plan {
  public:
    // Most memory for partial results of attention; a step that would need more is not split by spans.
    static constexpr int64_t MOST_PARTIAL_BYTES = 64 << 20;
    // With more rows a tile takes long, and tiles are handed out one by one.
    static constexpr int64_t MANY_ROWS = 32;
    // Up to this many rows, preparing them once more in each thread costs less than waiting for another thread.
    static constexpr int64_t REPEATED_ROWS = 2;

    // `arena_bytes` is for the values of the records; the plan adds what attention and the threads need.
    Plan(std::shared_ptr<ThreadPool> pool, std::vector<Record> records, PlanLimits limits, int64_t arena_bytes);

    // From now on tokens may be chosen from the rows of `logits`, one for each logit row.
    void choose_from(const Place& logits, int64_t width);
    // Runs a step. Throws std::invalid_argument if it breaks a law of steps or a limit; nothing is changed then. With a
    // request, of which logits and positions are the plan's to fill in, tokens are chosen at the end.
    void run(const StepView& step, const ChoiceRequest* request = nullptr);

    const float* value(const Place& place) const { return floats(place.offset); }
    double seconds() const { return seconds_; }
    int64_t memory_bytes() const { return static_cast<int64_t>(arena_.size() + scratch_.size()); }

    // While timing is on, what each thread took for each record, and waited at the barrier before it, is added up.
    void set_timing(bool is_on);
    int num_threads() const { return pool_->num_threads(); }
    const std::vector<double>& busy_seconds(int thread) const { return clocks_.at(static_cast<size_t>(thread)).busy; }
    const std::vector<double>& wait_seconds(int thread) const { return clocks_.at(static_cast<size_t>(thread)).wait; }

  private:
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
    };
    // A thread's seconds for each record, written by that thread alone.
    struct alignas(64) Clock {
        std::vector<double> busy, wait;
    };
    // A span of a block of queries that is attended with by itself, so that threads can share a long context.
    struct Piece {
        int32_t block, span;
        int64_t first_row;  // token rows of pieces before it
    };

    void check(const StepView& step) const;
    void prepare_step(const StepView& step);
    void list_blocks();
    void list_pieces();
    void work(int thread);
    void work_timed(int thread);
    void wait_before(size_t index, int thread);
    void find_first_bytes();
    static void ask_ahead(const uint8_t* bytes);
    static int64_t strip_scratch_bytes();
    static int64_t num_shared_tiles(const Record& record);
    void execute(size_t index, const Record& record, int thread);
    void execute_rows(const Record& record, int64_t begin, int64_t end, int thread);
    void prepare(const Record& record, int64_t begin, int64_t end, int thread, bool is_own);
    void linears(size_t index, const Record& record, int thread);
    void gated(size_t index, const Record& record, int thread);
    void write_gated(const Record& record, int64_t row_index, float* gate, const float* up, int64_t first,
                     int64_t width);
    void store_codes(const Record& record, int thread);
    void attend(size_t index, const Record& record, int thread);
    void attend_pieces(size_t index, const Record& record, AttendRequest request, int thread);
    FloatRows turned(const std::vector<int32_t>& chain, const Place& place, const QueryBlock& block, int64_t head,
                     int64_t count, int64_t head_width, float* memory) const;
    FloatRows begin_block(const Record& record, const QueryBlock& block, int64_t kv_head, bool is_last, int thread);
    void prepare_heads(const Record& record, const QueryBlock& block, int64_t kv_head);
    void execute_heads(const Record& record, int64_t row_index, int64_t num_heads, const float* x, float* out) const;
    Staging staging() const { return {staged_.data(), first_staged_.data()}; }
    FloatRows rows_of(const Place& place) const { return {row(place, 0), place.stride}; }

    int64_t num_rows(StepArray rows) const;
    const int32_t* indices(StepArray array) const;
    bool repeats(const Record& record) const { return record.may_repeat && num_rows(record.rows) <= REPEATED_ROWS; }
    const uint8_t* prepared(const Part& part, bool is_own, int thread) const;
    float* floats(int64_t offset) const { return reinterpret_cast<float*>(arena_.data()) + offset; }
    float* row(const Place& place, int64_t index) const { return floats(place.offset + index * place.stride); }
    uint8_t* scratch(int thread) const { return scratch_.data() + thread * scratch_bytes_; }
    template <class Body>
    static void take_pieces(std::atomic<int64_t>& next, Range range, int64_t unit, int64_t part, int64_t most_at_once,
                            Body& body);
    template <class Body>
    void share_tiles(size_t index, int64_t count, int64_t rows, int64_t most_at_once, int thread, Body body);

    std::shared_ptr<ThreadPool> pool_;
    std::vector<Record> records_;
    PlanLimits limits_;
    const ElementwiseKernels& elementwise_;
    const AttentionKernels& attention_;
    Memory arena_, scratch_, partials_, staged_;
    int64_t scratch_bytes_ = 0, own_prepared_offset_ = 0, strip_offset_ = 0, attend_offset_ = 0, heads_offset_ = 0;
    std::unique_ptr<Counter[]> counters_;      // [record][thread]
    std::vector<const uint8_t*> first_bytes_;  // [record][thread]: where the thread begins to read

    std::unique_ptr<Chooser> chooser_;
    Place logits_;
    bool is_choosing_ = false;

    StepView step_;
    std::vector<QueryBlock> blocks_;
    std::vector<Piece> pieces_;
    std::vector<int32_t> first_piece_;   // per block
    std::vector<int32_t> first_staged_;  // per sequence
    bool is_split_ = false;
    bool joins_ = false;  // each sequence has one block

    double seconds_ = 0.0;
    bool is_timing_ = false;
    std::vector<Clock> clocks_;
};

}  // namespace ridgeline
