// Byte-pair encoding: merge the neighbours of lowest rank, leftmost first, until none merges.
// Source: Sennrich, Haddow, Birch, arXiv 1508.07909, section 3.2.
#pragma once

#include "merge_table.h"

namespace ridgeline::text {

struct BpeModel {
    TokenTable table;
    MergeTable merges;
    std::span<const uint8_t> may_merge;  // per id: whether plain text may become this token
    std::span<const uint32_t> byte_ids;  // 256: token of each byte (byte-level, or the fall-back), kNoToken if none
    uint32_t unknown_id = kNoToken;
    bool is_byte_level = false;      // symbols are bytes; texts are written in the byte alphabet
    bool has_byte_fallback = false;  // a character outside the vocabulary becomes its bytes
    bool fuses_unknown = false;
    bool ignores_merges = false;  // a piece that is itself a token is taken whole
};

// Keeps its memory between calls. One thread at a time.
class BpeEncoder {
  public:
    // Appends the tokens of one piece of text. Cost: O(n log n) for n bytes, whatever they are.
    void encode(const BpeModel& model, std::string_view piece, std::vector<uint32_t>& ids);

  private:
    struct Symbol {
        uint32_t id;
        int32_t previous;
        int32_t next;
    };
    struct Candidate {
        uint64_t order;  // rank, then position
        uint32_t left;
        uint32_t right;
        uint32_t merged;
        bool operator<(const Candidate& other) const { return order > other.order; }
    };

    void add_symbol(uint32_t id);
    void split(const BpeModel& model, std::string_view piece);
    void consider(const BpeModel& model, int32_t at);
    void merge_all(const BpeModel& model);

    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
    std::string alphabet_text_;
};

}  // namespace ridgeline::text
