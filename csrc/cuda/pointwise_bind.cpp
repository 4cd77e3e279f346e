// fastsr::_cuda_pointwise and its backward: checks, outputs, workspace, launch.
#include <optional>
#include <tuple>

#include "parameters.h"
#include "pointwise.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "pointwise";
using Maps = std::vector<Tensor>;

void check_map(const Tensor& x, const Tensor& first, int64_t channels, const char* name) {
  check_feature_map(kOp, x, name);
  check_on_device(kOp, first, x, name);
  STD_TORCH_CHECK(x.scalar_type() == first.scalar_type(), kOp, ": ", name, " and the first input differ in dtype");
  STD_TORCH_CHECK(
      x.size(0) == first.size(0) && x.size(1) == channels && x.size(2) == first.size(2) && x.size(3) == first.size(3),
      kOp, ": ", name, " is [", x.size(0), ", ", x.size(1), ", ", x.size(2), ", ", x.size(3), "]; pass [",
      first.size(0), ", ", channels, ", ", first.size(2), ", ", first.size(3), "]");
}

PointwiseCall call_of(const Maps& inputs, const Tensor& weight, const Tensor& bias,
                      const std::optional<Tensor>& shortcut, int64_t activation, int64_t accuracy, bool tf32) {
  const int64_t count = static_cast<int64_t>(inputs.size());
  STD_TORCH_CHECK(count > 0 && count <= kMaxMaps, kOp, ": there are ", count, " inputs; pass 1 to ", kMaxMaps);
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, kOp, ": activation is ", activation, "; pass 0, 1 or 2");
  STD_TORCH_CHECK(accuracy >= 0 && accuracy <= 2, kOp, ": accuracy is ", accuracy, "; pass 0, 1 or 2");
  const Tensor& first = inputs[0];
  check_feature_map(kOp, first, "an input");
  check_kernel_dtype(kOp, first);
  STD_TORCH_CHECK(first.size(2) * first.size(3) < INT32_MAX, kOp,
                  ": an image has 2^31 pixels or more; cut it into tiles");
  PointwiseCall call{};
  int64_t channels = 0;
  for (int64_t i = 0; i < count; ++i) {
    check_feature_map(kOp, inputs[i], "an input");
    check_map(inputs[i], first, inputs[i].size(1), "an input");
    call.x[i] = view_of<TensorView>(inputs[i]);
    channels += inputs[i].size(1);
  }
  STD_TORCH_CHECK(weight.dim() == 4, kOp, ": weight has ", weight.dim(), " dimensions; pass [K, C, 1, 1]");
  const int64_t k = weight.size(0);
  STD_TORCH_CHECK(k > 0 && channels > 0, kOp, ": weight is [", k, ", ", channels, ", 1, 1]; pass channels");
  check_weight(kOp, weight, {k, channels, 1, 1}, "weight");
  check_weight(kOp, bias, {k}, "bias");
  call.dtype = dtype_code(first.scalar_type());
  call.inputs = count;
  call.activation = activation;
  call.accuracy = accuracy;
  call.tf32 = tf32;
  if (shortcut) {
    check_map(*shortcut, first, k, "shortcut");
    call.shortcut = view_of<TensorView>(*shortcut);
  }
  return call;
}

bool is_empty(const Tensor& x) { return x.size(0) * x.size(2) * x.size(3) == 0; }

void use(PointwiseCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  call.weight = parameters.data(0);
  call.bias = parameters.data(1);
}

Tensor forward(const Maps& inputs, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& shortcut,
               int64_t activation, int64_t accuracy, bool tf32) {
  PointwiseCall call = call_of(inputs, weight, bias, shortcut, activation, accuracy, tf32);
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
  PointwiseCall call = call_of(inputs, weight, bias, shortcut, activation, 0, tf32);
  const Tensor& first = inputs[0];
  const int64_t k = weight.size(0);
  check_map(grad, first, k, "grad");
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
