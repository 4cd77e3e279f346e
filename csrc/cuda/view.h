// A tensor as the launchers see it.
#pragma once

#include <cstdint>

namespace fastsr::cuda {

struct TensorView {  // [N, C, H, W], strides in elements
  void* data;
  int64_t size[4], stride[4];
};

}  // namespace fastsr::cuda
