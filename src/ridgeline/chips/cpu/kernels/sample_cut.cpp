// Where top-k and the nucleus cut a row: among its nearest values, or by a histogram of all.
#include <algorithm>

#include "sample.h"

namespace ridgeline {

namespace {

constexpr int REFINE_BITS = 9;  // of keys told apart at a time

int64_t ceil_divide(int64_t value, int64_t by) { return (value + by - 1) / by; }

// The least weight that reaches a share of `total`, and is something.
int64_t bound_of(int64_t total, int64_t share) {
    const Wide product = static_cast<Wide>(total) * static_cast<Wide>(share) + static_cast<Wide>(ALL_SHARES - 1);
    return std::max<int64_t>(1, static_cast<int64_t>(product >> SHARE_BITS));
}

}  // namespace

int64_t Chooser::weight_of(int32_t key, int64_t min_weight) const {
    int64_t weights[SAMPLE_SPARE];
    kernels_.weights_of_keys(&key, 1, weights);
    return weights[0] >= min_weight ? weights[0] : 0;
}

// ---- among the nearest ----

// Chooses among the values that are no farther than the `num_blocks`-th nearest maximum, if they suffice. `total` is
// the weight of all; a row with a top-k needs none.
void Chooser::choose_near(Row& row, int64_t num_blocks, int64_t total, int thread) const {
    const Choice& choice = *row.choice;
    const int64_t num_maxima = ceil_divide(row.count, NEAR_BLOCK), most_blocks = ceil_divide(num_maxima, 2);
    if (row.is_chosen || (row.has_top_k && num_blocks > most_blocks)) return;
    int32_t *block_keys = keys_of(thread), *ranked = block_keys + num_maxima;
    for (int64_t i = 0; i < num_maxima; i += NEAR_BLOCK) {
        int32_t keys[NEAR_BLOCK + SAMPLE_SPARE];
        int64_t weights[NEAR_BLOCK + SAMPLE_SPARE];
        const int64_t num_now = std::min(NEAR_BLOCK, num_maxima - i);
        kernels_.weigh(maxima_of(row) + i, num_now, row.best.value, choice.scale, keys, weights);
        std::copy(keys, keys + num_now, block_keys + i);
        std::copy(keys, keys + num_now, ranked + i);
    }
    int32_t* last = ranked + std::min(num_blocks, most_blocks) - 1;
    std::nth_element(ranked, last, ranked + num_maxima);
    uint64_t nearest[MOST_NEAR];
    int64_t count = 0;
    for (int64_t block = 0; block < num_maxima; ++block) {
        if (block_keys[block] > *last) continue;
        int32_t keys[NEAR_BLOCK + 1], indices[NEAR_BLOCK + 1];
        const int64_t begin = block * NEAR_BLOCK, num_now = std::min(NEAR_BLOCK, row.count - begin);
        const int64_t found =
            kernels_.gather_near(row.x + begin, num_now, row.best.value, choice.scale, *last, keys, indices);
        if (count + found > MOST_NEAR) return;
        for (int64_t i = 0; i < found; ++i)
            nearest[count++] = static_cast<uint64_t>(keys[i]) << 32 | static_cast<uint64_t>(begin + indices[i]);
    }
    choose_among(row, nearest, count, total);
}

// `nearest`, keys before indices, are all values that are no farther than the farthest of them.
void Chooser::choose_among(Row& row, uint64_t* nearest, int64_t count, int64_t total) const {
    const Choice& choice = *row.choice;
    std::sort(nearest, nearest + count);
    if (row.has_top_k) count = std::min<int64_t>(count, choice.top_k);
    int32_t keys[MOST_NEAR];
    int64_t weights[MOST_NEAR + SAMPLE_SPARE];
    for (int64_t i = 0; i < count; ++i) keys[i] = static_cast<int32_t>(nearest[i] >> 32);
    kernels_.weights_of_keys(keys, count, weights);
    for (int64_t i = 0; i < count; ++i) weights[i] = weights[i] >= choice.min_weight ? weights[i] : 0;
    if (row.has_top_k) {
        total = 0;
        for (int64_t i = 0; i < count; ++i) total += weights[i];
    }
    if (row.has_nucleus) {
        const int64_t bound = bound_of(total, choice.top_share);
        int64_t num_kept = 0, reached = 0;
        while (num_kept < count && reached < bound) reached += weights[num_kept++];
        if (reached < bound) return;
        count = num_kept;
        total = reached;
    }
    // In the order of indices, each with its weight's place.
    for (int64_t i = 0; i < count; ++i) nearest[i] = nearest[i] << 32 | static_cast<uint64_t>(i);
    std::sort(nearest, nearest + count);
    int64_t target = share_of(total, random_number(row));
    for (int64_t i = 0; i < count; ++i) {
        const int64_t weight = weights[nearest[i] & UINT32_MAX];
        if (target < weight) {
            row.index = static_cast<int64_t>(nearest[i] >> 32);
            row.is_chosen = true;
            return;
        }
        target -= weight;
    }
}

// ---- by histograms ----

// Top-k, then the nucleus of what it left: each ends in one bucket of the histogram, of which the keys are looked at.
Cut Chooser::find_cut(const Row& row, int thread) const {
    const Choice& choice = *row.choice;
    Histogram* parts = histograms_of(row);
    Histogram& all = parts[0];
    Cut cut;
    for (int64_t part = 1; part < num_parts_; ++part)
        for (int32_t bucket = 0; bucket < NUM_BUCKETS; ++bucket) {
            all.counts[bucket] += parts[part].counts[bucket];
            all.weights[bucket] += parts[part].weights[bucket];
        }
    for (const int64_t weight : all.weights) cut.weight += weight;
    int32_t* keys = keys_of(thread);
    const auto cut_at = [&](bool is_by_count, int64_t bound) {
        const int64_t* amounts = is_by_count ? all.counts : all.weights;
        int64_t count = 0, weight = 0, reached = amounts[0];
        int32_t bucket = 0;
        while (reached < bound) {
            count += all.counts[bucket];
            weight += all.weights[bucket];
            reached += amounts[++bucket];
        }
        if (bucket == NUM_BUCKETS - 1) return;  // nothing that has a weight is cut
        const int32_t low = bucket == 0 ? 0 : (FIRST_BUCKET + bucket) << BUCKET_SHIFT;
        const int32_t high = (FIRST_BUCKET + bucket + 1) << BUCKET_SHIFT;
        const int64_t num_keys = kernels_.gather(row.x, row.count, row.best.value, choice.scale, low, high, keys);
        cut = refine(keys, num_keys, count, weight, is_by_count, bound, choice.min_weight);
    };
    if (row.has_top_k) cut_at(true, choice.top_k);
    if (row.has_nucleus) cut_at(false, bound_of(cut.weight, choice.top_share));
    return cut;
}

// The cut among some keys: as many of the smallest as make what came before reach the bound, in number or in weight.
Cut Chooser::refine(int32_t* keys, int64_t count, int64_t count_before, int64_t weight_before, bool is_by_count,
                    int64_t bound, int64_t min_weight) const {
    for (;;) {
        const auto [lowest, highest] = std::minmax_element(keys, keys + count);
        const int32_t low = *lowest, high = *highest;
        if (low == high) {
            const int64_t weight = weight_of(low, min_weight);
            const int64_t num_equal =
                is_by_count ? bound - count_before : ceil_divide(bound - weight_before, std::max<int64_t>(1, weight));
            return {low, num_equal, weight_before + num_equal * weight};
        }
        int shift = 0;
        while ((high - low) >> shift >= 1 << REFINE_BITS) ++shift;
        int64_t counts[1 << REFINE_BITS] = {}, sums[1 << REFINE_BITS] = {};
        for (int64_t begin = 0; begin < count; begin += SAMPLE_BLOCK) {
            alignas(64) int64_t weights[SAMPLE_BLOCK + SAMPLE_SPARE];
            const int64_t num_now = std::min(SAMPLE_BLOCK, count - begin);
            kernels_.weights_of_keys(keys + begin, num_now, weights);
            for (int64_t i = 0; i < num_now; ++i) {
                const int32_t bucket = (keys[begin + i] - low) >> shift;
                counts[bucket] += 1;
                sums[bucket] += weights[i] >= min_weight ? weights[i] : 0;
            }
        }
        int32_t bucket = 0;
        while ((is_by_count ? count_before + counts[bucket] : weight_before + sums[bucket]) < bound) {
            count_before += counts[bucket];
            weight_before += sums[bucket];
            ++bucket;
        }
        int64_t num_kept = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t key = keys[i];
            keys[num_kept] = key;
            num_kept += (key - low) >> shift == bucket;
        }
        count = num_kept;
    }
}

}  // namespace ridgeline
