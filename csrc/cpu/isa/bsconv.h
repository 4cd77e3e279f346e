// Kernels of bsconv (3x3, stride 1, padding 1), filled in per instruction set by bsconv.inl.
#pragma once

#include <cstdint>

#include "strip.h"
#include "types.h"

namespace fastsr::cpu {

// Weights in float, channels padded with zeros to whole vectors: K' = groups * lanes for K.
struct BsconvShape {
  int64_t c, h, w, k;
  int64_t strip_width;
  int64_t activation;
  bool has_shortcut;
  int64_t d = 0;  // distilled channels of the forward, 0 without; D' as K'
};

template <class T>
struct BsconvForward {
  BsconvShape shape;
  const float* pw;    // [C][K']
  const float* taps;  // [group][9][lanes]
  const float* bias;  // [K']
  FeatureRows<const T> x, shortcut;
  FeatureRows<T> y;
  const float *d_weight = nullptr, *d_bias = nullptr;  // [C][D'], [D']
  FeatureRows<T> distilled = {};                       // gelu(d x + d_bias)
};

template <class T>
struct BsconvBackward {
  BsconvShape shape;
  const float *pw, *taps, *bias;  // as for the forward
  const float* taps_transposed;   // [group][9][lanes], reversed
  const float* pw_transposed;     // [K'][C']
  FeatureRows<const T> x, shortcut, grad;
  FeatureRows<T> dx, d_shortcut;  // d_shortcut.data may be null
};

struct BsconvKernels {
  int64_t lanes;
  int64_t (*forward_scratch)(const BsconvShape&);
  // One tile. `continues`: the scratch is as the tile above left it, which must have been in the same strip.
  void (*forward_f32)(const BsconvForward<float>&, const StripTile&, bool continues, float* scratch);
  void (*forward_f16)(const BsconvForward<Half>&, const StripTile&, bool continues, float* scratch);
  void (*forward_bf16)(const BsconvForward<BFloat16>&, const StripTile&, bool continues, float* scratch);
  int64_t (*backward_scratch)(const BsconvShape&);
  // Floats of a tile's sums for the weight gradients: pw [C][K'], taps and bias [group][10][lanes].
  int64_t (*gradient_floats)(const BsconvShape&);
  // One tile: writes its part of dx and d_shortcut, adds to `gradients`.
  void (*backward_f32)(const BsconvBackward<float>&, const StripTile&, float* scratch, float* gradients);
  void (*backward_f16)(const BsconvBackward<Half>&, const StripTile&, float* scratch, float* gradients);
  void (*backward_bf16)(const BsconvBackward<BFloat16>&, const StripTile&, float* scratch, float* gradients);
};

}  // namespace fastsr::cpu
