// cca_norm for one instruction set: moments per channel, and per pixel the attention's scale, the norm and the
// shortcut. A strip's pixels stay in the first-level cache between the passes of the norm.
//
//   t = x * scale,  xhat = (t - mean_c(t)) * rstd,  y = xhat * weight + bias + shortcut
//   g = grad * weight,  dt = rstd * (g - mean_c(g) - xhat * mean_c(g * xhat)),  dx = dt * scale (+ add_statistics)
#include "pixel_norm_pixels.inl"
#include "rows.inl"

namespace fastsr::cpu {
namespace {

// Mean and sum of squared deviations of V neighbouring vectors of channels (or, with kind Scalar, of V channels) over a
// few pixels, by two passes over the cache. Values are shifted by the first pixel, so that the mean of a constant map
// is that constant exactly and its variance zero. As many vectors side by side as the registers hold: one after
// another, each would wait for its own lines of every pixel.
template <int V, class Kind>
FASTSR_INLINE void cca_block_moments(const float* x, int64_t x_stride, int64_t pixels, Kind kind, float* mean,
                                     float* squares) {
  constexpr int64_t kStep = std::is_same_v<Kind, Vector> ? kLanes : 1;
  using Value = decltype(load_as(kind, x));
  const auto over_pixels = [&](const Value(&centre)[V], Value(&even)[V], Value(&odd)[V], auto term) {
    int64_t p = 0;
#pragma GCC unroll 1
    for (; p + 2 <= pixels; p += 2)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        even[v] += term(load_as(kind, x + p * x_stride + v * kStep) - centre[v]);
        odd[v] += term(load_as(kind, x + (p + 1) * x_stride + v * kStep) - centre[v]);
      }
    if (p < pixels)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) even[v] += term(load_as(kind, x + p * x_stride + v * kStep) - centre[v]);
  };
  Value centre[V], even[V] = {}, odd[V] = {};
  for (int v = 0; v < V; ++v) centre[v] = load_as(kind, x + v * kStep);
  over_pixels(centre, even, odd, [](Value d) { return d; });
  for (int v = 0; v < V; ++v) {
    centre[v] += (even[v] + odd[v]) * (1.f / static_cast<float>(pixels));
    store_as(kind, mean + v * kStep, centre[v]);
    even[v] = odd[v] = Value{};
  }
  over_pixels(centre, even, odd, [](Value d) { return d * d; });
  for (int v = 0; v < V; ++v) store_as(kind, squares + v * kStep, even[v] + odd[v]);
}

void cca_moments(const float* x, int64_t x_stride, int64_t pixels, int64_t channels, ChannelMoments& into) {
  // Chan's merge; the first pixels find a count of zero.
  const double count = into.count + static_cast<double>(pixels), share = static_cast<double>(pixels) / count;
  const double weight = into.count * share;
  alignas(64) float mean[4 * kLanes], squares[4 * kLanes];
  const auto merge = [&](int64_t c, int64_t width) {
    for (int64_t i = 0; i < width; ++i) {
      const double delta = static_cast<double>(mean[i]) - into.mean[c + i];
      into.mean[c + i] += delta * share;
      into.squares[c + i] += static_cast<double>(squares[i]) + delta * delta * weight;
    }
  };
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    cca_block_moments<4>(x + c, x_stride, pixels, Vector{}, mean, squares);
    merge(c, 4 * kLanes);
  }
  over<float>(channels - c, [&](int64_t at, auto kind) {
    cca_block_moments<1>(x + c + at, x_stride, pixels, kind, mean, squares);
    merge(c + at, std::is_same_v<decltype(kind), Vector> ? kLanes : 1);
  });
  into.count = count;
}

template <class Kind, class Value>
FASTSR_INLINE void cca_add(Kind kind, float* sum, Value v) {
  store_as(kind, sum, load_as(kind, sum) + v);
}

// Calls body with the number of channels, as a constant where it is the networks' 64: loops over it then unroll.
template <class Body>
FASTSR_INLINE void with_channels(int64_t channels, Body&& body) {
  if (channels == 64)
    body(std::integral_constant<int64_t, 64>{});
  else
    body(channels);
}

struct CcaStripNorm {
  alignas(64) float mean[kCcaStrip], rstd[kCcaStrip];
};

// t of channel c: one value, wherever it is used, or else a pixel of equal channels would differ from its mean by the
// rounding of the product.
template <class Kind>
FASTSR_INLINE auto cca_scaled(Kind kind, const float* x, const float* scale) {
  return rounded(load_as(kind, x) * load_as(kind, scale));
}

// Mean and 1 / standard deviation of t at every pixel, the mean corrected as in pixel_norm. Each loop over the pixels
// is free of long chains of dependent operations, so that the processor overlaps the pixels.
template <class Count>
FASTSR_INLINE void cca_strip_norm(const float* x, int64_t x_stride, int64_t pixels, Count channels, const float* scale,
                                  float eps, CcaStripNorm& norm) {
  const float inverse = 1.f / static_cast<float>(static_cast<int64_t>(channels));
  for (int64_t p = 0; p < pixels; ++p) {
    Sum<float> sum;
    over<float>(channels, [&](int64_t c, auto kind) { sum.add(cca_scaled(kind, x + p * x_stride + c, scale + c)); });
    norm.mean[p] = sum.total() * inverse;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    Sum<float> deviations, squares;
    over<float>(channels, [&](int64_t c, auto kind) {
      const auto d = cca_scaled(kind, x + p * x_stride + c, scale + c) - norm.mean[p];
      deviations.add(d);
      squares.add(d * d);
    });
    const float shift = deviations.total() * inverse;
    norm.mean[p] += shift;
    norm.rstd[p] = std::max(squares.total() * inverse - shift * shift, 0.f) + eps;
  }
  for (int64_t p = 0; p < pixels; ++p) norm.rstd[p] = 1.f / std::sqrt(norm.rstd[p]);
}

template <class Count>
FASTSR_INLINE void cca_forward_strip(const CcaNormForward& a, Count channels) {
  CcaStripNorm norm;
  if (a.norm_weight) cca_strip_norm(a.x, a.x_stride, a.pixels, channels, a.scale, a.eps, norm);
  for (int64_t p = 0; p < a.pixels; ++p) {
    const float *x = a.x + p * a.x_stride, *shortcut = a.shortcut + p * a.shortcut_stride;
    float* y = a.y + p * a.y_stride;
    over<float>(channels, [&](int64_t c, auto kind) {
      const auto t = cca_scaled(kind, x + c, a.scale + c), other = load_as(kind, shortcut + c);
      store_as(kind, y + c,
               a.norm_weight ? (t - norm.mean[p]) * norm.rstd[p] * load_as(kind, a.norm_weight + c) +
                                   load_as(kind, a.norm_bias + c) + other
                             : t + other);
    });
  }
}

// The networks' 64 channels with a norm: kLanes pixels at a time, whose sums over the channels are taken together.
void cca_forward_64(const CcaNormForward& a) {
  constexpr int kGroups = 64 / kLanes;
  const channel_norm::Channels channels(64);
  channel_norm::Moments m;
  alignas(64) float t[kLanes * 64] = {};
  for (int64_t first = 0; first < a.pixels; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, a.pixels - first);
    for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
        store(t + (i * kGroups + g) * kLanes,
              load(a.x + (first + i) * a.x_stride + g * kLanes) * load(a.scale + g * kLanes));
    channel_norm::moments<kGroups>(t, channels, a.eps, m);
    for (int64_t i = 0; i < count; ++i) {
      const vf mean = splat(m.mean[i]), rstd = splat(m.rstd[i]);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g)
        store(a.y + (first + i) * a.y_stride + g * kLanes,
              (load(t + (i * kGroups + g) * kLanes) - mean) * rstd * load(a.norm_weight + g * kLanes) +
                  load(a.norm_bias + g * kLanes) + load(a.shortcut + (first + i) * a.shortcut_stride + g * kLanes));
    }
  }
}

void cca_forward(const CcaNormForward& a) {
  if (a.norm_weight && a.channels == 64) return cca_forward_64(a);
  with_channels(a.channels, [&](auto channels) { cca_forward_strip(a, channels); });
}

template <class Count>
FASTSR_INLINE void cca_backward_strip(const CcaNormBackward& a, Count channels) {
  const int pixels = static_cast<int>(std::min(a.pixels, kCcaStrip));
  if (a.norm_weight == nullptr) {
    for (int p = 0; p < pixels; ++p)
      over<float>(channels, [&](int64_t c, auto kind) {
        const auto g = load_as(kind, a.grad + p * a.grad_stride + c);
        cca_add(kind, a.d_scale + c, g * load_as(kind, a.x + p * a.x_stride + c));
        store_as(kind, a.dx + p * a.dx_stride + c, g * load_as(kind, a.scale + c));
      });
    return;
  }
  CcaStripNorm norm;
  cca_strip_norm(a.x, a.x_stride, pixels, channels, a.scale, a.eps, norm);
  const float inverse = 1.f / static_cast<float>(static_cast<int64_t>(channels));
  float g_mean[kCcaStrip], gx_mean[kCcaStrip];
  for (int p = 0; p < pixels; ++p) {
    Sum<float> g_sum, gx_sum;
    over<float>(channels, [&](int64_t c, auto kind) {
      const auto t = cca_scaled(kind, a.x + p * a.x_stride + c, a.scale + c);
      const auto g = cca_scaled(kind, a.grad + p * a.grad_stride + c, a.norm_weight + c);
      g_sum.add(g);
      gx_sum.add(g * ((t - norm.mean[p]) * norm.rstd[p]));
    });
    g_mean[p] = g_sum.total() * inverse;
    gx_mean[p] = gx_sum.total() * inverse;
  }
  // Channels outside, pixels inside: the three sums stay in registers.
  over<float>(a.channels, [&](int64_t c, auto kind) {
    const auto scale = load_as(kind, a.scale + c), weight = load_as(kind, a.norm_weight + c);
    auto d_weight = scale - scale, d_bias = d_weight, d_scale = d_weight;
    for (int p = 0; p < pixels; ++p) {
      const auto x = load_as(kind, a.x + p * a.x_stride + c), dy = load_as(kind, a.grad + p * a.grad_stride + c);
      const auto xhat = (rounded(x * scale) - norm.mean[p]) * norm.rstd[p];
      const auto dt = norm.rstd[p] * (rounded(dy * weight) - g_mean[p] - xhat * gx_mean[p]);
      d_weight += dy * xhat;
      d_bias += dy;
      d_scale += dt * x;
      store_as(kind, a.dx + p * a.dx_stride + c, dt * scale);
    }
    cca_add(kind, a.d_weight + c, d_weight);
    cca_add(kind, a.d_bias + c, d_bias);
    cca_add(kind, a.d_scale + c, d_scale);
  });
}

// The networks' 64 channels with a norm, kLanes pixels of `a` from `first` on.
FASTSR_INLINE void cca_backward_64(const CcaNormBackward& a, int64_t first) {
  constexpr int kGroups = 64 / kLanes;
  const channel_norm::Channels channels(64);
  const float *x = a.x + first * a.x_stride, *grad = a.grad + first * a.grad_stride;
  float* dx = a.dx + first * a.dx_stride;
  alignas(64) float t[kLanes * 64];
#pragma GCC unroll 1
  for (int i = 0; i < kLanes; ++i)
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g)
      store(t + i * 64 + g * kLanes, load(x + i * a.x_stride + g * kLanes) * load(a.scale + g * kLanes));
  vf scale_sums[kGroups];
  for (int g = 0; g < kGroups; ++g) scale_sums[g] = load(a.d_scale + g * kLanes);
  pixel_norm::backward_groups<kGroups>({grad, a.grad_stride}, {t, 64}, channels, a.norm_weight, a.eps, a.d_weight,
                                       a.d_bias, [&](int i, int64_t g, vf dt) {
                                         scale_sums[g] += dt * load(x + i * a.x_stride + g * kLanes);
                                         store(dx + i * a.dx_stride + g * kLanes, dt * load(a.scale + g * kLanes));
                                       });
  for (int g = 0; g < kGroups; ++g) store(a.d_scale + g * kLanes, scale_sums[g]);
}

void cca_backward(const CcaNormBackward& a) {
  if (a.norm_weight && a.channels == 64) {
    int64_t first = 0;
    for (; first + kLanes <= a.pixels; first += kLanes) cca_backward_64(a, first);
    if (first == a.pixels) return;
    CcaNormBackward rest = a;
    rest.grad += first * a.grad_stride;
    rest.x += first * a.x_stride;
    rest.dx += first * a.dx_stride;
    rest.pixels -= first;
    return cca_backward_strip(rest, std::integral_constant<int64_t, 64>{});
  }
  with_channels(a.channels, [&](auto channels) { cca_backward_strip(a, channels); });
}

void cca_add_statistics(const float* x, int64_t x_stride, float* dx, int64_t dx_stride, int64_t pixels,
                        int64_t channels, const float* constant, const float* slope, const float* mean) {
  for (int64_t p = 0; p < pixels; ++p, x += x_stride, dx += dx_stride)
    over<float>(channels, [&](int64_t c, auto kind) {
      cca_add(
          kind, dx + c,
          load_as(kind, constant + c) + load_as(kind, slope + c) * (load_as(kind, x + c) - load_as(kind, mean + c)));
    });
}

constexpr CcaNormKernels cca_norm_kernels() { return {&cca_moments, &cca_forward, &cca_backward, &cca_add_statistics}; }

}  // namespace
}  // namespace fastsr::cpu
