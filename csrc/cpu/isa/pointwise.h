// Kernels of pointwise, filled in per instruction set by pointwise.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct PointwiseKernels {};

}  // namespace fastsr::cpu
