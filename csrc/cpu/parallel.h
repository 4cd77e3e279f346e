// Division of work over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "memory.h"

namespace fastsr::cpu {

// Calls body(i) for i in [0, count), each once, on torch's intra-op threads. Items are handed out one by one, so a
// thread whose core is busy with something else takes fewer of them instead of stalling the rest. Which thread runs
// an item is not defined: results must not depend on it.
template <class Body>
void parallel_bands(int64_t count, Body&& body) {
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
  });
}

// Calls body(i, continues) for i in [0, count), each once, on torch's intra-op threads. Each thread goes through a run
// of consecutive items and, when it has none left, takes over half of what another has left. `continues` says that the
// item before was this thread's last: what it left in the thread's scratch can be used again. Results must not depend
// on it.
template <class Body>
void parallel_runs(int64_t count, Body&& body) {
  struct alignas(64) Run {
    std::atomic<uint64_t> bounds;  // first item in the upper half, end in the lower
  };
  const auto pack = [](uint64_t first, uint64_t end) { return first << 32 | end; };
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  std::vector<Run> runs(threads);
  for (int64_t t = 0; t < threads; ++t) runs[t].bounds = pack(count * t / threads, count * (t + 1) / threads);

  const auto take = [&](Run& run) -> int64_t {
    uint64_t b = run.bounds;
    while (b >> 32 < (b & 0xffffffffu))
      if (run.bounds.compare_exchange_weak(b, b + pack(1, 0))) return static_cast<int64_t>(b >> 32);
    return -1;
  };
  const auto steal = [&](int64_t thief) {
    for (int64_t k = 1; k < threads; ++k) {
      Run& victim = runs[(thief + k) % threads];
      uint64_t b = victim.bounds;
      while (b >> 32 < (b & 0xffffffffu)) {
        const uint64_t first = b >> 32, end = b & 0xffffffffu, middle = first + (end - first) / 2;
        if (!victim.bounds.compare_exchange_weak(b, pack(first, middle))) continue;
        runs[thief].bounds = pack(middle, end);  // it was empty, and only its owner fills a run
        return true;
      }
    }
    return false;
  };
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      int64_t previous = -2;
      do
        for (int64_t i; (i = take(runs[t])) >= 0; previous = i) body(i, previous + 1 == i);
      while (steal(t));
    }
  });
}

}  // namespace fastsr::cpu
