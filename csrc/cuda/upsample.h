// The launchers of upsample: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include <cstdint>

#include "view.h"

#ifdef FASTSR_CUDA_SIM
#include "cuda_sim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace fastsr::cuda {

// One call. dtypes are 0 float32, 1 float16, 2 bfloat16; residual is 0 none, 1 anchor, 2 bilinear. data is null for
// what is absent: lr, and in the backward d_lr. tf32: float32 is multiplied in it.
struct UpsampleCall {
  int64_t dtype, parameter_dtype;
  int64_t scale, residual, tf32;
  const void *weight, *bias;            // [K scale^2, C, 3, 3] and [K scale^2], contiguous
  TensorView x, y, lr;                  // y: the output, or its gradient in the backward
  TensorView dx, d_lr;                  // backward only, as is the rest
  void *d_weight, *d_bias, *workspace;  // workspace: of `upsample_workspace` bytes, on 16 bytes
};

int64_t upsample_workspace(const UpsampleCall& call);
cudaError_t upsample_forward(const UpsampleCall& call, cudaStream_t stream);
cudaError_t upsample_backward(const UpsampleCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
