// The launchers of conv3x3_gelu: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include <cstdint>

#include "view.h"

#ifdef FASTSR_CUDA_SIM
#include "cuda_sim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace fastsr::cuda {

// One call. dtypes are 0 float32, 1 float16, 2 bfloat16. data is null for what is absent: the shortcut, and in the
// backward dx.
struct Conv3x3Call {
  int64_t dtype, parameter_dtype;
  int64_t activation, accuracy, tf32;   // accuracy of GELU: 0 default, 1 exact, 2 fast; tf32: of float32
  const void *weight, *bias;            // [K, C, 3, 3] and [K], contiguous
  TensorView x, y, shortcut;            // y: the output, or its gradient in the backward
  TensorView dx;                        // backward only, as is the rest
  void *d_weight, *d_bias, *workspace;  // workspace: of `conv3x3_workspace` bytes, on 16 bytes
};

int64_t conv3x3_workspace(const Conv3x3Call& call);
cudaError_t conv3x3_forward(const Conv3x3Call& call, cudaStream_t stream);
cudaError_t conv3x3_backward(const Conv3x3Call& call, cudaStream_t stream);

}  // namespace fastsr::cuda
