// Loops that measure what the machine can do at most. Each runs on the calling thread for about the time it is given.
#include <chrono>

#include "matmul_kernels.h"
#include "scalar_numbers.h"

namespace ridgeline {

namespace {

double elapsed_seconds(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double repeat_for(MeasureFunction loop, double seconds) {
    constexpr int64_t repeats_per_clock_read = 20'000;
    const auto start = std::chrono::steady_clock::now();
    double operations = 0;
    do operations += loop(repeats_per_clock_read);
    while (elapsed_seconds(start) < seconds);
    return operations;
}

}  // namespace

double measure_read_bytes(const uint8_t* buffer, size_t bytes, double seconds, int thread_index, int num_threads) {
    // Pieces are dealt to the threads in turn; each piece is read as streams side by side.
    constexpr size_t stream_bytes = 256 * 1024;
    constexpr size_t piece_bytes = stream_bytes * NUM_READ_STREAMS;
    const size_t num_pieces = bytes / piece_bytes;
    const auto start = std::chrono::steady_clock::now();
    const auto& set = active_instruction_set();
    double done = 0;
    uint64_t sum = 0;
    do {
        for (size_t piece = static_cast<size_t>(thread_index); piece < num_pieces;
             piece += static_cast<size_t>(num_threads)) {
            const uint8_t* streams[NUM_READ_STREAMS];
            for (size_t i = 0; i < NUM_READ_STREAMS; ++i) streams[i] = buffer + piece * piece_bytes + i * stream_bytes;
            sum += set.read_loop(streams, stream_bytes);
            done += static_cast<double>(piece_bytes);
            if (elapsed_seconds(start) >= seconds) break;
        }
    } while (num_pieces > static_cast<size_t>(thread_index) && elapsed_seconds(start) < seconds);
    keep_alive(&sum);
    return done;
}

double measure_int8_operations(double seconds) { return repeat_for(active_instruction_set().int8_loop, seconds); }
double measure_bf16_operations(double seconds) { return repeat_for(active_instruction_set().bf16_loop, seconds); }
double measure_fp32_operations(double seconds) { return repeat_for(active_instruction_set().fp32_loop, seconds); }

}  // namespace ridgeline
