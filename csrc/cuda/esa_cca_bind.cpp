// fastsr::_cuda_esa_cca: checks, output, workspace, launch.
#include <optional>

#include "cca_checks.h"
#include "esa_cca.h"
#include "esa_checks.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "esa_cca";

Tensor forward(const Tensor& x, const std::optional<Tensor>& reduced, const Tensor& shortcut,
               const std::vector<Tensor>& weights, int64_t padding, const Tensor& w0, const Tensor& b0,
               const Tensor& w2, const Tensor& b2, const std::optional<Tensor>& norm_weight,
               const std::optional<Tensor>& norm_bias, double eps, int64_t accuracy, bool tf32) {
  STD_TORCH_CHECK(norm_weight.has_value() == norm_bias.has_value(), kOp,
                  ": only one of norm_weight and norm_bias is given; pass both or neither");
  const Tensor *gamma = norm_weight ? &*norm_weight : nullptr, *beta = norm_bias ? &*norm_bias : nullptr;
  EsaCcaCall call{};
  call.esa = esa_call_of(kOp, x, weights, padding, accuracy, tf32);
  check_cca_weights(kOp, x, {w0, b0, w2, b2}, gamma, beta);
  check_beside(kOp, x, shortcut, x.size(1), "shortcut");
  if (reduced) use_reduced(kOp, call.esa, x, *reduced);
  const DeviceGuard guard(x.get_device_index());
  std::vector<const Tensor*> given;
  for (const Tensor& w : weights) given.push_back(&w);
  for (const Tensor* w : {&w0, &b0, &w2, &b2, gamma, beta}) given.push_back(w);
  const Parameters parameters(kOp, x, given);
  call.esa.parameter_dtype = parameters.dtype();
  for (int64_t i = 0; i < call.esa.count; ++i) call.esa.parameters[i] = parameters.data(i);
  for (int64_t i = 0; i < 6; ++i) call.cca[i] = parameters.data(call.esa.count + i);
  call.hidden = w0.size(0);
  call.eps = eps;
  Tensor y = empty_map(x, x.size(1));
  if (x.size(0) == 0) return y;
  call.shortcut = view_of<TensorView>(shortcut);
  call.esa.y = view_of<TensorView>(y);
  const Tensor memory = workspace(x, esa_cca_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, esa_cca_forward(call, current_stream(x)));
  return y;
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) { m.impl("_cuda_esa_cca", TORCH_BOX(&fastsr::cuda::forward)); }
