// alk_condense in the simulator.
#include "alk_condense_forward.cu"

using namespace fastsr::cuda;

extern "C" int64_t sim_alk_condense_packed_bytes(const AlkCondenseCall* call) {
  return alk_condense_packed_bytes(*call);
}
extern "C" int64_t sim_alk_condense_forward_workspace(const AlkCondenseCall* call) {
  return alk_condense_forward_workspace(*call);
}

extern "C" const char* sim_alk_condense_pack(const AlkCondenseCall* call, unsigned seed) {
  sim::state.seed = seed;
  return alk_condense_pack(*call, call->workspace, nullptr);
}
extern "C" const char* sim_alk_condense_forward(const AlkCondenseCall* call, unsigned seed) {
  sim::state.seed = seed;
  return alk_condense_forward(*call, nullptr);
}
