// Choosing tokens from rows of logits: the likeliest, or one drawn by chance, with the cuts of top-k, min-p and
// nucleus.
//
// sampling/draw.py is the definition, and this comes to the same token bit for bit: distances are float32 made by
// single operations, weights are 64-bit integers, whose sums are exact in any order. So neither the number of threads
// nor the instruction set matters, and a row may be shared out in any way. Nothing sorts a vocabulary: cuts are found
// by histograms of the distances' bits.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "memory.h"
#include "threads.h"

namespace ridgeline {

constexpr int32_t NO_TOKEN = -1;

enum class ChoiceMode : int16_t { Host = 0, Best = 1, Draw = 2 };

// CHOICE and ADJUSTMENT of ops/choice.py.
struct Choice {
    uint64_t seed;
    int64_t min_weight, top_share;
    float scale;
    int32_t top_k;
    ChoiceMode mode;
    int16_t only_listed;
    int32_t num_adjustments;
};
struct Adjustment {
    int32_t token_id;
    float bias, penalty, reduction;
};
static_assert(sizeof(Choice) == 40 && sizeof(Adjustment) == 16);

// The greatest of some values and the first index where it is; NaN if any is NaN.
struct Best {
    float value;
    int64_t index;
};

// Values [0, count) of x, their distances below `best` and their weights. A key is a distance's bits: it rises as the
// distance does.
struct SampleKernels {
    // `maxima`, if not null, gets the greatest of each NEAR_BLOCK values.
    Best (*best)(const float* x, int64_t count, float* maxima);
    // Writes up to a vector more than `count`.
    void (*weigh)(const float* x, int64_t count, float best, float scale, int32_t* keys, int64_t* weights);
    void (*weights_of_keys)(const int32_t* keys, int64_t count, int64_t* weights);
    // The sum of weights, those below `min_weight` as none.
    int64_t (*sum)(const float* x, int64_t count, float best, float scale, int64_t min_weight);
    // The same of keys below `cut`; how many are equal to it is added to `num_equal`.
    int64_t (*sum_below)(const float* x, int64_t count, float best, float scale, int64_t min_weight, int32_t cut,
                         int64_t* num_equal);
    // Keys in [low, high), in order; returns how many. Writes up to a vector more than there are.
    int64_t (*gather)(const float* x, int64_t count, float best, float scale, int32_t low, int32_t high, int32_t* keys);
    // The same of keys up to `highest`, with their indices.
    int64_t (*gather_near)(const float* x, int64_t count, float best, float scale, int32_t highest, int32_t* keys,
                           int32_t* indices);
};

constexpr int64_t SAMPLE_BLOCK = 1024;  // values that are weighed at a time
constexpr int64_t SAMPLE_SPARE = 16;    // values of the widest vector
// The K-th greatest of the blocks' maxima is at most the K-th greatest value: so the K nearest values, and few others,
// are found without weighing any. Should they be more than MOST_NEAR, or not all that a nucleus needs, a histogram is
// made instead.
constexpr int64_t NEAR_BLOCK = 256, NUCLEUS_BLOCKS = 256, MOST_NEAR = 4096;

// Buckets of a histogram: 32 for each power of two of the distance, all below 2^-8 in the first; the last holds nothing
// but the farthest distance, 48, where no weight is left.
constexpr int32_t BUCKET_SHIFT = 18, FIRST_BUCKET = (119 << 5) - 1, NUM_BUCKETS = 434;

constexpr int SHARE_BITS = 53;
constexpr int64_t ALL_SHARES = int64_t{1} << SHARE_BITS;

using Wide = unsigned __int128;

inline int64_t share_of(int64_t weight, int64_t share) {
    return static_cast<int64_t>((static_cast<Wide>(weight) * static_cast<Wide>(share)) >> SHARE_BITS);
}

inline int32_t bucket_of(int32_t key) {
    const int32_t bucket = (key >> BUCKET_SHIFT) - FIRST_BUCKET;
    return bucket > 0 ? bucket : 0;
}

struct Histogram {
    int64_t counts[NUM_BUCKETS], weights[NUM_BUCKETS];
};

// What a cut leaves: keys below `key`, and the first `num_equal` that are equal to it.
struct Cut {
    int32_t key = INT32_MAX;
    int64_t num_equal = 0;
    int64_t weight = 0;  // of all that is left
};

// The rows that a choice is made from.
struct ChoiceRequest {
    float* logits = nullptr;
    int64_t stride = 0, num_rows = 0;
    const Choice* choices = nullptr;
    const int32_t* positions = nullptr;       // of the token whose row it is
    const int32_t* position_of = nullptr;     // if not null: row r's position is positions[position_of[r]]
    const Adjustment* adjustments = nullptr;  // of all rows, one row after another
    int64_t num_adjustments = 0;
    int32_t* tokens = nullptr;
};

// Chooses tokens from rows. Logits are changed on the way where a row has adjustments, and put back.
class Chooser {
  public:
    Chooser(std::shared_ptr<ThreadPool> pool, int64_t max_rows, int64_t width);

    // By one thread, before all threads `work`. Throws std::invalid_argument if the records do not fit together.
    void begin(const ChoiceRequest& request);
    // Inside the pool's `run`, by every thread; what made the logits must be done.
    void work(int thread);

  private:
    struct Row {
        int64_t number;
        float* x;  // its values, or the listed ones alone
        int64_t count;
        Best best;
        const Choice* choice;
        const Adjustment* adjustments;
        int64_t first_adjustment;
        bool is_changed;  // adjustments are in place
        bool has_top_k, has_nucleus;
        bool is_chosen;  // `index` is the answer
        int64_t index;
    };

    template <class Body>
    void share(int phase, int64_t count, Body body);
    void find_best(Row& row, int64_t part);
    void adjust(Row& row);
    void restore(const Row& row);
    void add_up(Row& row, int64_t part);
    void choose_near(Row& row, int64_t num_blocks, int64_t total, int thread) const;
    void choose_among(Row& row, uint64_t* nearest, int64_t count, int64_t total) const;
    void count_up(Row& row, int64_t part);
    void finish(Row& row, int thread);
    int64_t draw(const Row& row) const;
    int64_t draw_cut(const Row& row, int thread) const;
    int64_t pick(const Row& row, int64_t block, int64_t target, const Cut& cut) const;
    Cut find_cut(const Row& row, int thread) const;
    Cut refine(int32_t* keys, int64_t count, int64_t count_before, int64_t weight_before, bool is_by_count,
               int64_t bound, int64_t min_weight) const;
    int64_t weight_of(int32_t key, int64_t min_weight) const;
    int64_t number_of(const Row& row) const { return &row - rows_.data(); }
    int64_t random_number(const Row& row) const;
    int64_t total_of(const Row& row) const;
    bool is_cut(const Row& row) const { return row.has_top_k || row.has_nucleus; }
    int64_t* sums_of(const Row& row) const;
    float* maxima_of(const Row& row) const;
    Histogram* histograms_of(const Row& row) const;
    int32_t* keys_of(int thread) const;

    std::shared_ptr<ThreadPool> pool_;
    int64_t width_, num_blocks_;
    const SampleKernels& kernels_;
    ChoiceRequest request_;
    std::vector<Row> rows_;  // those from which a token is chosen
    bool has_adjustments_ = false, has_draws_ = false, has_cuts_ = false;
    int64_t num_parts_ = 1;
    std::vector<Best> bests_;            // of each row and part
    std::vector<float> saved_, listed_;  // what adjustments overwrote; the listed values of rows that have no others
    Memory sums_, maxima_, histograms_, keys_;
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
    };
    Counter counters_[6];
};

// 53 random bits, as sampling/counter_random.py makes them.
int64_t random_bits(uint64_t seed, uint64_t position);

const SampleKernels& sample_kernels();

namespace portable {
extern const SampleKernels SAMPLE;
}
#if defined(__x86_64__)
namespace avx2 {
extern const SampleKernels SAMPLE;
}
namespace avx512 {
extern const SampleKernels SAMPLE;
}
#endif

}  // namespace ridgeline
