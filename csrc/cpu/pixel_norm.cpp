// fastsr::pixel_norm and its backward on the CPU: checks, dtypes, division of the work over threads.
#include <algorithm>
#include <array>
#include <vector>

#include "../checks.h"
#include "isa/table.h"
#include "layout.h"
#include "parallel.h"
#include "weights.h"

namespace fastsr::cpu {
namespace {

constexpr int64_t kPixelsPerBand = 512;
constexpr int64_t kMaxRanges = 64;  // of the weight gradient; fixed, so that sums do not depend on the threads

std::array<int64_t, 4> strides_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

void copy4(const std::array<int64_t, 4>& from, int64_t (&to)[4]) { std::copy(from.begin(), from.end(), to); }

void check(const Tensor& x, const Tensor& weight) {
  check_feature_map("pixel_norm", x, "x");
  check_vector("pixel_norm", weight, x.size(1), "weight");
}

// Parameters are few; converting them here lets the kernels know one parameter type.
template <class C>
std::vector<C> parameters(const Tensor& p) {
  constexpr ScalarType kDtype = std::is_same_v<C, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor q = dense(p, kDtype);
  const C* data = static_cast<const C*>(q.const_data_ptr());
  return std::vector<C>(data, data + q.numel());
}

template <class T>
void forward(const PixelNormKernels<T>& kernels, const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
             Tensor& y) {
  using C = compute_t<T>;
  PixelNormShape s{x.size(0), x.size(1), x.size(2), x.size(3), {}, {}};
  copy4(strides_of(x), s.x_stride);
  copy4(strides_of(y), s.y_stride);
  const std::vector<C> w = parameters<C>(weight), b = parameters<C>(bias);
  const T* xp = static_cast<const T*>(x.const_data_ptr());
  T* yp = static_cast<T*>(y.mutable_data_ptr());
  const int64_t rows = s.n * s.h, band = std::max<int64_t>(1, kPixelsPerBand / std::max<int64_t>(1, s.w));
  parallel_bands((rows + band - 1) / band, [&](int64_t i) {
    kernels.forward(s, xp, w.data(), b.data(), eps, yp, i * band, std::min(rows, (i + 1) * band));
  });
}

template <class T>
void backward(const PixelNormKernels<T>& kernels, const Tensor& grad, const Tensor& x, const Tensor& weight, double eps,
              Tensor& dx, std::vector<double>& d_weight, std::vector<double>& d_bias) {
  using C = compute_t<T>;
  PixelNormBackwardShape s{x.size(0), x.size(1), x.size(2), x.size(3), {}, {}, {}};
  copy4(strides_of(grad), s.grad_stride);
  copy4(strides_of(x), s.x_stride);
  copy4(strides_of(dx), s.dx_stride);
  const std::vector<C> w = parameters<C>(weight);
  const T* gp = static_cast<const T*>(grad.const_data_ptr());
  const T* xp = static_cast<const T*>(x.const_data_ptr());
  T* dp = static_cast<T*>(dx.mutable_data_ptr());
  const int64_t rows = s.n * s.h, ranges = std::min(rows, kMaxRanges);
  std::vector<double> partial(ranges * 2 * s.c, 0.0);
  parallel_bands(ranges, [&](int64_t r) {
    double* sums = partial.data() + r * 2 * s.c;
    kernels.backward(s, gp, xp, w.data(), eps, dp, sums, sums + s.c, rows * r / ranges, rows * (r + 1) / ranges);
  });
  for (int64_t r = 0; r < ranges; ++r)
    for (int64_t k = 0; k < s.c; ++k) {
      d_weight[k] += partial[r * 2 * s.c + k];
      d_bias[k] += partial[(r * 2 + 1) * s.c + k];
    }
}

// Calls body(kernels) with the kernels for the dtype of `x`.
template <class Body>
void dispatch(const Tensor& x, Body&& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(kernels().pixel_norm_f32);
    case ScalarType::Half:
      return body(kernels().pixel_norm_f16);
    case ScalarType::BFloat16:
      return body(kernels().pixel_norm_bf16);
    case ScalarType::Double:
      return body(kernels().pixel_norm_f64);
    default:
      STD_TORCH_CHECK(false, "pixel_norm: x has a dtype without kernel; pass float32, float16, bfloat16 or float64");
  }
}

// As empty_like(x), from memory that is kept where x is dense in one of the two formats.
Tensor output_like(const Tensor& x) {
  const bool nhwc = is_nhwc(x), nchw = x.is_contiguous();
  if (nhwc == nchw) return torch::stable::empty_like(x);
  return empty_feature_map(x, {x.size(0), x.size(1), x.size(2), x.size(3)},
                           nhwc ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

Tensor pixel_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  check(x, weight);
  check_vector("pixel_norm", bias, x.size(1), "bias");
  Tensor y = output_like(x);
  if (x.numel() > 0) dispatch(x, [&](const auto& k) { forward(k, x, weight, bias, eps, y); });
  return y;
}

Tensor parameter_gradient(const Tensor& weight, const std::vector<double>& sums) {
  if (weight.scalar_type() != ScalarType::Double) return gradient_of(weight, [&](int64_t i) { return sums[i]; });
  Tensor exact = torch::stable::new_empty(weight, {weight.numel()}, ScalarType::Double);
  std::copy(sums.begin(), sums.end(), static_cast<double*>(exact.mutable_data_ptr()));
  return exact;
}

std::tuple<Tensor, Tensor, Tensor> pixel_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                       double eps) {
  check(x, weight);
  check_same_shape("pixel_norm_backward", x, grad, "grad");
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), "pixel_norm_backward: grad and x differ in dtype");
  Tensor dx = output_like(x);
  std::vector<double> d_weight(x.size(1), 0.0), d_bias(x.size(1), 0.0);
  if (x.numel() > 0) dispatch(x, [&](const auto& k) { backward(k, grad, x, weight, eps, dx, d_weight, d_bias); });
  return {dx, parameter_gradient(weight, d_weight), parameter_gradient(weight, d_bias)};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("pixel_norm", TORCH_BOX(&fastsr::cpu::pixel_norm));
  m.impl("pixel_norm_backward", TORCH_BOX(&fastsr::cpu::pixel_norm_backward));
}
