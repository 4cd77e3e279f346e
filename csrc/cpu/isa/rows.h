// Kernels on rows of float pixels that several operators share, filled in per instruction set by rows.inl.
#pragma once

#include <cstdint>

#include "types.h"

namespace fastsr::cpu {

// Channels inside the kernels are padded to a multiple of this, whatever the instruction set.
constexpr int64_t kChannelBlock = 16;

inline int64_t padded_channels(int64_t c) { return (c + kChannelBlock - 1) / kChannelBlock * kChannelBlock; }

// `k` consecutive values of every pixel; pixels lie `stride` apart.
struct RowSegment {
  const float* x;
  int64_t stride, k;
};

// y[p][n] = act(bias[n] + shortcut[p][n] + sum over segments s and k of s.x[p * s.stride + k] * weight[row][n]), the
// rows of `weight` counted through all segments. A convolution is this with one segment per kernel row, a 1x1
// convolution of several maps with one per map.
struct RowGemm {
  const RowSegment* segments;
  int64_t segment_count, pixels;
  const float* weight;  // [rows][columns], columns a multiple of kChannelBlock
  int64_t columns;
  const float* bias;   // [columns] or null
  int64_t activation;  // as in math.inl
  float* y;
  int64_t y_stride, channels;       // channels <= columns are written
  const float* shortcut = nullptr;  // channels of it are read
  int64_t shortcut_stride = 0;
};

// sum[row][n] += sum over p of s.x[p * s.stride + k] * g[p * g_stride + n]: the gradient of RowGemm's weight.
struct RowOuter {
  const RowSegment* segments;
  int64_t segment_count, pixels;
  const float* g;
  int64_t g_stride, columns;  // columns a multiple of kChannelBlock
  float* sum;
};

// Conversion of pixels; a float side has `stride` values a pixel of which those beyond `channels` are set to zero.
template <class T>
struct RowConversion {
  void (*load)(const T* x, int64_t x_stride, int64_t pixels, int64_t channels, float* y, int64_t y_stride);
  void (*store)(const float* x, int64_t x_stride, int64_t pixels, int64_t channels, T* y, int64_t y_stride);
};

struct RowKernels {
  void (*gemm)(const RowGemm&);
  void (*outer)(const RowOuter&);
  // sum[n] += sum over p of g[p * stride + n], n < columns.
  void (*sum)(const float* g, int64_t stride, int64_t pixels, int64_t columns, float* sum);
  // y[i] = act(x[i]), i < count.
  void (*activation)(int64_t activation, const float* x, float* y, int64_t count);
  // g[p][n] = grad[p][n] * act'(pre[p][n]), all [pixels][columns], grad with its own stride. g may be pre.
  void (*activation_grad)(int64_t activation, const float* grad, int64_t grad_stride, const float* pre, float* g,
                          int64_t pixels, int64_t columns);
  RowConversion<float> f32;
  RowConversion<Half> f16;
  RowConversion<BFloat16> bf16;
};

}  // namespace fastsr::cpu
