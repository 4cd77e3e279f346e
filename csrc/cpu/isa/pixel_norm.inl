// pixel_norm for one instruction set. x, y, grad and dx may be channels last (stride 1 along C) or planar; every
// other layout runs through the planar path element by element. Channels last goes kLanes pixels at a time
// (pixel_norm_pixels.inl), and pixel by pixel at the end of a row and in double.
//
//   xhat = (x - mean_c(x)) * rstd,  y = xhat * weight + bias
//   g = grad * weight,  dx = rstd * (g - mean_c(g) - xhat * mean_c(g * xhat))
//   d_weight = sum over pixels of grad * xhat,  d_bias = sum over pixels of grad
#include "pixel_norm_pixels.inl"

namespace fastsr::cpu {
namespace {

constexpr int64_t kBlock = 64;  // pixels that the planar path gathers; [C][64] floats of 64 channels fit in L1

template <class T>
struct Moments {
  compute_t<T> mean, rstd;
};

// The mean is corrected by the mean of the deviations from its first estimate: a pixel whose channels agree in many
// digits has a tiny variance, by whose root a rounding error of the mean would be multiplied.
template <class T>
FASTSR_INLINE Moments<T> moments_of_pixel(const T* x, int64_t c, double eps) {
  const compute_t<T> n = static_cast<compute_t<T>>(c);
  Sum<T> sum;
  over<T>(c, [&](int64_t i, auto kind) { sum.add(load_as(kind, x + i)); });
  const compute_t<T> estimate = sum.total() / n;
  Sum<T> deviations, squares;
  over<T>(c, [&](int64_t i, auto kind) {
    const auto d = load_as(kind, x + i) - estimate;
    deviations.add(d);
    squares.add(d * d);
  });
  const compute_t<T> shift = deviations.total() / n;
  const compute_t<T> variance = std::max(squares.total() / n - shift * shift, compute_t<T>(0));
  return {estimate + shift, compute_t<T>(1) / std::sqrt(variance + static_cast<compute_t<T>>(eps))};
}

template <class T>
void forward_pixel(const T* x, int64_t c, const compute_t<T>* weight, const compute_t<T>* bias, double eps, T* y) {
  const Moments<T> m = moments_of_pixel(x, c, eps);
  over<T>(c, [&](int64_t i, auto kind) {
    store_as(kind, y + i,
             (load_as(kind, x + i) - m.mean) * m.rstd * load_as(kind, weight + i) + load_as(kind, bias + i));
  });
}

template <class T>
void backward_pixel(const T* grad, const T* x, int64_t c, const compute_t<T>* weight, double eps, T* dx,
                    compute_t<T>* d_weight, compute_t<T>* d_bias) {
  const Moments<T> m = moments_of_pixel(x, c, eps);
  Sum<T> g_sum, gx_sum;
  over<T>(c, [&](int64_t i, auto kind) {
    const auto dy = load_as(kind, grad + i), xhat = (load_as(kind, x + i) - m.mean) * m.rstd;
    const auto g = dy * load_as(kind, weight + i);
    g_sum.add(g);
    gx_sum.add(g * xhat);
    store_as(kind, d_weight + i, load_as(kind, d_weight + i) + dy * xhat);
    store_as(kind, d_bias + i, load_as(kind, d_bias + i) + dy);
  });
  const compute_t<T> n = static_cast<compute_t<T>>(c), g_mean = g_sum.total() / n, gx_mean = gx_sum.total() / n;
  over<T>(c, [&](int64_t i, auto kind) {
    const auto xhat = (load_as(kind, x + i) - m.mean) * m.rstd;
    const auto g = load_as(kind, grad + i) * load_as(kind, weight + i);
    store_as(kind, dx + i, m.rstd * (g - g_mean - xhat * gx_mean));
  });
}

// Copies `count` <= kBlock pixels of every channel to block[c][kBlock], in compute precision, padded with zeros.
template <class T>
void gather(const T* x, int64_t c, int64_t c_stride, int64_t w_stride, int64_t count, compute_t<T>* block) {
  for (int64_t k = 0; k < c; ++k, x += c_stride, block += kBlock) {
    if (w_stride == 1)
      over<T>(count, [&](int64_t i, auto kind) { store_as(kind, block + i, load_as(kind, x + i)); });
    else
      for (int64_t i = 0; i < count; ++i) block[i] = to_compute(x[i * w_stride]);
    std::fill(block + count, block + kBlock, compute_t<T>(0));
  }
}

template <class T>
void scatter(const compute_t<T>* block, int64_t c, int64_t c_stride, int64_t w_stride, int64_t count, T* y) {
  for (int64_t k = 0; k < c; ++k, y += c_stride, block += kBlock) {
    if (w_stride == 1)
      over<T>(count, [&](int64_t i, auto kind) { store_as(kind, y + i, load_as(kind, block + i)); });
    else
      for (int64_t i = 0; i < count; ++i) from_compute(block[i], y[i * w_stride]);
  }
}

// Turns block[c][kBlock] into xhat in place; leaves rstd of every pixel in rstd[kBlock].
template <class C>
void normalise_block(C* block, int64_t c, double eps, C* rstd) {
  constexpr int step = lanes<C>;
  const C n = static_cast<C>(c);
  for (int64_t p = 0; p < kBlock; p += step) {
    vec<C> sum{}, deviations{}, squares{};
    for (int64_t k = 0; k < c; ++k) sum += load(block + k * kBlock + p);
    const vec<C> estimate = sum / n;
    for (int64_t k = 0; k < c; ++k) {
      const vec<C> d = load(block + k * kBlock + p) - estimate;
      deviations += d;
      squares += d * d;
      store(block + k * kBlock + p, d);
    }
    const vec<C> shift = deviations / n, variance = squares / n - shift * shift;
    vec<C> r;
    for (int i = 0; i < step; ++i) r[i] = C(1) / std::sqrt(std::max(variance[i], C(0)) + static_cast<C>(eps));
    store(rstd + p, r);
    for (int64_t k = 0; k < c; ++k) store(block + k * kBlock + p, (load(block + k * kBlock + p) - shift) * r);
  }
}

template <class T>
void pixel_norm_forward(const PixelNormShape& s, const T* x, const compute_t<T>* weight, const compute_t<T>* bias,
                        double eps, T* y, int64_t first, int64_t last) {
  using C = compute_t<T>;
  const bool channels_last = s.x_stride[1] == 1 && s.y_stride[1] == 1;
  std::vector<C> block(channels_last ? kLanes * s.c : s.c * kBlock), rstd(kBlock);
  for (int64_t row = first; row < last; ++row) {
    const T* xr = x + row / s.h * s.x_stride[0] + row % s.h * s.x_stride[2];
    T* yr = y + row / s.h * s.y_stride[0] + row % s.h * s.y_stride[2];
    if (channels_last) {
      int64_t p = 0;
      if constexpr (std::is_same_v<C, float>)
        for (; p + kLanes <= s.w; p += kLanes)
          pixel_norm::forward(xr + p * s.x_stride[3], s.x_stride[3], s.c, weight, bias, static_cast<float>(eps),
                              yr + p * s.y_stride[3], s.y_stride[3], block.data());
      for (; p < s.w; ++p) forward_pixel(xr + p * s.x_stride[3], s.c, weight, bias, eps, yr + p * s.y_stride[3]);
      continue;
    }
    for (int64_t p = 0; p < s.w; p += kBlock) {
      const int64_t count = std::min(kBlock, s.w - p);
      gather(xr + p * s.x_stride[3], s.c, s.x_stride[1], s.x_stride[3], count, block.data());
      normalise_block(block.data(), s.c, eps, rstd.data());
      for (int64_t k = 0; k < s.c; ++k)
        for (int64_t i = 0; i < kBlock; ++i) block[k * kBlock + i] = block[k * kBlock + i] * weight[k] + bias[k];
      scatter(block.data(), s.c, s.y_stride[1], s.y_stride[3], count, yr + p * s.y_stride[3]);
    }
  }
}

// One block of the planar backward: on entry `xhat` holds x and `grad` the gradient; on return `xhat` holds dx.
template <class C>
void backward_block(C* xhat, C* grad, int64_t c, const C* weight, double eps, C* rstd, C* d_weight, C* d_bias) {
  constexpr int step = lanes<C>;
  normalise_block(xhat, c, eps, rstd);
  for (int64_t k = 0; k < c; ++k) {
    vec<C> dw{}, db{};
    for (int64_t p = 0; p < kBlock; p += step) {
      const vec<C> dy = load(grad + k * kBlock + p);
      dw += dy * load(xhat + k * kBlock + p);
      db += dy;
      store(grad + k * kBlock + p, dy * weight[k]);
    }
    d_weight[k] += sum_lanes(dw);
    d_bias[k] += sum_lanes(db);
  }
  for (int64_t p = 0; p < kBlock; p += step) {
    vec<C> g_sum{}, gx_sum{};
    for (int64_t k = 0; k < c; ++k) {
      const vec<C> g = load(grad + k * kBlock + p);
      g_sum += g;
      gx_sum += g * load(xhat + k * kBlock + p);
    }
    const vec<C> g_mean = g_sum / static_cast<C>(c), gx_mean = gx_sum / static_cast<C>(c), r = load(rstd + p);
    for (int64_t k = 0; k < c; ++k)
      store(xhat + k * kBlock + p, r * (load(grad + k * kBlock + p) - g_mean - load(xhat + k * kBlock + p) * gx_mean));
  }
}

template <class T>
void pixel_norm_backward(const PixelNormBackwardShape& s, const T* grad, const T* x, const compute_t<T>* weight,
                         double eps, T* dx, double* d_weight, double* d_bias, int64_t first, int64_t last) {
  using C = compute_t<T>;
  const bool channels_last = s.x_stride[1] == 1 && s.grad_stride[1] == 1 && s.dx_stride[1] == 1;
  std::vector<C> x_block(channels_last ? kLanes * s.c : s.c * kBlock), grad_block(x_block.size()), rstd(kBlock);
  // A row's sums in compute precision, rows in double: the error does not grow with the image.
  std::vector<C> row_weight(s.c), row_bias(s.c);
  for (int64_t row = first; row < last; ++row) {
    const int64_t n = row / s.h, h = row % s.h;
    const T* xr = x + n * s.x_stride[0] + h * s.x_stride[2];
    const T* gr = grad + n * s.grad_stride[0] + h * s.grad_stride[2];
    T* dr = dx + n * s.dx_stride[0] + h * s.dx_stride[2];
    std::fill(row_weight.begin(), row_weight.end(), C(0));
    std::fill(row_bias.begin(), row_bias.end(), C(0));
    int64_t p = 0;
    if constexpr (std::is_same_v<C, float>)
      for (; channels_last && p + kLanes <= s.w; p += kLanes)
        pixel_norm::backward(gr + p * s.grad_stride[3], s.grad_stride[3], xr + p * s.x_stride[3], s.x_stride[3], s.c,
                             weight, static_cast<float>(eps), dr + p * s.dx_stride[3], s.dx_stride[3],
                             row_weight.data(), row_bias.data(), grad_block.data(), x_block.data());
    for (; p < s.w; p += channels_last ? 1 : kBlock) {
      const T *xp = xr + p * s.x_stride[3], *gp = gr + p * s.grad_stride[3];
      T* dp = dr + p * s.dx_stride[3];
      if (channels_last) {
        backward_pixel(gp, xp, s.c, weight, eps, dp, row_weight.data(), row_bias.data());
        continue;
      }
      const int64_t count = std::min(kBlock, s.w - p);
      gather(xp, s.c, s.x_stride[1], s.x_stride[3], count, x_block.data());
      gather(gp, s.c, s.grad_stride[1], s.grad_stride[3], count, grad_block.data());
      backward_block(x_block.data(), grad_block.data(), s.c, weight, eps, rstd.data(), row_weight.data(),
                     row_bias.data());
      scatter(x_block.data(), s.c, s.dx_stride[1], s.dx_stride[3], count, dp);
    }
    for (int64_t k = 0; k < s.c; ++k) {
      d_weight[k] += row_weight[k];
      d_bias[k] += row_bias[k];
    }
  }
}

template <class T>
constexpr PixelNormKernels<T> pixel_norm_kernels() {
  return {&pixel_norm_forward<T>, &pixel_norm_backward<T>};
}

}  // namespace
}  // namespace fastsr::cpu
