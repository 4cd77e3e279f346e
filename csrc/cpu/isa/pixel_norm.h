// Kernels of pixel_norm, filled in per instruction set by pixel_norm.inl.
#pragma once

#include "types.h"

namespace fastsr::cpu {

// A view of rows of pixels, [N, C, H, W] with strides in elements. Rows are (n, h) pairs in order.
struct PixelNormShape {
  int64_t n, c, h, w;
  int64_t x_stride[4], y_stride[4];
};

struct PixelNormBackwardShape {
  int64_t n, c, h, w;
  int64_t grad_stride[4], x_stride[4], dx_stride[4];
};

template <class T>
struct PixelNormKernels {
  using C = compute_t<T>;
  // y = pixel_norm(x) for rows [first, last) of the n * h rows.
  void (*forward)(const PixelNormShape&, const T* x, const C* weight, const C* bias, double eps, T* y, int64_t first,
                  int64_t last);
  // dx for the same rows; adds this range's sums to d_weight[c] and d_bias[c].
  void (*backward)(const PixelNormBackwardShape&, const T* grad, const T* x, const C* weight, double eps, T* dx,
                   double* d_weight, double* d_bias, int64_t first, int64_t last);
};

}  // namespace fastsr::cpu
