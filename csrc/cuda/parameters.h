// What bindings do with an operator's parameters.
#pragma once

#include <vector>

#include "tensors.h"

namespace fastsr::cuda {

// Parameters in one dtype, contiguous: their own if they share it, else float32. Absent ones are null.
class ParameterSet {
 public:
  ParameterSet(const char* op, const Tensor& x, std::vector<const Tensor*> given) : given_(std::move(given)) {
    bool first = true;
    for (const Tensor* p : given_) {
      if (!p) continue;
      check_on_device(op, x, *p, "a parameter");
      if (first) dtype_ = p->scalar_type();
      if (p->scalar_type() != dtype_) dtype_ = ScalarType::Float;
      first = false;
    }
    for (const Tensor* p : given_)
      used_.push_back(p ? torch::stable::contiguous(torch::stable::to(*p, dtype_)) : Tensor());
  }
  int64_t dtype() const { return dtype_code(dtype_); }
  const void* data(size_t i) const { return given_[i] ? used_[i].const_data_ptr() : nullptr; }

  // Uninitialised, in the dtype that the parameters have in common.
  Tensor empty_gradient(size_t i) const { return torch::stable::empty_like(used_[i]); }
  Tensor in_own_dtype(const Tensor& gradient, size_t i) const {
    return torch::stable::to(gradient, given_[i]->scalar_type());
  }

 private:
  std::vector<const Tensor*> given_;
  ScalarType dtype_ = ScalarType::Float;
  std::vector<Tensor> used_;
};

}  // namespace fastsr::cuda
