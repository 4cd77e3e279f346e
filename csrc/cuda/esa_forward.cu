#include "esa_gate.cuh"
#include "esa_launch.cuh"

namespace fastsr::cuda {

template cudaError_t start_esa_reduce(const Esa<float>&, cudaStream_t);
template cudaError_t start_esa_reduce(const Esa<Tf32>&, cudaStream_t);
template cudaError_t start_esa_reduce(const Esa<Half>&, cudaStream_t);
template cudaError_t start_esa_reduce(const Esa<BFloat16>&, cudaStream_t);
template cudaError_t start_esa_small(const Esa<float>&, cudaStream_t);
template cudaError_t start_esa_small(const Esa<Tf32>&, cudaStream_t);
template cudaError_t start_esa_small(const Esa<Half>&, cudaStream_t);
template cudaError_t start_esa_small(const Esa<BFloat16>&, cudaStream_t);

namespace {

template <class T>
cudaError_t forward_as(const EsaCall& call, cudaStream_t stream) {
  Sections sections;
  const EsaMaps at = esa_maps(call, 0, sections);
  char* workspace = static_cast<char*>(call.workspace);
  Esa<T> a = esa_of<T>(call);
  a.out = esa_small_maps(workspace + at.out, a.s);
  a.y = map_of<T>(call.y);
  const cudaError_t error = start_esa_path(call, a, workspace + at.c1, stream);
  if (error != cudaSuccess) return error;
  static_assert((kMaxEsaChannels / kBlock + 1) * (kBlock * kBlock * sizeof(T) + 4 * kBlock) <= 99 * 1024);
  return launch(esa_gate_kernel<T>, esa_blocks(a, kGateResident<T>), kProductThreads, gate_shared<T>(a.s), stream, a);
}

}  // namespace

int64_t esa_forward_workspace(const EsaCall& call) {
  Sections sections;
  esa_maps(call, 0, sections);
  return sections.end;
}

cudaError_t esa_forward(const EsaCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32, [&](auto type) { return forward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
