// fastsr::conv3x3_gelu with weights packed beforehand: Winograd's transform of the filters is the costliest packing of
// all operators, a twentieth of the call at 64x64.
#include <limits>
#include <optional>

#include "conv3x3.h"
#include "packed.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kName = "conv3x3_gelu_packed";

const Conv3x3Algorithm& algorithm_of(bool winograd) {
  return winograd ? kernels().conv3x3_gelu.winograd : kernels().conv3x3_gelu.direct;
}

Tensor conv3x3_gelu_pack(const Tensor& weight, const Tensor& bias) {
  constexpr const char* kPack = "conv3x3_gelu_pack";
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) > 0 && weight.size(2) == 3 && weight.size(3) == 3,
      kPack, ": weight must be [K, C, 3, 3]");
  check_vector(kPack, bias, weight.size(0), "bias");
  const int64_t c = weight.size(1), k = weight.size(0), large = std::numeric_limits<int32_t>::max();
  const PackedConv3x3 packed = pack_conv3x3(weight, &bias, large, large, false);
  const int64_t filters = packed.algorithm->packed_size(c, k), biases = padded_channels(k);
  PackedWeights result(weight, PackedFor::kConv3x3, {c, k, packed.algorithm == &algorithm_of(true)}, filters + biases);
  std::copy_n(packed.bias.get(), biases, result.mutable_data());
  std::copy_n(packed.weights.get(), filters, result.mutable_data() + biases);
  return result.tensor();
}

// The algorithm is the one that the channels ask for: in images of less than 6 pixels, where the unpacked operator
// turns to the direct one, Winograd's is as right, only slower.
void forward(const Tensor& x, const Tensor& packed, int64_t channels, const std::optional<Tensor>& shortcut,
             int64_t activation, const Tensor& y) {
  const PackedWeights weights(kName, PackedFor::kConv3x3, packed);
  STD_TORCH_CHECK(weights.fact(0) == x.size(1) && weights.fact(1) == channels && channels > 0, kName,
                  ": packed are weights from ", weights.fact(0), " to ", weights.fact(1), " channels; pass ones from ",
                  x.size(1), " to ", channels);
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, kName, ": activation has code ", activation,
                  "; pass 0 (none), 1 (gelu) or 2 (leaky_relu)");
  const Conv3x3Algorithm& algorithm = algorithm_of(weights.fact(2) == 1);
  const int64_t biases = padded_channels(channels);
  weights.check_size(kName, algorithm.packed_size(x.size(1), channels) + biases);
  if (y.numel() == 0) return;
  dispatch_storage(kName, x, [&](auto type) {
    using T = decltype(type);
    const Tensor from = side_by_side(x), added = shortcut ? side_by_side(*shortcut) : x;
    Conv3x3Args<T> args{x.size(0), x.size(1), x.size(2), x.size(3), channels};
    args.x = read_map<T>(from);
    args.packed = weights.data() + biases;
    args.bias = weights.data();
    args.activation = activation;
    if (shortcut) args.shortcut = read_map<T>(added);
    args.y = write_map<T>(y);
    run_conv3x3(algorithm, args);
  });
}

void check_shortcut(const Tensor& x, int64_t channels, const Tensor& shortcut) {
  const std::array<int64_t, 4> size{x.size(0), channels, x.size(2), x.size(3)};
  check_feature_map(kName, shortcut, "shortcut");
  for (int64_t i = 0; i < 4; ++i)
    STD_TORCH_CHECK(shortcut.size(i) == size[i], kName, ": shortcut has extent ", shortcut.size(i), " in dimension ", i,
                    "; pass ", size[i]);
  STD_TORCH_CHECK(shortcut.scalar_type() == x.scalar_type(), kName, ": shortcut and x differ in dtype");
}

Tensor conv3x3_gelu_packed(const Tensor& x, const Tensor& packed, int64_t channels,
                           const std::optional<Tensor>& shortcut, int64_t activation) {
  check_feature_map(kName, x, "x");
  STD_TORCH_CHECK(channels > 0, kName, ": channels is ", channels, "; pass a positive number");
  if (shortcut) check_shortcut(x, channels, *shortcut);
  OutputMap out(x, {x.size(0), channels, x.size(2), x.size(3)}, output_format(x));
  forward(x, packed, channels, shortcut, activation, out.nhwc());
  return out.finish();
}

void conv3x3_gelu_packed_over(const Tensor& shortcut, const Tensor& x, const Tensor& packed, int64_t activation) {
  check_feature_map(kName, x, "x");
  check_feature_map(kName, shortcut, "shortcut");
  check_shortcut(x, shortcut.size(1), shortcut);
  check_over(kName, x, shortcut);
  forward(x, packed, shortcut.size(1), shortcut, activation, shortcut);
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("conv3x3_gelu_pack", TORCH_BOX(&fastsr::cpu::conv3x3_gelu_pack));
  m.impl("conv3x3_gelu_packed", TORCH_BOX(&fastsr::cpu::conv3x3_gelu_packed));
  m.impl("conv3x3_gelu_packed_", TORCH_BOX(&fastsr::cpu::conv3x3_gelu_packed_over));
}
