// fastsr::_cuda_pointwise_reduce, its packing and its packed form: checks, outputs, workspace, launch.
#include "esa.h"
#include "pointwise_checks.h"
#include "pointwise_reduce.h"

namespace fastsr::cuda {
namespace {

void check_limits(const char* op, int64_t k, int64_t inner) {
  STD_TORCH_CHECK(k > 0 && k <= kMostPointwiseReduced && inner > 0 && inner <= kMostPointwiseInner, op, ": ", k,
                  " and ", inner, " channels out; pass 1 to ", kMostPointwiseReduced, " and ", kMostPointwiseInner);
}

// Channels out of conv1, whose parameters fit `k` channels in.
int64_t check_conv1(const char* op, int64_t k, const Tensor& weight, const Tensor& bias) {
  STD_TORCH_CHECK(weight.dim() == 4, op, ": conv1_weight has ", weight.dim(), " dimensions; pass [F, K, 1, 1]");
  const int64_t inner = weight.size(0);
  check_weight(op, weight, {inner, k, 1, 1}, "conv1_weight");
  check_vector(op, bias, inner, "conv1_bias");
  check_limits(op, k, inner);
  return inner;
}

void use(PointwiseReduceCall& call, const Parameters& parameters) {
  use(call.c5, parameters);
  for (size_t i = 0; i < 2; ++i) call.parameters[i] = parameters.data(2 + i);
}

// (y, reduced)
std::tuple<Tensor, Tensor> run(const char* op, PointwiseReduceCall& call, const Tensor& first, int64_t k) {
  Tensor y = empty_map(first, k);
  Tensor reduced = empty_map(first, reduced_channels(call.inner), MemoryFormat::ChannelsLast);
  if (is_empty(first)) return {y, reduced};
  call.c5.y = view_of<TensorView>(y);
  call.reduced = view_of<TensorView>(reduced);
  const Tensor memory = workspace(first, pointwise_reduce_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(op, pointwise_reduce_forward(call, current_stream(first)));
  return {y, reduced};
}

std::tuple<Tensor, Tensor> forward(const Maps& inputs, const Tensor& weight, const Tensor& bias, const Tensor& conv1,
                                   const Tensor& conv1_bias, int64_t accuracy, bool tf32) {
  constexpr const char* kOp = "pointwise_reduce";
  PointwiseReduceCall call{};
  call.c5 = pointwise_call_of(kOp, inputs, weight, bias, std::nullopt, 0, accuracy, tf32);
  call.inner = check_conv1(kOp, weight.size(0), conv1, conv1_bias);
  const DeviceGuard guard(inputs[0].get_device_index());
  const Parameters parameters(kOp, inputs[0], {&weight, &bias, &conv1, &conv1_bias});
  use(call, parameters);
  return run(kOp, call, inputs[0], weight.size(0));
}

// Weights for maps of their own dtype and of these channels.
Tensor pack(const Tensor& weight, const Tensor& bias, const Tensor& conv1, const Tensor& conv1_bias,
            const std::vector<int64_t>& channels) {
  constexpr const char* kOp = "pointwise_reduce_pack";
  const int64_t count = static_cast<int64_t>(channels.size());
  STD_TORCH_CHECK(count > 0 && count <= kMaxMaps, kOp, ": there are ", count, " inputs; pass 1 to ", kMaxMaps);
  STD_TORCH_CHECK(weight.dim() == 4, kOp, ": weight has ", weight.dim(), " dimensions; pass [K, C, 1, 1]");
  check_kernel_dtype(kOp, weight);
  PointwiseReduceCall call{};
  int64_t all = 0;
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(channels[i] > 0, kOp, ": an input has ", channels[i], " channels; pass a positive number");
    all += call.c5.x[i].size[1] = channels[i];
  }
  const int64_t k = weight.size(0);
  check_weight(kOp, weight, {k, all, 1, 1}, "weight");
  check_vector(kOp, bias, k, "bias");
  call.inner = check_conv1(kOp, k, conv1, conv1_bias);
  call.c5.dtype = dtype_code(weight.scalar_type());
  call.c5.inputs = count;
  call.c5.y.size[1] = k;
  const DeviceGuard guard(weight.get_device_index());
  const Parameters parameters(kOp, weight, {&weight, &bias, &conv1, &conv1_bias});
  use(call, parameters);
  Tensor packed = workspace(weight, pointwise_reduce_packed_bytes(call));
  check_launch(kOp, pointwise_reduce_pack(call, packed.mutable_data_ptr(), current_stream(weight)));
  return packed;
}

std::tuple<Tensor, Tensor> forward_packed(const Maps& inputs, const Tensor& packed, int64_t k, int64_t inner,
                                          int64_t /*accuracy*/, bool tf32) {
  constexpr const char* kOp = "pointwise_reduce_packed";
  PointwiseReduceCall call{};
  int64_t channels = 0;
  call.c5 = pointwise_inputs(kOp, inputs, channels);
  call.c5.tf32 = tf32;
  check_limits(kOp, k, inner);
  call.inner = inner;
  call.c5.y.size[1] = k;
  check_on_device(kOp, inputs[0], packed, "packed");
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous() &&
                      packed.numel() == pointwise_reduce_packed_bytes(call),
                  kOp, ": packed are no weights for these inputs; pass what pointwise_reduce_pack returned");
  call.packed = packed.const_data_ptr();
  const DeviceGuard guard(inputs[0].get_device_index());
  return run(kOp, call, inputs[0], k);
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("pointwise_reduce_pack", TORCH_BOX(&fastsr::cuda::pack));
  m.impl("_cuda_pointwise_reduce", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_pointwise_reduce_packed", TORCH_BOX(&fastsr::cuda::forward_packed));
}
