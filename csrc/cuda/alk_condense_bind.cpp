// fastsr::_cuda_alk_condense, its packing and its packed form: checks, outputs, workspace, launch.
#include <vector>

#include "alk_condense_call.h"
#include "esa.h"

namespace fastsr::cuda {
namespace {

using Maps = std::vector<Tensor>;

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
  const CondenseRest rest{c5_weight, c5_bias, conv1_weight, conv1_bias};
  AlkCondenseCall call = alk_condense_call(kOp, x.size(1), w, rest, accuracy, tf32);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = alk_condense_parameters(kOp, x, w, rest);
  use(call, parameters);
  return run(kOp, call, x, maps, eps);
}

// Weights for maps of their own dtype.
Tensor pack(const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
            const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, const Tensor& c5_weight,
            const Tensor& c5_bias, const Tensor& conv1_weight, const Tensor& conv1_bias) {
  constexpr const char* kOp = "alk_condense_pack";
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const CondenseRest rest{c5_weight, c5_bias, conv1_weight, conv1_bias};
  AlkCondenseCall call = alk_condense_pack_call(kOp, w, rest);
  const DeviceGuard guard(pw.get_device_index());
  const Parameters parameters = alk_condense_parameters(kOp, pw, w, rest);
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
  check_condense_limits(kOp, call);
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
