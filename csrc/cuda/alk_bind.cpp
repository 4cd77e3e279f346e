// fastsr::_cuda_alk_conv and _cuda_alk_stage, with packed weights and with such kept: checks, outputs, workspace,
// launch.
#include <optional>

#include "alk_call.h"

namespace fastsr::cuda {
namespace {

struct Results {
  Tensor distilled, y, packed;  // distilled is y without any, packed are y if they are not kept
};

Results forward(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight,
                const Tensor* d_bias, double eps, int64_t activation, int64_t accuracy, bool tf32, bool keeps = false) {
  AlkCall call = alk_call(op, x, w, d_weight, d_bias, eps, activation, accuracy, tf32);
  call.keeps = keeps;
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = alk_parameters(op, x, w, d_weight, d_bias);
  use(call, parameters);
  Tensor y = empty_map(x, call.k), distilled = d_weight ? empty_map(x, call.d) : y;
  const Tensor packed = keeps ? workspace(x, alk_packed_bytes(call)) : y;
  if (x.size(0) * x.size(2) * x.size(3) == 0) return {distilled, y, packed};
  if (keeps) {
    check_launch(op, alk_pack(call, packed.mutable_data_ptr(), current_stream(x)));
    call.packed = packed.const_data_ptr();
  }
  call.y = view_of<TensorView>(y);
  call.distilled = view_of<TensorView>(distilled);
  const Tensor memory = workspace(x, alk_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(op, alk_forward(call, current_stream(x)));
  return {distilled, y, packed};
}

// Weights for maps of their own dtype.
Tensor alk_conv_pack(const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
                     const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
                     const std::optional<Tensor>& d_weight, const std::optional<Tensor>& d_bias) {
  constexpr const char* kOp = "alk_conv_pack";
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const Tensor *dw = d_weight ? &*d_weight : nullptr, *db = d_bias ? &*d_bias : nullptr;
  STD_TORCH_CHECK((dw == nullptr) == (db == nullptr), kOp, ": only one of d_weight and d_bias is given; pass both");
  AlkCall call = alk_pack_call(kOp, w, dw, db);
  const DeviceGuard guard(pw.get_device_index());
  const Parameters parameters = alk_parameters(kOp, pw, w, dw, db);
  use(call, parameters);
  Tensor packed = workspace(pw, alk_packed_bytes(call));
  check_launch(kOp, alk_pack(call, packed.mutable_data_ptr(), current_stream(pw)));
  return packed;
}

// (distilled, y) with `d` distilled channels, y itself if 0.
std::tuple<Tensor, Tensor> forward_packed(const char* op, const Tensor& x, const Tensor& packed, int64_t k, int64_t d,
                                          int64_t taps, double eps, int64_t activation, int64_t accuracy, bool tf32) {
  check_feature_map(op, x, "x");
  check_kernel_dtype(op, x);
  check_activation(op, activation);
  check_alk_limits(op, k, accuracy);
  STD_TORCH_CHECK(k > 0 && d >= 0 && taps % 2 == 1 && taps <= kMaxTaps, op, ": ", k, " channels out, ", d,
                  " distilled and ", taps, " taps; pass what packed was made for");
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, op, ": an image has 2^31 pixels or more; cut it into tiles");
  AlkCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.k = k;
  call.d = d;
  call.taps = taps;
  call.activation = activation;
  call.residual = d > 0;
  call.accuracy = accuracy;
  call.tf32 = tf32;
  call.eps = eps;
  call.x = view_of<TensorView>(x);
  use_packed(op, call, x, packed, "alk_conv_pack");
  const DeviceGuard guard(x.get_device_index());
  Tensor y = empty_map(x, k), distilled = d > 0 ? empty_map(x, d) : y;
  if (x.size(0) * x.size(2) * x.size(3) == 0) return {distilled, y};
  call.y = view_of<TensorView>(y);
  call.distilled = view_of<TensorView>(distilled);
  check_launch(op, alk_forward(call, current_stream(x)));
  return {distilled, y};
}

Tensor alk_conv_packed(const Tensor& x, const Tensor& packed, int64_t channels, int64_t taps, double eps,
                       int64_t activation, int64_t accuracy, bool tf32) {
  return std::get<1>(forward_packed("alk_conv_packed", x, packed, channels, 0, taps, eps, activation, accuracy, tf32));
}

std::tuple<Tensor, Tensor> alk_stage_packed(const Tensor& x, const Tensor& packed, int64_t distilled, int64_t taps,
                                            double eps, int64_t accuracy, bool tf32) {
  constexpr const char* kOp = "alk_stage_packed";
  STD_TORCH_CHECK(x.dim() == 4 && distilled > 0, kOp, ": x has ", x.dim(), " dimensions and ", distilled,
                  " channels are distilled; pass [N, C, H, W] and a positive number");
  return forward_packed(kOp, x, packed, x.size(1), distilled, taps, eps, 1, accuracy, tf32);
}

Tensor alk_conv(const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
                int64_t activation, int64_t accuracy, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  return forward("alk_conv", x, w, nullptr, nullptr, eps, activation, accuracy, tf32).y;
}

std::tuple<Tensor, Tensor> alk_stage(const Tensor& x, const Tensor& dw, const Tensor& db, const Tensor& pw,
                                     const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
                                     const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
                                     int64_t accuracy, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [distilled, y, _] = forward("alk_stage", x, w, &dw, &db, eps, 1, accuracy, tf32);
  return {distilled, y};
}

std::tuple<Tensor, Tensor> alk_conv_kept(const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b,
                                         const Tensor& l2w, const Tensor& l2b, const Tensor& sw, const Tensor& sb,
                                         const Tensor& nw, const Tensor& nb, double eps, int64_t activation,
                                         int64_t accuracy, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [_, y, packed] = forward("alk_conv_kept", x, w, nullptr, nullptr, eps, activation, accuracy, tf32, true);
  return {y, packed};
}

std::tuple<Tensor, Tensor, Tensor> alk_stage_kept(const Tensor& x, const Tensor& dw, const Tensor& db, const Tensor& pw,
                                                  const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                                                  const Tensor& l2b, const Tensor& sw, const Tensor& sb,
                                                  const Tensor& nw, const Tensor& nb, double eps, int64_t accuracy,
                                                  bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [distilled, y, packed] = forward("alk_stage_kept", x, w, &dw, &db, eps, 1, accuracy, tf32, true);
  return {distilled, y, packed};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_alk_conv", TORCH_BOX(&fastsr::cuda::alk_conv));
  m.impl("_cuda_alk_stage", TORCH_BOX(&fastsr::cuda::alk_stage));
  m.impl("alk_conv_pack", TORCH_BOX(&fastsr::cuda::alk_conv_pack));
  m.impl("_cuda_alk_conv_packed", TORCH_BOX(&fastsr::cuda::alk_conv_packed));
  m.impl("_cuda_alk_stage_packed", TORCH_BOX(&fastsr::cuda::alk_stage_packed));
  m.impl("_cuda_alk_conv_kept", TORCH_BOX(&fastsr::cuda::alk_conv_kept));
  m.impl("_cuda_alk_stage_kept", TORCH_BOX(&fastsr::cuda::alk_stage_kept));
}
