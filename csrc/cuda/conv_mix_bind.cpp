// fastsr::_cuda_conv_mix and its backward: checks, outputs, workspace, launch.
#include "conv_mix_checks.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "conv_mix";

Tensor forward(const Tensor& x, const Tensor& shortcut, const MaybeTensor& dw, const MaybeTensor& dw_bias,
               const Tensor& pw, const Tensor& pw_bias, const Tensor& c5, const Tensor& c5_bias, int64_t activation,
               int64_t accuracy, bool tf32) {
  const auto given = mix_weights(dw, dw_bias, pw, pw_bias, c5, c5_bias);
  ConvMixCall call = conv_mix_call_of(kOp, x, shortcut, given, activation, accuracy, tf32);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, given);
  use(call, parameters);
  Tensor y = empty_map(x, c5.size(0));
  if (y.numel() == 0) return y;
  call.y = view_of<TensorView>(y);
  check_launch(kOp, conv_mix_forward(call, current_stream(x)));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& x, const Tensor& shortcut, const MaybeTensor& dw, const MaybeTensor& dw_bias,
    const Tensor& pw, const Tensor& pw_bias, const Tensor& c5, const Tensor& c5_bias, int64_t activation,
    int64_t accuracy, bool tf32) {
  const auto given = mix_weights(dw, dw_bias, pw, pw_bias, c5, c5_bias);
  ConvMixCall call = conv_mix_call_of(kOp, x, shortcut, given, activation, accuracy, tf32);
  check_beside(kOp, x, grad, c5.size(0), "grad");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, given);
  use(call, parameters);
  Tensor dx = empty_map(x, x.size(1)), d_shortcut = empty_map(x, x.size(1));
  const std::vector<Tensor> gradients = parameters.gradients();
  for (size_t i = 0; i < 6; ++i) call.gradients[i] = given[i] ? gradients[i].mutable_data_ptr() : nullptr;
  call.y = view_of<TensorView>(grad);
  call.dx = view_of<TensorView>(dx);
  call.d_shortcut = view_of<TensorView>(d_shortcut);
  const Tensor memory = workspace(x, conv_mix_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, conv_mix_backward(call, current_stream(x)));
  const auto own = [&](size_t i) { return parameters.in_own_dtype(gradients[i], i); };
  return {dx, d_shortcut, own(0), own(1), own(2), own(3), own(4), own(5)};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_conv_mix", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_conv_mix_backward", TORCH_BOX(&fastsr::cuda::backward));
}
