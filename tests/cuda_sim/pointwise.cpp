// pointwise in the simulator.
#include "pointwise_backward.cu"
#include "pointwise_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_pointwise_forward_workspace(const PointwiseCall* call) {
  return pointwise_forward_workspace(*call);
}
extern "C" int64_t sim_pointwise_backward_workspace(const PointwiseCall* call) {
  return pointwise_backward_workspace(*call);
}

extern "C" const char* sim_pointwise_forward(const PointwiseCall* call, unsigned seed) {
  sim::state.seed = seed;
  return pointwise_forward(*call, nullptr);
}
extern "C" const char* sim_pointwise_backward(const PointwiseCall* call, unsigned seed) {
  sim::state.seed = seed;
  return pointwise_backward(*call, nullptr);
}
