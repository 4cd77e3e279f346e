// From tensors to an AlkCondenseCall: what the bindings that take the weights of alk_condense have in common.
#pragma once

#include "../alk_checks.h"
#include "alk_condense.h"
#include "parameters.h"

namespace fastsr::cuda {

// What stands behind the convolution.
struct CondenseRest {
  const Tensor &c5_weight, &c5_bias, &conv1_weight, &conv1_bias;
};

inline void check_condense_limits(const char* op, const AlkCondenseCall& call) {
  STD_TORCH_CHECK(call.alk.accuracy >= 0 && call.alk.accuracy <= 2, op, ": accuracy is ", call.alk.accuracy,
                  "; pass 0, 1 or 2");
  STD_TORCH_CHECK(call.d > 0 && call.alk.k > 0 && call.outputs > 0 && call.inner > 0, op, ": ", call.alk.k, ", ",
                  call.outputs, " and ", call.inner, " channels out, ", call.d, " distilled; pass positive numbers");
  STD_TORCH_CHECK(call.alk.taps % 2 == 1 && call.alk.taps <= kMostCondensedTaps && call.alk.k <= kMostCondensedFrom &&
                      call.outputs <= kMostCondensed && call.inner <= kMostReduced,
                  op, ": ", call.alk.taps, " taps, ", call.alk.k, ", ", call.outputs, " and ", call.inner,
                  " channels out; pass at most ", kMostCondensedTaps, ", ", kMostCondensedFrom, ", ", kMostCondensed,
                  " and ", kMostReduced);
}

// Sizes and parameters from the weights.
inline AlkCondenseCall alk_condense_call(const char* op, int64_t c, const AlkWeightTensors& w, const CondenseRest& rest,
                                         int64_t accuracy, bool tf32) {
  check_alk_weights(op, c, w, kMostCondensedTaps);
  AlkCondenseCall call{};
  call.alk.k = w.pw_weight.size(0);
  call.alk.taps = w.lora1_weight.size(2);
  call.alk.accuracy = accuracy;
  call.alk.tf32 = tf32;
  STD_TORCH_CHECK(rest.c5_weight.dim() == 4 && rest.conv1_weight.dim() == 4, op, ": c5_weight has ",
                  rest.c5_weight.dim(), " and conv1_weight ", rest.conv1_weight.dim(), " dimensions; pass 4");
  call.outputs = rest.c5_weight.size(0), call.inner = rest.conv1_weight.size(0);
  call.d = (rest.c5_weight.size(1) - call.alk.k) / kDistilled;
  check_weight(op, rest.c5_weight, {call.outputs, kDistilled * call.d + call.alk.k, 1, 1}, "c5_weight");
  check_weight(op, rest.c5_bias, {call.outputs}, "c5_bias");
  check_weight(op, rest.conv1_weight, {call.inner, call.outputs, 1, 1}, "conv1_weight");
  check_weight(op, rest.conv1_bias, {call.inner}, "conv1_bias");
  check_condense_limits(op, call);
  return call;
}

inline Parameters alk_condense_parameters(const char* op, const Tensor& x, const AlkWeightTensors& w,
                                          const CondenseRest& r) {
  return Parameters(
      op, x,
      {&w.pw_weight, &w.lora1_weight, &w.lora1_bias, &w.lora2_weight, &w.lora2_bias, &w.small_weight, &w.small_bias,
       &w.norm_weight, &w.norm_bias, &r.c5_weight, &r.c5_bias, &r.conv1_weight, &r.conv1_bias});
}

inline void use(AlkCondenseCall& call, const Parameters& parameters) {
  call.alk.parameter_dtype = parameters.dtype();
  for (int i = 0; i < 9; ++i) call.alk.parameters[2 + i] = parameters.data(i);
  for (int i = 0; i < 4; ++i) call.parameters[i] = parameters.data(9 + i);
}

// What packs the weights, for maps of their own dtype; its parameters are to be set by `use`.
inline AlkCondenseCall alk_condense_pack_call(const char* op, const AlkWeightTensors& w, const CondenseRest& rest) {
  const Tensor& pw = w.pw_weight;
  STD_TORCH_CHECK(pw.dim() == 4, op, ": pw_weight has ", pw.dim(), " dimensions; pass [K, C, 1, 1]");
  check_kernel_dtype(op, pw);
  AlkCondenseCall call = alk_condense_call(op, pw.size(1), w, rest, 0, false);
  call.alk.dtype = dtype_code(pw.scalar_type());
  call.alk.x.size[1] = pw.size(1);
  return call;
}

}  // namespace fastsr::cuda
