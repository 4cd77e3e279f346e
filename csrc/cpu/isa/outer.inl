// The gradient of a pointwise convolution's weights: a sum over pixels of outer products.
#pragma once

#include "rolling_rows.inl"

namespace fastsr::cpu {
namespace {
namespace rows {

template <int M, int V>
FASTSR_INLINE void outer_tile(const FloatRow& x, int64_t count, int64_t channel, const float* d, int64_t d_stride,
                              int64_t first, float* out) {
  vf acc[M][V] = {};
  const float *xp = x.data + channel, *dp = d + first * kLanes;
  for (int64_t i = 0; i < count; ++i, xp += x.stride, dp += d_stride) {
    vf row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(dp + v * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vf b = splat(xp[m]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] += b * row[v];
    }
  }
  float* to = out + channel * d_stride + first * kLanes;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(to + m * d_stride + v * kLanes, load(to + m * d_stride + v * kLanes) + acc[m][v]);
  }
}

template <int V>
FASTSR_INLINE void outer_columns(const FloatRow& x, int64_t count, int64_t c, const float* d, int64_t d_stride,
                                 int64_t first, float* out) {
  constexpr int M = tile_pixels<V>;
  int64_t k = 0;
  for (; k + M <= c; k += M) outer_tile<M, V>(x, count, k, d, d_stride, first, out);
  for (; k + 4 <= c; k += 4) outer_tile<4, V>(x, count, k, d, d_stride, first, out);
  for (; k < c; ++k) outer_tile<1, V>(x, count, k, d, d_stride, first, out);
}

// out[channel of x][vectors * kLanes] += x[pixel][channel] * d[pixel][vectors * kLanes] over `count` pixels.
FASTSR_INLINE void outer(const FloatRow& x, int64_t count, int64_t c, const float* d, int64_t vectors, float* out) {
  const int64_t stride = vectors * kLanes;
  int64_t v = 0;
  for (; v + kTileVectors <= vectors; v += kTileVectors) outer_columns<kTileVectors>(x, count, c, d, stride, v, out);
  if constexpr (kTileVectors > 2)
    for (; v + 2 <= vectors; v += 2) outer_columns<2>(x, count, c, d, stride, v, out);
  for (; v < vectors; ++v) outer_columns<1>(x, count, c, d, stride, v, out);
}

}  // namespace rows
}  // namespace
}  // namespace fastsr::cpu
