// Kernels of esa, filled in per instruction set by esa.inl. Inside, maps are float with `f` channels, a multiple of
// kChannelBlock, pixel after pixel.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

// Where a pixel of a bilinearly enlarged row comes from: first * from[i] + second * from[j].
struct BilinearTap {
  int64_t i, j;
  float first, second;
};

struct EsaGate {
  const float* x;
  int64_t x_stride;
  float* gate;  // [pixels][gate_stride], before the sigmoid
  int64_t gate_stride;
  float* y;
  int64_t y_stride;
  int64_t pixels, channels;
};

struct EsaKernels {
  // y = x * sigmoid(gate).
  void (*gate)(const EsaGate&);
  // With s = sigmoid(gate): y = grad * s, gate = grad * x * s * (1 - s).
  void (*gate_backward)(const EsaGate&, const float* grad, int64_t grad_stride);
  // y[p] = bias + sum over i, j < 3 of taps[i][j] * rows[i][p * stride + j], p in pixels; those of the rows are `step`
  // floats apart.
  void (*depthwise)(const float* const rows[3], int64_t step, const float* taps, const float* bias, float* y,
                    int64_t pixels, int64_t stride, int64_t f);
  // y[p * stride + j] += taps[j] * x[p]: one row of taps of the transposed convolution.
  void (*depthwise_transposed)(const float* x, const float* taps, float* y, int64_t pixels, int64_t stride, int64_t f);
  // sum[i][j] += sum over p of rows[i][p * stride + j] * g[p].
  void (*depthwise_outer)(const float* const rows[3], const float* g, float* sum, int64_t pixels, int64_t stride,
                          int64_t f);
  // y[p * stride * f + i] += x[p * 3 * f + i], i < 3 * f.
  void (*overlap_add)(const float* x, float* y, int64_t pixels, int64_t stride, int64_t f);
  // Maximum of windows of size x size pixels, `step` apart; NaN wins. index, if not null, gets the position of the
  // first maximum (or last NaN) in the window, counted row by row.
  void (*max_pool)(const float* x, int64_t row_stride, float* y, uint8_t* index, int64_t pixels, int64_t size,
                   int64_t step, int64_t f);
  void (*activate)(int64_t activation, const float* x, float* y, int64_t count);
  void (*blend)(float a, const float* x, float b, const float* y, float* z, int64_t count);  // z = a x + b y
  void (*add_scaled)(float a, const float* x, float* y, int64_t count);                      // y += a x
  // z = y + enlarged x; z may be y.
  void (*add_enlarged)(const float* x, const BilinearTap* taps, const float* y, int64_t y_stride, float* z,
                       int64_t pixels, int64_t f);
  void (*add_reduced)(const float* y, const BilinearTap* taps, float* x, int64_t pixels, int64_t f);  // its adjoint
  // y += x, pixel by pixel.
  void (*add_rows)(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t pixels, int64_t channels);
};

}  // namespace fastsr::cpu
