// fastsr::esa on the CPU: y = x * sigmoid(conv4(enlarged side path + conv_f(conv1(x)))).
//
// Two passes over x. The first computes conv1 (and the strided convolution's pointwise product) row by row; the side
// path then works on maps of a quarter of the pixels and less; the second pass enlarges it, strip by strip of a row,
// and gates x while the strip is in the first-level cache.
#include "esa_path.h"

namespace fastsr::cpu::esa {
namespace {

constexpr int64_t kStrip = 48;

Tensor forward(const Tensor& x, const std::vector<Tensor>& weights, int64_t conv2_padding) {
  const Weights w = pack(x, weights, conv2_padding, false);
  const int64_t width = x.size(3), columns = padded_channels(w.c);
  MapWriter y(kOp, x, {x.size(0), w.c, x.size(2), width});
  if (x.numel() == 0) return y.finish();
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
      kernels().rows.gemm({&segment, 1, pixels, w.conv4.get(), columns, w.conv4_bias.get(), 0, gate, columns, columns});
      const FloatRow row = x_map.row(n, h, at, pixels, in);
      int64_t stride;
      float* out = y.target(n, h, at, spare, stride);
      kernels().esa.gate({row.data, row.stride, gate, columns, out, stride, pixels, w.c});
      y.write(n, h, at, pixels, out, stride);
    });
  });
  return y.finish();
}

}  // namespace
}  // namespace fastsr::cpu::esa

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) { m.impl("esa", TORCH_BOX(&fastsr::cpu::esa::forward)); }
