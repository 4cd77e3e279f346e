#include "alk_launch.cuh"

namespace fastsr::cuda {

template cudaError_t start_alk_forward(const AlkForward<float>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<Half>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<BFloat16>&, int64_t, cudaStream_t);

int64_t alk_forward_workspace(const AlkCall& call) {
  return 4 * (call.dtype == kFloat32 ? alk_pack_of<float>(call, false).at.end : alk_pack_of<Half>(call, false).at.end);
}

cudaError_t alk_forward(const AlkCall& call, cudaStream_t stream) {
  switch (call.dtype) {
    case kFloat32:
      return alk_forward_as<float>(call, stream);
    case kFloat16:
      return alk_forward_as<Half>(call, stream);
    default:
      return alk_forward_as<BFloat16>(call, stream);
  }
}

}  // namespace fastsr::cuda
