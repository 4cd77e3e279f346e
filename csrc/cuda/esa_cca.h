// The launcher of esa_cca: plain data in, kernels on a stream. No allocation, no synchronisation.
#pragma once

#include "esa.h"

namespace fastsr::cuda {

// One call: esa of x, with y the output of all, and then what cca_norm does to the result.
struct EsaCcaCall {
  EsaCall esa;  // but for its workspace, dx and gradients
  TensorView shortcut;
  int64_t hidden;
  double eps;
  const void* cca[6];  // as CcaCall's parameters, in esa's parameter_dtype
  void* workspace;     // on 16 bytes
};

int64_t esa_cca_forward_workspace(const EsaCcaCall& call);
cudaError_t esa_cca_forward(const EsaCcaCall& call, cudaStream_t stream);

}  // namespace fastsr::cuda
