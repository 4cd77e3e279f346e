// upsample for one instruction set: pixel shuffle and bilinear enlargement of rows with few channels. The convolution
// itself is a matrix product (isa/rows.h).
#include "rows.inl"

namespace fastsr::cpu {
namespace {

void upsample_shuffle(const ShuffleRow& a) {
  const int64_t run = a.scale * a.channels;
  for (int64_t p = 0; p < a.pixels; ++p) {
    const float* x = a.x + p * a.x_stride;
    float* y = a.y + p * a.scale * a.y_stride;
    for (int64_t t = 0, j = 0; t < run; ++j, y += a.y_stride)
      for (int64_t k = 0; k < a.channels; ++k, ++t) y[k] = a.residual ? x[t] + a.residual[p * run + t] : x[t];
  }
}

void upsample_unshuffle(const float* y, int64_t y_stride, float* x, int64_t x_stride, int64_t pixels, int64_t scale,
                        int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p, x += x_stride)
    for (int64_t j = 0; j < scale; ++j, y += y_stride)
      for (int64_t k = 0; k < channels; ++k) x[j * channels + k] = y[k];
}

void upsample_enlarge(const float* a, const float* b, const BilinearTap& row, const BilinearTap* taps, float* y,
                      int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p) {
    const BilinearTap& t = taps[p];
    const float *a0 = a + t.i * channels, *a1 = a + t.j * channels, *b0 = b + t.i * channels, *b1 = b + t.j * channels;
    for (int64_t k = 0; k < channels; ++k)
      y[p * channels + k] =
          row.first * (t.first * a0[k] + t.second * a1[k]) + row.second * (t.first * b0[k] + t.second * b1[k]);
  }
}

void upsample_reduce(const float* y, const BilinearTap* taps, float* x, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t k = 0; k < channels; ++k) {
      const float v = y[p * channels + k];
      x[taps[p].i * channels + k] += taps[p].first * v;
      x[taps[p].j * channels + k] += taps[p].second * v;
    }
}

void upsample_add_scaled(float a, const float* x, int64_t x_stride, float* y, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t k = 0; k < channels; ++k) y[p * channels + k] += a * x[p * x_stride + k];
}

constexpr UpsampleKernels upsample_kernels() {
  return {&upsample_shuffle, &upsample_unshuffle, &upsample_enlarge, &upsample_reduce, &upsample_add_scaled};
}

}  // namespace
}  // namespace fastsr::cpu
