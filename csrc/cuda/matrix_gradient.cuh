// The gradients of a 1x1 convolution's parameters from tiles in shared memory, for kernels that walk over tiles: the
// sums of a CTA stay in its registers.
#pragma once

#include "conv_mix_tile.cuh"

namespace fastsr::cuda {

// Sums of g^T x over pixels, g [pixel][k], x [pixel][c]: of a warp 16 rows and 32 columns on tensor cores, of a thread
// 4 x 4 in float32.
template <class M>
struct MatrixGradient {
  using T = typename M::T;
  float sum[4][4] = {};

  __device__ __forceinline__ void add(const T* g, const T* x, int k, int c) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if constexpr (sizeof(T) == 2) {
      if (warp % 4 * 16 >= k || warp / 4 * 32 >= c) return;
      g += (lane / 16 * 8 + lane % 8) * M::kPitch + warp % 4 * 16 + lane / 8 % 2 * 8;
      x += (lane / 8 % 2 * 8 + lane % 8) * M::kPitch + warp / 4 * 32 + lane / 16 * 8;
#pragma unroll 2
      for (int p = 0; p < M::kPixels; p += 16) {
        uint32_t rows[4];
        load_matrices_transposed(rows, g + p * M::kPitch);
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          uint32_t columns[4];
          load_matrices_transposed(columns, x + p * M::kPitch + 8 * j);
          mma_k16<T>(sum[j], rows[0], rows[1], rows[2], rows[3], columns[0], columns[1]);
          mma_k16<T>(sum[j + 1], rows[0], rows[1], rows[2], rows[3], columns[2], columns[3]);
        }
      }
    } else if constexpr (kTensorCores<T>) {
      if (warp % 4 * 16 >= k || warp / 4 * 32 >= c) return;
      // K is eight pixels, of which t and t + 4 are neighbours: so no bank is read twice.
      const auto number = [](const T& v) { return to_tf32(to_float(v)); };
      g += lane % 4 * 2 * M::kPitch + warp % 4 * 16 + lane / 4;
      x += lane % 4 * 2 * M::kPitch + warp / 4 * 32 + lane / 4;
#pragma unroll 2
      for (int p = 0; p < M::kPixels; p += 8, g += 8 * M::kPitch, x += 8 * M::kPitch) {
        const uint32_t a0 = number(g[0]), a1 = number(g[8]);
        const uint32_t a2 = number(g[M::kPitch]), a3 = number(g[M::kPitch + 8]);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_tf32(sum[j], a0, a1, a2, a3, number(x[8 * j]), number(x[M::kPitch + 8 * j]));
      }
    } else {
      float of_tile[4][4] = {};
      const unsigned thread = computed_here(threadIdx.x);
      g += thread / 16 * 4, x += thread % 16 * 4;
#pragma unroll 4
      for (int p = 0; p < M::kPixels; ++p, g += M::kPitch, x += M::kPitch) {
        const float4 rows = *reinterpret_cast<const float4*>(g), columns = *reinterpret_cast<const float4*>(x);
        const float r[4] = {rows.x, rows.y, rows.z, rows.w}, q[4] = {columns.x, columns.y, columns.z, columns.w};
#pragma unroll
        for (int i = 0; i < 16; ++i) of_tile[i / 4][i % 4] = fmaf(r[i / 4], q[i % 4], of_tile[i / 4][i % 4]);
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) sum[i / 4][i % 4] += of_tile[i / 4][i % 4];
    }
  }
  __device__ __forceinline__ void store(float* to, int k, int c) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      int row = threadIdx.x / 16 * 4 + i / 4, column = threadIdx.x % 16 * 4 + i % 4;
      if constexpr (kTensorCores<T>) {
        row = warp % 4 * 16 + lane / 4 + i % 4 / 2 * 8;
        column = warp / 4 * 32 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      }
      if (row < k && column < c) to[row * c + column] = sum[i / 4][i % 4];
    }
  }
};

// Sums of g over pixels, for the bias: of a thread one channel of a quarter of the pixels.
template <class M>
struct ChannelSums {
  using T = typename M::T;
  float sum = 0.f;

  __device__ __forceinline__ void add(const T* g) {
    constexpr int kQuarter = M::kPixels / (kMixThreads / kMixChannels);
    float of_tile = 0.f;  // a sum of sums loses less than one chain
    const unsigned thread = computed_here(threadIdx.x);
    g += thread / kMixChannels * kQuarter * M::kPitch + thread % kMixChannels;
#pragma unroll 8
    for (int p = 0; p < kQuarter; ++p) of_tile += to_float(g[p * M::kPitch]);
    sum += of_tile;
  }
  // `memory`: a float per thread. All threads of the CTA are past what lay there.
  __device__ __forceinline__ void store(float* memory, float* to, int channels) const {
    memory[threadIdx.x] = sum;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) >= channels) return;
    float total = sum;
#pragma unroll
    for (int i = kMixChannels; i < kMixThreads; i += kMixChannels) total += memory[threadIdx.x + i];
    to[threadIdx.x] = total;
  }
};

}  // namespace fastsr::cuda
