#include "bpe.h"

#include <algorithm>

#include "byte_alphabet.h"

namespace ridgeline::text {

void BpeEncoder::encode(const BpeModel& model, std::string_view piece, std::vector<uint32_t>& ids) {
    if (piece.empty()) return;
    if (model.ignores_merges) {
        std::string_view text = piece;
        if (model.is_byte_level) {
            alphabet_text_.clear();
            for (unsigned char byte : piece) kByteAlphabet.append_character(byte, alphabet_text_);
            text = alphabet_text_;
        }
        uint32_t id = model.table.find(text);
        if (id != kNoToken && model.may_merge[id]) {
            ids.push_back(id);
            return;
        }
    }
    split(model, piece);
    merge_all(model);
    for (int32_t at = symbols_.empty() ? -1 : 0; at >= 0; at = symbols_[at].next) ids.push_back(symbols_[at].id);
}

void BpeEncoder::add_symbol(uint32_t id) {
    int32_t at = static_cast<int32_t>(symbols_.size());
    if (at > 0) symbols_.back().next = at;
    symbols_.push_back({id, at - 1, -1});
}

void BpeEncoder::split(const BpeModel& model, std::string_view piece) {
    symbols_.clear();
    bool after_unknown = false;
    for (size_t at = 0; at < piece.size();) {
        size_t num_bytes = model.is_byte_level ? 1 : character_bytes(piece.substr(at));
        std::string_view character = piece.substr(at, num_bytes);
        at += num_bytes;
        uint32_t id = kNoToken;
        if (model.is_byte_level) {
            id = model.byte_ids[static_cast<unsigned char>(character[0])];
        } else {
            id = model.table.find(character);
            if (id != kNoToken && !model.may_merge[id]) id = kNoToken;
        }
        if (id != kNoToken) {
            add_symbol(id);
            after_unknown = false;
            continue;
        }
        bool has_bytes = model.has_byte_fallback && std::all_of(character.begin(), character.end(), [&](char byte) {
                             return model.byte_ids[static_cast<unsigned char>(byte)] != kNoToken;
                         });
        if (has_bytes) {
            for (unsigned char byte : character) add_symbol(model.byte_ids[byte]);
            after_unknown = false;
        } else if (model.unknown_id != kNoToken) {
            if (!after_unknown || !model.fuses_unknown) add_symbol(model.unknown_id);
            after_unknown = true;
        }
    }
}

void BpeEncoder::consider(const BpeModel& model, int32_t at) {
    if (at < 0 || symbols_[at].next < 0) return;
    uint32_t left = symbols_[at].id;
    uint32_t right = symbols_[symbols_[at].next].id;
    const MergeSlot* slot = model.merges.find(left, right);
    if (slot == nullptr) return;
    heap_.push_back({(static_cast<uint64_t>(slot->rank) << 32) | static_cast<uint32_t>(at), left, right, slot->merged});
    std::push_heap(heap_.begin(), heap_.end());
}

void BpeEncoder::merge_all(const BpeModel& model) {
    heap_.clear();
    for (int32_t at = 0; at + 1 < static_cast<int32_t>(symbols_.size()); ++at) consider(model, at);
    while (!heap_.empty()) {
        Candidate best = heap_.front();
        std::pop_heap(heap_.begin(), heap_.end());
        heap_.pop_back();
        int32_t at = static_cast<int32_t>(best.order & 0xffffffffu);
        int32_t next = symbols_[at].next;
        // A neighbour may have merged since; a symbol that was swallowed has no id.
        if (next < 0 || symbols_[at].id != best.left || symbols_[next].id != best.right) continue;
        symbols_[at].id = best.merged;
        symbols_[at].next = symbols_[next].next;
        if (symbols_[next].next >= 0) symbols_[symbols_[next].next].previous = at;
        symbols_[next].id = kNoToken;
        consider(model, symbols_[at].previous);
        consider(model, at);
    }
}

}  // namespace ridgeline::text
