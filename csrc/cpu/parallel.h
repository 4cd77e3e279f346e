// Division of work over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "team.h"

namespace fastsr::cpu {

// Calls body(i) for i in [0, count), each once, on as many threads as torch.set_num_threads says. Items are handed out
// one by one, so a thread whose core is busy with something else takes fewer of them instead of stalling the rest.
// Which thread runs an item is not defined: results must not depend on it.
template <class Body>
void parallel_bands(int64_t count, Body&& body) {
  std::atomic<int64_t> next{0};
  together(std::min<int64_t>(count, torch::stable::get_num_threads()), [&] {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
  });
}

// Calls body(i, continues) for i in [0, count), each once, on as many threads. Each goes through a run of consecutive
// items and, when none is left, takes a run that nobody has begun, or else half of what another thread has left.
// `continues` says that the item before was this thread's last: what it left in the thread's scratch can be used again.
// Results must not depend on it.
template <class Body>
void parallel_runs(int64_t count, Body&& body) {
  struct alignas(64) Run {
    std::atomic<uint64_t> bounds;  // first item in the upper half, end in the lower
  };
  const auto pack = [](uint64_t first, uint64_t end) { return first << 32 | end; };
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  // Those that are there at first, and one that each thread fills with what it takes from others.
  std::vector<Run> runs(2 * threads);
  for (int64_t t = 0; t < threads; ++t) runs[t].bounds = pack(count * t / threads, count * (t + 1) / threads);

  const auto take = [&](Run& run) -> int64_t {
    uint64_t b = run.bounds;
    while (b >> 32 < (b & 0xffffffffu))
      if (run.bounds.compare_exchange_weak(b, b + pack(1, 0))) return static_cast<int64_t>(b >> 32);
    return -1;
  };
  const auto steal = [&](Run& own) {
    for (Run& victim : runs) {
      uint64_t b = victim.bounds;
      while (b >> 32 < (b & 0xffffffffu)) {
        const uint64_t first = b >> 32, end = b & 0xffffffffu, middle = first + (end - first) / 2;
        if (!victim.bounds.compare_exchange_weak(b, pack(first, middle))) continue;
        own.bounds = pack(middle, end);  // it was empty, and only its thread fills it
        return true;
      }
    }
    return false;
  };
  const auto finish = [&](Run& run) {
    int64_t previous = -2;
    for (int64_t i; (i = take(run)) >= 0; previous = i) body(i, previous + 1 == i);
  };
  std::atomic<int64_t> begun{0}, arrived{0};
  together(threads, [&] {
    Run& own = runs[threads + arrived.fetch_add(1)];
    for (int64_t t; (t = begun.fetch_add(1)) < threads;) finish(runs[t]);
    while (steal(own)) finish(own);
  });
}

}  // namespace fastsr::cpu
