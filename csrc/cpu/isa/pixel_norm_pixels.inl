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

// Mean and 1 / sqrt(variance + eps). The mean is corrected by the mean of the deviations from its first estimate, as in
// moments_of_pixel. Loops over pixels are not unrolled here or below: loads of several pixels that the compiler mixes
// are no stream that the processor could fetch ahead of (nor did asking for lines help), which cost a quarter of the
// time of a large map.
template <int G>
FASTSR_INLINE void moments(const rows::FloatRow& x, const Channels& c, float eps, Moments& m) {
  const int64_t groups = G > 0 ? G : c.groups;
  const float inverse = 1.f / static_cast<float>(c.count);
  vf sums[kLanes], squares[kLanes];
#pragma GCC unroll 1
  for (int i = 0; i < kLanes; ++i) {
    vf sum{};
    for (int64_t g = 0; g < groups; ++g) sum += group_of<G>(x.data + i * x.stride, g, c.count);
    sums[i] = sum;
  }
  const vf estimate = lane_sums(sums) * inverse;
  store(m.mean, estimate);
  const vi valid = reinterpret_cast<vi>(load(c.valid) > vf{});
#pragma GCC unroll 1
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

// kLanes pixels of G groups (with_groups): calls emit(pixel, group, y).
template <int G, class Emit>
FASTSR_INLINE void forward_groups(const rows::FloatRow x, const Channels& c, const float* weight, const float* bias,
                                  float eps, Emit emit) {
  const int64_t channels = c.count, groups = G > 0 ? G : c.groups;
  Moments m;
  moments<G>(x, c, eps, m);
#pragma GCC unroll 1
  for (int i = 0; i < kLanes; ++i) {
    const vf mean = splat(m.mean[i]), rstd = splat(m.rstd[i]);
    for (int64_t g = 0; g < groups; ++g)
      emit(i, g,
           (group_of<G>(x.data + i * x.stride, g, channels) - mean) * rstd * group_of<G>(weight, g, channels) +
               group_of<G>(bias, g, channels));
  }
}

// buffer: kLanes * channels floats.
template <class T>
void forward(const T* x, int64_t x_stride, int64_t channels, const float* weight, const float* bias, float eps, T* y,
             int64_t y_stride, float* buffer) {
  const Channels c(channels);
  const rows::FloatRow from = rows::float_row(x, x_stride, kLanes, channels, buffer);
  with_groups(channels, [&](auto groups) {
    constexpr int G = groups.value;
    forward_groups<G>(from, c, weight, bias, eps,
                      [&](int i, int64_t g, vf v) { put_group<G>(y + i * y_stride, g, channels, v); });
  });
}

// The gradient of a norm for kLanes pixels of G groups (with_groups): adds to the parameters' sums and calls
// emit(pixel, group, dx).
template <int G, class Emit>
FASTSR_INLINE void backward_groups(const rows::FloatRow dy, const rows::FloatRow x, const Channels& c,
                                   const float* weight, float eps, float* d_weight, float* d_bias, Emit emit) {
  const int64_t channels = c.count, groups = G > 0 ? G : c.groups;
  const float inverse = 1.f / static_cast<float>(channels);
  Moments m;
  moments<G>(x, c, eps, m);
  const auto xhat = [&](int i, int64_t g) {
    return (group_of<G>(x.data + i * x.stride, g, channels) - m.mean[i]) * m.rstd[i];
  };
  vf g_sums[kLanes], gx_sums[kLanes];
#pragma GCC unroll 1
  for (int i = 0; i < kLanes; ++i) {
    vf g_sum{}, gx_sum{};
    for (int64_t g = 0; g < groups; ++g) {
      const vf v = group_of<G>(dy.data + i * dy.stride, g, channels) * group_of<G>(weight, g, channels);
      g_sum += v;
      gx_sum += v * xhat(i, g);
    }
    g_sums[i] = g_sum;
    gx_sums[i] = gx_sum;
  }
  alignas(64) float g_mean[kLanes], gx_mean[kLanes];
  const vf rstd = load(m.rstd);  // already in the means
  store(g_mean, lane_sums(g_sums) * inverse * rstd);
  store(gx_mean, lane_sums(gx_sums) * inverse * rstd);
  const auto over_group = [&](int i, int64_t g, vf w, vf& w_sum, vf& b_sum) {
    const vf d = group_of<G>(dy.data + i * dy.stride, g, channels), v = xhat(i, g);
    w_sum += d * v;
    b_sum += d;
    emit(i, g, d * w * m.rstd[i] - (v * gx_mean[i] + g_mean[i]));
  };
  if constexpr (G > 0) {
    // Pixel by pixel, as they lie: writing one vector of every pixel in turn took half as long again.
    vf w_sums[G], b_sums[G];
    for (int g = 0; g < G; ++g) {
      w_sums[g] = load(d_weight + g * kLanes);
      b_sums[g] = load(d_bias + g * kLanes);
    }
#pragma GCC unroll 1
    for (int i = 0; i < kLanes; ++i)
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) over_group(i, g, load(weight + g * kLanes), w_sums[g], b_sums[g]);
    for (int g = 0; g < G; ++g) {
      store(d_weight + g * kLanes, w_sums[g]);
      store(d_bias + g * kLanes, b_sums[g]);
    }
  } else {
    for (int64_t g = 0; g < groups; ++g) {  // outside, so that the parameters' sums stay in registers
      const vf w = group_of<G>(weight, g, channels);
      vf w_sum{}, b_sum{};
      for (int i = 0; i < kLanes; ++i) over_group(i, g, w, w_sum, b_sum);
      put_group<G>(d_weight, g, channels, group_of<G>(d_weight, g, channels) + w_sum);
      put_group<G>(d_bias, g, channels, group_of<G>(d_bias, g, channels) + b_sum);
    }
  }
}

// Adds the pixels' sums to d_weight and d_bias. Buffers: kLanes * channels floats each.
template <class T>
void backward(const T* grad, int64_t grad_stride, const T* x, int64_t x_stride, int64_t channels, const float* weight,
              float eps, T* dx, int64_t dx_stride, float* d_weight, float* d_bias, float* grad_buffer,
              float* x_buffer) {
  const Channels c(channels);
  const rows::FloatRow dy = rows::float_row(grad, grad_stride, kLanes, channels, grad_buffer);
  const rows::FloatRow from = rows::float_row(x, x_stride, kLanes, channels, x_buffer);
  with_groups(channels, [&](auto groups) {
    constexpr int G = groups.value;
    backward_groups<G>(dy, from, c, weight, eps, d_weight, d_bias,
                       [&](int i, int64_t g, vf v) { put_group<G>(dx + i * dx_stride, g, channels, v); });
  });
}

}  // namespace pixel_norm
}  // namespace
}  // namespace fastsr::cpu
