// From tensors to an AlkCall: what the bindings of alk_conv and alk_stage have in common.
#pragma once

#include "../alk_checks.h"
#include "alk.h"
#include "parameters.h"

namespace fastsr::cuda {

inline Parameters alk_parameters(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight,
                                 const Tensor* d_bias) {
  return Parameters(op, x,
                    {d_weight, d_bias, &w.pw_weight, &w.lora1_weight, &w.lora1_bias, &w.lora2_weight, &w.lora2_bias,
                     &w.small_weight, &w.small_bias, &w.norm_weight, &w.norm_bias});
}

inline void use(AlkCall& call, const Parameters& parameters) {
  call.parameter_dtype = parameters.dtype();
  for (int i = 0; i < 11; ++i) call.parameters[i] = parameters.data(i);
}

inline void check_alk_limits(const char* op, int64_t k, int64_t accuracy) {
  STD_TORCH_CHECK(accuracy >= 0 && accuracy <= 2, op, ": accuracy is ", accuracy, "; pass 0, 1 or 2");
  STD_TORCH_CHECK(k <= kMaxChannelsOut, op, ": pw_weight gives ", k, " channels; pass at most ", kMaxChannelsOut);
}

inline AlkCall alk_call(const char* op, const Tensor& x, const AlkWeightTensors& w, const Tensor* d_weight,
                        const Tensor* d_bias, double eps, int64_t activation, int64_t accuracy, bool tf32) {
  check_alk_weights(op, x, w, kMaxTaps);
  if (d_weight) check_distil(op, x.size(1), w, *d_weight, *d_bias);
  check_activation(op, activation);
  const int64_t k = w.pw_weight.size(0);
  check_alk_limits(op, k, accuracy);
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

// What packs the weights, for maps of their own dtype; its parameters are to be set by `use`.
inline AlkCall alk_pack_call(const char* op, const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias) {
  const Tensor& pw = w.pw_weight;
  STD_TORCH_CHECK(pw.dim() == 4, op, ": pw_weight has ", pw.dim(), " dimensions; pass [K, C, 1, 1]");
  check_alk_weights(op, pw.size(1), w, kMaxTaps);
  if (d_weight) check_distil(op, pw.size(1), w, *d_weight, *d_bias);
  check_alk_limits(op, pw.size(0), 0);
  check_kernel_dtype(op, pw);
  AlkCall call{};
  call.dtype = dtype_code(pw.scalar_type());
  call.k = pw.size(0);
  call.d = d_weight ? d_weight->size(0) : 0;
  call.taps = w.lora1_weight.size(2);
  call.x.size[1] = pw.size(1);
  return call;
}

// `packed` must be what `alk_pack` wrote for this call; `from` says who returned it.
inline void use_packed(const char* op, AlkCall& call, const Tensor& x, const Tensor& packed, const char* from) {
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous() &&
                      packed.numel() == alk_packed_bytes(call),
                  op, ": packed are no weights from ", x.size(1), " to ", call.k, " channels of ", call.taps,
                  " taps for this dtype; pass what ", from, " returned");
  check_on_device(op, x, packed, "packed");
  call.packed = packed.const_data_ptr();
}

}  // namespace fastsr::cuda
