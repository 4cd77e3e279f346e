// fastsr::_cuda_conv3x3_gelu and its backward: checks, outputs, workspace, launch.
#include <optional>

#include "conv3x3.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "conv3x3_gelu";

Conv3x3Call call_of(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t activation, int64_t accuracy,
                    bool tf32) {
  check_image(kOp, x);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == 3 && weight.size(3) == 3, kOp,
                  ": weight must be [K, ", x.size(1), ", 3, 3]");
  check_vector(kOp, bias, weight.size(0), "bias");
  check_codes(kOp, activation, accuracy);
  Conv3x3Call call{};
  call.dtype = dtype_code(x.scalar_type());
  call.activation = activation;
  call.accuracy = accuracy;
  call.tf32 = tf32;
  call.x = view_of<TensorView>(x);
  return call;
}

void fill(Conv3x3Call& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  call.weight = parameters.data(0);
  call.bias = parameters.data(1);
}

Tensor conv3x3_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& shortcut,
                    int64_t activation, int64_t accuracy, bool tf32) {
  Conv3x3Call call = call_of(x, weight, bias, activation, accuracy, tf32);
  if (shortcut) {
    check_beside(kOp, x, *shortcut, weight.size(0), "shortcut");
    call.shortcut = view_of<TensorView>(*shortcut);
  }
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&weight, &bias});
  fill(call, parameters);
  Tensor y = empty_map(x, weight.size(0));
  if (y.numel() == 0) return y;
  call.y = view_of<TensorView>(y);
  check_launch(kOp, conv3x3_forward(call, current_stream(x)));
  return y;
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_gelu_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                         const Tensor& bias, int64_t activation, bool needs_dx,
                                                         int64_t accuracy, bool tf32) {
  Conv3x3Call call = call_of(x, weight, bias, activation, accuracy, tf32);
  check_beside(kOp, x, grad, weight.size(0), "grad");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&weight, &bias});
  fill(call, parameters);
  const int64_t none = 0;
  Tensor dx =
      needs_dx ? empty_map(x, x.size(1)) : torch::stable::empty({&none, 1}, x.scalar_type(), std::nullopt, x.device());
  const std::vector<Tensor> gradients = parameters.gradients();
  call.y = view_of<TensorView>(grad);
  if (needs_dx) call.dx = view_of<TensorView>(dx);
  call.d_weight = gradients[0].mutable_data_ptr();
  call.d_bias = gradients[1].mutable_data_ptr();
  const Tensor memory = workspace(x, conv3x3_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, conv3x3_backward(call, current_stream(x)));
  return {dx, parameters.in_own_dtype(gradients[0], 0), parameters.in_own_dtype(gradients[1], 1)};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_conv3x3_gelu", TORCH_BOX(&fastsr::cuda::conv3x3_gelu));
  m.impl("_cuda_conv3x3_gelu_backward", TORCH_BOX(&fastsr::cuda::conv3x3_gelu_backward));
}
