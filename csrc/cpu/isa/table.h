// One function table per instruction set, filled from the same source (kernels.inl), chosen at run time.
#pragma once

// Every standard header a kernel needs is included here, before a target pragma is in force: an inline function of
// the standard library compiled for AVX-512 could otherwise be the copy that the linker keeps for everybody.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace fastsr::cpu {

struct Half {  // storage only
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// A view of rows of pixels, [N, C, H, W] with strides in elements. Rows are (n, h) pairs in order.
struct PixelNormShape {
  int64_t n, c, h, w;
  int64_t x_stride[4], y_stride[4];
};

struct PixelNormBackwardShape {
  int64_t n, c, h, w;
  int64_t grad_stride[4], x_stride[4], dx_stride[4];
};

// The type that a stored type is computed in.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

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

struct KernelTable {
  PixelNormKernels<float> pixel_norm_f32;
  PixelNormKernels<Half> pixel_norm_f16;
  PixelNormKernels<BFloat16> pixel_norm_bf16;
  PixelNormKernels<double> pixel_norm_f64;
};

extern const KernelTable table_portable;
#if defined(__x86_64__)
extern const KernelTable table_avx2;
extern const KernelTable table_avx512;
#endif

// The table in use: the best the processor has, or what FASTSR_CPU_ISA allows.
const KernelTable& kernels();

}  // namespace fastsr::cpu
