// alk_conv and alk_stage in the simulator.
#include "alk_backward.cu"
#include "alk_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_alk_forward_workspace(const AlkCall* call) { return alk_forward_workspace(*call); }
extern "C" int64_t sim_alk_backward_workspace(const AlkCall* call) { return alk_backward_workspace(*call); }

extern "C" int64_t sim_alk_packed_bytes(const AlkCall* call) { return alk_packed_bytes(*call); }

extern "C" const char* sim_alk_pack(const AlkCall* call, unsigned seed) {
  sim::state.seed = seed;
  return alk_pack(*call, call->workspace, nullptr);
}
extern "C" const char* sim_alk_forward(const AlkCall* call, unsigned seed) {
  sim::state.seed = seed;
  return alk_forward(*call, nullptr);
}
extern "C" const char* sim_alk_backward(const AlkCall* call, unsigned seed) {
  sim::state.seed = seed;
  return alk_backward(*call, nullptr);
}
