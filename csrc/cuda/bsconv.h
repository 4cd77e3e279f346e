// The launchers of bsconv and its stage: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include <cstdint>

#include "view.h"

#ifdef FASTSR_CUDA_SIM
#include "cuda_sim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace fastsr::cuda {

// One call. dtypes are 0 float32, 1 float16, 2 bfloat16. data is null for what is absent.
struct BsconvCall {
  int64_t dtype, parameter_dtype;
  int64_t activation, accuracy, tf32;    // accuracy of GELU: 0 default, 1 exact, 2 fast; tf32: of float32
  const void *pw, *dw, *dw_bias;         // [K, C, 1, 1], [K, 1, 3, 3] and [K], contiguous
  const void *distil, *distil_bias;      // of a stage: [D, C, 1, 1] and [D]
  TensorView x, shortcut, y, distilled;  // y and distilled: outputs, or their gradients in the backward
  TensorView dx, d_shortcut;             // backward only, as is the rest; d_shortcut only if it is not y's gradient
  void *d_pw, *d_dw, *d_bias, *d_distil, *d_distil_bias;
  void* workspace;  // of `bsconv_workspace` bytes, on 16 bytes
};

constexpr int64_t kMostBlueprintChannels = 64;  // in, out and distilled

int64_t bsconv_workspace(const BsconvCall& call);
cudaError_t bsconv_forward(const BsconvCall& call, cudaStream_t stream);
cudaError_t bsconv_backward(const BsconvCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
