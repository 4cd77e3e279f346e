// Parameters as kernels read them.
#pragma once

#include "device.cuh"

namespace fastsr::cuda {

enum DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// A contiguous parameter; its dtype may differ from the maps'.
struct Parameter {
  const void* data;
  int dtype;

  __device__ __forceinline__ float operator[](int64_t i) const {
    if (dtype == kFloat32) return static_cast<const float*>(data)[i];
    if (dtype == kFloat16) return to_float(static_cast<const Half*>(data)[i]);
    return to_float(static_cast<const BFloat16*>(data)[i]);
  }
  // Calls body(pointer) with the pointer's type.
  template <class Body>
  __device__ __forceinline__ void typed(Body body) const {
    if (dtype == kFloat32)
      body(static_cast<const float*>(data));
    else if (dtype == kFloat16)
      body(static_cast<const Half*>(data));
    else
      body(static_cast<const BFloat16*>(data));
  }
};

}  // namespace fastsr::cuda
