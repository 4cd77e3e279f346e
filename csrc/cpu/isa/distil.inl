// The distilled half of a stage: gelu(1x1(x)) of a row of pixels that the stage has just read, so that they are in
// cache.
#pragma once

#include "rolling_rows.inl"

namespace fastsr::cpu {
namespace {
namespace distil {

constexpr int64_t kChunk = 48;  // pixels of a product

// Floats of `sums` for d channels.
FASTSR_INLINE int64_t scratch(int64_t d) { return kChunk * round_up(d, kLanes); }

// y = gelu(w x + bias) for `pixels` pixels of c channels; w is packed [c][d padded]. The sums go through memory: with a
// GELU behind it, the tile of the product would not keep its registers.
template <class T>
void row(const T* x, int64_t x_stride, int64_t pixels, int64_t c, int64_t d, const float* w, const float* bias, T* y,
         int64_t y_stride, float* buffer, float* sums) {
  const int64_t groups = round_up(d, kLanes) / kLanes, sums_stride = groups * kLanes;
  for (int64_t first = 0; first < pixels; first += kChunk) {
    const int64_t count = std::min(kChunk, pixels - first);
    const rows::FloatRow from = rows::float_row(x + first * x_stride, x_stride, count, c, buffer);
    rows::pointwise(from, count, c, w, groups,
                    [=](int64_t i, int64_t g, vf v) { store(sums + i * sums_stride + g * kLanes, v); });
    for (int64_t i = 0; i < count; ++i)
      for (int64_t g = 0; g < groups; ++g)
        rows::store_group(y + (first + i) * y_stride, g, d,
                          gelu(load(sums + i * sums_stride + g * kLanes) + load(bias + g * kLanes)));
  }
}

}  // namespace distil
}  // namespace
}  // namespace fastsr::cpu
