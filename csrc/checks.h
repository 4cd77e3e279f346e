// Checks shared by all operator bindings. Messages follow the Python side: operator, what was given, what is accepted.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace fastsr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_feature_map(const char* op, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": ", name, " has ", x.dim(), " dimensions; pass [N, C, H, W]");
}

inline void check_same_shape(const char* op, const Tensor& x, const Tensor& other, const char* name) {
  check_feature_map(op, other, name);
  for (int64_t i = 0; i < 4; ++i)
    STD_TORCH_CHECK(other.size(i) == x.size(i), op, ": ", name, " has extent ", other.size(i), " in dimension ", i,
                    "; pass ", x.size(i), ", the extent of x");
}

inline void check_vector(const char* op, const Tensor& v, int64_t size, const char* name) {
  STD_TORCH_CHECK(v.dim() == 1 && v.numel() == size, op, ": ", name, " has ", v.dim(), " dimensions and ", v.numel(),
                  " elements; pass one value for each of the ", size, " channels");
}

}  // namespace fastsr
