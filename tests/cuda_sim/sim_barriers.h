// Test-only: the named barriers of a block (barrier_sync and barrier_arrive of csrc/cuda/device.cuh). Whole warps come
// to them; a barrier opens when its number of threads has come, and can then be used again.
#pragma once

#include <cstdint>
#include <string>

namespace sim {

constexpr int kBarriers = 16;  // 0 is that of __syncthreads

struct Barrier {
  int threads = 0, come = 0;  // that open it, and that have come since it last did
  uint32_t warps = 0;         // those that have come
  int openings = 0;
};

struct Barriers {
  Barrier barrier[kBarriers];

  // What a warp of a block of `of_block` threads does wrong by coming to barrier `id` of `threads`, or nothing.
  std::string come(int id, int threads, int warp, int of_block) {
    if (id < 1 || id >= kBarriers) return name(id) + " does not exist; take one of 1 to 15";
    Barrier& b = barrier[id];
    if (threads < 32 || threads % 32 || threads > of_block)
      return name(id) + " is of " + std::to_string(threads) + " threads, not whole warps of the block's " +
             std::to_string(of_block);
    if (b.come && b.threads != threads)
      return name(id) + " is of " + std::to_string(b.threads) + " threads for some and of " + std::to_string(threads) +
             " for others";
    if (b.warps >> warp & 1) return "a warp comes to " + name(id) + " again before it opens";
    b.threads = threads, b.come += 32, b.warps |= 1u << warp;
    if (b.come == threads) b.come = 0, b.warps = 0, ++b.openings;
    return {};
  }

  // The first that some have come to and that has not opened, or nothing; asked when nobody goes on.
  std::string closed() const {
    for (int id = 1; id < kBarriers; ++id) {
      const Barrier& b = barrier[id];
      if (b.come)
        return name(id) + " never opens: " + std::to_string(b.come) + " of " + std::to_string(b.threads) +
               " threads have come";
    }
    return {};
  }

  static std::string name(int id) { return "barrier " + std::to_string(id); }
};

}  // namespace sim
