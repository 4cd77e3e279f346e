// fastsr::bsconv and its backward on the CPU: checks, packed weights, division of the work over threads.
#include <optional>
#include <vector>

#include "isa/table.h"
#include "parallel.h"
#include "strips.h"
#include "weights.h"

namespace fastsr::cpu {
namespace {

struct BsconvScratch;

constexpr int64_t kBandRows = 16, kStripWidth = 128;
constexpr int64_t kMaxRanges = 64;  // of tiles with a common partial sum; fixed, so that threads do not matter

void check_map(const char* op, const Tensor& map, const Tensor& x, int64_t channels, const char* name) {
  check_feature_map(op, map, name);
  STD_TORCH_CHECK(
      map.size(0) == x.size(0) && map.size(1) == channels && map.size(2) == x.size(2) && map.size(3) == x.size(3), op,
      ": ", name, " is [", map.size(0), ", ", map.size(1), ", ", map.size(2), ", ", map.size(3), "]; pass [", x.size(0),
      ", ", channels, ", ", x.size(2), ", ", x.size(3), "]");
  STD_TORCH_CHECK(map.scalar_type() == x.scalar_type(), op, ": ", name, " and x differ in dtype");
}

void check(const char* op, const Tensor& x, const Tensor& pw, const Tensor& dw, const Tensor& db,
           const std::optional<Tensor>& shortcut, int64_t activation) {
  check_feature_map(op, x, "x");
  check_kernel_dtype(op, x);
  STD_TORCH_CHECK(pw.dim() == 4 && pw.size(0) > 0, op, ": pw_weight has ", pw.dim(),
                  " dimensions; pass [K, C, 1, 1] with K > 0");
  check_weight(op, pw, {pw.size(0), x.size(1), 1, 1}, "pw_weight");
  check_weight(op, dw, {pw.size(0), 1, 3, 3}, "dw_weight");
  check_weight(op, db, {pw.size(0)}, "dw_bias");
  if (shortcut) check_map(op, *shortcut, x, pw.size(0), "shortcut");
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, op, ": activation is ", activation,
                  "; pass 0 (none), 1 (gelu) or 2 (leaky_relu)");
}

// The weights as the kernels want them; for the backward reversed and transposed, too.
struct Packed {
  Buffer<float> memory;
  float *pw, *taps, *bias, *taps_transposed = nullptr, *pw_transposed = nullptr;

  Packed(const Tensor& pw_weight, const Tensor& dw_weight, const Tensor& dw_bias, int64_t lanes, bool backward) {
    const int64_t k = pw_weight.size(0), c = pw_weight.size(1);
    const int64_t k_padded = (k + lanes - 1) / lanes * lanes, c_padded = (c + lanes - 1) / lanes * lanes;
    const int64_t total = c * k_padded + 10 * k_padded + (backward ? 9 * k_padded + k_padded * c_padded : 0);
    memory = make_buffer<float>(total);
    std::fill_n(memory.get(), total, 0.f);
    pw = memory.get();
    taps = pw + c * k_padded;
    bias = taps + 9 * k_padded;
    pack_transposed(pw_weight, k, c, pw, k_padded);
    const FloatParameter from(pw_weight), tap(dw_weight), b(dw_bias);
    const auto tap_at = [&](int64_t i, int64_t t) { return (i / lanes * 9 + t) * lanes + i % lanes; };
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t t = 0; t < 9; ++t) taps[tap_at(i, t)] = tap[i * 9 + t];
      bias[i] = b[i];
    }
    if (!backward) return;
    taps_transposed = bias + k_padded;
    pw_transposed = taps_transposed + 9 * k_padded;
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < c; ++j) pw_transposed[i * c_padded + j] = from[i * c + j];
      for (int64_t t = 0; t < 9; ++t) taps_transposed[tap_at(i, t)] = tap[i * 9 + 8 - t];
    }
  }
};

BsconvShape shape_of(const Tensor& x, const Tensor& pw, const Strips& strips, int64_t activation, bool has_shortcut) {
  return {x.size(1), x.size(2), x.size(3), pw.size(0), strips.strip_width, activation, has_shortcut};
}

// The 1x1 of a stage's distilled half, and where its result goes.
struct Distilling {
  Buffer<float> weight, bias;
  const Tensor& y;
};

void forward(const Tensor& x, const Tensor& pw, const Tensor& dw, const Tensor& db,
             const std::optional<Tensor>& shortcut, int64_t activation, const Tensor& y, const Distilling* distilling) {
  const Strips strips = Strips::for_forward(x, kStripWidth, kBandRows);
  if (strips.count() == 0) return;
  const BsconvKernels& k = kernels().bsconv;
  const Packed w(pw, dw, db, k.lanes, /*backward=*/false);
  BsconvShape s = shape_of(x, pw, strips, activation, shortcut.has_value());
  if (distilling) s.d = distilling->y.size(1);
  const Tensor xs = side_by_side(x), short_ = shortcut ? side_by_side(*shortcut) : xs;
  const int64_t scratch = k.forward_scratch(s);
  const auto run = [&]<class T>(void (*kernel)(const BsconvForward<T>&, const StripTile&, bool, float*)) {
    BsconvForward<T> a{s, w.pw, w.taps, w.bias, rows_of<T>(xs), rows_of<T>(short_), mutable_rows_of<T>(y)};
    if (distilling) {
      a.d_weight = distilling->weight.get();
      a.d_bias = distilling->bias.get();
      a.distilled = mutable_rows_of<T>(distilling->y);
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

Tensor bsconv(const Tensor& x, const Tensor& pw, const Tensor& dw, const Tensor& db,
              const std::optional<Tensor>& shortcut, int64_t activation) {
  check("bsconv", x, pw, dw, db, shortcut, activation);
  OutputMap y(x, {x.size(0), pw.size(0), x.size(2), x.size(3)}, output_format(x));
  forward(x, pw, dw, db, shortcut, activation, y.nhwc(), nullptr);
  return y.finish();
}

std::tuple<Tensor, Tensor> bsconv_stage(const Tensor& x, const Tensor& d_weight, const Tensor& d_bias, const Tensor& pw,
                                        const Tensor& dw, const Tensor& db) {
  constexpr const char* kStage = "bsconv_stage";
  constexpr int64_t kGelu = 1;
  check(kStage, x, pw, dw, db, x, kGelu);
  STD_TORCH_CHECK(d_weight.dim() == 4 && d_weight.size(0) > 0, kStage, ": d_weight has ", d_weight.dim(),
                  " dimensions; pass [D, C, 1, 1] with D > 0");
  const int64_t d = d_weight.size(0), lanes = kernels().bsconv.lanes, d_padded = (d + lanes - 1) / lanes * lanes;
  check_weight(kStage, d_weight, {d, x.size(1), 1, 1}, "d_weight");
  check_weight(kStage, d_bias, {d}, "d_bias");
  OutputMap distilled(x, {x.size(0), d, x.size(2), x.size(3)}, output_format(x));
  OutputMap y(x, {x.size(0), pw.size(0), x.size(2), x.size(3)}, output_format(x));
  Distilling distilling{make_buffer<float>(x.size(1) * d_padded), make_buffer<float>(d_padded), distilled.nhwc()};
  std::fill_n(distilling.weight.get(), x.size(1) * d_padded, 0.f);
  std::fill_n(distilling.bias.get(), d_padded, 0.f);
  pack_transposed(d_weight, d, x.size(1), distilling.weight.get(), d_padded);
  const FloatParameter bias(d_bias);
  for (int64_t i = 0; i < d; ++i) distilling.bias[i] = bias[i];
  forward(x, pw, dw, db, x, kGelu, y.nhwc(), &distilling);
  return {distilled.finish(), y.finish()};
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
  const BsconvShape s = shape_of(x, pw, tiles, activation, shortcut.has_value());
  OutputMap dx(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, output_format(x));
  const bool wants_shortcut = shortcut && activation != 0;
  std::optional<OutputMap> d_shortcut;
  if (wants_shortcut) d_shortcut.emplace(x, std::array{x.size(0), s.k, s.h, s.w}, output_format(x));

  const int64_t size = k.gradient_floats(s), ranges = std::min(tiles.count(), kMaxRanges);
  const Buffer<float> partial = make_buffer<float>(ranges * size);
  std::fill_n(partial.get(), ranges * size, 0.f);
  if (ranges > 0) {
    const Packed w(pw, dw, db, k.lanes, /*backward=*/true);
    const Tensor xs = side_by_side(x), gs = side_by_side(grad), short_ = shortcut ? side_by_side(*shortcut) : xs;
    const int64_t scratch = k.backward_scratch(s);
    const auto run = [&]<class T>(void (*kernel)(const BsconvBackward<T>&, const StripTile&, float*, float*)) {
      BsconvBackward<T> a{s,
                          w.pw,
                          w.taps,
                          w.bias,
                          w.taps_transposed,
                          w.pw_transposed,
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
  const int64_t k_padded = (s.k + k.lanes - 1) / k.lanes * k.lanes;
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
  m.impl("bsconv_backward", TORCH_BOX(&fastsr::cpu::bsconv_backward));
}
