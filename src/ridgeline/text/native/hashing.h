// Hash functions of the compiled vocabulary. They are part of its file format: a change needs a new format version.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace ridgeline::text {

// Finaliser with full avalanche. Source: Stafford, "Better Bit Mixing", variant 13 (as in SplitMix64).
inline uint64_t mixed(uint64_t value) {
    value ^= value >> 30;
    value *= 0xbf58476d1ce4e5b9ull;
    value ^= value >> 27;
    value *= 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

// FNV-1a over the bytes (tokens are short), then mixed so that the low bits can index a power-of-two table.
inline uint64_t hash_of(std::string_view bytes) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (unsigned char byte : bytes) {
        hash = (hash ^ byte) * 0x100000001b3ull;
    }
    return mixed(hash);
}

inline uint64_t hash_of_pair(uint32_t left, uint32_t right) {
    return mixed((static_cast<uint64_t>(left) << 32) | right);
}

// Detects damage, not malice. Four lanes hide the latency of the multiply, so it runs at memory speed.
inline uint64_t checksum(const uint8_t* data, size_t num_bytes) {
    constexpr uint64_t kPrime = 0x9e3779b185ebca87ull;
    uint64_t lanes[4] = {1, 2, 3, 4};
    size_t at = 0;
    for (; at + 32 <= num_bytes; at += 32) {
        for (int lane = 0; lane < 4; ++lane) {
            uint64_t word;
            std::memcpy(&word, data + at + 8 * lane, 8);
            uint64_t sum = (lanes[lane] ^ word) * kPrime;
            lanes[lane] = sum ^ (sum >> 29);
        }
    }
    uint64_t total = mixed(num_bytes);
    for (uint64_t lane : lanes) total = mixed(total ^ lane);
    for (; at < num_bytes; ++at) total = (total ^ data[at]) * kPrime;
    return mixed(total);
}

// The smallest power of two that leaves a table of `num_entries` at most two thirds full.
inline size_t num_slots_for(size_t num_entries) {
    size_t num_slots = 16;
    while (num_slots * 2 < num_entries * 3) num_slots *= 2;
    return num_slots;
}

}  // namespace ridgeline::text
