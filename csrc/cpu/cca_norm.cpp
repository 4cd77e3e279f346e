// fastsr::cca_norm and its backward on the CPU.
//
//   contrast_c = standard deviation + mean over H x W,  scale = sigmoid(du2 relu(du0 contrast + b0) + b2)
//   y = norm(x * scale) + shortcut
//
// The forward reads x twice: for the moments, then for everything else in one pass. Moments are merged strip by strip
// and range by range in a fixed order, in double. They are an output, so that the backward need not take them again:
// it goes over the pixels once for the gradient of x with the moments held fixed and the sums over H x W that the
// attention needs, and once more to add the gradient through the moments.
#include "cca.h"

namespace fastsr::cpu::cca {
namespace {

// Fills y and returns the statistics.
Tensor forward(const Tensor& x, const Tensor& shortcut, const Parameters& p, const MapWriter& y) {
  const Shape s = check(x, shortcut, p);
  const MapReader x_map(kOp, x), shortcut_map(kOp, shortcut);
  Tensor statistics = torch::stable::new_empty(x, {s.n, 2, s.c}, ScalarType::Double);
  if (x.numel() == 0) {
    torch::stable::zero_(statistics);
    return statistics;
  }
  Moments moments(s);
  over_parts(s, [&](int64_t n, int64_t part, int64_t first, int64_t last) {
    for (int64_t h = first; h < last; ++h) moments.add_row(x_map, n, part, h);
  });
  const std::vector<double> merged = moments.merged();
  std::copy(merged.begin(), merged.end(), static_cast<double*>(statistics.mutable_data_ptr()));
  apply(s, p, merged.data(), x_map, shortcut_map, y);
  return statistics;
}

std::tuple<Tensor, Tensor> cca_norm(const Tensor& x, const Tensor& shortcut, const Tensor& du0_weight,
                                    const Tensor& du0_bias, const Tensor& du2_weight, const Tensor& du2_bias,
                                    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias,
                                    double eps) {
  check_feature_map(kOp, x, "x");
  MapWriter y(kOp, x, {x.size(0), x.size(1), x.size(2), x.size(3)});
  const Tensor statistics =
      forward(x, shortcut, {du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps}, y);
  return {y.finish(), statistics};
}

void cca_norm_over(const Tensor& x, const Tensor& shortcut, const Tensor& du0_weight, const Tensor& du0_bias,
                   const Tensor& du2_weight, const Tensor& du2_bias, const std::optional<Tensor>& norm_weight,
                   const std::optional<Tensor>& norm_bias, double eps) {
  check_feature_map(kOp, x, "x");
  MapWriter y(kOp, x);
  forward(x, shortcut, {du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps}, y);
}

// What the attention passes on, for all images: gradients of its parameters, and of each x through its moments.
struct AttentionGradient {
  std::vector<double> w0, b0, w2, b2;
  std::vector<std::vector<float>> constant, slope, mean;  // per image (isa/cca_norm.h, add_statistics)
};

AttentionGradient attention_backward(const Shape& s, const Attention& a, const double* moments,
                                     const std::vector<double>& d_scale) {
  AttentionGradient g{std::vector<double>(a.w0.size()),
                      std::vector<double>(a.b0.size()),
                      std::vector<double>(a.w2.size()),
                      std::vector<double>(a.b2.size()),
                      {},
                      {},
                      {}};
  const double area = static_cast<double>(s.h) * static_cast<double>(s.w);
  for (int64_t n = 0; n < s.n; ++n) {
    const double *mean = moments + n * 2 * s.c, *variance = mean + s.c;
    const std::vector<double> contrast = contrast_of(mean, s.c), hidden = a.hidden(contrast);
    const std::vector<float> scale = a.scale(hidden);
    std::vector<double> d_hidden(s.squeezed, 0.0);
    for (int64_t c = 0; c < s.c; ++c) {
      const double sigmoid = scale[c], dv = d_scale[n * s.c + c] * sigmoid * (1.0 - sigmoid);
      g.b2[c] += dv;
      for (int64_t r = 0; r < s.squeezed; ++r) {
        g.w2[c * s.squeezed + r] += dv * hidden[r];
        d_hidden[r] += dv * a.w2[c * s.squeezed + r];
      }
    }
    std::vector<double> d_contrast(s.c, 0.0);
    for (int64_t r = 0; r < s.squeezed; ++r) {
      if (hidden[r] <= 0.0) continue;
      g.b0[r] += d_hidden[r];
      for (int64_t c = 0; c < s.c; ++c) {
        g.w0[r * s.c + c] += d_hidden[r] * contrast[c];
        d_contrast[c] += d_hidden[r] * a.w0[r * s.c + c];
      }
    }
    std::vector<float> constant(s.c), slope(s.c), centre(s.c);
    for (int64_t c = 0; c < s.c; ++c) {
      constant[c] = static_cast<float>(d_contrast[c] / area);
      slope[c] = variance[c] > 0.0 ? static_cast<float>(d_contrast[c] / (area * std::sqrt(variance[c]))) : 0.f;
      centre[c] = static_cast<float>(mean[c]);
    }
    g.constant.push_back(std::move(constant));
    g.slope.push_back(std::move(slope));
    g.mean.push_back(std::move(centre));
  }
  return g;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> cca_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& statistics, const Tensor& du0_weight, const Tensor& du0_bias,
    const Tensor& du2_weight, const Tensor& du2_bias, const std::optional<Tensor>& norm_weight, double eps) {
  const Shape s = check(x, du0_weight, du0_bias, du2_weight, du2_bias, norm_weight);
  check_same_shape(kOp, x, grad, "grad");
  check_same_dtype(kOp, x, grad, "grad");
  STD_TORCH_CHECK(statistics.scalar_type() == ScalarType::Double && statistics.dim() == 3 &&
                      statistics.is_contiguous() && statistics.size(0) == s.n && statistics.size(1) == 2 &&
                      statistics.size(2) == s.c,
                  kOp, ": statistics are not those of the forward operator");
  const MapReader x_map(kOp, x), grad_map(kOp, grad);
  MapWriter dx(kOp, x, {s.n, s.c, s.h, s.w});
  const Attention attention(du0_weight, du0_bias, du2_weight, du2_bias);
  const double* m = static_cast<const double*>(statistics.const_data_ptr());
  const std::vector<std::vector<float>> scales = attention.scales(s, m);
  const std::vector<float> weight = norm_weight ? to_floats(*norm_weight) : std::vector<float>();

  struct Scratch;
  const int64_t parts = s.parts(), strip = x_map.scratch(kCcaStrip);
  std::vector<float> partial(s.n * parts * 3 * s.c, 0.f);
  over_parts(s, [&](int64_t n, int64_t part, int64_t first, int64_t last) {
    float* memory = thread_scratch<float, Scratch>(3 * strip);
    float* sums = partial.data() + (n * parts + part) * 3 * s.c;
    for (int64_t h = first; h < last; ++h)
      over_strips(s.w, kCcaStrip, [&](int64_t w, int64_t pixels) {
        Sections sections(memory);
        const FloatRow xr = x_map.row(n, h, w, pixels, sections.take(strip));
        const FloatRow gr = grad_map.row(n, h, w, pixels, sections.take(strip));
        int64_t stride;
        float* out = dx.target(n, h, w, sections.take(strip), stride);
        kernels().cca_norm.backward({gr.data, gr.stride, xr.data, xr.stride, out, stride, pixels, s.c, scales[n].data(),
                                     norm_weight ? weight.data() : nullptr, static_cast<float>(eps), sums, sums + s.c,
                                     sums + 2 * s.c});
        dx.write(n, h, w, pixels, out, stride);
      });
  });
  std::vector<double> d_weight(s.c, 0.0), d_bias(s.c, 0.0), d_scale(s.n * s.c, 0.0);
  for (int64_t i = 0; i < s.n * parts; ++i)
    for (int64_t c = 0; c < s.c; ++c) {
      const float* sums = partial.data() + i * 3 * s.c + c;
      d_weight[c] += static_cast<double>(sums[0]);
      d_bias[c] += static_cast<double>(sums[s.c]);
      d_scale[i / parts * s.c + c] += static_cast<double>(sums[2 * s.c]);
    }
  const AttentionGradient g = attention_backward(s, attention, m, d_scale);

  const MapReader dx_map(kOp, dx.nhwc());
  parallel_rows(s.n * s.h, s.w, [&](int64_t first, int64_t last) {
    float* memory = thread_scratch<float, Scratch>(3 * strip);
    for (int64_t i = first; i < last; ++i)
      over_strips(s.w, kCcaStrip, [&](int64_t w, int64_t pixels) {
        const int64_t n = i / s.h, h = i % s.h;
        Sections sections(memory);
        const FloatRow xr = x_map.row(n, h, w, pixels, sections.take(strip));
        int64_t stride;
        float* out = dx.target(n, h, w, sections.take(strip), stride);
        dx_map.row(n, h, w, pixels, out);
        kernels().cca_norm.add_statistics(xr.data, xr.stride, out, stride, pixels, s.c, g.constant[n].data(),
                                          g.slope[n].data(), g.mean[n].data());
        dx.write(n, h, w, pixels, out, stride);
      });
  });
  const auto from = [](const std::vector<double>& v) { return [&v](int64_t i) { return v[i]; }; };
  return {dx.finish(),
          gradient_of(du0_weight, from(g.w0)),
          gradient_of(du0_bias, from(g.b0)),
          gradient_of(du2_weight, from(g.w2)),
          gradient_of(du2_bias, from(g.b2)),
          gradient_of(norm_weight ? *norm_weight : du2_bias, from(d_weight)),
          gradient_of(norm_weight ? *norm_weight : du2_bias, from(d_bias))};
}

}  // namespace
}  // namespace fastsr::cpu::cca

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("cca_norm", TORCH_BOX(&fastsr::cpu::cca::cca_norm));
  m.impl("cca_norm_", TORCH_BOX(&fastsr::cpu::cca::cca_norm_over));
  m.impl("cca_norm_backward", TORCH_BOX(&fastsr::cpu::cca::cca_norm_backward));
}
