// Parameters on their way to the kernels and back: checks, float32, packing, gradients.
#pragma once

#include "../checks.h"

namespace fastsr::cpu {

// In `dtype`, the tensor itself if it has that. PyTorch is asked only where there is something to do: its operators are
// looked up by name, which takes longer than reading a small parameter.
inline Tensor in_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

// Contiguous and in `dtype`, which most parameters are in inference and training.
inline Tensor dense(const Tensor& t, ScalarType dtype = ScalarType::Float) {
  const Tensor converted = in_dtype(t, dtype);
  return converted.is_contiguous() ? converted : torch::stable::contiguous(converted);
}

// A parameter as contiguous float32.
class FloatParameter {
 public:
  explicit FloatParameter(const Tensor& p)
      : tensor_(dense(p)), data_(static_cast<const float*>(tensor_.const_data_ptr())) {}
  float operator[](int64_t i) const { return data_[i]; }

 private:
  Tensor tensor_;
  const float* data_;
};

// [n][c] -> [c][n_padded]
inline void pack_transposed(const Tensor& weight, int64_t n, int64_t c, float* to, int64_t n_padded) {
  const FloatParameter from(weight);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < c; ++j) to[j * n_padded + i] = from[i * c + j];
}

// A gradient of `parameter`'s shape and dtype, with value(i) in its i-th element.
template <class Value>
Tensor gradient_of(const Tensor& parameter, Value&& value) {
  const Tensor exact = torch::stable::new_empty(parameter, parameter.sizes(), ScalarType::Float);
  float* to = static_cast<float*>(exact.mutable_data_ptr());
  for (int64_t i = 0, count = exact.numel(); i < count; ++i) to[i] = static_cast<float>(value(i));
  return in_dtype(exact, parameter.scalar_type());
}

}  // namespace fastsr::cpu
