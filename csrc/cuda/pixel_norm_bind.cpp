// fastsr::_cuda_pixel_norm and its backward: checks, outputs, workspace, launch.
#include <tuple>

#include "parameters.h"
#include "pixel_norm.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "pixel_norm";

PixelNormCall call_of(const Tensor& x, const Tensor& weight, double eps) {
  check_feature_map(kOp, x, "x");
  check_kernel_dtype(kOp, x);
  const int64_t c = x.size(1);
  STD_TORCH_CHECK(c > 0 && c <= kMaxNormChannels, kOp, ": x has ", c, " channels; pass 1 to ", kMaxNormChannels);
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, kOp, ": an image has 2^31 pixels or more; cut it into tiles");
  check_weight(kOp, weight, {c}, "weight");
  PixelNormCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.eps = eps;
  call.x = view_of<TensorView>(x);
  return call;
}

Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, int64_t /*accuracy*/) {
  PixelNormCall call = call_of(x, weight, eps);
  check_weight(kOp, bias, {x.size(1)}, "bias");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&weight, &bias});
  Tensor y = torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  call.parameter_dtype = parameters.dtype();
  call.weight = parameters.data(0);
  call.bias = parameters.data(1);
  call.y = view_of<TensorView>(y);
  check_launch(kOp, pixel_norm_forward(call, current_stream(x)));
  return y;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& weight, double eps,
                                            int64_t /*accuracy*/) {
  PixelNormCall call = call_of(x, weight, eps);
  check_same_shape(kOp, x, grad, "grad");
  check_on_device(kOp, x, grad, "grad");
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), kOp, ": grad and x differ in dtype");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&weight, &weight});  // the bias is like the weight
  Tensor dx = torch::stable::empty_like(x);
  std::vector<Tensor> gradients = parameters.gradients();
  if (x.numel() == 0) {
    for (Tensor& g : gradients) torch::stable::zero_(g);
    return {dx, gradients[0], gradients[1]};
  }
  call.parameter_dtype = parameters.dtype();
  call.weight = parameters.data(0);
  call.y = view_of<TensorView>(grad);
  call.dx = view_of<TensorView>(dx);
  call.d_weight = gradients[0].mutable_data_ptr();
  call.d_bias = gradients[1].mutable_data_ptr();
  const Tensor memory = workspace(x, pixel_norm_backward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, pixel_norm_backward(call, current_stream(x)));
  return {dx, gradients[0], gradients[1]};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_pixel_norm", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_pixel_norm_backward", TORCH_BOX(&fastsr::cuda::backward));
}
