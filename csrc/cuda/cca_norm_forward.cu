#include "cca_norm_launch.cuh"

namespace fastsr::cuda {
namespace {

template <class T>
cudaError_t forward_as(const CcaCall& call, cudaStream_t stream) {
  const CcaScratch at = cca_scratch(call, false);
  Cca<T> a = cca_of<T>(call, at);
  a.shortcut = map_of<T>(call.shortcut), a.y = map_of<T>(call.y);
  const int64_t n = call.x.size[0];
  cudaError_t error = with_lanes(a.x.channels, [&]<int Lanes>() {
    static_assert(cca_moments_shared<Lanes>() <= 99 * 1024);
    return launch(cca_moments_kernel<T, Lanes>, n * a.parts, kWalkThreads, cca_moments_shared<Lanes>(), stream, a);
  });
  if (error != cudaSuccess) return error;
  Attention attention = attention_of(call, at, a);
  attention.moments = a.moments;
  error = start_attention(cca_attention_kernel<kAttentionThreads>, call, attention, stream);
  if (error != cudaSuccess) return error;
  return with_lanes(a.x.channels, [&]<int Lanes>() {
    return launch(cca_apply_kernel<T, Lanes>, n * a.chunks, kWalkThreads, 0, stream, a);
  });
}

}  // namespace

int64_t cca_norm_forward_workspace(const CcaCall& call) { return cca_scratch(call, false).end; }

cudaError_t cca_norm_forward(const CcaCall& call, cudaStream_t stream) {
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
