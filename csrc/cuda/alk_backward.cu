#include "alk_backward_launch.cuh"

namespace fastsr::cuda {

int64_t alk_backward_workspace(const AlkCall& call) {
  if (call.dtype == kFloat32) return alk_scratch<float>(call, alk_pack_of<float>(call, true).at.end).end;
  return alk_scratch<Half>(call, alk_pack_of<Half>(call, true).at.end).end;
}

cudaError_t alk_backward(const AlkCall& call, cudaStream_t stream) {
  switch (call.dtype) {
    case kFloat32:
      return alk_backward_as<float>(call, stream);
    case kFloat16:
      return alk_backward_as<Half>(call, stream);
    default:
      return alk_backward_as<BFloat16>(call, stream);
  }
}

}  // namespace fastsr::cuda
