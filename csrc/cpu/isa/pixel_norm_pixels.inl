// pixel_norm of kLanes pixels that lie channels last: their sums over the channels are taken together.
#pragma once

#include "channel_norm.inl"

namespace fastsr::cpu {
namespace {
namespace pixel_norm {

using channel_norm::Channels;
using channel_norm::lane_sums;
using channel_norm::Moments;

// Calls body(constant G): the vectors of a pixel if they are full ones and the networks' 64 channels, otherwise 0.
template <class Body>
FASTSR_INLINE void with_groups(int64_t channels, Body&& body) {
  if (channels == 64)
    body(std::integral_constant<int, 64 / kLanes>{});
  else
    body(std::integral_constant<int, 0>{});
}

// Group g of a pixel; lanes beyond the channels are zero.
template <int G>
FASTSR_INLINE vf group_of(const float* pixel, int64_t g, int64_t channels) {
  if constexpr (G > 0) return load(pixel + g * kLanes);
  return rows::load_group(pixel, g, channels);
}

template <int G, class T>
FASTSR_INLINE void put_group(T* pixel, int64_t g, int64_t channels, vf v) {
  if constexpr (G > 0) return store(pixel + g * kLanes, v);
  rows::store_group(pixel, g, channels, v);
}

// Asks for the memory of the pixel kLanes pixels from now, to be read or written (prefetch.inl). Past the end of a row
// it does no harm.
template <class T>
FASTSR_INLINE void fetch_ahead(const T* pixel, int64_t stride, int64_t channels) {
  const char* line = reinterpret_cast<const char*>(pixel + kLanes * stride);
  for (int64_t i = 0; i < channels * static_cast<int64_t>(sizeof(T)); i += 64) __builtin_prefetch(line + i);
}

// Mean and 1 / sqrt(variance + eps); calls meanwhile(i) for every pixel. The mean is corrected by the mean of the
// deviations from its first estimate, as in moments_of_pixel.
template <int G, class Meanwhile>
FASTSR_INLINE void moments(const rows::FloatRow& x, const Channels& c, float eps, Moments& m, Meanwhile meanwhile) {
  const int64_t groups = G > 0 ? G : c.groups;
  const float inverse = 1.f / static_cast<float>(c.count);
  vf sums[kLanes], squares[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    meanwhile(i);
    vf sum{};
    for (int64_t g = 0; g < groups; ++g) sum += group_of<G>(x.data + i * x.stride, g, c.count);
    sums[i] = sum;
  }
  const vf estimate = lane_sums(sums) * inverse;
  store(m.mean, estimate);
  const vi valid = reinterpret_cast<vi>(load(c.valid) > vf{});
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const vf centre = splat(m.mean[i]);
    vf sum{}, square{};
    for (int64_t g = 0; g < groups; ++g) {
      vf d = group_of<G>(x.data + i * x.stride, g, c.count) - centre;
      if (G == 0 && g == groups - 1) d = select(valid, d, vf{});
      sum += d;
      square += d * d;
    }
    sums[i] = sum;
    squares[i] = square;
  }
  const vf shift = lane_sums(sums) * inverse, variance = lane_sums(squares) * inverse - shift * shift;
  store(m.mean, estimate + shift);
  store(m.rstd, variance);
  for (int i = 0; i < kLanes; ++i) m.rstd[i] = 1.f / std::sqrt(std::max(m.rstd[i], 0.f) + eps);
}

// buffer: kLanes * channels floats.
template <class T>
void forward(const T* x, int64_t x_stride, int64_t channels, const float* weight, const float* bias, float eps, T* y,
             int64_t y_stride, float* buffer) {
  const Channels c(channels);
  const rows::FloatRow from = rows::float_row(x, x_stride, kLanes, channels, buffer);
  with_groups(channels, [&](auto constant) {
    constexpr int G = constant.value;
    const int64_t groups = G > 0 ? G : c.groups;
    Moments m;
    moments<G>(from, c, eps, m, [&](int i) {
      fetch_ahead(x + i * x_stride, x_stride, channels);
      fetch_ahead(y + i * y_stride, y_stride, channels);
    });
    for (int i = 0; i < kLanes; ++i) {
      const vf mean = splat(m.mean[i]), rstd = splat(m.rstd[i]);
      for (int64_t g = 0; g < groups; ++g)
        put_group<G>(
            y + i * y_stride, g, channels,
            (group_of<G>(from.data + i * from.stride, g, channels) - mean) * rstd * group_of<G>(weight, g, channels) +
                group_of<G>(bias, g, channels));
    }
  });
}

// Adds the pixels' sums to d_weight and d_bias. Buffers: kLanes * channels floats each.
template <class T>
void backward(const T* grad, int64_t grad_stride, const T* x, int64_t x_stride, int64_t channels, const float* weight,
              float eps, T* dx, int64_t dx_stride, float* d_weight, float* d_bias, float* grad_buffer,
              float* x_buffer) {
  const Channels c(channels);
  const rows::FloatRow dy = rows::float_row(grad, grad_stride, kLanes, channels, grad_buffer);
  const rows::FloatRow from = rows::float_row(x, x_stride, kLanes, channels, x_buffer);
  with_groups(channels, [&](auto constant) {
    constexpr int G = constant.value;
    const int64_t groups = G > 0 ? G : c.groups;
    const float inverse = 1.f / static_cast<float>(channels);
    const auto xhat = [&](int i, int64_t g, const Moments& m) {
      return (group_of<G>(from.data + i * from.stride, g, channels) - m.mean[i]) * m.rstd[i];
    };
    Moments m;
    moments<G>(from, c, eps, m, [&](int i) {
      fetch_ahead(x + i * x_stride, x_stride, channels);
      fetch_ahead(dx + i * dx_stride, dx_stride, channels);
    });
    vf g_sums[kLanes], gx_sums[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      fetch_ahead(grad + i * grad_stride, grad_stride, channels);
      vf g_sum{}, gx_sum{};
      for (int64_t g = 0; g < groups; ++g) {
        const vf v = group_of<G>(dy.data + i * dy.stride, g, channels) * group_of<G>(weight, g, channels);
        g_sum += v;
        gx_sum += v * xhat(i, g, m);
      }
      g_sums[i] = g_sum;
      gx_sums[i] = gx_sum;
    }
    alignas(64) float g_mean[kLanes], gx_mean[kLanes];
    const vf rstd = load(m.rstd);  // already in the means
    store(g_mean, lane_sums(g_sums) * inverse * rstd);
    store(gx_mean, lane_sums(gx_sums) * inverse * rstd);
    for (int64_t g = 0; g < groups; ++g) {  // outside, so that the parameters' sums stay in registers
      const vf w = group_of<G>(weight, g, channels);
      vf w_sum{}, b_sum{};
      for (int i = 0; i < kLanes; ++i) {
        const vf d = group_of<G>(dy.data + i * dy.stride, g, channels), v = xhat(i, g, m);
        w_sum += d * v;
        b_sum += d;
        put_group<G>(dx + i * dx_stride, g, channels, d * w * m.rstd[i] - (v * gx_mean[i] + g_mean[i]));
      }
      put_group<G>(d_weight, g, channels, group_of<G>(d_weight, g, channels) + w_sum);
      put_group<G>(d_bias, g, channels, group_of<G>(d_bias, g, channels) + b_sum);
    }
  });
}

}  // namespace pixel_norm
}  // namespace
}  // namespace fastsr::cpu
