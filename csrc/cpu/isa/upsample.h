// Kernels of upsample, filled in per instruction set by upsample.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct UpsampleKernels {};

}  // namespace fastsr::cpu
