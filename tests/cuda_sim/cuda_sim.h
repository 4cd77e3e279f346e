// Test-only: the names of csrc/cuda/device.cuh on the host, and a launch that runs every CUDA thread as a fiber.
//
// Blocks run one after the other, the threads of a block in turns from barrier to barrier; if a seed is set, in random
// order and with warps that fall behind at random. Shared memory is poisoned with NaN before every block. What a warp
// does together (shuffles, matrix products) is computed once all of its lanes have come to it; lanes that come to
// different things, barriers that not all threads reach or that never open, and accesses that are not aligned end the
// launch with an error.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "sim_barriers.h"
#include "sim_traffic.h"

#ifndef __x86_64__
#error "the fibers of the simulator are written for x86-64"
#endif

#define __global__  // with its name in the library, by which launches are told
#ifdef FASTSR_SIM_TRAFFIC
// The compiler does not report what a call copies from or to memory.
#define __forceinline__ inline __attribute__((always_inline))
#else
#define __forceinline__ inline
#endif
#define __device__
#define __host__
#define __launch_bounds__(...)
#define FASTSR_SHARED_MEMORY(name) unsigned char* name = ::sim::state.shared

struct alignas(8) uint2 {
  uint32_t x, y;
  uint2() = default;
  uint2(uint32_t first, uint32_t second) : x(first), y(second) {}  // so that {x, y} is stored at once
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline float __uint_as_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
using std::max;
using std::min;

using cudaError_t = const char*;  // the message, or null
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = nullptr;
constexpr cudaError_t cudaErrorInvalidConfiguration = "invalid configuration";

namespace sim {

enum class Wait : uint8_t { kNothing, kBlock, kBarrier, kWarp, kEnd };

using Collective = void (*)(void* const (&arguments)[32]);

struct Fiber {
  void* stack_pointer;
  dim3 thread;
  int lane, warp;
  Wait wait;
  int site;      // line of the barrier it waits at, or the named barrier
  int openings;  // of the named barrier, when it came
  Collective collective;
  void* argument;
};

struct Copy {
  void* to;
  const void* from;  // null: zeros
  int bytes;
};

struct State {
  Fiber* current = nullptr;
  void* main_stack = nullptr;
  unsigned char* shared = nullptr;
  dim3 block, block_size, grid;
  const std::function<void()>* body = nullptr;
  unsigned seed = 0;
  std::string error;
  std::vector<const void*> started;       // kernels, so far
  std::vector<std::vector<Copy>> copies;  // by thread
  Barriers barriers;
};
inline State state;

extern "C" void fastsr_sim_switch(void** from, void* to);
asm(R"(
.weak fastsr_sim_switch
fastsr_sim_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

inline void wait(Wait what, int site, Collective collective = nullptr, void* argument = nullptr) {
  Fiber& f = *state.current;
  f.wait = what, f.site = site, f.collective = collective, f.argument = argument;
  fastsr_sim_switch(&f.stack_pointer, state.main_stack);
}

inline void enter() {
  (*state.body)();
  for (;;) wait(Wait::kEnd, 0);
}

// Lets the warp go on if all its lanes wait for the same.
inline bool release_warp(Fiber* lanes) {
  for (int i = 0; i < 32; ++i)
    if (lanes[i].wait != Wait::kWarp) return false;
  void* arguments[32];
  for (int i = 0; i < 32; ++i) {
    if (lanes[i].collective != lanes[0].collective || lanes[i].site != lanes[0].site) {
      state.error = "the lanes of a warp do different things together";
      return false;
    }
    arguments[i] = lanes[i].argument;
  }
  if (lanes[0].collective) lanes[0].collective(arguments);
  for (int i = 0; i < 32; ++i) lanes[i].wait = Wait::kNothing;
  return true;
}

inline bool opens(const Fiber& f) {
  return f.wait == Wait::kBarrier && state.barriers.barrier[f.site].openings != f.openings;
}

// Of threads that can do nothing but wait.
inline bool release_block(std::vector<Fiber>& fibers) {
  const auto any = [&](Wait what) {
    return std::any_of(fibers.begin(), fibers.end(), [&](const Fiber& f) { return f.wait == what; });
  };
  if (any(Wait::kWarp))
    state.error = "a warp waits for lanes that are elsewhere";
  else if (any(Wait::kBarrier))
    state.error = state.barriers.closed();
  else if (any(Wait::kEnd) ||
           std::any_of(fibers.begin(), fibers.end(), [&](const Fiber& f) { return f.site != fibers[0].site; }))
    state.error = "a barrier not all threads reach";
  if (!state.error.empty()) return false;
  for (Fiber& f : fibers) f.wait = Wait::kNothing;
  return true;
}

inline void run_block(std::vector<Fiber>& fibers, std::vector<int>& order, std::mt19937& random) {
  for (;;) {
    if (state.seed) std::shuffle(order.begin(), order.end(), random);
    const uint32_t behind = state.seed ? random() : 0;  // by warp
    bool ran = false;
    for (int i : order) {
      if (fibers[i].wait != Wait::kNothing && !opens(fibers[i])) continue;
      if (behind >> fibers[i].warp & 1) {
        ran = true;  // in a later turn
        continue;
      }
      state.current = &fibers[i];
      fastsr_traffic_thread(i);
      fastsr_sim_switch(&state.main_stack, fibers[i].stack_pointer);
      fastsr_traffic_thread(-1);
      ran = true;
      if (fibers[i].wait == Wait::kWarp) release_warp(&fibers[fibers[i].warp * 32]);
      if (!state.error.empty()) return;
    }
    if (ran) continue;
    if (std::all_of(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.wait == Wait::kEnd; })) {
      state.error = state.barriers.closed();
      return;
    }
    if (!release_block(fibers)) return;
  }
}

// Null, or what went wrong. Threads come in whole warps.
inline cudaError_t launch(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  constexpr size_t kStack = 128 << 10;
  state.error.clear();
  state.body = &body;
  state.grid = {static_cast<unsigned>(blocks)};
  state.block_size = {static_cast<unsigned>(threads)};
  std::vector<Fiber> fibers(threads);
  static std::vector<char> stacks;
  if (stacks.size() < threads * kStack) stacks.resize(threads * kStack);
  void* shared = nullptr;
  if (posix_memalign(&shared, 128, shared_bytes)) return "no memory";
  state.shared = static_cast<unsigned char*>(shared);
  std::vector<int> order(threads), block_order(blocks);
  std::iota(order.begin(), order.end(), 0);
  std::iota(block_order.begin(), block_order.end(), 0);
  std::mt19937 random(state.seed);
  state.copies.assign(threads, {});
  if (state.seed) std::shuffle(block_order.begin(), block_order.end(), random);
  for (int block : block_order) {
    state.block = {static_cast<unsigned>(block), 0, 0};
    state.barriers = {};
    std::memset(shared, 0xff, shared_bytes);  // NaN in every format
    for (int i = 0; i < threads; ++i) {
      auto** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(&stacks[i * kStack]) + kStack) & ~15ull) - 1;
      *--top = reinterpret_cast<void*>(enter);
      for (int k = 0; k < 6; ++k) *--top = nullptr;
      fibers[i] = {top, {static_cast<unsigned>(i), 0, 0}, i % 32, i / 32, Wait::kNothing, 0, 0, nullptr, nullptr};
    }
    fastsr_traffic_block(shared, shared_bytes);
    run_block(fibers, order, random);
    fastsr_traffic_block_end();
    for (auto& copies : state.copies)
      if (!copies.empty() && state.error.empty()) state.error = "copies that no thread waits for";
    if (!state.error.empty()) break;
  }
  std::free(shared);
  return state.error.empty() ? nullptr : state.error.c_str();
}

// How many kernels were started so far, and the name of one of them, as in the library.
extern "C" __attribute__((weak)) int64_t fastsr_sim_launches() { return static_cast<int64_t>(state.started.size()); }
extern "C" __attribute__((weak)) const char* fastsr_sim_started(int64_t i) {
  Dl_info info{};
  const bool known = dladdr(state.started[i], &info) && info.dli_saddr == state.started[i];
  return known ? info.dli_sname : "?";
}

// What lanes do together: `compute` sees the arguments of all 32.
template <class Argument, void (*Compute)(Argument* (&lanes)[32])>
void together(Argument& mine, int site = 0) {
  wait(
      Wait::kWarp, site,
      [](void* const(&arguments)[32]) {
        Argument* lanes[32];
        for (int i = 0; i < 32; ++i) lanes[i] = static_cast<Argument*>(arguments[i]);
        Compute(lanes);
      },
      &mine);
}

}  // namespace sim

// What -fsanitize=alignment calls: a GPU refuses such accesses, where the host only takes longer.
extern "C" __attribute__((visibility("hidden"), used, no_sanitize("alignment"))) inline void
__ubsan_handle_type_mismatch_v1(void*, uintptr_t) {
  sim::state.error = "an access that is not aligned";
}

#define threadIdx (::sim::state.current->thread)
#define blockIdx (::sim::state.block)
#define blockDim (::sim::state.block_size)
#define gridDim (::sim::state.grid)
#define __syncthreads() ::sim::wait(::sim::Wait::kBlock, __LINE__)
#define __syncwarp() ::sim::wait(::sim::Wait::kWarp, __LINE__)

#include "sim_warp.h"
