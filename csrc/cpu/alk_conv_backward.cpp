// fastsr::alk_conv_backward and fastsr::alk_stage_backward on the CPU.
#include <array>
#include <vector>

#include "../checks.h"
#include "alk_weights.h"
#include "isa/table.h"
#include "parallel.h"
#include "strips.h"

namespace fastsr::cpu {
namespace {

struct AlkBackwardScratch;

constexpr int64_t kMaxRanges = 64;  // of tiles with a common partial sum; fixed, so that threads do not matter

template <class T>
void run(void (*kernel)(const AlkConvBackward<T>&, const StripTile&, float*, float*), const Strips& tiles,
         AlkConvBackward<T> a, const Tensor& x, const Tensor& grad, const Tensor* grad_distilled, const Tensor& dx,
         float* partial, int64_t size, int64_t ranges) {
  a.x = rows_of<T>(x);
  a.grad = rows_of<T>(grad);
  if (grad_distilled) a.grad_distilled = rows_of<T>(*grad_distilled);
  a.dx = mutable_rows_of<T>(dx);
  const int64_t scratch = kernels().alk_conv.backward_scratch(a.shape);
  parallel_bands(ranges, [&](int64_t r) {
    for (int64_t i = tiles.count() * r / ranges; i < tiles.count() * (r + 1) / ranges; ++i)
      kernel(a, tiles.at(i), thread_scratch<float, AlkBackwardScratch>(scratch), partial + r * size);
  });
}

// The sums over all pixels, taken apart into one gradient per parameter.
class ParameterGradients {
 public:
  ParameterGradients(const AlkConvShape& s, int64_t lanes) : s_(s), lanes_(lanes) {}

  void sum(const float* partial, int64_t size, int64_t ranges) {
    sums_.assign(size, 0.0);
    for (int64_t r = 0; r < ranges; ++r)
      for (int64_t i = 0; i < size; ++i) sums_[i] += partial[r * size + i];
  }

  std::array<Tensor, 9> alk(const AlkWeightTensors& w) const {
    const int64_t norm = taps_at() + k_padded() / lanes_ * group_size(), all = 2 * s_.taps + 9;
    return {gradient_of(w.pw_weight, [&](int64_t i) { return sums_[i % s_.c * row_size() + i / s_.c]; }),
            gradient_of(w.lora1_weight, [&](int64_t i) { return tap(i / s_.taps, i % s_.taps); }),
            gradient_of(w.lora1_bias, [&](int64_t i) { return tap(i, all); }),
            gradient_of(w.lora2_weight, [&](int64_t i) { return tap(i / s_.taps, s_.taps + i % s_.taps); }),
            gradient_of(w.lora2_bias, [&](int64_t i) { return tap(i, all + 1); }),
            gradient_of(w.small_weight, [&](int64_t i) { return tap(i / 9, 2 * s_.taps + i % 9); }),
            gradient_of(w.small_bias, [&](int64_t i) { return tap(i, all + 2); }),
            gradient_of(w.norm_weight, [&](int64_t i) { return sums_[norm + i]; }),
            gradient_of(w.norm_bias, [&](int64_t i) { return sums_[norm + k_padded() + i]; })};
  }
  Tensor d_weight(const Tensor& like) const {
    return gradient_of(like, [&](int64_t i) { return sums_[i % s_.c * row_size() + k_padded() + i / s_.c]; });
  }
  Tensor d_bias(const Tensor& like) const {
    const int64_t at = taps_at() + k_padded() / lanes_ * group_size() + 2 * k_padded();
    return gradient_of(like, [&](int64_t i) { return sums_[at + i]; });
  }

 private:
  int64_t padded(int64_t n) const { return (n + lanes_ - 1) / lanes_ * lanes_; }
  int64_t k_padded() const { return padded(s_.k); }
  int64_t row_size() const { return k_padded() + padded(s_.d); }
  int64_t taps_at() const { return s_.c * row_size(); }
  int64_t group_size() const { return (2 * s_.taps + 9 + 3) * lanes_; }
  double tap(int64_t channel, int64_t t) const {
    return sums_[taps_at() + channel / lanes_ * group_size() + t * lanes_ + channel % lanes_];
  }
  AlkConvShape s_;
  int64_t lanes_;
  std::vector<double> sums_;
};

struct Results {
  Tensor dx;
  ParameterGradients parameters;
};

Results backward(const char* op, const Tensor& grad, const Tensor* grad_distilled, const Tensor& x,
                 const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias, double eps,
                 int64_t activation) {
  const bool stage = grad_distilled != nullptr;
  check_alk_gradient(op, grad, x, w.pw_weight.size(0), stage ? "grad_refined" : "grad");
  if (stage) check_alk_gradient(op, *grad_distilled, x, d_weight->size(0), "grad_distilled");
  check_activation(op, activation);

  const AlkConvKernels& k = kernels().alk_conv;
  AlkConvShape s =
      alk_shape(x, w.pw_weight.size(0), stage ? d_weight->size(0) : 0, w.lora1_weight.size(2), eps, activation, stage);
  OutputMap dx(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, output_format(x));
  ParameterGradients parameters(s, k.lanes);
  const int64_t size = k.gradient_floats(s);
  int64_t ranges = 0;
  Buffer<float> partial;
  const Strips tiles = Strips::for_backward(x);
  if (tiles.count() > 0) {
    s.strip_width = tiles.strip_width;
    ranges = std::min(tiles.count(), kMaxRanges);
    partial = make_buffer<float>(ranges * size);
    std::fill_n(partial.get(), ranges * size, 0.f);
    const AlkPacked packed(w, d_weight, d_bias, k.lanes, s.c);
    const AlkTransposed transposed(w, d_weight, k.lanes, s.c);
    const Tensor xs = side_by_side(x), gs = side_by_side(grad);
    const Tensor ds = stage ? side_by_side(*grad_distilled) : gs;
    const auto launch = [&]<class T>(void (*kernel)(const AlkConvBackward<T>&, const StripTile&, float*, float*)) {
      run<T>(kernel, tiles,
             {s, packed.pointers(), transposed.taps(), transposed.no_bias(), transposed.products(), {}, {}, {}, {}}, xs,
             gs, stage ? &ds : nullptr, dx.nhwc(), partial.get(), size, ranges);
    };
    switch (x.scalar_type()) {
      case ScalarType::Float:
        launch(k.backward_f32);
        break;
      case ScalarType::Half:
        launch(k.backward_f16);
        break;
      default:
        launch(k.backward_bf16);
    }
  }
  parameters.sum(partial.get(), size, ranges);
  return {dx.finish(), parameters};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> alk_conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
    const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
    int64_t activation) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  check_alk_weights("alk_conv_backward", x, w);
  const Results r = backward("alk_conv_backward", grad, nullptr, x, w, nullptr, nullptr, eps, activation);
  const std::array<Tensor, 9> p = r.parameters.alk(w);
  return {r.dx, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
alk_stage_backward(const Tensor& grad_distilled, const Tensor& grad_refined, const Tensor& x, const Tensor& dw,
                   const Tensor& db, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                   const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
                   double eps) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  check_alk_weights("alk_stage_backward", x, w);
  check_distil("alk_stage_backward", x.size(1), w, dw, db);
  const Results r = backward("alk_stage_backward", grad_refined, &grad_distilled, x, w, &dw, &db, eps, 1);
  const std::array<Tensor, 9> p = r.parameters.alk(w);
  return {r.dx, r.parameters.d_weight(dw), r.parameters.d_bias(db), p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7],
          p[8]};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("alk_conv_backward", TORCH_BOX(&fastsr::cpu::alk_conv_backward));
  m.impl("alk_stage_backward", TORCH_BOX(&fastsr::cpu::alk_stage_backward));
}
