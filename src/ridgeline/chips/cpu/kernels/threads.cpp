#include "threads.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#else
#include <ctime>
#endif

namespace ridgeline {

namespace {

void pause_cpu() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

// How long a thread spins before it offers its core to others, and how long before it sleeps. The first covers the
// usual imbalance between the parts of a step, the second the Python code between two steps.
constexpr std::chrono::nanoseconds SPIN_BEFORE_YIELD{5'000};
constexpr std::chrono::nanoseconds SPIN_BEFORE_SLEEP{80'000};
constexpr int PAUSES_PER_CLOCK_READ = 64;

// Waits until `value` differs from `old`: spins, then yields, then (if `may_sleep`) sleeps in the kernel.
uint32_t wait_for_change(const std::atomic<uint32_t>& value, uint32_t old, bool may_sleep) {
    uint32_t now = value.load(std::memory_order_acquire);
    for (int i = 0; i < PAUSES_PER_CLOCK_READ && now == old; ++i) {
        pause_cpu();
        now = value.load(std::memory_order_acquire);
    }
    if (now != old) return now;
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
        for (int i = 0; i < PAUSES_PER_CLOCK_READ; ++i) {
            pause_cpu();
            now = value.load(std::memory_order_acquire);
            if (now != old) return now;
        }
        const auto waited = std::chrono::steady_clock::now() - start;
        if (waited < SPIN_BEFORE_YIELD) continue;
        if (may_sleep && waited > SPIN_BEFORE_SLEEP) {
            value.wait(old, std::memory_order_acquire);
        } else {
            std::this_thread::yield();
        }
        now = value.load(std::memory_order_acquire);
        if (now != old) return now;
    }
}

}  // namespace

struct ThreadPool::State {
    // Each on a cache line of its own: they are written by different threads at different times.
    alignas(64) std::atomic<uint32_t> epoch{0};     // counts runs; workers wait for it to change
    alignas(64) std::atomic<uint32_t> finished{0};  // counts runs that all workers have finished
    alignas(64) std::atomic<int> working{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> generation{0};                 // counts barriers
    alignas(64) const std::function<void(int)>* function = nullptr;  // null: the workers end
    std::vector<std::thread> workers;

    void start_epoch(const std::function<void(int)>* next, int num_workers) {
        function = next;
        working.store(num_workers, std::memory_order_relaxed);
        epoch.fetch_add(1, std::memory_order_release);
        epoch.notify_all();
    }

    void work(int thread_index) {
        uint32_t seen = 0;
        for (;;) {
            seen = wait_for_change(epoch, seen, true);
            const std::function<void(int)>* task = function;
            if (task == nullptr) return;
            (*task)(thread_index);
            if (working.fetch_sub(1, std::memory_order_acq_rel) == 1) {
                finished.store(seen, std::memory_order_release);
                finished.notify_all();
            }
        }
    }
};

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads < 1 ? 1 : num_threads), state_(new State) {
    state_->workers.reserve(static_cast<size_t>(num_threads_ - 1));
    for (int i = 1; i < num_threads_; ++i) state_->workers.emplace_back([state = state_, i] { state->work(i); });
}

ThreadPool::~ThreadPool() {
    state_->start_epoch(nullptr, 0);
    for (std::thread& worker : state_->workers) worker.join();
    delete state_;
}

void ThreadPool::run(const std::function<void(int)>& function) {
    if (num_threads_ == 1) {
        function(0);
        return;
    }
    const uint32_t before = state_->finished.load(std::memory_order_relaxed);
    // Waits for the others also when the caller's own share throws: they use what the caller owns.
    struct WaitForOthers {
        State& state;
        uint32_t before;
        ~WaitForOthers() { wait_for_change(state.finished, before, true); }
    } const wait_for_others{*state_, before};
    state_->start_epoch(&function, num_threads_ - 1);
    function(0);
}

void ThreadPool::barrier(int) {
    if (num_threads_ == 1) return;
    const uint32_t generation = state_->generation.load(std::memory_order_relaxed);
    if (state_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
        state_->arrived.store(0, std::memory_order_relaxed);
        state_->generation.store(generation + 1, std::memory_order_release);
        return;
    }
    wait_for_change(state_->generation, generation, false);
}

Range static_range(int64_t count, int64_t unit, int thread_index, int num_threads) {
    const int64_t num_units = (count + unit - 1) / unit;
    const int64_t begin = num_units * thread_index / num_threads * unit;
    const int64_t end = num_units * (thread_index + 1) / num_threads * unit;
    return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace ridgeline
