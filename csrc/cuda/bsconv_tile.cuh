// Tiles of bsconv: u = W x of a tile and its halo, in shared memory in x's place, and who convolves which column of it.
#pragma once

#include "conv_mix_tile.cuh"

namespace fastsr::cuda {

// For 16 `N` channels out.
template <class Number, int N>
struct BlueprintTile : ForwardMix<Number> {
  using M = ForwardMix<Number>;
  using T = Number;
  static constexpr int kOut = 16 * N, kWidthLog2 = log2_of(kOut);
  static constexpr int kLanes = kOut / 2;                             // lanes of a column, two channels each
  static constexpr int kTurns = kTileColumns * kLanes / kMixThreads;  // columns of a lane

  __device__ __forceinline__ static int channel() { return threadIdx.x % kLanes * 2; }
  // Where a warp has two columns at once they are four apart, on different banks.
  __device__ __forceinline__ static int column(int turn) {
    const int warp = threadIdx.x / 32;
    return kLanes == 32 ? warp + turn * kMixWarps : warp / 4 * 8 + warp % 4 + threadIdx.x % 32 / kLanes * 4;
  }
};

// x becomes u: all warps multiply before any of them writes. `weights` as `pack_matrix` leaves them.
template <class B, class T = typename B::T>
__device__ __forceinline__ void multiply_halo(T* halo, const uint32_t* weights, int inputs) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if constexpr (kTensorCores<T>) {
    // A warp takes half of the channels out, of three (TF32: two) times 16 pixels: they share the weights' fragments.
    constexpr int kGroups = (B::kHaloPixels + 8 * kMixWarps - 1) / (8 * kMixWarps), kDepth = product_depth<T>;
    constexpr int kBlocks = B::kOut / 32;  // blocks of 16 channels out
    const int first = warp / 2 * kGroups * 16, half = warp % 2 * kBlocks;
    float sum[kGroups][2 * kBlocks][4] = {};
    const T* from[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      from[g] = halo + min(first + 16 * g + lane % 16, B::kHaloPixels - 1) * B::kPitch + lane / 16 * (kDepth / 2);
    const uint4* w = reinterpret_cast<const uint4*>(weights) + half * 32 + lane;
#pragma unroll 1
    for (int step = 0; step < (inputs + kDepth - 1) / kDepth; ++step, w += 4 * 32) {
      uint4 b[kBlocks];
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) b[n] = w[n * 32];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        uint32_t a[4];
        load_matrices(a, from[g] + kDepth * step);
        for_product<T>(a);
#pragma unroll
        for (int n = 0; n < kBlocks; ++n) {
          mma<T>(sum[g][2 * n], a[0], a[1], a[2], a[3], b[n].x, b[n].y);
          mma<T>(sum[g][2 * n + 1], a[0], a[1], a[2], a[3], b[n].z, b[n].w);
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int i = 0; i < 4 * kBlocks; ++i) {
        const int pixel = first + 16 * g + lane / 4 + i % 2 * 8, c = 16 * half + i / 2 * 8 + lane % 4 * 2;
        if (pixel < B::kHaloPixels)
          store_pair(halo + pixel * B::kPitch + c, sum[g][i / 2][i % 2 * 2], sum[g][i / 2][i % 2 * 2 + 1]);
      }
  } else {
    // A lane takes two channels out of a run of pixels.
    constexpr int kRuns = 32 / B::kLanes, kRun = (B::kHaloPixels + kMixWarps * kRuns - 1) / (kMixWarps * kRuns);
    const int first = (warp * kRuns + lane / B::kLanes) * kRun;
    float sum[kRun][2] = {};
    const float* w = reinterpret_cast<const float*>(weights) + B::channel();
#pragma unroll 1
    for (int c = 0; c < inputs; c += 4) {
      float2 b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i] = *reinterpret_cast<const float2*>(w + (c + i) * mix_pitch<T>);
#pragma unroll
      for (int p = 0; p < kRun; ++p) {
        const float4 a = *reinterpret_cast<const float4*>(halo + min(first + p, B::kHaloPixels - 1) * B::kPitch + c);
        const float x[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[p][0] = fmaf(x[i], b[i].x, sum[p][0]);
          sum[p][1] = fmaf(x[i], b[i].y, sum[p][1]);
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kRun; ++p)
      if (first + p < B::kHaloPixels) store_pair(halo + (first + p) * B::kPitch + B::channel(), sum[p][0], sum[p][1]);
  }
}

}  // namespace fastsr::cuda
