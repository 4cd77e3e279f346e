// fastsr::_cuda_bsconv, its stage and their backwards: checks, outputs, workspace, launch.
#include <optional>
#include <tuple>

#include "bsconv.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

using MaybeTensor = std::optional<Tensor>;

constexpr int64_t kNoActivation = 0, kGelu = 1;

BsconvCall call_of(const char* op, const Tensor& x, const Tensor& pw, const Tensor& dw, const Tensor& dw_bias,
                   const MaybeTensor& shortcut, int64_t activation, int64_t accuracy, bool tf32) {
  check_image(op, x);
  const int64_t c = x.size(1);
  STD_TORCH_CHECK(pw.dim() == 4, op, ": pw_weight has ", pw.dim(), " dimensions; pass [K, C, 1, 1]");
  const int64_t k = pw.size(0);
  STD_TORCH_CHECK(k > 0 && c > 0 && k <= kMostBlueprintChannels && c <= kMostBlueprintChannels, op, ": there are ", c,
                  " channels in and ", k, " out; pass 1 to ", kMostBlueprintChannels);
  check_weight(op, pw, {k, c, 1, 1}, "pw_weight");
  check_weight(op, dw, {k, 1, 3, 3}, "dw_weight");
  check_vector(op, dw_bias, k, "dw_bias");
  check_codes(op, activation, accuracy);
  BsconvCall call{};
  if (shortcut) {
    check_beside(op, x, *shortcut, k, "shortcut");
    call.shortcut = view_of<TensorView>(*shortcut);
  }
  call.dtype = dtype_code(x.scalar_type());
  call.activation = activation;
  call.accuracy = accuracy;
  call.tf32 = tf32;
  call.x = view_of<TensorView>(x);
  return call;
}

void fill(BsconvCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  call.pw = parameters.data(0);
  call.dw = parameters.data(1);
  call.dw_bias = parameters.data(2);
}

Tensor forward(const Tensor& x, const Tensor& pw, const Tensor& dw, const Tensor& dw_bias, const MaybeTensor& shortcut,
               int64_t activation, int64_t accuracy, bool tf32) {
  constexpr const char* kOp = "bsconv";
  BsconvCall call = call_of(kOp, x, pw, dw, dw_bias, shortcut, activation, accuracy, tf32);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&pw, &dw, &dw_bias});
  fill(call, parameters);
  Tensor y = empty_map(x, pw.size(0));
  if (y.numel() == 0) return y;
  call.y = view_of<TensorView>(y);
  check_launch(kOp, bsconv_forward(call, current_stream(x)));
  return y;
}

BsconvCall stage_of(const char* op, const Tensor& x, const Tensor& d_weight, const Tensor& d_bias, const Tensor& pw,
                    const Tensor& dw, const Tensor& dw_bias, int64_t accuracy, bool tf32) {
  const BsconvCall call = call_of(op, x, pw, dw, dw_bias, x, kGelu, accuracy, tf32);
  STD_TORCH_CHECK(d_weight.dim() == 4, op, ": d_weight has ", d_weight.dim(), " dimensions; pass [D, C, 1, 1]");
  const int64_t d = d_weight.size(0);
  STD_TORCH_CHECK(d > 0 && d <= kMostBlueprintChannels, op, ": ", d, " channels are distilled; pass 1 to ",
                  kMostBlueprintChannels);
  check_weight(op, d_weight, {d, x.size(1), 1, 1}, "d_weight");
  check_vector(op, d_bias, d, "d_bias");
  return call;
}

void fill_stage(BsconvCall& call, const Parameters& parameters) {
  fill(call, parameters);
  call.distil = parameters.data(3);
  call.distil_bias = parameters.data(4);
}

std::tuple<Tensor, Tensor> stage(const Tensor& x, const Tensor& d_weight, const Tensor& d_bias, const Tensor& pw,
                                 const Tensor& dw, const Tensor& dw_bias, int64_t accuracy, bool tf32) {
  constexpr const char* kOp = "bsconv_stage";
  BsconvCall call = stage_of(kOp, x, d_weight, d_bias, pw, dw, dw_bias, accuracy, tf32);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&pw, &dw, &dw_bias, &d_weight, &d_bias});
  fill_stage(call, parameters);
  const int64_t d = d_weight.size(0);
  Tensor distilled = empty_map(x, d), y = empty_map(x, x.size(1));
  if (y.numel() == 0) return {distilled, y};
  call.y = view_of<TensorView>(y);
  call.distilled = view_of<TensorView>(distilled);
  check_launch(kOp, bsconv_forward(call, current_stream(x)));
  return {distilled, y};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& pw,
                                                            const Tensor& dw, const Tensor& dw_bias,
                                                            const MaybeTensor& shortcut, int64_t activation,
                                                            int64_t accuracy, bool tf32) {
  constexpr const char* kOp = "bsconv_backward";
  BsconvCall call = call_of(kOp, x, pw, dw, dw_bias, shortcut, activation, accuracy, tf32);
  check_beside(kOp, x, grad, pw.size(0), "grad");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&pw, &dw, &dw_bias});
  fill(call, parameters);
  const int64_t none = 0;
  const bool own = shortcut && activation != kNoActivation;  // else the shortcut's gradient is y's
  Tensor dx = empty_map(x, x.size(1));
  Tensor d_shortcut =
      own ? empty_map(x, pw.size(0)) : torch::stable::empty({&none, 1}, x.scalar_type(), std::nullopt, x.device());
  const std::vector<Tensor> gradients = parameters.gradients();
  call.y = view_of<TensorView>(grad);
  call.dx = view_of<TensorView>(dx);
  if (own) call.d_shortcut = view_of<TensorView>(d_shortcut);
  call.d_pw = gradients[0].mutable_data_ptr();
  call.d_dw = gradients[1].mutable_data_ptr();
  call.d_bias = gradients[2].mutable_data_ptr();
  const Tensor memory = workspace(x, bsconv_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, bsconv_backward(call, current_stream(x)));
  const auto in_own = [&](size_t i) { return parameters.in_own_dtype(gradients[i], i); };
  return {dx, in_own(0), in_own(1), in_own(2), d_shortcut};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> stage_backward(
    const Tensor& grad_distilled, const Tensor& grad, const Tensor& x, const Tensor& d_weight, const Tensor& d_bias,
    const Tensor& pw, const Tensor& dw, const Tensor& dw_bias, int64_t accuracy, bool tf32) {
  constexpr const char* kOp = "bsconv_stage_backward";
  BsconvCall call = stage_of(kOp, x, d_weight, d_bias, pw, dw, dw_bias, accuracy, tf32);
  check_beside(kOp, x, grad_distilled, d_weight.size(0), "grad_distilled");
  check_beside(kOp, x, grad, x.size(1), "grad_refined");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, {&pw, &dw, &dw_bias, &d_weight, &d_bias});
  fill_stage(call, parameters);
  Tensor dx = empty_map(x, x.size(1));
  const std::vector<Tensor> gradients = parameters.gradients();
  call.y = view_of<TensorView>(grad);
  call.distilled = view_of<TensorView>(grad_distilled);
  call.dx = view_of<TensorView>(dx);
  void** to[] = {&call.d_pw, &call.d_dw, &call.d_bias, &call.d_distil, &call.d_distil_bias};
  for (size_t i = 0; i < 5; ++i) *to[i] = gradients[i].mutable_data_ptr();
  const Tensor memory = workspace(x, bsconv_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, bsconv_backward(call, current_stream(x)));
  const auto in_own = [&](size_t i) { return parameters.in_own_dtype(gradients[i], i); };
  return {dx, in_own(3), in_own(4), in_own(0), in_own(1), in_own(2)};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_bsconv", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_bsconv_stage", TORCH_BOX(&fastsr::cuda::stage));
  m.impl("_cuda_bsconv_backward", TORCH_BOX(&fastsr::cuda::backward));
  m.impl("_cuda_bsconv_stage_backward", TORCH_BOX(&fastsr::cuda::stage_backward));
}
