// The tokens' texts, and the way back from a text to its id. Views of memory that somebody else owns.
//
//   blob     all texts one after the other, UTF-8
//   offsets  text i is blob[offsets[i], offsets[i + 1])
//   slots    open addressing, linear probing: id, or kNoToken where empty
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hashing.h"

namespace ridgeline::text {

inline constexpr uint32_t kNoToken = 0xffffffffu;

struct TokenTexts {
    std::span<const char> blob;
    std::span<const uint32_t> offsets;

    size_t size() const { return offsets.empty() ? 0 : offsets.size() - 1; }
    std::string_view operator[](size_t id) const {
        return {blob.data() + offsets[id], static_cast<size_t>(offsets[id + 1] - offsets[id])};
    }
    // Everything else relies on this; it is checked once, when memory that came from outside is first looked at.
    bool is_sound() const {
        if (offsets.empty() || offsets.front() != 0 || offsets.back() != blob.size()) return false;
        for (size_t i = 0; i + 1 < offsets.size(); ++i) {
            if (offsets[i] > offsets[i + 1]) return false;
        }
        return true;
    }
};

struct TokenTable {
    TokenTexts texts;
    std::span<const uint32_t> slots;

    uint32_t find(std::string_view text) const {
        size_t mask = slots.size() - 1;
        for (size_t at = hash_of(text) & mask;; at = (at + 1) & mask) {
            uint32_t id = slots[at];
            if (id == kNoToken || texts[id] == text) return id;
        }
    }
};

// Two ids with one text.
struct DuplicateToken {
    uint32_t first;
    uint32_t second;
};

// Slots for all ids with `is_present[id]`. Throws DuplicateToken.
std::vector<uint32_t> build_token_slots(const TokenTexts& texts, std::span<const uint8_t> is_present);

// Length in bytes of the UTF-8 character that begins at text[0]; a stray byte counts as a character.
inline size_t character_bytes(std::string_view text) {
    unsigned char lead = static_cast<unsigned char>(text[0]);
    size_t num_bytes = lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    return num_bytes < text.size() ? num_bytes : text.size();
}

}  // namespace ridgeline::text
