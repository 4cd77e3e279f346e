#include "pixel_norm_launch.cuh"

namespace fastsr::cuda {
namespace {

template <class T>
cudaError_t forward_as(const PixelNormCall& call, cudaStream_t stream) {
  PixelNorm<T> a = pixel_norm_of<T>(call, 8);
  a.y = map_of<T>(call.y);
  return with_lanes(a.x.channels, [&]<int Lanes>() {
    return launch(pixel_norm_kernel<T, Lanes>, call.x.size[0] * a.parts, kWalkThreads, 0, stream, a);
  });
}

}  // namespace

cudaError_t pixel_norm_forward(const PixelNormCall& call, cudaStream_t stream) {
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
