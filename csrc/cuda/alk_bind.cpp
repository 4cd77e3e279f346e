// fastsr::_cuda_alk_conv, _cuda_alk_stage and their backwards: checks, outputs, workspace, launch.
#include <array>
#include <vector>

#include "../alk_checks.h"
#include "alk.h"
#include "tensors.h"

namespace fastsr::cuda {
namespace {

// The parameters as one dtype, contiguous: their own if they share it, else float32.
class Parameters {
 public:
  Parameters(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias)
      : given_{d_weight,      d_bias,          &w.pw_weight,  &w.lora1_weight, &w.lora1_bias, &w.lora2_weight,
               &w.lora2_bias, &w.small_weight, &w.small_bias, &w.norm_weight,  &w.norm_bias},
        dtype_(w.pw_weight.scalar_type()) {
    for (const Tensor* p : given_) {
      if (!p) continue;
      check_on_device(op, x, *p, "a weight");
      if (p->scalar_type() != dtype_) dtype_ = ScalarType::Float;
    }
    for (const Tensor* p : given_)
      used_.push_back(p ? torch::stable::contiguous(torch::stable::to(*p, dtype_)) : w.pw_weight);
  }
  void fill(AlkCall& call) const {
    call.parameter_dtype = dtype_code(dtype_);
    for (int i = 0; i < 11; ++i) call.parameters[i] = given_[i] ? used_[i].const_data_ptr() : nullptr;
  }
  // Uninitialised gradients; those of absent parameters are empty.
  std::vector<Tensor> gradients(AlkCall& call) const {
    std::vector<Tensor> to;
    for (int i = 0; i < 11; ++i) {
      to.push_back(given_[i] ? torch::stable::empty_like(used_[i]) : used_[i]);
      call.gradients[i] = given_[i] ? to[i].mutable_data_ptr() : nullptr;
    }
    return to;
  }
  Tensor in_own_dtype(const Tensor& gradient, int i) const {
    return torch::stable::to(gradient, given_[i]->scalar_type());
  }

 private:
  std::array<const Tensor*, 11> given_;
  ScalarType dtype_;
  std::vector<Tensor> used_;
};

AlkCall call_of(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight,
                const Tensor* d_bias, double eps, int64_t activation, int64_t accuracy) {
  check_alk_weights(op, x, w, kMaxTaps);
  if (d_weight) check_distil(op, x.size(1), w, *d_weight, *d_bias);
  check_activation(op, activation);
  STD_TORCH_CHECK(accuracy >= 0 && accuracy <= 2, op, ": accuracy is ", accuracy, "; pass 0, 1 or 2");
  const int64_t k = w.pw_weight.size(0);
  STD_TORCH_CHECK(k <= kMaxChannelsOut, op, ": pw_weight gives ", k, " channels; pass at most ", kMaxChannelsOut);
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, op, ": an image has 2^31 pixels or more; cut it into tiles");
  AlkCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.k = k;
  call.d = d_weight ? d_weight->size(0) : 0;
  call.taps = w.lora1_weight.size(2);
  call.activation = activation;
  call.residual = d_weight != nullptr;
  call.accuracy = accuracy;
  call.eps = eps;
  call.x = view_of<TensorView>(x);
  return call;
}

// (distilled, y)
std::tuple<Tensor, Tensor> forward(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight,
                                   const Tensor* d_bias, double eps, int64_t activation, int64_t accuracy) {
  AlkCall call = call_of(op, x, w, d_weight, d_bias, eps, activation, accuracy);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(op, x, w, d_weight, d_bias);
  parameters.fill(call);
  Tensor y = empty_map(x, call.k), distilled = d_weight ? empty_map(x, call.d) : y;
  if (x.size(0) * x.size(2) * x.size(3) == 0) return {distilled, y};
  call.y = view_of<TensorView>(y);
  call.distilled = view_of<TensorView>(distilled);
  const Tensor memory = workspace(x, alk_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(op, alk_forward(call, current_stream(x)));
  return {distilled, y};
}

struct Gradients {
  Tensor dx;
  std::vector<Tensor> parameters;
};

Gradients backward(const char* op, const Tensor& grad, const Tensor* grad_distilled, const Tensor& x,
                   const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias, double eps,
                   int64_t activation) {
  AlkCall call = call_of(op, x, w, d_weight, d_bias, eps, activation, 0);
  check_alk_gradient(op, grad, x, call.k, d_weight ? "grad_refined" : "grad");
  check_on_device(op, x, grad, "a gradient");
  if (grad_distilled) {
    check_alk_gradient(op, *grad_distilled, x, call.d, "grad_distilled");
    check_on_device(op, x, *grad_distilled, "a gradient");
    call.distilled = view_of<TensorView>(*grad_distilled);
  }
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters(op, x, w, d_weight, d_bias);
  parameters.fill(call);
  Tensor dx = empty_map(x, x.size(1));
  call.y = view_of<TensorView>(grad);
  call.dx = view_of<TensorView>(dx);
  std::vector<Tensor> gradients = parameters.gradients(call);
  const Tensor memory = workspace(x, alk_backward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(op, alk_backward(call, current_stream(x)));
  for (int i = d_weight ? 0 : 2; i < 11; ++i) gradients[i] = parameters.in_own_dtype(gradients[i], i);
  return {dx, gradients};
}

Tensor alk_conv(const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
                int64_t activation, int64_t accuracy) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  return std::get<1>(forward("alk_conv", x, w, nullptr, nullptr, eps, activation, accuracy));
}

std::tuple<Tensor, Tensor> alk_stage(const Tensor& x, const Tensor& dw, const Tensor& db, const Tensor& pw,
                                     const Tensor& l1w, const Tensor& l1b, const Tensor& l2w, const Tensor& l2b,
                                     const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
                                     int64_t accuracy) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  return forward("alk_stage", x, w, &dw, &db, eps, 1, accuracy);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> alk_conv_backward(
    const Tensor& grad, const Tensor& x, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
    const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb, double eps,
    int64_t activation, int64_t /*accuracy*/) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [dx, g] = backward("alk_conv", grad, nullptr, x, w, nullptr, nullptr, eps, activation);
  return {dx, g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
alk_stage_backward(const Tensor& grad_distilled, const Tensor& grad, const Tensor& x, const Tensor& dw,
                   const Tensor& db, const Tensor& pw, const Tensor& l1w, const Tensor& l1b, const Tensor& l2w,
                   const Tensor& l2b, const Tensor& sw, const Tensor& sb, const Tensor& nw, const Tensor& nb,
                   double eps, int64_t /*accuracy*/) {
  const AlkWeightTensors w{pw, l1w, l1b, l2w, l2b, sw, sb, nw, nb};
  const auto [dx, g] = backward("alk_stage", grad, &grad_distilled, x, w, &dw, &db, eps, 1);
  return {dx, g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8], g[9], g[10]};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_alk_conv", TORCH_BOX(&fastsr::cuda::alk_conv));
  m.impl("_cuda_alk_stage", TORCH_BOX(&fastsr::cuda::alk_stage));
  m.impl("_cuda_alk_conv_backward", TORCH_BOX(&fastsr::cuda::alk_conv_backward));
  m.impl("_cuda_alk_stage_backward", TORCH_BOX(&fastsr::cuda::alk_stage_backward));
}
