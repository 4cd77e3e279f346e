// Kernels of alk_conv, filled in per instruction set by alk_conv.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct AlkConvKernels {};

}  // namespace fastsr::cpu
