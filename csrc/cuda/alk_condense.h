// The launchers of alk_condense: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include "alk.h"

namespace fastsr::cuda {

constexpr int kDistilled = 3;  // maps beside the convolution's
constexpr int64_t kMostCondensedTaps = 9, kMostCondensedFrom = 32, kMostCondensed = 64, kMostReduced = 32;

// One call. Of `alk` what the convolution of x needs, from x to `packed` (which holds all weights, or is null).
struct AlkCondenseCall {
  AlkCall alk;
  int64_t d, outputs, inner;  // channels of a distilled map, of y and of reduced
  const void* parameters[4];  // c5_weight [outputs, 3 d + k], c5_bias, conv1_weight [inner, outputs], conv1_bias
  TensorView maps[kDistilled];
  TensorView y, reduced;  // reduced: padded to whole products, channels last
  void* workspace;        // on 16 bytes
};

int64_t alk_condense_packed_bytes(const AlkCondenseCall& call);
cudaError_t alk_condense_pack(const AlkCondenseCall& call, void* to, cudaStream_t stream);
int64_t alk_condense_forward_workspace(const AlkCondenseCall& call);
cudaError_t alk_condense_forward(const AlkCondenseCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
