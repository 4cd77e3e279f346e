// The checks of esa's arguments, for the bindings of esa and esa_cca.
#pragma once

#include <vector>

#include "esa.h"
#include "parameters.h"

namespace fastsr::cuda {

inline void check_esa_weights(const char* op, int64_t c, const std::vector<Tensor>& w) {
  const int64_t count = static_cast<int64_t>(w.size());
  STD_TORCH_CHECK(count == 10 || count == 18, op, ": there are ", count, " weights; pass 10 or 18");
  STD_TORCH_CHECK(w[0].dim() == 4, op, ": conv1_weight has ", w[0].dim(), " dimensions; pass [F, C, 1, 1]");
  const int64_t f = w[0].size(0);
  STD_TORCH_CHECK(f > 0 && f <= kMaxEsaInner, op, ": conv1_weight gives ", f, " channels; pass 1 to ", kMaxEsaInner);
  check_weight(op, w[0], {f, c, 1, 1}, "conv1_weight");
  check_weight(op, w[1], {f}, "conv1_bias");
  for (int64_t i = 2; i < count - 4;) {
    if (count == 10) {
      check_weight(op, w[i++], {f, f, 3, 3}, "a 3x3 weight");
    } else {
      check_weight(op, w[i++], {f, f, 1, 1}, "a pointwise weight");
      check_weight(op, w[i++], {f, 1, 3, 3}, "a depthwise weight");
    }
    check_weight(op, w[i++], {f}, "a 3x3 bias");
  }
  check_weight(op, w[count - 4], {f, f, 1, 1}, "conv_f_weight");
  check_weight(op, w[count - 3], {f}, "conv_f_bias");
  check_weight(op, w[count - 2], {c, f, 1, 1}, "conv4_weight");
  check_weight(op, w[count - 1], {c}, "conv4_bias");
}

inline EsaCall esa_call_of(const char* op, const Tensor& x, const std::vector<Tensor>& weights, int64_t padding,
                           int64_t accuracy, bool tf32) {
  check_feature_map(op, x, "x");
  check_kernel_dtype(op, x);
  const int64_t c = x.size(1), least = 15 - 2 * padding;
  STD_TORCH_CHECK(c > 0 && c <= kMaxEsaChannels, op, ": x has ", c, " channels; pass 1 to ", kMaxEsaChannels);
  STD_TORCH_CHECK(padding == 0 || padding == 1, op, ": conv2_padding is ", padding, "; pass 0 or 1");
  STD_TORCH_CHECK(accuracy >= 0 && accuracy <= 2, op, ": accuracy is ", accuracy, "; pass 0, 1 or 2");
  STD_TORCH_CHECK(x.size(2) >= least && x.size(3) >= least, op, ": x is ", x.size(2), "x", x.size(3),
                  " pixels; pass at least ", least, "x", least);
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, op, ": an image has 2^31 pixels or more; cut it into tiles");
  check_esa_weights(op, c, weights);
  EsaCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.f = weights[0].size(0);
  call.padding = padding;
  call.accuracy = accuracy, call.tf32 = tf32;
  call.count = static_cast<int64_t>(weights.size());
  call.x = view_of<TensorView>(x);
  return call;
}

// What another operator made of x on the way: conv1(x), channels last.
inline void use_reduced(const char* op, EsaCall& call, const Tensor& x, const Tensor& reduced) {
  check_beside(op, x, reduced, reduced_channels(call.f), "reduced");
  STD_TORCH_CHECK(
      is_nhwc(reduced) && reinterpret_cast<uintptr_t>(reduced.const_data_ptr()) % 16 == 0, op,
      ": reduced is not as an operator leaves it; pass what alk_condense, conv_mix_reduce or pointwise_reduce "
      "returned");
  call.reduced = view_of<TensorView>(reduced);
}

}  // namespace fastsr::cuda
