// fastsr::_cuda_conv_mix_reduce: checks, outputs, launch.
#include "conv_mix_checks.h"
#include "conv_mix_reduce.h"
#include "esa.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "conv_mix_reduce";

// (y, reduced)
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& shortcut, const MaybeTensor& dw,
                                   const MaybeTensor& dw_bias, const Tensor& pw, const Tensor& pw_bias,
                                   const Tensor& c5, const Tensor& c5_bias, const Tensor& conv1,
                                   const Tensor& conv1_bias, int64_t activation, int64_t accuracy, bool tf32) {
  auto given = mix_weights(dw, dw_bias, pw, pw_bias, c5, c5_bias);
  ConvMixReduceCall call{};
  call.mix = conv_mix_call_of(kOp, x, shortcut, given, activation, accuracy, tf32);
  STD_TORCH_CHECK(conv1.dim() == 4, kOp, ": conv1_weight has ", conv1.dim(), " dimensions; pass [F, K, 1, 1]");
  call.inner = conv1.size(0);
  STD_TORCH_CHECK(call.inner > 0 && call.inner <= kMostMixReduced, kOp, ": conv1_weight gives ", call.inner,
                  " channels; pass 1 to ", kMostMixReduced);
  check_weight(kOp, conv1, {call.inner, c5.size(0), 1, 1}, "conv1_weight");
  check_vector(kOp, conv1_bias, call.inner, "conv1_bias");
  given.push_back(&conv1), given.push_back(&conv1_bias);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(kOp, x, given);
  use(call.mix, parameters);
  for (size_t i = 0; i < 2; ++i) call.parameters[i] = parameters.data(6 + i);
  Tensor y = empty_map(x, c5.size(0));
  Tensor reduced = empty_map(x, reduced_channels(call.inner), MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return {y, reduced};
  call.mix.y = view_of<TensorView>(y);
  call.reduced = view_of<TensorView>(reduced);
  check_launch(kOp, conv_mix_reduce_forward(call, current_stream(x)));
  return {y, reduced};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) { m.impl("_cuda_conv_mix_reduce", TORCH_BOX(&fastsr::cuda::forward)); }
