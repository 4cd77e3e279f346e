// Kernels of conv_mix, filled in per instruction set by conv_mix.inl.
#pragma once

#include <cstdint>

namespace fastsr::cpu {

struct ConvMixKernels {};

}  // namespace fastsr::cpu
