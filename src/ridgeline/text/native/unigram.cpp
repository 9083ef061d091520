#include "unigram.h"

#include <algorithm>

namespace ridgeline::text {

namespace {

struct PathEnd {
    double score = 0.0;
    size_t start = SIZE_MAX;  // where the last piece of the best path to here begins
    uint32_t id = kNoToken;   // kNoToken: a character that no piece covers
};

void offer(PathEnd& end, double score, size_t start, uint32_t id) {
    if (end.start == SIZE_MAX || score > end.score) end = {score, start, id};
}

void append_unknown(const UnigramModel& model, std::string_view text, std::vector<uint32_t>& ids) {
    bool has_bytes = model.has_byte_fallback && std::all_of(text.begin(), text.end(), [&](char byte) {
                         return model.byte_ids[static_cast<unsigned char>(byte)] != kNoToken;
                     });
    if (has_bytes) {
        for (unsigned char byte : text) ids.push_back(model.byte_ids[byte]);
    } else if (model.unknown_id != kNoToken) {
        ids.push_back(model.unknown_id);
    }
}

}  // namespace

void encode_unigram(const UnigramModel& model, std::string_view text, std::vector<uint32_t>& ids) {
    if (text.empty()) return;
    std::vector<PathEnd> ends(text.size() + 1);
    for (size_t at = 0; at < text.size();) {
        size_t num_bytes = character_bytes(text.substr(at));
        double score_here = ends[at].score;
        bool covers_character = false;
        model.pieces.for_each_prefix(text.substr(at), [&](size_t length, uint32_t id) {
            offer(ends[at + length], score_here + model.scores[id], at, id);
            covers_character |= length == num_bytes;
        });
        if (!covers_character) offer(ends[at + num_bytes], score_here + model.unknown_score, at, kNoToken);
        at += num_bytes;
    }
    std::vector<std::pair<size_t, size_t>> cuts;  // [start, end) from the last piece to the first
    for (size_t end = text.size(); end > 0; end = ends[end].start) {
        bool joins = !cuts.empty() && ends[end].id == kNoToken && ends[cuts.back().second].id == kNoToken;
        if (joins) {
            cuts.back().first = ends[end].start;  // neighbouring unknown characters are one unknown token
        } else {
            cuts.emplace_back(ends[end].start, end);
        }
    }
    for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
        uint32_t id = ends[cut->second].id;
        if (id != kNoToken) {
            ids.push_back(id);
        } else {
            append_unknown(model, text.substr(cut->first, cut->second - cut->first), ids);
        }
    }
}

}  // namespace ridgeline::text
