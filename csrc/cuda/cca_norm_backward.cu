// The attention again, sums over the pixels, the attention's gradients, dx, and the images' sums.
#include "cca_norm_launch.cuh"

namespace fastsr::cuda {
namespace {

cudaError_t sum_images(const CcaCall& call, const float* rows, cudaStream_t stream) {
  const int64_t c = call.x.size[1], r = call.hidden;
  const int64_t counts[6] = {r * c, r, c * r, c, c, c};
  PartialSums sums{};
  sums.parts = static_cast<int>(call.x.size[0]), sums.dtype = static_cast<int>(call.parameter_dtype);
  int64_t begin = 0;
  int count = 0;
  for (int i = 0; i < 6; ++i) {
    add_sum(sums, &count, {rows, call.gradients[i], counts[i], counts[i], 0, begin, cca_line(call)});
    begin += counts[i];
  }
  return sum_partials(sums, count, stream);
}

template <class T>
cudaError_t backward_as(const CcaCall& call, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto failed = [&](cudaError_t e) { return (error = e) != cudaSuccess; };
  const CcaScratch at = cca_scratch(call, true);
  Cca<T> a = cca_of<T>(call, at);
  a.grad = map_of<T>(call.y), a.dx = map_of<T>(call.dx);
  const int64_t n = call.x.size[0], c = a.x.channels;
  Attention attention = attention_of(call, at, a);
  if (failed(start_attention(cca_attention_kernel<kAttentionThreads>, call, attention, stream))) return error;
  if (failed(with_lanes(c, [&]<int Lanes>() {
        return launch(cca_sums_kernel<T, Lanes>, n * a.parts, kWalkThreads, sums_shared<Lanes>(), stream, a);
      })))
    return error;
  attention.sums = a.sums;
  if (failed(start_attention(cca_attention_backward_kernel<kAttentionThreads>, call, attention, stream))) return error;
  a.terms = attention.rows + a.line - 3 * c;
  if (failed(with_lanes(c, [&]<int Lanes>() {
        return launch(cca_apply_backward_kernel<T, Lanes>, n * a.chunks, kWalkThreads, 0, stream, a);
      })))
    return error;
  return sum_images(call, attention.rows, stream);
}

}  // namespace

int64_t cca_norm_backward_workspace(const CcaCall& call) { return cca_scratch(call, true).end; }

cudaError_t cca_norm_backward(const CcaCall& call, cudaStream_t stream) {
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
