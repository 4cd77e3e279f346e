// The matrix product under every pointwise convolution: a few pixels times all output channels of a column block,
// accumulated in registers. Weights are packed [k][n] so that a row of output channels is one run of vectors.
#pragma once

#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr int kLanes = VecOf<float>::lanes;
// Pixels and vectors of one tile, chosen so that accumulators, a row of weights and a broadcast fit the registers:
// 24 + 4 + 1 of 32 (AVX-512), 12 + 2 + 1 of 16 (AVX2), 8 + 2 + 1 of 16 (SSE, NEON).
#if FASTSR_VECTOR_BYTES == 64
constexpr int kTilePixels = 6, kTileVectors = 4;
#elif FASTSR_VECTOR_BYTES == 32
constexpr int kTilePixels = 6, kTileVectors = 2;
#else
constexpr int kTilePixels = 4, kTileVectors = 2;
#endif

FASTSR_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// acc[m][v] += sum_k x[m * x_stride + k] * w[k * w_stride + v * kLanes ..], for k_count values of k.
template <int M, int V>
FASTSR_INLINE void gemm_tile(const float* x, int64_t x_stride, int64_t k_count, const float* w, int64_t w_stride,
                             vf (&acc)[M][V]) {
  for (int64_t k = 0; k < k_count; ++k, w += w_stride) {
    vf row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(w + v * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vf b = splat(x[m * x_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] += b * row[v];
    }
  }
}

constexpr int64_t kPart = 8;  // values of k between two calls of `meanwhile`

// As gemm_tile, and calls meanwhile() every now and then.
template <int M, int V, class Meanwhile>
FASTSR_INLINE void gemm_tile(const float* x, int64_t x_stride, int64_t k_count, const float* w, int64_t w_stride,
                             vf (&acc)[M][V], Meanwhile& meanwhile) {
  int64_t k = 0;
  for (; k + kPart <= k_count; k += kPart, w += kPart * w_stride) {
    meanwhile();
    gemm_tile<M, V>(x + k, x_stride, kPart, w, w_stride, acc);
  }
  gemm_tile<M, V>(x + k, x_stride, k_count - k, w, w_stride, acc);
}

}  // namespace
}  // namespace fastsr::cpu
