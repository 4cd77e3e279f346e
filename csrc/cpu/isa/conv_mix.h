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

template <class T>
struct ConvMixTyped {
  // Rows [first, last) of the n * h rows.
  void (*forward)(const ConvMixArgs<T>&, float* scratch, int64_t first, int64_t last);
};

struct ConvMixKernels {
  int64_t (*scratch_size)(int64_t c, int64_t k);
  ConvMixTyped<float> f32;
  ConvMixTyped<Half> f16;
  ConvMixTyped<BFloat16> bf16;
};

}  // namespace fastsr::cpu
