#include "alk_launch.cuh"

namespace fastsr::cuda {

template cudaError_t start_alk_forward(const AlkForward<float>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<Half>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<BFloat16>&, int64_t, cudaStream_t);

int64_t alk_packed_bytes(const AlkCall& call) {
  return 4 * (call.dtype == kFloat32 ? alk_pack_of<float>(call, false).at.end : alk_pack_of<Half>(call, false).at.end);
}

template <class T>
cudaError_t alk_pack_as(const AlkCall& call, void* to, cudaStream_t stream) {
  AlkPack<T> packed = alk_pack_of<T>(call, false);
  return pack_alk(packed, to, stream);
}

cudaError_t alk_pack(const AlkCall& call, void* to, cudaStream_t stream) {
  switch (call.dtype) {
    case kFloat32:
      return alk_pack_as<float>(call, to, stream);
    case kFloat16:
      return alk_pack_as<Half>(call, to, stream);
    default:
      return alk_pack_as<BFloat16>(call, to, stream);
  }
}

int64_t alk_forward_workspace(const AlkCall& call) { return call.packed ? 0 : alk_packed_bytes(call); }

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
