// Pieces that the row-by-row operators share: partial vectors, rows of pixels in float, the pointwise convolution of a
// row, and the ring in which its results wait for the depthwise convolution behind it.
//
// Intermediate rows are stored [channel group][pixel][lane]: a depthwise convolution then works on whole vectors, and
// a step along the row is a step of one vector.
#pragma once

#include "gemm.inl"

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

// `ahead`: M pixels that will be read later, or null. They are fetched a few lines at a time: all at once, they would
// hold up the product.
template <int M, int V, class Sink>
FASTSR_INLINE void pointwise_tile(const FloatRow& x, int64_t i, int64_t c, const float* w, int64_t w_stride,
                                  int64_t first, Sink& sink, const float* ahead) {
  constexpr int64_t kPart = 8;
  constexpr int kLines = (M * kPart * sizeof(float) + 63) / 64;
  vf acc[M][V] = {};
  const float *from = x.data + i * x.stride, *weights = w + first * kLanes;
  int64_t k = 0;
  for (; k + kPart <= c; k += kPart) {
    if (ahead)
      for (int line = 0; line < kLines; ++line) __builtin_prefetch(ahead + M * k + line * 16, 0, 2);
    gemm_tile<M, V>(from + k, x.stride, kPart, weights + k * w_stride, w_stride, acc);
  }
  gemm_tile<M, V>(from + k, x.stride, c - k, weights + k * w_stride, w_stride, acc);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sink(i + m, first + v, acc[m][v]);
  }
}

template <int V, class Sink>
FASTSR_INLINE void pointwise_columns(const FloatRow& x, int64_t n, int64_t c, const float* w, int64_t w_stride,
                                     int64_t first, Sink& sink, const float* ahead) {
  constexpr int M = tile_pixels<V>;
  if (n < M) {
    for (int64_t i = 0; i < n; ++i) pointwise_tile<1, V>(x, i, c, w, w_stride, first, sink, nullptr);
    return;
  }
  for (int64_t i = 0; i < n; i += M)
    // The last tile overlaps the one before it; both compute the same values.
    pointwise_tile<M, V>(x, std::min(i, n - M), c, w, w_stride, first, sink, ahead ? ahead + i * x.stride : nullptr);
}

// w is packed [c][vectors * kLanes]. `ahead`: pixels that will be read next, or null.
template <class Sink>
FASTSR_INLINE void pointwise(const FloatRow& x, int64_t n, int64_t c, const float* w, int64_t vectors, Sink sink,
                             const float* ahead = nullptr) {
  const int64_t w_stride = vectors * kLanes;
  int64_t v = 0;
  for (; v + kTileVectors <= vectors; v += kTileVectors, ahead = nullptr)
    pointwise_columns<kTileVectors>(x, n, c, w, w_stride, v, sink, ahead);
  if constexpr (kTileVectors == 4)
    if (vectors - v == 3) return pointwise_columns<3>(x, n, c, w, w_stride, v, sink, ahead);
  if constexpr (kTileVectors > 2)
    if (vectors - v == 2) return pointwise_columns<2>(x, n, c, w, w_stride, v, sink, ahead);
  if (vectors - v == 1) pointwise_columns<1>(x, n, c, w, w_stride, v, sink, ahead);
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

// Row y of u = pointwise(x) for image columns [first, last), which may reach over the borders: zero there. `x` points
// at the image's pixel (0, 0).
template <class T>
void fill_row(const Ring& u, int64_t y, int64_t first, int64_t last, const T* x, int64_t stride_h, int64_t stride_w,
              int64_t height, int64_t width, int64_t c, const float* w, float* buffer) {
  if (y < 0 || y >= height) return u.clear_row(y);
  const int64_t left = std::max<int64_t>(first, 0), right = std::min(last, width);
  u.clear_pixels(y, 0, left - first);
  u.clear_pixels(y, right - first, last - first);
  const T* from = x + y * stride_h + left * stride_w;
  const FloatRow row = float_row(from, stride_w, right - left, c, buffer);
  const float* ahead = nullptr;
  if constexpr (std::is_same_v<T, float>)
    if (y + 1 < height) ahead = from + stride_h;
  float* to = u.row(y) + (left - first) * kLanes;
  const int64_t pitch = u.pitch();
  pointwise(
      row, right - left, c, w, u.groups,
      [=](int64_t i, int64_t v, vf sums) { store(to + v * pitch + i * kLanes, sums); }, ahead);
}

}  // namespace rows
}  // namespace
}  // namespace fastsr::cpu
