// alk_conv and alk_stage in the simulator.
#include "alk_launch.cuh"

using namespace fastsr::cuda;

template <class Function>
const char* by_dtype(const AlkCall& call, unsigned seed, Function run) {
  sim::state.seed = seed;
  return call.dtype == kFloat32 ? run(float()) : call.dtype == kFloat16 ? run(Half()) : run(BFloat16());
}

extern "C" int64_t sim_alk_forward_workspace(const AlkCall* call) {
  return call->dtype == kFloat32 ? 4 * alk_pack_of<float>(*call, false).at.end
                                 : 4 * alk_pack_of<Half>(*call, false).at.end;
}

extern "C" const char* sim_alk_forward(const AlkCall* call, unsigned seed) {
  return by_dtype(*call, seed, [&](auto t) { return alk_forward_as<decltype(t)>(*call, nullptr); });
}
