// Kernels of cca_norm, filled in per instruction set by cca_norm.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

constexpr int64_t kCcaStrip = 64;  // the most pixels a call takes: they stay in the first-level cache

// Mean and sum of squared deviations of `count` values, per channel.
struct ChannelMoments {
  double count;
  double *mean, *squares;
};

struct CcaNormForward {
  const float* x;
  int64_t x_stride;
  const float* shortcut;
  int64_t shortcut_stride;
  float* y;
  int64_t y_stride;
  int64_t pixels, channels;
  const float *scale, *norm_weight, *norm_bias;  // per channel; the last two null without a norm
  float eps;
};

struct CcaNormBackward {
  const float* grad;
  int64_t grad_stride;
  const float* x;
  int64_t x_stride;
  float* dx;
  int64_t dx_stride;
  int64_t pixels, channels;
  const float *scale, *norm_weight;
  float eps;
  // Sums to add to: of grad * xhat, of grad, and of the gradient of x * scale times x.
  float *d_weight, *d_bias, *d_scale;
};

struct CcaNormKernels {
  // Merges pixels into the moments.
  void (*moments)(const float* x, int64_t x_stride, int64_t pixels, int64_t channels, ChannelMoments& into);
  void (*forward)(const CcaNormForward&);
  void (*backward)(const CcaNormBackward&);
  // dx += constant + slope * (x - mean), each per channel.
  void (*add_statistics)(const float* x, int64_t x_stride, float* dx, int64_t dx_stride, int64_t pixels,
                         int64_t channels, const float* constant, const float* slope, const float* mean);
};

}  // namespace fastsr::cpu
