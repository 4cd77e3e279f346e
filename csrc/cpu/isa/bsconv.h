// Kernels of bsconv, filled in per instruction set by bsconv.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct BsconvKernels {};

}  // namespace fastsr::cpu
