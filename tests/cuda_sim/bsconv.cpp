// bsconv and its stage in the simulator.
#include "bsconv_backward.cu"
#include "bsconv_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_bsconv_backward_workspace(const BsconvCall* call) { return bsconv_workspace(*call); }

extern "C" const char* sim_bsconv_forward(const BsconvCall* call, unsigned seed) {
  sim::state.seed = seed;
  return bsconv_forward(*call, nullptr);
}
extern "C" const char* sim_bsconv_backward(const BsconvCall* call, unsigned seed) {
  sim::state.seed = seed;
  return bsconv_backward(*call, nullptr);
}
