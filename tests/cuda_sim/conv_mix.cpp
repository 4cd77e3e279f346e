// conv_mix in the simulator.
#include "conv_mix_backward.cu"
#include "conv_mix_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_conv_mix_backward_workspace(const ConvMixCall* call) { return conv_mix_workspace(*call); }

extern "C" const char* sim_conv_mix_forward(const ConvMixCall* call, unsigned seed) {
  sim::state.seed = seed;
  return conv_mix_forward(*call, nullptr);
}
extern "C" const char* sim_conv_mix_backward(const ConvMixCall* call, unsigned seed) {
  sim::state.seed = seed;
  return conv_mix_backward(*call, nullptr);
}
