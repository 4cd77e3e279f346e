// fastsr::conv_mix and its backward on the CPU: checks, dtypes, packed weights, division of the work.
#include "conv_mix.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "conv_mix";
constexpr int64_t kPixelsPerRange = 1024, kMaxRanges = 64;  // of the parameters' gradients

// [K, C, 1, 1] (or [C, 1, 3, 3] seen as [C, 9]) as [C][K], rows padded with zeros.
Buffer<float> transposed_matrix(const Tensor& weight, int64_t rows, int64_t columns) {
  const Tensor w = dense(weight);
  const float* from = float_data(w);
  Buffer<float> to = make_buffer<float>(columns * padded_channels(rows));
  std::fill_n(to.get(), columns * padded_channels(rows), 0.f);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[c * padded_channels(rows) + r] = from[r * columns + c];
  return to;
}

// [rows][columns] with rows padded with zeros.
Buffer<float> padded_matrix(const Tensor& weight, int64_t rows, int64_t columns) {
  const Tensor w = dense(weight);
  const int64_t step = padded_channels(columns);
  Buffer<float> to = make_buffer<float>(rows * step);
  std::fill_n(to.get(), rows * step, 0.f);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(float_data(w) + r * columns, columns, to.get() + r * step);
  return to;
}

void check_weight(const Tensor& w, int64_t rows, int64_t columns, int64_t extent, const char* name) {
  STD_TORCH_CHECK(
      w.dim() == 4 && w.size(0) == rows && w.size(1) == columns && w.size(2) == extent && w.size(3) == extent, kOp,
      ": ", name, " must be [", rows, ", ", columns, ", ", extent, ", ", extent, "]");
}

// The sums of all ranges, added in order, as a parameter's gradient: element (r, c) of `like` seen as [rows][columns]
// lies at sums[c * padded(rows) + r].
Tensor parameter_gradient(const Tensor& like, const float* sums, int64_t ranges, int64_t step, int64_t rows,
                          int64_t columns) {
  Tensor gradient = torch::stable::new_empty(like, like.sizes(), ScalarType::Float);
  float* to = static_cast<float*>(gradient.mutable_data_ptr());
  std::vector<float> total(rows);
  for (int64_t c = 0; c < columns; ++c) {
    sum_ranges(sums + c * padded_channels(rows), ranges, step, rows, total.data());
    for (int64_t r = 0; r < rows; ++r) to[r * columns + c] = total[r];
  }
  return in_dtype(gradient, like.scalar_type());
}

}  // namespace

void check_conv_mix(const Tensor& x, const Tensor& shortcut, const MixParameters& p) {
  check_feature_map(kOp, x, "x");
  check_same_shape(kOp, x, shortcut, "shortcut");
  STD_TORCH_CHECK(shortcut.scalar_type() == x.scalar_type(), kOp, ": shortcut and x differ in dtype");
  const int64_t c = x.size(1);
  STD_TORCH_CHECK(p.dw_weight.has_value() == p.dw_bias.has_value(), kOp,
                  ": only one of dw_weight and dw_bias is None; pass both or neither");
  if (p.dw_weight) {
    check_weight(*p.dw_weight, c, 1, 3, "dw_weight");
    check_vector(kOp, *p.dw_bias, c, "dw_bias");
  }
  check_weight(p.pw_weight, c, c, 1, "pw_weight");
  check_vector(kOp, p.pw_bias, c, "pw_bias");
  STD_TORCH_CHECK(p.c5_weight.dim() == 4, kOp, ": c5_weight must be [K, ", c, ", 1, 1]");
  check_weight(p.c5_weight, p.c5_weight.size(0), c, 1, "c5_weight");
  check_vector(kOp, p.c5_bias, p.c5_weight.size(0), "c5_bias");
  STD_TORCH_CHECK(p.activation >= 0 && p.activation <= 2, kOp, ": activation has code ", p.activation,
                  "; pass 0 (none), 1 (gelu) or 2 (leaky_relu)");
}

PackedMix::PackedMix(const MixParameters& p)
    : dw(p.dw_weight ? transposed_matrix(*p.dw_weight, p.dw_weight->size(0), 9) : nullptr),
      dw_bias(p.dw_bias ? padded_vector(*p.dw_bias) : nullptr),
      pw(transposed_matrix(p.pw_weight, p.pw_weight.size(0), p.pw_weight.size(1))),
      pw_bias(padded_vector(p.pw_bias)),
      c5(transposed_matrix(p.c5_weight, p.c5_weight.size(0), p.c5_weight.size(1))),
      c5_bias(padded_vector(p.c5_bias)) {}

MixGradients conv_mix_gradients(const Tensor& grad, const Tensor& x, const Tensor& shortcut, const MixParameters& p) {
  check_conv_mix(x, shortcut, p);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = p.c5_weight.size(0);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == n && grad.size(1) == k && grad.size(2) == h && grad.size(3) == w &&
                      grad.scalar_type() == x.scalar_type(),
                  kOp, ": grad must have the shape and dtype of the result, [", n, ", ", k, ", ", h, ", ", w, "]");
  const MemoryFormat format = output_format(x);
  OutputMap dx(x, {n, c, h, w}, format), d_shortcut(x, {n, c, h, w}, format);
  const PackedMix packed(p);
  const Buffer<float> pw_rows = padded_matrix(p.pw_weight, c, c), c5_rows = padded_matrix(p.c5_weight, k, c);
  const ConvMixSums at = kernels().conv_mix.sums(c, k);
  const int64_t rows = n * h, pixels = rows * w, map = p.dw_weight ? pixels * padded_channels(c) : 0;
  const Buffer<float> dq = make_buffer<float>(map), dd = make_buffer<float>(map);
  const int64_t ranges =
      std::clamp<int64_t>(pixels / kPixelsPerRange, 1, std::max<int64_t>(1, std::min(rows, kMaxRanges)));
  const Buffer<float> sums = make_buffer<float>(ranges * at.size);
  std::fill_n(sums.get(), ranges * at.size, 0.f);
  const Tensor from = side_by_side(x), added = side_by_side(shortcut), dy = side_by_side(grad);
  if (pixels > 0)
    dispatch_storage(kOp, x, [&](auto type) {
      using T = decltype(type);
      ConvMixGradient<T> args{};
      args.forward = {n, c, h, w, k, p.activation, packed.view(), read_map<T>(from), read_map<T>(added), {}};
      args.dy = read_map<T>(dy);
      args.pw_rows = pw_rows.get();
      args.c5_rows = c5_rows.get();
      args.dx = write_map<T>(dx.nhwc());
      args.d_shortcut = write_map<T>(d_shortcut.nhwc());
      args.dq = dq.get();
      args.dd = dd.get();
      const auto scratch = [&] { return thread_scratch<float, MixScratch>(kernels().conv_mix.scratch_size(c, k)); };
      parallel_bands(ranges, [&](int64_t r) {
        conv_mix_kernels(type).backward(args, scratch(), sums.get() + r * at.size, rows * r / ranges,
                                        rows * (r + 1) / ranges);
      });
      if (p.dw_weight)
        parallel_bands(rows, [&](int64_t r) { conv_mix_kernels(type).finish_backward(args, scratch(), r, r + 1); });
    });
  const auto gradient = [&](const Tensor& like, int64_t begin, int64_t parameter_rows, int64_t columns) {
    return parameter_gradient(like, sums.get() + begin, ranges, at.size, parameter_rows, columns);
  };
  const Tensor none = torch::stable::new_empty(x, {0});
  return {dx.finish(),
          d_shortcut.finish(),
          p.dw_weight ? gradient(*p.dw_weight, at.dw, c, 9) : none,
          p.dw_weight ? gradient(*p.dw_bias, at.dw_bias, c, 1) : torch::stable::new_empty(x, {0}),
          gradient(p.pw_weight, at.pw, c, c),
          gradient(p.pw_bias, at.pw_bias, c, 1),
          gradient(p.c5_weight, at.c5, k, c),
          gradient(p.c5_bias, at.c5_bias, k, 1)};
}

namespace {

Tensor conv_mix(const Tensor& x, const Tensor& shortcut, const std::optional<Tensor>& dw_weight,
                const std::optional<Tensor>& dw_bias, const Tensor& pw_weight, const Tensor& pw_bias,
                const Tensor& c5_weight, const Tensor& c5_bias, int64_t activation) {
  const MixParameters p{dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias, activation};
  check_conv_mix(x, shortcut, p);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = c5_weight.size(0);
  OutputMap out(x, {n, k, h, w}, output_format(x));
  if (out.nhwc().numel() == 0) return out.finish();
  const PackedMix packed(p);
  const Tensor from = side_by_side(x), added = side_by_side(shortcut);
  dispatch_storage(kOp, x, [&](auto type) {
    using T = decltype(type);
    const ConvMixArgs<T> args{
        n, c, h, w, k, activation, packed.view(), read_map<T>(from), read_map<T>(added), write_map<T>(out.nhwc())};
    run_conv_mix(args);
  });
  return out.finish();
}

MixGradients conv_mix_backward(const Tensor& grad, const Tensor& x, const Tensor& shortcut,
                               const std::optional<Tensor>& dw_weight, const std::optional<Tensor>& dw_bias,
                               const Tensor& pw_weight, const Tensor& pw_bias, const Tensor& c5_weight,
                               const Tensor& c5_bias, int64_t activation) {
  return conv_mix_gradients(grad, x, shortcut,
                            {dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias, activation});
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("conv_mix", TORCH_BOX(&fastsr::cpu::conv_mix));
  m.impl("conv_mix_backward", TORCH_BOX(&fastsr::cpu::conv_mix_backward));
}
