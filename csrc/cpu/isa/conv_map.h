// A feature map as the convolution kernels see it, and the operations behind a dense convolution.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

// Pixel (n, h, w) begins at data + n * stride_n + h * stride_h + w * stride_w; its channels follow one another.
// `data` is null for a map that is left out.
template <class T>
struct ConvMap {
  T* data = nullptr;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0;
  T* at(int64_t n, int64_t h, int64_t w) const { return data + n * stride_n + h * stride_h + w * stride_w; }
};

}  // namespace fastsr::cpu
