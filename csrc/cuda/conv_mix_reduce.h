// The launcher of conv_mix_reduce: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include "conv_mix.h"

namespace fastsr::cuda {

constexpr int64_t kMostMixReduced = 16;

// One call: conv_mix, and conv1 of its result. Of `mix` what the forward needs.
struct ConvMixReduceCall {
  ConvMixCall mix;
  int64_t inner;              // channels of reduced that are not padding
  const void* parameters[2];  // conv1_weight [inner, k], conv1_bias, in the dtype of mix's
  TensorView reduced;         // [N, 16, H, W], channels last, on 16 bytes
};

cudaError_t conv_mix_reduce_forward(const ConvMixReduceCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
