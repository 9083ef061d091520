// Unigram segmentation: of all ways to cut a text into pieces, the one with the greatest sum of log-probabilities.
// Source: Kudo, "Subword Regularization", arXiv 1804.10959, section 3.2 (Viterbi).
#pragma once

#include "prefix_set.h"

namespace ridgeline::text {

struct UnigramModel {
    PrefixSet pieces;
    std::span<const double> scores;
    std::span<const uint32_t> byte_ids;  // 256: the fall-back's token of each byte, kNoToken if none
    uint32_t unknown_id = kNoToken;
    double unknown_score = 0.0;
    bool has_byte_fallback = false;
};

// Appends the tokens of one piece of text. Cost: O(bytes x longest piece).
void encode_unigram(const UnigramModel& model, std::string_view text, std::vector<uint32_t>& ids);

}  // namespace ridgeline::text
