// The launchers of pointwise_reduce: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include "pointwise.h"

namespace fastsr::cuda {

constexpr int64_t kMostPointwiseReduced = 64, kMostPointwiseInner = 32;  // channels of y and of reduced

// One call: pointwise without activation and shortcut, and conv1 of its result. Of `c5` what the forward needs, but for
// its workspace.
struct PointwiseReduceCall {
  PointwiseCall c5;
  int64_t inner;              // channels of reduced that are not padding
  const void* parameters[2];  // conv1_weight [inner, k], conv1_bias, in the dtype of c5's
  TensorView reduced;         // padded to whole products, channels last, on 16 bytes
  const void* packed;         // all weights, from pointwise_reduce_pack, or null
  void* workspace;            // on 16 bytes
};

// In float32 the weights are packed for products by FMA and, behind that, of TF32.
int64_t pointwise_reduce_packed_bytes(const PointwiseReduceCall& call);
cudaError_t pointwise_reduce_pack(const PointwiseReduceCall& call, void* to, cudaStream_t stream);
int64_t pointwise_reduce_forward_workspace(const PointwiseReduceCall& call);
cudaError_t pointwise_reduce_forward(const PointwiseReduceCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
