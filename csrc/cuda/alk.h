// The launchers of alk_conv and alk_stage: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include <cstdint>

#include "view.h"

#ifdef FASTSR_CUDA_SIM
#include "cuda_sim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace fastsr::cuda {

// One call. dtypes are 0 float32, 1 float16, 2 bfloat16; d is 0 without a distilled map.
struct AlkCall {
  int64_t dtype, parameter_dtype;
  int64_t k, d, taps, activation, residual;
  int64_t accuracy, tf32;  // accuracy of GELU: 0 default, 1 exact, 2 fast; tf32: of float32
  int64_t keeps;           // `packed` holds what the backward reads, too
  double eps;
  const void* parameters[11];  // d_weight, d_bias, then ALKConvWeights in order; contiguous
  TensorView x, y, distilled;  // y and distilled: outputs, or their gradients in the backward
  TensorView dx;               // backward only, as are the gradients
  void* gradients[11];         // contiguous, in the parameters' dtype
  void* workspace;             // of `workspace_bytes`, on 16 bytes
  const void* packed;          // what `alk_pack` wrote, or null: then a launcher packs into its workspace
};

constexpr int64_t kMaxTaps = 33, kMaxChannelsOut = 128;

// The parameters in the order in which the kernels read them. Of x only the dtype and size[1], its channels, matter.
int64_t alk_packed_bytes(const AlkCall& call);
cudaError_t alk_pack(const AlkCall& call, void* to, cudaStream_t stream);
int64_t alk_forward_workspace(const AlkCall& call);
int64_t alk_backward_workspace(const AlkCall& call);
cudaError_t alk_forward(const AlkCall& call, cudaStream_t stream);
cudaError_t alk_backward(const AlkCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
