// Which two neighbouring tokens may become one, and how soon. A view of memory that somebody else owns.
//
// One slot is four words: | left id | right id | rank | merged id |, left id = kNoToken where empty.
// The lower the rank, the sooner the merge is done.
#pragma once

#include "token_table.h"

namespace ridgeline::text {

struct MergeSlot {
    uint32_t left;
    uint32_t right;
    uint32_t rank;
    uint32_t merged;
};
static_assert(sizeof(MergeSlot) == 16);

struct MergeTable {
    std::span<const MergeSlot> slots;

    // The slot of the pair, or nullptr if it does not merge.
    const MergeSlot* find(uint32_t left, uint32_t right) const {
        size_t mask = slots.size() - 1;
        for (size_t at = hash_of_pair(left, right) & mask;; at = (at + 1) & mask) {
            const MergeSlot& slot = slots[at];
            if (slot.left == left && slot.right == right) return &slot;
            if (slot.left == kNoToken) return nullptr;
        }
    }
};

// The table of these merges; of two merges of one pair the later counts, as in the Rust `tokenizers`.
std::vector<MergeSlot> build_merge_slots(const std::vector<MergeSlot>& merges);

// All merges that a scored vocabulary implies: any two pieces whose texts join to a third. Its score says how soon;
// equal scores have equal rank, so that position decides. Pieces without `may_merge` take no part.
// Source: SentencePiece (Kudo and Richardson, arXiv 1808.06226), BPE model.
std::vector<MergeSlot> merges_of_scores(const TokenTable& table, std::span<const double> scores,
                                        std::span<const uint8_t> may_merge);

}  // namespace ridgeline::text
