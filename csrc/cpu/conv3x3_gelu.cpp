// fastsr::conv3x3_gelu and its backward on the CPU: checks, dtypes, choice of algorithm, division of the work.
#include <array>
#include <optional>

#include "conv_tensors.h"
#include "isa/table.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "conv3x3_gelu";
struct ConvScratch {};

// Winograd has 3.2 times fewer multiplications, but transforms to pay for: measured, it wins from 8 channels on both
// sides on. In smaller images than 2 x 2 tiles it computes too many pixels that do not exist.
const Conv3x3Algorithm& choose(int64_t c, int64_t k, int64_t h, int64_t w) {
  const char* e = std::getenv("CONV_ALGO");
  if (e) return e[0] == 'd' ? kernels().conv3x3_gelu.direct : kernels().conv3x3_gelu.winograd;
  const bool winograd = std::min(c, k) >= 8 && std::min(h, w) >= 6;
  return winograd ? kernels().conv3x3_gelu.winograd : kernels().conv3x3_gelu.direct;
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
                    make_buffer<float>(weights.out + 16)};
  std::fill_n(packed.bias.get(), weights.out + 16, 0.f);
  if (bias) {
    const Tensor b = float_parameter(*bias);
    std::copy_n(static_cast<const float*>(b.const_data_ptr()), k, packed.bias.get());
  }
  constexpr int64_t kStep = 8;
  parallel_bands((weights.in + kStep - 1) / kStep, [&](int64_t i) {
    algorithm.pack(weights, packed.weights.get(), i * kStep, std::min(weights.in, (i + 1) * kStep));
  });
  return packed;
}

template <class T>
void run(const PackedConv& packed, Conv3x3Args<T>& args) {
  const Conv3x3Algorithm& a = *packed.algorithm;
  args.packed = packed.weights.get();
  args.bias = packed.bias.get();
  parallel_bands(a.items(args.n, args.h, args.w), [&](int64_t item) {
    float* scratch = thread_scratch<float, ConvScratch>(a.scratch_size(args.c, args.k, args.w));
    if constexpr (std::is_same_v<T, float>) a.run_f32(args, scratch, item);
    if constexpr (std::is_same_v<T, Half>) a.run_f16(args, scratch, item);
    if constexpr (std::is_same_v<T, BFloat16>) a.run_bf16(args, scratch, item);
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

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) { m.impl("conv3x3_gelu", TORCH_BOX(&fastsr::cpu::conv3x3_gelu)); }
