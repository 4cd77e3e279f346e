// The launchers of conv_mix: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include <cstdint>

#include "view.h"

#ifdef FASTSR_CUDA_SIM
#include "cuda_sim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace fastsr::cuda {

// One call. dtypes are 0 float32, 1 float16, 2 bfloat16. Parameters, contiguous: dw_weight, dw_bias (both null or
// neither), pw_weight, pw_bias, c5_weight, c5_bias.
struct ConvMixCall {
  int64_t dtype, parameter_dtype;
  int64_t activation, accuracy, tf32;  // accuracy of GELU: 0 default, 1 exact, 2 fast; tf32: of float32
  const void* parameters[6];
  TensorView x, shortcut, y;  // y: the output, or its gradient in the backward
  TensorView dx, d_shortcut;  // backward only, as is the rest
  void* gradients[6];
  void* workspace;  // of `conv_mix_workspace` bytes, on 16 bytes
};

constexpr int64_t kMostMixChannels = 64;  // in and out

int64_t conv_mix_workspace(const ConvMixCall& call);
cudaError_t conv_mix_forward(const ConvMixCall& call, cudaStream_t stream);
cudaError_t conv_mix_backward(const ConvMixCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
