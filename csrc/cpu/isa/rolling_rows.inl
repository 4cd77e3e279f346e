// Pieces that the row-by-row operators share: partial vectors, rows of pixels in float, the pointwise convolution of a
// row, and the ring in which its results wait for the depthwise convolution behind it.
//
// Intermediate rows are stored [channel group][pixel][lane]: a depthwise convolution then works on whole vectors, and
// a step along the row is a step of one vector.
#pragma once

#include "gemm.inl"
#include "prefetch.inl"
#include "strip.h"

namespace fastsr::cpu {
namespace {
namespace rows {

// ---- channels [g * kLanes, ...) of a pixel, of which the last group may hold fewer than kLanes

template <class T>
FASTSR_INLINE vf load_group(const T* pixel, int64_t g, int64_t channels) {
  return load_first(pixel + g * kLanes, channels - g * kLanes);
}

template <class T>
FASTSR_INLINE void store_group(T* pixel, int64_t g, int64_t channels, vf v) {
  store_first(pixel + g * kLanes, v, channels - g * kLanes);
}

// ---- rows of pixels in float

struct FloatRow {
  const float* data;
  int64_t stride;  // from pixel to pixel
};

// `count` pixels of c channels: where they are if they are float, otherwise converted into `buffer`.
template <class T>
FASTSR_INLINE FloatRow float_row(const T* x, int64_t stride, int64_t count, int64_t c, float* buffer) {
  if constexpr (std::is_same_v<T, float>) {
    return {x, stride};
  } else {
    for (int64_t i = 0; i < count; ++i)
      over<T>(c, [&](int64_t k, auto kind) { store_as(kind, buffer + i * c + k, load_as(kind, x + i * stride + k)); });
    return {buffer, c};
  }
}

// ---- pointwise convolution of a row: sink(pixel, vector, sums) for every pixel and vector of output channels

// Pixels of a tile that is V vectors wide, so that every width fills the registers about equally.
template <int V>
constexpr int tile_pixels = std::min(2 * kTilePixels, kTilePixels* kTileVectors / V);

template <int M, int V, class Sink, class Meanwhile>
FASTSR_INLINE void pointwise_tile(const FloatRow& x, int64_t i, int64_t c, const float* w, int64_t w_stride,
                                  int64_t first, Sink& sink, Meanwhile& meanwhile) {
  vf acc[M][V] = {};
  gemm_tile<M, V>(x.data + i * x.stride, x.stride, c, w + first * kLanes, w_stride, acc, meanwhile);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sink(i + m, first + v, acc[m][v]);
  }
}

template <int V, class Sink, class Meanwhile>
FASTSR_INLINE void pointwise_columns(const FloatRow& x, int64_t n, int64_t c, const float* w, int64_t w_stride,
                                     int64_t first, Sink& sink, Meanwhile& meanwhile) {
  constexpr int M = tile_pixels<V>;
  if (n < M) {
    for (int64_t i = 0; i < n; ++i) pointwise_tile<1, V>(x, i, c, w, w_stride, first, sink, meanwhile);
    return;
  }
  for (int64_t i = 0; i < n; i += M)
    // The last tile overlaps the one before it; both compute the same values.
    pointwise_tile<M, V>(x, std::min(i, n - M), c, w, w_stride, first, sink, meanwhile);
}

// w is packed [c][vectors * kLanes]. meanwhile() is called every now and then.
template <class Sink, class Meanwhile>
FASTSR_INLINE void pointwise(const FloatRow& x, int64_t n, int64_t c, const float* w, int64_t vectors, Sink sink,
                             Meanwhile& meanwhile) {
  const int64_t w_stride = vectors * kLanes;
  int64_t v = 0;
  for (; v + kTileVectors <= vectors; v += kTileVectors)
    pointwise_columns<kTileVectors>(x, n, c, w, w_stride, v, sink, meanwhile);
  if constexpr (kTileVectors == 4)
    if (vectors - v == 3) return pointwise_columns<3>(x, n, c, w, w_stride, v, sink, meanwhile);
  if constexpr (kTileVectors > 2)
    if (vectors - v == 2) return pointwise_columns<2>(x, n, c, w, w_stride, v, sink, meanwhile);
  if (vectors - v == 1) pointwise_columns<1>(x, n, c, w, w_stride, v, sink, meanwhile);
}
template <class Sink>
FASTSR_INLINE void pointwise(const FloatRow& x, int64_t n, int64_t c, const float* w, int64_t vectors, Sink sink) {
  const auto nothing = [] {};
  pointwise(x, n, c, w, vectors, sink, nothing);
}

// How often pointwise calls `meanwhile`, about.
FASTSR_INLINE int64_t pointwise_parts(int64_t n, int64_t c, int64_t vectors) {
  const int64_t blocks = (vectors + kTileVectors - 1) / kTileVectors;
  return n * blocks / tile_pixels<kTileVectors> * (c / kPart);
}

// ---- the ring of intermediate rows

// Rows of `groups` groups of `width` pixels. Row y of the image lies in slot y mod `slots`; a row needs y >= -slots.
struct Ring {
  float* data;
  int64_t slots, groups, width;
  // An odd number of vectors between groups and between rows keeps them from competing for the same cache sets.
  int64_t pitch() const { return (width | 1) * kLanes; }
  int64_t row_size() const { return groups * pitch() + (groups % 2 ? 0 : kLanes); }
  int64_t size() const { return slots * row_size(); }
  float* row(int64_t y) const { return data + (y + slots) % slots * row_size(); }

  void clear_row(int64_t y) const { std::memset(row(y), 0, row_size() * sizeof(float)); }
  // Pixels [first, last) of row y.
  void clear_pixels(int64_t y, int64_t first, int64_t last) const {
    if (first >= last) return;
    for (int64_t g = 0; g < groups; ++g)
      std::memset(row(y) + g * pitch() + first * kLanes, 0, (last - first) * kLanes * sizeof(float));
  }
};

// Row y of u = pointwise(x) for columns [first, last) of the image n, which may reach over its borders: zero there.
// Meanwhile it fetches the next row of x and what is in `fetch`: rows that are about to be written.
template <class T, int Rows>
void fill_row(const Ring& u, int64_t y, int64_t first, int64_t last, const FeatureRows<const T>& x, int64_t n,
              int64_t height, int64_t width, int64_t c, const float* w, float* buffer, Prefetches<Rows> fetch) {
  if (y < 0 || y >= height) return u.clear_row(y);
  const int64_t left = std::max<int64_t>(first, 0), right = std::min(last, width);
  u.clear_pixels(y, 0, left - first);
  u.clear_pixels(y, right - first, last - first);
  const FloatRow row = float_row(x.at(n, y, left), x.stride_w, right - left, c, buffer);
  if (y + 1 < height) fetch.add({x, n, y + 1, left, right - left, c});
  fetch.divide(pointwise_parts(right - left, c, u.groups));
  float* to = u.row(y) + (left - first) * kLanes;
  const int64_t pitch = u.pitch();
  pointwise(
      row, right - left, c, w, u.groups,
      [=](int64_t i, int64_t v, vf sums) { store(to + v * pitch + i * kLanes, sums); }, fetch);
}

}  // namespace rows
}  // namespace
}  // namespace fastsr::cpu
