// cca_norm for one instruction set: moments per channel, and per pixel the attention's scale, the norm and the
// shortcut. One pixel's channels stay in the first-level cache between the passes of the norm.
//
//   t = x * scale,  xhat = (t - mean_c(t)) * rstd,  y = xhat * weight + bias + shortcut
//   g = grad * weight,  dt = rstd * (g - mean_c(g) - xhat * mean_c(g * xhat)),  dx = dt * scale (+ add_statistics)
#include "rows.inl"

namespace fastsr::cpu {
namespace {

// Moments of one channel block over a few pixels, by two passes over the cache. Values are shifted by the first
// pixel, so that the mean of a constant map is that constant exactly and its variance zero.
template <class Kind>
FASTSR_INLINE void cca_block_moments(const float* x, int64_t x_stride, int64_t pixels, Kind kind, float* mean,
                                     float* squares) {
  const auto shift = load_as(kind, x);
  auto sum = shift - shift, sum2 = sum, other = sum, other2 = sum;
  int64_t p = 0;
  for (; p + 2 <= pixels; p += 2) {
    sum += load_as(kind, x + p * x_stride) - shift;
    other += load_as(kind, x + (p + 1) * x_stride) - shift;
  }
  for (; p < pixels; ++p) sum += load_as(kind, x + p * x_stride) - shift;
  const auto m = shift + (sum + other) * (1.f / static_cast<float>(pixels));
  for (p = 0; p + 2 <= pixels; p += 2) {
    const auto a = load_as(kind, x + p * x_stride) - m, b = load_as(kind, x + (p + 1) * x_stride) - m;
    sum2 += a * a;
    other2 += b * b;
  }
  for (; p < pixels; ++p) {
    const auto a = load_as(kind, x + p * x_stride) - m;
    sum2 += a * a;
  }
  store_as(kind, mean, m);
  store_as(kind, squares, sum2 + other2);
}

void cca_moments(const float* x, int64_t x_stride, int64_t pixels, int64_t channels, ChannelMoments& into) {
  // Chan's merge; the first pixels find a count of zero.
  const double count = into.count + static_cast<double>(pixels), share = static_cast<double>(pixels) / count;
  const double weight = into.count * share;
  over<float>(channels, [&](int64_t c, auto kind) {
    alignas(64) float mean[kLanes], squares[kLanes];
    cca_block_moments(x + c, x_stride, pixels, kind, mean, squares);
    const int64_t width = std::is_same_v<decltype(kind), Vector> ? kLanes : 1;
    for (int64_t i = 0; i < width; ++i) {
      const double delta = static_cast<double>(mean[i]) - into.mean[c + i];
      into.mean[c + i] += delta * share;
      into.squares[c + i] += static_cast<double>(squares[i]) + delta * delta * weight;
    }
  });
  into.count = count;
}

struct CcaPixelNorm {
  float mean, rstd;
};

// Leaves t in `t`.
FASTSR_INLINE CcaPixelNorm cca_pixel_norm(const float* x, const float* scale, int64_t channels, float eps, float* t) {
  Sum<float> sum, squares;
  over<float>(channels, [&](int64_t c, auto kind) {
    const auto v = load_as(kind, x + c) * load_as(kind, scale + c);
    store_as(kind, t + c, v);
    sum.add(v);
  });
  const float mean = sum.total() / static_cast<float>(channels);
  over<float>(channels, [&](int64_t c, auto kind) {
    const auto d = load_as(kind, t + c) - mean;
    squares.add(d * d);
  });
  return {mean, 1.f / std::sqrt(squares.total() / static_cast<float>(channels) + eps)};
}

void cca_forward(const CcaNormForward& a) {
  for (int64_t p = 0; p < a.pixels; ++p) {
    const float *x = a.x + p * a.x_stride, *shortcut = a.shortcut + p * a.shortcut_stride;
    float* y = a.y + p * a.y_stride;
    if (a.norm_weight == nullptr) {
      over<float>(a.channels, [&](int64_t c, auto kind) {
        store_as(kind, y + c, load_as(kind, x + c) * load_as(kind, a.scale + c) + load_as(kind, shortcut + c));
      });
      continue;
    }
    const CcaPixelNorm m = cca_pixel_norm(x, a.scale, a.channels, a.eps, y);
    over<float>(a.channels, [&](int64_t c, auto kind) {
      const auto xhat = (load_as(kind, y + c) - m.mean) * m.rstd;
      store_as(kind, y + c,
               xhat * load_as(kind, a.norm_weight + c) + load_as(kind, a.norm_bias + c) + load_as(kind, shortcut + c));
    });
  }
}

template <class Kind, class Value>
FASTSR_INLINE void cca_add(Kind kind, float* sum, Value v) {
  store_as(kind, sum, load_as(kind, sum) + v);
}

void cca_backward(const CcaNormBackward& a) {
  for (int64_t p = 0; p < a.pixels; ++p) {
    const float *x = a.x + p * a.x_stride, *grad = a.grad + p * a.grad_stride;
    float* dx = a.dx + p * a.dx_stride;
    if (a.norm_weight == nullptr) {
      over<float>(a.channels, [&](int64_t c, auto kind) {
        const auto g = load_as(kind, grad + c);
        cca_add(kind, a.d_scale + c, g * load_as(kind, x + c));
        store_as(kind, dx + c, g * load_as(kind, a.scale + c));
      });
      continue;
    }
    const CcaPixelNorm m = cca_pixel_norm(x, a.scale, a.channels, a.eps, dx);
    Sum<float> g_sum, gx_sum;
    over<float>(a.channels, [&](int64_t c, auto kind) {
      const auto dy = load_as(kind, grad + c), xhat = (load_as(kind, dx + c) - m.mean) * m.rstd;
      const auto g = dy * load_as(kind, a.norm_weight + c);
      g_sum.add(g);
      gx_sum.add(g * xhat);
      cca_add(kind, a.d_weight + c, dy * xhat);
      cca_add(kind, a.d_bias + c, dy);
    });
    const float n = static_cast<float>(a.channels), g_mean = g_sum.total() / n, gx_mean = gx_sum.total() / n;
    over<float>(a.channels, [&](int64_t c, auto kind) {
      const auto xhat = (load_as(kind, dx + c) - m.mean) * m.rstd;
      const auto dt = m.rstd * (load_as(kind, grad + c) * load_as(kind, a.norm_weight + c) - g_mean - xhat * gx_mean);
      cca_add(kind, a.d_scale + c, dt * load_as(kind, x + c));
      store_as(kind, dx + c, dt * load_as(kind, a.scale + c));
    });
  }
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
