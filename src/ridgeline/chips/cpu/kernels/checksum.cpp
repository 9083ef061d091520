#include "checksum.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

namespace ridgeline {

namespace {

constexpr size_t PIECE_BYTES = 4 << 20;
constexpr int NUM_LANES = 8;
constexpr uint64_t MULTIPLIER = 0x9e3779b97f4a7c15u;  // odd, from the golden ratio

uint64_t mixed(uint64_t state, uint64_t word) {
    state ^= word;
    return ((state << 29) | (state >> 35)) * MULTIPLIER;
}

uint64_t checksum_of_piece(const uint8_t* data, size_t bytes) {
    uint64_t lanes[NUM_LANES];
    for (int i = 0; i < NUM_LANES; ++i) lanes[i] = MULTIPLIER * static_cast<uint64_t>(i + 1);
    size_t at = 0;
    for (; at + 64 <= bytes; at += 64) {
        uint64_t words[NUM_LANES];
        std::memcpy(words, data + at, 64);
        for (int i = 0; i < NUM_LANES; ++i) lanes[i] = mixed(lanes[i], words[i]);
    }
    uint64_t rest[NUM_LANES] = {};
    std::memcpy(rest, data + at, bytes - at);
    uint64_t result = bytes;
    for (int i = 0; i < NUM_LANES; ++i) result = mixed(result, mixed(lanes[i], rest[i]));
    return result;
}

}  // namespace

uint64_t checksum(ThreadPool& pool, const uint8_t* data, size_t bytes) {
    const size_t num_pieces = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    std::vector<uint64_t> pieces(num_pieces);
    std::atomic<size_t> next{0};
    pool.run([&](int) {
        for (size_t i = next.fetch_add(1); i < num_pieces; i = next.fetch_add(1))
            pieces[i] = checksum_of_piece(data + i * PIECE_BYTES, std::min(PIECE_BYTES, bytes - i * PIECE_BYTES));
    });
    uint64_t result = bytes;
    for (const uint64_t piece : pieces) result = mixed(result, piece);
    return result;
}

}  // namespace ridgeline
