// fastsr::conv3x3_gelu and its backward on the CPU: checks and dtypes (the convolution itself: conv3x3.h).
#include <optional>

#include "conv3x3.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "conv3x3_gelu";

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

void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& shortcut,
             int64_t activation, const Tensor& y) {
  if (y.numel() == 0) return;
  dispatch_storage(kOp, x, [&](auto type) {
    using T = decltype(type);
    const Tensor from = side_by_side(x), added = shortcut ? side_by_side(*shortcut) : x;
    Conv3x3Args<T> args{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0)};
    args.x = read_map<T>(from);
    args.activation = activation;
    if (shortcut) args.shortcut = read_map<T>(added);
    args.y = write_map<T>(y);
    run_conv3x3(pack_conv3x3(weight, &bias, args.h, args.w, false), args);
  });
}

Tensor conv3x3_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& shortcut,
                    int64_t activation) {
  check(x, weight, activation);
  check_vector(kOp, bias, weight.size(0), "bias");
  if (shortcut) check_output_like(x, weight, *shortcut, "shortcut");
  OutputMap out(x, {x.size(0), weight.size(0), x.size(2), x.size(3)}, output_format(x));
  forward(x, weight, bias, shortcut, activation, out.nhwc());
  return out.finish();
}

void conv3x3_gelu_over(const Tensor& shortcut, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       int64_t activation) {
  check(x, weight, activation);
  check_vector(kOp, bias, weight.size(0), "bias");
  check_output_like(x, weight, shortcut, "shortcut");
  check_over(kOp, x, shortcut);
  forward(x, weight, bias, shortcut, activation, shortcut);
}

// g = dy * act'(pre) in float, the channels of each pixel padded to whole vectors of 16. `pre` is computed again:
// keeping it would add a map per convolution to what is saved (mixer_block keeps it in place of the result).
Buffer<float> output_gradient(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& bias,
                              int64_t activation) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = weight.size(0);
  if (activation == 0) return conv3x3_output_gradient(grad, nullptr, 0);
  const int64_t columns = padded_channels(k);
  Buffer<float> g = make_buffer<float>(n * h * w * columns);
  const Tensor from = side_by_side(x), dy = side_by_side(grad);
  dispatch_storage(kOp, x, [&](auto type) {
    using T = decltype(type);
    Conv3x3Args<T> args{n, c, h, w, k};
    args.x = read_map<T>(from);
    args.dy = read_map<T>(dy);
    args.g = {g.get(), h * w * columns, w * columns, columns};
    args.activation = activation;
    run_conv3x3(pack_conv3x3(weight, &bias, h, w, false), args);
  });
  return g;
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
  const Tensor dx = needs_dx ? conv3x3_input_gradient(x, weight, g.get()) : torch::stable::new_empty(x, {0});
  auto [d_weight, d_bias] = conv3x3_weight_gradient(x, weight, bias, g.get());
  return {dx, d_weight, d_bias};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("conv3x3_gelu", TORCH_BOX(&fastsr::cpu::conv3x3_gelu));
  m.impl("conv3x3_gelu_", TORCH_BOX(&fastsr::cpu::conv3x3_gelu_over));
  m.impl("conv3x3_gelu_backward", TORCH_BOX(&fastsr::cpu::conv3x3_gelu_backward));
}
