// The records of a plan that are products: who reads which tiles.
#include <algorithm>
#include <utility>

#include "plan.h"

namespace ridgeline {

namespace {

// Tiles are handed out in pairs, as matmul takes them; with many rows in fours, since it takes two pairs at a time
// then.
constexpr int64_t TILE_UNIT = 2, TILE_UNIT_MANY = 4;
// This part of a thread's range may be taken by others.
constexpr int64_t SHARED_PART = 5;
// Of a strip of gate (and of up) for a block of rows: they stay in a thread's second-level cache beside the rows.
constexpr int64_t STRIP_FLOATS = BLOCK_ROWS * 12 * TILE_ROWS;

int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

int64_t Plan::strip_scratch_bytes() { return 2 * STRIP_FLOATS * 4; }

int64_t Plan::num_shared_tiles(const Record& record) {
    if (record.op == Op::Gated) return num_tiles(record.parts[0].matrix);
    int64_t count = 0;
    for (const Part& part : record.parts) count += rounded_up(num_tiles(part.matrix), TILE_UNIT);
    return count;
}

// Where each thread begins to read each product.
void Plan::find_first_bytes() {
    const int num_threads = pool_->num_threads();
    first_bytes_.assign(records_.size() * static_cast<size_t>(num_threads), nullptr);
    for (size_t index = 0; index < records_.size(); ++index) {
        const Record& record = records_[index];
        if (record.op != Op::Linears && record.op != Op::Gated) continue;
        for (int thread = 0; thread < num_threads; ++thread) {
            int64_t tile = static_range(num_shared_tiles(record), TILE_UNIT, thread, num_threads).begin;
            for (const Part& part : record.parts) {
                const int64_t tiles = rounded_up(num_tiles(part.matrix), TILE_UNIT);
                if (tile < tiles) {
                    const auto pair_bytes = packed_bytes(part.matrix.format, TILE_UNIT * TILE_ROWS, part.matrix.width);
                    first_bytes_[index * static_cast<size_t>(num_threads) + static_cast<size_t>(thread)] =
                        part.matrix.data + static_cast<size_t>(tile / TILE_UNIT) * pair_bytes;
                    break;
                }
                tile -= tiles;
            }
        }
    }
}

// What matmul would have asked for already if it had run before.
void Plan::ask_ahead(const uint8_t* bytes) {
    if (bytes == nullptr) return;
    for (int64_t i = 0; i < AHEAD_BYTES; i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

// With few rows each thread has a range, which it reads from front to back without a break; the last part of it may be
// taken by threads that are done with theirs. With many rows all tiles are handed out as threads come.
template <class Body>
void Plan::share_tiles(size_t index, int64_t count, int64_t rows, int64_t most_at_once, int thread, Body body) {
    const int num_threads = pool_->num_threads();
    Counter* counters = &counters_[index * static_cast<size_t>(num_threads)];
    if (rows > MANY_ROWS) {
        take_pieces(counters[0].next, {0, count}, TILE_UNIT_MANY, 3 * num_threads, most_at_once, body);
        return;
    }
    const auto fixed_of = [](const Range& range) {
        return (range.end - range.begin) * (SHARED_PART - 1) / SHARED_PART / TILE_UNIT * TILE_UNIT;
    };
    for (int i = 0; i < num_threads; ++i) {
        const int owner = (thread + i) % num_threads;
        const Range range = static_range(count, TILE_UNIT, owner, num_threads);
        const int64_t fixed_end = range.begin + fixed_of(range);
        if (i == 0)
            for (int64_t begin = range.begin; begin < fixed_end; begin += most_at_once)
                body(begin, std::min(fixed_end, begin + most_at_once));
        take_pieces(counters[owner].next, {fixed_end, range.end}, TILE_UNIT, 2, most_at_once, body);
    }
}

// Pieces of a range of tiles, each a part of what is left, so that the threads end together.
template <class Body>
void Plan::take_pieces(std::atomic<int64_t>& next, Range range, int64_t unit, int64_t part, int64_t most_at_once,
                       Body& body) {
    const int64_t count = range.end - range.begin;
    int64_t taken = next.load(std::memory_order_relaxed);
    while (taken < count) {
        const int64_t fair = (count - taken) / part / unit * unit;
        const int64_t piece = std::min(most_at_once, std::max(unit, fair));
        if (!next.compare_exchange_weak(taken, taken + piece, std::memory_order_relaxed)) continue;
        body(range.begin + taken, std::min(range.end, range.begin + taken + piece));
        taken = next.load(std::memory_order_relaxed);
    }
}

const uint8_t* Plan::prepared(const Part& part, bool is_own, int thread) const {
    if (is_own) return scratch(thread) + own_prepared_offset_ + part.prepared.own_offset_bytes;
    return arena_.data() + part.prepared.offset_bytes;
}

void Plan::linears(size_t index, const Record& record, int thread) {
    const int64_t rows = num_rows(record.rows);
    if (rows == 0) return;
    const bool is_own = index > 0 && repeats(records_[index - 1]);
    const int64_t count = num_shared_tiles(record);
    share_tiles(index, count, rows, count, thread, [&](int64_t begin, int64_t end) {
        int64_t first = 0;
        for (const Part& part : record.parts) {
            const int64_t tiles = num_tiles(part.matrix), next = first + rounded_up(tiles, TILE_UNIT);
            const int64_t from = std::max(begin, first) - first, to = std::min(std::min(end, next) - first, tiles);
            if (from < to)
                matmul(part.matrix, prepared(part, is_own, thread), rows, row(part.out, 0), part.out.stride,
                       {part.bias, part.accumulate}, from, to);
            first = next;
        }
    });
}

void Plan::gated(size_t index, const Record& record, int thread) {
    const int64_t rows = num_rows(record.rows);
    if (rows == 0) return;
    const bool is_own = index > 0 && repeats(records_[index - 1]);
    const Part &gate = record.parts[0], &up = record.parts[1];
    float* gate_strip = reinterpret_cast<float*>(scratch(thread) + strip_offset_);
    float* up_strip = gate_strip + STRIP_FLOATS;
    const int64_t fit = STRIP_FLOATS / (std::min(rows, BLOCK_ROWS) * TILE_ROWS) / TILE_UNIT * TILE_UNIT;
    share_tiles(index, num_tiles(gate.matrix), rows, fit, thread, [&](int64_t begin, int64_t end) {
        const int64_t first = begin * TILE_ROWS, width = std::min(end * TILE_ROWS, gate.matrix.rows) - first;
        const int64_t stride = (end - begin) * TILE_ROWS;
        for (int64_t t = 0; t < rows; t += BLOCK_ROWS) {
            const int64_t count = std::min(BLOCK_ROWS, rows - t);
            // matmul writes column f at y + f: the strips begin at the column `first`.
            for (const auto& [part, strip] : {std::pair{&gate, gate_strip}, std::pair{&up, up_strip}}) {
                const int64_t row_bytes = activation_row_bytes(part->prepared.kind, part->matrix.width);
                matmul(part->matrix, prepared(*part, is_own, thread) + t * row_bytes, count, strip - first, stride, {},
                       begin, end);
            }
            for (int64_t i = 0; i < count; ++i)
                write_gated(record, t + i, gate_strip + i * stride, up_strip + i * stride, first, width);
        }
    });
}

// A piece of a row from the column `first` on: a multiple of 32, since tiles are handed out in pairs.
void Plan::write_gated(const Record& record, int64_t row_index, float* gate, const float* up, int64_t first,
                       int64_t width) {
    if (!record.prepares_output) {
        float* out = row(record.parts[0].out, row_index) + first;
        elementwise_.activate_multiply(gate, up, record.activation, width, out);
        return;
    }
    elementwise_.activate_multiply(gate, up, record.activation, width, gate);
    for (const PreparedPlace& place : record.prepared) {
        const auto row_bytes = static_cast<int64_t>(activation_row_bytes(place.kind, record.width));
        uint8_t* out =
            arena_.data() + place.offset_bytes + row_index * row_bytes + activation_offset_bytes(place.kind, first);
        prepare_activations(place.kind, gate, 0, 1, width, out, 0, 1);
    }
}

}  // namespace ridgeline
