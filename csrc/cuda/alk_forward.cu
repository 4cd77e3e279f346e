#include "alk_launch.cuh"

namespace fastsr::cuda {

template cudaError_t start_alk_forward(const AlkForward<float>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<Tf32>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<Half>&, int64_t, cudaStream_t);
template cudaError_t start_alk_forward(const AlkForward<BFloat16>&, int64_t, cudaStream_t);

namespace {

template <class T>
int64_t bytes_of(const AlkCall& call) {
  return 4 * alk_pack_of<T>(call, call.keeps).at.end;
}

}  // namespace

int64_t alk_packed_bytes(const AlkCall& call) {
  return call.dtype == kFloat32 ? packed_begin<Tf32>(call) + bytes_of<Tf32>(call) : bytes_of<Half>(call);
}

cudaError_t alk_pack(const AlkCall& call, void* to, cudaStream_t stream) {
  return with_dtype(call.dtype, [&](auto type) {
    using T = decltype(type);
    AlkPack<T> packed = alk_pack_of<T>(call, call.keeps);
    packed.to = static_cast<uint32_t*>(to);
    const auto blocks = [](int64_t words) { return (words + kThreads - 1) / kThreads; };
    if constexpr (__is_same(T, float)) {
      AlkPacks<T> both{packed, alk_pack_of<Tf32>(call, call.keeps)};
      both.tf32.to = packed.to + packed.at.end;
      return launch(alk_packs_kernel<T>, blocks(packed.at.end + both.tf32.at.end), kThreads, 0, stream, both);
    } else {
      return launch(alk_pack_kernel<T>, blocks(packed.at.end), kThreads, 0, stream, packed);
    }
  });
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
