// Kernels of conv_mix, filled in per instruction set by conv_mix.inl.
#pragma once

#include "conv_map.h"
#include "types.h"

namespace fastsr::cpu {

// Weights of conv_mix as the kernels read them: float, rows of output channels padded with zeros to whole vectors of
// 16. `dw` is null where the depthwise convolution is left out.
struct ConvMixWeights {
  const float *dw, *dw_bias;  // [9][C], [C]
  const float *pw, *pw_bias;  // [C][C], [C]: pw[input][output]
  const float *c5, *c5_bias;  // [C][K], [K]
};

template <class T>
struct ConvMixArgs {
  int64_t n, c, h, w, k, activation;
  ConvMixWeights weights;
  ConvMap<const T> x, shortcut;
  ConvMap<T> y;
};

// The backward of conv_mix. Its first pass leaves the gradients of the depthwise convolution's result before its
// activation and of d in `dq` and `dd`, [n, h, w][C padded to 16] each; the second adds the transposed depthwise
// convolution. Without depthwise convolution the first pass writes dx.
template <class T>
struct ConvMixGradient {
  ConvMixArgs<T> forward;  // `y` is not used
  ConvMap<const T> dy;
  const float *pw_rows, *c5_rows;  // [output][input], rows padded
  ConvMap<T> dx, d_shortcut;
  float *dq, *dd;
};

// Where the sums of one range of rows lie: matrices are [input][output], rows padded to 16.
struct ConvMixSums {
  int64_t c5, c5_bias, pw, pw_bias, dw, dw_bias, size;
};

template <class T>
struct ConvMixTyped {
  // Rows [first, last) of the n * h rows.
  void (*forward)(const ConvMixArgs<T>&, float* scratch, int64_t first, int64_t last);
  // Adds the parameters' gradients of these rows to `sums`.
  void (*backward)(const ConvMixGradient<T>&, float* scratch, float* sums, int64_t first, int64_t last);
  void (*finish_backward)(const ConvMixGradient<T>&, float* scratch, int64_t first, int64_t last);
};

struct ConvMixKernels {
  int64_t (*scratch_size)(int64_t c, int64_t k);
  ConvMixSums (*sums)(int64_t c, int64_t k);
  ConvMixTyped<float> f32;
  ConvMixTyped<Half> f16;
  ConvMixTyped<BFloat16> bf16;
};

}  // namespace fastsr::cpu
