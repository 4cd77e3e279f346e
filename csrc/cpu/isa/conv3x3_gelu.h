// Kernels of conv3x3_gelu, filled in per instruction set by conv3x3_gelu.inl.
#pragma once

#include "conv_map.h"
#include "types.h"

namespace fastsr::cpu {

// A dense 3x3 convolution with padding 1 of [n, c, h, w] to k channels, and what happens to its result (with bias):
// where `dy` is given g = dy * act'(result), otherwise pre = result and y = act(result) + shortcut, each if wanted.
template <class T>
struct Conv3x3Args {
  int64_t n, c, h, w, k;
  ConvMap<const T> x;
  const float* packed;  // weights as `pack` leaves them
  const float* bias;    // [k], padded to a vector
  int64_t activation;   // Activation of math.inl
  ConvMap<const T> shortcut;
  ConvMap<T> y;
  ConvMap<float> pre;
  ConvMap<const T> dy;
  ConvMap<float> g;

  // Whether y takes the place of shortcut: then nothing may be computed twice.
  bool in_place() const { return shortcut.data && shortcut.data == y.data; }
};

// Weights w[o * out_stride + i * in_stride + tap] of a convolution from `in` to `out` channels. For the transposed
// convolution the strides change places and the taps run backwards.
struct Conv3x3Weights {
  const float* data;
  int64_t in, out, in_stride, out_stride;
  bool flipped;
};

// One algorithm. Work comes in numbered items of equal size: blocks of tiles or bands of rows.
struct Conv3x3Algorithm {
  int64_t (*packed_size)(int64_t in, int64_t out);
  // Packs input channels [first, last).
  void (*pack)(const Conv3x3Weights&, float* packed, int64_t first, int64_t last);
  int64_t (*scratch_size)(int64_t c, int64_t k, int64_t w);
  int64_t (*items)(int64_t n, int64_t h, int64_t w);
  // Of one image: how many of the first items lie within the first `rows` rows, and how many rows the first `items`
  // items complete.
  int64_t (*items_within)(int64_t h, int64_t w, int64_t rows);
  int64_t (*rows_completed)(int64_t h, int64_t w, int64_t items);
  void (*run_f32)(const Conv3x3Args<float>&, float* scratch, int64_t item);
  void (*run_f16)(const Conv3x3Args<Half>&, float* scratch, int64_t item);
  void (*run_bf16)(const Conv3x3Args<BFloat16>&, float* scratch, int64_t item);
};

// The gradients of weight and bias from g = dy * act'(pre), [n, h, w][k padded to whole vectors of 16].
template <class T>
struct Conv3x3WeightGradient {
  int64_t n, c, h, w, k;
  ConvMap<const T> x;
  const float* g;
};

struct Conv3x3WeightGradientKernels {
  int64_t (*sums_size)(int64_t c, int64_t k);
  int64_t (*scratch_size)(int64_t c, int64_t k, int64_t w);
  int64_t (*items)(int64_t n, int64_t h, int64_t w);
  // Adds items [first, last) to `sums`.
  void (*run_f32)(const Conv3x3WeightGradient<float>&, float* scratch, float* sums, int64_t first, int64_t last);
  void (*run_f16)(const Conv3x3WeightGradient<Half>&, float* scratch, float* sums, int64_t first, int64_t last);
  void (*run_bf16)(const Conv3x3WeightGradient<BFloat16>&, float* scratch, float* sums, int64_t first, int64_t last);
  // The total of `ranges` such sums in weight's layout, [k][c][9], for input channels [first, last).
  void (*finish)(const float* sums, int64_t ranges, int64_t c, int64_t k, float* d_weight, int64_t first, int64_t last);
};

struct Conv3x3GeluKernels {
  Conv3x3Algorithm direct, winograd;
  Conv3x3WeightGradientKernels direct_gradient, winograd_gradient;
};

}  // namespace fastsr::cpu
