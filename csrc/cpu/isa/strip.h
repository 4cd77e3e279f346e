// What the row-by-row kernels work on: tiles, and feature maps by rows of pixels.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

// Rows [y0, y1) of columns [x0, x1) of image n.
struct StripTile {
  int64_t n, y0, y1, x0, x1;
};

// Pixel (n, h, w) begins at data + n * stride_n + h * stride_h + w * stride_w; its channels follow one another.
template <class T>
struct FeatureRows {
  T* data;
  int64_t stride_n, stride_h, stride_w;
  T* at(int64_t n, int64_t h, int64_t w) const { return data + n * stride_n + h * stride_h + w * stride_w; }
};

}  // namespace fastsr::cpu
