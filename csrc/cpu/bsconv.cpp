// fastsr::bsconv and its backward on the CPU: checks, packed weights, division of the work over threads.
#include <optional>
#include <vector>

#include "bsconv_weights.h"
#include "parallel.h"
#include "strips.h"

namespace fastsr::cpu {
namespace {

struct BsconvScratch;

constexpr int64_t kBandRows = 16, kStripWidth = 128;
constexpr int64_t kGelu = 1;
constexpr int64_t kMaxRanges = 64;  // of tiles with a common partial sum; fixed, so that threads do not matter

void check_map(const char* op, const Tensor& map, const Tensor& x, int64_t channels, const char* name) {
  check_feature_map(op, map, name);
  STD_TORCH_CHECK(
      map.size(0) == x.size(0) && map.size(1) == channels && map.size(2) == x.size(2) && map.size(3) == x.size(3), op,
      ": ", name, " is [", map.size(0), ", ", map.size(1), ", ", map.size(2), ", ", map.size(3), "]; pass [", x.size(0),
      ", ", channels, ", ", x.size(2), ", ", x.size(3), "]");
  STD_TORCH_CHECK(map.scalar_type() == x.scalar_type(), op, ": ", name, " and x differ in dtype");
}

// x, the shortcut of an output with k channels, and the activation.
void check_maps(const char* op, const Tensor& x, int64_t k, const std::optional<Tensor>& shortcut, int64_t activation) {
  check_feature_map(op, x, "x");
  check_kernel_dtype(op, x);
  if (shortcut) check_map(op, *shortcut, x, k, "shortcut");
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, op, ": activation is ", activation,
                  "; pass 0 (none), 1 (gelu) or 2 (leaky_relu)");
}

void check(const char* op, const Tensor& x, const Tensor& pw, const Tensor& dw, const Tensor& db,
           const std::optional<Tensor>& shortcut, int64_t activation) {
  check_feature_map(op, x, "x");
  STD_TORCH_CHECK(pw.dim() == 4 && pw.size(0) > 0, op, ": pw_weight has ", pw.dim(),
                  " dimensions; pass [K, C, 1, 1] with K > 0");
  check_weight(op, pw, {pw.size(0), x.size(1), 1, 1}, "pw_weight");
  check_weight(op, dw, {pw.size(0), 1, 3, 3}, "dw_weight");
  check_weight(op, db, {pw.size(0)}, "dw_bias");
  check_maps(op, x, pw.size(0), shortcut, activation);
}

// Writes the weights to zeroed memory.
void pack(const BsconvLayout& l, const Tensor& pw, const Tensor& dw, const Tensor& db,
          const std::optional<Tensor>& d_weight, const std::optional<Tensor>& d_bias, float* to) {
  pack_transposed(pw, l.k, l.c, to, l.padded(l.k));
  const FloatParameter tap(dw), b(db);
  for (int64_t i = 0; i < l.k; ++i) {
    for (int64_t t = 0; t < 9; ++t) to[l.taps() + l.tap(i, t)] = tap[i * 9 + t];
    to[l.bias() + i] = b[i];
  }
  if (l.d == 0) return;
  pack_transposed(*d_weight, l.d, l.c, to + l.d_weight(), l.padded(l.d));
  const FloatParameter bias(*d_bias);
  for (int64_t i = 0; i < l.d; ++i) to[l.d_bias() + i] = bias[i];
}

Buffer<float> zeros(int64_t size) {
  Buffer<float> memory = make_buffer<float>(size);
  std::fill_n(memory.get(), size, 0.f);
  return memory;
}

// For the backward: the taps reversed, and pw as it is, [K][C].
struct Transposed {
  Buffer<float> memory;
  float *taps, *pw;

  Transposed(const BsconvLayout& l, const Tensor& pw_weight, const Tensor& dw_weight)
      : memory(zeros(9 * l.padded(l.k) + l.padded(l.k) * l.padded(l.c))),
        taps(memory.get()),
        pw(taps + 9 * l.padded(l.k)) {
    const FloatParameter from(pw_weight), tap(dw_weight);
    for (int64_t i = 0; i < l.k; ++i) {
      for (int64_t j = 0; j < l.c; ++j) pw[i * l.padded(l.c) + j] = from[i * l.c + j];
      for (int64_t t = 0; t < 9; ++t) taps[l.tap(i, t)] = tap[i * 9 + 8 - t];
    }
  }
};

BsconvShape shape_of(const Tensor& x, int64_t k, const Strips& strips, int64_t activation, bool has_shortcut) {
  return {x.size(1), x.size(2), x.size(3), k, strips.strip_width, activation, has_shortcut};
}

// weights: as `l` says. distilled: where a stage's other half goes.
void forward(const Tensor& x, const BsconvLayout& l, const float* weights, const std::optional<Tensor>& shortcut,
             int64_t activation, const Tensor& y, const std::optional<Tensor>& distilled = std::nullopt) {
  const Strips strips = Strips::for_forward(x, kStripWidth, kBandRows);
  if (strips.count() == 0) return;
  const BsconvKernels& k = kernels().bsconv;
  BsconvShape s = shape_of(x, l.k, strips, activation, shortcut.has_value());
  s.d = l.d;
  const Tensor xs = side_by_side(x), short_ = shortcut ? side_by_side(*shortcut) : xs;
  const int64_t scratch = k.forward_scratch(s);
  const auto run = [&]<class T>(void (*kernel)(const BsconvForward<T>&, const StripTile&, bool, float*)) {
    BsconvForward<T> a{
        s, weights, weights + l.taps(), weights + l.bias(), rows_of<T>(xs), rows_of<T>(short_), mutable_rows_of<T>(y)};
    if (distilled) {
      a.d_weight = weights + l.d_weight();
      a.d_bias = weights + l.d_bias();
      a.distilled = mutable_rows_of<T>(*distilled);
    }
    parallel_runs(strips.count(), [&](int64_t i, bool continues) {
      kernel(a, strips.at(i), continues && strips.continues(i), thread_scratch<float, BsconvScratch>(scratch));
    });
  };
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return run(k.forward_f32);
    case ScalarType::Half:
      return run(k.forward_f16);
    default:
      return run(k.forward_bf16);
  }
}

Tensor bsconv_as(const Tensor& x, const BsconvLayout& l, const float* weights, const std::optional<Tensor>& shortcut,
                 int64_t activation) {
  OutputMap y(x, {x.size(0), l.k, x.size(2), x.size(3)}, output_format(x));
  forward(x, l, weights, shortcut, activation, y.nhwc());
  return y.finish();
}

std::tuple<Tensor, Tensor> stage_as(const Tensor& x, const BsconvLayout& l, const float* weights) {
  OutputMap distilled(x, {x.size(0), l.d, x.size(2), x.size(3)}, output_format(x));
  OutputMap y(x, {x.size(0), l.k, x.size(2), x.size(3)}, output_format(x));
  forward(x, l, weights, x, kGelu, y.nhwc(), distilled.nhwc());
  return {distilled.finish(), y.finish()};
}

BsconvLayout layout_of(const Tensor& pw, int64_t d) { return {pw.size(1), pw.size(0), d, kernels().bsconv.lanes}; }

Tensor bsconv(const Tensor& x, const Tensor& pw, const Tensor& dw, const Tensor& db,
              const std::optional<Tensor>& shortcut, int64_t activation) {
  check("bsconv", x, pw, dw, db, shortcut, activation);
  const BsconvLayout l = layout_of(pw, 0);
  const Buffer<float> weights = zeros(l.size());
  pack(l, pw, dw, db, std::nullopt, std::nullopt, weights.get());
  return bsconv_as(x, l, weights.get(), shortcut, activation);
}

void check_distilling(const char* op, const Tensor& d_weight, const Tensor& d_bias, int64_t channels) {
  STD_TORCH_CHECK(d_weight.dim() == 4 && d_weight.size(0) > 0, op, ": d_weight has ", d_weight.dim(),
                  " dimensions; pass [D, C, 1, 1] with D > 0");
  check_weight(op, d_weight, {d_weight.size(0), channels, 1, 1}, "d_weight");
  check_weight(op, d_bias, {d_weight.size(0)}, "d_bias");
}

std::tuple<Tensor, Tensor> bsconv_stage(const Tensor& x, const Tensor& d_weight, const Tensor& d_bias, const Tensor& pw,
                                        const Tensor& dw, const Tensor& db) {
  constexpr const char* kStage = "bsconv_stage";
  check(kStage, x, pw, dw, db, x, kGelu);
  check_distilling(kStage, d_weight, d_bias, x.size(1));
  const BsconvLayout l = layout_of(pw, d_weight.size(0));
  const Buffer<float> weights = zeros(l.size());
  pack(l, pw, dw, db, d_weight, d_bias, weights.get());
  return stage_as(x, l, weights.get());
}

// ---- weights packed once

}  // namespace

Tensor bsconv_pack(const Tensor& pw, const Tensor& dw, const Tensor& db, const std::optional<Tensor>& d_weight,
                   const std::optional<Tensor>& d_bias) {
  constexpr const char* kPack = "bsconv_pack";
  STD_TORCH_CHECK(pw.dim() == 4 && pw.size(0) > 0, kPack, ": pw_weight has ", pw.dim(),
                  " dimensions; pass [K, C, 1, 1] with K > 0");
  check_weight(kPack, pw, {pw.size(0), pw.size(1), 1, 1}, "pw_weight");
  check_weight(kPack, dw, {pw.size(0), 1, 3, 3}, "dw_weight");
  check_weight(kPack, db, {pw.size(0)}, "dw_bias");
  STD_TORCH_CHECK(d_weight.has_value() == d_bias.has_value(), kPack,
                  ": only one of d_weight and d_bias is given; pass both or neither");
  if (d_weight) check_distilling(kPack, *d_weight, *d_bias, pw.size(1));
  const BsconvLayout l = layout_of(pw, d_weight ? d_weight->size(0) : 0);
  PackedWeights packed(pw, PackedFor::kBsconv, {l.c, l.k, l.d}, l.size());
  pack(l, pw, dw, db, d_weight, d_bias, packed.mutable_data());
  return packed.tensor();
}

namespace {

BsconvLayout layout_of(const char* op, const PackedWeights& packed, const Tensor& x, int64_t k, int64_t d) {
  const BsconvLayout l = layout_of(op, packed);
  STD_TORCH_CHECK(l.c == x.size(1) && l.k == k && l.d == d, op, ": packed are weights from ", l.c, " to ", l.k,
                  " channels with ", l.d, " distilled; pass those from ", x.size(1), " to ", k, " with ", d);
  return l;
}

Tensor bsconv_packed(const Tensor& x, const Tensor& packed, int64_t channels, const std::optional<Tensor>& shortcut,
                     int64_t activation) {
  constexpr const char* kName = "bsconv_packed";
  const PackedWeights weights(kName, PackedFor::kBsconv, packed);
  check_maps(kName, x, channels, shortcut, activation);
  return bsconv_as(x, layout_of(kName, weights, x, channels, 0), weights.data(), shortcut, activation);
}

std::tuple<Tensor, Tensor> bsconv_stage_packed(const Tensor& x, const Tensor& packed, int64_t distilled) {
  constexpr const char* kName = "bsconv_stage_packed";
  const PackedWeights weights(kName, PackedFor::kBsconv, packed);
  check_maps(kName, x, x.dim() == 4 ? x.size(1) : 0, x, kGelu);
  STD_TORCH_CHECK(distilled > 0, kName, ": distilled is ", distilled, "; pass a positive number of channels");
  return stage_as(x, layout_of(kName, weights, x, x.size(1), distilled), weights.data());
}

// Gradients of x, pw_weight, dw_weight, dw_bias and shortcut. Without activation the last is the gradient itself, and
// without a shortcut there is none: then it is returned empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bsconv_backward(const Tensor& grad, const Tensor& x,
                                                                   const Tensor& pw, const Tensor& dw, const Tensor& db,
                                                                   const std::optional<Tensor>& shortcut,
                                                                   int64_t activation) {
  check("bsconv_backward", x, pw, dw, db, shortcut, activation);
  check_map("bsconv_backward", grad, x, pw.size(0), "grad");
  const Strips tiles = Strips::for_backward(x);
  const BsconvKernels& k = kernels().bsconv;
  const BsconvShape s = shape_of(x, pw.size(0), tiles, activation, shortcut.has_value());
  const BsconvLayout l = layout_of(pw, 0);
  OutputMap dx(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, output_format(x));
  const bool wants_shortcut = shortcut && activation != 0;
  std::optional<OutputMap> d_shortcut;
  if (wants_shortcut) d_shortcut.emplace(x, std::array{x.size(0), s.k, s.h, s.w}, output_format(x));

  const int64_t size = k.gradient_floats(s), ranges = std::min(tiles.count(), kMaxRanges);
  const Buffer<float> partial = make_buffer<float>(ranges * size);
  std::fill_n(partial.get(), ranges * size, 0.f);
  if (ranges > 0) {
    const Buffer<float> weights = zeros(l.size());
    pack(l, pw, dw, db, std::nullopt, std::nullopt, weights.get());
    const Transposed transposed(l, pw, dw);
    const Tensor xs = side_by_side(x), gs = side_by_side(grad), short_ = shortcut ? side_by_side(*shortcut) : xs;
    const int64_t scratch = k.backward_scratch(s);
    const auto run = [&]<class T>(void (*kernel)(const BsconvBackward<T>&, const StripTile&, float*, float*)) {
      BsconvBackward<T> a{s,
                          weights.get(),
                          weights.get() + l.taps(),
                          weights.get() + l.bias(),
                          transposed.taps,
                          transposed.pw,
                          rows_of<T>(xs),
                          rows_of<T>(short_),
                          rows_of<T>(gs),
                          mutable_rows_of<T>(dx.nhwc()),
                          {}};
      if (wants_shortcut) a.d_shortcut = mutable_rows_of<T>(d_shortcut->nhwc());
      parallel_bands(ranges, [&](int64_t r) {
        for (int64_t i = tiles.count() * r / ranges; i < tiles.count() * (r + 1) / ranges; ++i)
          kernel(a, tiles.at(i), thread_scratch<float, BsconvScratch>(scratch), partial.get() + r * size);
      });
    };
    switch (x.scalar_type()) {
      case ScalarType::Float:
        run(k.backward_f32);
        break;
      case ScalarType::Half:
        run(k.backward_f16);
        break;
      default:
        run(k.backward_bf16);
    }
  }
  std::vector<double> sums(size, 0.0);
  for (int64_t r = 0; r < ranges; ++r)
    for (int64_t i = 0; i < size; ++i) sums[i] += partial[r * size + i];
  const int64_t k_padded = l.padded(l.k);
  const auto tap = [&](int64_t channel, int64_t t) {
    return sums[s.c * k_padded + (channel / k.lanes * 10 + t) * k.lanes + channel % k.lanes];
  };
  return {dx.finish(), gradient_of(pw, [&](int64_t i) { return sums[i % s.c * k_padded + i / s.c]; }),
          gradient_of(dw, [&](int64_t i) { return tap(i / 9, i % 9); }),
          gradient_of(db, [&](int64_t i) { return tap(i, 9); }),
          wants_shortcut ? d_shortcut->finish() : torch::stable::new_empty(x, {0})};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("bsconv", TORCH_BOX(&fastsr::cpu::bsconv));
  m.impl("bsconv_stage", TORCH_BOX(&fastsr::cpu::bsconv_stage));
  m.impl("bsconv_pack", TORCH_BOX(&fastsr::cpu::bsconv_pack));
  m.impl("bsconv_packed", TORCH_BOX(&fastsr::cpu::bsconv_packed));
  m.impl("bsconv_stage_packed", TORCH_BOX(&fastsr::cpu::bsconv_stage_packed));
  m.impl("bsconv_backward", TORCH_BOX(&fastsr::cpu::bsconv_backward));
}
