#include "pointwise_launch.cuh"

namespace fastsr::cuda {
namespace {

template <class T>
cudaError_t forward_as(const PointwiseCall& call, cudaStream_t stream) {
  const ProductPack pack = pack_of<T>(call, false, call.workspace);
  const cudaError_t error = start_packs<T>({{pack}}, stream);
  if (error != cudaSuccess) return error;
  Products<T> a = products_of<T>(call);
  a.out[0] = map_of<T>(call.y);
  return start_product<T, false>(pack, a, call.y, stream);
}

}  // namespace

int64_t pointwise_forward_workspace(const PointwiseCall& call) {
  return pack_bytes(call.dtype == kFloat32 ? pack_of<float>(call, false) : pack_of<Half>(call, false));
}

cudaError_t pointwise_forward(const PointwiseCall& call, cudaStream_t stream) {
  switch (call.dtype) {
    case kFloat32:
      return call.tf32 ? forward_as<Tf32>(call, stream) : forward_as<float>(call, stream);
    case kFloat16:
      return forward_as<Half>(call, stream);
    default:
      return forward_as<BFloat16>(call, stream);
  }
}

}  // namespace fastsr::cuda
