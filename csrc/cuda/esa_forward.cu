#include "esa_gate.cuh"
#include "esa_launch.cuh"

namespace fastsr::cuda {
namespace {

template <class T>
cudaError_t forward_as(const EsaCall& call, cudaStream_t stream) {
  Sections sections;
  const EsaScratch scratch = esa_forward_scratch<T>(call, sections, false);
  const EsaPack<T> pack = esa_pack_of<T>(call, false);
  Esa<T> a = esa_of<T>(call, scratch, pack.at);
  a.y = map_of<T>(call.y);
  const cudaError_t error = start_esa_path(pack, scratch, call, a, stream);
  if (error != cudaSuccess) return error;
  return launch(esa_gate_kernel<T>, a.s.n * a.tiles, kProductThreads, 0, stream, a);
}

}  // namespace

int64_t esa_forward_workspace(const EsaCall& call) {
  Sections sections;
  return call.dtype == kFloat32 ? esa_forward_scratch<float>(call, sections, false).end
                                : esa_forward_scratch<Half>(call, sections, false).end;
}

cudaError_t esa_forward(const EsaCall& call, cudaStream_t stream) {
  switch (call.dtype) {
    case kFloat32:
      return forward_as<float>(call, stream);
    case kFloat16:
      return forward_as<Half>(call, stream);
    default:
      return forward_as<BFloat16>(call, stream);
  }
}

}  // namespace fastsr::cuda
