// The launchers of esa: plain data in, kernels on a stream. No allocation, no synchronisation.
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
struct EsaCall {
  int64_t dtype, parameter_dtype;
  int64_t f, padding;          // f: channels inside
  int64_t accuracy, tf32;      // of GELU: 0 default, 1 exact, 2 fast; whether products of float32 may be of TF32
  int64_t count;               // of parameters: 10 in the plain form, 18 in the blueprint form
  const void* parameters[18];  // in the operator's order, contiguous
  TensorView x, y;             // y: the output, or its gradient in the backward
  TensorView reduced;          // forward only: conv1(x) [N, padded f, H, W] if it is there already; else data is null
  TensorView dx;               // backward only
  void* gradients[18];         // backward only
  void* workspace;             // on 16 bytes
};

constexpr int64_t kMaxEsaChannels = 512, kMaxEsaInner = 32;

// Channels of conv1(x) where it is passed on, with zeros behind those of f.
constexpr int64_t reduced_channels(int64_t f) { return (f + 15) / 16 * 16; }

int64_t esa_forward_workspace(const EsaCall& call);
int64_t esa_backward_workspace(const EsaCall& call);
cudaError_t esa_forward(const EsaCall& call, cudaStream_t stream);
cudaError_t esa_backward(const EsaCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
