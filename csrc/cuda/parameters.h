// The parameters of an operator, as its kernels take them, and their gradients.
#pragma once

#include <vector>

#include "tensors.h"

namespace fastsr::cuda {

// Contiguous and of one dtype: their own if they share it, else float32. Absent ones are null.
class Parameters {
 public:
  Parameters(const char* op, const Tensor& x, std::vector<const Tensor*> given) : given_(std::move(given)) {
    bool first = true;
    for (const Tensor* p : given_) {
      if (!p) continue;
      check_on_device(op, x, *p, "a weight");
      const ScalarType t = p->scalar_type();
      STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16, op,
                      ": a weight has a dtype without kernel; pass float32, float16 or bfloat16");
      dtype_ = first || t == dtype_ ? t : ScalarType::Float;
      first = false;
    }
    for (const Tensor* p : given_)
      used_.push_back(p ? torch::stable::contiguous(torch::stable::to(*p, dtype_)) : empty_vector(x));
  }

  int64_t dtype() const { return dtype_code(dtype_); }
  const void* data(size_t i) const { return given_[i] ? used_[i].const_data_ptr() : nullptr; }

  // Uninitialised gradients in the kernels' dtype; those of absent parameters are empty.
  std::vector<Tensor> gradients() const {
    std::vector<Tensor> to;
    for (const Tensor& p : used_) to.push_back(torch::stable::empty_like(p));
    return to;
  }
  Tensor in_own_dtype(const std::vector<Tensor>& gradients, size_t i) const {
    return given_[i] ? torch::stable::to(gradients[i], given_[i]->scalar_type()) : gradients[i];
  }

 private:
  static Tensor empty_vector(const Tensor& x) {
    const int64_t size = 0;
    return torch::stable::empty({&size, 1}, x.scalar_type(), std::nullopt, x.device());
  }

  std::vector<const Tensor*> given_;
  std::vector<Tensor> used_;
  ScalarType dtype_ = ScalarType::Float;
};

// What every operator on maps of any strides asks of x.
inline void check_image(const char* op, const Tensor& x) {
  check_feature_map(op, x, "x");
  check_kernel_dtype(op, x);
  STD_TORCH_CHECK(x.size(2) * x.size(3) < INT32_MAX, op, ": an image has 2^31 pixels or more; cut it into tiles");
}

// A map like the output: x's batch, size, dtype and device, and `channels`.
inline void check_beside(const char* op, const Tensor& x, const Tensor& t, int64_t channels, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == x.size(0) && t.size(1) == channels && t.size(2) == x.size(2) &&
                      t.size(3) == x.size(3),
                  op, ": ", name, " must be [", x.size(0), ", ", channels, ", ", x.size(2), ", ", x.size(3), "]");
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " and x differ in dtype");
  check_on_device(op, x, t, name);
}

inline void check_codes(const char* op, int64_t activation, int64_t accuracy) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, op, ": activation has code ", activation,
                  "; pass 0 (none), 1 (gelu) or 2 (leaky_relu)");
  STD_TORCH_CHECK(accuracy >= 0 && accuracy <= 2, op, ": accuracy is ", accuracy, "; pass 0, 1 or 2");
}

}  // namespace fastsr::cuda
