#include "alk_launch.cuh"

namespace fastsr::cuda {

template cudaError_t start_alk_forward(const AlkForward<float>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<Tf32>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<Half>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<BFloat16>&, int64_t, cudaStream_t);

namespace {

template <class T>
int64_t bytes_of(const AlkCall& call) {
  return 4 * alk_pack_of<T>(call, false).at.end;
}

template <class T>
cudaError_t pack_as(const AlkCall& call, void* to, cudaStream_t stream) {
  AlkPack<T> packed = alk_pack_of<T>(call, false);
  return pack_alk(packed, static_cast<char*>(to) + packed_begin<T>(call), stream);
}

}  // namespace

int64_t alk_packed_bytes(const AlkCall& call) {
  return call.dtype == kFloat32 ? packed_begin<Tf32>(call) + bytes_of<Tf32>(call) : bytes_of<Half>(call);
}

cudaError_t alk_pack(const AlkCall& call, void* to, cudaStream_t stream) {
  const cudaError_t error =
      with_dtype(call.dtype, [&](auto type) { return pack_as<decltype(type)>(call, to, stream); });
  return error == cudaSuccess && call.dtype == kFloat32 ? pack_as<Tf32>(call, to, stream) : error;
}

int64_t alk_forward_workspace(const AlkCall& call) {
  if (call.packed) return 0;
  if (call.dtype != kFloat32) return bytes_of<Half>(call);
  return call.tf32 ? bytes_of<Tf32>(call) : bytes_of<float>(call);
}

cudaError_t alk_forward(const AlkCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32, [&](auto type) { return alk_forward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
