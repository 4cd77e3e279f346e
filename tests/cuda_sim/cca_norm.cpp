// cca_norm in the simulator.
#include "cca_norm_backward.cu"
#include "cca_norm_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_cca_norm_forward_workspace(const CcaCall* call) { return cca_norm_forward_workspace(*call); }
extern "C" int64_t sim_cca_norm_backward_workspace(const CcaCall* call) { return cca_norm_backward_workspace(*call); }

extern "C" const char* sim_cca_norm_forward(const CcaCall* call, unsigned seed) {
  sim::state.seed = seed;
  return cca_norm_forward(*call, nullptr);
}
extern "C" const char* sim_cca_norm_backward(const CcaCall* call, unsigned seed) {
  sim::state.seed = seed;
  return cca_norm_backward(*call, nullptr);
}
