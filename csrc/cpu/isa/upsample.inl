// upsample for one instruction set: pixel shuffle and bilinear enlargement of rows with few channels. The convolution
// itself is a matrix product (isa/rows.h).
#include "rows.inl"

namespace fastsr::cpu {
namespace {

template <class Kind>
FASTSR_INLINE void shuffle_piece(Kind kind, const ShuffleRow& a, int64_t from, int64_t to) {
  const auto v = load_as(kind, a.x + from);
  store_as(kind, a.y + to, a.residual ? v + load_as(kind, a.residual + to) : v);
}

// Dense output: every pixel gives a run of values. Runs are short, so whole vectors are written and what reaches over
// the run's end is overwritten by the next one; at the strip's end single values are.
void shuffle_runs(const ShuffleRow& a) {
  const int64_t run = a.scale * a.channels, total = a.pixels * run, last_x = (a.pixels - 1) * a.x_stride + run;
  for (int64_t p = 0; p < a.pixels; ++p)
    for (int64_t t = 0; t < run;) {
      const int64_t from = p * a.x_stride + t, to = p * run + t;
      if (to + kLanes <= total && from + kLanes <= last_x) {
        shuffle_piece(Vector{}, a, from, to);
        t += kLanes;
      } else {
        shuffle_piece(Scalar{}, a, from, to);
        ++t;
      }
    }
}

void upsample_shuffle(const ShuffleRow& a) {
  if (a.y_stride == a.channels) return shuffle_runs(a);
  const int64_t run = a.scale * a.channels;
  for (int64_t p = 0; p < a.pixels; ++p) {
    const float* x = a.x + p * a.x_stride;
    float* y = a.y + p * a.scale * a.y_stride;
    for (int64_t t = 0, j = 0; j < a.scale; ++j, y += a.y_stride)
      for (int64_t k = 0; k < a.channels; ++k, ++t) y[k] = a.residual ? x[t] + a.residual[p * run + t] : x[t];
  }
}

void upsample_unshuffle(const float* y, int64_t y_stride, float* x, int64_t x_stride, int64_t pixels, int64_t scale,
                        int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p, x += x_stride)
    for (int64_t j = 0; j < scale; ++j, y += y_stride)
      for (int64_t k = 0; k < channels; ++k) x[j * channels + k] = y[k];
}

void upsample_enlarge(const float* a, const float* b, const BilinearTap& row, const BilinearTap* taps, float* blended,
                      float* y, int64_t pixels, int64_t channels) {
  const int64_t first = taps[0].i * channels, last = (taps[pixels - 1].j + 1) * channels;
  over<float>(last - first, [&](int64_t i, auto kind) {
    store_as(kind, blended + i, row.first * load_as(kind, a + first + i) + row.second * load_as(kind, b + first + i));
  });
  blended -= first;
  const auto enlarge = [&](auto count) {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t k = 0; k < count; ++k)
        y[p * count + k] =
            taps[p].first * blended[taps[p].i * count + k] + taps[p].second * blended[taps[p].j * count + k];
  };
  if (channels == 3)
    enlarge(std::integral_constant<int64_t, 3>{});
  else
    enlarge(channels);
}

void upsample_repeat(const float* x, float* y, int64_t pixels, int64_t scale, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p, x += channels)
    for (int64_t j = 0; j < scale; ++j, y += channels)
      for (int64_t k = 0; k < channels; ++k) y[k] = x[k];
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
  return {&upsample_shuffle, &upsample_unshuffle, &upsample_enlarge,
          &upsample_repeat,  &upsample_reduce,    &upsample_add_scaled};
}

}  // namespace
}  // namespace fastsr::cpu
