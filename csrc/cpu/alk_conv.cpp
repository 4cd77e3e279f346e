// fastsr::alk_conv and fastsr::alk_stage on the CPU, with weights as they are or packed beforehand: checks, packing,
// division of the work over threads.
#include <optional>

#include "../checks.h"
#include "alk_weights.h"
#include "isa/table.h"
#include "packed.h"
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
                 const Strips& strips, const AlkConvWeights& weights, const Tensor& x, const Tensor& y,
                 const Tensor* distilled) {
  AlkConvForward<T> a{s, weights, rows_of<T>(x), mutable_rows_of<T>(y), {}};
  if (distilled) a.distilled = mutable_rows_of<T>(*distilled);
  const int64_t scratch = kernels().alk_conv.forward_scratch(s);
  parallel_runs(strips.count(), [&](int64_t i, bool continues) {
    kernel(a, strips.at(i), continues && strips.continues(i), thread_scratch<float, AlkScratch>(scratch));
  });
}

void forward(AlkConvShape s, const AlkConvWeights& weights, const Tensor& x, const Tensor& y, const Tensor* distilled) {
  if (x.size(0) * s.h * s.w == 0) return;
  const AlkConvKernels& k = kernels().alk_conv;
  const Strips strips = strips_of(x, s);
  s.strip_width = strips.strip_width;
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

Tensor conv(const AlkConvShape& s, const AlkConvWeights& weights, const Tensor& x) {
  OutputMap y(x, {s.n, s.k, s.h, s.w}, output_format(x));
  forward(s, weights, x, y.nhwc(), nullptr);
  return y.finish();
}

std::tuple<Tensor, Tensor> stage(const AlkConvShape& s, const AlkConvWeights& weights, const Tensor& x) {
  OutputMap d(x, {s.n, s.d, s.h, s.w}, output_format(x)), y(x, {s.n, s.c, s.h, s.w}, output_format(x));
  forward(s, weights, x, y.nhwc(), &d.nhwc());
  return {d.finish(), y.finish()};
}

Tensor alk_conv(const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
                int64_t activation) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  check_alk_weights("alk_conv", x, w);
  check_activation("alk_conv", activation);
  const AlkPacked packed(w, nullptr, nullptr, kernels().alk_conv.lanes, x.size(1));
  return conv(alk_shape(x, pw.size(0), 0, l1w.size(2), eps, activation, false), packed.pointers(), x);
}

std::tuple<Tensor, Tensor> alk_stage(const Tensor& x, const Tensor& dw, const Tensor& db, const Tensor& pw,
                                     const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
                                     const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
                                     double eps) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  check_alk_weights("alk_stage", x, w);
  check_distil("alk_stage", x.size(1), w, dw, db);
  const AlkPacked packed(w, &dw, &db, kernels().alk_conv.lanes, x.size(1));
  return stage(alk_shape(x, x.size(1), dw.size(0), l1w.size(2), eps, 1, true), packed.pointers(), x);
}

// ---- packed weights

Tensor alk_conv_pack(const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
                     const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
                     const std::optional<Tensor>& dw, const std::optional<Tensor>& db) {
  constexpr const char* kName = "alk_conv_pack";
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  STD_TORCH_CHECK(pw.dim() == 4, kName, ": pw_weight has ", pw.dim(), " dimensions; pass [K, C, 1, 1]");
  STD_TORCH_CHECK(dw.has_value() == db.has_value(), kName,
                  ": only one of d_weight and d_bias is given; pass both or neither");
  check_alk_weights(kName, pw.size(1), w);
  if (dw) check_distil(kName, pw.size(1), w, *dw, *db);
  const AlkLayout layout{pw.size(1), pw.size(0), dw ? dw->size(0) : 0, l1w.size(2), kernels().alk_conv.lanes};
  PackedWeights packed(pw, PackedFor::kAlkConv, {layout.c, layout.k, layout.d, layout.taps}, layout.size());
  pack_alk_weights(layout, w, dw ? &*dw : nullptr, db ? &*db : nullptr, packed.mutable_data());
  return packed.tensor();
}

AlkLayout layout_of(const char* op, const Tensor& x, const PackedWeights& packed, int64_t taps) {
  check_feature_map(op, x, "x");
  check_kernel_dtype(op, x);
  const AlkLayout layout{packed.fact(0), packed.fact(1), packed.fact(2), packed.fact(3), kernels().alk_conv.lanes};
  STD_TORCH_CHECK(layout.c == x.size(1), op, ": packed are weights for ", layout.c, " channels, and x has ", x.size(1));
  STD_TORCH_CHECK(layout.k > 0 && layout.d >= 0 && layout.taps % 2 == 1 && layout.taps <= AlkConvShape::kMaxTaps, op,
                  ": packed are no weights packed for this operator; pass what its _pack operator returned");
  STD_TORCH_CHECK(layout.taps == taps, op, ": packed are weights of ", layout.taps, " taps; pass ones of ", taps);
  packed.check_size(op, layout.size());
  return layout;
}

Tensor alk_conv_packed(const Tensor& x, const Tensor& packed, int64_t channels, int64_t taps, double eps,
                       int64_t activation) {
  constexpr const char* kName = "alk_conv_packed";
  const PackedWeights weights(kName, PackedFor::kAlkConv, packed);
  const AlkLayout layout = layout_of(kName, x, weights, taps);
  STD_TORCH_CHECK(layout.k == channels && layout.d == 0, kName, ": packed are weights for ", layout.k, " channels and ",
                  layout.d, " distilled ones; pass ones for ", channels, " and 0");
  check_activation(kName, activation);
  return conv(alk_shape(x, layout.k, 0, layout.taps, eps, activation, false), layout.at(weights.data()), x);
}

std::tuple<Tensor, Tensor> alk_stage_packed(const Tensor& x, const Tensor& packed, int64_t distilled, int64_t taps,
                                            double eps) {
  constexpr const char* kName = "alk_stage_packed";
  const PackedWeights weights(kName, PackedFor::kAlkConv, packed);
  const AlkLayout layout = layout_of(kName, x, weights, taps);
  STD_TORCH_CHECK(layout.k == layout.c && layout.d == distilled, kName, ": packed are weights for ", layout.k,
                  " channels and ", layout.d, " distilled ones; pass ones for ", layout.c, " and ", distilled);
  return stage(alk_shape(x, layout.k, layout.d, layout.taps, eps, 1, true), layout.at(weights.data()), x);
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("alk_conv", TORCH_BOX(&fastsr::cpu::alk_conv));
  m.impl("alk_stage", TORCH_BOX(&fastsr::cpu::alk_stage));
  m.impl("alk_conv_pack", TORCH_BOX(&fastsr::cpu::alk_conv_pack));
  m.impl("alk_conv_packed", TORCH_BOX(&fastsr::cpu::alk_conv_packed));
  m.impl("alk_stage_packed", TORCH_BOX(&fastsr::cpu::alk_stage_packed));
}
