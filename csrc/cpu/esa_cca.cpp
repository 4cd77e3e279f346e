// fastsr::esa_cca_ on the CPU: esa and cca_norm, which takes the moments of a row of the gated map while that is in the
// first-level cache.
#include "esa_cca.h"

namespace fastsr::cpu {

void attend(const MapWriter& y, const esa::Path& path, const esa::Weights& w, const cca::Shape& s,
            const cca::Parameters& p, const MapReader& shortcut) {
  const MapReader x("esa_cca", y.nhwc());
  const esa::Gate gate(w, path, s.h, s.w);
  cca::Moments moments(s);
  cca::over_parts(s, [&](int64_t n, int64_t part, int64_t first, int64_t last) {
    for (int64_t h = first; h < last; ++h) {
      gate.row(x, n, h, y);
      moments.add_row(x, n, part, h);
    }
  });
  cca::apply(s, p, moments.merged().data(), x, shortcut, y);
}

namespace {

void over(const Tensor& x, const Tensor& shortcut, const esa::Weights& w, const cca::Parameters& p) {
  const cca::Shape s = cca::check(x, shortcut, p);
  const MapWriter y("esa_cca", x);
  if (x.numel() == 0) return;
  attend(y, esa::run_path(MapReader("esa_cca", x), x, w, false), w, s, p, MapReader("esa_cca", shortcut));
}

void esa_cca_over(const Tensor& x, const Tensor& shortcut, const std::vector<Tensor>& esa_weights,
                  int64_t conv2_padding, const Tensor& du0_weight, const Tensor& du0_bias, const Tensor& du2_weight,
                  const Tensor& du2_bias, const std::optional<Tensor>& norm_weight,
                  const std::optional<Tensor>& norm_bias, double eps) {
  over(x, shortcut, esa::forward_weights(x, esa_weights, conv2_padding),
       {du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps});
}

void esa_cca_packed_over(const Tensor& x, const Tensor& shortcut, const Tensor& packed, int64_t inner, bool separable,
                         int64_t conv2_padding, const Tensor& du0_weight, const Tensor& du0_bias,
                         const Tensor& du2_weight, const Tensor& du2_bias, const std::optional<Tensor>& norm_weight,
                         const std::optional<Tensor>& norm_bias, double eps) {
  over(x, shortcut, esa::unpack("esa_cca_packed", x, packed, inner, separable, conv2_padding),
       {du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps});
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("esa_cca_", TORCH_BOX(&fastsr::cpu::esa_cca_over));
  m.impl("esa_cca_packed_", TORCH_BOX(&fastsr::cpu::esa_cca_packed_over));
}
