// A pool of threads that spin briefly between the parts of a step, then sleep.
//
// A step is one call of `run`: every thread executes the same function with its own index, and the parts of the step
// are separated by `barrier`. Within a part, work is shared out by `static_range`.
#pragma once

#include <cstdint>
#include <functional>

namespace ridgeline {

class ThreadPool {
  public:
    // num_threads includes the caller of `run`. Threads are not pinned.
    explicit ThreadPool(int num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int num_threads() const { return num_threads_; }

    // Calls function(thread_index) once on every thread and returns when all are done. Not reentrant. The function may
    // throw on the calling thread alone, and not where others wait at a barrier for it.
    void run(const std::function<void(int)>& function);

    // Inside `run`: returns when every thread has come here. Spins with pause, then yields.
    void barrier(int thread_index);

  private:
    int num_threads_;
    struct State;
    State* state_;
};

// Half-open range of `count` items in units of `unit` for one of `num_threads`, as even as can be.
struct Range {
    int64_t begin, end;
};
Range static_range(int64_t count, int64_t unit, int thread_index, int num_threads);

}  // namespace ridgeline
