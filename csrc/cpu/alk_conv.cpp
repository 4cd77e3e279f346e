// fastsr::alk_conv and fastsr::alk_stage on the CPU: checks, packed weights, division of the work over threads.
#include "../checks.h"
#include "alk_weights.h"
#include "isa/table.h"
#include "parallel.h"
#include "strips.h"

namespace fastsr::cpu {
namespace {

struct AlkScratch;

constexpr int64_t kBandRows = 16, kStripWidth = 128;
constexpr int64_t kRingFloats = 128 * 1024;  // of u: half of a 1 MB L2, or a usual strip in a smaller one

Strips strips_of(const Tensor& x, const AlkConvShape& s) {
  const int64_t fits = kRingFloats / ((4 + 2 * s.halo) * s.k) - 2 * s.halo;
  return Strips::for_forward(x, std::clamp<int64_t>(fits, 32, kStripWidth), kBandRows);
}

template <class T>
void run_forward(void (*kernel)(const AlkConvForward<T>&, const StripTile&, bool, float*), const AlkConvShape& s,
                 const Strips& strips, const AlkPacked& weights, const Tensor& x, const Tensor& y,
                 const Tensor* distilled) {
  AlkConvForward<T> a{s, weights.pointers(), rows_of<T>(x), mutable_rows_of<T>(y), {}};
  if (distilled) a.distilled = mutable_rows_of<T>(*distilled);
  const int64_t scratch = kernels().alk_conv.forward_scratch(s);
  parallel_runs(strips.count(), [&](int64_t i, bool continues) {
    kernel(a, strips.at(i), continues && strips.continues(i), thread_scratch<float, AlkScratch>(scratch));
  });
}

void forward(AlkConvShape s, const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias, const Tensor& x,
             const Tensor& y, const Tensor* distilled) {
  if (x.size(0) * s.h * s.w == 0) return;
  const AlkConvKernels& k = kernels().alk_conv;
  const Strips strips = strips_of(x, s);
  s.strip_width = strips.strip_width;
  const AlkPacked weights(w, d_weight, d_bias, k.lanes, s.c);
  const Tensor from = side_by_side(x);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return run_forward<float>(k.forward_f32, s, strips, weights, from, y, distilled);
    case ScalarType::Half:
      return run_forward<Half>(k.forward_f16, s, strips, weights, from, y, distilled);
    default:
      return run_forward<BFloat16>(k.forward_bf16, s, strips, weights, from, y, distilled);
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
  forward(alk_shape(x, w, 0, eps, activation, false), w, nullptr, nullptr, x, y.nhwc(), nullptr);
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
  forward(alk_shape(x, w, dw.size(0), eps, 1, true), w, &dw, &db, x, y.nhwc(), &d.nhwc());
  return {d.finish(), y.finish()};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("alk_conv", TORCH_BOX(&fastsr::cpu::alk_conv));
  m.impl("alk_stage", TORCH_BOX(&fastsr::cpu::alk_stage));
}
