// The backward of conv_mix: two passes over the tiles, the 1x1 weights' gradients, and the sums of partial sums; four
// launches.
#include "conv_mix_backward.cuh"
#include "conv_mix_launch.cuh"
#include "filter_gradient.cuh"

namespace fastsr::cuda {
namespace {

struct ConvMixScratch {
  int64_t d, t, dp, dq, pw, c5, dw, end;
  int parts;
};

ConvMixScratch conv_mix_scratch(const ConvMixCall& call) {
  const int64_t k = call.y.size[1], c = call.x.size[1], bytes = call.dtype == kFloat32 ? 4 : 2;
  const int64_t map = elements_of(scratch_view(nullptr, call.x, c)) * bytes;
  const int64_t tiles = tiles_of(call.x, kGradientRows).count;
  const bool depthwise = call.parameters[0];
  ConvMixScratch at{};
  at.parts = static_cast<int>(tiles < kMaxParts ? tiles : kMaxParts);
  const auto take = [&](int64_t size) {
    const int64_t begin = at.end;
    at.end += (size + 127) / 128 * 128;
    return begin;
  };
  at.t = take(map), at.dp = take(map);
  if (depthwise) at.d = take(map), at.dq = take(map);
  at.pw = take(at.parts * gradient_row(c, c, 1) * 4);
  at.c5 = take(at.parts * gradient_row(k, c, 1) * 4);
  if (depthwise) at.dw = take(at.parts * 10 * c * 4);
  return at;
}

template <class T>
cudaError_t conv_mix_backward_as(const ConvMixCall& call, cudaStream_t stream) {
  using M = BackwardMix<T>;
  cudaError_t error = cudaSuccess;
  const auto failed = [&](cudaError_t e) { return (error = e) != cudaSuccess; };
  const ConvMixScratch at = conv_mix_scratch(call);
  char* workspace = static_cast<char*>(call.workspace);
  const bool depthwise = call.parameters[0];
  const auto scratch = [&](int64_t offset) {
    return pixel_map<T>(scratch_view(workspace + offset, call.x, call.x.size[1]));
  };
  const auto sums_at = [&](int64_t offset) { return reinterpret_cast<float*>(workspace + offset); };

  ConvMixBackward<T> a{};
  fill_conv_mix<T>(a, call, M::kRows);
  a.grad = pixel_map<T>(call.y);
  a.d_shortcut = pixel_map<T>(call.d_shortcut), a.dx = pixel_map<T>(call.dx);
  a.t = scratch(at.t), a.dp = scratch(at.dp);
  if (depthwise) a.d = scratch(at.d), a.dq = scratch(at.dq);
  constexpr int kShared = conv_mix_backward_shared<M>();
  static_assert(kShared <= 99 * 1024);
  if (failed(launch(conv_mix_backward_kernel<T>, resident_blocks(a.tiles.count, 2), kMixThreads, kShared, stream, a)))
    return error;

  PartialSums sums{};
  sums.parts = at.parts;
  sums.dtype = static_cast<int>(call.parameter_dtype);
  int count = 0;
  if (depthwise) {
    ConvMixInput<T> input{};
    input.tiles = tiles_of(call.x, ForwardMix<T>::kRows);
    input.x = a.x, input.dq = a.dq, input.dx = a.dx;
    input.dw = a.dw;
    input.partials = sums_at(at.dw);
    input.c = a.c;
    constexpr int kInputShared = conv_mix_input_shared<ForwardMix<T>>();
    static_assert(kInputShared <= 99 * 1024);
    if (failed(launch(conv_mix_input_kernel<T>, at.parts, kMixThreads, kInputShared, stream, input))) return error;
    const int64_t row = 10 * a.c;
    add_sum(sums, &count, {input.partials, call.gradients[0], 9 * a.c, 9 * a.c, 0, 0, row});
    add_sum(sums, &count, {input.partials, call.gradients[1], a.c, a.c, 0, 9 * a.c, row});
  }
  const auto products = [&](const PixelMap<T>& x, const PixelMap<T>& g, int k, int64_t offset, int gradient) {
    FilterGradient<T> filters{};
    filters.tiles = tiles_of(call.x, kGradientRows);
    filters.x = x, filters.g = g;
    filters.partials = sums_at(offset);
    filters.k = k, filters.c = a.c, filters.parts = at.parts;
    add_filter_sums(sums, &count, filters.partials, k, a.c, 1, call.gradients[gradient], call.gradients[gradient + 1]);
    return filters;
  };
  const FilterGradients<T, 2> matrices{
      {products(depthwise ? a.d : a.x, a.dp, a.c, at.pw, 2), products(a.t, a.grad, a.k, at.c5, 4)}, {}};
  if (failed(start_filter_gradients<T, 1>(matrices, stream))) return error;
  return sum_partials(sums, count, stream);
}

}  // namespace

int64_t conv_mix_workspace(const ConvMixCall& call) { return conv_mix_scratch(call).end; }

cudaError_t conv_mix_backward(const ConvMixCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32,
                      [&](auto type) { return conv_mix_backward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
