// fastsr::_cuda_cca_norm and its backward: checks, outputs, workspace, launch.
#include <optional>
#include <tuple>

#include "cca_checks.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "cca_norm";

void check_map(const Tensor& x, const Tensor& other, const char* name) {
  check_same_shape(kOp, x, other, name);
  check_on_device(kOp, x, other, name);
  STD_TORCH_CHECK(other.scalar_type() == x.scalar_type(), kOp, ": ", name, " and x differ in dtype");
}

CcaCall call_of(const Tensor& x, const CcaLayers& l, const Tensor* norm_weight, const Tensor* norm_bias, double eps) {
  check_feature_map(kOp, x, "x");
  check_kernel_dtype(kOp, x);
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, kOp, ": an image has 2^31 pixels or more; cut it into tiles");
  check_cca_weights(kOp, x, l, norm_weight, norm_bias);
  CcaCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.hidden = l.w0.size(0);
  call.eps = eps;
  call.x = view_of<TensorView>(x);
  return call;
}

void use(CcaCall& call, const Parameters& parameters, size_t count) {
  call.parameter_dtype = parameters.dtype();
  for (size_t i = 0; i < count; ++i) call.parameters[i] = parameters.data(i);
}

// (y, statistics)
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& shortcut, const Tensor& w0, const Tensor& b0,
                                   const Tensor& w2, const Tensor& b2, const std::optional<Tensor>& norm_weight,
                                   const std::optional<Tensor>& norm_bias, double eps, int64_t /*accuracy*/) {
  STD_TORCH_CHECK(norm_weight.has_value() == norm_bias.has_value(), kOp,
                  ": only one of norm_weight and norm_bias is given; pass both or neither");
  const Tensor *gamma = norm_weight ? &*norm_weight : nullptr, *beta = norm_bias ? &*norm_bias : nullptr;
  CcaCall call = call_of(x, {w0, b0, w2, b2}, gamma, beta, eps);
  check_map(x, shortcut, "shortcut");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&w0, &b0, &w2, &b2, gamma, beta});
  use(call, parameters, 6);
  Tensor y = empty_map(x, x.size(1));
  const int64_t size[3] = {x.size(0), 2, x.size(1)};
  Tensor statistics = torch::stable::empty({size, 3}, ScalarType::Double, std::nullopt, x.device());
  if (x.numel() == 0) {
    torch::stable::zero_(statistics);
    return {y, statistics};
  }
  call.shortcut = view_of<TensorView>(shortcut);
  call.y = view_of<TensorView>(y);
  call.statistics = static_cast<double*>(statistics.mutable_data_ptr());
  const Tensor memory = workspace(x, cca_norm_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, cca_norm_forward(call, current_stream(x)));
  return {y, statistics};
}

// Gradients of x, the layers and the norm; without a norm the last two are of no use.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& x, const Tensor& statistics, const Tensor& w0, const Tensor& b0, const Tensor& w2,
    const Tensor& b2, const std::optional<Tensor>& norm_weight, double eps, int64_t /*accuracy*/) {
  const Tensor* gamma = norm_weight ? &*norm_weight : nullptr;
  CcaCall call = call_of(x, {w0, b0, w2, b2}, gamma, nullptr, eps);
  check_map(x, grad, "grad");
  check_on_device(kOp, x, statistics, "statistics");
  STD_TORCH_CHECK(statistics.scalar_type() == ScalarType::Double && statistics.dim() == 3 &&
                      statistics.size(0) == x.size(0) && statistics.size(1) == 2 && statistics.size(2) == x.size(1) &&
                      statistics.is_contiguous(),
                  kOp, ": statistics are not those of the forward; pass what it returned");
  const DeviceGuard guard(x.get_device_index());
  const Tensor* norm = gamma ? gamma : &b2;
  const Parameters parameters(kOp, x, {&w0, &b0, &w2, &b2, norm, norm});
  use(call, parameters, gamma ? 5 : 4);
  Tensor dx = empty_map(x, x.size(1));
  std::vector<Tensor> gradients = parameters.gradients();
  for (size_t i = 0; i < 6; ++i) call.gradients[i] = gradients[i].mutable_data_ptr();
  if (x.numel() == 0) {
    for (Tensor& g : gradients) torch::stable::zero_(g);
  } else {
    call.y = view_of<TensorView>(grad);
    call.dx = view_of<TensorView>(dx);
    call.statistics = static_cast<double*>(const_cast<void*>(statistics.const_data_ptr()));
    const Tensor memory = workspace(x, cca_norm_backward_workspace(call));
    call.workspace = memory.mutable_data_ptr();
    check_launch(kOp, cca_norm_backward(call, current_stream(x)));
  }
  for (size_t i = 0; i < 6; ++i) gradients[i] = parameters.in_own_dtype(gradients[i], i);
  return {dx, gradients[0], gradients[1], gradients[2], gradients[3], gradients[4], gradients[5]};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_cca_norm", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_cca_norm_backward", TORCH_BOX(&fastsr::cuda::backward));
}
