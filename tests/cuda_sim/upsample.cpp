// upsample in the simulator.
#include "conv3x3_forward.cu"
#include "upsample_backward.cu"
#include "upsample_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_upsample_backward_workspace(const UpsampleCall* call) { return upsample_workspace(*call); }

extern "C" const char* sim_upsample_forward(const UpsampleCall* call, unsigned seed) {
  sim::state.seed = seed;
  return upsample_forward(*call, nullptr);
}
extern "C" const char* sim_upsample_backward(const UpsampleCall* call, unsigned seed) {
  sim::state.seed = seed;
  return upsample_backward(*call, nullptr);
}
