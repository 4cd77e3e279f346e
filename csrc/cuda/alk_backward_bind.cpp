// The backwards of fastsr::_cuda_alk_conv and _cuda_alk_stage, without and with weights that the forward kept: checks,
// outputs, workspace, launch.
#include <vector>

#include "alk_call.h"

namespace fastsr::cuda {
namespace {

struct Gradients {
  Tensor dx;
  std::vector<Tensor> parameters;
};

Gradients backward(const char* op, const Tensor& grad, const Tensor* grad_distilled, const Tensor& x,
                   const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias, double eps,
                   int64_t activation, bool tf32, const Tensor* packed = nullptr) {
  AlkCall call = alk_call(op, x, w, d_weight, d_bias, eps, activation, 0, tf32);
  check_alk_gradient(op, grad, x, call.k, d_weight ? "grad_refined" : "grad");
  check_on_device(op, x, grad, "a gradient");
  if (grad_distilled) {
    check_alk_gradient(op, *grad_distilled, x, call.d, "grad_distilled");
    check_on_device(op, x, *grad_distilled, "a gradient");
    call.distilled = view_of<TensorView>(*grad_distilled);
  }
  if (packed) {
    call.keeps = true;
    use_packed(op, call, x, *packed, "the forward operator");
  }
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = alk_parameters(op, x, w, d_weight, d_bias);
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> alk_conv_kept_backward(
    const Tensor& grad, const Tensor& x, const Tensor& packed, const Tensor& pw, const Tensor& l1w, const Tensor& l1b,
    const Tensor& l2w, const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
    double eps, int64_t activation, int64_t /*accuracy*/, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [dx, g] = backward("alk_conv_kept", grad, nullptr, x, w, nullptr, nullptr, eps, activation, tf32, &packed);
  return {dx, g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
alk_stage_kept_backward(const Tensor& grad_distilled, const Tensor& grad, const Tensor& x, const Tensor& packed,
                        const Tensor& dw, const Tensor& db, const Tensor& pw, const Tensor& l1w, const Tensor& l1b,
                        const Tensor& l2w, const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw,
                        const Tensor& nb, double eps, int64_t /*accuracy*/, bool tf32) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [dx, g] = backward("alk_stage_kept", grad, &grad_distilled, x, w, &dw, &db, eps, 1, tf32, &packed);
  return {dx, g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10]};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_alk_conv_backward", TORCH_BOX(&fastsr::cuda::alk_conv_backward));
  m.impl("_cuda_alk_stage_backward", TORCH_BOX(&fastsr::cuda::alk_stage_backward));
  m.impl("_cuda_alk_conv_kept_backward", TORCH_BOX(&fastsr::cuda::alk_conv_kept_backward));
  m.impl("_cuda_alk_stage_kept_backward", TORCH_BOX(&fastsr::cuda::alk_stage_kept_backward));
}
