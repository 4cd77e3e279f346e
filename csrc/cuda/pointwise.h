// The launchers of pointwise: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include <cstdint>

#include "view.h"

#ifdef FASTSR_CUDA_SIM
#include "cuda_sim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace fastsr::cuda {

constexpr int kMaxMaps = 16;  // inputs of one call

// One call. dtypes are 0 float32, 1 float16, 2 bfloat16. data is null for what is absent.
struct PointwiseCall {
  int64_t dtype, parameter_dtype;
  int64_t inputs, activation, accuracy, tf32;  // accuracy of GELU: 0 default, 1 exact, 2 fast; tf32: of float32
  const void *weight, *bias;                   // [K, C, 1, 1] and [K], contiguous
  TensorView x[kMaxMaps], y, shortcut;         // y: the output, or its gradient in the backward
  TensorView dx[kMaxMaps], d_shortcut;         // backward only, as is the rest
  void *d_weight, *d_bias;
  void* workspace;  // on 16 bytes
};

int64_t pointwise_forward_workspace(const PointwiseCall& call);
int64_t pointwise_backward_workspace(const PointwiseCall& call);
cudaError_t pointwise_forward(const PointwiseCall& call, cudaStream_t stream);
cudaError_t pointwise_backward(const PointwiseCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
