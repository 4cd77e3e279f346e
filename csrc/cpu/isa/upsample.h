// Kernels of upsample, filled in per instruction set by upsample.inl.
#pragma once

#include <cstdint>

#include "esa.h"

namespace fastsr::cpu {

// One output row of a strip: y[p * scale + j][k] = x[p][j * channels + k] + residual[p * scale + j][k]. x points at the
// row's values in the convolution's output, whose channels are ordered (row, column, channel).
struct ShuffleRow {
  const float* x;
  int64_t x_stride;
  const float* residual;  // or null
  float* y;
  int64_t y_stride;
  int64_t pixels, scale, channels;
};

struct UpsampleKernels {
  void (*shuffle)(const ShuffleRow&);
  // x[p][j * channels + k] = y[p * scale + j][k]: its adjoint (residual is not used).
  void (*unshuffle)(const float* y, int64_t y_stride, float* x, int64_t x_stride, int64_t pixels, int64_t scale,
                    int64_t channels);
  // y[p] = taps[p] applied to row.first * a + row.second * b, which is put into `blended`.
  void (*enlarge)(const float* a, const float* b, const BilinearTap& row, const BilinearTap* taps, float* blended,
                  float* y, int64_t pixels, int64_t channels);
  // y[p * scale + j] = x[p].
  void (*repeat)(const float* x, float* y, int64_t pixels, int64_t scale, int64_t channels);
  // x[tap.i] += tap.first * y[p], x[tap.j] += tap.second * y[p], in order: the adjoint of one enlarged row.
  void (*reduce)(const float* y, const BilinearTap* taps, float* x, int64_t pixels, int64_t channels);
  // y[i] += a * x[i] for pixels of `channels` values.
  void (*add_scaled)(float a, const float* x, int64_t x_stride, float* y, int64_t pixels, int64_t channels);
};

}  // namespace fastsr::cpu
