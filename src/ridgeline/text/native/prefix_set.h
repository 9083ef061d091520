// A set of strings that answers: which of you begin here? Sorted, searched one byte deeper at a time.
#pragma once

#include <algorithm>
#include <array>

#include "token_table.h"

namespace ridgeline::text {

class PrefixSet {
  public:
    PrefixSet() = default;
    // `texts` are sorted bytewise and distinct, none is empty; `ids` are what they stand for.
    PrefixSet(TokenTexts texts, std::span<const uint32_t> ids) : texts_(texts), ids_(ids) {
        size_t at = 0;
        for (size_t byte = 0; byte < 256; ++byte) {
            first_[byte] = at;
            while (at < texts_.size() && static_cast<unsigned char>(texts_[at][0]) == byte) ++at;
        }
        first_[256] = texts_.size();
    }

    std::span<const uint32_t> ids() const { return ids_; }

    bool begins_with(unsigned char byte) const { return first_[byte] < first_[byte + 1]; }

    // Calls found(num_bytes, id) for every member that `text` begins with, shortest first.
    template <typename Found>
    void for_each_prefix(std::string_view text, Found&& found) const {
        if (text.empty()) return;
        unsigned char lead = static_cast<unsigned char>(text[0]);
        size_t low = first_[lead];
        size_t high = first_[lead + 1];
        for (size_t depth = 1; low < high; ++depth) {
            if (texts_[low].size() == depth) {
                found(depth, ids_[low]);
                ++low;
            }
            if (depth == text.size()) return;
            unsigned char byte = static_cast<unsigned char>(text[depth]);
            auto byte_at = [&](size_t member) { return static_cast<unsigned char>(texts_[member][depth]); };
            low = first_not(low, high, [&](size_t member) { return byte_at(member) < byte; });
            high = first_not(low, high, [&](size_t member) { return byte_at(member) <= byte; });
        }
    }

  private:
    template <typename Holds>
    static size_t first_not(size_t low, size_t high, Holds&& holds) {
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            if (holds(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }

    TokenTexts texts_;
    std::span<const uint32_t> ids_;
    std::array<size_t, 257> first_{};
};

// One occurrence; places count characters, as Python's strings do.
struct Occurrence {
    size_t start;
    size_t end;
    uint32_t id;
};

// The members that occur in UTF-8 text: leftmost first, of those the longest, none overlapping.
// Cost: O(characters x longest member).
inline std::vector<Occurrence> occurrences(const PrefixSet& set, std::string_view text) {
    std::vector<Occurrence> found;
    size_t character = 0;
    for (size_t at = 0; at < text.size();) {
        size_t num_bytes = 0;
        uint32_t id = kNoToken;
        if (set.begins_with(static_cast<unsigned char>(text[at]))) {
            set.for_each_prefix(text.substr(at), [&](size_t length, uint32_t member) {
                num_bytes = length;
                id = member;
            });
        }
        size_t end = at + (num_bytes > 0 ? num_bytes : character_bytes(text.substr(at)));
        size_t num_characters = 0;
        for (; at < end; ++at) num_characters += (static_cast<unsigned char>(text[at]) & 0xc0) != 0x80;
        if (num_bytes > 0) found.push_back({character, character + num_characters, id});
        character += num_characters;
    }
    return found;
}

}  // namespace ridgeline::text
