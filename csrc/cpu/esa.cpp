// fastsr::esa on the CPU: y = x * sigmoid(conv4(enlarged side path + conv_f(conv1(x)))).
//
// Two passes over x. The first computes conv1 (and the strided convolution's pointwise product) row by row; the side
// path then works on maps of a quarter of the pixels and less; the second pass enlarges it, strip by strip of a row,
// and gates x while the strip is in the first-level cache. The blueprint form's weights are folded (esa_weights.h).
#include "esa_path.h"

namespace fastsr::cpu::esa {
namespace {

void forward(const Tensor& x, const Weights& w, MapWriter& y) {
  if (x.numel() == 0) return;
  const MapReader x_map(kOp, x);
  const Path path = run_path(x_map, x, w, false);
  const Gate gate(w, path, x.size(2), x.size(3));
  over_rows(path.reduced(), [&](int64_t n, int64_t h) { gate.row(x_map, n, h, y); });
}

Tensor forward(const Tensor& x, const Weights& w) {
  MapWriter y(kOp, x, {x.size(0), x.size(1), x.size(2), x.size(3)});
  forward(x, w, y);
  return y.finish();
}

void forward_over(const Tensor& x, const Weights& w) {
  MapWriter y(kOp, x);
  forward(x, w, y);
}

Tensor esa(const Tensor& x, const std::vector<Tensor>& weights, int64_t conv2_padding) {
  return forward(x, forward_weights(x, weights, conv2_padding));
}

void esa_over(const Tensor& x, const std::vector<Tensor>& weights, int64_t conv2_padding) {
  forward_over(x, forward_weights(x, weights, conv2_padding));
}

Tensor esa_packed(const Tensor& x, const Tensor& packed, int64_t inner, bool separable, int64_t conv2_padding) {
  return forward(x, unpack("esa_packed", x, packed, inner, separable, conv2_padding));
}

void esa_packed_over(const Tensor& x, const Tensor& packed, int64_t inner, bool separable, int64_t conv2_padding) {
  forward_over(x, unpack("esa_packed", x, packed, inner, separable, conv2_padding));
}

}  // namespace
}  // namespace fastsr::cpu::esa

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("esa", TORCH_BOX(&fastsr::cpu::esa::esa));
  m.impl("esa_", TORCH_BOX(&fastsr::cpu::esa::esa_over));
  m.impl("esa_packed_", TORCH_BOX(&fastsr::cpu::esa::esa_packed_over));
  m.impl("esa_pack", TORCH_BOX(&fastsr::cpu::esa::esa_pack));
  m.impl("esa_packed", TORCH_BOX(&fastsr::cpu::esa::esa_packed));
}
