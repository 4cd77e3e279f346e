// fastsr::_cuda_alk_condense, its packing and its packed form: checks, outputs, workspace, launch.
#include <vector>

#include "../alk_checks.h"
#include "alk_condense.h"
#include "esa.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

using Maps = std::vector<Tensor>;

struct Rest {
  const Tensor &c5_weight, &c5_bias, &conv1_weight, &conv1_bias;
};

void check_limits(const char* op, const AlkCondenseCall& call) {
  STD_TORCH_CHECK(call.alk.accuracy >= 0 && call.alk.accuracy <= 2, op, ": accuracy is ", call.alk.accuracy,
                  "; pass 0, 1 or 2");
  STD_TORCH_CHECK(call.d > 0 && call.alk.k > 0 && call.outputs > 0 && call.inner > 0, op, ": ", call.alk.k, ", ",
                  call.outputs, " and ", call.inner, " channels out, ", call.d, " distilled; pass positive numbers");
  STD_TORCH_CHECK(call.alk.taps % 2 == 1 && call.alk.taps <= kMostCondensedTaps && call.alk.k <= kMostCondensedFrom &&
                      call.outputs <= kMostCondensed && call.inner <= kMostReduced,
                  op, ": ", call.alk.taps, " taps, ", call.alk.k, ", ", call.outputs, " and ", call.inner,
                  " channels out; pass at most ", kMostCondensedTaps, ", ", kMostCondensedFrom, ", ", kMostCondensed,
                  " and ", kMostReduced);
}

// Sizes and parameters from the weights.
AlkCondenseCall call_of(const char* op, int64_t c, const AlkWeightTensors& w, const Rest& rest, int64_t accuracy,
                        bool tf32) {
  check_alk_weights(op, c, w, kMostCondensedTaps);
  AlkCondenseCall call{};
  call.alk.k = w.pw_weight.size(0);
  call.alk.taps = w.lora1_weight.size(2);
  call.alk.accuracy = accuracy;
  call.alk.tf32 = tf32;
  STD_TORCH_CHECK(rest.c5_weight.dim() == 4 && rest.conv1_weight.dim() == 4, op, ": c5_weight has ",
                  rest.c5_weight.dim(), " and conv1_weight ", rest.conv1_weight.dim(), " dimensions; pass 4");
  call.outputs = rest.c5_weight.size(0), call.inner = rest.conv1_weight.size(0);
  call.d = (rest.c5_weight.size(1) - call.alk.k) / kDistilled;
  check_weight(op, rest.c5_weight, {call.outputs, kDistilled * call.d + call.alk.k, 1, 1}, "c5_weight");
  check_weight(op, rest.c5_bias, {call.outputs}, "c5_bias");
  check_weight(op, rest.conv1_weight, {call.inner, call.outputs, 1, 1}, "conv1_weight");
  check_weight(op, rest.conv1_bias, {call.inner}, "conv1_bias");
  check_limits(op, call);
  return call;
}

Parameters parameters_of(const char* op, const Tensor& x, const AlkWeightTensors& w, const Rest& r) {
  return Parameters(
      op, x,
      {&w.pw_weight, &w.lora1_weight, &w.lora1_bias, &w.lora2_weight, &w.lora2_bias, &w.small_weight, &w.small_bias,
       &w.norm_weight, &w.norm_bias, &r.c5_weight, &r.c5_bias, &r.conv1_weight, &r.conv1_bias});
}

void use(AlkCondenseCall& call, const Parameters& parameters) {
  call.alk.parameter_dtype = parameters.dtype();
  for (int i = 0; i < 9; ++i) call.alk.parameters[2 + i] = parameters.data(i);
  for (int i = 0; i < 4; ++i) call.parameters[i] = parameters.data(9 + i);
}

// (y, reduced)
std::tuple<Tensor, Tensor> run(const char* op, AlkCondenseCall& call, const Tensor& x, const Maps& maps, double eps) {
  check_image(op, x);
  STD_TORCH_CHECK(maps.size() == kDistilled, op, ": there are ", maps.size(), " distilled maps; pass ", kDistilled);
  call.alk.dtype = dtype_code(x.scalar_type());
  call.alk.eps = eps;
  call.alk.activation = 1;
  call.alk.x = view_of<TensorView>(x);
  for (int i = 0; i < kDistilled; ++i) {
    check_beside(op, x, maps[i], call.d, "a distilled map");
    call.maps[i] = view_of<TensorView>(maps[i]);
  }
  Tensor y = empty_map(x, call.outputs);
  Tensor reduced = empty_map(x, reduced_channels(call.inner), MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return {y, reduced};
  call.y = view_of<TensorView>(y);
  call.reduced = view_of<TensorView>(reduced);
  const Tensor memory = workspace(x, alk_condense_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(op, alk_condense_forward(call, current_stream(x)));
  return {y, reduced};
}

std::tuple<Tensor, Tensor> condense(const Tensor& x, const Maps& maps, const Tensor& pw, const Tensor& l1w,
                                    const Tensor& l1b, const Tensor& l2w, const Tensor& l2b, const Tensor& sw,
                                    const Tensor& sb, const Tensor& nw, const Tensor& nb, const Tensor& c5_weight,
                                    const Tensor& c5_bias, const Tensor& conv1_weight, const Tensor& conv1_bias,
                                    double eps, int64_t accuracy, bool tf32) {
  constexpr const char* kOp = "alk_condense";
  check_image(kOp, x);
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const Rest rest{c5_weight, c5_bias, conv1_weight, conv1_bias};
  AlkCondenseCall call = call_of(kOp, x.size(1), w, rest, accuracy, tf32);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = parameters_of(kOp, x, w, rest);
  use(call, parameters);
  return run(kOp, call, x, maps, eps);
}

// Weights for maps of their own dtype.
Tensor pack(const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
            const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, const Tensor& c5_weight,
            const Tensor& c5_bias, const Tensor& conv1_weight, const Tensor& conv1_bias) {
  constexpr const char* kOp = "alk_condense_pack";
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const Rest rest{c5_weight, c5_bias, conv1_weight, conv1_bias};
  STD_TORCH_CHECK(pw.dim() == 4, kOp, ": pw_weight has ", pw.dim(), " dimensions; pass [K, C, 1, 1]");
  check_kernel_dtype(kOp, pw);
  AlkCondenseCall call = call_of(kOp, pw.size(1), w, rest, 0, false);
  call.alk.dtype = dtype_code(pw.scalar_type());
  call.alk.x.size[1] = pw.size(1);
  const DeviceGuard guard(pw.get_device_index());
  const Parameters parameters = parameters_of(kOp, pw, w, rest);
  use(call, parameters);
  Tensor packed = workspace(pw, alk_condense_packed_bytes(call));
  check_launch(kOp, alk_condense_pack(call, packed.mutable_data_ptr(), current_stream(pw)));
  return packed;
}

std::tuple<Tensor, Tensor> condense_packed(const Tensor& x, const Maps& maps, const Tensor& packed, int64_t k,
                                           int64_t taps, int64_t outputs, int64_t inner, double eps, int64_t accuracy,
                                           bool tf32) {
  constexpr const char* kOp = "alk_condense_packed";
  check_image(kOp, x);
  check_on_device(kOp, x, packed, "packed");
  STD_TORCH_CHECK(maps.size() == kDistilled && maps[0].dim() == 4, kOp, ": pass ", kDistilled, " maps [N, D, H, W]");
  AlkCondenseCall call{};
  call.alk.dtype = dtype_code(x.scalar_type());
  call.alk.k = k, call.alk.taps = taps, call.alk.accuracy = accuracy, call.alk.tf32 = tf32;
  call.alk.x = view_of<TensorView>(x);
  call.d = maps[0].size(1), call.outputs = outputs, call.inner = inner;
  check_limits(kOp, call);
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous() &&
                      packed.numel() == alk_condense_packed_bytes(call),
                  kOp, ": packed are no weights for these sizes and this dtype; pass what alk_condense_pack returned");
  call.alk.packed = packed.const_data_ptr();
  const DeviceGuard guard(x.get_device_index());
  return run(kOp, call, x, maps, eps);
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("alk_condense_pack", TORCH_BOX(&fastsr::cuda::pack));
  m.impl("_cuda_alk_condense", TORCH_BOX(&fastsr::cuda::condense));
  m.impl("_cuda_alk_condense_packed", TORCH_BOX(&fastsr::cuda::condense_packed));
}
