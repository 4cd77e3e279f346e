// Bilinear enlargement by a whole factor along one axis, as PyTorch's align_corners=False does it.
#pragma once

#include "device.cuh"

namespace fastsr::cuda {

// Position `to` of the enlarged axis is (1 - share) x[first] + share x[second].
struct BilinearTap {
  int first, second;
  float share;

  __device__ __forceinline__ BilinearTap(int to, float step, int size) {
    const float at = fmaxf((to + 0.5f) * step - 0.5f, 0.f);  // step: 1 / factor
    first = min(static_cast<int>(at), size - 1);
    second = min(first + 1, size - 1);
    share = fminf(fmaxf(at - first, 0.f), 1.f);
  }
  // How much of `from` is in it.
  __device__ __forceinline__ float of(int from) const {
    return (first == from ? 1.f - share : 0.f) + (second == from ? share : 0.f);
  }
};

}  // namespace fastsr::cuda
