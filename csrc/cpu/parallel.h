// Division of work over torch's threads, and per-thread scratch memory.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

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

struct FreeMemory {
  void operator()(void* p) const { std::free(p); }
};

// 64-byte aligned, uninitialised memory.
template <class T>
using Buffer = std::unique_ptr<T[], FreeMemory>;

template <class T>
Buffer<T> make_buffer(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes);
  if (!p) throw std::bad_alloc();
  return Buffer<T>(static_cast<T*>(p));
}

// Scratch of at least `count` elements that the calling thread keeps for its next call. `Tag` separates users that
// need theirs at the same time.
template <class T, class Tag>
T* thread_scratch(int64_t count) {
  thread_local Buffer<T> buffer;
  thread_local int64_t capacity = 0;
  if (capacity < count) {
    buffer = make_buffer<T>(count);
    capacity = count;
  }
  return buffer.get();
}

}  // namespace fastsr::cpu
