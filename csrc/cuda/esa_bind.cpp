// fastsr::_cuda_esa, its backward, and _cuda_esa_reduced: checks, outputs, workspace, launch.
#include <tuple>

#include "esa_checks.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "esa";
using Tensors = std::vector<Tensor>;

Parameters parameters_of(const Tensor& x, const Tensors& weights) {
  std::vector<const Tensor*> given;
  for (const Tensor& w : weights) given.push_back(&w);
  return Parameters(kOp, x, given);
}

void use(EsaCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  for (int64_t i = 0; i < call.count; ++i) call.parameters[i] = parameters.data(i);
}

Tensor run(EsaCall& call, const Tensor& x, const Tensors& weights) {
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = parameters_of(x, weights);
  use(call, parameters);
  Tensor y = empty_map(x, x.size(1));
  if (x.size(0) == 0) return y;
  call.y = view_of<TensorView>(y);
  const Tensor memory = workspace(x, esa_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, esa_forward(call, current_stream(x)));
  return y;
}

Tensor forward(const Tensor& x, const Tensors& weights, int64_t padding, int64_t accuracy, bool tf32) {
  EsaCall call = esa_call_of(kOp, x, weights, padding, accuracy, tf32);
  return run(call, x, weights);
}

Tensor forward_reduced(const Tensor& x, const Tensor& reduced, const Tensors& weights, int64_t padding,
                       int64_t accuracy, bool tf32) {
  EsaCall call = esa_call_of(kOp, x, weights, padding, accuracy, tf32);
  use_reduced(kOp, call, x, reduced);
  return run(call, x, weights);
}

std::tuple<Tensor, Tensors> backward(const Tensor& grad, const Tensor& x, const Tensors& weights, int64_t padding,
                                     int64_t /*accuracy*/, bool tf32) {
  EsaCall call = esa_call_of(kOp, x, weights, padding, 0, tf32);
  check_same_shape(kOp, x, grad, "grad");
  check_on_device(kOp, x, grad, "grad");
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), kOp, ": grad and x differ in dtype");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = parameters_of(x, weights);
  use(call, parameters);
  Tensor dx = empty_map(x, x.size(1));
  Tensors gradients = parameters.gradients();
  for (size_t i = 0; i < weights.size(); ++i) call.gradients[i] = gradients[i].mutable_data_ptr();
  if (x.size(0) == 0) {
    for (Tensor& g : gradients) torch::stable::zero_(g);
  } else {
    call.y = view_of<TensorView>(grad);
    call.dx = view_of<TensorView>(dx);
    const Tensor memory = workspace(x, esa_backward_workspace(call));
    call.workspace = memory.mutable_data_ptr();
    check_launch(kOp, esa_backward(call, current_stream(x)));
  }
  for (size_t i = 0; i < weights.size(); ++i) gradients[i] = parameters.in_own_dtype(gradients[i], i);
  return {dx, gradients};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_esa", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_esa_backward", TORCH_BOX(&fastsr::cuda::backward));
  m.impl("_cuda_esa_reduced", TORCH_BOX(&fastsr::cuda::forward_reduced));
}
