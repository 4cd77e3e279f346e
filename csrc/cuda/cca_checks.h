// The checks of cca_norm's parameters, for the bindings of cca_norm and esa_cca.
#pragma once

#include "cca_norm.h"
#include "tensors.h"

namespace fastsr::cuda {

struct CcaLayers {
  const Tensor &w0, &b0, &w2, &b2;
};

inline void check_cca_weights(const char* op, const Tensor& x, const CcaLayers& l, const Tensor* norm_weight,
                              const Tensor* norm_bias) {
  const int64_t c = x.size(1);
  STD_TORCH_CHECK(c > 0 && c <= kMaxCcaChannels, op, ": x has ", c, " channels; pass 1 to ", kMaxCcaChannels);
  STD_TORCH_CHECK(l.w0.dim() == 4, op, ": du0_weight has ", l.w0.dim(), " dimensions; pass [R, C, 1, 1]");
  const int64_t r = l.w0.size(0);
  STD_TORCH_CHECK(r > 0 && r <= kMaxCcaHidden, op, ": du0_weight gives ", r, " channels; pass 1 to ", kMaxCcaHidden);
  check_weight(op, l.w0, {r, c, 1, 1}, "du0_weight");
  check_weight(op, l.b0, {r}, "du0_bias");
  check_weight(op, l.w2, {c, r, 1, 1}, "du2_weight");
  check_weight(op, l.b2, {c}, "du2_bias");
  if (norm_weight) check_weight(op, *norm_weight, {c}, "norm_weight");
  if (norm_bias) check_weight(op, *norm_bias, {c}, "norm_bias");
}

}  // namespace fastsr::cuda
