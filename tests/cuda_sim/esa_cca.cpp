// esa_cca in the simulator.
#include "esa_cca_forward.cu"
#include "esa_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_esa_cca_forward_workspace(const EsaCcaCall* call) { return esa_cca_forward_workspace(*call); }

extern "C" const char* sim_esa_cca_forward(const EsaCcaCall* call, unsigned seed) {
  sim::state.seed = seed;
  return esa_cca_forward(*call, nullptr);
}
