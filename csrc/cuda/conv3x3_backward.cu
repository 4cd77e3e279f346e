// The backward of conv3x3_gelu, four launches:
//
//   g = grad act'(conv3x3(x, w) + b)          (grad itself without an activation)
//   dx = conv3x3(g, w turned and transposed)
//   dw, db: partial sums, and their sum
#include "conv3x3_launch.cuh"
#include "filter_gradient.cuh"

namespace fastsr::cuda {
namespace {

struct Conv3x3Scratch {
  int64_t g, partials, end;
  int parts;
};

Conv3x3Scratch conv3x3_scratch(const Conv3x3Call& call) {
  const int64_t k = call.y.size[1], c = call.x.size[1], bytes = call.dtype == kFloat32 ? 4 : 2;
  const int64_t tiles = tiles_of(call.x, kGradientRows).count;
  Conv3x3Scratch at{};
  at.parts = static_cast<int>(tiles < kMaxGradientParts ? tiles : kMaxGradientParts);
  at.partials = call.activation == kNone ? 0 : elements_of(scratch_view(nullptr, call.x, k)) * bytes;
  at.end = at.partials + at.parts * gradient_row(k, c, 3) * 4;
  return at;
}

template <class T>
cudaError_t conv3x3_backward_as(const Conv3x3Call& call, cudaStream_t stream) {
  const Conv3x3Scratch at = conv3x3_scratch(call);
  char* workspace = static_cast<char*>(call.workspace);
  const int k = static_cast<int>(call.y.size[1]), c = static_cast<int>(call.x.size[1]);
  TensorView g = call.y;
  if (call.activation != kNone) {
    g = scratch_view(workspace + at.g, call.x, k);
    Conv3x3<T> again = conv3x3_of<T>(call, g);
    again.other = pixel_map<T>(call.y), again.gradient = 1;
    const cudaError_t error = start_conv3x3(again, stream);
    if (error != cudaSuccess) return error;
  }
  if (call.dx.data) {
    Conv3x3<T> back = conv3x3_of<T>(call, call.dx);
    back.conv.x = pixel_map<T>(g);
    back.conv.weights.outputs = c, back.conv.weights.inputs = k, back.conv.weights.transposed = 1;
    back.conv.bias.data = nullptr;
    back.activation = kNone;
    const cudaError_t error = start_conv3x3(back, stream);
    if (error != cudaSuccess) return error;
  }
  FilterGradient<T> filters{};
  filters.tiles = tiles_of(call.x, kGradientRows);
  filters.x = pixel_map<T>(call.x), filters.g = pixel_map<T>(g);
  filters.partials = reinterpret_cast<float*>(workspace + at.partials);
  filters.k = k, filters.c = c, filters.parts = at.parts;
  const cudaError_t error = start_filter_gradient<T, 3>(filters, stream);
  if (error != cudaSuccess) return error;

  PartialSums sums{};
  sums.parts = at.parts;
  sums.dtype = static_cast<int>(call.parameter_dtype);
  int count = 0;
  add_filter_sums(sums, &count, filters.partials, k, c, 3, call.d_weight, call.d_bias);
  return sum_partials(sums, count, stream);
}

}  // namespace

int64_t conv3x3_workspace(const Conv3x3Call& call) { return conv3x3_scratch(call).end; }

cudaError_t conv3x3_backward(const Conv3x3Call& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32,
                      [&](auto type) { return conv3x3_backward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
