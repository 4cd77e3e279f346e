// fastsr::_cuda_upsample and its backward: checks, outputs, workspace, launch.
#include <optional>

#include "parameters.h"
#include "upsample.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "upsample";

UpsampleCall call_of(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& lr,
                     int64_t scale, int64_t residual, bool tf32) {
  check_image(kOp, x);
  STD_TORCH_CHECK(weight.dim() == 4, kOp, ": weight has ", weight.dim(), " dimensions; pass 4");
  const int64_t outputs = weight.size(0);
  STD_TORCH_CHECK(scale >= 1 && outputs > 0 && outputs % (scale * scale) == 0, kOp, ": scale is ", scale,
                  " and weight gives ", outputs, " channels; pass a multiple of scale squared");
  check_weight(kOp, weight, {outputs, x.size(1), 3, 3}, "weight");
  check_vector(kOp, bias, outputs, "bias");
  STD_TORCH_CHECK(residual >= 0 && residual <= 2, kOp, ": residual is ", residual, "; pass 0, 1 or 2");
  STD_TORCH_CHECK(x.size(2) * scale < INT32_MAX && x.size(3) * scale < INT32_MAX, kOp,
                  ": a side of the result has 2^31 pixels or more; cut the image into tiles");
  UpsampleCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.scale = scale;
  call.residual = residual;
  call.tf32 = tf32;
  call.x = view_of<TensorView>(x);
  if (residual != 0) {
    STD_TORCH_CHECK(lr.has_value(), kOp, ": lr is missing; pass the low-resolution image");
    check_beside(kOp, x, *lr, outputs / (scale * scale), "lr");
    call.lr = view_of<TensorView>(*lr);
  }
  return call;
}

void fill(UpsampleCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  call.weight = parameters.data(0);
  call.bias = parameters.data(1);
}

Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& lr,
               int64_t scale, int64_t residual, int64_t /*accuracy*/, bool tf32) {
  UpsampleCall call = call_of(x, weight, bias, lr, scale, residual, tf32);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&weight, &bias});
  fill(call, parameters);
  const int64_t size[4] = {x.size(0), weight.size(0) / (scale * scale), x.size(2) * scale, x.size(3) * scale};
  Tensor y = torch::stable::empty({size, 4}, x.scalar_type(), std::nullopt, x.device(), std::nullopt, output_format(x));
  if (y.numel() == 0) return y;
  call.y = view_of<TensorView>(y);
  check_launch(kOp, upsample_forward(call, current_stream(x)));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                    const Tensor& bias, const std::optional<Tensor>& lr, int64_t scale,
                                                    int64_t residual, bool lr_gradient, int64_t /*accuracy*/,
                                                    bool tf32) {
  UpsampleCall call = call_of(x, weight, bias, lr, scale, residual, tf32);
  check_feature_map(kOp, grad, "grad");
  const int64_t k = weight.size(0) / (scale * scale);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(1) == k && grad.size(2) == x.size(2) * scale &&
                      grad.size(3) == x.size(3) * scale && grad.scalar_type() == x.scalar_type(),
                  kOp, ": grad has not the shape and dtype of the output");
  check_on_device(kOp, x, grad, "grad");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&weight, &bias});
  fill(call, parameters);
  const bool wanted = lr_gradient && residual != 0;
  const int64_t none = 0;
  Tensor dx = empty_map(x, x.size(1));
  Tensor d_lr =
      wanted ? empty_map(*lr, k) : torch::stable::empty({&none, 1}, x.scalar_type(), std::nullopt, x.device());
  const std::vector<Tensor> gradients = parameters.gradients();
  call.y = view_of<TensorView>(grad);
  call.dx = view_of<TensorView>(dx);
  if (wanted) call.d_lr = view_of<TensorView>(d_lr);
  call.d_weight = gradients[0].mutable_data_ptr();
  call.d_bias = gradients[1].mutable_data_ptr();
  const Tensor memory = workspace(x, upsample_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, upsample_backward(call, current_stream(x)));
  return {dx, parameters.in_own_dtype(gradients[0], 0), parameters.in_own_dtype(gradients[1], 1), d_lr};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_upsample", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_upsample_backward", TORCH_BOX(&fastsr::cuda::backward));
}
