// Kernels of esa, filled in per instruction set by esa.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct EsaKernels {};

}  // namespace fastsr::cpu
