// The weights of an ALKConv, and checks of what its operators are given.
#pragma once

#include "checks.h"

namespace fastsr {

struct AlkWeightTensors {
  const Tensor &pw_weight, &lora1_weight, &lora1_bias, &lora2_weight, &lora2_bias, &small_weight, &small_bias,
      &norm_weight, &norm_bias;
};

// `c` channels in.
inline void check_alk_weights(const char* op, int64_t c, const AlkWeightTensors& w, int64_t max_taps) {
  STD_TORCH_CHECK(w.pw_weight.dim() == 4 && w.pw_weight.size(0) > 0, op, ": pw_weight has ", w.pw_weight.dim(),
                  " dimensions; pass [K, C, 1, 1] with K > 0");
  STD_TORCH_CHECK(w.lora1_weight.dim() == 4, op, ": lora1_weight has ", w.lora1_weight.dim(),
                  " dimensions; pass [K, 1, k, 1]");
  const int64_t k = w.pw_weight.size(0), taps = w.lora1_weight.size(2);
  STD_TORCH_CHECK(taps % 2 == 1 && taps <= max_taps, op, ": lora1_weight has ", taps,
                  " taps; pass an odd number up to ", max_taps);
  check_weight(op, w.pw_weight, {k, c, 1, 1}, "pw_weight");
  check_weight(op, w.lora1_weight, {k, 1, taps, 1}, "lora1_weight");
  check_weight(op, w.lora2_weight, {k, 1, 1, taps}, "lora2_weight");
  check_weight(op, w.small_weight, {k, 1, 3, 3}, "small_weight");
  check_weight(op, w.lora1_bias, {k}, "lora1_bias");
  check_weight(op, w.lora2_bias, {k}, "lora2_bias");
  check_weight(op, w.small_bias, {k}, "small_bias");
  check_weight(op, w.norm_weight, {k}, "norm_weight");
  check_weight(op, w.norm_bias, {k}, "norm_bias");
}

inline void check_alk_weights(const char* op, const Tensor& x, const AlkWeightTensors& w, int64_t max_taps) {
  check_feature_map(op, x, "x");
  check_kernel_dtype(op, x);
  check_alk_weights(op, x.size(1), w, max_taps);
}

inline void check_distil(const char* op, int64_t c, const AlkWeightTensors& w, const Tensor& d_weight,
                         const Tensor& d_bias) {
  STD_TORCH_CHECK(w.pw_weight.size(0) == c, op, ": pw_weight gives ", w.pw_weight.size(0), " channels; pass ", c,
                  ", the channels of x, which is added to them");
  STD_TORCH_CHECK(d_weight.dim() == 4, op, ": d_weight has ", d_weight.dim(), " dimensions; pass [D, C, 1, 1]");
  check_weight(op, d_weight, {d_weight.size(0), c, 1, 1}, "d_weight");
  check_weight(op, d_bias, {d_weight.size(0)}, "d_bias");
}

inline void check_activation(const char* op, int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, op, ": activation is ", activation,
                  "; pass 0 (none), 1 (gelu) or 2 (leaky_relu)");
}

inline void check_alk_gradient(const char* op, const Tensor& grad, const Tensor& x, int64_t channels,
                               const char* name) {
  check_feature_map(op, grad, name);
  STD_TORCH_CHECK(
      grad.size(0) == x.size(0) && grad.size(1) == channels && grad.size(2) == x.size(2) && grad.size(3) == x.size(3),
      op, ": ", name, " is [", grad.size(0), ", ", grad.size(1), ", ", grad.size(2), ", ", grad.size(3), "]; pass [",
      x.size(0), ", ", channels, ", ", x.size(2), ", ", x.size(3), "]");
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), op, ": ", name, " and x differ in dtype");
}

}  // namespace fastsr
