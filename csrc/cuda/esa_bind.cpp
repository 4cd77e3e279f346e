// fastsr::_cuda_esa and its backward: checks, outputs, workspace, launch.
#include <tuple>

#include "esa.h"
#include "parameters.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "esa";
using Tensors = std::vector<Tensor>;

void check_weights(int64_t c, const Tensors& w) {
  const int64_t count = static_cast<int64_t>(w.size());
  STD_TORCH_CHECK(count == 10 || count == 18, kOp, ": there are ", count, " weights; pass 10 or 18");
  STD_TORCH_CHECK(w[0].dim() == 4, kOp, ": conv1_weight has ", w[0].dim(), " dimensions; pass [F, C, 1, 1]");
  const int64_t f = w[0].size(0);
  STD_TORCH_CHECK(f > 0 && f <= kMaxEsaInner, kOp, ": conv1_weight gives ", f, " channels; pass 1 to ", kMaxEsaInner);
  check_weight(kOp, w[0], {f, c, 1, 1}, "conv1_weight");
  check_weight(kOp, w[1], {f}, "conv1_bias");
  for (int64_t i = 2; i < count - 4;) {
    if (count == 10) {
      check_weight(kOp, w[i++], {f, f, 3, 3}, "a 3x3 weight");
    } else {
      check_weight(kOp, w[i++], {f, f, 1, 1}, "a pointwise weight");
      check_weight(kOp, w[i++], {f, 1, 3, 3}, "a depthwise weight");
    }
    check_weight(kOp, w[i++], {f}, "a 3x3 bias");
  }
  check_weight(kOp, w[count - 4], {f, f, 1, 1}, "conv_f_weight");
  check_weight(kOp, w[count - 3], {f}, "conv_f_bias");
  check_weight(kOp, w[count - 2], {c, f, 1, 1}, "conv4_weight");
  check_weight(kOp, w[count - 1], {c}, "conv4_bias");
}

Parameters parameters_of(const Tensor& x, const Tensors& weights) {
  std::vector<const Tensor*> given;
  for (const Tensor& w : weights) given.push_back(&w);
  return Parameters(kOp, x, given);
}

EsaCall call_of(const Tensor& x, const Tensors& weights, int64_t padding, int64_t accuracy) {
  check_feature_map(kOp, x, "x");
  check_kernel_dtype(kOp, x);
  const int64_t c = x.size(1), least = 15 - 2 * padding;
  STD_TORCH_CHECK(c > 0, kOp, ": x has no channels");
  STD_TORCH_CHECK(padding == 0 || padding == 1, kOp, ": conv2_padding is ", padding, "; pass 0 or 1");
  STD_TORCH_CHECK(accuracy >= 0 && accuracy <= 2, kOp, ": accuracy is ", accuracy, "; pass 0, 1 or 2");
  STD_TORCH_CHECK(x.size(2) >= least && x.size(3) >= least, kOp, ": x is ", x.size(2), "x", x.size(3),
                  " pixels; pass at least ", least, "x", least);
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, kOp, ": an image has 2^31 pixels or more; cut it into tiles");
  check_weights(c, weights);
  EsaCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.f = weights[0].size(0);
  call.padding = padding;
  call.accuracy = accuracy;
  call.count = static_cast<int64_t>(weights.size());
  call.x = view_of<TensorView>(x);
  return call;
}

void use(EsaCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  for (int64_t i = 0; i < call.count; ++i) call.parameters[i] = parameters.data(i);
}

Tensor forward(const Tensor& x, const Tensors& weights, int64_t padding, int64_t accuracy) {
  EsaCall call = call_of(x, weights, padding, accuracy);
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = parameters_of(x, weights);
  use(call, parameters);
  Tensor y = empty_map(x, x.size(1));
  if (x.size(0) == 0) return y;
  call.y = view_of<TensorView>(y);
  const Tensor memory = workspace(x, esa_forward_workspace(call));
  call.workspace = memory.mutable_data_ptr();
  check_launch(kOp, esa_forward(call, current_stream(x)));
  return y;
}

std::tuple<Tensor, Tensors> backward(const Tensor& grad, const Tensor& x, const Tensors& weights, int64_t padding,
                                     int64_t /*accuracy*/) {
  EsaCall call = call_of(x, weights, padding, 0);
  check_same_shape(kOp, x, grad, "grad");
  check_on_device(kOp, x, grad, "grad");
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), kOp, ": grad and x differ in dtype");
  const DeviceGuard guard(x.get_device_index());
  const Parameters parameters = parameters_of(x, weights);
  use(call, parameters);
  Tensor dx = empty_map(x, x.size(1));
  Tensors gradients = parameters.gradients();
  for (size_t i = 0; i < weights.size(); ++i) call.gradients[i] = gradients[i].mutable_data_ptr();
  if (x.size(0) == 0) {
    for (Tensor& g : gradients) torch::stable::zero_(g);
  } else {
    call.y = view_of<TensorView>(grad);
    call.dx = view_of<TensorView>(dx);
    const Tensor memory = workspace(x, esa_backward_workspace(call));
    call.workspace = memory.mutable_data_ptr();
    check_launch(kOp, esa_backward(call, current_stream(x)));
  }
  for (size_t i = 0; i < weights.size(); ++i) gradients[i] = parameters.in_own_dtype(gradients, i);
  return {dx, gradients};
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) {
  m.impl("_cuda_esa", TORCH_BOX(&fastsr::cuda::forward));
  m.impl("_cuda_esa_backward", TORCH_BOX(&fastsr::cuda::backward));
}
