// Kernels of conv3x3_gelu, filled in per instruction set by conv3x3_gelu.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct Conv3x3GeluKernels {};

}  // namespace fastsr::cpu
