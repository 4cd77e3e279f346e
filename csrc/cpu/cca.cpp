// Moments, attention and the pass over the map of cca_norm (cca.h).
#include "cca.h"

namespace fastsr::cpu::cca {
Shape check(const Tensor& x, const Tensor& du0_weight, const Tensor& du0_bias, const Tensor& du2_weight,
            const Tensor& du2_bias, const std::optional<Tensor>& norm_weight) {
  check_feature_map(kOp, x, "x");
  Shape s{x.size(0), x.size(1), x.size(2), x.size(3), 0};
  STD_TORCH_CHECK(du0_weight.dim() == 4, kOp, ": du0_weight has ", du0_weight.dim(), " dimensions; pass 4");
  s.squeezed = du0_weight.size(0);
  check_weight(kOp, du0_weight, {s.squeezed, s.c, 1, 1}, "du0_weight");
  check_vector(kOp, du0_bias, s.squeezed, "du0_bias");
  check_weight(kOp, du2_weight, {s.c, s.squeezed, 1, 1}, "du2_weight");
  check_vector(kOp, du2_bias, s.c, "du2_bias");
  if (norm_weight) check_vector(kOp, *norm_weight, s.c, "norm_weight");
  return s;
}

Shape check(const Tensor& x, const Tensor& shortcut, const Parameters& p) {
  const Shape s = check(x, p.du0_weight, p.du0_bias, p.du2_weight, p.du2_bias, p.norm_weight);
  check_same_shape(kOp, x, shortcut, "shortcut");
  check_same_dtype(kOp, x, shortcut, "shortcut");
  STD_TORCH_CHECK(p.norm_weight.has_value() == p.norm_bias.has_value(), kOp,
                  ": only one of norm_weight and norm_bias is given; pass both or neither");
  if (p.norm_bias) check_vector(kOp, *p.norm_bias, s.c, "norm_bias");
  return s;
}

void Moments::add_row(const MapReader& x, int64_t n, int64_t part, int64_t h) {
  const int64_t range = n * s_.parts() + part;
  double* at = partial_.data() + range * 2 * s_.c;
  ChannelMoments m{count_[range], at, at + s_.c};
  struct Scratch;
  float* memory = thread_scratch<float, Scratch>(x.scratch(kCcaStrip));
  over_strips(s_.w, kCcaStrip, [&](int64_t w, int64_t pixels) {
    const FloatRow row = x.row(n, h, w, pixels, memory);
    kernels().cca_norm.moments(row.data, row.stride, pixels, s_.c, m);
  });
  count_[range] = m.count;
}

std::vector<double> Moments::merged() const {
  std::vector<double> result(s_.n * 2 * s_.c, 0.0);
  const int64_t parts = s_.parts();
  for (int64_t n = 0; n < s_.n; ++n) {
    double *mean = result.data() + n * 2 * s_.c, *squares = mean + s_.c, total = 0.0;
    for (int64_t range = n * parts; range < (n + 1) * parts; ++range) {
      const double more = count_[range];
      if (more == 0.0) continue;
      const double *m = partial_.data() + range * 2 * s_.c, *q = m + s_.c;
      const double share = more / (total + more);
      for (int64_t c = 0; c < s_.c; ++c) {
        const double delta = m[c] - mean[c];
        mean[c] += delta * share;
        squares[c] += q[c] + delta * delta * total * share;
      }
      total += more;
    }
    for (int64_t c = 0; c < s_.c; ++c) squares[c] /= total;
  }
  return result;
}

std::vector<double> Attention::hidden(const std::vector<double>& contrast) const {
  std::vector<double> out(b0.size());
  for (size_t r = 0; r < out.size(); ++r) {
    double sum = b0[r];
    for (size_t c = 0; c < contrast.size(); ++c) sum += w0[r * contrast.size() + c] * contrast[c];
    out[r] = sum < 0.0 ? 0.0 : sum;  // NaN stays
  }
  return out;
}

std::vector<float> Attention::scale(const std::vector<double>& hidden) const {
  std::vector<float> out(b2.size());
  for (size_t c = 0; c < out.size(); ++c) {
    double sum = b2[c];
    for (size_t r = 0; r < hidden.size(); ++r) sum += w2[c * hidden.size() + r] * hidden[r];
    out[c] = static_cast<float>(1.0 / (1.0 + std::exp(-sum)));
  }
  return out;
}

std::vector<std::vector<float>> Attention::scales(const Shape& s, const double* moments) const {
  std::vector<std::vector<float>> out;
  for (int64_t n = 0; n < s.n; ++n) out.push_back(scale(hidden(contrast_of(moments + n * 2 * s.c, s.c))));
  return out;
}

std::vector<double> contrast_of(const double* moments, int64_t channels) {
  std::vector<double> out(channels);
  for (int64_t c = 0; c < channels; ++c) out[c] = moments[c] + std::sqrt(moments[channels + c]);
  return out;
}

void apply(const Shape& s, const Parameters& p, const double* moments, const MapReader& x, const MapReader& shortcut,
           const MapWriter& y) {
  const Attention attention(p.du0_weight, p.du0_bias, p.du2_weight, p.du2_bias);
  const std::vector<std::vector<float>> scales = attention.scales(s, moments);
  const std::vector<float> weight = p.norm_weight ? to_floats(*p.norm_weight) : std::vector<float>();
  const std::vector<float> bias = p.norm_bias ? to_floats(*p.norm_bias) : std::vector<float>();
  const int64_t scratch = x.scratch(kCcaStrip);
  struct Scratch;
  parallel_rows(s.n * s.h, s.w, [&](int64_t first, int64_t last) {
    float* memory = thread_scratch<float, Scratch>(3 * scratch);
    for (int64_t i = first; i < last; ++i)
      over_strips(s.w, kCcaStrip, [&](int64_t w, int64_t pixels) {
        const int64_t n = i / s.h, h = i % s.h;
        Sections sections(memory);
        const FloatRow row = x.row(n, h, w, pixels, sections.take(scratch));
        const FloatRow other = shortcut.row(n, h, w, pixels, sections.take(scratch));
        int64_t stride;
        float* out = y.target(n, h, w, sections.take(scratch), stride);
        kernels().cca_norm.forward({row.data, row.stride, other.data, other.stride, out, stride, pixels, s.c,
                                    scales[n].data(), p.norm_weight ? weight.data() : nullptr, bias.data(),
                                    static_cast<float>(p.eps)});
        y.write(n, h, w, pixels, out, stride);
      });
  });
}

}  // namespace fastsr::cpu::cca
