// conv3x3_gelu in the simulator.
#include "conv3x3_backward.cu"
#include "conv3x3_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_conv3x3_backward_workspace(const Conv3x3Call* call) { return conv3x3_workspace(*call); }

extern "C" const char* sim_conv3x3_forward(const Conv3x3Call* call, unsigned seed) {
  sim::state.seed = seed;
  return conv3x3_forward(*call, nullptr);
}
extern "C" const char* sim_conv3x3_backward(const Conv3x3Call* call, unsigned seed) {
  sim::state.seed = seed;
  return conv3x3_backward(*call, nullptr);
}
