// pointwise_reduce in the simulator.
#include "pointwise_reduce_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_pointwise_reduce_packed_bytes(const PointwiseReduceCall* call) {
  return pointwise_reduce_packed_bytes(*call);
}
extern "C" int64_t sim_pointwise_reduce_forward_workspace(const PointwiseReduceCall* call) {
  return pointwise_reduce_forward_workspace(*call);
}

extern "C" const char* sim_pointwise_reduce_pack(const PointwiseReduceCall* call, unsigned seed) {
  sim::state.seed = seed;
  return pointwise_reduce_pack(*call, call->workspace, nullptr);
}
extern "C" const char* sim_pointwise_reduce_forward(const PointwiseReduceCall* call, unsigned seed) {
  sim::state.seed = seed;
  return pointwise_reduce_forward(*call, nullptr);
}
