// The weights of pointwise as the kernels read them: [in_channels + 1][padded out_channels], the bias last.
#pragma once

#include "packed.h"

namespace fastsr::cpu {

// fastsr::pointwise_pack.
Tensor pointwise_pack(const Tensor& weight, const Tensor& bias);

}  // namespace fastsr::cpu
