#include "alk_condense_launch.cuh"
#include "pixels_launch.cuh"

namespace fastsr::cuda {
namespace {

template <class T>
int64_t bytes_of(const AlkCondenseCall& call) {
  return 4 * condense_pack_of<T>(call).at.end;
}

// Of float32 a packed vector holds both: weights for FMA and, behind them, for TF32.
template <class T>
int64_t packed_begin(const AlkCondenseCall& call) {
  return __is_same(T, Tf32) ? bytes_of<float>(call) : 0;
}

template <class T>
cudaError_t pack_as(const AlkCondenseCall& call, void* to, cudaStream_t stream) {
  CondensePack<T> a = condense_pack_of<T>(call);
  a.alk.to = static_cast<uint32_t*>(to);
  return launch(alk_condense_pack_kernel<T>, (a.at.end + kThreads - 1) / kThreads, kThreads, 0, stream, a);
}

template <class T, Gelu Form>
cudaError_t start(const AlkCondense<T>& a, cudaStream_t stream) {
  constexpr int kShared = alk_forward_shared<CondensePlane<T>>();
  static_assert(kShared <= 99 * 1024);
  return launch(alk_condense_kernel<T, Form>, a.alk.shape.tiles, kThreads, kShared, stream, a);
}

template <class T>
cudaError_t condense_as(const AlkCondenseCall& call, cudaStream_t stream) {
  CondensePack<T> pack = condense_pack_of<T>(call);
  if (!call.alk.packed) {
    const cudaError_t error = pack_as<T>(call, call.workspace, stream);
    if (error != cudaSuccess) return error;
  }
  pack.alk.to = static_cast<uint32_t*>(call.workspace);
  if (call.alk.packed) {
    char* begin = static_cast<char*>(const_cast<void*>(call.alk.packed)) + packed_begin<T>(call);
    pack.alk.to = reinterpret_cast<uint32_t*>(begin);
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(pack.alk.to);
  AlkCondense<T> a{};
  a.alk = alk_forward_of<T>(call.alk, pack.alk);
  for (int i = 0; i < kDistilled; ++i) a.maps[i] = map_of<T>(call.maps[i]);
  a.y = map_of<T>(call.y), a.reduced = map_of<T>(call.reduced);
  a.w5 = bytes + 4 * pack.at.w5, a.w1 = bytes + 4 * pack.at.w1;
  a.b5 = reinterpret_cast<const float*>(bytes + 4 * pack.at.b5);
  a.b1 = reinterpret_cast<const float*>(bytes + 4 * pack.at.b1);
  a.block_bytes = 4 * (pack.at.w1 - pack.at.w5) / kCondenseBlocks;
  constexpr Gelu kDefault = sizeof(T) == 4 ? Gelu::kTail : __is_same(T, Half) ? Gelu::kBump9 : Gelu::kBump6;
  if (call.alk.accuracy == 2) return start<T, Gelu::kTanh>(a, stream);
  if (call.alk.accuracy == 0) return start<T, kDefault>(a, stream);
  return start<T, Gelu::kTail>(a, stream);
}

}  // namespace

int64_t alk_condense_packed_bytes(const AlkCondenseCall& call) {
  return call.alk.dtype == kFloat32 ? packed_begin<Tf32>(call) + bytes_of<Tf32>(call) : bytes_of<Half>(call);
}

int64_t alk_condense_forward_workspace(const AlkCondenseCall& call) {
  if (call.alk.packed) return 0;
  if (call.alk.dtype != kFloat32) return bytes_of<Half>(call);
  return call.alk.tf32 ? bytes_of<Tf32>(call) : bytes_of<float>(call);
}

cudaError_t alk_condense_pack(const AlkCondenseCall& call, void* to, cudaStream_t stream) {
  const auto pack = [&](auto type) {
    using T = decltype(type);
    return pack_as<T>(call, static_cast<char*>(to) + packed_begin<T>(call), stream);
  };
  const cudaError_t error = with_dtype(call.alk.dtype, pack);
  return error == cudaSuccess && call.alk.dtype == kFloat32 ? pack(Tf32{}) : error;
}

cudaError_t alk_condense_forward(const AlkCondenseCall& call, cudaStream_t stream) {
  return with_numbers(call.alk.dtype, call.alk.tf32,
                      [&](auto type) { return condense_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
