// fastsr::conv3x3_gelu and its backward on the CPU: checks, dtypes, choice of algorithm, division of the work.
#include <array>
#include <optional>

#include "conv_tensors.h"
#include "isa/table.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "conv3x3_gelu";
constexpr int64_t kPixelsPerRange = 2048, kMaxRanges = 64;  // of the weight gradient
struct ConvScratch {};

// Winograd has 3.2 times fewer multiplications, but transforms to pay for: measured, it wins from 8 channels on both
// sides on. In smaller images than 2 x 2 tiles it computes too many pixels that do not exist.
bool winograd_pays(int64_t c, int64_t k, int64_t h, int64_t w) { return std::min(c, k) >= 8 && std::min(h, w) >= 6; }

const Conv3x3Algorithm& choose(int64_t c, int64_t k, int64_t h, int64_t w) {
  return winograd_pays(c, k, h, w) ? kernels().conv3x3_gelu.winograd : kernels().conv3x3_gelu.direct;
}
const Conv3x3WeightGradientKernels& choose_gradient(int64_t c, int64_t k, int64_t h, int64_t w) {
  return winograd_pays(c, k, h, w) ? kernels().conv3x3_gelu.winograd_gradient : kernels().conv3x3_gelu.direct_gradient;
}

struct PackedConv {
  const Conv3x3Algorithm* algorithm;
  Buffer<float> weights, bias;
};

PackedConv pack(const Conv3x3Algorithm& algorithm, const Tensor& weight, const Tensor* bias, bool transposed) {
  const Tensor w = float_parameter(weight);
  const int64_t k = w.size(0), c = w.size(1);
  const float* data = static_cast<const float*>(w.const_data_ptr());
  const Conv3x3Weights weights =
      transposed ? Conv3x3Weights{data, k, c, 9 * c, 9, true} : Conv3x3Weights{data, c, k, 9, 9 * c, false};
  PackedConv packed{&algorithm, make_buffer<float>(algorithm.packed_size(weights.in, weights.out)),
                    bias ? padded_vector(*bias) : make_buffer<float>(padded_channels(weights.out))};
  if (!bias) std::fill_n(packed.bias.get(), padded_channels(weights.out), 0.f);
  constexpr int64_t kStep = 8;
  parallel_bands((weights.in + kStep - 1) / kStep, [&](int64_t i) {
    algorithm.pack(weights, packed.weights.get(), i * kStep, std::min(weights.in, (i + 1) * kStep));
  });
  return packed;
}

// The one of three function pointers that is for T.
template <class T, class F32, class F16, class BF16>
auto typed(F32 f32, F16 f16, BF16 bf16) {
  if constexpr (std::is_same_v<T, float>) return f32;
  if constexpr (std::is_same_v<T, Half>) return f16;
  if constexpr (std::is_same_v<T, BFloat16>) return bf16;
}

template <class T>
void run(const PackedConv& packed, Conv3x3Args<T>& args) {
  const Conv3x3Algorithm& a = *packed.algorithm;
  args.packed = packed.weights.get();
  args.bias = packed.bias.get();
  parallel_bands(a.items(args.n, args.h, args.w), [&](int64_t item) {
    float* scratch = thread_scratch<float, ConvScratch>(a.scratch_size(args.c, args.k, args.w));
    typed<T>(a.run_f32, a.run_f16, a.run_bf16)(args, scratch, item);
  });
}

void check(const Tensor& x, const Tensor& weight, int64_t activation) {
  check_feature_map(kOp, x, "x");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == 3 && weight.size(3) == 3, kOp,
                  ": weight must be [K, ", x.size(1), ", 3, 3]");
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, kOp, ": activation has code ", activation,
                  "; pass 0 (none), 1 (gelu) or 2 (leaky_relu)");
}

void check_output_like(const Tensor& x, const Tensor& weight, const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == x.size(0) && t.size(1) == weight.size(0) && t.size(2) == x.size(2) &&
                      t.size(3) == x.size(3),
                  kOp, ": ", name, " must have the shape of the result, [", x.size(0), ", ", weight.size(0), ", ",
                  x.size(2), ", ", x.size(3), "]");
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), kOp, ": ", name, " and x differ in dtype");
}

Tensor conv3x3_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& shortcut,
                    int64_t activation) {
  check(x, weight, activation);
  check_vector(kOp, bias, weight.size(0), "bias");
  if (shortcut) check_output_like(x, weight, *shortcut, "shortcut");
  OutputMap out(x, {x.size(0), weight.size(0), x.size(2), x.size(3)}, output_format(x));
  if (out.nhwc().numel() > 0)
    dispatch_storage(kOp, x, [&](auto type) {
      using T = decltype(type);
      const Tensor from = side_by_side(x), added = shortcut ? side_by_side(*shortcut) : x;
      Conv3x3Args<T> args{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0)};
      args.x = read_map<T>(from);
      args.activation = activation;
      if (shortcut) args.shortcut = read_map<T>(added);
      args.y = write_map<T>(out.nhwc());
      run(pack(choose(args.c, args.k, args.h, args.w), weight, &bias, false), args);
    });
  return out.finish();
}

// g = dy * act'(pre) in float, the channels of each pixel padded to whole vectors of 16. `pre` is computed again:
// keeping it would add a map per convolution to what is saved, half as much again for MLRN.
Buffer<float> output_gradient(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& bias,
                              int64_t activation) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = weight.size(0);
  const int64_t columns = padded_channels(k);
  Buffer<float> g = make_buffer<float>(n * h * w * columns);
  if (activation == 0) {
    const Tensor dy = side_by_side(torch::stable::to(grad, ScalarType::Float));
    const ConvMap<const float> from = read_map<float>(dy);
    parallel_bands(n * h, [&](int64_t row) {
      for (int64_t q = 0; q < w; ++q) std::copy_n(from.at(row / h, row % h, q), k, g.get() + (row * w + q) * columns);
    });
    return g;
  }
  const Tensor from = side_by_side(x), dy = side_by_side(grad);
  dispatch_storage(kOp, x, [&](auto type) {
    using T = decltype(type);
    Conv3x3Args<T> args{n, c, h, w, k};
    args.x = read_map<T>(from);
    args.dy = read_map<T>(dy);
    args.g = {g.get(), h * w * columns, w * columns, columns};
    args.activation = activation;
    run(pack(choose(c, k, h, w), weight, &bias, false), args);
  });
  return g;
}

// The convolution of g with the filters turned by 180 degrees and input and output channels exchanged.
Tensor input_gradient(const Tensor& x, const Tensor& weight, const float* g) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = weight.size(0);
  const int64_t columns = padded_channels(k);
  OutputMap dx(x, {n, c, h, w}, output_format(x));
  const bool is_float = x.scalar_type() == ScalarType::Float;
  const Tensor written = is_float ? dx.nhwc() : torch::stable::to(dx.nhwc(), ScalarType::Float);
  Conv3x3Args<float> args{n, k, h, w, c};
  args.x = {g, h * w * columns, w * columns, columns};
  args.y = write_map<float>(written);
  run(pack(choose(k, c, h, w), weight, nullptr, true), args);
  if (!is_float) {
    Tensor rounded = dx.nhwc();
    torch::stable::copy_(rounded, written);
  }
  return dx.finish();
}

// Ranges of the image are summed separately and then together, in an order that depends on its size only.
std::pair<Tensor, Tensor> weight_gradient(const Tensor& x, const Tensor& weight, const Tensor& bias, const float* g) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = weight.size(0);
  const Conv3x3WeightGradientKernels& kernel = choose_gradient(c, k, h, w);
  const int64_t items = kernel.items(n, h, w), size = kernel.sums_size(c, k);
  const int64_t ranges = std::clamp<int64_t>(n * h * w / kPixelsPerRange, 1, std::min(items, kMaxRanges));
  const Buffer<float> sums = make_buffer<float>(ranges * size);
  const Tensor from = side_by_side(x);
  dispatch_storage(kOp, x, [&](auto type) {
    using T = decltype(type);
    const Conv3x3WeightGradient<T> args{n, c, h, w, k, read_map<T>(from), g};
    parallel_bands(ranges, [&](int64_t r) {
      float* scratch = thread_scratch<float, ConvScratch>(kernel.scratch_size(c, k, w));
      std::fill_n(sums.get() + r * size, size, 0.f);
      typed<T>(kernel.run_f32, kernel.run_f16, kernel.run_bf16)(args, scratch, sums.get() + r * size,
                                                                items * r / ranges, items * (r + 1) / ranges);
    });
  });
  Tensor d_weight = torch::stable::new_empty(weight, {k, c, 3, 3}, ScalarType::Float);
  Tensor d_bias = torch::stable::new_empty(weight, {k}, ScalarType::Float);
  float* dw = static_cast<float*>(d_weight.mutable_data_ptr());
  parallel_bands(c, [&](int64_t i) { kernel.finish(sums.get(), ranges, c, k, dw, i, i + 1); });
  sum_ranges(sums.get(), ranges, size, k, static_cast<float*>(d_bias.mutable_data_ptr()));
  return {torch::stable::to(d_weight, weight.scalar_type()), torch::stable::to(d_bias, bias.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_gelu_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                         const Tensor& bias, int64_t activation, bool needs_dx) {
  check(x, weight, activation);
  check_vector(kOp, bias, weight.size(0), "bias");
  check_output_like(x, weight, grad, "grad");
  if (grad.numel() == 0 || x.numel() == 0) {
    Tensor dx = torch::stable::new_empty(x, {0});
    if (needs_dx) dx = empty_feature_map(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, output_format(x));
    torch::stable::zero_(dx);
    return {dx, torch::stable::new_zeros(weight, weight.sizes()), torch::stable::new_zeros(bias, bias.sizes())};
  }
  const Buffer<float> g = output_gradient(grad, x, weight, bias, activation);
  const Tensor dx = needs_dx ? input_gradient(x, weight, g.get()) : torch::stable::new_empty(x, {0});
  auto [d_weight, d_bias] = weight_gradient(x, weight, bias, g.get());
  return {dx, d_weight, d_bias};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("conv3x3_gelu", TORCH_BOX(&fastsr::cpu::conv3x3_gelu));
  m.impl("conv3x3_gelu_backward", TORCH_BOX(&fastsr::cpu::conv3x3_gelu_backward));
}
