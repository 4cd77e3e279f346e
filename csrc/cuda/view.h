// A tensor as the launchers see it.
#pragma once

#include <cstdint>

namespace fastsr::cuda {

struct TensorView {  // [N, C, H, W], strides in elements
  void* data;
  int64_t size[4], stride[4];
};

// From its first element to its last.
inline int64_t bytes_of(const TensorView& v, int64_t element_bytes) {
  int64_t elements = 1;
  for (int i = 0; i < 4; ++i) {
    if (v.size[i] == 0) return 0;
    elements += (v.size[i] - 1) * v.stride[i];
  }
  return elements * element_bytes;
}

}  // namespace fastsr::cuda
