// Memory for feature maps and scratch.
//
// A map is written once, read once or twice and freed: in a network at 640x360, a fifth of the time went into the first
// touch of fresh pages (5.7 ms for 15 MB by pages of 4 KB on a virtual machine, 1.6 ms by pages of 2 MB). So large
// blocks ask for huge pages, and freed ones are kept for the next map of the same size, up to a limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fastsr::cpu {

// At least `bytes` bytes of uninitialised memory, 64-byte aligned. Throws std::bad_alloc.
void* take_memory(size_t bytes);
// Gives back what take_memory(bytes) returned; any thread may.
void give_memory(void* memory, size_t bytes);
// Whether blocks of this size are kept, so that it pays to take a tensor's memory from here.
bool keeps_memory(size_t bytes);
// Keeps at most `bytes` of freed memory from now on (negative: as before), and returns what was kept until now.
// 0 frees all of it.
int64_t limit_kept_memory(int64_t bytes);

struct GiveMemory {
  size_t bytes = 0;
  void operator()(void* memory) const { give_memory(memory, bytes); }
};

template <class T>
using Buffer = std::unique_ptr<T[], GiveMemory>;

template <class T>
Buffer<T> make_buffer(int64_t count) {
  const size_t bytes = static_cast<size_t>(count > 0 ? count : 1) * sizeof(T);
  return Buffer<T>(static_cast<T*>(take_memory(bytes)), GiveMemory{bytes});
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
