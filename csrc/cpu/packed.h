// Weights packed once for many calls: a vector of floats that begins with what they were packed for.
//
// What follows the head is the array that the operator would pack for itself at every call. It depends on the
// instruction set, so a vector from another one (another machine, or another FASTSR_CPU_ISA) is refused.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "../checks.h"
#include "isa/table.h"

namespace fastsr::cpu {

enum class PackedFor { kAlkConv = 1, kEsa = 2, kConv3x3 = 3, kBsconv = 4, kPointwise = 5 };

class PackedWeights {
 public:
  static constexpr int64_t kHead = 16, kMostFacts = kHead - 2;

  // A new vector for `size` floats, zeros, on the device of `like`; `facts` are the sizes that its layout depends on.
  PackedWeights(const Tensor& like, PackedFor op, std::initializer_list<int64_t> facts, int64_t size)
      : tensor_(torch::stable::new_empty(like, {kHead + size}, ScalarType::Float)) {
    float* to = static_cast<float*>(tensor_.mutable_data_ptr());
    std::fill_n(to, kHead + size, 0.f);
    *to++ = static_cast<float>(op);
    *to++ = static_cast<float>(isa_level());
    for (const int64_t fact : facts) *to++ = static_cast<float>(fact);
  }
  // One that was made so, checked as far as that can be done without its layout.
  PackedWeights(const char* op, PackedFor expected, const Tensor& packed) : tensor_(packed) {
    STD_TORCH_CHECK(packed.dim() == 1 && packed.scalar_type() == ScalarType::Float && packed.numel() > kHead &&
                        packed.stride(0) == 1 && reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 64 == 0 &&
                        head(0) == static_cast<int64_t>(expected),
                    op, ": packed are no weights packed for this operator; pass what its _pack operator returned");
    STD_TORCH_CHECK(head(1) == isa_level(), op, ": packed are weights for instruction set ", head(1),
                    " (0 portable, 1 AVX2, 2 AVX-512), and ", isa_level(), " is in use; pack them again");
  }
  int64_t fact(int64_t i) const { return head(2 + i); }
  // To be called once the layout is known: whether the vector is as long as that.
  void check_size(const char* op, int64_t size) const {
    STD_TORCH_CHECK(tensor_.numel() == kHead + size, op, ": packed has ", tensor_.numel(), " elements; pass the ",
                    kHead + size, " that its _pack operator returned");
  }
  const float* data() const { return static_cast<const float*>(tensor_.const_data_ptr()) + kHead; }
  float* mutable_data() { return static_cast<float*>(tensor_.mutable_data_ptr()) + kHead; }
  const Tensor& tensor() const { return tensor_; }

 private:
  // -1 for anything that is not a number of the head.
  int64_t head(int64_t i) const {
    const float value = static_cast<const float*>(tensor_.const_data_ptr())[i];
    return value >= 0.f && value < 16777216.f && value == std::floor(value) ? static_cast<int64_t>(value) : -1;
  }
  Tensor tensor_;
};

}  // namespace fastsr::cpu
