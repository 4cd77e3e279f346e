// A feature map as the convolution kernels see it, and the operations behind a dense convolution.
#pragma once

#include <cstdint>
#include <limits>

namespace fastsr::cpu {

// Pixel (n, h, w) begins at data + n * stride_n + h * stride_h + w * stride_w; its channels follow one another.
// `data` is null for a map that is left out. Rows from `seam` on lie `lap` elements before their place: of a map whose
// rows take turns in memory.
template <class T>
struct ConvMap {
  T* data = nullptr;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;
  int64_t seam = std::numeric_limits<int64_t>::max(), lap = 0;
  T* at(int64_t n, int64_t h, int64_t w) const {
    return data + n * stride_n + h * stride_h + w * stride_w - (h >= seam ? lap : 0);
  }
  // Whether rows [h, h + rows) follow one another in memory.
  bool in_order(int64_t h, int64_t rows) const { return h >= seam || h + rows <= seam; }
};

}  // namespace fastsr::cpu
