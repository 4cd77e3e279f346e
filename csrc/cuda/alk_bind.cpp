// fastsr::_cuda_alk_conv, _cuda_alk_stage and their backwards: checks, outputs, workspace, launch.
#include <optional>
#include <vector>

#include "../alk_checks.h"
#include "alk.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

Parameters parameters_of(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight,
                         const Tensor* d_bias) {
  return Parameters(op, x,
                    {d_weight, d_bias, &w.pw_weight, &w.lora1_weight, &w.lora1_bias, &w.lora2_weight, &w.lora2_bias,
                     &w.small_weight, &w.small_bias, &w.norm_weight, &w.norm_bias});
}

void use(AlkCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  for (int i = 0; i < 11; ++i) call.parameters[i] = parameters.data(i);
}

void check_limits(const char* op, int64_t k, int64_t accuracy) {
  STD_TORCH_CHECK(accuracy >= 0 && accuracy <= 2, op, ": accuracy is ", accuracy, "; pass 0, 1 or 2");
  STD_TORCH_CHECK(k <= kMaxChannelsOut, op, ": pw_weight gives ", k, " channels; pass at most ", kMaxChannelsOut);
}

AlkCall call_of(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight,
                const Tensor* d_bias, double eps, int64_t activation, int64_t accuracy, bool tf32) {
  check_alk_weights(op, x, w, kMaxTaps);
  if (d_weight) check_distil(op, x.size(1), w, *d_weight, *d_bias);
  check_activation(op, activation);
  const int64_t k = w.pw_weight.size(0);
  check_limits(op, k, accuracy);
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, op, ": an image has 2^31 pixels or more; cut it into tiles");
  AlkCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.k = k;
  call.d = d_weight ? d_weight->size(0) : 0;
  call.taps = w.lora1_weight.size(2);
  call.activation = activation;
  call.residual = d_weight != nullptr;
  call.accuracy = accuracy;
  call.tf32 = tf32;
  call.eps = eps;
  call.x = view_of<TensorView>(x);
  return call;
}

// (distilled, y)
std::tuple<Tensor, Tensor> forward(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight,
                                   const Tensor* d_bias, double eps, int64_t activation, int64_t accuracy, bool tf32) {
  AlkCall call = call_of(op, x, w, d_weight, d_bias, eps, activation, accuracy, tf32);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = parameters_of(op, x, w, d_weight, d_bias);
  use(call, parameters);
  Tensor y = empty_map(x, call.k), distilled = d_weight ? empty_map(x, call.d) : y;
  if (x.size(0) * x.size(2) * x.size(3) == 0) return {distilled, y};
  call.y = view_of<TensorView>(y);
  call.distilled = view_of<TensorView>(distilled);
  const Tensor memory = workspace(x, alk_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(op, alk_forward(call, current_stream(x)));
  return {distilled, y};
}

// Weights for maps of their own dtype.
Tensor alk_conv_pack(const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
                     const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
                     const std::optional<Tensor>& d_weight, const std::optional<Tensor>& d_bias) {
  constexpr const char* kOp = "alk_conv_pack";
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const Tensor *dw = d_weight ? &*d_weight : nullptr, *db = d_bias ? &*d_bias : nullptr;
  STD_TORCH_CHECK((dw == nullptr) == (db == nullptr), kOp, ": only one of d_weight and d_bias is given; pass both");
  STD_TORCH_CHECK(pw.dim() == 4, kOp, ": pw_weight has ", pw.dim(), " dimensions; pass [K, C, 1, 1]");
  check_alk_weights(kOp, pw.size(1), w, kMaxTaps);
  if (dw) check_distil(kOp, pw.size(1), w, *dw, *db);
  check_limits(kOp, pw.size(0), 0);
  check_kernel_dtype(kOp, pw);
  AlkCall call{};
  call.dtype = dtype_code(pw.scalar_type());
  call.k = pw.size(0);
  call.d = dw ? dw->size(0) : 0;
  call.taps = l1w.size(2);
  call.x.size[1] = pw.size(1);
  const DeviceGuard guard(pw.get_device_index());
  const Parameters parameters = parameters_of(kOp, pw, w, dw, db);
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
  check_limits(op, k, accuracy);
  STD_TORCH_CHECK(k > 0 && d >= 0 && taps % 2 == 1 && taps <= kMaxTaps, op, ": ", k, " channels out, ", d,
                  " distilled and ", taps, " taps; pass what packed was made for");
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, op, ": an image has 2^31 pixels or more; cut it into tiles");
  check_on_device(op, x, packed, "packed");
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
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous() &&
                      packed.numel() == alk_packed_bytes(call),
                  op, ": packed are no weights from ", x.size(1), " to ", k, " channels of ", taps,
                  " taps for this dtype; pass what alk_conv_pack returned");
  call.packed = packed.const_data_ptr();
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

struct Gradients {
  Tensor dx;
  std::vector<Tensor> parameters;
};

Gradients backward(const char* op, const Tensor& grad, const Tensor* grad_distilled, const Tensor& x,
                   const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias, double eps,
                   int64_t activation, bool tf32) {
  AlkCall call = call_of(op, x, w, d_weight, d_bias, eps, activation, 0, tf32);
  check_alk_gradient(op, grad, x, call.k, d_weight ? "grad_refined" : "grad");
  check_on_device(op, x, grad, "a gradient");
  if (grad_distilled) {
    check_alk_gradient(op, *grad_distilled, x, call.d, "grad_distilled");
    check_on_device(op, x, *grad_distilled, "a gradient");
    call.distilled = view_of<TensorView>(*grad_distilled);
  }
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = parameters_of(op, x, w, d_weight, d_bias);
  use(call, parameters);
  Tensor dx = empty_map(x, x.size(1));
  call.y = view_of<TensorView>(grad);
  call.dx = view_of<TensorView>(dx);
  std::vector<Tensor> gradients = parameters.gradients();
  for (int i = 0; i < 11; ++i) call.gradients[i] = parameters.data(i) ? gradients[i].mutable_data_ptr() : nullptr;
  const Tensor memory = workspace(x, alk_backward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(op, alk_backward(call, current_stream(x)));
  for (int i = 0; i < 11; ++i) gradients[i] = parameters.in_own_dtype(gradients[i], i);
  return {dx, gradients};
}

Tensor alk_conv(const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
                int64_t activation, int64_t accuracy, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  return std::get<1>(forward("alk_conv", x, w, nullptr, nullptr, eps, activation, accuracy, tf32));
}

std::tuple<Tensor, Tensor> alk_stage(const Tensor& x, const Tensor& dw, const Tensor& db, const Tensor& pw,
                                     const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
                                     const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
                                     int64_t accuracy, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  return forward("alk_stage", x, w, &dw, &db, eps, 1, accuracy, tf32);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> alk_conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
    const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
    int64_t activation, int64_t /*accuracy*/, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [dx, g] = backward("alk_conv", grad, nullptr, x, w, nullptr, nullptr, eps, activation, tf32);
  return {dx, g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
alk_stage_backward(const Tensor& grad_distilled, const Tensor& grad, const Tensor& x, const Tensor& dw,
                   const Tensor& db, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                   const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
                   double eps, int64_t /*accuracy*/, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [dx, g] = backward("alk_stage", grad, &grad_distilled, x, w, &dw, &db, eps, 1, tf32);
  return {dx, g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10]};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_alk_conv", TORCH_BOX(&fastsr::cuda::alk_conv));
  m.impl("_cuda_alk_stage", TORCH_BOX(&fastsr::cuda::alk_stage));
  m.impl("alk_conv_pack", TORCH_BOX(&fastsr::cuda::alk_conv_pack));
  m.impl("_cuda_alk_conv_packed", TORCH_BOX(&fastsr::cuda::alk_conv_packed));
  m.impl("_cuda_alk_stage_packed", TORCH_BOX(&fastsr::cuda::alk_stage_packed));
  m.impl("_cuda_alk_conv_backward", TORCH_BOX(&fastsr::cuda::alk_conv_backward));
  m.impl("_cuda_alk_stage_backward", TORCH_BOX(&fastsr::cuda::alk_stage_backward));
}
