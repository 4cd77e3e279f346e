// The checks of pointwise's arguments, for the bindings of pointwise and pointwise_reduce.
#pragma once

#include <optional>

#include "parameters.h"
#include "pointwise.h"

namespace fastsr::cuda {

using Maps = std::vector<Tensor>;

inline void check_map(const char* op, const Tensor& x, const Tensor& first, int64_t channels, const char* name) {
  check_feature_map(op, x, name);
  check_on_device(op, first, x, name);
  STD_TORCH_CHECK(x.scalar_type() == first.scalar_type(), op, ": ", name, " and the first input differ in dtype");
  STD_TORCH_CHECK(
      x.size(0) == first.size(0) && x.size(1) == channels && x.size(2) == first.size(2) && x.size(3) == first.size(3),
      op, ": ", name, " is [", x.size(0), ", ", x.size(1), ", ", x.size(2), ", ", x.size(3), "]; pass [", first.size(0),
      ", ", channels, ", ", first.size(2), ", ", first.size(3), "]");
}

// Of a call the inputs; `channels` is how many they have together.
inline PointwiseCall pointwise_inputs(const char* op, const Maps& inputs, int64_t& channels) {
  const int64_t count = static_cast<int64_t>(inputs.size());
  STD_TORCH_CHECK(count > 0 && count <= kMaxMaps, op, ": there are ", count, " inputs; pass 1 to ", kMaxMaps);
  const Tensor& first = inputs[0];
  check_feature_map(op, first, "an input");
  check_kernel_dtype(op, first);
  STD_TORCH_CHECK(first.size(2) * first.size(3) < INT32_MAX, op,
                  ": an image has 2^31 pixels or more; cut it into tiles");
  PointwiseCall call{};
  channels = 0;
  for (int64_t i = 0; i < count; ++i) {
    check_feature_map(op, inputs[i], "an input");
    check_map(op, inputs[i], first, inputs[i].size(1), "an input");
    call.x[i] = view_of<TensorView>(inputs[i]);
    channels += inputs[i].size(1);
  }
  call.dtype = dtype_code(first.scalar_type());
  call.inputs = count;
  return call;
}

inline PointwiseCall pointwise_call_of(const char* op, const Maps& inputs, const Tensor& weight, const Tensor& bias,
                                       const std::optional<Tensor>& shortcut, int64_t activation, int64_t accuracy,
                                       bool tf32) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, op, ": activation is ", activation, "; pass 0, 1 or 2");
  STD_TORCH_CHECK(accuracy >= 0 && accuracy <= 2, op, ": accuracy is ", accuracy, "; pass 0, 1 or 2");
  int64_t channels = 0;
  PointwiseCall call = pointwise_inputs(op, inputs, channels);
  STD_TORCH_CHECK(weight.dim() == 4, op, ": weight has ", weight.dim(), " dimensions; pass [K, C, 1, 1]");
  const int64_t k = weight.size(0);
  STD_TORCH_CHECK(k > 0 && channels > 0, op, ": weight is [", k, ", ", channels, ", 1, 1]; pass channels");
  check_weight(op, weight, {k, channels, 1, 1}, "weight");
  check_weight(op, bias, {k}, "bias");
  call.activation = activation;
  call.accuracy = accuracy;
  call.tf32 = tf32;
  if (shortcut) {
    check_map(op, *shortcut, inputs[0], k, "shortcut");
    call.shortcut = view_of<TensorView>(*shortcut);
  }
  return call;
}

inline bool is_empty(const Tensor& x) { return x.size(0) * x.size(2) * x.size(3) == 0; }

inline void use(PointwiseCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  call.weight = parameters.data(0);
  call.bias = parameters.data(1);
}

}  // namespace fastsr::cuda
