// Kernels of alk_conv and alk_stage, filled in per instruction set by alk_conv.inl.
#pragma once

#include <cstdint>

#include "strip.h"
#include "types.h"

namespace fastsr::cpu {

// Weights in float, channels padded with zeros to whole vectors: K' = groups * lanes for K.
struct AlkConvWeights {
  const float* pw;           // [C][K']
  const float* taps;         // [group][2k + 9][lanes]: vertical, horizontal, square; divided by gelu_width
  const float* bias;         // [group][3][lanes], divided alike
  const float* norm_weight;  // [K']
  const float* norm_bias;
  const float* d_weight;  // [C][D'], or null
  const float* d_bias;    // [D']
};

struct AlkConvShape {
  static constexpr int64_t kMaxTaps = 63;

  int64_t n, c, h, w;   // of x
  int64_t k, d;         // channels of the result and of the distilled map (0: none)
  int64_t taps;         // the large kernel's k
  int64_t halo;         // max(taps / 2, 1)
  int64_t strip_width;  // the widest strip
  float eps;            // divided by the squared width, as the normalised sum is divided by the width
  int64_t activation;   // behind the norm and the residual
  bool residual;        // x is added before the activation
};

template <class T>
struct AlkConvForward {
  AlkConvShape shape;
  AlkConvWeights weights;
  FeatureRows<const T> x;
  FeatureRows<T> y, distilled;
};

template <class T>
struct AlkConvBackward {
  AlkConvShape shape;
  AlkConvWeights weights;            // as for the forward
  const float* taps_transposed;      // [group][2k + 9][lanes]: each filter reversed, not divided
  const float* no_bias;              // [group][3][lanes] zeros
  const float* products_transposed;  // [K' + D'][C']: pw above d
  FeatureRows<const T> x, grad, grad_distilled;
  FeatureRows<T> dx;
};

struct AlkConvKernels {
  int64_t lanes;
  float gelu_width;  // by which taps, bias and eps are divided
  // Floats of scratch that a tile needs.
  int64_t (*forward_scratch)(const AlkConvShape&);
  // One tile. `continues`: the scratch is as the tile above left it, which must have been in the same strip.
  void (*forward_f32)(const AlkConvForward<float>&, const StripTile&, bool continues, float* scratch);
  void (*forward_f16)(const AlkConvForward<Half>&, const StripTile&, bool continues, float* scratch);
  void (*forward_bf16)(const AlkConvForward<BFloat16>&, const StripTile&, bool continues, float* scratch);
  int64_t (*backward_scratch)(const AlkConvShape&);
  // Floats of a tile's sums for the weight gradients: products [C][K' + D'], taps and biases [group][2k + 9 +
  // 3][lanes], norm weight and norm bias [K'], d_bias [D'].
  int64_t (*gradient_floats)(const AlkConvShape&);
  // One tile: writes its part of dx, adds to `gradients`.
  void (*backward_f32)(const AlkConvBackward<float>&, const StripTile&, float* scratch, float* gradients);
  void (*backward_f16)(const AlkConvBackward<Half>&, const StripTile&, float* scratch, float* gradients);
  void (*backward_bf16)(const AlkConvBackward<BFloat16>&, const StripTile&, float* scratch, float* gradients);
};

}  // namespace fastsr::cpu
