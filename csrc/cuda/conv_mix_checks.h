// The checks of conv_mix's arguments, for the bindings of conv_mix and conv_mix_reduce.
#pragma once

#include <optional>

#include "conv_mix.h"
#include "parameters.h"

namespace fastsr::cuda {

using MaybeTensor = std::optional<Tensor>;

inline std::vector<const Tensor*> mix_weights(const MaybeTensor& dw, const MaybeTensor& dw_bias, const Tensor& pw,
                                              const Tensor& pw_bias, const Tensor& c5, const Tensor& c5_bias) {
  return {dw ? &*dw : nullptr, dw_bias ? &*dw_bias : nullptr, &pw, &pw_bias, &c5, &c5_bias};
}

inline ConvMixCall conv_mix_call_of(const char* op, const Tensor& x, const Tensor& shortcut,
                                    const std::vector<const Tensor*>& p, int64_t activation, int64_t accuracy,
                                    bool tf32) {
  check_image(op, x);
  const int64_t c = x.size(1);
  check_beside(op, x, shortcut, c, "shortcut");
  STD_TORCH_CHECK(!p[0] == !p[1], op, ": only one of dw_weight and dw_bias is None; pass both or neither");
  if (p[0]) {
    check_weight(op, *p[0], {c, 1, 3, 3}, "dw_weight");
    check_vector(op, *p[1], c, "dw_bias");
  }
  check_weight(op, *p[2], {c, c, 1, 1}, "pw_weight");
  check_vector(op, *p[3], c, "pw_bias");
  STD_TORCH_CHECK(p[4]->dim() == 4, op, ": c5_weight has ", p[4]->dim(), " dimensions; pass [K, C, 1, 1]");
  const int64_t k = p[4]->size(0);
  check_weight(op, *p[4], {k, c, 1, 1}, "c5_weight");
  check_vector(op, *p[5], k, "c5_bias");
  STD_TORCH_CHECK(c <= kMostMixChannels && k <= kMostMixChannels, op, ": there are ", c, " channels in and ", k,
                  " out; pass at most ", kMostMixChannels);
  check_codes(op, activation, accuracy);
  ConvMixCall call{};
  call.dtype = dtype_code(x.scalar_type());
  call.activation = activation;
  call.accuracy = accuracy;
  call.tf32 = tf32;
  call.x = view_of<TensorView>(x);
  call.shortcut = view_of<TensorView>(shortcut);
  return call;
}

inline void use(ConvMixCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  for (size_t i = 0; i < 6; ++i) call.parameters[i] = parameters.data(i);
}

}  // namespace fastsr::cuda
