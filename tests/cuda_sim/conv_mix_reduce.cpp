// conv_mix_reduce in the simulator.
#include "conv_mix_reduce_forward.cu"

using namespace fastsr::cuda;

extern "C" const char* sim_conv_mix_reduce_forward(const ConvMixReduceCall* call, unsigned seed) {
  sim::state.seed = seed;
  return conv_mix_reduce_forward(*call, nullptr);
}
