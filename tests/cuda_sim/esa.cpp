// esa in the simulator.
#include "esa_backward.cu"
#include "esa_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_esa_forward_workspace(const EsaCall* call) { return esa_forward_workspace(*call); }
extern "C" int64_t sim_esa_backward_workspace(const EsaCall* call) { return esa_backward_workspace(*call); }

extern "C" const char* sim_esa_forward(const EsaCall* call, unsigned seed) {
  sim::state.seed = seed;
  return esa_forward(*call, nullptr);
}
extern "C" const char* sim_esa_backward(const EsaCall* call, unsigned seed) {
  sim::state.seed = seed;
  return esa_backward(*call, nullptr);
}
