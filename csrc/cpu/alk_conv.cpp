// fastsr::alk_conv and fastsr::alk_stage on the CPU: checks, packed weights, division of the work over threads.
#include <array>
#include <cmath>

#include "../checks.h"
#include "alk_weights.h"
#include "isa/table.h"
#include "layout.h"
#include "parallel.h"

namespace fastsr::cpu {
namespace {

struct AlkScratch;

constexpr int64_t kBandRows = 16, kStripWidth = 128;
constexpr int64_t kRingFloats = 128 * 1024;  // of u: half of a 1 MB L2, or a usual strip in a smaller one

// The shape with strips of equal width, narrow enough for the ring of u to fit L2.
AlkConvShape shape_of(const Tensor& x, const AlkWeightTensors& w, int64_t d, double eps, int64_t activation,
                      bool residual) {
  AlkConvShape s = alk_shape(x, w, d, eps, activation, residual);
  const int64_t fits = kRingFloats / ((4 + 2 * s.halo) * std::max<int64_t>(s.k, 1)) - 2 * s.halo;
  const int64_t widest = std::clamp<int64_t>(fits, 32, kStripWidth);
  const int64_t strips = std::max<int64_t>(1, (s.w + widest - 1) / widest);
  s.strip_width = ((s.w + strips - 1) / strips + 15) / 16 * 16;
  return s;
}

template <class T>
FeatureRows<const T> rows_of(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}
template <class T>
FeatureRows<T> mutable_rows_of(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}

template <class T>
void run_forward(void (*kernel)(const AlkConvForward<T>&, const AlkConvTile&, bool, float*), const AlkConvShape& s,
                 const AlkPacked& weights, const Tensor& x, const Tensor& y, const Tensor* distilled) {
  AlkConvForward<T> a{s, weights.pointers(), rows_of<T>(x), mutable_rows_of<T>(y), {}};
  if (distilled) a.distilled = mutable_rows_of<T>(*distilled);
  const int64_t bands = (s.h + kBandRows - 1) / kBandRows, strips = (s.w + s.strip_width - 1) / s.strip_width;
  const int64_t scratch = kernels().alk_conv.forward_scratch(s);
  parallel_runs(s.n * strips * bands, [&](int64_t i, bool continues) {
    const int64_t band = i % bands, strip = i / bands % strips, n = i / bands / strips;
    const AlkConvTile tile{n, band * kBandRows, std::min((band + 1) * kBandRows, s.h), strip * s.strip_width,
                           std::min((strip + 1) * s.strip_width, s.w)};
    kernel(a, tile, continues && band > 0, thread_scratch<float, AlkScratch>(scratch));
  });
}

void forward(const AlkConvShape& s, const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias,
             const Tensor& x, const Tensor& y, const Tensor* distilled) {
  if (x.size(0) * s.h * s.w == 0) return;
  const AlkConvKernels& k = kernels().alk_conv;
  const AlkPacked weights(w, d_weight, d_bias, k.lanes, s.c);
  const Tensor from = side_by_side(x);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return run_forward<float>(k.forward_f32, s, weights, from, y, distilled);
    case ScalarType::Half:
      return run_forward<Half>(k.forward_f16, s, weights, from, y, distilled);
    default:
      return run_forward<BFloat16>(k.forward_bf16, s, weights, from, y, distilled);
  }
}

void check_activation(const char* op, int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, op, ": activation is ", activation,
                  "; pass 0 (none), 1 (gelu) or 2 (leaky_relu)");
}

Tensor alk_conv(const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
                int64_t activation) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  check_alk_weights("alk_conv", x, w);
  check_activation("alk_conv", activation);
  OutputMap y(x, {x.size(0), pw.size(0), x.size(2), x.size(3)}, output_format(x));
  forward(shape_of(x, w, 0, eps, activation, false), w, nullptr, nullptr, x, y.nhwc(), nullptr);
  return y.finish();
}

std::tuple<Tensor, Tensor> alk_stage(const Tensor& x, const Tensor& dw, const Tensor& db, const Tensor& pw,
                                     const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
                                     const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
                                     double eps) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  check_alk_weights("alk_stage", x, w);
  check_distil("alk_stage", x, w, dw, db);
  const MemoryFormat format = output_format(x);
  OutputMap d(x, {x.size(0), dw.size(0), x.size(2), x.size(3)}, format);
  OutputMap y(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, format);
  forward(shape_of(x, w, dw.size(0), eps, 1, true), w, &dw, &db, x, y.nhwc(), &d.nhwc());
  return {d.finish(), y.finish()};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("alk_conv", TORCH_BOX(&fastsr::cpu::alk_conv));
  m.impl("alk_stage", TORCH_BOX(&fastsr::cpu::alk_stage));
}
