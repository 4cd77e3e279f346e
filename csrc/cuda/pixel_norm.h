// The launchers of pixel_norm: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include <cstdint>

#include "view.h"

#ifdef FASTSR_CUDA_SIM
#include "cuda_sim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace fastsr::cuda {

// One call. dtypes are 0 float32, 1 float16, 2 bfloat16.
struct PixelNormCall {
  int64_t dtype, parameter_dtype;
  double eps;
  const void *weight, *bias;  // contiguous; the backward needs no bias
  TensorView x, y;            // y: the output, or its gradient in the backward
  TensorView dx;              // backward only, as is the rest
  void *d_weight, *d_bias;
  void* workspace;  // on 16 bytes
};

constexpr int64_t kMaxNormChannels = 256;

int64_t pixel_norm_backward_workspace(const PixelNormCall& call);
cudaError_t pixel_norm_forward(const PixelNormCall& call, cudaStream_t stream);
cudaError_t pixel_norm_backward(const PixelNormCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
