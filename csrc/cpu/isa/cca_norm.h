// Kernels of cca_norm, filled in per instruction set by cca_norm.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct CcaNormKernels {};

}  // namespace fastsr::cpu
