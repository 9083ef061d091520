// Measures the matrix products of the CPU chip beside the machine's own limits, in one run.
//
//   matmul_bench [--threads N] [--formats Q4_K,Q5_0] [--shapes 4864x896,896x4864] [--rows 1,8,512] [--isa avx512]
//                [--clock wall|cpu] [--copies N] [--seconds S]
//
// One line for each format, shape and number of rows: the time of a product, operations and weight bytes per second,
// and what share of the peak loop and of the read loop that is. Weights go through 192 MB of copies, so that no cache
// holds them between products (with --copies 1 and a small shape, caches do: that is the speed of the arithmetic). The
// loops run before every format. With the clock "cpu" and one thread, time is what the processor spent on it: where
// other programs take their share of the cores, that is the number to trust for products that compute (not for those
// that wait for memory).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "matmul.h"
#include "threads.h"

using namespace ridgeline;

namespace {

struct Named {
    const char* name;
    FormatId format;
    int64_t block_values, block_bytes;
    int64_t scales[2] = {-1, -1};  // where the f16 scales lie in a block
};
constexpr Named FORMATS[] = {
    {"Q4_K", FormatId::Q4_K, 256, 144, {0, 2}},
    {"Q6_K", FormatId::Q6_K, 256, 210, {208, -1}},
    {"Q5_0", FormatId::Q5_0, 32, 22, {0, -1}},
    {"Q8_0", FormatId::Q8_0, 32, 34, {0, -1}},
    {"Q4_1", FormatId::Q4_1, 32, 20, {0, 2}},
    {"Q4_0", FormatId::Q4_0, 32, 18, {0, -1}},
    {"Q5_1", FormatId::Q5_1, 32, 24, {0, 2}},
    {"Q5_K", FormatId::Q5_K, 256, 176, {0, 2}},
    {"Q2_K", FormatId::Q2_K, 256, 84, {80, 82}},
    {"Q3_K", FormatId::Q3_K, 256, 110, {108, -1}},
    {"IQ4_NL", FormatId::IQ4_NL, 32, 18, {0, -1}},
    {"MXFP4", FormatId::MXFP4, 32, 17},
    {"BF16", FormatId::BF16, 1, 2},
    {"F16", FormatId::F16, 1, 2},
    {"F32", FormatId::F32, 1, 4},
};

// Short bursts, of which the best counts: on a shared machine some fall between the turns of other programs.
constexpr double BURST_SECONDS = 0.003;

struct Options {
    int threads = 2;
    double seconds = 0.2;
    size_t copies = 0;
    std::vector<std::string> formats, shapes, rows;
};

std::vector<std::string> split(const char* text) {
    std::vector<std::string> parts(1);
    for (; *text != 0; ++text) {
        if (*text == ',') {
            parts.emplace_back();
        } else {
            parts.back() += *text;
        }
    }
    return parts;
}

struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<uint8_t, Free>;

Buffer allocate(size_t bytes) {
    auto* memory = static_cast<uint8_t*>(std::aligned_alloc(2 << 20, (bytes + (2 << 20) - 1) >> 21 << 21));
    if (memory == nullptr) std::abort();
    return Buffer(memory);
}

bool use_cpu_clock = false;

double now_seconds() {
    timespec time{};
    clock_gettime(use_cpu_clock ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct Limits {
    double read = 0, int8 = 0, bf16 = 0, fp32 = 0;
};

void measure_limits(ThreadPool& pool, const uint8_t* buffer, size_t bytes, Limits& limits) {
    const int threads = pool.num_threads();
    std::vector<double> done(static_cast<size_t>(threads) * 8);
    const auto best = [&](double& limit, double seconds, auto loop) {
        const auto start = now_seconds();
        pool.run([&](int index) { done[static_cast<size_t>(index) * 8] = loop(seconds, index); });
        const double elapsed = (now_seconds() - start);
        double sum = 0;
        for (int i = 0; i < threads; ++i) sum += done[static_cast<size_t>(i) * 8];
        limit = std::max(limit, sum / elapsed);
    };
    for (int repeat = 0; repeat < 30; ++repeat) {
        best(limits.read, BURST_SECONDS,
             [&](double s, int i) { return measure_read_bytes(buffer, bytes, s, i, threads); });
        best(limits.int8, BURST_SECONDS, [](double s, int) { return measure_int8_operations(s); });
        best(limits.bf16, BURST_SECONDS, [](double s, int) { return measure_bf16_operations(s); });
        best(limits.fp32, BURST_SECONDS, [](double s, int) { return measure_fp32_operations(s); });
    }
}

// The float scales of every block, about 1/64 as in files: kernels treat scales out of bounds in a slower way.
void set_scales(const Named& named, uint8_t* source, size_t bytes) {
    const auto block_bytes = static_cast<size_t>(named.block_bytes);
    for (size_t block = 0; block + block_bytes <= bytes; block += block_bytes) {
        for (const int64_t place : named.scales) {
            if (place < 0) continue;
            const auto half = static_cast<uint16_t>(0x2400 | (source[block + static_cast<size_t>(place)] & 0xff));
            std::memcpy(source + block + place, &half, sizeof half);
        }
        // Nor are scales of zero common.
        const bool has_codes = named.format == FormatId::Q4_K || named.format == FormatId::Q5_K;
        for (size_t i = 4; has_codes && i < 16; ++i) source[block + i] |= 1;
        for (size_t i = 192; named.format == FormatId::Q6_K && i < 208; ++i) source[block + i] |= 1;
        if (named.format == FormatId::MXFP4) source[block] = static_cast<uint8_t>(118 + source[block] % 8);
    }
}

void fill(const Named& named, uint8_t* source, size_t bytes, std::mt19937_64& random) {
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        const uint64_t word = random();
        std::memcpy(source + i, &word, 8);
    }
    if (named.block_values > 1) return set_scales(named, source, bytes);
    // Plain numbers near one, of any sign.
    for (size_t i = 0; i + 4 <= bytes; i += 4) {
        uint32_t word;
        std::memcpy(&word, source + i, 4);
        const uint32_t ones = named.format == FormatId::F32   ? 0x3f000000u
                              : named.format == FormatId::F16 ? 0x38003800u
                                                              : 0x3f003f00u;
        const uint32_t keep = named.format == FormatId::F32   ? 0x807fffffu
                              : named.format == FormatId::F16 ? 0x83ff83ffu
                                                              : 0x807f807fu;
        word = (word & keep) | ones;
        std::memcpy(source + i, &word, 4);
    }
}

void bench_shape(ThreadPool& pool, const Named& named, int64_t rows, int64_t width, const Options& options,
                 uint8_t* arena, size_t arena_bytes, Limits& limits) {
    if (width % named.block_values != 0) return;
    const size_t packed = packed_bytes(named.format, rows, width);
    const size_t copies = options.copies != 0 ? options.copies : std::max<size_t>(1, arena_bytes / packed);
    {
        std::mt19937_64 random(1);
        const auto source_bytes = static_cast<size_t>(rows * width / named.block_values * named.block_bytes);
        Buffer source = allocate(source_bytes + 8);
        fill(named, source.get(), source_bytes, random);
        pack_tiles(named.format, rows, width, source.get(), arena, 0, (rows + 15) / 16);
        for (size_t i = 1; i < copies; ++i) std::memcpy(arena + i * packed, arena, packed);
    }
    const ActivationKind kind = activation_kind(named.format);
    for (const std::string& text : options.rows) {
        const int64_t m = std::atoll(text.c_str());
        std::vector<float> x(static_cast<size_t>(m * width));
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(static_cast<int>(i * 7919 % 255) - 127) / 64;
        Buffer prepared = allocate(activation_row_bytes(kind, width) * static_cast<size_t>(m));
        const auto prepare_start = now_seconds();
        prepare_activations(kind, x.data(), width, m, width, prepared.get(), 0, m);
        const double prepare_seconds = (now_seconds() - prepare_start);
        std::vector<float> y(static_cast<size_t>(m * rows));
        size_t copy = 0;
        const auto product = [&](int64_t count) {
            const auto start = now_seconds();
            pool.run([&](int index) {
                for (int64_t i = 0; i < count; ++i) {
                    const PackedMatrix matrix{named.format, rows, width,
                                              arena + (copy + static_cast<size_t>(i)) % copies * packed};
                    const Range range = static_range(num_tiles(matrix), 2, index, pool.num_threads());
                    matmul(matrix, prepared.get(), m, y.data(), rows, {}, range.begin, range.end);
                    pool.barrier(index);
                }
            });
            copy += static_cast<size_t>(count);
            return (now_seconds() - start) / static_cast<double>(count);
        };
        const double once = product(1);
        const int64_t count = std::clamp<int64_t>(static_cast<int64_t>(BURST_SECONDS / once), 1, 4096);
        double best = product(count);
        const double until = now_seconds() + options.seconds;
        do best = std::min(best, product(count));
        while (now_seconds() < until);
        const double operations = 2.0 * static_cast<double>(m * rows * width) / best;
        const double bandwidth = static_cast<double>(packed) / best;
        const double peak = kind == ActivationKind::Int8   ? limits.int8
                            : kind == ActivationKind::Bf16 ? limits.bf16
                                                           : limits.fp32;
        std::printf(
            "%-7s %6ldx%-5ld M=%-4ld %9.1f us %8.1f GOPS %5.1f%% of peak %6.1f GB/s %5.1f%% of read  prepare %.1f us\n",
            named.name, rows, width, m, best * 1e6, operations * 1e-9, 100 * operations / peak, bandwidth * 1e-9,
            100 * bandwidth / limits.read, prepare_seconds * 1e6);
        std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char** argv) {
    Options options;
    options.shapes = {"4864x896", "896x4864"};
    options.rows = {"1", "4", "8", "16", "32", "128", "512"};
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i];
        if (name == "--threads") options.threads = std::atoi(argv[i + 1]);
        if (name == "--formats") options.formats = split(argv[i + 1]);
        if (name == "--shapes") options.shapes = split(argv[i + 1]);
        if (name == "--rows") options.rows = split(argv[i + 1]);
        if (name == "--seconds") options.seconds = std::atof(argv[i + 1]);
        if (name == "--copies") options.copies = static_cast<size_t>(std::atoi(argv[i + 1]));
        if (name == "--clock") use_cpu_clock = std::strcmp(argv[i + 1], "cpu") == 0;
        if (name == "--isa" && !set_instruction_set(argv[i + 1])) {
            std::fprintf(stderr, "this CPU cannot run %s\n", argv[i + 1]);
            return 1;
        }
    }
    ThreadPool pool(options.threads);
    constexpr size_t arena_bytes = 192 << 20;
    Buffer arena = allocate(arena_bytes);
    std::memset(arena.get(), 1, arena_bytes);
    std::printf("%s, %d threads\n", instruction_set(), options.threads);
    for (const Named& named : FORMATS) {
        if (!options.formats.empty() && std::ranges::find(options.formats, named.name) == options.formats.end())
            continue;
        Limits limits;
        measure_limits(pool, arena.get(), arena_bytes, limits);
        std::printf("limits: read %.1f GB/s, int8 %.0f GOPS, bf16 %.0f GFLOPS, fp32 %.0f GFLOPS\n", limits.read * 1e-9,
                    limits.int8 * 1e-9, limits.bf16 * 1e-9, limits.fp32 * 1e-9);
        for (const std::string& shape : options.shapes) {
            const size_t by = shape.find('x');
            bench_shape(pool, named, std::atoll(shape.c_str()), std::atoll(shape.c_str() + by + 1), options,
                        arena.get(), arena_bytes, limits);
        }
    }
    return 0;
}
