// The launchers of cca_norm: plain data in, kernels on a stream. No allocation, no synchronisation.
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
struct CcaCall {
  int64_t dtype, parameter_dtype;
  int64_t hidden;  // R, the channels between the attention's layers
  double eps;
  const void*
      parameters[6];  // du0_weight [R, C], du0_bias, du2_weight [C, R], du2_bias, norm_weight, norm_bias or null
  TensorView x, shortcut, y;  // y: the output, or its gradient in the backward, which has no shortcut
  double* statistics;         // [N][mean, variance][C]
  TensorView dx;              // backward only
  void* gradients[6];         // backward only; without a norm the last two are of no use
  void* workspace;            // on 16 bytes
};

constexpr int64_t kMaxCcaChannels = 256, kMaxCcaHidden = 256;

int64_t cca_norm_forward_workspace(const CcaCall& call);
int64_t cca_norm_backward_workspace(const CcaCall& call);
cudaError_t cca_norm_forward(const CcaCall& call, cudaStream_t stream);
cudaError_t cca_norm_backward(const CcaCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
