#include "pixel_norm_launch.cuh"

namespace fastsr::cuda {
namespace {

template <class T>
cudaError_t backward_as(const PixelNormCall& call, cudaStream_t stream) {
  PixelNorm<T> a = pixel_norm_of<T>(call, 0);
  a.grad = map_of<T>(call.y), a.dx = map_of<T>(call.dx);
  a.sums = static_cast<float*>(call.workspace);
  const int64_t rows = call.x.size[0] * a.parts, c = a.x.channels;
  const cudaError_t error = with_lanes(c, [&]<int Lanes>() {
    return launch(pixel_norm_backward_kernel<T, Lanes>, rows, kWalkThreads, sums_shared<Lanes>(), stream, a);
  });
  if (error != cudaSuccess) return error;
  PartialSums sums{};
  sums.parts = static_cast<int>(rows), sums.dtype = static_cast<int>(call.parameter_dtype);
  int count = 0;
  add_sum(sums, &count, {a.sums, call.d_weight, c, c, 0, 0, 2 * c});
  add_sum(sums, &count, {a.sums, call.d_bias, c, c, 0, c, 2 * c});
  return sum_partials(sums, count, stream);
}

}  // namespace

int64_t pixel_norm_backward_workspace(const PixelNormCall& call) {
  return call.x.size[0] * pixel_norm_of<float>(call, 0).parts * 2 * call.x.size[1] *
         static_cast<int64_t>(sizeof(float));
}

cudaError_t pixel_norm_backward(const PixelNormCall& call, cudaStream_t stream) {
  switch (call.dtype) {
    case kFloat32:
      return backward_as<float>(call, stream);
    case kFloat16:
      return backward_as<Half>(call, stream);
    default:
      return backward_as<BFloat16>(call, stream);
  }
}

}  // namespace fastsr::cuda
