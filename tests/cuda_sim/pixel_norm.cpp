// pixel_norm in the simulator.
#include "pixel_norm_backward.cu"
#include "pixel_norm_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_pixel_norm_backward_workspace(const PixelNormCall* call) {
  return pixel_norm_backward_workspace(*call);
}

extern "C" const char* sim_pixel_norm_forward(const PixelNormCall* call, unsigned seed) {
  sim::state.seed = seed;
  return pixel_norm_forward(*call, nullptr);
}
extern "C" const char* sim_pixel_norm_backward(const PixelNormCall* call, unsigned seed) {
  sim::state.seed = seed;
  return pixel_norm_backward(*call, nullptr);
}
