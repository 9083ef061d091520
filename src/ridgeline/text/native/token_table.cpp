#include "token_table.h"

namespace ridgeline::text {

std::vector<uint32_t> build_token_slots(const TokenTexts& texts, std::span<const uint8_t> is_present) {
    std::vector<uint32_t> slots(num_slots_for(texts.size()), kNoToken);
    size_t mask = slots.size() - 1;
    for (uint32_t id = 0; id < texts.size(); ++id) {
        if (!is_present[id]) continue;
        size_t at = hash_of(texts[id]) & mask;
        while (slots[at] != kNoToken) {
            if (texts[slots[at]] == texts[id]) throw DuplicateToken{slots[at], id};
            at = (at + 1) & mask;
        }
        slots[at] = id;
    }
    return slots;
}

}  // namespace ridgeline::text
