// The rate of fused multiply-adds that the processor can reach: what benchmarks hold the kernels against.
#pragma once

#include "gemm.inl"

namespace fastsr::cpu {
namespace {

// Multiply-adds on a register tile's worth of independent sums, `rounds` times; returns their floating-point
// operations.
int64_t fma_run(int64_t rounds) {
  constexpr int kSums = kTilePixels * kTileVectors;
  vf sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = splat(static_cast<float>(i));  // equal ones would be computed once
  const vf a = splat(0.999f), b = splat(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * a + b;
  }
  vf total{};
  for (const vf& sum : sums) total += sum;
  volatile float keep = sum_lanes(total);
  static_cast<void>(keep);
  return 2 * rounds * kSums * kLanes;
}

}  // namespace
}  // namespace fastsr::cpu
