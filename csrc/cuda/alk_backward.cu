#include "alk_backward_launch.cuh"

namespace fastsr::cuda {

int64_t alk_backward_workspace(const AlkCall& call) {
  const auto bytes = [&](auto type) { return alk_scratch<decltype(type)>(call).end; };
  if (call.dtype != kFloat32) return bytes(Half{});
  return call.tf32 ? bytes(Tf32{}) : bytes(float{});
}

cudaError_t alk_backward(const AlkCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32, [&](auto type) { return alk_backward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
