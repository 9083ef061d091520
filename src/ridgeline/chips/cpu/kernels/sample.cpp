// Choosing tokens: who does what, and the draw; sample_cut.cpp finds cuts.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "matmul.h"

namespace ridgeline {

namespace {

constexpr int NUM_TURNS = 4;

int64_t ceil_divide(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Of equal values the first.
Best better(const Best& first, const Best& second) {
    if (std::isnan(first.value) || std::isnan(second.value)) return {std::nanf(""), 0};
    return second.value > first.value ? second : first;
}

}  // namespace

const SampleKernels& sample_kernels() {
#if defined(__x86_64__)
    const char* name = instruction_set();
    if (std::strncmp(name, "avx512", 6) == 0) return avx512::SAMPLE;
    if (std::strncmp(name, "avx2", 4) == 0) return avx2::SAMPLE;
#endif
    return portable::SAMPLE;
}

int64_t random_bits(uint64_t seed, uint64_t position) {
    uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return static_cast<int64_t>((uint64_t{c1} << 32 | c0) >> (64 - SHARE_BITS));
}

Chooser::Chooser(std::shared_ptr<ThreadPool> pool, int64_t max_rows, int64_t width)
    : pool_(std::move(pool)),
      width_(width),
      num_blocks_(ceil_divide(width, SAMPLE_BLOCK)),
      kernels_(sample_kernels()),
      // The system gives memory when it is first written to: rows that never come take none.
      sums_(static_cast<size_t>(max_rows * num_blocks_) * sizeof(int64_t)),
      maxima_(static_cast<size_t>(max_rows * ceil_divide(width, NEAR_BLOCK)) * sizeof(float)),
      histograms_(static_cast<size_t>(std::max<int64_t>(max_rows, 1) * pool_->num_threads()) * sizeof(Histogram)),
      keys_(static_cast<size_t>((width + SAMPLE_SPARE) * pool_->num_threads()) * sizeof(int32_t)) {
    rows_.reserve(static_cast<size_t>(max_rows));
    bests_.resize(static_cast<size_t>(max_rows * pool_->num_threads()));
}

void Chooser::begin(const ChoiceRequest& request) {
    request_ = request;
    rows_.clear();
    has_adjustments_ = has_draws_ = has_cuts_ = false;
    int64_t first = 0;
    for (int64_t i = 0; i < request.num_rows; ++i) {
        const Choice& choice = request.choices[i];
        request.tokens[i] = NO_TOKEN;
        const int64_t count = choice.num_adjustments;
        if (count < 0 || first + count > request.num_adjustments)
            throw std::invalid_argument("a row names more adjustments than there are");
        if (choice.mode == ChoiceMode::Best || choice.mode == ChoiceMode::Draw) {
            Row row{};
            row.number = i;
            row.x = request.logits + i * request.stride;
            row.count = width_;
            row.choice = &choice;
            row.adjustments = request.adjustments + first;
            row.first_adjustment = first;
            rows_.push_back(row);
            const bool is_drawn = choice.mode == ChoiceMode::Draw;
            has_draws_ |= is_drawn;
            has_cuts_ |= is_drawn && (choice.top_k > 0 || choice.top_share < ALL_SHARES);
            has_adjustments_ |= count > 0 || choice.only_listed;
        }
        first += count;
    }
    if (has_adjustments_) {
        saved_.resize(static_cast<size_t>(first));
        listed_.resize(static_cast<size_t>(first + SAMPLE_SPARE));
    }
    const auto num_rows = static_cast<int64_t>(rows_.size());
    const int64_t num_threads = pool_->num_threads();
    num_parts_ = num_rows >= 2 * num_threads ? 1 : num_threads;
    for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
}

template <class Body>
void Chooser::share(int phase, int64_t count, Body body) {
    for (;;) {
        const int64_t i = counters_[phase].next.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) return;
        body(i);
    }
}

void Chooser::work(int thread) {
    const auto num_rows = static_cast<int64_t>(rows_.size());
    if (num_rows == 0) return;
    const auto by_row = [&](int phase, auto body) {
        share(phase, num_rows, [&](int64_t i) { body(rows_[static_cast<size_t>(i)]); });
    };
    const auto by_part = [&](int phase, auto body) {
        share(phase, num_rows * num_parts_,
              [&](int64_t i) { body(rows_[static_cast<size_t>(i / num_parts_)], i % num_parts_); });
    };
    by_part(0, [&](Row& row, int64_t part) { find_best(row, part); });
    pool_->barrier(thread);
    by_row(1, [&](Row& row) {
        adjust(row);
        if (row.has_top_k) choose_near(row, row.choice->top_k, 0, thread);
    });
    pool_->barrier(thread);
    if (has_draws_) {
        by_part(2, [&](Row& row, int64_t part) { add_up(row, part); });
        pool_->barrier(thread);
    }
    if (has_cuts_) {
        by_row(3, [&](Row& row) {
            if (row.has_nucleus && !row.has_top_k) choose_near(row, NUCLEUS_BLOCKS, total_of(row), thread);
        });
        pool_->barrier(thread);
        by_part(4, [&](Row& row, int64_t part) { count_up(row, part); });
        pool_->barrier(thread);
    }
    by_row(5, [&](Row& row) { finish(row, thread); });
}

int64_t* Chooser::sums_of(const Row& row) const {
    return reinterpret_cast<int64_t*>(sums_.data()) + number_of(row) * num_blocks_;
}

float* Chooser::maxima_of(const Row& row) const {
    return reinterpret_cast<float*>(maxima_.data()) + number_of(row) * ceil_divide(width_, NEAR_BLOCK);
}

// A thread's own memory, for the keys of a row.
int32_t* Chooser::keys_of(int thread) const {
    return reinterpret_cast<int32_t*>(keys_.data()) + thread * (width_ + SAMPLE_SPARE);
}

Histogram* Chooser::histograms_of(const Row& row) const {
    return reinterpret_cast<Histogram*>(histograms_.data()) + number_of(row) * num_parts_;
}

void Chooser::find_best(Row& row, int64_t part) {
    const Range range = static_range(width_, SAMPLE_BLOCK, static_cast<int>(part), static_cast<int>(num_parts_));
    float* maxima = has_cuts_ ? maxima_of(row) + range.begin / NEAR_BLOCK : nullptr;
    Best best{-INFINITY, 0};
    if (range.begin < range.end) best = kernels_.best(row.x + range.begin, range.end - range.begin, maxima);
    best.index += range.begin;
    bests_[static_cast<size_t>(number_of(row) * num_parts_ + part)] = best;
}

// The row's best, of all values and then of what the options make of them.
void Chooser::adjust(Row& row) {
    const Best* parts = &bests_[static_cast<size_t>(number_of(row) * num_parts_)];
    row.best = parts[0];
    for (int64_t part = 1; part < num_parts_; ++part) row.best = better(row.best, parts[part]);
    const Choice& choice = *row.choice;
    const int64_t count = choice.num_adjustments;
    row.index = NO_TOKEN;
    row.is_chosen = true;
    if (!std::isfinite(row.best.value)) return;
    if (count > 0 || choice.only_listed) {
        int32_t last = -1;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t token_id = row.adjustments[i].token_id;
            // Whoever asks for what is not there, or lists out of order, is told by the host.
            if (token_id < 0 || token_id >= width_ || (choice.only_listed && token_id <= last)) {
                return;
            }
            last = token_id;
        }
        row.is_changed = !choice.only_listed;
        float* listed = listed_.data() + row.first_adjustment;
        for (int64_t i = 0; i < count; ++i) {
            const Adjustment& each = row.adjustments[i];
            float& logit = row.x[each.token_id];
            saved_[static_cast<size_t>(row.first_adjustment + i)] = logit;
            const float biased = logit + each.bias;
            const float penalised = biased > 0 ? biased / each.penalty : biased * each.penalty;
            (choice.only_listed ? listed[i] : logit) = penalised - each.reduction;
        }
        if (choice.only_listed) {
            row.x = listed;
            row.count = count;
        }
        if (row.count == 0) return;
        row.best = kernels_.best(row.x, row.count, has_cuts_ ? maxima_of(row) : nullptr);
        if (!std::isfinite(row.best.value)) return;
    }
    row.index = row.best.index;
    if (choice.mode == ChoiceMode::Best) return;
    row.is_chosen = false;
    row.has_top_k = choice.top_k > 0 && choice.top_k < row.count;
    row.has_nucleus = choice.top_share < ALL_SHARES;
}

void Chooser::restore(const Row& row) {
    if (!row.is_changed) return;
    for (int64_t i = 0; i < row.choice->num_adjustments; ++i)
        row.x[row.adjustments[i].token_id] = saved_[static_cast<size_t>(row.first_adjustment + i)];
}

void Chooser::add_up(Row& row, int64_t part) {
    if (row.is_chosen || row.has_top_k) return;
    const Choice& choice = *row.choice;
    const Range range = static_range(row.count, SAMPLE_BLOCK, static_cast<int>(part), static_cast<int>(num_parts_));
    for (int64_t begin = range.begin; begin < range.end; begin += SAMPLE_BLOCK)
        sums_of(row)[begin / SAMPLE_BLOCK] = kernels_.sum(row.x + begin, std::min(SAMPLE_BLOCK, range.end - begin),
                                                          row.best.value, choice.scale, choice.min_weight);
}

int64_t Chooser::total_of(const Row& row) const {
    int64_t total = 0;
    if (row.is_chosen) return total;
    for (int64_t block = 0; block * SAMPLE_BLOCK < row.count; ++block) total += sums_of(row)[block];
    return total;
}

// Histograms, where the nearest did not suffice.
void Chooser::count_up(Row& row, int64_t part) {
    if (row.is_chosen || !is_cut(row)) return;
    const Choice& choice = *row.choice;
    const Range range = static_range(row.count, SAMPLE_BLOCK, static_cast<int>(part), static_cast<int>(num_parts_));
    Histogram& histogram = histograms_of(row)[part];
    std::memset(&histogram, 0, sizeof histogram);
    // Values come to the same bucket one after another: sums that take turns need not wait for each other.
    int64_t sums[NUM_BUCKETS][NUM_TURNS] = {};
    for (int64_t begin = range.begin; begin < range.end; begin += SAMPLE_BLOCK) {
        const int64_t count = std::min(SAMPLE_BLOCK, range.end - begin);
        alignas(64) int32_t keys[SAMPLE_BLOCK + SAMPLE_SPARE];
        alignas(64) int64_t weights[SAMPLE_BLOCK + SAMPLE_SPARE];
        kernels_.weigh(row.x + begin, count, row.best.value, choice.scale, keys, weights);
        if (row.has_top_k) {
            for (int64_t i = 0; i < count; ++i) histogram.counts[bucket_of(keys[i])] += 1;
        }
        if (choice.min_weight > 0) {
            for (int64_t i = 0; i < count; ++i) weights[i] = weights[i] >= choice.min_weight ? weights[i] : 0;
        }
        for (int64_t i = count; i < count + NUM_TURNS - 1; ++i) weights[i] = 0;
        for (int64_t i = 0; i < count; i += NUM_TURNS)
            for (int turn = 0; turn < NUM_TURNS; ++turn) sums[bucket_of(keys[i + turn])][turn] += weights[i + turn];
    }
    for (int32_t bucket = 0; bucket < NUM_BUCKETS; ++bucket)
        for (const int64_t sum : sums[bucket]) histogram.weights[bucket] += sum;
}

void Chooser::finish(Row& row, int thread) {
    if (!row.is_chosen) row.index = is_cut(row) ? draw_cut(row, thread) : draw(row);
    const bool is_listed = row.choice->only_listed && row.index >= 0;
    request_.tokens[row.number] = is_listed ? row.adjustments[row.index].token_id : static_cast<int32_t>(row.index);
    restore(row);
}

// ---- drawing ----

int64_t Chooser::random_number(const Row& row) const {
    const int64_t place = request_.position_of == nullptr ? row.number : request_.position_of[row.number];
    return random_bits(row.choice->seed, static_cast<uint64_t>(request_.positions[place]) + 1);
}

int64_t Chooser::draw(const Row& row) const {
    const int64_t* sums = sums_of(row);
    int64_t target = share_of(total_of(row), random_number(row)), block = 0;
    while (target >= sums[block]) target -= sums[block++];
    return pick(row, block, target, {});
}

int64_t Chooser::draw_cut(const Row& row, int thread) const {
    const Choice& choice = *row.choice;
    Cut cut = find_cut(row, thread);
    const int64_t equal_weight = cut.num_equal > 0 ? weight_of(cut.key, choice.min_weight) : 0;
    int64_t target = share_of(cut.weight, random_number(row));
    for (int64_t block = 0;; ++block) {
        const int64_t begin = block * SAMPLE_BLOCK, count = std::min(SAMPLE_BLOCK, row.count - begin);
        int64_t num_equal = 0;
        int64_t sum = kernels_.sum_below(row.x + begin, count, row.best.value, choice.scale, choice.min_weight, cut.key,
                                         &num_equal);
        const int64_t num_kept = std::min(num_equal, cut.num_equal);
        sum += num_kept * equal_weight;
        if (target < sum) return pick(row, block, target, cut);
        target -= sum;
        cut.num_equal -= num_kept;
    }
}

// Where in the block the running sum of what is kept passes `target`.
int64_t Chooser::pick(const Row& row, int64_t block, int64_t target, const Cut& cut) const {
    alignas(64) int32_t keys[SAMPLE_BLOCK + SAMPLE_SPARE];
    alignas(64) int64_t weights[SAMPLE_BLOCK + SAMPLE_SPARE];
    const int64_t begin = block * SAMPLE_BLOCK, count = std::min(SAMPLE_BLOCK, row.count - begin);
    kernels_.weigh(row.x + begin, count, row.best.value, row.choice->scale, keys, weights);
    int64_t num_equal = cut.num_equal;
    for (int64_t i = 0; i < count; ++i) {
        const bool is_kept = keys[i] < cut.key || (keys[i] == cut.key && num_equal-- > 0);
        if (!is_kept || weights[i] < row.choice->min_weight) continue;
        if (target < weights[i]) return begin + i;
        target -= weights[i];
    }
    return NO_TOKEN;  // never: the sums were made of the same weights
}

}  // namespace ridgeline
