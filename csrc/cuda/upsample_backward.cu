// The backward of upsample: g, the image's gradient in the order of the convolution's channels, then as conv3x3_gelu;
// d_lr. Four or five launches.
#include "conv3x3_launch.cuh"
#include "filter_gradient.cuh"
#include "upsample.h"
#include "upsample_backward.cuh"

namespace fastsr::cuda {
namespace {

struct UpsampleScratch {
  int64_t g, partials, end;
  int parts;
};

int64_t outputs_of(const UpsampleCall& call) { return call.y.size[1] * call.scale * call.scale; }

UpsampleScratch upsample_scratch(const UpsampleCall& call) {
  const int64_t k = outputs_of(call), c = call.x.size[1], bytes = call.dtype == kFloat32 ? 4 : 2;
  const int64_t tiles = tiles_of(call.x, kGradientRows).count;
  UpsampleScratch at{};
  at.parts = static_cast<int>(tiles < kMaxGradientParts ? tiles : kMaxGradientParts);
  at.partials = (elements_of(scratch_view(nullptr, call.x, k)) * bytes + 127) / 128 * 128;
  at.end = at.partials + at.parts * gradient_row(k, c, 3) * 4;
  return at;
}

template <class T>
cudaError_t upsample_backward_as(const UpsampleCall& call, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto failed = [&](cudaError_t e) { return (error = e) != cudaSuccess; };
  const UpsampleScratch at = upsample_scratch(call);
  char* workspace = static_cast<char*>(call.workspace);
  const int k = static_cast<int>(outputs_of(call)), c = static_cast<int>(call.x.size[1]);
  const int dtype = static_cast<int>(call.parameter_dtype);
  const TensorView g = scratch_view(workspace + at.g, call.x, k);
  constexpr int kWarps = kShuffleThreads / 32;

  UpsampleBackward<T> image{};
  image.tiles = tiles_of(call.x, 1);
  image.grad = pixel_map<T>(call.y), image.g = pixel_map<T>(g);
  image.scale = static_cast<int>(call.scale), image.residual = static_cast<int>(call.residual);
  const int64_t blocks = (image.tiles.count + kWarps - 1) / kWarps;
  if (failed(launch(unshuffle_kernel<T>, blocks, kShuffleThreads, 0, stream, image))) return error;
  if (call.d_lr.data) {
    image.d_lr = pixel_map<T>(call.d_lr);
    if (failed(launch(lr_gradient_kernel<T>, blocks, kShuffleThreads, 0, stream, image))) return error;
  }

  Conv3x3<T> back{};
  back.conv.tiles = tiles_of(call.x, kConvRows);
  back.conv.x = pixel_map<T>(g), back.y = pixel_map<T>(call.dx);
  back.conv.weights = {Parameter{call.weight, dtype}, c, k, 1};
  if (failed(start_conv3x3(back, stream))) return error;

  FilterGradient<T> filters{};
  filters.tiles = tiles_of(call.x, kGradientRows);
  filters.x = pixel_map<T>(call.x), filters.g = back.conv.x;
  filters.partials = reinterpret_cast<float*>(workspace + at.partials);
  filters.k = k, filters.c = c, filters.parts = at.parts;
  if (failed(start_filter_gradient<T, 3>(filters, stream))) return error;
  PartialSums sums{};
  sums.parts = at.parts, sums.dtype = dtype;
  int count = 0;
  add_filter_sums(sums, &count, filters.partials, k, c, 3, call.d_weight, call.d_bias);
  return sum_partials(sums, count, stream);
}

}  // namespace

int64_t upsample_workspace(const UpsampleCall& call) { return upsample_scratch(call).end; }

cudaError_t upsample_backward(const UpsampleCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32,
                      [&](auto type) { return upsample_backward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
