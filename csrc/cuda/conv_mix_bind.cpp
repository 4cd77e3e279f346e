// fastsr::_cuda_conv_mix and its backward: checks, outputs, workspace, launch.
#include <optional>

#include "conv_mix.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "conv_mix";

using MaybeTensor = std::optional<Tensor>;

std::vector<const Tensor*> listed(const MaybeTensor& dw, const MaybeTensor& dw_bias, const Tensor& pw,
                                  const Tensor& pw_bias, const Tensor& c5, const Tensor& c5_bias) {
  return {dw ? &*dw : nullptr, dw_bias ? &*dw_bias : nullptr, &pw, &pw_bias, &c5, &c5_bias};
}

ConvMixCall call_of(const Tensor& x, const Tensor& shortcut, const std::vector<const Tensor*>& p, int64_t activation,
                    int64_t accuracy) {
  check_image(kOp, x);
  const int64_t c = x.size(1);
  check_beside(kOp, x, shortcut, c, "shortcut");
  STD_TORCH_CHECK(!p[0] == !p[1], kOp, ": only one of dw_weight and dw_bias is None; pass both or neither");
  if (p[0]) {
    check_weight(kOp, *p[0], {c, 1, 3, 3}, "dw_weight");
    check_vector(kOp, *p[1], c, "dw_bias");
  }
  check_weight(kOp, *p[2], {c, c, 1, 1}, "pw_weight");
  check_vector(kOp, *p[3], c, "pw_bias");
  STD_TORCH_CHECK(p[4]->dim() == 4, kOp, ": c5_weight has ", p[4]->dim(), " dimensions; pass [K, C, 1, 1]");
  const int64_t k = p[4]->size(0);
  check_weight(kOp, *p[4], {k, c, 1, 1}, "c5_weight");
  check_vector(kOp, *p[5], k, "c5_bias");
  STD_TORCH_CHECK(c <= kMostMixChannels && k <= kMostMixChannels, kOp, ": there are ", c, " channels in and ", k,
                  " out; pass at most ", kMostMixChannels);
  check_codes(kOp, activation, accuracy);
  ConvMixCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.activation = activation;
  call.accuracy = accuracy;
  call.x = view_of<TensorView>(x);
  call.shortcut = view_of<TensorView>(shortcut);
  return call;
}

void fill(ConvMixCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  for (size_t i = 0; i < 6; ++i) call.parameters[i] = parameters.data(i);
}

Tensor forward(const Tensor& x, const Tensor& shortcut, const MaybeTensor& dw, const MaybeTensor& dw_bias,
               const Tensor& pw, const Tensor& pw_bias, const Tensor& c5, const Tensor& c5_bias, int64_t activation,
               int64_t accuracy) {
  const auto given = listed(dw, dw_bias, pw, pw_bias, c5, c5_bias);
  ConvMixCall call = call_of(x, shortcut, given, activation, accuracy);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, given);
  fill(call, parameters);
  Tensor y = empty_map(x, c5.size(0));
  if (y.numel() == 0) return y;
  call.y = view_of<TensorView>(y);
  check_launch(kOp, conv_mix_forward(call, current_stream(x)));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& x, const Tensor& shortcut, const MaybeTensor& dw, const MaybeTensor& dw_bias,
    const Tensor& pw, const Tensor& pw_bias, const Tensor& c5, const Tensor& c5_bias, int64_t activation,
    int64_t accuracy) {
  const auto given = listed(dw, dw_bias, pw, pw_bias, c5, c5_bias);
  ConvMixCall call = call_of(x, shortcut, given, activation, accuracy);
  check_beside(kOp, x, grad, c5.size(0), "grad");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, given);
  fill(call, parameters);
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
