// The threads that the kernels' loops are divided among, as many as torch.set_num_threads says: torch's, or their own.
//
// torch's loops end in a barrier for all threads of the OpenMP team, also for one that the system has not let run since
// the loop began. Where other programs want the processors, each of the hundreds of short loops of a network then waits
// for a time slice. With threads of their own, the caller does whatever nobody else has begun and waits only for what
// has been begun. But OpenMP's threads keep their processors for some milliseconds after every loop of torch's, which
// small networks feel. So torch's threads run the loops until one of them comes late.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <type_traits>

namespace fastsr::cpu {

// Calls run(context) on the calling thread and on up to `others` of the kernels' own that are free before it returns.
// What one of them throws is thrown again when all have left.
void call_together(int64_t others, void (*run)(void*), void* context);

// Whether the kernels' own threads are to run the next loop: in a forked child, which has none of torch's, and for a
// while after a loop of torch's waited for a late thread, unless OpenMP binds threads to processors (OMP_PROC_BIND):
// new threads would share the processor of the one that makes them.
bool wants_own_threads();
// A loop of torch's threads began then, and the last of them began so long after the end of all work.
void tell_loop(std::chrono::steady_clock::time_point began, std::chrono::nanoseconds wait);

// How the processor treats numbers below the normal ones (torch.set_flush_denormal): while this lives as the calling
// thread does, for results must not depend on who computes them.
class FloatMode {
 public:
#if defined(__x86_64__)
  using Mode = uint32_t;
  static Mode current() { return __builtin_ia32_stmxcsr(); }
  static void set(Mode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  static Mode current() {
    Mode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(Mode mode) { asm volatile("msr fpcr, %0" ::"r"(mode)); }
#else
  using Mode = int;
  static Mode current() { return 0; }
  static void set(Mode) {}
#endif
  explicit FloatMode(Mode mode) : before_(current()) { set(mode); }
  ~FloatMode() { set(before_); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  Mode before_;
};

// Calls run() on up to `threads` threads at the same time: a function that takes work until none is left.
template <class Run>
void together(int64_t threads, Run&& run) {
  if (threads <= 1) return run();
  if (wants_own_threads())
    return call_together(
        threads - 1, [](void* context) { (*static_cast<std::remove_reference_t<Run>*>(context))(); },
        const_cast<void*>(static_cast<const void*>(&run)));
  using Clock = std::chrono::steady_clock;
  const std::thread::id caller = std::this_thread::get_id();
  const FloatMode::Mode mode = FloatMode::current();
  const Clock::time_point began = Clock::now();
  // When the caller found no more work, and how much later the last thread began.
  std::atomic<Clock::rep> finished{0}, late{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    const FloatMode as_caller(mode);
    if (const Clock::rep end = finished; end != 0) late = Clock::now().time_since_epoch().count() - end;
    for (; first < last; ++first) run();
    if (std::this_thread::get_id() == caller) finished = Clock::now().time_since_epoch().count();
  });
  tell_loop(began, Clock::duration(late));
}

}  // namespace fastsr::cpu
