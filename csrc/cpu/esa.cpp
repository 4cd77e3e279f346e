// fastsr::esa on the CPU: y = x * sigmoid(conv4(enlarged side path + conv_f(conv1(x)))).
//
// Two passes over x. The first computes conv1 (and the strided convolution's pointwise product) row by row; the side
// path then works on maps of a quarter of the pixels and less; the second pass enlarges it, strip by strip of a row,
// and gates x while the strip is in the first-level cache. Weights packed beforehand are folded (esa_path.h).
#include "esa_path.h"
#include "packed.h"

namespace fastsr::cpu::esa {
namespace {

constexpr int64_t kStrip = 48;

void forward(const Tensor& x, const Weights& w, MapWriter& y) {
  const int64_t width = x.size(3), columns = padded_channels(w.c);
  if (x.numel() == 0) return;
  const MapReader x_map(kOp, x);
  const Path path = run_path(x_map, x, w, false);
  const Enlargement to = enlargement(path.low(), x.size(2), width);
  struct Scratch;
  over_rows(path.reduced(), [&](int64_t n, int64_t h) {
    Sections sections(thread_scratch<float, Scratch>(path.low().row_stride() + kStrip * (w.f + 3 * columns)));
    float *blended = sections.take(path.low().row_stride()), *z = sections.take(kStrip * w.f);
    float *gate = sections.take(kStrip * columns), *in = sections.take(kStrip * columns);
    float* spare = sections.take(kStrip * columns);
    blend_rows(path, to, n, h, blended);
    over_strips(width, kStrip, [&](int64_t at, int64_t pixels) {
      gate_input(w, path, to, blended, n, h, at, pixels, z);
      const RowSegment segment{z, w.f, w.f};
      kernels().rows.gemm({&segment, 1, pixels, w.conv4, columns, w.conv4_bias, 0, gate, columns, columns});
      const FloatRow row = x_map.row(n, h, at, pixels, in);
      int64_t stride;
      float* out = y.target(n, h, at, spare, stride);
      kernels().esa.gate({row.data, row.stride, gate, columns, out, stride, pixels, w.c});
      y.write(n, h, at, pixels, out, stride);
    });
  });
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
  check_size(x, conv2_padding);
  return forward(x, pack(x.size(1), weights, conv2_padding, false));
}

void esa_over(const Tensor& x, const std::vector<Tensor>& weights, int64_t conv2_padding) {
  check_size(x, conv2_padding);
  forward_over(x, pack(x.size(1), weights, conv2_padding, false));
}

Tensor esa_pack(const std::vector<Tensor>& weights) {
  STD_TORCH_CHECK(!weights.empty() && weights[0].dim() == 4, "esa_pack: the first weight is not [f, C, 1, 1]");
  Weights w = pack(weights[0].size(1), weights, 0, false);
  fold(w);
  int64_t size = 0;
  over_parts(w, [&](const float*, int64_t count) { size += count; });
  PackedWeights packed(weights[0], PackedFor::kEsa, {w.c, w.inner, w.separable}, size);
  float* to = packed.mutable_data();
  over_parts(w, [&](const float* from, int64_t count) { to = std::copy_n(from, count, to); });
  return packed.tensor();
}

// Weights for x that point into `packed`.
Weights unpack(const Tensor& x, const PackedWeights& weights, int64_t conv2_padding) {
  constexpr const char* kName = "esa_packed";
  check_size(x, conv2_padding);
  STD_TORCH_CHECK(weights.fact(0) == x.size(1), kName, ": packed are weights for ", weights.fact(0),
                  " channels, and x has ", x.size(1));
  STD_TORCH_CHECK(weights.fact(1) > 0 && (weights.fact(2) == 0 || weights.fact(2) == 1), kName,
                  ": packed are no weights packed for this operator; pass what its _pack operator returned");
  Weights w = outline(weights.fact(0), weights.fact(1), weights.fact(2) == 1, conv2_padding);
  w.folded = w.separable;
  int64_t size = 0;
  over_parts(w, [&](const float*& part, int64_t count) {
    part = weights.data() + size;
    size += count;
  });
  weights.check_size(kName, size);
  return w;
}

Tensor esa_packed(const Tensor& x, const Tensor& packed, int64_t conv2_padding) {
  return forward(x, unpack(x, PackedWeights("esa_packed", PackedFor::kEsa, packed), conv2_padding));
}

void esa_packed_over(const Tensor& x, const Tensor& packed, int64_t conv2_padding) {
  forward_over(x, unpack(x, PackedWeights("esa_packed", PackedFor::kEsa, packed), conv2_padding));
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
