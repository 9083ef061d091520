#include "merge_table.h"

#include <algorithm>
#include <functional>

namespace ridgeline::text {

std::vector<MergeSlot> build_merge_slots(const std::vector<MergeSlot>& merges) {
    std::vector<MergeSlot> slots(num_slots_for(merges.size()), MergeSlot{kNoToken, kNoToken, 0, 0});
    size_t mask = slots.size() - 1;
    for (const MergeSlot& merge : merges) {
        size_t at = hash_of_pair(merge.left, merge.right) & mask;
        while (slots[at].left != kNoToken && (slots[at].left != merge.left || slots[at].right != merge.right)) {
            at = (at + 1) & mask;
        }
        slots[at] = merge;
    }
    return slots;
}

std::vector<MergeSlot> merges_of_scores(const TokenTable& table, std::span<const double> scores,
                                        std::span<const uint8_t> may_merge) {
    std::vector<double> distinct(scores.begin(), scores.end());
    std::sort(distinct.begin(), distinct.end(), std::greater<double>());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    std::vector<MergeSlot> merges;
    for (uint32_t id = 0; id < table.texts.size(); ++id) {
        std::string_view text = table.texts[id];
        if (!may_merge[id] || text.empty()) continue;
        auto place = std::lower_bound(distinct.begin(), distinct.end(), scores[id], std::greater<double>());
        uint32_t rank = static_cast<uint32_t>(place - distinct.begin());
        for (size_t cut = character_bytes(text); cut < text.size(); cut += character_bytes(text.substr(cut))) {
            uint32_t left = table.find(text.substr(0, cut));
            if (left == kNoToken || !may_merge[left]) continue;
            uint32_t right = table.find(text.substr(cut));
            if (right == kNoToken || !may_merge[right]) continue;
            merges.push_back({left, right, rank, id});
        }
    }
    return merges;
}

}  // namespace ridgeline::text
