// Checks shared by all operator bindings. Messages follow the Python side: operator, what was given, what is accepted.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>

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

inline void check_weight(const char* op, const Tensor& w, std::initializer_list<int64_t> shape, const char* name) {
  STD_TORCH_CHECK(w.dim() == static_cast<int64_t>(shape.size()), op, ": ", name, " has ", w.dim(), " dimensions; pass ",
                  shape.size());
  int64_t i = 0;
  for (const int64_t extent : shape) {
    STD_TORCH_CHECK(w.size(i) == extent, op, ": ", name, " has extent ", w.size(i), " in dimension ", i, "; pass ",
                    extent);
    ++i;
  }
  const ScalarType t = w.scalar_type();
  STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16, op, ": ", name,
                  " has a dtype without kernel; pass float32, float16 or bfloat16");
}

inline void check_kernel_dtype(const char* op, const Tensor& x) {
  const ScalarType t = x.scalar_type();
  STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16, op,
                  ": x has a dtype without kernel; pass float32, float16 or bfloat16");
}

}  // namespace fastsr
