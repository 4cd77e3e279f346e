// fastsr::_cuda_pointwise and its backward: checks, outputs, workspace, launch.
#include <tuple>

#include "pointwise_checks.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "pointwise";

Tensor forward(const Maps& inputs, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& shortcut,
               int64_t activation, int64_t accuracy, bool tf32) {
  PointwiseCall call = pointwise_call_of(kOp, inputs, weight, bias, shortcut, activation, accuracy, tf32);
  const Tensor& first = inputs[0];
  const DeviceGuard guard(first.get_device_index());
  const Parameters parameters(kOp, first, {&weight, &bias});
  use(call, parameters);
  Tensor y = empty_map(first, weight.size(0));
  if (is_empty(first)) return y;
  call.y = view_of<TensorView>(y);
  const Tensor memory = workspace(first, pointwise_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, pointwise_forward(call, current_stream(first)));
  return y;
}

// Gradients of the inputs, the parameters and the shortcut; the last is empty where it is `grad` itself, or there is
// no shortcut.
std::tuple<Maps, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Maps& inputs, const Tensor& weight,
                                                  const Tensor& bias, const std::optional<Tensor>& shortcut,
                                                  int64_t activation, int64_t /*accuracy*/, bool tf32) {
  PointwiseCall call = pointwise_call_of(kOp, inputs, weight, bias, shortcut, activation, 0, tf32);
  const Tensor& first = inputs[0];
  const int64_t k = weight.size(0);
  check_map(kOp, grad, first, k, "grad");
  const DeviceGuard guard(first.get_device_index());
  const Parameters parameters(kOp, first, {&weight, &bias});
  use(call, parameters);
  Maps dx;
  for (size_t i = 0; i < inputs.size(); ++i) {
    dx.push_back(empty_map(inputs[i], inputs[i].size(1)));
    call.dx[i] = view_of<TensorView>(dx[i]);
  }
  Maps gradients = parameters.gradients();
  const int64_t nothing = 0;
  Tensor d_shortcut = torch::stable::empty({&nothing, 1}, grad.scalar_type(), std::nullopt, grad.device());
  if (shortcut && activation != 0) {
    d_shortcut = empty_map(first, k);
    call.d_shortcut = view_of<TensorView>(d_shortcut);
  }
  if (is_empty(first)) {
    for (Tensor& g : gradients) torch::stable::zero_(g);
  } else {
    call.y = view_of<TensorView>(grad);
    call.d_weight = gradients[0].mutable_data_ptr();
    call.d_bias = gradients[1].mutable_data_ptr();
    const Tensor memory = workspace(first, pointwise_backward_workspace(call));
    call.workspace = memory.mutable_data_ptr();
    check_launch(kOp, pointwise_backward(call, current_stream(first)));
  }
  return {dx, parameters.in_own_dtype(gradients[0], 0), parameters.in_own_dtype(gradients[1], 1), d_shortcut};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_pointwise", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_pointwise_backward", TORCH_BOX(&fastsr::cuda::backward));
}
